"""Components in environments of their own: what one needs, another one and this process need not have."""

from __future__ import annotations

import importlib.metadata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tesseract_flow.client import ServedTesseract, open_tesseract
from tesseract_flow.errors import ComponentFailed, OptionError

SOURCE = """
import importlib.metadata

from pydantic import BaseModel
from tesseract_core.runtime import Array, Float64


class InputSchema(BaseModel):
    x: Array[(), Float64]


class OutputSchema(BaseModel):
    y: Array[(), Float64]
    version: str


def apply(inputs: InputSchema) -> OutputSchema:
    return OutputSchema(y=2 * inputs.x, version=importlib.metadata.version("six"))
"""


@pytest.fixture
def component(tmp_path: Path) -> Path:
    folder = tmp_path / "doubling"
    folder.mkdir()
    (folder / "tesseract_api.py").write_text(SOURCE)
    (folder / "tesseract_config.yaml").write_text('name: "doubling"\nversion: "1.0.0"\n')
    (folder / "tesseract_requirements.txt").write_text("six==1.15.0\n")
    return folder


def uv_that(says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{says}\nEND\nexit 2\n")
    (tmp_path / "bin" / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")


def test_what_cannot_be_installed_is_told_in_brief(component, tmp_path, monkeypatch):
    uv_that("\n".join(f"line {k} of http://me:s3cret@index" for k in range(40)), tmp_path, monkeypatch)
    with pytest.raises(
        ComponentFailed, match=r"(?s)environment could not be made.*line 39.*requirements\.txt"
    ) as caught:
        open_tesseract(component, environment="own").apply({"x": np.array(1.0)})
    assert "s3cret" not in str(caught.value) and "line 12 " not in str(caught.value)
    assert not (component / ".tesseract-venv").exists()


def test_a_component_that_does_not_say_what_it_needs(component):
    (component / "tesseract_config.yaml").unlink()
    with pytest.raises(ComponentFailed, match=r"No tesseract_config\.yaml"):
        open_tesseract(component, environment="own").apply({"x": np.array(1.0)})


def test_other_requirements_are_another_component(component):
    before = open_tesseract(component, environment="own")
    assert before == open_tesseract(component, environment="own") != open_tesseract(component)
    (component / "tesseract_requirements.txt").write_text("six==1.16.0\n")
    assert before != open_tesseract(component, environment="own")


def test_options_that_make_no_sense(component):
    with pytest.raises(OptionError, match="choose one"):
        open_tesseract(component, environment="own", python="python3")
    with pytest.raises(OptionError, match="environment is 'other'"):
        open_tesseract(component, environment="other")


@pytest.mark.slow
@pytest.mark.server
def test_it_is_made_once_and_serves_what_this_process_does_not_have(component, caplog):
    """It needs a package index, like `make install`."""
    assert importlib.metadata.version("six") != "1.15.0"
    handles = [ServedTesseract(component / "tesseract_api.py", environment="own", label=str(k)) for k in range(2)]
    with ThreadPoolExecutor(2) as pool:  # both at once make one
        answers = list(pool.map(lambda handle: handle.apply({"x": np.array(3.0)}), handles))
    assert [answer["version"] for answer in answers] == ["1.15.0"] * 2 and float(answers[0]["y"]) == 6.0
    made = (component / ".tesseract-venv" / ".tesseract-stamp.json").stat().st_mtime_ns
    assert "Making an environment for the component doubling" in caplog.text
    for handle in handles:
        handle.stop()
    assert handles[0].apply({"x": np.array(3.0)})["version"] == "1.15.0"
    handles[0].stop()
    assert (component / ".tesseract-venv" / ".tesseract-stamp.json").stat().st_mtime_ns == made
