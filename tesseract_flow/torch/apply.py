"""`apply_tesseract`: a Tesseract as a function of tensors, differentiable where its schema says so."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from tesseract_flow.client import AbstractTesseract, TesseractLike, open_tesseract
from tesseract_flow.errors import Fault
from tesseract_flow.schema import ArrayField, Keys, array_leaves, check_inputs, format_path
from tesseract_flow.torch.call import SHAPES_LATER, Call, Operand
from tesseract_flow.torch.function import refuse_transforms, run
from tesseract_flow.torch.refusals import refuse_misfits, require_method
from tesseract_flow.torch.trees import Constant, Slot, Tree, follow, leaves_of, map_leaves

# Faults that the batch dimension may heal.
_OF_SHAPE = frozenset({"wrong_rank", "wrong_shape"})


def apply_tesseract(tesseract: TesseractLike, inputs: Mapping[str, Any], *, vmap_method: str | None = None) -> Any:
    """Outputs of a Tesseract at `inputs`: tensors where they are differentiable, NumPy arrays and plain values elsewhere.

    One request, and one more per backward pass: for the inputs that require grad, and the outputs that have a gradient
    other than zero. Forward mode (`torch.autograd.forward_ad`) takes one more as well. Tensors in fields that are not
    differentiable are detached. Outputs have the dtypes of the schema and the device of the differentiable inputs,
    gradients those of their inputs.

    Args:
        tesseract: a handle from `open_tesseract`, a URL, a path, or a `tesseract_core.Tesseract`.
        inputs: a tree that fits its `InputSchema`: tensors, NumPy arrays or numbers where that has arrays, plain values
            elsewhere.
        vmap_method: what `torch.vmap` does: `"sequential"` sends one request per element; `"expand_dims"` and
            `"broadcast_all"` send one for all, with a leading batch dimension in every array, of length 1 or of full
            length in those that are not mapped. None refuses to be mapped.

    Raises:
        InvalidInput: the inputs do not fit the schema. Raised before any request.
        TypeError: a list or tuple where the schema wants an array.
        EndpointNotFound: an input requires grad, and the component has no `vector_jacobian_product`; or it has a
            tangent, and there is no `jacobian_vector_product`. Raised before any request.
        UnsupportedTransform: `torch.func.grad`, `vjp`, `jvp` and the like, or `torch.vmap` without a method.
        SecondDerivative: from the backward pass through a gradient that was taken with `create_graph=True`.
        CallError: the request failed; see `tesseract_flow.errors`.
    """
    require_method(vmap_method)
    handle = _open_text(tesseract) if isinstance(tesseract, str) else open_tesseract(tesseract)
    call, operands = _split_inputs(handle, inputs, vmap_method)
    refuse_transforms(call, operands)
    tree, outputs = run(call, operands)
    return map_leaves(lambda keys, leaf: outputs[leaf.index] if isinstance(leaf, Slot) else leaf, tree)


@functools.lru_cache(maxsize=64)
def _open_text(source: str) -> AbstractTesseract:
    """Remembered, so that the schema is read once and not per call."""
    return open_tesseract(source)


def _split_inputs(handle: AbstractTesseract, inputs: Any, vmap_method: str | None) -> tuple[Call, list[torch.Tensor]]:
    """All tensors of the inputs, as the request needs them, and the call without them."""
    root = handle.schema.inputs
    faults = [
        fault for fault in check_inputs(root, inputs) if not (vmap_method in SHAPES_LATER and fault.kind in _OF_SHAPE)
    ]
    refuse_misfits(handle, faults or _faults_of_layout(handle, inputs))
    fields = dict(array_leaves(root, inputs))
    operands: list[Operand] = []
    tensors: list[torch.Tensor] = []

    def split(keys: Keys, leaf: Any) -> Any:
        field = fields.get(keys)
        if not isinstance(leaf, torch.Tensor):
            return _plain(leaf) if field is None else _array(leaf, field)
        is_differentiable = field is not None and field.differentiable
        leaf = leaf if is_differentiable else leaf.detach()
        tensors.append(leaf if field is None else _tensor(leaf, field))
        operands.append(Operand(format_path(root, keys), field is not None, is_differentiable))
        return Slot(len(tensors) - 1)

    return Call(handle, map_leaves(split, inputs), tuple(operands), vmap_method), tensors


def _faults_of_layout(handle: AbstractTesseract, inputs: Any) -> list[Fault]:
    return [
        Fault(format_path(handle.schema.inputs, keys), f"a {leaf.layout} tensor cannot be sent; use .to_dense()")
        for keys, leaf in leaves_of(inputs).items()
        if isinstance(leaf, torch.Tensor) and leaf.layout is not torch.strided
    ]


def _tensor(tensor: torch.Tensor, field: ArrayField) -> torch.Tensor:
    """`tensor` in the field's dtype, at full size where the schema broadcasts.

    Casting and broadcasting on this side makes them part of the graph, so that autograd differentiates them: a server
    that broadcasts (1,) to (3,) would answer a pullback with three numbers where one is due.
    """
    if field.dtype is not None:
        tensor = tensor.to(getattr(torch, field.dtype))
    if field.shape is not None and len(field.shape) == tensor.ndim:
        tensor = tensor.expand([have if want is None else want for have, want in zip(tensor.shape, field.shape)])
    return tensor


def _array(value: Any, field: ArrayField) -> Any:
    """A NumPy array, or what becomes one, in the field's dtype; a copy, as the pullback needs it unchanged later."""
    array = np.array(value, dtype=field.dtype)
    if isinstance(value, bool | int | float | complex):
        return array  # a number stays one under vmap
    if field.shape is not None and len(field.shape) == array.ndim:
        shape = tuple(have if want is None else want for have, want in zip(array.shape, field.shape, strict=True))
        array = np.broadcast_to(array, shape)
    return Constant(array)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.item() if value.ndim == 0 else value
    return value
