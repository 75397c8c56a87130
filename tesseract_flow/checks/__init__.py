"""What can be found out before, and beside, a run: everything that is wrong at once, and whether derivatives are right.

`check` looks at a problem without a solve. Knows neither Prefect nor files.
"""

from tesseract_flow.checks.findings import ComponentSummary, Finding, Report
from tesseract_flow.checks.static import check

__all__ = ["ComponentSummary", "Finding", "Report", "check"]
