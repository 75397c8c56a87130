"""Flow through a porous plate that stands upright: permeability, temperature → flux through each face. NumPy, SciPy.

Darcy's law on a grid of square cells, with pressure 1 at the left edge and 0 at the right one, walls elsewhere, and
warm fluid that rises. With the conductance K of each face (harmonic mean of its cells), the drive s (1 at the inlet,
buoyancy times the mean temperature at horizontal faces, else 0) and the difference of pressure G p across a face,

    flux = K (s - G p),   G^T flux = 0.

Faces: vertical ones row by row from left to right, inlet and outlet included; then horizontal ones row by row from
below. Dimensionless. Pullback by hand: of the matrix G^T K G, which is symmetric, one more solve.

Source: D. A. Nield and A. Bejan, Convection in Porous Media, 4th edition (2013), section 1.4.
"""

# The annotation Differentiable[...] describes a field to tesseract-core, not to a type checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

import functools
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, Field
from scipy.sparse import csc_array
from scipy.sparse.linalg import splu
from tesseract_core.runtime import Array, Differentiable, Float64, ShapeDType


class InputSchema(BaseModel):
    permeability: Differentiable[Array[(None, None), Float64]] = Field(
        description="Of each cell, positive; rows from below"
    )
    temperature: Differentiable[Array[(None, None), Float64]] = Field(description="Of each cell")
    buoyancy: Differentiable[Float64] = Field(description="Rise in pressure per temperature and height of a cell")


class OutputSchema(BaseModel):
    flux: Differentiable[Array[(None,), Float64]] = Field(description="Through each face, to the right and upwards")


class _Faces(NamedTuple):
    before: np.ndarray  # the cell at the left of each face, or below
    behind: np.ndarray  # at the right, or above; the same one at the edge of the plate
    difference: csc_array  # G


@functools.lru_cache(maxsize=8)
def _faces(n_rows: int, n_columns: int) -> _Faces:
    cell = np.arange(n_rows * n_columns).reshape(n_rows, n_columns)
    at_edges = np.pad(cell, ((0, 0), (1, 1)), mode="edge")
    before = np.concatenate([at_edges[:, :-1].ravel(), cell[:-1].ravel()])
    behind = np.concatenate([at_edges[:, 1:].ravel(), cell[1:].ravel()])
    n, face = before.size, np.arange(before.size)
    is_vertical = face < n_rows * (n_columns + 1)
    is_inlet = is_vertical & (face % (n_columns + 1) == 0)
    is_outlet = is_vertical & (face % (n_columns + 1) == n_columns)
    plus, minus = face[~is_outlet], face[~is_inlet]  # beyond the plate there is no unknown
    entries = np.concatenate([np.ones(plus.size), -np.ones(minus.size)])
    places = (np.concatenate([plus, minus]), np.concatenate([behind[plus], before[minus]]))
    return _Faces(before, behind, csc_array((entries, places), shape=(n, cell.size)))


class _Flow(NamedTuple):
    faces: _Faces
    conductance: np.ndarray
    rest: np.ndarray  # s - G p
    solve: Any


def _solved(inputs: InputSchema) -> _Flow:
    shape = inputs.permeability.shape
    if inputs.temperature.shape != shape:
        raise ValueError(f"permeability has shape {shape} and temperature {inputs.temperature.shape}; expected one.")
    if not np.all(inputs.permeability > 0.0):  # written so that NaN counts as bad
        raise ValueError("permeability must be positive.")
    faces = _faces(*shape)
    a, b = inputs.permeability.ravel()[faces.before], inputs.permeability.ravel()[faces.behind]
    conductance = 2.0 * a * b / (a + b) * np.where(faces.before == faces.behind, 2.0, 1.0)  # half a cell at an edge
    drive = np.zeros(conductance.size)
    n_vertical = shape[0] * (shape[1] + 1)
    drive[: n_vertical : shape[1] + 1] = 1.0
    t = inputs.temperature.ravel()
    drive[n_vertical:] = inputs.buoyancy * (t[faces.before] + t[faces.behind])[n_vertical:] / 2.0
    g = faces.difference
    solve = splu(csc_array(g.T @ (conductance[:, None] * g))).solve
    return _Flow(faces, conductance, drive - g @ solve(g.T @ (conductance * drive)), solve)


def apply(inputs: InputSchema) -> OutputSchema:
    """Fluxes that neither vanish nor appear in a cell."""
    flow = _solved(inputs)
    return OutputSchema(flux=flow.conductance * flow.rest)


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, Any]
) -> dict[str, Any]:
    """The gradient of <c, flux>. With l from (G^T K G) l = G^T K c it is (c - G l) . (rest dK + K ds)."""
    flow = _solved(inputs)
    faces, g = flow.faces, flow.faces.difference
    c = cotangent_vector["flux"]
    c = c - g @ flow.solve(g.T @ (flow.conductance * c))
    n_vertical = inputs.permeability.shape[0] * (inputs.permeability.shape[1] + 1)
    drive_bar = (flow.conductance * c)[n_vertical:]
    before, behind = faces.before, faces.behind

    def to_cells(at_before: np.ndarray, at_behind: np.ndarray, where: slice) -> np.ndarray:
        n = inputs.permeability.size
        cells = np.bincount(before[where], at_before, n) + np.bincount(behind[where], at_behind, n)
        return cells.reshape(inputs.permeability.shape)

    a, b = inputs.permeability.ravel()[before], inputs.permeability.ravel()[behind]
    share = c * flow.rest * 2.0 / (a + b) ** 2 * np.where(before == behind, 2.0, 1.0)
    horizontal = slice(n_vertical, None)
    half = inputs.buoyancy * drive_bar / 2.0
    t = inputs.temperature.ravel()
    gradients = {
        "permeability": lambda: to_cells(share * b**2, share * a**2, slice(None)),
        "temperature": lambda: to_cells(half, half, horizontal),
        "buoyancy": lambda: np.vdot(drive_bar, (t[before] + t[behind])[horizontal] / 2.0),
    }
    return {name: gradients[name]() for name in vjp_inputs}


def abstract_eval(abstract_inputs: Any) -> dict[str, Any]:
    """A flux for each face."""
    n_rows, n_columns = abstract_inputs.permeability.shape
    return {"flux": ShapeDType(shape=(n_rows * (n_columns + 1) + (n_rows - 1) * n_columns,), dtype="float64")}
