"""The result cache in Prefect's result storage: any block that files can be written to, on a disk or in a bucket.

What is in a file and when it is believed is `tesseract_flow.client`'s. Here is how it gets to the block and back.
"""

import inspect
import logging
from collections.abc import Callable
from typing import Any

from prefect.filesystems import WritableFileSystem
from prefect.utilities.asyncutils import run_coro_as_sync

from tesseract_flow.client.base import Tree
from tesseract_flow.client.caches.base import MISS, AbstractCache, Origin, RequestKey, Traffic
from tesseract_flow.client.caches.directory import FOLDER
from tesseract_flow.client.caches.entries import read_entry, stem_of, write_entry
from tesseract_flow.errors import CallError

_log = logging.getLogger("tesseract_flow")


class PrefectCache(AbstractCache):
    """Answers as files in a Prefect block, one each, for all processes that can load it.

    >>> from prefect.filesystems import LocalFileSystem
    >>> cache = PrefectCache(LocalFileSystem(basepath="~/results"))

    A block can neither list nor remove files, so nothing here bounds them: let the storage do that (a bucket's
    lifecycle rule, `tesseract-flow cache prune` where it is a folder).

    Args:
        storage: such as `LocalFileSystem(...)` or `S3Bucket.load("results")`.
        folder: where in it.
    """

    is_lasting = True

    def __init__(self, storage: WritableFileSystem, folder: str = FOLDER):
        self.storage = storage
        self.folder = folder
        self._traffic = Traffic()
        self._unreadable: set[str] = set()  # entries that ought to be gone, and are not

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PrefectCache) and (self.storage, self.folder) == (other.storage, other.folder)

    def __hash__(self) -> int:
        return hash((type(self.storage), self.folder))  # blocks have no hash

    def __reduce__(self) -> tuple[Any, ...]:
        return PrefectCache, (self.storage, self.folder)

    def __repr__(self) -> str:
        return f"PrefectCache({type(self.storage).__name__}, {self.folder!r})"  # a block may hold credentials

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    def get(self, key: RequestKey) -> Tree:
        stem = stem_of(key)
        if stem in self._unreadable:
            return MISS
        try:
            entry = read_entry(self._read(f"{stem}.json"), lambda name, _: bytearray(self._read(name)), stem, key)
        except Exception as error:
            # Each kind of storage has its own word for a file that is not there. A damaged one is written anew.
            _log.debug("%r has no answer: %s", self, error)
            return MISS
        return MISS if isinstance(entry.answer, CallError) else entry.answer

    def put(self, key: RequestKey, answer: Tree, origin: Origin) -> None:
        stem = stem_of(key)
        try:
            text, name, arrays = write_entry(key, answer, origin)
            if name:  # before the text: without it they are nothing
                self._write(name, arrays)
            self._write(f"{stem}.json", text)
            self._unreadable.discard(stem)
        except Exception as error:
            self._traffic.count("skipped")
            _log.warning("Cannot write to %r (%s: %s). The call goes on without it.", self, type(error).__name__, error)

    def drop(self, key: RequestKey) -> None:
        """Blocks cannot remove files, so an empty one takes its place, which is no answer."""
        stem = stem_of(key)
        try:
            self._write(f"{stem}.json", b"")
        except Exception as error:
            _log.warning(
                "%r holds the answer of a failed evaluation and cannot be written to (%s: %s). Until it can, this "
                "process does not read that answer; remove %s/%s.json before others do.",
                *(self, type(error).__name__, error, self.folder, stem),
            )
            self._unreadable.add(stem)

    def size(self) -> dict[str, int]:
        return {}

    def _read(self, name: str) -> bytes:
        return _now(lambda: self.storage.read_path(f"{self.folder}/{name}"))

    def _write(self, name: str, content: bytes) -> None:
        _now(lambda: self.storage.write_path(f"{self.folder}/{name}", content))


def _now(ask: Callable[[], Any]) -> Any:
    """What a block's method returns, which inside of an event loop is a coroutine."""
    answer = ask()
    return run_coro_as_sync(answer) if inspect.iscoroutine(answer) else answer
