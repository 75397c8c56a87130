"""A few steps of diffusion with sources: every endpoint from one JAX function, residuals kept.

Says of itself how many pullbacks found their residuals, which a pure component would not.
"""

# The annotation Differentiable[...] describes a field to tesseract-core, not to a type checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from typing import Any, Literal

import jax
import jax.numpy as jnp
from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float64, Int32

from tesseract_flow.recipes import JaxRecipe, ResidualCache

jax.config.update("jax_enable_x64", True)


class Source(BaseModel):
    cell: Int32
    strength: Differentiable[Float64]


class InputSchema(BaseModel):
    temperature: Differentiable[Array[(None,), Float64]]
    scheme: Literal["explicit", "implicit"] = "explicit"
    n_steps: int = 2
    conductivity: Differentiable[Float64]
    sources: dict[str, Source] = {}
    weights: list[Array[(None,), Float64]] = []


class OutputSchema(BaseModel):
    temperature: Differentiable[Array[(None,), Float64]]
    moments: dict[str, Differentiable[Float64]]
    scheme: str
    n_hits: int = 0


def diffuse(inputs: dict[str, Any]) -> dict[str, Any]:
    u = jnp.asarray(inputs["temperature"])
    laplacian = jnp.eye(u.size, k=1) + jnp.eye(u.size, k=-1) - 2.0 * jnp.eye(u.size)
    for source in inputs["sources"].values():
        u = u.at[source["cell"]].add(source["strength"])
    for _ in range(inputs["n_steps"]):
        step = jnp.eye(u.size) - inputs["conductivity"] * laplacian
        explicit = u + inputs["conductivity"] * laplacian @ u
        u = explicit if inputs["scheme"] == "explicit" else jnp.linalg.solve(step, u)
    moments = {str(order): jnp.sum(weight * u**2) for order, weight in enumerate(inputs["weights"])}
    return {"temperature": u, "moments": moments, "scheme": inputs["scheme"]}


recipe = JaxRecipe(diffuse, residual_cache=ResidualCache(max_entries=4), outputs=OutputSchema)


def apply(inputs: InputSchema) -> OutputSchema:
    return {**recipe.apply(inputs), "n_hits": recipe.stats()["hits"]}


def jacobian(inputs: InputSchema, jac_inputs: set[str], jac_outputs: set[str]):
    return recipe.jacobian(inputs, jac_inputs, jac_outputs)


def jacobian_vector_product(
    inputs: InputSchema, jvp_inputs: set[str], jvp_outputs: set[str], tangent_vector: dict[str, Any]
):
    return recipe.jacobian_vector_product(inputs, jvp_inputs, jvp_outputs, tangent_vector)


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, Any]
):
    return recipe.vector_jacobian_product(inputs, vjp_inputs, vjp_outputs, cotangent_vector)


def abstract_eval(abstract_inputs):
    return recipe.abstract_eval(abstract_inputs)
