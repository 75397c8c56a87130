"""Fixtures for pytest, there in every suite where tesseract-flow is installed (`-p no:tesseract_flow.testing.plugin`).

Nothing but pytest and the standard library is imported before a fixture is asked for.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tesseract_flow.client import AbstractTesseract, DirectoryCache
    from tesseract_flow.client.meter import RequestCounts

_PATIENCE = 300.0  # seconds for a component that another worker starts


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tesseract-flow")
    group.addoption(
        "--cassettes",
        choices=("replay", "record", "use"),
        default="replay",
        help="what the `cassette` fixture does: replay what was recorded (default), record it, or use it as a cache",
    )


@pytest.fixture
def cassette(request: pytest.FixtureRequest) -> Callable[[str], DirectoryCache]:
    """name → a recording in `cassettes/name` beside the test's file, for `open_tesseract(..., cache=cassette("name"))`.

    `pytest` replays it, `pytest --cassettes=record` records it.
    """
    from tesseract_flow.client import DirectoryCache

    mode: Any = request.config.getoption("--cassettes")

    def recording(name: str) -> DirectoryCache:
        return DirectoryCache(request.path.parent / "cassettes" / name, mode=mode)

    return recording


class NetworkUsed(AssertionError):
    """Something wanted to connect, in a test that is to do without."""


@pytest.fixture
def no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody connects to anything, this machine included; who tries fails with the address.

    A test with a `cassette` is let through while that is recorded or used: it has somebody to ask then.
    """
    if "cassette" in request.fixturenames and request.config.getoption("--cassettes") != "replay":
        return

    def refuse(*_: Any) -> Any:
        address = next((part for part in _ if not isinstance(part, socket.socket)), "?")
        raise NetworkUsed(f"This test is to do without a network, and something connects to {address!r}.")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def count_requests() -> Iterator[RequestCounts]:
    """Requests to Tesseracts since the test began: `.n_total`, `.n_of("apply")`, `["fem.apply"]`."""
    from tesseract_flow.client.meter import count_requests

    with count_requests() as counts:
        yield counts


@pytest.fixture
def strict_jax() -> Iterator[None]:
    """JAX in 64 bits and with strict promotion, for one test; for all with `usefixtures = strict_jax` in the ini."""
    import jax

    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def prefect_offline(request: pytest.FixtureRequest) -> Iterator[None]:
    """Prefect's API on a database of its own, for flows; it takes some seconds, once. Tasks by `.fn` do without."""
    from urllib.parse import urlsplit

    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        # Prefect 3.8 opens a client at the start of every flow to ask for the default result storage, and never
        # closes it. Only Prefect connects to this port, so no leak of anybody else can hide behind the exception.
        port = urlsplit(PREFECT_API_URL.value() or "").port
        request.config.addinivalue_line("filterwarnings", rf"ignore:unclosed <socket.*, {port}\)>:ResourceWarning")
        yield
        gc.collect()  # while the server answers: afterwards a forgotten socket no longer knows its port


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., AbstractTesseract]]:
    """path of a `tesseract_api.py` (and options of `ServedTesseract`) → a handle to it, behind a real server.

    One server for a session, whoever asks for it: with pytest-xdist the first worker starts it, and ends it when the
    others have gone.
    """
    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent  # which all workers share
    with _Servers(folder / "tesseract-flow-served") as servers:
        yield servers.open


class _Servers:
    """Components that are served, by this worker or by another one.

    A component is a folder: who makes it is the owner, `urls.json` says where it is served, and each worker that uses
    it has a file of its process id there.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._own: list[tuple[Path, Any]] = []
        self._used: list[Path] = []

    def __enter__(self) -> _Servers:
        return self

    def open(self, path: str | os.PathLike[str], **options: Any) -> AbstractTesseract:
        import hashlib

        from tesseract_flow.client import ServedTesseract, open_tesseract

        source = ServedTesseract(Path(path) / "tesseract_api.py" if Path(path).is_dir() else Path(path), **options)
        digest = hashlib.sha256(f"{source.path} {source.code} {sorted(options.items())!r}".encode()).hexdigest()[:16]
        place = self.folder / digest
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            place.mkdir()
        except FileExistsError:
            pass
        else:
            self._own.append((place, source))
            try:
                told = {"urls": source.urls, "name": source.name}
            except BaseException as error:
                _write(place / "urls.json", {"error": str(error)})
                raise
            _write(place / "urls.json", told)
        user = place / str(os.getpid())
        if user not in self._used:
            user.touch()
            self._used.append(user)
        told = _read(place / "urls.json")
        urls = told["urls"]
        return open_tesseract(urls if len(urls) > 1 else urls[0], label=told["name"])

    def __exit__(self, *_: object) -> None:
        for user in self._used:
            user.unlink(missing_ok=True)
        for place, source in self._own:
            while any(_is_alive(user.name) for user in place.iterdir() if user.name.isdigit()):
                time.sleep(0.05)
            source.stop()


def _write(file: Path, told: dict[str, Any]) -> None:
    aside = file.with_suffix(".aside")
    aside.write_text(json.dumps(told))
    aside.replace(file)


def _read(file: Path) -> dict[str, Any]:
    """What the owner says, once it does."""
    end = time.monotonic() + _PATIENCE
    while not file.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"Another worker has not started a component in {_PATIENCE:g} s ({file}).")
        time.sleep(0.02)
    told = json.loads(file.read_text())
    if "error" in told:
        raise RuntimeError(f"Another worker could not start this component: {told['error']}")
    return told


def _is_alive(pid: str) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(pid), 0)
        return True
    return False
