"""How the arrays of one call travel: in its messages, or through folders that both sides see.

An `Exchange` is one call: it writes the request, names the encoding that the answer shall have, reads the answer, and
leaves no file behind. `Folders` is what calls to one server have in common. The one idea: a file pays for large arrays
only, so it is chosen per array on the way in, and for the answer by what the last one like it was.

Not here: how to find out that both sides see the folders (`sharing`), and the folders of a server that we start
ourselves (`memory_folder`).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import queue
import re
import shutil
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tesseract_flow.client.base import Endpoint, Tree
from tesseract_flow.errors import (
    ComponentFailed,
    EndpointNotFound,
    InvalidAnswer,
    InvalidInput,
    Unreachable,
    WireError,
)
from tesseract_flow.wire import MAX_DEPTH, BinrefPool, Compression, Encoding, Message, accept_header, loads, message

# From how many bytes on a file is faster than base64: one array on the way in, all of an answer on the way out, where
# tesseract-core opens its file three times for each array. Measured on both sides of a loopback, see docs/wire.md.
WRITE_FROM = 64 * 1024
READ_FROM = 768 * 1024
# A folder in memory may be small (64 MiB in a container unless told otherwise), and an answer that finds it full is a
# solve for nothing. So there must be room for several answers of the size that is expected.
_ROOM = 4
_REMEMBERED = 256  # kinds of calls, with the sizes of their answers
_LOST = 64  # calls whose files may still come
_PAUSE = 1.0  # seconds between two looks for them
# To give the memory of a large file back takes 4 ms for 32 MB, so another thread does it.
_LARGE = 2**20
_MOMENT = 0.005

# What tesseract-core calls the files with its answers' arrays.
_FILE_NAME = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.bin")
# And how an answer names their folder.
_FOLDER = re.compile(rb'"buffer"\s*:\s*"run_([^/"\\]*)/')
# The endpoints for which it makes a folder.
_WITH_FOLDER = frozenset({"apply", "jacobian", "jacobian_vector_product", "vector_jacobian_product"})
# Errors after which nothing more is to come from the server.
_AT_AN_END = (InvalidInput, ComponentFailed, InvalidAnswer, EndpointNotFound, Unreachable)

_log = logging.getLogger("tesseract_flow")


class Exchange:
    """One call whose arrays are part of the messages."""

    accept: str | None = None  # None: as the session asks in any case

    def __init__(self, run_id: str, encoding: Encoding, compression: Compression | None, max_bytes: int):
        self.run_id = run_id
        self.encoding: Encoding = encoding
        self.compression: Compression | None = compression
        self.max_bytes = max_bytes

    def body(self, payload: Mapping[str, Any]) -> Message:
        """The request."""
        return message(payload, self.encoding, compression=self.compression)

    def tree(self, answer: bytes | bytearray) -> Tree:
        """What the answer says; a `WireError` if it is not understood."""
        return loads(answer, max_bytes=self.max_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Folders:
    """The folders that calls to one server share.

    Attributes:
        input_dir, output_dir: the server's input and output path, as this machine sees them.
        is_read, is_written: whether the server does use them. None: not known yet.
        is_choosing: arrays that are faster in the message go there.
        is_own: nobody else has to do with them, so whatever a call has left there is removed.
    """

    def __init__(
        self, input_dir: Path, output_dir: Path, *, is_choosing: bool, clock: Callable[[], float] = time.monotonic
    ):
        self.input_dir = input_dir
        self.output_dir = output_dir
        self.is_choosing = is_choosing
        self.is_read: bool | None = None if is_choosing else True
        self.is_written: bool | None = None if is_choosing else True
        self.is_own = False
        self.pool = BinrefPool(input_dir)
        self._sizes: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._lost: deque[str] = deque(maxlen=_LOST)
        self._lock = threading.Lock()
        self._clock = clock
        self._next_sweep = 0.0
        self._pid = os.getpid()

    def own(self, *, is_known: bool) -> None:
        """They belong to a server that we have started, and to nobody else. Does it certainly use them?"""
        self.is_own = True
        if is_known:
            self.is_read = self.is_written = True
        self.pool.mode = 0o600

    def settle(self, which: str, is_shared: bool, folder: Path) -> None:
        """Remember whether the server uses a folder. Says so once if not."""
        if not is_shared and getattr(self, which) is None:
            use = "read" if which == "is_read" else "write"
            _log.warning(
                "The server does not %s its arrays below %s, so they travel as base64. Is it the folder that the "
                "server was started with, as this machine sees it?",
                use,
                folder,
            )
        setattr(self, which, is_shared)

    def is_worth_asking(self, endpoint: Endpoint, n_bytes: int) -> bool:
        """Whether an answer in a file is likely to be faster, for a call that sends `n_bytes` of arrays."""
        if not self.is_choosing:
            return True
        expected = self._sizes.get((endpoint, n_bytes.bit_length()), n_bytes)
        return expected >= READ_FROM and _free_bytes(self.output_dir) >= _ROOM * expected

    def learn(self, endpoint: Endpoint, n_bytes: int, n_answered: int) -> None:
        """A call that sent `n_bytes` of arrays was answered by `n_answered` bytes of them."""
        key = (endpoint, n_bytes.bit_length())
        with self._lock:
            self._sizes[key] = n_answered
            self._sizes.move_to_end(key)
            while len(self._sizes) > _REMEMBERED:
                self._sizes.popitem(last=False)

    def run_folder(self, run_id: str) -> Path:
        """Where tesseract-core puts the arrays of one call's answer, and its log."""
        return self.output_dir / f"run_{run_id}"

    def lost(self, run_id: str) -> None:
        """The call is over for us, but perhaps not for the server."""
        self._lost.append(run_id)

    def sweep(self) -> None:
        """Remove what calls that were lost have left in the meantime."""
        if self._lost and (now := self._clock()) >= self._next_sweep:
            self._next_sweep = now + _PAUSE
            self._remove_lost()

    def _remove_lost(self) -> None:
        for run_id in list(self._lost):
            self.remove_all(run_id)

    def remove_all(self, run_id: str) -> None:
        """Remove the arrays in the folder of a call that nobody else can have named, and the folder if it is ours."""
        folder = self.run_folder(run_id)
        if self.is_own:
            later(functools.partial(shutil.rmtree, folder, ignore_errors=True))
            return
        with contextlib.suppress(OSError):
            remove(folder, filter(_FILE_NAME.fullmatch, os.listdir(folder)))

    def close(self) -> None:
        """Delete the files that are kept for further calls, and what lost calls have left."""
        if os.getpid() == self._pid:  # a forked child has no say in its parent's files
            self.pool.close()
            self._remove_lost()


class FileExchange(Exchange):
    """One call whose large arrays go through files.

    Args:
        run_id: as the caller has named it, perhaps together with other calls.
        n_bytes: how many bytes its large arrays have.
    """

    def __init__(
        self,
        folders: Folders,
        endpoint: Endpoint,
        run_id: str | None,
        compression: Compression | None,
        max_bytes: int,
        n_bytes: int,
    ):
        # A name of its own, wherever nobody looks for the one that was given.
        self._has_own_name = run_id is None or folders.is_own
        name = "-".join(filter(None, (run_id, uuid.uuid4().hex))) if self._has_own_name else str(run_id)
        super().__init__(name, "binref" if folders.is_read else "base64", compression, max_bytes)
        self._folders = folders
        self._endpoint: Endpoint = endpoint
        self._n_bytes = n_bytes
        self._writer = folders.pool.writer(n_bytes)
        self._asks_for_file = bool(folders.is_written) and folders.is_worth_asking(endpoint, n_bytes)
        self.accept = accept_header("binref" if self._asks_for_file else "base64", compression)
        self._is_telling = folders.is_written is None and not folders.run_folder(name).exists()
        self._answer: bytes | bytearray = b""

    def body(self, payload: Mapping[str, Any]) -> Message:
        folders = self._folders
        inline_below = WRITE_FROM if folders.is_choosing else 0
        try:
            return message(
                payload, self.encoding, compression=self.compression, binref=self._writer, inline_below=inline_below
            )
        except WireError as error:
            if not (folders.is_choosing and _is_of_the_system(error)):
                raise
            _log.warning("The arrays of a call travel as base64: %s", error)
            return message(payload, "base64", compression=self.compression)

    def tree(self, answer: bytes | bytearray) -> Tree:
        self._answer = answer
        self._writer.release()  # it has worked with them, so it has read them
        self._refuse_files_of_others(answer)
        return loads(answer, binref_root=self._folders.output_dir, max_bytes=self.max_bytes)

    def _refuse_files_of_others(self, answer: bytes | bytearray) -> None:
        """The one place where an answer says to which call it belongs."""
        for run in _FOLDER.findall(answer):
            if run.decode("utf-8", "replace") != self.run_id:
                raise WireError(
                    f"its arrays are in the folder of another call: expected run_{self.run_id}, received "
                    f"run_{run.decode('utf-8', 'replace')[:100]}. It is not the answer to this question."
                )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)
        folders = self._folders
        n_bytes = remove(folders.run_folder(self.run_id), names) if (names := self._names()) else 0
        if self._answer:
            if self._is_telling and self._endpoint in _WITH_FOLDER:
                folders.settle("is_written", _is_ours(folders.run_folder(self.run_id)), folders.output_dir)
            folders.learn(self._endpoint, self._n_bytes, n_bytes or len(self._answer) * 3 // 4)
        if self._has_own_name and (folders.is_own or (error is not None and self._asks_for_file)):
            folders.remove_all(self.run_id)
            if error is not None and not isinstance(error, _AT_AN_END):
                folders.lost(self.run_id)
        folders.sweep()

    def _names(self) -> set[str]:
        """The files of the answer that were made for this call."""
        if not self._asks_for_file:
            return set()
        prefix = re.escape(f'"run_{self.run_id}/'.encode())
        names = re.findall(prefix + rb"(" + _FILE_NAME.pattern.encode() + rb")[:\"]", self._answer)
        return {name.decode() for name in names}


def remove(folder: Path, names: Iterable[str]) -> int:
    """Delete files of a folder and say how large they were; their memory may be given back a moment later."""
    n_bytes = 0
    # Nothing is followed: whoever writes there may have put a link in the place of the folder, or of a file.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        place = os.open(folder, flags | getattr(os, "O_DIRECTORY", 0))
    except OSError:
        return 0
    try:
        for name in names:
            with contextlib.suppress(OSError):
                file = os.open(name, flags, dir_fd=place)
                size = os.fstat(file).st_size
                if size >= _LARGE:
                    later(functools.partial(os.close, file))
                else:
                    os.close(file)
                n_bytes += size
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=place)
    finally:
        os.close(place)
    return n_bytes


_tasks: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
_tidier_pid = 0


def later(task: Callable[[], object]) -> None:
    """Have another thread do what frees resources, so that no call waits for it. It must not raise."""
    global _tidier_pid, _tasks
    if _tidier_pid != os.getpid():  # a fork takes no threads along; two of them do no harm
        _tidier_pid, _tasks = os.getpid(), queue.SimpleQueue()
        threading.Thread(target=_tidy_up, args=(_tasks,), name="tesseract-tidier", daemon=True).start()
    _tasks.put(task)


def _tidy_up(tasks: queue.SimpleQueue[Callable[[], object]]) -> None:
    pause = threading.Event()
    while True:
        first = tasks.get()
        # At once, it would compete with whoever uses the answer. A moment later that may well wait for the next.
        pause.wait(_MOMENT)
        first()
        while not tasks.empty():
            tasks.get()()


def large_bytes(tree: Any, n_levels: int = MAX_DEPTH) -> int:
    """How many bytes the arrays of a tree have that are large enough for a file."""
    if isinstance(tree, Mapping | list | tuple):
        parts = tree.values() if isinstance(tree, Mapping) else tree
        return sum(large_bytes(part, n_levels - 1) for part in parts) if n_levels else 0
    n_bytes = getattr(tree, "nbytes", 0)
    return n_bytes if isinstance(n_bytes, int) and n_bytes >= WRITE_FROM else 0


def _is_of_the_system(error: WireError) -> bool:
    """Whether an array could not be written for want of room, or of a folder, rather than for what it is."""
    cause = error.__cause__
    return isinstance(cause, WireError) and isinstance(cause.__cause__, OSError)


def _free_bytes(folder: Path) -> float:
    try:
        status = os.statvfs(folder)
    except (OSError, AttributeError):  # no such folder; not on this platform
        return float("inf")
    return status.f_bavail * status.f_frsize


def _is_ours(folder: Path) -> bool:
    """Whether there is such a folder, and we may read and delete what is in it."""
    return folder.is_dir() and os.access(folder, os.R_OK | os.W_OK | os.X_OK)
