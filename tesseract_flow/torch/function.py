"""A call as an autograd function: forward is `apply`, backward the pullback, forward mode the pushforward.

Here: which tensors go into which request. The requests themselves are `Call`'s; `torch.vmap` is in `batching`. The one
idea: tensors are operands, and all the rest of a call travels beside them as one object.

Complex numbers: PyTorch's gradient is the conjugate of the bilinear pullback Jᵀ·c that the protocol has (and JAX), so
cotangents are conjugated on their way out and gradients on their way back.
"""

# Where PyTorch is not installed, pyright takes this package for it.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from tesseract_flow.torch.arrays import has_numbers, to_numpy, to_tensor
from tesseract_flow.torch.batching import batched
from tesseract_flow.torch.call import Aval, Call
from tesseract_flow.torch.refusals import (
    batched_derivative,
    mapping_without_method,
    require_endpoint,
    second_derivative,
    torch_func,
)
from tesseract_flow.torch.trees import Tree

# forward() takes the call and the outcome before the tensors, and autograd wants a gradient for each argument.
_BEFORE_TENSORS = (None, None)


def run(call: Call, operands: Sequence[torch.Tensor]) -> tuple[Tree, tuple[torch.Tensor, ...]]:
    """The output tree with its slots, and the tensors for them, connected to the graph. One request.

    Raises:
        EndpointNotFound: an operand wants a derivative that the component does not have. Raised before the request.
    """
    # Inside of vmap nobody can see who requires grad; the batching rule runs the elements through here again.
    real = [operand for operand in operands if has_numbers(operand)]
    if torch.is_grad_enabled() and any(operand.requires_grad for operand in real):
        require_endpoint(call.tesseract, "vector_jacobian_product")
    if any(forward_ad.unpack_dual(operand).tangent is not None for operand in real):
        require_endpoint(call.tesseract, "jacobian_vector_product")
    outcome = _Outcome()
    outputs = _Apply.apply(call, outcome, *operands)
    return outcome.tree, outputs


@dataclasses.dataclass(eq=False)
class _Outcome:
    """What forward() leaves for its caller besides tensors. An object, as `torch.func` rebuilds dicts and lists."""

    tree: Tree = None
    paths: tuple[str, ...] = ()
    avals: tuple[Aval, ...] = ()


class _Apply(torch.autograd.Function):
    """Operands → differentiable outputs."""

    @staticmethod
    def forward(call: Call, outcome: _Outcome, *operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
        answer = call.apply([to_numpy(operand) for operand in operands])
        outcome.tree, outcome.paths, outcome.avals = answer.tree, answer.paths, answer.avals
        differentiable = (x.device for x, of in zip(operands, call.operands, strict=True) if of.is_differentiable)
        device = next(differentiable, None)
        return tuple(to_tensor(array, device) for array in answer.arrays)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.call, outcome, *operands = inputs
        ctx.paths, ctx.avals = outcome.paths, outcome.avals
        ctx.devices = [y.device for y in output]
        # So that autograd finds out when somebody writes into an operand before the pullback.
        ctx.save_for_backward(*operands)
        ctx.save_for_forward(*operands)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        call, primals = ctx.call, ctx.saved_tensors
        wanted = [i for i, needs in enumerate(ctx.needs_input_grad[len(_BEFORE_TENSORS) :]) if needs]
        given = _given(call, cotangents)
        x_bar: list[torch.Tensor | None] = [None] * len(primals)
        if given:
            answer = call.pullback(
                [to_numpy(x) for x in primals], wanted, {ctx.paths[j]: to_numpy(c.conj()) for j, c in given.items()}
            )
            for i, array in zip(wanted, answer, strict=True):
                x_bar[i] = to_tensor(array, primals[i].device).conj().resolve_conj()
        else:
            # Not None: to autograd that is an input that was never used.
            for i in wanted:
                x_bar[i] = torch.zeros_like(primals[i])
        sources = [*primals, *(y_bar for y_bar in cotangents if y_bar is not None)]
        return *_BEFORE_TENSORS, *_differentiable_no_more(call, x_bar, sources)

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        call, primals = ctx.call, ctx.saved_tensors
        operand_tangents = tangents[len(_BEFORE_TENSORS) :]
        given = _given(call, operand_tangents)
        if given and ctx.paths:
            answer = call.pushforward(
                [to_numpy(x) for x in primals], {i: to_numpy(t) for i, t in given.items()}, ctx.paths, ctx.avals
            )
            y_dot = [to_tensor(array, device) for array, device in zip(answer, ctx.devices, strict=True)]
        else:
            y_dot = [
                torch.zeros(aval.shape, dtype=getattr(torch, aval.dtype.name), device=device)
                for aval, device in zip(ctx.avals, ctx.devices, strict=True)
            ]
        sources = [*primals, *(x_dot for x_dot in operand_tangents if x_dot is not None)]
        return tuple(_differentiable_no_more(call, y_dot, sources))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], call: Call, outcome: _Outcome, *operands: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], tuple[int, ...]]:
        dims = in_dims[len(_BEFORE_TENSORS) :]
        outcome.tree, outputs = batched(run, call, operands, dims, info.batch_size)
        return tuple(outputs), (0,) * len(outputs)


def _given(call: Call, tensors: Sequence[torch.Tensor | None]) -> dict[int, torch.Tensor]:
    """The tangents or cotangents that are there and not all zero, by index: others would be a solve for nothing."""
    present = {k: tensor for k, tensor in enumerate(tensors) if tensor is not None}
    if not all(map(has_numbers, present.values())):
        raise batched_derivative(call.tesseract)
    try:
        return {k: tensor for k, tensor in present.items() if tensor.any()}  # NaN counts as something
    except RuntimeError as error:  # tensors that record what is done with them, as torch.func.linearize hands out
        raise torch_func(call.tesseract) from error


# --- second derivatives -----------------------------------------------------------------------------------------------


class _Final(torch.autograd.Function):
    """The first tensors, unchanged. The others are what they depend on: whoever differentiates further is refused.

    torch.autograd.function.once_differentiable has no word to say which Tesseract it was, and no forward mode.
    """

    @staticmethod
    def forward(ctx: Any, name: str, n_values: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.name = name
        ctx.set_materialize_grads(False)
        return tensors[:n_values]

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> None:
        raise second_derivative(ctx.name)

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor | None) -> None:
        raise second_derivative(ctx.name)


def _differentiable_no_more(
    call: Call, derivatives: Sequence[torch.Tensor | None], sources: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    """The derivatives, tied to what they depend on: constants would silently drop out of a second derivative."""
    values = [value for value in derivatives if value is not None]
    tied = iter(_Final.apply(call.tesseract.name, len(values), *values, *sources))
    return [None if value is None else next(tied) for value in derivatives]


# --- which transformation is this? ------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class _Found:
    is_mapped: bool = False
    is_differentiated: bool = False


class _Probe(torch.autograd.Function):
    """Finds out which `torch.func` transforms hold some tensors, by being transformed: nothing public tells."""

    @staticmethod
    def forward(found: _Found, *tensors: torch.Tensor) -> torch.Tensor:
        return torch.zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        found, *tensors = inputs
        found.is_differentiated |= not all(map(has_numbers, tensors))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> torch.Tensor:
        return torch.zeros(())  # asked for dual tensors as well, which are welcome

    @staticmethod
    def vmap(info: Any, in_dims: Any, found: _Found, *tensors: torch.Tensor) -> tuple[torch.Tensor, None]:
        found.is_mapped = True
        return _Probe.apply(found, *tensors), None


def refuse_transforms(call: Call, operands: Sequence[torch.Tensor]) -> None:
    """Raise `UnsupportedTransform` for operands in the hands of a transform that no call can pass through."""
    if all(map(has_numbers, operands)):
        return
    found = _Found()
    _Probe.apply(found, *operands)
    if found.is_differentiated or not found.is_mapped:
        raise torch_func(call.tesseract)
    if call.vmap_method is None:
        raise mapping_without_method(call.tesseract)
