"""Shapes and structure of a Tesseract's outputs: what `abstract_eval` says, asked once and remembered.

Where there is no `abstract_eval`, an example says it: the next call with values. Here also: what an answer must look
like to be taken for one. Not here: inputs, and the arrays themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from jax.tree_util import DictKey, SequenceKey

from tesseract_flow.autodiff.form import Abstract, Form
from tesseract_flow.autodiff.layout import InputLayout, OutputLayout, Slot
from tesseract_flow.autodiff.memory import recall, remember
from tesseract_flow.autodiff.plain import SHAPE
from tesseract_flow.autodiff.rehearsal import current_rehearsal
from tesseract_flow.client import AbstractTesseract
from tesseract_flow.errors import Fault, InvalidAnswer, PrecisionError, ShapesUnknown
from tesseract_flow.schema import (
    DTYPES,
    ArrayField,
    Keys,
    ModelField,
    array_leaves,
    check_inputs,
    field_at,
    follow,
    format_path,
    is_same_kind,
    parse_path,
)

Outputs: TypeAlias = tuple[OutputLayout, tuple[jax.ShapeDtypeStruct, ...]]  # structure; shape and dtype per slot

_LARGEST = 2**40  # bytes of one array; what is said to be larger is a mistake, or a way to fill somebody's memory


def output_layout(handle: AbstractTesseract, layout: InputLayout, operands: Sequence[Any]) -> Outputs:
    """Structure, shapes and dtypes of the outputs, once per structure of the inputs: by a request to `abstract_eval`.

    A component without `abstract_eval` is asked by an example instead, which needs values.

    Args:
        operands: arrays, or something else with shape and dtype.
    """
    key = _key(layout, operands)
    known = recall(handle, key)
    if known is None and not has_shapes(handle):
        _learn_p.bind(*operands, tesseract=handle, layout=layout)
        known = recall(handle, key)
    if known is None:
        known = _ask_abstract_eval(handle, layout, operands)  # unlocked: a slow server holds up nobody else
        remember(handle, key, known)
    return known


def has_shapes(handle: AbstractTesseract) -> bool:
    """Whether it can be asked for shapes."""
    return "abstract_eval" in handle.schema.endpoints


def learn_outputs(handle: AbstractTesseract, layout: InputLayout, operands: Sequence[Any], answer: Any) -> None:
    """Remember the form of outputs that are there already."""
    arrays = output_arrays(handle, "apply", answer)

    def abstract(path: tuple[Any, ...], leaf: Any) -> Any:
        field = arrays.get(keys_of(path))
        if field is None:
            return leaf
        array = np.asarray(leaf, field.dtype)
        return Abstract(array.shape, array.dtype)

    tree = jax.tree_util.tree_map_with_path(abstract, answer)
    remember(handle, _key(layout, operands), _outputs(handle, "apply", tree, arrays), confirmed=True)


def _key(layout: InputLayout, operands: Sequence[Any]) -> Any:
    return layout, tuple((tuple(x.shape), np.dtype(x.dtype)) for x in operands), is_x64_on()


def _ask_abstract_eval(handle: AbstractTesseract, layout: InputLayout, operands: Sequence[Any]) -> Outputs:
    asked = layout.fill([{"shape": list(x.shape), "dtype": np.dtype(x.dtype).name} for x in layout.sent(operands)])
    answer = _read_abstract(handle, handle.schema.outputs, handle.abstract_eval(asked), ())
    return _outputs(handle, "abstract_eval", answer, output_arrays(handle, "abstract_eval", answer))


def _outputs(handle: AbstractTesseract, endpoint: str, answer: Any, fields: Mapping[Keys, ArrayField]) -> Outputs:
    """From a tree with `Abstract` where it has arrays."""
    root = handle.schema.outputs
    form = Form()
    tree = form.slots(root, answer, ())
    if form.faults:
        faults = [Fault(format_path(root, keys), message) for keys, message in form.faults]
        raise _unfit(handle, endpoint, faults)
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    leaves, keys, paths, differentiable, any_rank, avals = [], [], [], [], [], []
    for path, leaf in with_paths:
        at = keys_of(path)
        keys.append(at)
        paths.append(format_path(root, at))
        field = fields.get(at) if isinstance(leaf, Abstract) else None
        differentiable.append(field is not None and field.differentiable)
        any_rank.append(field is not None and field.shape is None)
        if isinstance(leaf, Abstract):
            leaves.append(Slot.ARRAY)
            dtype = leaf.dtype if field is None or field.dtype is None else np.dtype(field.dtype)
            require_precision(handle, paths[-1], dtype)
            avals.append(jax.ShapeDtypeStruct(leaf.shape, dtype))
        elif leaf is Slot.PLAIN:
            leaves.append(leaf)
            avals.append(jax.ShapeDtypeStruct(SHAPE, np.dtype(np.uint32)))
        else:  # the type of a number
            leaves.append(Slot.NUMBER)
            dtype = jax.dtypes.canonicalize_dtype(np.dtype(leaf))
            avals.append(jax.ShapeDtypeStruct((), dtype, weak_type=leaf is not bool))
    layout = OutputLayout(
        treedef,
        tuple(leaves),
        tuple(keys),
        tuple(paths),
        tuple(differentiable),
        tuple(any_rank),
        tuple(form.absent),
        tuple(form.lengths),
    )
    return layout, tuple(avals)


# --- learning by an example -------------------------------------------------------------------------------------------
# A primitive, because only JAX's rules get to the values inside of tracers: that of `jvp` to the primals, that of
# `vmap` to an element. Where there are no values, under `jit`, its shape rule says so.

_learn_p = Primitive("tesseract_learn_shapes")
_learn_p.multiple_results = True


@_learn_p.def_impl
def _learn(*operands: Any, tesseract: AbstractTesseract, layout: InputLayout) -> list[Any]:
    arguments = (layout.request(tesseract, [np.asarray(x) for x in operands]),)
    known = current_rehearsal()
    if known is None:
        answer = tesseract.apply(*arguments)
    else:
        answer = known.ask(tesseract, "apply", arguments, None)
        known.keep(tesseract, "apply", arguments, answer)  # for the call itself, which comes next
    learn_outputs(tesseract, layout, operands, answer)
    return []


@_learn_p.def_abstract_eval
def _learn_without_values(*operands: Any, tesseract: AbstractTesseract, layout: InputLayout) -> list[Any]:
    raise ShapesUnknown(
        f"Tesseract {tesseract.name!r} has no endpoint 'abstract_eval', and here, while JAX traces without values (in "
        "jit or lax control flow), nothing else tells the shapes of its outputs.\n"
        "Call it once with inputs of these shapes beforehand, as apply_tesseract(...) outside of jit: what comes out "
        "is remembered for as long as its handle lives. tf.concurrent in place of jit, jax.grad without jit, and "
        "tf.optimize do so by themselves. For good: add abstract_eval to its tesseract_api.py.",
        tesseract=repr(tesseract),
        endpoint="abstract_eval",
    )


def _learn_jvp(primals: Any, tangents: Any, **params: Any) -> tuple[list[Any], list[Any]]:
    return _learn_p.bind(*primals, **params), []


def _learn_batch(operands: Any, axes: Any, **params: Any) -> tuple[list[Any], list[Any]]:
    elements = [x if axis is None else jnp.take(x, 0, axis) for x, axis in zip(operands, axes, strict=True)]
    return _learn_p.bind(*elements, **params), []


ad.primitive_jvps[_learn_p] = _learn_jvp
batching.primitive_batchers[_learn_p] = _learn_batch


# --- reading answers --------------------------------------------------------------------------------------------------


def _read_abstract(handle: AbstractTesseract, root: ModelField, tree: Any, at: Keys) -> Any:
    """`{"shape": ..., "dtype": ...}` where the schema has an array → `Abstract`."""
    if isinstance(tree, Mapping):
        if set(tree) == {"shape", "dtype"} and not isinstance(field_at(root, at), ModelField):
            try:
                return _abstract(tree["shape"], tree["dtype"])
            except (TypeError, ValueError) as error:
                what = f"{dict(tree)!r:.200} is no shape and dtype: {error}"
                raise _unfit(handle, "abstract_eval", [Fault(format_path(root, at), what)]) from error
        return {key: _read_abstract(handle, root, value, (*at, key)) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_read_abstract(handle, root, value, (*at, i)) for i, value in enumerate(tree)]
    return tree


def _abstract(shape: Any, dtype: Any) -> Abstract:
    if not isinstance(shape, list | tuple | np.ndarray):
        raise TypeError("the shape is no list of lengths")
    lengths = [_length(n) for n in shape]
    name = np.dtype(dtype).name if dtype is not None else None
    if name not in DTYPES:
        raise TypeError(f"{dtype!r} is no dtype of the protocol")
    if math.prod(lengths) * np.dtype(name).itemsize > _LARGEST:
        raise ValueError("that is more than a TiB")
    return Abstract(lengths, name)


def _length(n: Any) -> int:
    # A float too, since JSON need not tell 3 from 3.0.
    is_whole = isinstance(n, int | np.integer) or (isinstance(n, float) and n.is_integer())
    if isinstance(n, bool) or not is_whole or n < 0:
        raise ValueError(f"{n!r} is no length")
    return int(n)


def output_arrays(handle: AbstractTesseract, endpoint: str, answer: Any) -> dict[Keys, ArrayField]:
    """Where an answer has arrays. What the schema promises of them must hold; a server's word is not trusted.

    Plain values are left alone: the component validated them, and in-process ones have richer types than JSON's.
    """
    root = handle.schema.outputs
    is_abstract = endpoint == "abstract_eval"
    if not isinstance(answer, Mapping):
        faults = [
            Fault("", f"expected an object with the fields {', '.join(root.fields)}, got {type(answer).__name__}")
        ]
    else:
        faults = [
            fault
            for fault in check_inputs(root, answer)
            if fault.kind == "missing_field"
            or (fault.kind == "unknown_field" and is_abstract)
            or (fault.kind == "wrong_kind" and _should_be_array(root, fault.path))
        ]
    arrays = array_leaves(root, answer)
    for keys, field in arrays:
        path, value = format_path(root, keys), follow(answer, keys)
        faults += [Fault(path, fault.message) for fault in check_inputs(field, value)]
        dtype = getattr(value, "dtype", None)
        if dtype is not None and field.dtype is not None and not is_same_kind(dtype, field.dtype):
            faults.append(Fault(path, f"expected {field.dtype}, got {dtype}"))
    if faults:
        raise _unfit(handle, endpoint, faults)
    return dict(arrays)


def _should_be_array(root: ModelField, path: str) -> bool:
    return isinstance(field_at(root, parse_path(path, root)), ArrayField)


def _unfit(handle: AbstractTesseract, endpoint: str, faults: Sequence[Fault]) -> InvalidAnswer:
    lines = "\n".join(f"  {fault}" for fault in faults)
    return InvalidAnswer(
        f"Tesseract {handle.name!r} answered {endpoint!r} with outputs that do not fit its own schema:\n{lines}",
        tesseract=repr(handle),
        endpoint=endpoint,
    )


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
