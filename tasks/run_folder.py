"""Where a run of the flow lives: a folder for its key, in a folder on disk or at a URL."""

from collections.abc import Callable
from typing import TypeVar

from tesseract_flow.errors import OtherRun
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
