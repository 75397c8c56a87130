"""The folder: exact numbers, valid JSON, no pickle, and no half-written file at any moment."""

from __future__ import annotations

import csv
import enum
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from tesseract_flow.report import write_result
from tesseract_flow.report.atomic import write_aside
from tesseract_flow.report.files import to_json
from tests.report.helpers import Finished, history_of

AWKWARD = [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 23762.153677996346]


class Material(enum.Enum):
    STEEL = "steel"


def make(**changes):
    fields = dict(
        design={
            "file": np.array(AWKWARD),
            "allow_pickle": np.arange(6).reshape(2, 3),
            "nested": [jnp.float32(1.5), {"a/b": np.array([True])}],
            "material": Material.STEEL,
            "solver": np.linalg.solve,
            "tolerance": 1 / 3,
            "off": None,
        },
        value=AWKWARD[0],
        steps=6,
        constraints={"volume": np.array(1 / 3), "half": jnp.float32(0.5), "stress": np.array([1e-17, math.nan])},
        requests={"fem.apply": np.int64(7)},
        history=history_of(AWKWARD, violation=[math.inf, math.nan, 0, 0, 0, 0]),
    )
    return Finished(**{**fields, **changes})


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    return write_result(tmp_path_factory.mktemp("deep") / "er", make(), extra={"driver": "adam", "rate": math.inf})


def strict_json(path: Path):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_leaves_the_promised_files(files):
    assert set(files) == {"result.json", "design.npz", "design.json", "history.csv", "report.html"}
    assert sorted(p.name for p in files["result.json"].parent.iterdir()) == sorted(files)
    assert all(path.stat().st_size for path in files.values())


def test_result_json(files):
    told = strict_json(files["result.json"])
    assert told["value"] == AWKWARD[0]
    assert told["reason"] == "gradient below tolerance"
    assert told["converged"] is True
    assert told["steps"] == 6
    assert told["seconds"] == 2.5
    assert told["constraints"] == {"volume": 1 / 3, "half": 0.5, "stress": [1e-17, None]}
    assert told["requests"] == {"fem.apply": 7}
    assert told["extra"] == {"driver": "adam", "rate": None}
    assert told["versions"]["numpy"] == np.__version__


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_run_that_failed_is_still_json(tmp_path, value):
    told = strict_json(write_result(tmp_path, make(design={}, value=value, history=[], converged=False))["result.json"])
    assert told["value"] is None
    assert told["seconds"] is None


def test_design_reads_back_exactly_and_without_pickle(files):
    design = make().design
    with np.load(files["design.npz"], allow_pickle=False) as arrays:
        assert set(arrays.files) == {"file", "allow_pickle", "nested.[0]", "nested.[1].a/b"}
        assert arrays["file"].tobytes() == np.array(AWKWARD).tobytes()
        assert np.array_equal(arrays["allow_pickle"], design["allow_pickle"])
        assert arrays["nested.[0]"].dtype == np.float32 and arrays["nested.[0]"].shape == ()
    told = strict_json(files["design.json"])
    assert told["arrays"]["allow_pickle"] == {"shape": [2, 3], "dtype": "int64"}
    assert {k: told["static"][k] for k in ("material", "tolerance", "off")} == {
        "material": "steel",
        "tolerance": 1 / 3,
        "off": None,
    }
    assert "solve" in told["static"]["solver"]


def test_history_csv_reads_back_exactly(files):
    with open(files["history.csv"], newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert [float(row["value"]) for row in rows] == AWKWARD
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3, 4, 5]
    assert rows[0]["violation"] == "inf" and rows[1]["violation"] == "nan"


def test_report_shows_start_settings_and_added_figures(tmp_path):
    problem = SimpleNamespace(name="Beam & co", design={"file": np.zeros(6)})
    figure = Figure()
    figure.subplots().plot([1, 2])
    page = write_result(tmp_path, make(), problem, {"driver": "adam"}, figures={"Mine": figure})[
        "report.html"
    ].read_text()
    for word in ("Beam &amp; co", "Mine", "Convergence", "Design variables", "driver", "adam"):
        assert word in page


def test_bare_design_and_nothing_else(tmp_path):
    files = write_result(tmp_path, Finished(design=np.ones(3), requests=5))
    with np.load(files["design.npz"]) as arrays:
        assert arrays.files == ["design"]
    assert strict_json(files["result.json"])["requests"] == 5


def test_numbers_are_on_disk_before_a_picture_fails(tmp_path):
    class Broken(Figure):
        def savefig(self, *args, **kwargs):
            raise RuntimeError("no ink")

    with pytest.raises(RuntimeError, match="no ink"):
        write_result(tmp_path, make(), figures={"broken": Broken()})
    assert {p.name for p in tmp_path.iterdir()} == {"result.json", "design.npz", "design.json", "history.csv"}


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_aside(tmp_path / "x.txt", "old")

    def full(*_):
        raise OSError("no space left")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match="no space left"):
                write_aside(path, "new")
        assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]
        assert path.read_text() == "old"
    assert write_aside(str(path), b"new").read_bytes() == b"new"


def test_the_files_are_readable_by_others_as_far_as_the_umask_says(tmp_path):
    umask = os.umask(0)
    os.umask(umask)
    assert write_aside(tmp_path / "x", "").stat().st_mode & 0o777 == 0o666 & ~umask


def test_json_of_everything_else():
    tree = {1: (True, {2}), "path": Path("a"), "bool": np.bool_(True), "complex": 1j, "big": 2**70}
    assert json.loads(to_json(tree)) == {"1": [True, [2]], "path": "a", "bool": True, "complex": "1j", "big": 2**70}
