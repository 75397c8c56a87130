"""Components in processes of their own: started when asked, shared, started again, and gone when their parent is."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from tesseract_flow.client import HttpTesseract, ServedTesseract, count_requests, open_tesseract
from tesseract_flow.client.handles.private_folder import PrivateFolder
from tesseract_flow.client.retry import somebody_else
from tesseract_flow.errors import (
    ComponentFailed,
    ConnectionLost,
    EndpointNotFound,
    InvalidInput,
    OptionError,
)
from tests.client.helpers import PROBE, arrays

X = np.array([1.0, 2.0, 3.0])
ROOT = Path(__file__).resolve().parents[3]


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        pause.wait(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent to notice does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


# What needs no process.


def test_handles_are_values(tmp_path, monkeypatch):
    monkeypatch.chdir(PROBE.parent)
    relative = ServedTesseract(Path("tesseract_api.py"))
    assert relative == ServedTesseract(PROBE) and hash(relative) == hash(ServedTesseract(PROBE))
    assert relative == ServedTesseract(str(PROBE))  # type: ignore[arg-type]
    assert relative != ServedTesseract(PROBE, label="fem")
    assert repr(relative) == "ServedTesseract(probe)"
    assert repr(ServedTesseract(PROBE, label="fem")) == "ServedTesseract(fem: probe)"


def test_a_label_starts_nothing():
    handle = ServedTesseract(PROBE, label="fem")
    assert handle.name == "fem"
    assert handle.logs() == ""
    handle.stop()


def test_there_is_nothing_to_serve(tmp_path):
    with pytest.raises(ComponentFailed, match=r"no component at .*tesseract_api\.py"):
        ServedTesseract(tmp_path / "tesseract_api.py").apply({})


def test_a_python_that_is_not_there(tmp_path):
    with pytest.raises(ComponentFailed, match="could not be served"):
        ServedTesseract(PROBE, python=str(tmp_path / "python")).apply({"x": X})


def test_no_workers():
    with pytest.raises(OptionError, match="n_workers"):
        ServedTesseract(PROBE, n_workers=0)


# One process for many questions.


@pytest.mark.server
def test_round_trip(served):
    assert served.name == "probe"
    assert served.schema.endpoints == {"apply", "abstract_eval", "vector_jacobian_product", "health"}
    with count_requests() as counts:
        np.testing.assert_array_equal(served.apply({"x": X})["y"], X**2)
        abstract = {"shape": [3], "dtype": "float64"}
        assert served.abstract_eval({"x": abstract})["y"] == abstract
        pulled = served.vector_jacobian_product({"x": X}, ["x"], ["y"], {"y": np.ones(3)})
    np.testing.assert_array_equal(pulled["x"], 2 * X)
    assert counts == {"probe.apply": 1, "probe.abstract_eval": 1, "probe.vector_jacobian_product": 1}


@pytest.mark.server
@pytest.mark.parametrize("options", [{"encoding": "json"}, {"encoding": "base64", "compression": "lz4"}])
def test_encodings(served, options):
    x = np.linspace(-1.0, 1.0, 1000)
    answer = HttpTesseract(served.url, **options).apply({"x": x})["y"]
    np.testing.assert_array_equal(answer, x**2)
    assert answer.flags.writeable


@pytest.mark.server
def test_the_component_fails_in_its_own_words(served):
    with pytest.raises(ComponentFailed, match="ValueError: the mesh is tangled") as caught:
        served.apply({"x": X, "mode": "raise"})
    assert "tesseract_api.py" in str(caught.value)  # the line where it happened
    np.testing.assert_array_equal(served.apply({"x": X})["y"], X**2)


@pytest.mark.server
def test_failures_do_no_harm_to_the_next_call(served):
    # The server closes the connection a moment after it has answered that the component failed.
    for _ in range(20):
        with pytest.raises(ComponentFailed):
            served.apply({"x": X, "mode": "raise"})
        np.testing.assert_array_equal(served.apply({"x": X})["y"], X**2)


@pytest.mark.server
def test_faults_of_the_inputs(served):
    with pytest.raises(InvalidInput) as caught:
        served.apply({"x": np.ones((2, 2)), "bogus": 1})
    assert {fault.path for fault in caught.value.faults} == {"x", "bogus"}
    with pytest.raises(InvalidInput) as caught:
        served.apply({})
    assert [(fault.path, fault.kind) for fault in caught.value.faults] == [("x", "missing")]


@pytest.mark.server
def test_an_endpoint_that_is_not_there(served):
    with pytest.raises(EndpointNotFound, match="it has: abstract_eval, apply, vector_jacobian_product"):
        served.jacobian({"x": X}, ["x"], ["y"])
    with pytest.raises(EndpointNotFound):  # the server's word, where the client did not ask itself
        served.request("jacobian", {"inputs": {"x": X}, "jac_inputs": ["x"], "jac_outputs": ["y"]})


@pytest.mark.server
def test_equal_handles_share_the_process(served):
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: open_tesseract(PROBE).apply({"x": X}), range(8)))
    assert {answer["pid"] for answer in answers} == {served.apply({"x": X})["pid"]}
    assert open_tesseract(PROBE.parent).url == served.url


@pytest.mark.server
def test_what_the_process_says(served):
    served.apply({"x": X}, run_id="loud")
    assert "POST /apply?run_id=loud" in served.logs()
    assert served.logs() == open_tesseract(PROBE).logs()


@pytest.mark.server
def test_no_debugger_listens_and_slows_it_down(served):
    assert served.apply({"x": X, "mode": "trace"})["y"].tolist() == [0.0]


@pytest.mark.server
def test_nothing_is_left_in_the_working_directory(served, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    served.apply({"x": X})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.server
def test_a_process_that_dies_is_started_again(served, caplog):
    before = served.apply({"x": X})["pid"]
    with pytest.raises(ConnectionLost, match="may still be running"), somebody_else():
        served.apply({"x": X, "mode": "exit"})
    # Until it can be waited for, and leave that to the handle. It is a child of this process, as it has one worker.
    os.waitid(os.P_PID, before, os.WEXITED | os.WNOWAIT)
    with caplog.at_level(logging.WARNING, logger="tesseract_flow"):
        after = served.apply({"x": X})["pid"]
    assert after != before
    assert "has exited (code 3)" in caplog.text and "POST /apply" in caplog.text  # its last words


@pytest.mark.server
@pytest.mark.slow
def test_stop_and_start(served):
    before, url, logs = served.apply({"x": X})["pid"], served.url, served.logs()
    assert logs
    served.stop()
    assert not is_alive(before)
    assert served.logs() == ""
    served.stop()  # again, which does nothing
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health", trust_env=False)
    assert served.apply({"x": X})["pid"] != before


@pytest.mark.server
def test_large_arrays_go_through_memory_and_leave_nothing_there(served, caplog):
    x = np.linspace(-1.0, 1.0, 300_000)
    inputs, outputs = served._processes[0].http.input_dir, served._processes[0].http.output_dir
    with caplog.at_level(logging.WARNING, logger="tesseract_flow"), count_requests() as counts:
        with ThreadPoolExecutor(4) as pool:
            for answer in pool.map(lambda k: served.apply({"x": k * x}), range(8)):
                assert answer["y"].flags.writeable
        np.testing.assert_array_equal(answer["y"], (7 * x) ** 2)
        with pytest.raises(ComponentFailed, match="tangled"):
            served.apply({"x": x, "mode": "raise"})
        with pytest.raises(InvalidInput):
            served.apply({"x": x.reshape(3, -1)})
    assert counts == {"probe.apply": 10} and caplog.text == ""
    assert 1 <= len(list(inputs.iterdir())) <= 4 and inputs.stat().st_mode & 0o077 == 0
    assert not arrays(outputs)
    wait_until(lambda: list(outputs.iterdir()) == [])
    pid = served.apply({"x": X})["pid"]
    with pytest.raises(ConnectionLost), somebody_else():  # while it holds the array
        served.apply({"x": x, "mode": "exit"})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    np.testing.assert_array_equal(served.apply({"x": x})["y"], x**2)
    assert not inputs.exists() and not outputs.exists()  # the new process has others
    inputs, outputs = served._processes[0].http.input_dir, served._processes[0].http.output_dir
    served.stop()
    assert not inputs.exists() and not outputs.exists()


@pytest.mark.server
@pytest.mark.parametrize("why", ["not wanted", "no room"])
@pytest.mark.slow
def test_without_memory_to_share(tmp_path, monkeypatch, why):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if why == "no room":
        monkeypatch.setattr("tesseract_flow.client.handles.process.has_room", lambda folder: False)
    handle = ServedTesseract(PROBE, label=why, shares_memory=why != "not wanted")
    x = np.linspace(-1.0, 1.0, 300_000)
    np.testing.assert_array_equal(handle.apply({"x": x})["y"], x**2)
    assert handle._processes[0].http.encoding == "base64"
    handle.stop()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.server
@pytest.mark.slow
def test_a_component_that_cannot_be_imported(tmp_path, monkeypatch):
    folders = [tmp_path / "disk", tmp_path / "memory"]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folders[0]))
    monkeypatch.setattr("tesseract_flow.client.handles.process.MEMORY", folders[1])
    path = tmp_path / "broken" / "tesseract_api.py"
    path.parent.mkdir()
    path.write_text("raise ImportError('no module named solver')\n")
    with pytest.raises(ComponentFailed, match="no module named solver"):
        _ = ServedTesseract(path).schema
    assert [path for folder in folders for path in folder.glob("tesseract-flow-*")] == []


@pytest.mark.server
def test_the_process_ends_with_its_parent_even_if_that_is_killed():
    program = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from tesseract_flow.client import open_tesseract
        handle = open_tesseract({str(PROBE)!r})
        http = handle._processes[0].http
        print(handle.apply({{"x": [1.0]}})["pid"], http.input_dir, http.output_dir, flush=True)
        sys.stdin.read()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        try:
            pid, *folders = parent.stdout.readline().split()
            pid = int(pid)
            assert is_alive(pid) and all(map(os.path.isdir, folders))
        finally:
            parent.send_signal(signal.SIGKILL)
        parent.wait(10)
    try:
        wait_until(lambda: not is_alive(pid))
        for folder in folders:  # whoever comes next tidies up
            PrivateFolder(Path(folder).parent).remove()
        assert not any(map(os.path.exists, folders))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
