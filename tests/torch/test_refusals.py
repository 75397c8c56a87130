"""Transforms that cannot pass through a Tesseract: refused with advice, and before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tesseract_flow.errors import TesseractFlowError
from tesseract_flow.torch import UnsupportedTransform, apply_tesseract
from tests.torch.helpers import product, tensor

A, B = tensor(1.0, 2.0, grad=False), tensor(3.0, 4.0, grad=False)

FUNC = {
    "grad": lambda f: torch.func.grad(lambda a: f(a).sum())(A),
    "vjp": lambda f: torch.func.vjp(f, A),
    "jvp": lambda f: torch.func.jvp(f, (A,), (A,)),
    "jacrev": lambda f: torch.func.jacrev(f)(A),
    "jacfwd": lambda f: torch.func.jacfwd(f)(A),
    "hessian": lambda f: torch.func.hessian(lambda a: f(a).sum())(A),
    "linearize": lambda f: torch.func.linearize(f, A),
    "vmap of grad": lambda f: torch.vmap(torch.func.grad(lambda a: f(a).sum()))(torch.stack([A, B])),
    "grad of vmap": lambda f: torch.func.grad(lambda a: torch.vmap(f)(a).sum())(torch.stack([A, B])),
}


@pytest.mark.parametrize("method", [None, "sequential"])
@pytest.mark.parametrize("transform", FUNC.values(), ids=FUNC)
def test_torch_func(transform: Any, method: str | None):
    tesseract = product()
    with pytest.raises(UnsupportedTransform, match=r"torch\.func[^§]*'product'[^§]*torch\.autograd\.grad") as caught:
        transform(lambda a: apply_tesseract(tesseract, {"a": a, "b": B}, vmap_method=method)["y"])
    assert tesseract.requests == [] or transform is FUNC["linearize"]  # whose primal is a tensor like any other
    # What tesseract-torch raises here, and the root of ours.
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, TesseractFlowError)


def test_torch_func_around_other_inputs_is_fine():
    y = torch.func.grad(lambda c: (c * apply_tesseract(product(), {"a": A, "b": B})["y"]).sum())(A)
    assert torch.equal(y, A * B)


def _batched_backward(f: Any) -> None:
    a = A.clone().requires_grad_()
    torch.autograd.grad(f(a), a, torch.eye(2, dtype=torch.float64), is_grads_batched=True)


BATCHED = {
    "is_grads_batched": _batched_backward,
    "vectorize": lambda f: torch.autograd.functional.jacobian(f, A, vectorize=True),
    "forward mode": lambda f: torch.autograd.functional.jacobian(f, A, vectorize=True, strategy="forward-mode"),
}


@pytest.mark.parametrize("transform", BATCHED.values(), ids=BATCHED)
def test_batched_derivatives(transform: Any):
    tesseract = product()
    with pytest.raises(UnsupportedTransform, match=r"one at a time[^§]*is_grads_batched[^§]*vectorize"):
        transform(lambda a: apply_tesseract(tesseract, {"a": a, "b": B})["y"])
    assert [endpoint for endpoint, _ in tesseract.requests] == ["apply"]
