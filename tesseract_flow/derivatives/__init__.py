"""Derivatives from each other, and from nothing but `apply`: the mathematics, once, for both sides of the wire.

A component's author reaches it through `tesseract_flow.recipes`, the user of a prebuilt component through
`open_tesseract(..., derive=...)`. NumPy only, and nothing else of ours. The one idea: a derivation is a list of
*probes*, calls that do not wait for each other, and a sum over their answers. Who maps the function over the probes
decides whether they run one after the other (`map`) or all at once.
"""

from tesseract_flow.derivatives.derive import (
    jacobian_from_jvp,
    jacobian_from_vjp,
    jvp_from_jacobian,
    jvp_from_vjp,
    vjp_from_jacobian,
    vjp_from_jvp,
)
from tesseract_flow.derivatives.differences import Differences, jacobian_from_apply, jvp_from_apply, vjp_from_apply
from tesseract_flow.derivatives.noise import estimate_noise
from tesseract_flow.derivatives.paths import exists_at, get_at, set_at
from tesseract_flow.derivatives.probes import MapProbes
from tesseract_flow.derivatives.trees import as_tree

__all__ = [
    "Differences",
    "MapProbes",
    "as_tree",
    "estimate_noise",
    "exists_at",
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
