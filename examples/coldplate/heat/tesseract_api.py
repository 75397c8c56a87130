"""Heat in a plate with a flow through it: flux through each face and conductivity → temperature. NumPy and SciPy.

A unit of power heats all cells of a grid alike. Heat flows with the fluid (upwind) and is conducted,

    Q = max(flux, 0) T_before + min(flux, 0) T_behind + k (T_before - T_behind),

with the harmonic mean k of a face's cells. What flows in has temperature zero; edges conduct nothing. Faces as in
`flow`. Dimensionless. Pullback by hand: a solve with the transposed matrix.

Source: S. V. Patankar, Numerical Heat Transfer and Fluid Flow (1980), chapter 5.
"""

# The annotation Differentiable[...] describes a field to tesseract-core, not to a type checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportCallIssue=false, reportIndexIssue=false

import functools
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, Field
from scipy.sparse import csc_array
from scipy.sparse.linalg import splu
from tesseract_core.runtime import Array, Differentiable, Float64, ShapeDType


class InputSchema(BaseModel):
    flux: Differentiable[Array[(None,), Float64]] = Field(description="Through each face, to the right and upwards")
    conductivity: Differentiable[Array[(None, None), Float64]] = Field(
        description="Of each cell, positive; rows from below"
    )


class OutputSchema(BaseModel):
    temperature: Differentiable[Array[(None, None), Float64]] = Field(description="Of each cell, above the inlet's")


class _Heat(NamedTuple):
    before: np.ndarray
    behind: np.ndarray
    has_before: np.ndarray  # whether there is a cell, or the world outside at temperature zero
    has_behind: np.ndarray
    temperature: np.ndarray
    adjoint: Any  # solves with the transposed matrix


@functools.lru_cache(maxsize=8)
def _faces(n_rows: int, n_columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    cell = np.arange(n_rows * n_columns).reshape(n_rows, n_columns)
    beyond = np.pad(cell, ((0, 0), (1, 1)), constant_values=-1)
    before = np.concatenate([beyond[:, :-1].ravel(), cell[:-1].ravel()])
    behind = np.concatenate([beyond[:, 1:].ravel(), cell[1:].ravel()])
    return np.maximum(before, 0), np.maximum(behind, 0), before >= 0, behind >= 0


def _solved(inputs: InputSchema) -> _Heat:
    before, behind, has_before, has_behind = _faces(*inputs.conductivity.shape)
    if inputs.flux.shape != before.shape:
        raise ValueError(f"{inputs.flux.size} fluxes for {before.size} faces of a plate {inputs.conductivity.shape}.")
    if not np.all(inputs.conductivity > 0.0):  # written so that NaN counts as bad
        raise ValueError("conductivity must be positive.")
    if not inputs.flux[~(has_before & has_behind)].any():
        raise ValueError("no fluid goes through the edges of the plate, so heat has no way out.")
    a, b = inputs.conductivity.ravel()[before], inputs.conductivity.ravel()[behind]
    k = np.where(has_before & has_behind, 2.0 * a * b / (a + b), 0.0)
    of_before = (np.maximum(inputs.flux, 0.0) + k) * has_before
    of_behind = (np.minimum(inputs.flux, 0.0) - k) * has_behind
    # What leaves the cell before a face arrives behind it.
    rows = np.concatenate([before, before, behind, behind])
    columns = np.concatenate([before, behind, before, behind])
    entries = np.concatenate(
        [of_before * has_before, of_behind * has_before, -of_before * has_behind, -of_behind * has_behind]
    )
    n = inputs.conductivity.size
    solve = splu(csc_array((entries, (rows, columns)), shape=(n, n))).solve
    return _Heat(before, behind, has_before, has_behind, solve(np.full(n, 1.0 / n)), lambda c: solve(c, trans="T"))


def apply(inputs: InputSchema) -> OutputSchema:
    """The temperature at which as much heat leaves each cell as enters it."""
    return OutputSchema(temperature=_solved(inputs).temperature.reshape(inputs.conductivity.shape))


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, Any]
) -> dict[str, Any]:
    """The gradient of <c, temperature>: of each Q, times what the adjoint temperature loses from a cell to the next."""
    heat, c = _solved(inputs), cotangent_vector["temperature"]
    adjoint = heat.adjoint(c.ravel())
    before, behind = heat.before, heat.behind

    def at(field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return field[before] * heat.has_before, field[behind] * heat.has_behind

    (t_a, t_b), (l_a, l_b) = at(heat.temperature), at(adjoint)
    q_bar = l_b - l_a
    a, b = inputs.conductivity.ravel()[before], inputs.conductivity.ravel()[behind]
    share = np.where(heat.has_before & heat.has_behind, q_bar * (t_a - t_b) * 2.0 / (a + b) ** 2, 0.0)
    n = inputs.conductivity.size
    gradients = {
        "flux": lambda: q_bar * np.where(inputs.flux > 0.0, t_a, t_b),
        "conductivity": lambda: (np.bincount(before, share * b**2, n) + np.bincount(behind, share * a**2, n)).reshape(
            inputs.conductivity.shape
        ),
    }
    return {name: gradients[name]() for name in vjp_inputs}


def abstract_eval(abstract_inputs: Any) -> dict[str, Any]:
    """A temperature for each cell."""
    return {"temperature": ShapeDType(shape=abstract_inputs.conductivity.shape, dtype="float64")}
