"""The artifacts of a flow run: one card for each thing, made once and renewed in place.

Prefect's own functions make a new version, and a new card in the run's tab, each time. Cards are a service, not the
work: if Prefect's API refuses one, the run says so in its log, once, and goes on.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from matplotlib.figure import Figure
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.context import FlowRunContext

from tesseract_flow.report import data_uri
from tesseract_flow.report.tables import number
from tesseract_flow.storage import folder_name, slug
from tesseract_flow.tasks.log import run_logger


class Cards:
    """The cards of one run of one problem.

    Args:
        names: what they belong to, such as the problem's name and the run's key. With them begins each card's key,
            which is a thread of versions: other runs of the problem have other ones, and the same run, started again,
            the same.
    """

    def __init__(self, *names: str):
        self._prefix = "-".join(artifact_key(name) for name in names)
        self._ids: dict[str, UUID] = {}
        self._has_failed = False
        context = FlowRunContext.get()
        self._run = None if context is None or context.flow_run is None else context.flow_run
        # A run that is tried again finds the cards of its first attempt.
        self._may_be_there = self._run is not None and self._run.run_count > 1

    def progress(self, percent: float, words: str) -> None:
        self._guarded(lambda: self._put("progress", "progress", percent, words))

    def markdown(self, what: str, text: str, words: str) -> None:
        self._guarded(lambda: self._put(what, "markdown", text, words))

    def table(self, what: str, rows: Sequence[Mapping[str, Any]], words: str) -> None:
        self._guarded(lambda: self._put(what, "table", json.dumps(legible(rows), allow_nan=False), words))

    def picture(self, what: str, draw: Callable[[], Figure | None], words: str) -> None:
        """A figure, if there is one; as Markdown, as the page of an image shows its address, which is the image."""

        def put() -> None:
            if (figure := draw()) is not None:
                self._put(what, "markdown", f"![{what}]({data_uri(figure, 'png')})", words)

        self._guarded(put)

    def _put(self, what: str, kind: str, data: Any, words: str) -> None:
        if self._run is None:  # called as a plain function: nobody looks
            return
        key = f"{self._prefix}-{artifact_key(what)}"
        with get_client(sync_client=True) as client:
            if self._may_be_there:
                mine = FlowRunFilter(id=FlowRunFilterId(any_=[self._run.id]))
                self._ids = {card.key: card.id for card in client.read_artifacts(flow_run_filter=mine) if card.key}
                self._may_be_there = False
            if key in self._ids:
                client.update_artifact(self._ids[key], ArtifactUpdate(data=data, description=words))
            else:
                card = ArtifactCreate(key=key, type=kind, data=data, description=words, flow_run_id=self._run.id)
                self._ids[key] = client.create_artifact(card).id

    def _guarded(self, put: Callable[[], None]) -> None:
        try:
            put()
        except Exception as error:
            if not self._has_failed:  # a server that is away would fill the log
                run_logger().warning("An artifact could not be published, the run goes on: %s", error)
            self._has_failed = True


def legible(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table with their numbers as one reads them; the exact ones are in the files."""
    return [{name: number(x) if isinstance(x, float) else x for name, x in row.items()} for row in rows]


def artifact_key(name: str) -> str:
    """`name` as Prefect wants keys: lowercase letters, numbers and dashes.

    Where that leaves out more than a space or an apostrophe, names that differ in it stay different: a key is a thread
    of versions, and two problems should not share one.
    """
    plain = slug(name)
    return plain if plain and re.fullmatch(r"[\w '’.,()-]+", name, re.ASCII) else folder_name(name)
