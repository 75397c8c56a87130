"""A component that squares, keeps what it has seen, and writes down whether a pullback came where its apply was."""

import os
import time
from pathlib import Path

import numpy as np
from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float64

_SEEN = set()


class InputSchema(BaseModel):
    x: Differentiable[Array[(None,), Float64]]
    record: str = ""  # a file for what pullbacks have found
    meet: str = ""  # a folder
    n_expected: int = 0


class OutputSchema(BaseModel):
    y: Differentiable[Array[(None,), Float64]]
    pid: int = 0


def apply(inputs: InputSchema) -> OutputSchema:
    _meet(inputs)
    _SEEN.add(inputs.x.tobytes())
    return OutputSchema(y=inputs.x**2, pid=os.getpid())


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    _meet(inputs)
    if inputs.record:
        with open(inputs.record, "a") as file:
            file.write("hit\n" if inputs.x.tobytes() in _SEEN else "miss\n")
    _SEEN.add(inputs.x.tobytes())
    return {"x": 2 * inputs.x * cotangent_vector["y"]}


def _meet(inputs: InputSchema) -> None:
    """Wait until as many workers as are expected work at the same time."""
    if not inputs.meet:
        return
    folder = Path(inputs.meet)
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + 20.0
    while len(list(folder.iterdir())) < inputs.n_expected:
        if time.monotonic() > deadline:
            raise RuntimeError(f"only {len(list(folder.iterdir()))} of {inputs.n_expected} workers came")
        time.sleep(0.002)
