"""What can be found out before, and beside, a run: what is wrong with it, and whether derivatives are right.

`check` looks at a problem without a solve; `check_gradients` compares derivatives with values. Knows no Prefect.
"""

from tesseract_flow.checks.findings import ComponentSummary, Finding, Report
from tesseract_flow.checks.gradients import check_gradients
from tesseract_flow.checks.static import check
from tesseract_flow.checks.verdicts import GradientReport, Verdict

__all__ = ["ComponentSummary", "Finding", "GradientReport", "Report", "Verdict", "check", "check_gradients"]
