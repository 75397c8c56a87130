"""A pipeline takes what it declares: what JAX would broadcast without a word is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.errors import PipelineError, ProblemError

W = jnp.array([1.0, 2.0, 3.0])


def weighted(**more: Any) -> tf.Pipeline:
    return tf.Pipeline(
        inputs={"w": {"shape": [3]}, "f": {"shape": [3], **more}},
        nodes={"n": {"function": lambda w, f: jnp.sum(w * f), "inputs": {"w": "w", "f": "f"}}},
        outputs={"y": "n"},
    )


WRONG: dict[str, tuple[Any, str]] = {
    "scalar": (jnp.asarray(2.0), r"input 'f': declared is shape \[3\], and given is \[\]"),
    "number": (2.0, r"given is \[\]"),
    "column": (jnp.ones((3, 1)), r"given is \[3, 1\]"),
    "group": ({"a": jnp.ones(3)}, r"declared is an array of shape \[3\], and given is a group with a"),
    "rows": ([[1.0], [1.0, 2.0]], r"given is list"),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_shape_is_refused(name: str):
    value, message = WRONG[name]
    pipeline = weighted()
    for run in (pipeline, jax.jit(pipeline)) if hasattr(value, "dtype") else (pipeline,):
        with pytest.raises(PipelineError, match=message):
            run({"w": W, "f": value})
    with pytest.raises(PipelineError, match=r"inputs\.f: declared is"):
        pipeline.check({"f": value})
    with pytest.raises(ProblemError, match="design: start of 'f': declared is"):
        tf.Problem.from_pipeline(pipeline, {"w": W, "f": value}, objective="y")


def test_both_are_told():
    with pytest.raises(PipelineError, match=r"'w': .*; input 'f': "):
        weighted()({"w": 1.0, "f": 1.0})


def test_a_map_is_over_elements():
    pipeline = weighted()
    several = jnp.stack([W, 2.0 * W])
    assert jnp.allclose(jax.vmap(lambda f: pipeline({"w": W, "f": f})["y"])(several), several @ W)
    with pytest.raises(PipelineError, match=r"given is \[2, 3\]"):
        pipeline({"w": W, "f": several})


def test_lists_and_numpy_are_arrays():
    assert weighted()({"w": [1.0, 2.0, 3.0], "f": np.ones(3)})["y"] == 6.0


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("float64", jnp.ones(3, jnp.float32)), ("float32", jnp.ones(3)), ("int64", [1.0, 2.0, 3.0]), ("bool", [1, 0, 1])],
)
def test_a_declared_dtype_holds(dtype: str, value: Any):
    with pytest.raises(PipelineError, match=f"input 'f': declared is dtype {dtype}, and given is"):
        weighted(dtype=dtype)({"w": W, "f": value})


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("float64", np.ones(3)), ("float64", [1, 2, 3]), ("int64", np.arange(3)), ("float32", [1.0] * 3)],
)
def test_what_fits_a_declared_dtype(dtype: str, value: Any):
    assert weighted(dtype=dtype).misfits({"w": W, "f": value}) == {}


def test_a_dtype_that_there_is_not():
    with pytest.raises(PipelineError, match=r"inputs.f.dtype: .*'flot64' is no dtype"):
        weighted(dtype="flot64")


def test_a_file_says_where(tmp_path: Path):
    file = tmp_path / "problem.yaml"
    file.write_text(
        "pipeline:\n"
        "  inputs: {w: {shape: [3]}}\n"
        "  nodes: {n: {function: 'f.py:total', inputs: {w: w}}}\n"
        "  outputs: {y: n}\n"
        "design: {w: {fill: 1, shape: [3, 1]}}\n"
        "objective: y\n"
    )
    (tmp_path / "f.py").write_text("def total(w):\n    return w.sum()\n")
    with pytest.raises(
        PipelineError, match=r"problem.yaml:5:10: design.w: declared is shape \[3\], and given is \[3, 1\]"
    ):
        tf.Problem.from_yaml(file)
