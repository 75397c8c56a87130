"""Shapes and structure of a Tesseract's outputs: what `abstract_eval` says, asked once and remembered.

Here also: what an answer must look like to be taken for one. Not here: inputs, and the arrays themselves.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from jax.tree_util import DictKey, SequenceKey

from tesseract_flow.autodiff.call import ARRAY, Layout, Static
from tesseract_flow.client import AbstractTesseract
from tesseract_flow.errors import Fault, InvalidAnswer, PrecisionError, ShapesUnknown
from tesseract_flow.schema import (
    ArrayField,
    Keys,
    ModelField,
    array_leaves,
    check_inputs,
    field_at,
    follow,
    format_path,
)

Outputs: TypeAlias = tuple[Layout, tuple[jax.ShapeDtypeStruct, ...]]  # structure, and shape and dtype per array

_REMEMBERED = 4096  # structures; an entry is a few kilobytes at most
_memory: OrderedDict[Any, Outputs] = OrderedDict()
_memory_lock = threading.Lock()


class _Abstract:
    """Shape and dtype where a tree has an array."""

    def __init__(self, shape: Any, dtype: Any):
        self.shape = tuple(int(n) for n in shape)
        self.dtype = np.dtype(dtype)


def output_layout(handle: AbstractTesseract, layout: Layout, operands: Sequence[Any]) -> Outputs:
    """Structure, shapes and dtypes of the outputs, once per structure of the inputs: by a request to `abstract_eval`.

    If the handle allows it, a component without `abstract_eval` is asked by an example instead, which needs values.

    Args:
        operands: arrays, or something else with shape and dtype.
    """
    key = _key(handle, layout, operands)
    known = _recall(key)
    if known is None and "abstract_eval" not in handle.schema.endpoints:
        _learn_p.bind(*operands, tesseract=handle, layout=layout)
        known = _recall(key)
    if known is None:
        known = _ask_abstract_eval(handle, layout, operands)  # unlocked: a slow server holds up nobody else
        _remember(key, known)
    return known


def learn_outputs(handle: AbstractTesseract, layout: Layout, operands: Sequence[Any], answer: Any) -> None:
    """Remember the form of outputs that are there already."""
    arrays = output_arrays(handle, "apply", answer)

    def abstract(path: tuple[Any, ...], leaf: Any) -> Any:
        field = arrays.get(keys_of(path))
        if field is None:
            return leaf
        array = np.asarray(leaf, field.dtype)
        return _Abstract(array.shape, array.dtype)

    tree = jax.tree_util.tree_map_with_path(abstract, answer)
    _remember(_key(handle, layout, operands), _outputs(handle, tree, arrays))


def _key(handle: AbstractTesseract, layout: Layout, operands: Sequence[Any]) -> Any:
    return handle, layout, tuple((tuple(x.shape), np.dtype(x.dtype)) for x in operands), is_x64_on()


def _recall(key: Any) -> Outputs | None:
    with _memory_lock:
        if key in _memory:
            _memory.move_to_end(key)
        return _memory.get(key)


def _remember(key: Any, outputs: Outputs) -> None:
    with _memory_lock:
        _memory[key] = outputs
        while len(_memory) > _REMEMBERED:
            _memory.popitem(last=False)


def _ask_abstract_eval(handle: AbstractTesseract, layout: Layout, operands: Sequence[Any]) -> Outputs:
    asked = layout.fill([{"shape": list(x.shape), "dtype": np.dtype(x.dtype).name} for x in operands])
    answer = _read_abstract(handle.schema.outputs, handle.abstract_eval(asked), ())
    return _outputs(handle, answer, output_arrays(handle, "abstract_eval", answer))


def _outputs(handle: AbstractTesseract, answer: Any, fields: Mapping[Keys, ArrayField]) -> Outputs:
    """From a tree with `_Abstract` where it has arrays."""
    root = handle.schema.outputs
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(answer)
    leaves, keys, paths, differentiable, any_rank, avals = [], [], [], [], [], []
    for path, leaf in with_paths:
        at = keys_of(path)
        if not isinstance(leaf, _Abstract):
            leaves.append(Static(leaf))
            continue
        leaves.append(ARRAY)
        keys.append(at)
        paths.append(format_path(root, at))
        differentiable.append(at in fields and fields[at].differentiable)
        any_rank.append(at in fields and fields[at].shape is None)
        require_precision(handle, paths[-1], leaf.dtype)
        avals.append(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    layout = Layout(treedef, tuple(leaves), tuple(keys), tuple(paths), tuple(differentiable), tuple(any_rank))
    return layout, tuple(avals)


# --- learning by an example -------------------------------------------------------------------------------------------
# A primitive, because only JAX's rules get to the values inside of tracers: that of `jvp` to the primals, that of
# `vmap` to an element. Where there are no values, under `jit`, its shape rule says so.

_learn_p = Primitive("tesseract_learn_shapes")
_learn_p.multiple_results = True


@_learn_p.def_impl
def _learn(*operands: Any, tesseract: AbstractTesseract, layout: Layout) -> list[Any]:
    if not tesseract.learns_shapes:
        raise _no_shapes(tesseract)
    answer = tesseract.apply(layout.fill([np.asarray(x) for x in operands]))
    learn_outputs(tesseract, layout, operands, answer)
    return []


@_learn_p.def_abstract_eval
def _learn_without_values(*operands: Any, tesseract: AbstractTesseract, layout: Layout) -> list[Any]:
    raise _no_shapes(tesseract)


def _no_shapes(tesseract: AbstractTesseract) -> ShapesUnknown:
    remedy = (
        "Call apply_tesseract once with inputs of these shapes, outside of jit: it then remembers what came out."
        if tesseract.learns_shapes
        else "Add abstract_eval to its tesseract_api.py, or call apply_tesseract eagerly, outside of transformations. "
        "With open_tesseract(..., derive=...) shapes are learned from a call, where values are at hand."
    )
    return ShapesUnknown(
        f"Tesseract {tesseract.name!r} has no endpoint 'abstract_eval', which JAX transformations (jit, grad, vmap, "
        f"...) need to know the outputs' shapes before anything runs.\n{remedy}",
        by_example=tesseract.learns_shapes,
        tesseract=repr(tesseract),
    )


def _learn_jvp(primals: Any, tangents: Any, **params: Any) -> tuple[list[Any], list[Any]]:
    return _learn_p.bind(*primals, **params), []


def _learn_batch(operands: Any, axes: Any, **params: Any) -> tuple[list[Any], list[Any]]:
    elements = [x if axis is None else jnp.take(x, 0, axis) for x, axis in zip(operands, axes, strict=True)]
    return _learn_p.bind(*elements, **params), []


ad.primitive_jvps[_learn_p] = _learn_jvp
batching.primitive_batchers[_learn_p] = _learn_batch


# --- reading answers --------------------------------------------------------------------------------------------------


def _read_abstract(root: ModelField, tree: Any, at: Keys) -> Any:
    """`{"shape": ..., "dtype": ...}` where the schema has an array → `_Abstract`."""
    if isinstance(tree, Mapping):
        if set(tree) == {"shape", "dtype"} and not isinstance(field_at(root, at), ModelField):
            try:
                return _Abstract(tree["shape"], tree["dtype"])
            except (TypeError, ValueError) as error:
                raise InvalidAnswer(
                    f"abstract_eval answered {dict(tree)!r} for {format_path(root, at)!r}: {error}"
                ) from error
        return {key: _read_abstract(root, value, (*at, key)) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_read_abstract(root, value, (*at, i)) for i, value in enumerate(tree)]
    return tree


def output_arrays(handle: AbstractTesseract, endpoint: str, answer: Any) -> dict[Keys, ArrayField]:
    """Where an answer has arrays. What the schema promises of them must hold; a server's word is not trusted.

    Plain values are left alone: the component validated them, and in-process ones have richer types than JSON's.
    """
    root = handle.schema.outputs
    if not isinstance(answer, Mapping):
        faults = [
            Fault("", f"expected an object with the fields {', '.join(root.fields)}, got {type(answer).__name__}")
        ]
    else:
        faults = [fault for fault in check_inputs(root, answer) if fault.kind == "missing_field"]
    arrays = array_leaves(root, answer)
    for keys, field in arrays:
        faults += [Fault(format_path(root, keys), fault.message) for fault in check_inputs(field, follow(answer, keys))]
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise InvalidAnswer(
            f"Tesseract {handle.name!r} answered {endpoint!r} with outputs that do not fit its own schema:\n{lines}",
            tesseract=repr(handle),
            endpoint=endpoint,
        )
    return dict(arrays)


def require_precision(handle: AbstractTesseract, path: str, dtype: np.dtype | str | None) -> None:
    if dtype is not None and not is_x64_on() and jax.dtypes.canonicalize_dtype(dtype) != np.dtype(dtype):
        raise PrecisionError(
            f"Output {path!r} of Tesseract {handle.name!r} is {np.dtype(dtype)}, and JAX's 64-bit mode is off, so it "
            "would lose half of its digits.\n"
            'Turn it on at the top of the program: jax.config.update("jax_enable_x64", True), or set JAX_ENABLE_X64=1.'
        )


def is_x64_on() -> bool:
    return jax.config.jax_enable_x64  # type: ignore[attr-defined]


def keys_of(path: tuple[Any, ...]) -> Keys:
    """JAX's path as keys of dicts and indices of lists; other containers have no place in a tree of the protocol."""
    return tuple(
        entry.key if isinstance(entry, DictKey) else entry.idx if isinstance(entry, SequenceKey) else str(entry)
        for entry in path
    )
