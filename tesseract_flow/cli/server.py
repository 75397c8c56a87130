"""A Prefect server of this user's, for as long as somebody needs it. Knows nothing of Prefect's modules.

The settings that a server and its clients must agree on are read when Prefect is imported, so they are put into the
environment before. Server and data live in one folder: the runs of today are there tomorrow. Whoever comes while the
server is up shares it, as two servers on one SQLite database would lock each other out, and the last one to leave ends
it. If that one was killed, the process does that has started the server, and waits beside it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from tesseract_flow.errors import DeploymentError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PATIENCE = 180.0  # seconds for a start: on a busy machine, with a database to be made, it takes a while
_GRACE = 15.0  # seconds from the kind word to the end
_PACE = 1.0  # seconds between two looks whether anybody is there
_LAST_WORDS = 12  # lines of the server's log
_USUAL_PORT = 4200
_ASK = "from prefect.settings import get_current_settings as s; print(s().api.url or '')"
_LOCAL = "127.0.0.1,localhost"


@contextlib.contextmanager
def prefect_server(say: Callable[[str], object]) -> Iterator[str]:
    """The address of the API that is configured, or of a server that runs while this is open. Prefect must not be
    imported before.

    Raises:
        DeploymentError: the server does not start.
    """
    assert "prefect" not in sys.modules, "its settings are read already"
    if url := configured():
        yield url
        return
    if fcntl is None:
        raise DeploymentError(
            "Servers are not started on this system. Start one, name it, and serve the problem beside it:\n"
            "  prefect server start\n  set PREFECT_API_URL=http://127.0.0.1:4200/api\n  tesseract-flow serve-flow ..."
        )
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".tesseract-flow" / "prefect").expanduser().resolve()
    home.mkdir(parents=True, exist_ok=True)
    with _locked(home / "starting.lock", fcntl.LOCK_EX):
        running = _running(home)
        if running is None:
            say(f"starting a Prefect server; its runs are kept in {home}")
            running = _start(home)
        guests = _open(home / "guests.lock")
        fcntl.flock(guests, fcntl.LOCK_SH)
    try:
        os.environ.update(_settings(home, running["port"]))
        yield _api(running["port"])
    finally:
        with _locked(home / "starting.lock", fcntl.LOCK_EX):
            try:
                fcntl.flock(guests, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                say("the Prefect server stays up for others who use it")
            else:
                (home / "server.json").unlink(missing_ok=True)
                _end(running["group"])
            guests.close()


def configured() -> str:
    """The API that environment, profile and files of settings name; empty if none. Asked in a process of its own."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DeploymentError(f"Prefect does not understand its settings:\n{done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


def _settings(home: Path, port: int) -> dict[str, str]:
    # A proxy is for what is outside; httpx would ask it for this machine as well.
    around = {name: ",".join(filter(None, [os.environ.get(name), _LOCAL])) for name in ("NO_PROXY", "no_proxy")}
    # Without the second one the pages ask port 4200.
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": _api(port),
        "PREFECT_SERVER_UI_API_URL": _api(port),
        **around,
    }


def _api(port: int) -> str:
    return f"http://127.0.0.1:{port}/api"


def _running(home: Path) -> dict[str, Any] | None:
    """The server of this folder, if it answers."""
    try:
        known = json.loads((home / "server.json").read_text(encoding="utf-8"))
        return known if _answers(home, known["port"]) and _is_alive(known["group"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _start(home: Path) -> dict[str, Any]:
    log = home / "server.log"
    for port in (_USUAL_PORT, 0, 0):
        if (port := _free_port(port)) is None:
            continue
        server = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        command = [sys.executable, "-m", __name__, str(home), sys.executable, "-m", *server]
        with open(log, "wb") as out:
            # A group of its own: Ctrl-C in this terminal is for us, and we end all of the group.
            process = subprocess.Popen(
                command,
                env={**os.environ, **_settings(home, port)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            if _wait(process, home, port):
                known = {"port": port, "group": process.pid}
                (home / "server.json").write_text(json.dumps(known), encoding="utf-8")
                return known
        except BaseException:
            _end(process.pid)
            raise
        _end(process.pid)
    words = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_WORDS:])
    raise DeploymentError(f"Prefect's server did not start. The end of {log}:\n{words}")


def _stay_beside(home: Path, command: list[str]) -> int:
    """Run the server until it ends, or until nobody uses it; its exit code. In a group that has nothing else in it."""
    assert fcntl is not None
    signal.signal(signal.SIGTERM, lambda *_: None)  # is for the whole group; the server ends, and then this
    server = subprocess.Popen(command)
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return server.wait(_PACE)
        with _is_left_alone(home) as is_left:
            if not is_left:
                continue
            (home / "server.json").unlink(missing_ok=True)
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                return server.wait(_GRACE)
            os.killpg(0, signal.SIGKILL)


@contextlib.contextmanager
def _is_left_alone(home: Path) -> Iterator[bool]:
    """Whether nobody uses the server; while this is open nobody comes. Waits for none, who may be waiting for us."""
    assert fcntl is not None
    at_once = fcntl.LOCK_EX | fcntl.LOCK_NB
    try:
        with _locked(home / "starting.lock", at_once), _locked(home / "guests.lock", at_once):
            yield True
    except BlockingIOError:
        yield False


def _wait(process: subprocess.Popen[bytes], home: Path, port: int) -> bool:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            return False
        if _answers(home, port):
            return True
        time.sleep(0.2)
    return False


def _answers(home: Path, port: int) -> bool:
    """Whether the server of this folder does: another one may have been faster to take the port, and while ours finds
    out, a run would end up in somebody else's database."""
    request = urllib.request.Request(f"{_api(port)}/admin/settings")
    if secret := os.environ.get("PREFECT_API_AUTH_STRING"):
        request.add_header("Authorization", f"Basic {base64.b64encode(secret.encode()).decode()}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5.0) as answer:
            return Path(json.load(answer)["home"]).resolve() == home
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _free_port(wanted: int) -> int | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server's own; who listens is in its way
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return None
        return probe.getsockname()[1]


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _end(group: int, patience: float = _GRACE) -> None:
    """End a group of processes: kindly, then not."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, kind)
        end = time.monotonic() + patience
        while time.monotonic() < end:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(group, os.WNOHANG)  # ours, if we started it: a zombie would count as alive
            if not _is_alive(group):
                return
            time.sleep(0.1)


def _open(path: Path) -> IO[bytes]:
    return open(path, "ab")


@contextlib.contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    assert fcntl is not None
    with _open(path) as file:
        fcntl.flock(file, kind)
        yield


if __name__ == "__main__":
    sys.exit(_stay_beside(Path(sys.argv[1]), sys.argv[2:]))
