"""What `torch.vmap` makes of a call: one request per element, or one for all of them.

Here: the three `vmap_method`s of tesseract-torch. Both ways run ordinary calls on ordinary tensors, so derivatives of
mapped calls, and maps of maps, need nothing of their own.

Every array of a mapped call comes back as a tensor, also those that are not differentiable: a NumPy array has no place
for the dimension that vmap hides. One by one, numbers and flags do as well, as each element has its own; what else
there is comes back once, and with a warning where it differs.
"""

# Where PyTorch is not installed, pyright takes this package for it.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from tesseract_flow.errors import InvalidAnswer, OptionError
from tesseract_flow.schema import DTYPES, Keys, describe_shape, format_path
from tesseract_flow.torch.arrays import to_tensor
from tesseract_flow.torch.call import Call
from tesseract_flow.torch.refusals import mapping_without_method
from tesseract_flow.torch.trees import Constant, Slot, Tree, leaves_of, map_leaves

Outputs: TypeAlias = tuple[Tree, Sequence[torch.Tensor]]
Run: TypeAlias = Callable[[Call, Sequence[torch.Tensor]], Outputs]


def batched(
    run: Run, call: Call, operands: Sequence[torch.Tensor], dims: Sequence[int | None], n_batch: int
) -> Outputs:
    """The outputs of a mapped call, by its `vmap_method`; `dims` are the mapped dimensions of the operands."""
    if call.vmap_method is None:
        raise mapping_without_method(call.tesseract)
    if call.vmap_method == "sequential":
        return _one_by_one(run, call, operands, dims, n_batch)
    return _all_at_once(run, call, operands, dims, n_batch)


# --- one request per element ------------------------------------------------------------------------------------------


def _one_by_one(
    run: Run, call: Call, operands: Sequence[torch.Tensor], dims: Sequence[int | None], n_batch: int
) -> Outputs:
    if n_batch == 0:
        raise OptionError(
            f"torch.vmap over nothing: vmap_method='sequential' learns the outputs of Tesseract "
            f"{call.tesseract.name!r} from its elements, and there is none. Leave the call out of an empty batch."
        )
    elements = []
    for k in range(n_batch):
        element = [x if dim is None else x.select(dim, k) for x, dim in zip(operands, dims, strict=True)]
        elements.append(_with_all_arrays_as_tensors(*run(call, element), with_numbers=True))
    tree = elements[0][0]
    _require_equal_shapes(call, elements)
    _warn_of_different_values(call, [tree for tree, _ in elements])
    return tree, [torch.stack(column) for column in zip(*(tensors for _, tensors in elements), strict=True)]


def _require_equal_shapes(call: Call, elements: Sequence[Outputs]) -> None:
    """Outputs of different elements can be stacked only if they agree in structure and shapes."""
    first = _shapes(*elements[0])
    for k, element in enumerate(elements):
        shapes = _shapes(*element)
        for keys in first | shapes:
            if first.get(keys) != shapes.get(keys):
                path = format_path(call.tesseract.schema.outputs, keys)
                seen = [describe_shape(s[keys]) if keys in s else "nothing" for s in (first, shapes)]
                raise InvalidAnswer(
                    f"torch.vmap stacks the outputs of its elements, and Tesseract {call.tesseract.name!r} answered "
                    f"{path!r} with shape {seen[0]} for element 0 and {seen[1]} for element {k}.\n"
                    "Call it in a loop instead.",
                    tesseract=repr(call.tesseract),
                    endpoint="apply",
                )


def _shapes(tree: Tree, tensors: Sequence[torch.Tensor]) -> dict[Keys, tuple[int, ...]]:
    return {keys: tuple(tensors[leaf.index].shape) for keys, leaf in leaves_of(tree).items() if isinstance(leaf, Slot)}


def _warn_of_different_values(call: Call, trees: Sequence[Tree]) -> None:
    first = leaves_of(trees[0])
    for k, tree in enumerate(trees):
        for keys, value in leaves_of(tree).items():
            if not isinstance(value, Slot) and not _is_same(value, first.get(keys)):
                warnings.warn(
                    f"Tesseract {call.tesseract.name!r} answered "
                    f"{format_path(call.tesseract.schema.outputs, keys)!r} with {value!r} for element {k} of the batch "
                    f"and {first.get(keys)!r} for element 0. It is no array, so it cannot be stacked: the value for "
                    "element 0 is the one that apply_tesseract gives.",
                    UserWarning,
                    stacklevel=2,
                )
                return


def _is_same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b) or (a != a and b != b)  # NaN is the same as NaN here
    except (TypeError, ValueError):  # what compares in some other way, such as an array of texts
        return a is b


# --- one request for all ----------------------------------------------------------------------------------------------


def _all_at_once(
    run: Run, call: Call, operands: Sequence[torch.Tensor], dims: Sequence[int | None], n_batch: int
) -> Outputs:
    """One request with the batch as first dimension of every array; of those without, the component sees 1 or n."""
    n_unmapped = 1 if call.vmap_method == "expand_dims" else n_batch

    def moved(x: torch.Tensor, dim: int | None, is_array: bool) -> torch.Tensor:
        if dim is not None:
            return x.movedim(dim, 0)
        return x.expand(n_unmapped, *x.shape) if is_array else x

    def with_batch(keys: Keys, leaf: Any) -> Any:
        if not isinstance(leaf, Constant):
            return leaf
        return Constant(np.broadcast_to(leaf.value, (n_unmapped, *leaf.value.shape)))

    larger = dataclasses.replace(call, inputs=map_leaves(with_batch, call.inputs))
    moved_operands = [moved(x, dim, of.is_array) for x, dim, of in zip(operands, dims, call.operands, strict=True)]
    tree, tensors = _with_all_arrays_as_tensors(*run(larger, moved_operands))
    outputs = list(tensors)
    for keys, leaf in leaves_of(tree).items():
        if isinstance(leaf, Slot):
            outputs[leaf.index] = _with_whole_batch(call, keys, tensors[leaf.index], n_batch, n_unmapped)
    return tree, outputs


def _with_whole_batch(call: Call, keys: Keys, y: torch.Tensor, n_batch: int, n_unmapped: int) -> torch.Tensor:
    """An output at the size of the batch; of size 1 it may be where no mapped input has an influence on it."""
    if y.ndim == 0 or y.shape[0] not in (n_batch, n_unmapped):
        sizes = " or ".join(dict.fromkeys((str(n_batch), str(n_unmapped))))
        raise InvalidAnswer(
            f"vmap_method={call.vmap_method!r} needs outputs with the batch as their first dimension, of length "
            f"{sizes}, and Tesseract {call.tesseract.name!r} answered "
            f"{format_path(call.tesseract.schema.outputs, keys)!r} with shape {describe_shape(tuple(y.shape))}.\n"
            "It does not batch over a leading dimension; use vmap_method='sequential'.",
            tesseract=repr(call.tesseract),
            endpoint="apply",
        )
    return y.expand(n_batch, *y.shape[1:])


# --- both -------------------------------------------------------------------------------------------------------------


def _with_all_arrays_as_tensors(tree: Tree, tensors: Sequence[torch.Tensor], *, with_numbers: bool = False) -> Outputs:
    """The same outputs, with a slot and a tensor also where there was a NumPy array, or a plain number."""
    outputs = list(tensors)

    def slot(keys: Keys, leaf: Any) -> Any:
        if with_numbers and isinstance(leaf, bool | int | float):
            leaf = np.asarray(leaf, {bool: np.bool_, int: np.int64}.get(type(leaf), np.float64))
        if not isinstance(leaf, np.ndarray | np.generic) or leaf.dtype.name not in DTYPES:
            return leaf
        outputs.append(to_tensor(np.asarray(leaf)))
        return Slot(len(outputs) - 1)

    return map_leaves(slot, tree), outputs
