"""Where a run of the flow lives: a folder for its key, in a folder on disk or at a URL."""

import uuid
from collections.abc import Callable
from typing import TypeVar

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterName
from prefect.client.schemas.sorting import FlowRunSort

from tesseract_flow.errors import JournalError, OtherRun
from tesseract_flow.storage import folder_name, open_store, place_in, slug

T = TypeVar("T")

_KEY_FILE = "run-key.txt"


def in_run_folder(folder: str, key: str, attempt: Callable[[str], T]) -> tuple[str, T]:
    """What `attempt` makes of the run's folder, and which folder that is.

    Older versions gave several keys one folder (`aoa=2` and `aoa=-2` both `aoa-2`) and did not write down which key it
    was for. Such a folder is used if the run in it turns out to be the one that is asked for: `attempt` raises
    `OtherRun` before it does anything if not.
    """
    new = place_in(folder, folder_name(key))
    for out in (_old_folder(folder, key, new), new):
        if out is None:
            continue
        try:
            result = attempt(out)
        except OtherRun:
            if out == new:
                raise
            continue
        _write_key(out, key)
        return out, result
    raise AssertionError("the new folder either works or raises")


def folder_of_flow_run(name: str, folder: str) -> str:
    """Where a flow run by this name or id keeps its journal.

    Args:
        folder: that of the flow's parameter, where it says none.

    Raises:
        JournalError: there is no such flow run, or its folder is not to be seen from here.
    """
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=_filter_of(name), sort=FlowRunSort.START_TIME_DESC, limit=1)
    if not found:
        raise JournalError(f"There is no flow run called {name!r}, and no run of that key in {folder}.")
    flow_run = found[0]  # of several, the one that started last
    parameters = flow_run.parameters
    how = parameters.get("run")
    where = str(parameters.get("folder") or (how.get("folder") if isinstance(how, dict) else None) or folder)
    place = place_in(where, folder_name(str(parameters.get("run_key") or flow_run.id)))
    if not open_store(place).names():
        raise JournalError(
            f"Flow run {flow_run.name!r} keeps its journal in {place}, as seen from where it runs.\n"
            "Give the folder in which it runs: cd there, or name the run's folder itself."
        )
    return place


def _filter_of(name: str) -> FlowRunFilter:
    try:
        return FlowRunFilter(id=FlowRunFilterId(any_=[uuid.UUID(name)]))
    except ValueError:
        return FlowRunFilter(name=FlowRunFilterName(any_=[name]))


def _old_folder(folder: str, key: str, new: str) -> str | None:
    """The folder that an older version gave to the key, if it is there and no key is known for it."""
    old = place_in(folder, slug(key) or "problem")
    if old == new or open_store(new).names():
        return None
    names = open_store(old).names()
    return old if "journal" in names and _KEY_FILE not in names else None


def _write_key(out: str, key: str) -> None:
    store = open_store(out)
    if _KEY_FILE not in store.names():
        store.make()
        store.write(_KEY_FILE, key.encode("utf-8", "surrogatepass"))
