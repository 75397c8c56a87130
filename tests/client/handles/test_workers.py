"""Several workers of a component that is served here: processes of their own, behind one handle."""

from __future__ import annotations

import dataclasses
import os
import pickle
import py_compile
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tesseract_flow.client import AbstractTesseract, ServedTesseract, open_tesseract
from tesseract_flow.errors import ComponentFailed

COMPONENTS = Path(__file__).parents[1] / "components"
PROBE, GREEDY, WORKERS = (COMPONENTS / name / "tesseract_api.py" for name in ("probe", "greedy", "workers"))
X = np.array([1.0, 2.0, 3.0])

SOURCE = """
from pydantic import BaseModel
from tesseract_core.runtime import Array, Float64
from helper import FACTOR

class InputSchema(BaseModel):
    x: Array[(), Float64]

class OutputSchema(BaseModel):
    y: Array[(), Float64]

def apply(inputs: InputSchema) -> OutputSchema:
    return OutputSchema(y=FACTOR * inputs.x)
"""


def component(folder: Path, factor: float) -> Path:
    (folder / "helper.py").write_text(f"FACTOR = {factor}\n")
    path = folder / "tesseract_api.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture(scope="module")
def pair() -> Any:
    handle = ServedTesseract(WORKERS, n_workers=2)
    yield handle
    handle.stop()


def pull(handle: AbstractTesseract, inputs: dict[str, Any]) -> None:
    handle.vector_jacobian_product(inputs, ["x"], ["y"], {"y": np.ones(2)})


@pytest.mark.server
def test_each_worker_is_a_process(pair, tmp_path):
    (tmp_path / "meet").mkdir()
    inputs = [{"x": np.array([k, 0.5]), "meet": str(tmp_path / "meet"), "n_expected": 2} for k in range(2)]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(pair.apply, inputs))
    assert len({answer["pid"] for answer in answers}) == 2
    assert len(set(pair.urls)) == 2 and pair.url == pair.urls[0]
    assert pair.name == "workers" and pair.n_lanes == 2
    assert pickle.loads(pickle.dumps(pair)) == pair


@pytest.mark.server
def test_pullbacks_find_their_residuals(pair, tmp_path):
    record = tmp_path / "found"
    inputs = [{"x": np.array([k, 2.5]), "record": str(record)} for k in range(12)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(pair.apply, inputs))
        list(pool.map(lambda at: pull(pair, at), inputs))
    assert record.read_text().split() == ["hit"] * 12


@pytest.mark.server
@pytest.mark.slow
def test_one_that_dies_is_started_again_alone(pair):
    with ThreadPoolExecutor(2) as pool:
        before = {answer["pid"] for answer in pool.map(lambda k: pair.apply({"x": np.array([k, 7.5])}), range(20))}
    victim = before.pop()
    os.kill(victim, signal.SIGKILL)
    os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
    after = {pair.apply({"x": np.array([k, 8.5])})["pid"] for k in range(20)}
    assert victim not in after and before <= after and len(after) == 2


@pytest.mark.server
@pytest.mark.slow
def test_a_solver_that_holds_the_lock_is_not_killed():
    handle = ServedTesseract(GREEDY, n_workers=2)
    _ = handle.urls
    start = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda x: handle.apply({"x": x, "seconds": 12}), [1.0, 2.0]))
    assert [float(answer["y"]) for answer in answers] == [2.0, 4.0]
    assert answers[0]["pid"] != answers[1]["pid"]
    assert 12.0 <= time.monotonic() - start < 22.0  # at the same time
    handle.stop()


@pytest.mark.server
@pytest.mark.slow
def test_what_was_edited_is_served_as_it_is_now(tmp_path):
    path = component(tmp_path, 2.0)
    old, same = open_tesseract(path), open_tesseract(tmp_path)
    assert old == same and hash(old) == hash(same)
    assert float(old.apply({"x": 1.0})["y"]) == 2.0
    component(tmp_path, 20.0)
    new = open_tesseract(path)
    assert new != old
    assert float(new.apply({"x": 1.0})["y"]) == 20.0
    assert float(old.apply({"x": 1.0})["y"]) == 2.0  # what runs goes on
    assert isinstance(old, ServedTesseract)
    old.stop()
    with pytest.raises(ComponentFailed, match="Open it again"):  # and does not become something else
        old.apply({"x": 1.0})
    (tmp_path / "result.dat").write_text("what a component writes is no code")
    assert open_tesseract(path) == new
    assert isinstance(new, ServedTesseract)
    new.stop()


@pytest.mark.server
def test_code_that_keeps_its_size_and_time_is_other_code(tmp_path, monkeypatch):
    """As `cp -p`, `rsync -a` and `tar x` leave it, and two versions that are checked out within a second."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # which a user has not set
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path, helper = component(tmp_path, 2.0), tmp_path / "helper.py"
    old = open_tesseract(path)
    py_compile.compile(str(helper), doraise=True)  # as the component's first import leaves it
    status = helper.stat()
    helper.write_text("FACTOR = 7.0\n")
    os.utime(helper, ns=(status.st_atime_ns, status.st_mtime_ns))
    new = open_tesseract(path)
    assert new != old
    assert isinstance(new, ServedTesseract)
    try:
        assert float(new.apply({"x": 1.0})["y"]) == 7.0
    finally:
        new.stop()


@pytest.mark.server
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
@pytest.mark.slow
def test_no_proxy_is_asked_for_what_is_on_this_machine(tmp_path, monkeypatch, refused_url, variable):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, refused_url)
    monkeypatch.setenv(variable.lower(), refused_url)
    handle = ServedTesseract(component(tmp_path, 3.0), startup_timeout=60.0)
    assert float(handle.apply({"x": 1.0})["y"]) == 3.0
    handle.stop()


@pytest.mark.slow
def test_other_settings_are_another_handle(tmp_path):
    handle = ServedTesseract(component(tmp_path, 2.0))
    assert dataclasses.replace(handle, n_workers=2) != handle
    assert dataclasses.replace(handle) == handle
