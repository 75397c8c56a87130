"""Heat in a plate without edges, in explicit steps, with residuals kept by `JaxRecipe`.

Writes down, where it is told to, whether a pullback has found its residuals.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportReturnType=false

from typing import Any, Literal

import jax
import jax.numpy as jnp
from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float64

from tesseract_flow.recipes import JaxRecipe

jax.config.update("jax_enable_x64", True)


class InputSchema(BaseModel):
    temperature: Differentiable[Array[(None, None), Float64]]
    n_steps: int = 200
    steps: Literal["cheap", "costly"] = "cheap"
    record: str = ""


class OutputSchema(BaseModel):
    temperature: Differentiable[Array[(None, None), Float64]]


def conduct(inputs: dict[str, Any]) -> dict[str, Any]:
    """The temperature after some steps. Cheap ones: conductivity 0.1 / (1 + u^2). Costly ones: a source 0.01 sin(u)."""
    is_cheap = inputs["steps"] == "cheap"

    def step(_: Any, u: Any) -> Any:
        neighbours = jnp.roll(u, 1, 0) + jnp.roll(u, -1, 0) + jnp.roll(u, 1, 1) + jnp.roll(u, -1, 1)
        flow = 0.1 * (neighbours - 4.0 * u)
        return u + flow / (1.0 + u**2) if is_cheap else u + flow + 0.01 * jnp.sin(u)

    return {"temperature": jax.lax.fori_loop(0, inputs["n_steps"], step, inputs["temperature"])}


recipe = JaxRecipe(conduct, residual_cache=True)


def apply(inputs: InputSchema) -> OutputSchema:
    return recipe.apply(inputs)


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, Any]
) -> dict[str, Any]:
    n_hits = recipe.stats()["hits"]
    answer = recipe.vector_jacobian_product(inputs, vjp_inputs, vjp_outputs, cotangent_vector)
    if inputs.record:
        with open(inputs.record, "a") as file:
            file.write("hit\n" if recipe.stats()["hits"] > n_hits else "miss\n")
    return answer


def abstract_eval(abstract_inputs: Any) -> dict[str, Any]:
    return recipe.abstract_eval(abstract_inputs)
