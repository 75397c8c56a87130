"""What the bridge refuses, with the words for it.

Here: the exception and the messages, and nothing that needs PyTorch. The one idea: a Tesseract sees numbers, so a
transformation that replaces the numbers of a tensor by something else cannot pass through it, and each such case has a
remedy in plain autograd.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from tesseract_flow.client import AbstractTesseract, Endpoint
from tesseract_flow.errors import (
    EndpointNotFound,
    Fault,
    InvalidInput,
    OptionError,
    SecondDerivative,
    TesseractFlowError,
    did_you_mean,
)
from tesseract_flow.schema import ValueLost, cast

VMAP_METHODS = ("sequential", "expand_dims", "broadcast_all")


class UnsupportedTransform(TesseractFlowError, NotImplementedError):
    """A `torch.func` transform reached a Tesseract. Also a RuntimeError, as every NotImplementedError is one."""


def torch_func(tesseract: AbstractTesseract) -> UnsupportedTransform:
    return UnsupportedTransform(
        "apply_tesseract does not support torch.func transforms (grad, vjp, jvp, jacrev, jacfwd, hessian, ...). One of "
        f"them reached Tesseract {tesseract.name!r}: their tensors have no numbers that could be sent.\n"
        "Use autograd instead: y.backward() or torch.autograd.grad(y, x) for reverse mode, dual tensors of "
        "torch.autograd.forward_ad for forward mode; torch.autograd.functional.jacobian for a Jacobian."
    )


def batched_derivative(tesseract: AbstractTesseract) -> UnsupportedTransform:
    return UnsupportedTransform(
        f"Several tangents or cotangents at once reached Tesseract {tesseract.name!r}, which takes one at a time.\n"
        "Leave out is_grads_batched=True (torch.autograd.grad) or vectorize=True (torch.autograd.functional), or loop "
        "over the directions."
    )


def mapping_without_method(tesseract: AbstractTesseract) -> UnsupportedTransform:
    return UnsupportedTransform(
        f"torch.vmap over Tesseract {tesseract.name!r} needs a batching strategy.\n"
        "Pass vmap_method to apply_tesseract: 'sequential' sends one request per element and fits every component; "
        "'expand_dims' and 'broadcast_all' send one for all, to a component whose arrays may have a dimension more."
    )


def second_derivative(name: str) -> SecondDerivative:
    return SecondDerivative(
        f"Second derivative requested of Tesseract {name!r}: its derivative would have to be differentiated again, and "
        "Tesseracts do not offer that.\n"
        "A gradient that was taken with create_graph=True can be used, but not differentiated; detach it where it "
        "enters a loss. For curvature use finite differences of gradients, or a quasi-Newton method such as L-BFGS."
    )


_NEEDED_FOR = {
    "vector_jacobian_product": "reverse mode (VJP), as an input requires grad",
    "jacobian_vector_product": "forward mode (JVP), as an input is a dual tensor with a tangent",
}


def require_endpoint(tesseract: AbstractTesseract, endpoint: Endpoint) -> None:
    """Raise `EndpointNotFound` unless the component offers the derivative, with what PyTorch has for doing without."""
    try:
        tesseract.require(endpoint)
    except EndpointNotFound as error:
        raise EndpointNotFound(
            f"{error}\nIt is needed for {_NEEDED_FOR[endpoint]}. Where no derivative is wanted, call under "
            "torch.no_grad(), or pass x.detach(). Nothing was sent.",
            tesseract=error.tesseract,
            endpoint=error.endpoint,
        ) from None


def require_method(vmap_method: str | None) -> None:
    if vmap_method is not None and vmap_method not in VMAP_METHODS:
        raise OptionError(
            f"vmap_method={vmap_method!r} is none of {', '.join(map(repr, VMAP_METHODS))}."
            f"{did_you_mean(str(vmap_method), VMAP_METHODS)}"
        )


def refuse_misfits(tesseract: AbstractTesseract, faults: Sequence[Fault], remedy: str = "") -> None:
    """Raise for what `check_inputs` found, in PyTorch's words."""
    if not faults:
        return
    faults = [Fault(fault.path, _in_torch_words(fault.message), fault.kind) for fault in faults]
    lines = "\n".join(f"  {fault}" for fault in faults)
    end = f"{remedy} Nothing was sent." if remedy else "Nothing was sent."
    message = f"The inputs do not fit the schema of Tesseract {tesseract.name!r}:\n{lines}\n{end}"
    if all(fault.kind == "list_for_array" for fault in faults):
        # As on the JAX side: the remedy is another type, and not another value.
        raise TypeError(message)
    raise InvalidInput(message, faults=faults, tesseract=repr(tesseract), endpoint="apply")


# The schema gives its advice to users of JAX.
_WORDS = (
    (re.compile(r"wrap it in jnp\.asarray\(\.\.\.\)\..*", re.DOTALL), "make it a tensor with torch.as_tensor(...)"),
    (re.compile(r"jnp\.full\("), "torch.full("),
    (re.compile(r"\.astype\('(\w+)'\)"), r".to(torch.\1)"),
)


def _in_torch_words(message: str) -> str:
    for pattern, words in _WORDS:
        message = pattern.sub(words, message)
    return message


def cast_input(tesseract: AbstractTesseract, value: np.ndarray, dtype: str, what: str) -> np.ndarray:
    """`value` in the dtype that the schema has.

    Raises:
        InvalidInput: it would be another value. Nothing was sent.
    """
    try:
        return cast(value, dtype)
    except ValueLost as error:
        refuse_misfits(tesseract, [Fault(what, str(error), "out_of_range")])
        raise
