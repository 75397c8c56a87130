"""A density filter on a grid of square elements: field → its average over a neighbourhood. NumPy and SciPy.

    filtered_e = sum_i w_ei field_i / sum_i w_ei,   w_ei = max(0, radius - distance between the centres)

Linear, so the pullback is the transposed matrix, and where does not matter.

Source: B. Bourdin, Filters in topology optimization, Int. J. Numer. Meth. Engng 50 (2001), 2143-2158.
"""

# The annotation Differentiable[...] describes a field to tesseract-core, not to a type checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

import functools
from typing import Any

import numpy as np
from pydantic import BaseModel, Field
from scipy.sparse import csr_array
from tesseract_core.runtime import Array, Differentiable, Float64, ShapeDType


class InputSchema(BaseModel):
    field: Differentiable[Array[(None, None), Float64]] = Field(description="A number for each element, row by row")
    radius: float = Field(default=2.4, gt=0.0, description="Of the neighbourhood, in elements")


class OutputSchema(BaseModel):
    filtered: Differentiable[Array[(None, None), Float64]] = Field(description="Averages, between those of the field")


@functools.lru_cache(maxsize=8)
def _weights(n_rows: int, n_columns: int, radius: float) -> csr_array:
    """The matrix of the filter, for fields row by row; each row's sum is 1."""
    reach = int(np.ceil(radius)) - 1
    row, column = np.divmod(np.arange(n_rows * n_columns), n_columns)
    to, of, weight = [], [], []
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            w = radius - np.hypot(down, right)
            there = (row + down >= 0) & (row + down < n_rows) & (column + right >= 0) & (column + right < n_columns)
            if w > 0.0:
                to.append(np.flatnonzero(there))
                of.append(to[-1] + down * n_columns + right)
                weight.append(np.full(to[-1].size, w))
    matrix = csr_array((np.concatenate(weight), (np.concatenate(to), np.concatenate(of))), shape=(row.size, row.size))
    return csr_array(matrix.multiply(1.0 / matrix.sum(axis=1)[:, None]))


def apply(inputs: InputSchema) -> OutputSchema:
    """The averages."""
    matrix = _weights(*inputs.field.shape, inputs.radius)
    return OutputSchema(filtered=(matrix @ inputs.field.ravel()).reshape(inputs.field.shape))


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, Any]
) -> dict[str, Any]:
    """The gradient of <cotangent, filtered>."""
    if "field" not in vjp_inputs or "filtered" not in vjp_outputs:
        return {}
    matrix = _weights(*inputs.field.shape, inputs.radius)
    return {"field": (matrix.T @ cotangent_vector["filtered"].ravel()).reshape(inputs.field.shape)}


def abstract_eval(abstract_inputs: Any) -> dict[str, Any]:
    """As many averages as there are elements."""
    return {"filtered": ShapeDType(shape=abstract_inputs.field.shape, dtype="float64")}
