"""Prefect's implementations of the library's protocols: calls, steps, checkpoints and publishing as task runs."""

from tesseract_flow.tasks.cache import PrefectCache
from tesseract_flow.tasks.call import PrefectSubmitter, call_tesseract, retry_if_transient
from tesseract_flow.tasks.cards import Cards
from tesseract_flow.tasks.checkpoint import PrefectJournal, save_checkpoint
from tesseract_flow.tasks.endpoints import apply_task, jacobian_task, pullback_task, pushforward_task
from tesseract_flow.tasks.log import ProgressLog, own_log, warnings_in_run_log
from tesseract_flow.tasks.observe import ObservedSubmitter, ObserveLevel, observation_of
from tesseract_flow.tasks.publish import ArtifactPublisher
from tesseract_flow.tasks.steering import PausesOfFlowRun
from tesseract_flow.tasks.step import run_step, run_step_as_task
from tesseract_flow.tasks.study import StudyPublisher

__all__ = [
    "ArtifactPublisher",
    "Cards",
    "ObserveLevel",
    "ObservedSubmitter",
    "PausesOfFlowRun",
    "PrefectCache",
    "PrefectJournal",
    "PrefectSubmitter",
    "ProgressLog",
    "StudyPublisher",
    "apply_task",
    "call_tesseract",
    "jacobian_task",
    "observation_of",
    "own_log",
    "pullback_task",
    "pushforward_task",
    "retry_if_transient",
    "run_step",
    "run_step_as_task",
    "save_checkpoint",
    "warnings_in_run_log",
]
