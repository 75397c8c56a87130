"""The Lorenz-96 model of an atmosphere around a circle of latitude: state → state some time later.

    dx_i/dt = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + F,   indices modulo n,   classical Runge-Kutta of order 4.

One JAX function, from which a recipe makes all endpoints. Dimensionless; one unit of time is about five days, and with
F = 8 a small error grows by a factor of e in 0.6 units.

Source: E. N. Lorenz, Predictability: a problem partly solved, Proc. Seminar on Predictability, ECMWF (1996).
"""

# The annotation Differentiable[...] describes a field to tesseract-core, not to a type checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false

from typing import Any

import jax
import jax.numpy as jnp
from pydantic import BaseModel, Field
from tesseract_core.runtime import Array, Differentiable, Float64

from tesseract_flow.recipes import JaxRecipe

jax.config.update("jax_enable_x64", True)


class InputSchema(BaseModel):
    state: Differentiable[Array[(None,), Float64]] = Field(description="x at each of n >= 4 places around the circle")
    forcing: Differentiable[Float64] = Field(description="F, the same everywhere")
    n_steps: int = Field(default=5, ge=1, description="Steps of Runge-Kutta")
    dt: float = Field(default=0.01, gt=0.0, description="Time in each of them")


class OutputSchema(BaseModel):
    state: Differentiable[Array[(None,), Float64]] = Field(description="x at each place, n_steps * dt later")


def integrate(inputs: dict[str, Any]) -> dict[str, Any]:
    forcing, dt = inputs["forcing"], inputs["dt"]
    if inputs["state"].size < 4:
        raise ValueError(f"state has {inputs['state'].size} places; with fewer than 4 they are not each other's.")

    def rate(x):
        return (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1) - x + forcing

    def step(_, x):
        k1 = rate(x)
        k2 = rate(x + dt / 2 * k1)
        k3 = rate(x + dt / 2 * k2)
        k4 = rate(x + dt * k3)
        return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    return {"state": jax.lax.fori_loop(0, inputs["n_steps"], step, inputs["state"])}


recipe = JaxRecipe(integrate, residual_cache=True)


def apply(inputs: InputSchema) -> OutputSchema:
    return recipe.apply(inputs)


def jacobian(inputs: InputSchema, jac_inputs: set[str], jac_outputs: set[str]) -> dict[str, Any]:
    return recipe.jacobian(inputs, jac_inputs, jac_outputs)


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
