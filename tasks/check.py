"""A report of what was found before the first solve, as an artifact."""

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE


@task(name="publish check", task_run_name="publish {what}", cache_policy=NO_CACHE, persist_result=False)
def publish_check(what: str, key: str, markdown: str, headline: str) -> None:
    """Findings as a Markdown artifact.

    Args:
        what: such as `check`, the end of the artifact's key.
        key: how it begins.
        headline: the outcome as a sentence.
    """
    create_markdown_artifact(markdown, key=f"{key}-{what}", description=headline)
