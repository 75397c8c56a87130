"""Many runs of `optimize` as one: from several starts, or for several settings of a factory.

Each run is one that could be made alone, with a journal of its own; a study adds which runs there are (`starts`,
`settings`), runs them at once (`crew`, `running`), in a folder that they share (`place`), and tells what they are
together (`outcome`, `table`, `reporting`).
"""

from tesseract_flow.study.elsewhere import AbstractElsewhere, Errand
from tesseract_flow.study.outcome import AbstractStudy, MultiStart, StudyRun, Sweep
from tesseract_flow.study.progress import StudyProgress
from tesseract_flow.study.settings import all_settings, factory_name
from tesseract_flow.study.study import multi_start, sweep
from tesseract_flow.study.watching import AbstractStudyObserver, StudyObserver

__all__ = [
    "AbstractElsewhere",
    "AbstractStudy",
    "AbstractStudyObserver",
    "Errand",
    "MultiStart",
    "StudyObserver",
    "StudyProgress",
    "StudyRun",
    "Sweep",
    "all_settings",
    "factory_name",
    "multi_start",
    "sweep",
]
