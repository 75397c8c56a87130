"""Compliance of a beam under a tip load: displacements -> f . d, the work of the load.

    compliance = f . d = tip_load * deflection of the last node   [N m]

The load vector f has this one entry, so nothing else of the displacement field matters. Twice the strain energy; the
smaller, the stiffer the beam. Any consistent set of units will do; SI is shown.

Source: M. P. Bendsoe and O. Sigmund, Topology Optimization (2003), section 1.1.
"""

# The annotation Differentiable[...] describes a field to tesseract-core, not to a type checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from typing import Any

import numpy as np
from pydantic import BaseModel, Field
from tesseract_core.runtime import Array, Differentiable, Float64, ShapeDType


class InputSchema(BaseModel):
    displacement: Differentiable[Array[(None, 2), Float64]] = Field(
        description="Deflection [m] and rotation [rad] of each node; the last node carries the load"
    )
    tip_load: float = Field(default=-1.0, description="Transverse force at the last node, positive upwards [N]")


class OutputSchema(BaseModel):
    compliance: Differentiable[Float64] = Field(description="Work of the load f . d [N m]")


def _load_vector(inputs: InputSchema) -> np.ndarray:
    """f, of the shape of the displacement: the tip load, and zero everywhere else."""
    if inputs.displacement.shape[0] == 0:
        raise ValueError("displacement is empty: there is no node that could carry the load.")
    f = np.zeros_like(inputs.displacement)
    f[-1, 0] = inputs.tip_load
    return f


def apply(inputs: InputSchema) -> OutputSchema:
    """Work that the tip load does on the displacement."""
    return OutputSchema(compliance=np.vdot(_load_vector(inputs), inputs.displacement))


def jacobian_vector_product(
    inputs: InputSchema, jvp_inputs: set[str], jvp_outputs: set[str], tangent_vector: dict[str, Any]
) -> dict[str, Any]:
    """How the compliance moves with the displacement; linear, so it does not depend on where."""
    if "compliance" not in jvp_outputs:
        return {}
    return {"compliance": np.vdot(_load_vector(inputs), tangent_vector["displacement"])}


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, Any]
) -> dict[str, Any]:
    """Gradient of cotangent * compliance with respect to the displacement: the scaled load vector."""
    if "displacement" not in vjp_inputs:
        return {}
    return {"displacement": cotangent_vector["compliance"] * _load_vector(inputs)}


def abstract_eval(abstract_inputs: Any) -> dict[str, Any]:
    """Shape of the output: a scalar."""
    return {"compliance": ShapeDType(shape=(), dtype="float64")}
