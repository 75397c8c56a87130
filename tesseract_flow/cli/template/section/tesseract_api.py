"""Cross-sections of a rod: the width of each piece → its area. All endpoints from one JAX function, by a recipe."""

# The annotation Differentiable[...] describes a field to tesseract-core, not to a type checker.
# pyright: reportArgumentType=false, reportReturnType=false

from typing import Any

import jax
from pydantic import BaseModel, Field
from tesseract_core.runtime import Array, Differentiable, Float64

from tesseract_flow.recipes import JaxRecipe

jax.config.update("jax_enable_x64", True)


class InputSchema(BaseModel):
    width: Differentiable[Array[(None,), Float64]] = Field(description="Width of each square piece [m]")


class OutputSchema(BaseModel):
    area: Differentiable[Array[(None,), Float64]] = Field(description="Area of each piece [m^2]")


recipe = JaxRecipe(lambda inputs: {"area": inputs["width"] ** 2})


def apply(inputs: InputSchema) -> OutputSchema:
    """The area of each piece."""
    return recipe.apply(inputs)


def jacobian_vector_product(
    inputs: InputSchema, jvp_inputs: set[str], jvp_outputs: set[str], tangent_vector: dict[str, Any]
) -> dict[str, Any]:
    return recipe.jacobian_vector_product(inputs, jvp_inputs, jvp_outputs, tangent_vector)


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, Any]
) -> dict[str, Any]:
    return recipe.vector_jacobian_product(inputs, vjp_inputs, vjp_outputs, cotangent_vector)


def abstract_eval(abstract_inputs: Any) -> dict[str, Any]:
    return recipe.abstract_eval(abstract_inputs)
