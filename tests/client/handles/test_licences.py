"""Licences are counted over all processes: never one too many at the server, whoever is killed, and none is lost."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tesseract_flow.client import open_tesseract
from tesseract_flow.client.handles.licences import Licences
from tesseract_flow.errors import CallTimeout, ComponentFailed, OptionError, StorageError
from tests.client.helpers import Asked, LocalServer, Reply, wait_until

CLIENT = """
import sys
from tesseract_flow.client import open_tesseract

url, folder, who = sys.argv[1:]
handle = open_tesseract(url, max_in_flight=2, limit_folder=folder)
while True:
    handle.request("apply", {"inputs": {"who": who}})
"""


class Solver:
    """Goes on with what it was asked, whoever has gone, and knows how many it has had at once."""

    def __init__(self, server: LocalServer, seconds: float = 0.0):
        server.answer = self.solve
        self.seconds = seconds
        self.condition = threading.Condition()
        self.n_most = 0
        self.held: set[str] = set()  # whose requests are not answered for now
        self.now: list[str] = []
        self.seen: set[str] = set()

    def solve(self, asked: Asked) -> Reply:
        who = json.loads(asked.body)["inputs"]["who"]
        with self.condition:
            self.now.append(who)
            self.seen.add(who)
            self.n_most = max(self.n_most, len(self.now))
            self.condition.wait_for(lambda: who not in self.held, timeout=60)
            self.condition.wait(self.seconds)
            self.now.remove(who)
        return Reply(headers={"Content-Type": "application/json"})

    def hold(self, *who: str) -> None:
        with self.condition:
            self.held = set(who)
            self.condition.notify_all()


def client(url: str, folder: Path, who: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CLIENT, url, str(folder), who])


@pytest.fixture
def clients() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait(30)


@pytest.mark.parametrize("n_kills", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_four_processes_two_licences_and_owners_that_are_killed(local_server, clients, tmp_path, n_kills):
    solver = Solver(local_server, seconds=0.01)
    with Licences(tmp_path, 2).taken():
        pass
    # A call that took long: the time that those of a killed owner are given.
    (tmp_path / "place-1").write_text(json.dumps({"longest": 2.0, "owner": "", "since": 0.0}))
    steady = [client(local_server.url, tmp_path, name) for name in ("a", "b")]
    clients += steady
    for k in range(n_kills):
        first, second = f"c{k}", f"d{k}"
        doomed = [client(local_server.url, tmp_path, name) for name in (first, second)]
        clients += doomed
        wait_until(lambda names={first, second}: names <= solver.seen, 60)
        solver.hold(first)
        wait_until(lambda first=first: first in solver.now, 60)
        for process in doomed:  # the first in the middle of its call, which the server goes on with
            process.kill()
            process.wait(30)
        solver.hold()
    # Both places are there again: while nobody is answered, two are at work.
    solver.hold("a", "b")
    wait_until(lambda: sorted(solver.now) == ["a", "b"], 60)
    assert [process.poll() for process in steady] == [None, None]
    assert solver.n_most == 2
    solver.hold()


def test_whoever_is_gone_leaves_a_place_that_rests_until_its_call_is_old(tmp_path, caplog):
    now = [1000.0]
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += 1.0

    def licences() -> Licences:
        return Licences(tmp_path, 1, clock=lambda: now[0], sleep=sleep)

    with licences().taken():
        now[0] += 10.0  # the longest call there was

    def give_up() -> None:
        with licences().taken():
            now[0] += 4.0  # 1014, of a call since 1010
            raise CallTimeout("no answer")

    with pytest.raises(CallTimeout):
        give_up()
    with caplog.at_level(logging.WARNING, "tesseract_flow"), licences().taken():
        assert now[0] == 1010.0 + 1.5 * 10.0
    assert "in the middle of a call" in caplog.text and "11.0 s" in caplog.text
    assert len(caplog.records) == 1 and 0 < min(pauses) <= max(pauses) < 0.1
    # What ended, well or not, leaves no such trace.
    with pytest.raises(ComponentFailed), licences().taken():
        raise ComponentFailed("no")
    before = now[0]
    with licences().taken():
        assert now[0] == before


def test_a_line_that_was_cut_off_is_somebodys(tmp_path, caplog):
    (tmp_path / "place-1").write_text('{"longest": 1')
    with Licences(tmp_path, 1).taken():
        assert "somebody was ended" in caplog.text
    assert json.loads((tmp_path / "place-1").read_text())["owner"] == ""


def test_a_folder_is_for_one_number(tmp_path):
    with Licences(tmp_path, 2).taken():
        pass
    with pytest.raises(OptionError, match=r"(?s)is for 2.*max_in_flight=2"), Licences(tmp_path, 3).taken():
        pass
    with Licences(tmp_path, 2).taken():
        pass
    (tmp_path / "max_in_flight").write_text("")
    with pytest.raises(OptionError, match="for no number"), Licences(tmp_path, 2).taken():
        pass


def test_handles_of_a_process_share_places_by_folder_whatever_they_call(local_server, tmp_path):
    solver = Solver(local_server, seconds=0.005)
    handles = [
        open_tesseract(local_server.url, max_in_flight=2, limit_folder=tmp_path, label=label)
        for label in ("one", "two")
    ]
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(handles[k % 2].request, "apply", {"inputs": {"who": str(k)}}) for k in range(24)]
        assert [call.result(30) for call in calls] == [{}] * 24
    assert solver.n_most == 2


FORKING = """
import os, sys, time
from pathlib import Path
from tesseract_flow.client.handles.licences import Licences

reader, writer = os.pipe()
with Licences(Path(sys.argv[1]), 1).taken():
    if os.fork() == 0:  # it has the locked file open for as long as it lives
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
with Licences(Path(sys.argv[1]), 1).taken():
    print("taken again")
"""


def test_a_forked_child_keeps_no_place(tmp_path):
    done = subprocess.run([sys.executable, "-c", FORKING, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "taken again\n", done.stderr


def test_handles_are_values_and_travel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handle = open_tesseract("http://solver", max_in_flight=2, limit_folder="fem")
    assert handle == open_tesseract("http://solver", max_in_flight=2, limit_folder=tmp_path / "fem")
    assert handle != open_tesseract("http://solver", max_in_flight=2)
    assert pickle.loads(pickle.dumps(handle.elsewhere())) == handle and not (tmp_path / "fem").exists()
    assert repr(handle) == f"LimitedTesseract(HttpTesseract(http://solver), 2, {str(tmp_path / 'fem')!r})"
    again = open_tesseract(handle, max_in_flight=3)
    assert again == open_tesseract("http://solver", max_in_flight=3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"limit_folder": "fem"}, "say with max_in_flight how many"),
        ({"limit_folder": "s3://bucket/fem", "max_in_flight": 2}, "limit_folder is 's3"),
        ({"limit_folder": "", "max_in_flight": 2}, "limit_folder is ''"),
    ],
)
def test_what_makes_no_sense(options: dict[str, Any], says: str):
    with pytest.raises(OptionError, match=says):
        open_tesseract("http://solver", **options)


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match=r"(?s)cannot be used.*allowed to write"),
        Licences(tmp_path / "file", 1).taken(),
    ):
        pass
    (tmp_path / "place-1").mkdir()
    with pytest.raises(StorageError, match="cannot be used"), Licences(tmp_path, 1).taken():
        pass
