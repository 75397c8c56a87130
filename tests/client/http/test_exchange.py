"""Arrays of calls through folders: what goes by way of a file, what is asked for, and that no file is left."""

from __future__ import annotations

import dataclasses
import errno
import gc
import logging
import os
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest

from tesseract_flow import wire
from tesseract_flow.client import HttpTesseract, count_requests
from tesseract_flow.client.http import exchange
from tesseract_flow.client.http.exchange import READ_FROM, WRITE_FROM, Folders, large_bytes
from tesseract_flow.errors import ComponentFailed, ConnectionLost, InvalidAnswer, InvalidInput, WireError
from tests.client.helpers import Mock, arrays, files, wait_until

SMALL, LARGE, HUGE = np.arange(3.0), np.arange(WRITE_FROM / 8) % 1000, np.arange(READ_FROM / 8) % 1000


class Peer:
    """What a server does with the folders: y = 2 x, or what `answer` makes of the request."""

    def __init__(self, folder: Path, **options):
        self.inputs, self.outputs = folder / "inputs", folder / "outputs"
        self.inputs.mkdir()
        self.outputs.mkdir()
        self.seen: list[list[str]] = []
        self.encodings: list[str] = []
        self.fake = Mock(self.double)
        options = {"encoding": "auto", "input_dir": self.inputs, "output_dir": self.outputs} | options
        self.handle = self.fake.handle(**options)

    @property
    def accepted(self) -> list[str]:
        return [request.headers["accept"].rpartition("+")[2] for request in self.fake.requests]

    def run_folder(self, request: httpx.Request) -> Path:
        folder = self.outputs / f"run_{request.url.params['run_id']}"
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        (folder / "logs" / "tesseract.log").touch()
        return folder

    def double(self, request: httpx.Request) -> httpx.Response:
        folder = self.run_folder(request)
        self.seen.append(files(self.inputs))
        self.encodings.append(orjson.loads(request.content)["inputs"]["x"]["data"]["encoding"])
        x = wire.loads(request.content, binref_root=self.inputs)["inputs"]["x"]
        return httpx.Response(200, content=self.answer({"y": 2 * x}, folder, request.headers["accept"]))

    def answer(self, tree: dict[str, np.ndarray], folder: Path, accept: str) -> bytes:
        if not accept.endswith("binref"):
            return wire.dumps(tree)
        name = f"{uuid.uuid4()}.bin"
        forms = {}
        with (folder / name).open("wb") as file:
            for key, array in tree.items():
                data = {"encoding": "binref", "buffer": f"{folder.name}/{name}:{file.tell()}"}
                forms[key] = {"object_type": "array", "shape": array.shape, "dtype": array.dtype.name, "data": data}
                file.write(array.tobytes())
        return orjson.dumps(forms)


@pytest.fixture
def peer(tmp_path):
    peer = Peer(tmp_path)
    peer.handle.owns_folders()
    return peer


@pytest.fixture
def shared(tmp_path):
    """One that always uses the folders, which others may use as well."""
    return Peer(tmp_path, encoding="binref")


# What goes by way of a file.


def test_each_array_goes_where_it_is_faster(peer):
    for x in (SMALL, LARGE[1:], LARGE, HUGE):
        np.testing.assert_array_equal(peer.handle.request("apply", {"inputs": {"x": x}})["y"], 2 * x)
    assert peer.encodings == ["base64", "base64", "binref", "binref"]
    assert [len(seen) for seen in peer.seen] == [0, 0, 1, 1]
    assert peer.seen[2] == peer.seen[3]  # the same file again


def test_an_answer_is_asked_for_as_the_last_one_was(peer):
    size = [SMALL, HUGE, HUGE, SMALL, SMALL]

    def answer(request: httpx.Request) -> httpx.Response:
        tree = {"y": (*size, SMALL)[len(peer.fake.requests) - 1]}
        return httpx.Response(200, content=peer.answer(tree, peer.run_folder(request), request.headers["accept"]))

    peer.fake.answer = answer
    for y in size:
        np.testing.assert_array_equal(peer.handle.request("apply", {"inputs": {"x": SMALL}})["y"], y)
    assert peer.accepted == ["base64", "base64", "binref", "binref", "base64"]
    # Calls with other inputs, and other endpoints, have answers of their own.
    peer.handle.request("apply", {"inputs": {"x": HUGE}})
    assert peer.accepted[-1] == "binref"


def test_large_bytes():
    assert large_bytes({"a": [LARGE, SMALL, (HUGE,)], "b": {"c": "text", "d": None}}) == LARGE.nbytes + HUGE.nbytes
    loop: list = [LARGE]
    loop.append(loop)
    large_bytes(loop)


def test_answers_are_copies_that_can_be_written_to(peer):
    kept = {}

    def answer(request: httpx.Request) -> httpx.Response:
        folder = peer.run_folder(request)
        content = peer.answer({"y": HUGE}, folder, "binref")
        (name,) = (path.name for path in folder.glob("*.bin"))
        kept["file"] = (folder / name).open("r+b")
        return httpx.Response(200, content=content)

    peer.fake.answer = answer
    y = peer.handle.request("apply", {"inputs": {"x": HUGE}})["y"]
    kept["file"].write(b"\xff" * 4096)
    kept["file"].close()
    np.testing.assert_array_equal(y, HUGE)
    y[:] = 0


def test_a_server_with_little_room_is_not_asked_to_fill_it(peer, monkeypatch):
    room = {"n": 4 * HUGE.nbytes}
    monkeypatch.setattr(exchange, "_free_bytes", lambda folder: room["n"])
    peer.handle.request("apply", {"inputs": {"x": HUGE}})
    room["n"] -= 1
    peer.handle.request("apply", {"inputs": {"x": HUGE}})
    assert peer.accepted == ["binref", "base64"]


@pytest.mark.parametrize("harm", ["the disk is full", "the folder is gone"])
def test_what_cannot_be_written_travels_as_base64(peer, monkeypatch, caplog, harm):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if harm == "the disk is full":
        monkeypatch.setattr(os, "posix_fallocate", full)
    else:
        shutil.rmtree(peer.inputs)
    with caplog.at_level(logging.WARNING, logger="tesseract_flow"):
        np.testing.assert_array_equal(peer.handle.request("apply", {"inputs": {"x": HUGE}})["y"], 2 * HUGE)
    assert peer.encodings == ["base64"]
    assert "travel as base64" in caplog.text and str(peer.inputs) in caplog.text


def test_what_cannot_travel_at_all_is_not_sent(peer):
    with pytest.raises(WireError, match="x"):
        peer.handle.request("apply", {"inputs": {"x": [HUGE, np.array(["text"])]}})
    assert peer.fake.requests == [] and files(peer.inputs) == []


def test_who_asks_for_binref_is_not_given_base64(shared):
    np.testing.assert_array_equal(shared.handle.request("apply", {"inputs": {"x": SMALL}})["y"], 2 * SMALL)
    shutil.rmtree(shared.inputs)
    with pytest.raises(WireError, match="cannot write"):
        shared.handle.request("apply", {"inputs": {"x": SMALL}})
    assert shared.encodings == ["binref"] and shared.accepted == ["binref"]


# Nothing is left.


@pytest.mark.parametrize("x", [SMALL, LARGE, HUGE], ids=["small", "large", "huge"])
def test_nothing_is_left_of_a_call(peer, x):
    peer.handle.request("apply", {"inputs": {"x": x}})
    peer.handle.request("apply", {"inputs": {"x": x}}, run_id="mine")
    wait_until(lambda: list(peer.outputs.iterdir()) == [])
    assert len(files(peer.inputs)) == (x is not SMALL)
    peer.handle = None
    gc.collect()
    assert files(peer.inputs) == []


def test_where_others_may_look_the_logs_stay(shared):
    shared.handle.request("apply", {"inputs": {"x": HUGE}})
    shared.handle.request("apply", {"inputs": {"x": HUGE}}, run_id="mine")
    shared.run_folder(shared.fake.requests[-1])
    kept = files(shared.outputs)
    assert len(kept) == 2 and "run_mine/logs/tesseract.log" in kept
    assert all(name.endswith("tesseract.log") for name in kept)


def test_calls_of_one_name_do_not_delete_each_others_files(shared):
    folder = shared.outputs / "run_mine"
    folder.mkdir()
    other = folder / f"{uuid.uuid4()}.bin"
    other.touch()

    def fail(request: httpx.Request) -> httpx.Response:
        return httpx.Response(500, content=b"it failed")

    shared.handle.request("apply", {"inputs": {"x": HUGE}}, run_id="mine")
    shared.fake.answer = fail
    with pytest.raises(ComponentFailed):
        shared.handle.request("apply", {"inputs": {"x": HUGE}}, run_id="mine")
    assert other.exists()


def refused(peer: Peer, content: bytes, status: int = 200):
    def answer(request: httpx.Request) -> httpx.Response:
        folder = peer.run_folder(request)
        peer.answer({"y": HUGE}, folder, "binref")  # of which the answer says nothing
        return httpx.Response(status, content=content.replace(b"RUN", folder.name.encode()))

    return answer


@pytest.mark.parametrize("where", ["peer", "shared"])
@pytest.mark.parametrize(
    ("content", "status", "error"),
    [
        (b"it failed", 500, ComponentFailed),
        (b'{"detail": []}', 422, InvalidInput),
        (b"no json", 200, InvalidAnswer),
        (b'{"y": {"object_type": "array"}}', 200, InvalidAnswer),
    ],
)
def test_nothing_is_left_of_a_call_that_failed(request, where, content, status, error):
    peer = request.getfixturevalue(where)
    peer.fake.answer = refused(peer, content, status)
    with pytest.raises(error):
        peer.handle.request("apply", {"inputs": {"x": HUGE}})
    wait_until(lambda: not arrays(peer.outputs))
    assert len(files(peer.inputs)) <= 1
    del peer.handle
    gc.collect()
    assert files(peer.inputs) == []


@pytest.mark.parametrize("where", ["peer", "shared"])
def test_a_lost_call_takes_its_file_along_and_what_comes_late_is_removed(request, where):
    peer = request.getfixturevalue(where)
    peer.handle.request("apply", {"inputs": {"x": HUGE}})
    (before,) = files(peer.inputs)

    def die(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("the server died")

    peer.fake.answer = die
    with pytest.raises(ConnectionLost):
        peer.handle.request("apply", {"inputs": {"x": HUGE}})
    assert files(peer.inputs) == []
    # It has not died at all, and finishes its work.
    late = peer.run_folder(peer.fake.requests[-1])
    peer.answer({"y": HUGE}, late, "binref")
    peer.fake.answer = peer.double
    peer.handle._session.folders._next_sweep = 0.0
    peer.handle.request("apply", {"inputs": {"x": HUGE}})
    assert peer.seen[-1] != [before]
    wait_until(lambda: not arrays(peer.outputs))


def test_an_interrupted_call_takes_its_file_along(peer):
    def interrupt(request: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    peer.fake.answer = interrupt
    with pytest.raises(KeyboardInterrupt):
        peer.handle.apply({"x": HUGE})
    assert files(peer.inputs) == []


def test_threads(peer):
    def check(seed: int) -> None:
        x = np.random.default_rng(seed).normal(size=len(HUGE) + seed)
        np.testing.assert_array_equal(
            peer.handle.request("apply", {"inputs": {"x": x}}, run_id="all the same")["y"], 2 * x
        )

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(check, range(24)))
    wait_until(lambda: list(peer.outputs.iterdir()) == [])


def test_links_are_not_followed(shared, tmp_path):
    name = f"{uuid.uuid4()}.bin"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / name).touch()

    def answer(request: httpx.Request) -> httpx.Response:
        run = f"run_{request.url.params['run_id']}"
        (shared.outputs / run).symlink_to(tmp_path / "elsewhere")
        data = {"encoding": "binref", "buffer": f"{run}/{name}:0"}
        y = {"object_type": "array", "shape": [0], "dtype": "float64", "data": data}
        return httpx.Response(200, content=orjson.dumps({"y": y}))

    shared.fake.answer = answer
    with pytest.raises(InvalidAnswer, match="leaves"):
        shared.handle.request("apply", {"inputs": {"x": SMALL}})
    assert files(tmp_path / "elsewhere") == [name]


def test_a_forked_child_deletes_nothing(tmp_path, monkeypatch):
    folders = Folders(tmp_path, tmp_path, is_choosing=False)
    with folders.pool.writer() as writer:
        writer.write(b"1")
        writer.release()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        folders.close()
        assert len(files(tmp_path)) == 1
    folders.close()
    assert files(tmp_path) == []


# Whether both sides see the folders.


@pytest.fixture
def started(served):
    """A server somebody else has started, as far as the handle knows, and its folders."""
    http = served._processes[0].http
    handle = dataclasses.replace(http, label=uuid.uuid4().hex)
    assert handle._session is not http._session
    return handle


@pytest.mark.server
def test_shared_folders_are_found_out_without_a_solve(served, started, caplog):
    before = served.logs().count("squaring")
    with count_requests() as counts, caplog.at_level(logging.WARNING, logger="tesseract_flow"):
        for _ in range(3):
            np.testing.assert_array_equal(started.apply({"x": HUGE})["y"], HUGE**2)
    assert counts == {f"{started.label}.apply": 3}
    folders = started._session.folders
    assert folders.is_read and folders.is_written and not folders.is_own
    assert caplog.text == ""
    assert served.logs().count("squaring") - before <= 3
    assert not arrays(folders.output_dir)
    folders.close()


@pytest.mark.server
def test_folders_of_our_own_are_tried_where_another_python_may_not_use_them(started):
    started.owns_folders(is_known=False)
    folders = started._session.folders
    for k in range(2):
        np.testing.assert_array_equal(started.apply({"x": k * HUGE})["y"], (k * HUGE) ** 2)
    assert folders.is_read and folders.is_written and folders.is_own
    folders.close()


@pytest.mark.server
def test_small_arrays_need_no_folders(started):
    started.apply({"x": SMALL})
    assert started._session.folders.is_read is None


@pytest.mark.server
@pytest.mark.parametrize("wrong", ["input_dir", "output_dir"])
def test_a_folder_that_is_not_the_servers_is_found_out_and_said_once(started, tmp_path, caplog, wrong):
    handle = dataclasses.replace(started, **{wrong: tmp_path})
    with caplog.at_level(logging.WARNING, logger="tesseract_flow"):
        for _ in range(3):
            np.testing.assert_array_equal(handle.apply({"x": HUGE})["y"], HUGE**2)
    assert len(caplog.records) == 1 and str(tmp_path) in caplog.text and "base64" in caplog.text
    folders = handle._session.folders
    assert (folders.is_read, folders.is_written) == ((False, True) if wrong == "input_dir" else (True, False))
    folders.close()
    assert files(tmp_path) == []


def test_the_folders_have_to_be_named():
    with pytest.raises(ValueError, match="encoding='auto' needs input_dir and output_dir"):
        HttpTesseract("http://solver", encoding="auto")
