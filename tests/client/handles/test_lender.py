"""Components served once for the processes that are started here: who has them, and when they are served afresh."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tesseract_flow.client import ServedTesseract, open_tesseract
from tesseract_flow.client.handles.lender import Lender
from tesseract_flow.client.handles.offers import VARIABLE, Offer
from tests.client.handles.test_served import ROOT, is_alive, wait_until
from tests.client.helpers import PROBE

# A run: says which process has answered it, and does so for each line that it gets.
RUN = textwrap.dedent(
    f"""
    import sys
    sys.path.insert(0, {str(ROOT)!r})
    from tesseract_flow.client import open_tesseract
    from tesseract_flow.client.handles.offers import end_with_lender
    end_with_lender()
    handle = open_tesseract(sys.argv[1])
    for line in sys.stdin:
        print(handle.apply({{"x": [1.0]}})["pid"], handle.build, flush=True)
    """
)


class Run:
    def __init__(self, component: Path, **variables: str):
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(component)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )

    def ask(self) -> int:
        """Who has answered."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        said = self.process.stdout.readline().split()
        assert said, self.process.stderr and self.process.stderr.read()
        self.build = said[1]
        return int(said[0])

    def end(self) -> str:
        """What it has said of itself."""
        return self.process.communicate()[1]


@contextlib.contextmanager
def run(component: Path, **variables: str) -> Iterator[Run]:
    running = Run(component, **variables)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


@pytest.fixture
def component(tmp_path: Path) -> Path:
    shutil.copytree(PROBE.parent, folder := tmp_path / "probe", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@contextlib.contextmanager
def lending(component: Path) -> Iterator[Lender]:
    with Lender(pace=0.05) as lender:
        handle = open_tesseract(component)
        assert isinstance(handle, ServedTesseract)
        _ = handle.schema
        assert lender.offer() == {"probe": handle.urls}
        yield lender
        assert os.environ[VARIABLE]
    assert VARIABLE not in os.environ


def offered(lender: Lender) -> int:
    """The process that is on offer now, if nobody has it."""
    (process,) = lender._served.values()
    return process._server.process.process.pid  # type: ignore[union-attr]


@pytest.mark.server
def test_runs_have_the_component_one_after_the_other_and_it_is_not_started_again(component: Path):
    with lending(component) as lender:
        pid = offered(lender)
        for _ in range(2):
            with run(component) as one:
                assert one.ask() == one.ask() == pid
                assert one.build == next(iter(lender._served.values())).build
                assert one.end() == ""
        assert is_alive(pid)


@pytest.mark.server
def test_what_was_served_before_is_not_on_offer(component: Path, tmp_path: Path):
    shutil.copytree(component, other := tmp_path / "other")
    before = open_tesseract(other)
    _ = before.schema
    with lending(component) as lender:
        assert len(lender._served) == 1


@pytest.mark.slow
@pytest.mark.server
def test_who_comes_while_another_run_has_it_serves_it_by_himself(component: Path):
    with lending(component) as lender, run(component) as one, run(component) as two:
        pids = {one.ask(), two.ask()}
        assert offered(lender) in pids and len(pids) == 2


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("what", ["code", "data", "imports", "environment"])
def test_what_is_not_what_lies_there_now_is_not_used(component: Path, tmp_path: Path, what: str):
    with lending(component) as lender:
        before = offered(lender)
        if what in ("code", "data"):
            name = "tesseract_api.py" if what == "code" else "mesh.txt"
            with (component / name).open("a") as file:
                file.write("\n# other\n")
        variables = {"environment": {"MESH": "fine"}, "imports": {"PYTHONPATH": str(tmp_path)}}.get(what, {})
        with run(component, **variables) as one:
            assert one.ask() != before
            assert "has changed since it was served" in one.end()
        if what in ("code", "data"):  # what the next one gets is the new one, served once
            wait_until(lambda: not is_alive(before) and _is_free(lender))
            with run(component) as two:
                assert two.ask() == offered(lender)
                assert two.build == one.build and two.end() == ""


@pytest.mark.slow
@pytest.mark.server
def test_what_a_killed_run_had_is_served_afresh_and_a_dead_one_as_well(component: Path):
    with lending(component) as lender:
        before = offered(lender)
        with run(component) as one:
            assert one.ask() == before
        wait_until(lambda: not is_alive(before) and _is_free(lender))
        second = offered(lender)
        with run(component) as two:
            assert two.ask() == second
            os.kill(second, signal.SIGKILL)  # in the middle of a run, which goes on
            assert two.ask() not in (before, second)
            assert "could not be reached; it is started again" in two.end()
        wait_until(lambda: _is_free(lender) and offered(lender) != second)
        with run(component) as three:
            assert three.ask() == offered(lender)


def _is_free(lender: Lender) -> bool:
    ((file, process),) = lender._served.items()
    offer = Offer.read(file)
    return offer is not None and offer.state == "free" and process.is_alive


@pytest.mark.slow
@pytest.mark.server
def test_all_of_it_ends_with_the_lender_even_if_that_is_killed(component: Path):
    program = RUN.split("end_with_lender()\n")[0] + textwrap.dedent(
        f"""
        import subprocess
        from tesseract_flow.client.handles.lender import Lender
        with Lender() as lender:
            handle = open_tesseract(sys.argv[1])
            handle.schema
            lender.offer()
            run = subprocess.Popen([sys.executable, "-c", {RUN!r}, sys.argv[1]], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, text=True)
            run.stdin.write("\\n")
            run.stdin.flush()
            print(run.pid, run.stdout.readline().split()[0], flush=True)
            sys.stdin.read()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(component)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(map(is_alive, pids))
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, pids)))


def test_an_offer_that_cannot_be_read_is_none(tmp_path: Path):
    (tmp_path / "0.json").write_text('{"what": 1}')
    assert Offer.read(tmp_path / "0.json") is None and Offer.read(tmp_path / "1.json") is None
