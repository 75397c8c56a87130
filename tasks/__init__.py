"""Prefect's implementations of the library's protocols: calls, steps, checkpoints and publishing as task runs."""

from tesseract_flow.tasks.cache import PrefectCache
from tesseract_flow.tasks.call import PrefectSubmitter, call_tesseract, retry_if_transient
from tesseract_flow.tasks.check import publish_check
from tesseract_flow.tasks.checkpoint import PrefectJournal, save_checkpoint
from tesseract_flow.tasks.log import warnings_in_run_log
from tesseract_flow.tasks.observe import ObservedSubmitter, ObserveLevel, observation_of
from tesseract_flow.tasks.publish import ArtifactPublisher, publish_pictures, publish_result
from tesseract_flow.tasks.step import run_step, run_step_as_task
from tesseract_flow.tasks.study import StudyPublisher, publish_study

__all__ = [
    "ArtifactPublisher",
    "ObserveLevel",
    "ObservedSubmitter",
    "PrefectCache",
    "PrefectJournal",
    "PrefectSubmitter",
    "StudyPublisher",
    "call_tesseract",
    "observation_of",
    "publish_check",
    "publish_pictures",
    "publish_result",
    "publish_study",
    "retry_if_transient",
    "run_step",
    "run_step_as_task",
    "save_checkpoint",
    "warnings_in_run_log",
]
