"""`apply_tesseract`: a Tesseract as a function of tensors, differentiable where its schema says so."""

# Where PyTorch is not installed, pyright takes this package for it.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tesseract_flow.client import AbstractTesseract, TesseractLike, opened
from tesseract_flow.errors import Fault
from tesseract_flow.schema import ArrayField, Keys, array_leaves, check_inputs, format_path, lossless, plain_tree
from tesseract_flow.torch.call import SHAPES_LATER, Call, Operand
from tesseract_flow.torch.function import refuse_transforms, run
from tesseract_flow.torch.refusals import cast_input, refuse_misfits, require_method
from tesseract_flow.torch.trees import Constant, Slot, map_leaves

# Faults that the batch dimension may heal.
_OF_SHAPE = frozenset({"wrong_rank", "wrong_shape"})


def apply_tesseract(tesseract: TesseractLike, inputs: Mapping[str, Any], *, vmap_method: str | None = None) -> Any:
    """Outputs of a Tesseract at `inputs`: tensors where they are differentiable, else NumPy arrays and plain values.

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
    if torch.compiler.is_compiling():
        # The compiler makes a break in its graph here, as no request can be compiled. Said here and not with a
        # decorator, which would import the whole compiler for everybody.
        uncompiled = torch.compiler.disable(_apply)
        return uncompiled(tesseract, inputs, vmap_method)  # pyright: ignore[reportCallIssue]
    return _apply(tesseract, inputs, vmap_method)


def _apply(tesseract: TesseractLike, inputs: Mapping[str, Any], vmap_method: str | None) -> Any:
    require_method(vmap_method)
    handle = opened(tesseract)
    call, operands = _split_inputs(handle, inputs, vmap_method)
    refuse_transforms(call, operands)
    tree, outputs = run(call, operands)
    return map_leaves(lambda keys, leaf: outputs[leaf.index] if isinstance(leaf, Slot) else leaf, tree)


def _split_inputs(handle: AbstractTesseract, inputs: Any, vmap_method: str | None) -> tuple[Call, list[torch.Tensor]]:
    """All tensors of the inputs, as the request needs them, and the call without them."""
    root = handle.schema.inputs
    inputs = plain_tree(root, inputs)
    faults = check_inputs(root, inputs)
    if vmap_method in SHAPES_LATER:
        faults = [fault for fault in faults if fault.kind not in _OF_SHAPE]
    refuse_misfits(handle, faults)
    fields = dict(array_leaves(root, inputs))
    operands: list[Operand] = []
    tensors: list[torch.Tensor] = []

    def split(keys: Keys, leaf: Any) -> Any:
        field = fields.get(keys)
        if not isinstance(leaf, torch.Tensor):
            return _plain(leaf) if field is None else _array(handle, format_path(root, keys), leaf, field)
        path, is_differentiable = format_path(root, keys), field is not None and field.differentiable
        if leaf.layout is not torch.strided:
            fault = Fault(path, f"a tensor of layout {leaf.layout} cannot be sent; use .to_dense()", "wrong_layout")
            refuse_misfits(handle, [fault])
        if not is_differentiable:
            leaf = leaf.detach()
        later = None
        if field is not None:
            leaf, later = _tensor(leaf, field)
        tensors.append(leaf)
        operands.append(Operand(path, field is not None, is_differentiable, later))
        return Slot(len(tensors) - 1)

    return Call(handle, map_leaves(split, inputs), tuple(operands), vmap_method), tensors


def _tensor(tensor: torch.Tensor, field: ArrayField) -> tuple[torch.Tensor, str | None]:
    """`tensor` in the field's dtype, at full size where the schema broadcasts; and the dtype to which the call must
    convert it, where that may lose a value: inside of vmap there are no values to look at.

    Casting and broadcasting on this side makes them part of the graph, so that autograd differentiates them: a server
    that broadcasts (1,) to (3,) would answer a pullback with three numbers where one is due.
    """
    dtype = tensor.dtype if field.dtype is None else getattr(torch, field.dtype)
    shape = _full_shape(tensor.shape, field)
    later = None
    # Only where needed: inside of torch.func even an operation that does nothing makes a tensor without numbers.
    if tensor.dtype != dtype and tensor.dtype == torch.bfloat16:
        tensor = tensor.to(torch.float32)  # which NumPy knows
    if tensor.dtype != dtype:
        if lossless(str(tensor.dtype).rpartition(".")[2], field.dtype):
            tensor = tensor.to(dtype)
        else:
            later = field.dtype
    return tensor if tensor.shape == shape else tensor.expand(shape), later


def _array(handle: AbstractTesseract, path: str, value: Any, field: ArrayField) -> Any:
    """A NumPy array, or what becomes one, in the field's dtype; a copy, as the pullback needs it unchanged later."""
    is_number = isinstance(value, bool | int | float | complex) and not isinstance(value, np.generic)
    array = np.array(value, dtype=field.dtype if is_number else None)  # whether a number fits was looked at
    if field.dtype is not None:
        array = cast_input(handle, array, field.dtype, path)
    if isinstance(value, bool | int | float | complex):
        return array  # a number stays one under vmap
    return Constant(np.broadcast_to(array, _full_shape(array.shape, field)))


def _full_shape(shape: Sequence[int], field: ArrayField) -> tuple[int, ...]:
    """`shape` with the schema's lengths in place of those of 1 that it broadcasts."""
    if field.shape is None or len(field.shape) != len(shape):
        return tuple(shape)
    return tuple(
        want if have == 1 and want is not None else have for have, want in zip(shape, field.shape, strict=True)
    )


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.item() if value.ndim == 0 else value.copy()  # for the pullback, later
    return value
