"""Components that one process serves and others use, which open the same ones by path.

Here: what is on offer, and who has it. Not here: the process that serves them (`lender`), and starting one (`process`).
The one idea: an offer is a file, and who holds its lock has the component to himself: no call waits behind somebody
else's, and the system takes the lock away however its holder ends. What was not given back in good order, or is not
what lies in the component's folder by now, is served afresh.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from tesseract_flow.client.handles.source import build_of, code_of
from tesseract_flow.client.http import HttpTesseract
from tesseract_flow.client.retry import RetryPolicy
from tesseract_flow.errors import CallTimeout, ConnectionLost, TesseractFlowError, Unreachable
from tesseract_flow.wire import CAN_LOCK, locked

try:
    import fcntl
except ImportError:  # Windows, where nothing is offered
    fcntl = None  # type: ignore[assignment]

VARIABLE = "TESSERACT_FLOW_OFFERS"  # the folder with the offers of whoever has started this process
# Settings and ids that differ from run to run, and say nothing to a component.
_NOT_ITS_OWN = re.compile(r"_*PREFECT|TESSERACT_FLOW_|(PWD|OLDPWD|SHLVL|_)$")
_GRACE = 15.0  # seconds from the kind word to the end
_PATIENCE = 10.0  # seconds for the schema of a server that should have nothing to do
_ONCE = RetryPolicy(n_retries=0)
_log = logging.getLogger("tesseract_flow")
State = Literal["free", "lent", "stale"]


@dataclasses.dataclass(frozen=True)
class What:
    """What makes a served component this one: where its code is, who runs it, and all that decides what it answers.

    Attributes:
        path: its `tesseract_api.py`.
        python: the interpreter that runs it.
        build: a digest of the files in its folder.
        around: a digest of what else it would import, and of the environment.
    """

    path: str
    python: str
    build: str
    around: str

    @classmethod
    def now(cls, path: Path, python: str, environment: Mapping[str, str]) -> What:
        """As it would be if it were started now. What is around it is looked at only where components are offered.

        Args:
            environment: what is set for it beside that of this process.
        """
        if VARIABLE not in os.environ:
            return cls(str(path), python, build_of(path.parent), "")
        variables = {**os.environ, **environment}
        told = sorted(item for item in variables.items() if not _NOT_ITS_OWN.match(item[0]))
        digest = hashlib.sha256(repr((code_of(path), told, importable(python, variables))).encode("utf-8", "replace"))
        return cls(str(path), python, build_of(path.parent), digest.hexdigest())


@dataclasses.dataclass(frozen=True)
class Offer:
    """A component that somebody serves: what it is, where it answers, and how it is.

    Attributes:
        folders: its input and output path, where large arrays may go through them.
        state: "lent" is what its holder leaves behind when it is killed.
    """

    what: What
    url: str
    folders: tuple[str, str] | None
    state: State = "free"

    @classmethod
    def read(cls, file: Path) -> Offer | None:
        """None if there is none, or none that can be read."""
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            folders = found["folders"]
            return cls(What(**found["what"]), found["url"], folders and (folders[0], folders[1]), found["state"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, file: Path) -> None:
        """In place: whoever waits for the lock waits for this file."""
        with contextlib.suppress(FileNotFoundError), file.open("r+", encoding="utf-8") as opened:
            opened.write(json.dumps(dataclasses.asdict(self)))
            opened.truncate()


class Loan:
    """A component of somebody else's, for as long as it is needed here."""

    def __init__(self, file: Path, descriptor: int, offer: Offer, http: HttpTesseract):
        self.http = http
        self.build = offer.what.build
        self._file, self._descriptor, self._offer = file, descriptor, offer
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._n_under_way = 0
        self._is_doubtful = False  # it may still be at work on what nobody waits for
        self._is_lost = False

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """While a question is under way."""
        with self._lock:
            self._n_under_way += 1
        try:
            yield
        except (Unreachable, ConnectionLost, CallTimeout) as error:
            self._is_doubtful = True
            self._is_lost |= not isinstance(error, CallTimeout)
            raise
        finally:
            with self._lock:
                self._n_under_way -= 1

    @property
    def end(self) -> str | None:
        """How it has come to its end, if it has."""
        return "could not be reached" if self._is_lost else None

    def stop(self) -> None:
        """Give it back."""
        if self._pid != os.getpid() or self._descriptor < 0:
            return
        is_idle = not self._is_doubtful and self._n_under_way == 0
        dataclasses.replace(self._offer, state="free" if is_idle else "stale").write(self._file)
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)

    def logs(self) -> str:
        return ""  # it has said what it said to its owner


def borrow(path: Path, python: str, environment: Mapping[str, str], *, shares_memory: bool) -> Loan | None:
    """A component that is offered and is what would be started here; None if there is none."""
    folder = os.environ.get(VARIABLE)
    if not folder or is_lender(folder):
        return None
    wanted: What | None = None
    for file in sorted(Path(folder).glob("*.json")):
        if (descriptor := locked(file)) is None:
            continue
        loan = None
        try:
            offer = Offer.read(file)
            if offer is None or offer.state != "free" or (offer.what.path, offer.what.python) != (str(path), python):
                continue
            wanted = wanted or What.now(path, python, environment)
            if offer.what != wanted:
                changed = "its folder" if offer.what.build != wanted.build else "what it imports, or the environment,"
                _log.warning(
                    "The component %s is served here by itself: %s has changed since it was served for all runs.",
                    path.parent.name,
                    changed,
                )
            elif (loan := _taken(file, descriptor, offer, shares_memory)) is not None:
                return loan
            dataclasses.replace(offer, state="stale").write(file)
        finally:
            if loan is None:
                os.close(descriptor)
    return None


def _taken(file: Path, descriptor: int, offer: Offer, shares_memory: bool) -> Loan | None:
    http = HttpTesseract(offer.url, n_lanes=1, proxy=False, retry=_ONCE)
    if shares_memory and offer.folders is not None:
        input_dir, output_dir = map(Path, offer.folders)
        http = dataclasses.replace(http, encoding="auto", input_dir=input_dir, output_dir=output_dir)
    try:
        http.learn_schema(dataclasses.replace(http, read_timeout=_PATIENCE).schema)
    except TesseractFlowError:
        return None
    dataclasses.replace(offer, state="lent").write(file)
    return Loan(file, descriptor, offer, http)


def importable(python: str, variables: Mapping[str, str]) -> str:
    """A digest of what the interpreter would import; one that is equal to no other, if it cannot tell."""
    text = Path(__file__).with_name("importable.py").read_text(encoding="utf-8")
    done = subprocess.run([python, "-c", text], env=dict(variables), capture_output=True, text=True, check=False)
    return done.stdout.strip() or os.urandom(16).hex()


_own: set[tuple[int, str]] = set()


def offer_here(folder: str) -> None:
    """What this process starts from now on finds offers in `folder`; it is the lender itself."""
    _own.add((os.getpid(), folder))
    os.environ[VARIABLE] = folder


def is_lender(folder: str) -> bool:
    """Whether it is this process that offers what lies there."""
    return (os.getpid(), folder) in _own


# --- the end of the lender --------------------------------------------------------------------------------------------


def end_with_lender() -> None:
    """End this process, which was started for its offers, soon after the lender, however that ends."""
    folder = os.environ.get(VARIABLE)
    if folder and CAN_LOCK and not is_lender(folder):
        threading.Thread(target=_end_after, args=(folder,), daemon=True, name="tesseract-lender").start()


def _end_after(folder: str) -> None:
    assert fcntl is not None
    with contextlib.suppress(OSError):  # it is gone, and so is its owner
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # as soon as the owner holds it no more
        os.close(descriptor)
    with contextlib.suppress(BaseException):  # what this is written to may be gone as well, for which rich exits
        _log.warning("Whoever has started this run and serves its components is gone. The same run key goes on.")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(128 + signal.SIGTERM)
