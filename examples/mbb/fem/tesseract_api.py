"""Plane-stress finite elements for the half MBB beam: density of each element → compliance. NumPy and SciPy.

A grid of square bilinear elements of unit size. By symmetry the left edge does not move sideways, the lower right
corner rests on a roller, and a unit load presses down on the upper left corner. An element of density r has the modulus

    E(r) = E_min + r^p (1 - E_min),

and the compliance is the work of the load, f . u with K(E) u = f. It is self-adjoint: dc/dE_e = -u_e . k_0 u_e.

Source: E. Andreassen et al., Efficient topology optimization in MATLAB using 88 lines of code, Struct. Multidisc.
Optim. 43 (2011), 1-16; the element by Gauss quadrature of B^T D B.
"""

# The annotation Differentiable[...] describes a field to tesseract-core, not to a type checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportCallIssue=false

import functools
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, Field
from scipy.sparse import csc_array
from scipy.sparse.linalg import splu
from tesseract_core.runtime import Array, Differentiable, Float64, ShapeDType

POISSON, E_MIN = 0.3, 1e-9


class InputSchema(BaseModel):
    density: Differentiable[Array[(None, None), Float64]] = Field(
        description="Of each element, 0 to 1: rows from the top, columns from the plane of symmetry"
    )
    penalty: float = Field(default=3.0, ge=1.0, description="Exponent p of the interpolation")


class OutputSchema(BaseModel):
    compliance: Differentiable[Float64] = Field(description="Work of the load; unit load, modulus and size of elements")


def element_stiffness() -> np.ndarray:
    """k_0 of shape (8, 8) for unit modulus and thickness; corners counter-clockwise from the lower left, x before y."""
    d = np.array([[1.0, POISSON, 0.0], [POISSON, 1.0, 0.0], [0.0, 0.0, (1.0 - POISSON) / 2.0]]) / (1.0 - POISSON**2)
    corners = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    k = np.zeros((8, 8))
    for x, y in corners / np.sqrt(3.0):  # two by two points are exact
        slopes = np.stack([corners[:, 0] * (1.0 + y * corners[:, 1]), corners[:, 1] * (1.0 + x * corners[:, 0])]) / 2.0
        b = np.zeros((3, 8))
        b[0, 0::2], b[1, 1::2], b[2, 0::2], b[2, 1::2] = slopes[0], slopes[1], slopes[1], slopes[0]
        k += b.T @ d @ b / 4.0  # the square of unit size has a quarter of the area of [-1, 1]^2
    return k


class _Mesh(NamedTuple):
    dofs: np.ndarray  # (elements, 8)
    free: np.ndarray  # degrees of freedom that may move
    rows: np.ndarray  # of the entries of all element matrices, in the numbering of free ones; -1 where held
    columns: np.ndarray
    load: np.ndarray


@functools.lru_cache(maxsize=8)
def _mesh(n_rows: int, n_columns: int) -> _Mesh:
    if not (n_rows and n_columns):
        raise ValueError("density is empty: a beam needs at least one element.")
    # Nodes from the top down, column by column, which keeps the band of the matrix narrow.
    row, column = np.divmod(np.arange(n_rows * n_columns), n_columns)
    top_left = column * (n_rows + 1) + row
    nodes = top_left[:, None] + np.array([1, n_rows + 2, n_rows + 1, 0])  # counter-clockwise from the lower left
    dofs = (2 * nodes[:, :, None] + np.arange(2)).reshape(-1, 8)
    n = 2 * (n_rows + 1) * (n_columns + 1)
    held = np.append(2 * np.arange(n_rows + 1), n - 1)
    free = np.setdiff1d(np.arange(n), held)
    number = np.full(n, -1)
    number[free] = np.arange(free.size)
    load = np.zeros(n)
    load[1] = -1.0
    return _Mesh(dofs, free, number[np.repeat(dofs, 8, axis=1).ravel()], number[np.tile(dofs, 8).ravel()], load[free])


@functools.lru_cache(maxsize=8)
def _solved(density: bytes, n_rows: int, n_columns: int, penalty: float) -> tuple[float, np.ndarray]:
    """The compliance, and the energy u_e . k_0 u_e of each element. Kept, so that a pullback does not solve again."""
    mesh, k = _mesh(n_rows, n_columns), element_stiffness()
    modulus = E_MIN + np.frombuffer(density) ** penalty * (1.0 - E_MIN)
    entries = (modulus[:, None] * k.ravel()).ravel()
    there = (mesh.rows >= 0) & (mesh.columns >= 0)
    n = mesh.free.size
    matrix = csc_array((entries[there], (mesh.rows[there], mesh.columns[there])), shape=(n, n))
    # Symmetric and positive definite: no pivoting, and an ordering for symmetric matrices.
    factors = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    u = np.zeros(2 * (n_rows + 1) * (n_columns + 1))
    u[mesh.free] = factors.solve(mesh.load)
    of_element = u[mesh.dofs]
    return float(mesh.load @ u[mesh.free]), np.einsum("ei,ij,ej->e", of_element, k, of_element)


def _answer(inputs: InputSchema) -> tuple[float, np.ndarray]:
    density = np.clip(inputs.density, 0.0, 1.0)
    if not np.abs(density - inputs.density).max(initial=0.0) <= 1e-12:  # written so that NaN counts as bad
        raise ValueError("density must be between 0 and 1.")
    return _solved(density.tobytes(), *density.shape, inputs.penalty)


def apply(inputs: InputSchema) -> OutputSchema:
    """Work of the load on the beam."""
    return OutputSchema(compliance=_answer(inputs)[0])


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, Any]
) -> dict[str, Any]:
    """The gradient of cotangent * compliance."""
    if "density" not in vjp_inputs or "compliance" not in vjp_outputs:
        return {}
    slope = inputs.penalty * np.clip(inputs.density, 0.0, 1.0) ** (inputs.penalty - 1.0) * (1.0 - E_MIN)
    energy = _answer(inputs)[1].reshape(inputs.density.shape)
    return {"density": -cotangent_vector["compliance"] * slope * energy}


def abstract_eval(abstract_inputs: Any) -> dict[str, Any]:
    """A number."""
    return {"compliance": ShapeDType(shape=(), dtype="float64")}
