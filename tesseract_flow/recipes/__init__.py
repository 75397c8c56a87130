"""For authors of Tesseracts: the endpoints of a component in one line each, inside its `tesseract_api.py`.

* `JaxRecipe`: every endpoint from one JAX function, with residuals kept between `apply` and its pullbacks if wanted.
* `x_from_y`: the endpoint that is missing from one that is there, or from `apply` by finite differences.

These modules need nothing else of tesseract-flow but `derivatives`, which holds the mathematics of the second line,
and `exact`, the keys of residuals. They run inside a component's image. What has no JAX in its name needs only NumPy
and pydantic, so JAX is imported when `JaxRecipe` is used, and not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tesseract_flow.derivatives import (
    Differences,
    estimate_noise,
    get_at,
    jacobian_from_apply,
    jacobian_from_jvp,
    jacobian_from_vjp,
    jvp_from_apply,
    jvp_from_jacobian,
    jvp_from_vjp,
    set_at,
    vjp_from_apply,
    vjp_from_jacobian,
    vjp_from_jvp,
)
from tesseract_flow.recipes.residuals import ResidualCache

if TYPE_CHECKING:
    from tesseract_flow.recipes.jax_recipe import JaxRecipe

__all__ = [
    "Differences",
    "JaxRecipe",
    "ResidualCache",
    "estimate_noise",
    "get_at",
    "jacobian_from_apply",
    "jacobian_from_jvp",
    "jacobian_from_vjp",
    "jvp_from_apply",
    "jvp_from_jacobian",
    "jvp_from_vjp",
    "set_at",
    "vjp_from_apply",
    "vjp_from_jacobian",
    "vjp_from_jvp",
]


def __getattr__(name: str) -> Any:
    if name == "JaxRecipe":
        from tesseract_flow.recipes.jax_recipe import JaxRecipe

        return JaxRecipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
