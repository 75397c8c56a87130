"""`apply_tesseract`: a Tesseract as a function of JAX arrays, differentiable where its schema says so."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import DictKey, SequenceKey

from tesseract_flow.autodiff.call import ARRAY, Call, Layout, Static
from tesseract_flow.autodiff.primitives import apply_p, is_staging
from tesseract_flow.client import AbstractTesseract, TesseractLike, open_tesseract
from tesseract_flow.errors import Fault, InvalidAnswer, InvalidInput, InvalidType, PrecisionError, ShapesUnknown
from tesseract_flow.schema import (
    ArrayField,
    Keys,
    ModelField,
    array_leaves,
    array_templates,
    check_inputs,
    field_at,
    follow,
    format_path,
)


def apply_tesseract(tesseract: TesseractLike, inputs: Mapping[str, Any]) -> Any:
    """Outputs of a Tesseract at `inputs`, as a tree of JAX arrays and plain values.

    Works eagerly and under `jit`, `grad`, `value_and_grad`, `vjp`, `jvp`, `vmap` and inside `lax` control flow. Eagerly
    it costs one request. A transformation asks `abstract_eval` for the outputs' shapes, once per structure of the
    inputs; non-array outputs then carry the values that `abstract_eval` gives.

    Args:
        tesseract: a handle from `open_tesseract`, a URL, a path, or a `tesseract_core.Tesseract`.
        inputs: a tree that fits its `InputSchema`: arrays (or scalars) where that has arrays, plain values elsewhere.

    Raises:
        InvalidInput: the inputs do not fit the schema. Raised before any request.
        InvalidType: a list or tuple where the schema wants an array, or a traced value where it wants a plain one.
        NotDifferentiable: a derivative that the schema does not offer.
        ShapesUnknown: a transformation, and no `abstract_eval`.
        PrecisionError: 64-bit outputs while JAX's x64 mode is off.
        CallError: the request failed; see `tesseract_flow.errors`.
    """
    handle = open_cached(tesseract)
    for template, field in array_templates(handle.schema.outputs):
        _require_precision(handle, template, field.dtype)
    operands, layout = _split_inputs(handle, inputs)
    if not is_staging() and not any(isinstance(x, Tracer) for x in operands):
        return _apply_eagerly(handle, operands, layout)
    output, out_avals = output_layout(handle, layout, operands)
    outputs = apply_p.bind(*operands, call=Call(handle, layout, output, out_avals))
    return output.fill(outputs)


@functools.lru_cache(maxsize=64)
def _open_text(source: Any) -> AbstractTesseract:
    return open_tesseract(source)


def open_cached(source: TesseractLike) -> AbstractTesseract:
    """`open_tesseract`, remembering what it opened for a text: the schema is then read once and not per call."""
    return _open_text(source) if isinstance(source, str) else open_tesseract(source)


def _apply_eagerly(handle: AbstractTesseract, operands: list[Any], layout: Layout) -> Any:
    """One request and no `abstract_eval`: nobody needs the shapes in advance."""
    answer = handle.apply(layout.fill([np.asarray(x) for x in operands]))
    fields = _output_arrays(handle, "apply", answer)

    def finished(path: tuple[Any, ...], leaf: Any) -> Any:
        field = fields.get(_keys_of(path))
        if field is None:
            return leaf
        array = np.asarray(leaf, field.dtype)
        _require_precision(handle, format_path(handle.schema.outputs, _keys_of(path)), array.dtype)
        return jnp.asarray(array)

    return jax.tree_util.tree_map_with_path(finished, answer)


def _split_inputs(handle: AbstractTesseract, inputs: Any) -> tuple[list[Any], Layout]:
    """Array operands in JAX's order, and the layout of everything else."""
    root = handle.schema.inputs
    _refuse_misfits(handle, inputs)
    fields = dict(array_leaves(root, inputs))
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(inputs)
    found = {_keys_of(path): value for path, value in with_paths}
    if hidden := fields.keys() - found.keys():
        where = ", ".join(sorted(repr(format_path(root, at)) for at in hidden))
        raise InvalidType(
            f"Inputs {where} of Tesseract {handle.name!r} sit in a container that JAX does not take apart by keys and "
            "indices (such as a mapping proxy or a named tuple). Use dicts and lists.",
            tesseract=repr(handle),
            endpoint="apply",
        )
    operands, leaves, keys, paths, differentiable = [], [], [], [], []
    for at, value in found.items():
        field = fields.get(at)
        if field is None:
            leaves.append(Static(_plain(handle, format_path(root, at), value)))
            continue
        operands.append(_operand(value, field))
        leaves.append(ARRAY)
        keys.append(at)
        paths.append(format_path(root, at))
        differentiable.append(field.differentiable)
    return operands, Layout(treedef, tuple(leaves), tuple(keys), tuple(paths), tuple(differentiable))


def _refuse_misfits(handle: AbstractTesseract, inputs: Any) -> None:
    faults = check_inputs(handle.schema.inputs, inputs)
    if not faults:
        return
    lines = "\n".join(f"  {fault}" for fault in faults)
    message = f"The inputs do not fit the schema of Tesseract {handle.name!r}:\n{lines}\nNothing was sent."
    if all(fault.kind == "list_for_array" for fault in faults):
        raise InvalidType(message, faults=faults, tesseract=repr(handle), endpoint="apply")
    raise InvalidInput(message, faults=faults, tesseract=repr(handle), endpoint="apply")


def _operand(value: Any, field: ArrayField) -> Any:
    """`value` as an array of the field's dtype, at full size where the schema broadcasts.

    Casting and broadcasting on this side makes them part of the traced function, so that JAX differentiates them: a
    server that broadcasts (1,) to (3,) would answer a pullback with three numbers where one is due.
    """
    if not isinstance(value, jax.Array | np.ndarray):
        value = np.asarray(value, dtype=field.dtype if isinstance(value, bool | int | float | complex) else None)
    if field.dtype is not None:
        dtype = jax.dtypes.canonicalize_dtype(field.dtype) if isinstance(value, jax.Array) else np.dtype(field.dtype)
        if value.dtype != dtype:
            value = jax.lax.convert_element_type(value, dtype) if isinstance(value, jax.Array) else value.astype(dtype)
    if field.shape is not None:
        shape = tuple(have if want is None else want for have, want in zip(value.shape, field.shape, strict=True))
        if shape != value.shape:
            value = (jnp if isinstance(value, jax.Array) else np).broadcast_to(value, shape)
    return value


def _plain(handle: AbstractTesseract, path: str, value: Any) -> Any:
    if isinstance(value, Tracer):
        raise InvalidType(
            f"Input {path!r} of Tesseract {handle.name!r} is not an array in its schema, so it must be a plain Python "
            f"value, but it is traced by JAX ({value.aval}).\n"
            "Close over it, mark it static (jax.jit's static_argnames, eqx.filter_jit), or split it off with "
            "equinox.partition.",
            tesseract=repr(handle),
            endpoint="apply",
        )
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return value.item() if value.ndim == 0 else np.asarray(value)
    return value


# --- what abstract_eval says, remembered ------------------------------------------------------------------------------

_REMEMBERED = 4096  # structures; an entry is a few kilobytes at most
_memory: OrderedDict[Any, tuple[Layout, tuple[jax.ShapeDtypeStruct, ...]]] = OrderedDict()
_memory_lock = threading.Lock()


class _Abstract:
    """Shape and dtype where a tree has an array."""

    def __init__(self, shape: Any, dtype: Any):
        self.shape = tuple(int(n) for n in shape)
        self.dtype = np.dtype(dtype)


def output_layout(
    handle: AbstractTesseract, layout: Layout, operands: list[Any]
) -> tuple[Layout, tuple[jax.ShapeDtypeStruct, ...]]:
    """Structure, shapes and dtypes of the outputs: by one `abstract_eval` request per structure of the inputs."""
    key = (handle, layout, tuple((x.shape, x.dtype) for x in operands), _is_x64_on())
    with _memory_lock:
        if key in _memory:
            _memory.move_to_end(key)
            return _memory[key]
    answer = _ask_abstract_eval(handle, layout, operands)  # unlocked: a slow server holds up nobody else
    with _memory_lock:
        _memory[key] = answer
        while len(_memory) > _REMEMBERED:
            _memory.popitem(last=False)
    return answer


def _ask_abstract_eval(
    handle: AbstractTesseract, layout: Layout, operands: list[Any]
) -> tuple[Layout, tuple[jax.ShapeDtypeStruct, ...]]:
    if "abstract_eval" not in handle.schema.endpoints:
        raise ShapesUnknown(
            f"Tesseract {handle.name!r} has no endpoint 'abstract_eval', which JAX transformations (jit, grad, vmap, "
            "...) need to know the outputs' shapes before anything runs.\n"
            "Add abstract_eval to its tesseract_api.py, or call apply_tesseract eagerly, outside of transformations.",
            tesseract=repr(handle),
            endpoint="abstract_eval",
        )
    asked = layout.fill([{"shape": list(x.shape), "dtype": np.dtype(x.dtype).name} for x in operands])
    root = handle.schema.outputs
    answer = _read_abstract(root, handle.abstract_eval(asked), ())
    fields = _output_arrays(handle, "abstract_eval", answer)
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(answer)
    leaves, keys, paths, differentiable, avals = [], [], [], [], []
    for path, leaf in with_paths:
        at = _keys_of(path)
        if not isinstance(leaf, _Abstract):
            leaves.append(Static(leaf))
            continue
        leaves.append(ARRAY)
        keys.append(at)
        paths.append(format_path(root, at))
        differentiable.append(at in fields and fields[at].differentiable)
        _require_precision(handle, paths[-1], leaf.dtype)
        avals.append(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return Layout(treedef, tuple(leaves), tuple(keys), tuple(paths), tuple(differentiable)), tuple(avals)


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


def _output_arrays(handle: AbstractTesseract, endpoint: str, answer: Any) -> dict[Keys, ArrayField]:
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


def _require_precision(handle: AbstractTesseract, path: str, dtype: np.dtype | str | None) -> None:
    if dtype is not None and not _is_x64_on() and jax.dtypes.canonicalize_dtype(dtype) != np.dtype(dtype):
        raise PrecisionError(
            f"Output {path!r} of Tesseract {handle.name!r} is {np.dtype(dtype)}, and JAX's 64-bit mode is off, so it "
            "would lose half of its digits.\n"
            'Turn it on at the top of the program: jax.config.update("jax_enable_x64", True), or set JAX_ENABLE_X64=1.'
        )


def _is_x64_on() -> bool:
    return jax.config.jax_enable_x64  # type: ignore[attr-defined]


def _keys_of(path: tuple[Any, ...]) -> Keys:
    """JAX's path as keys of dicts and indices of lists; other containers have no place in a tree of the protocol."""
    return tuple(
        entry.key if isinstance(entry, DictKey) else entry.idx if isinstance(entry, SequenceKey) else str(entry)
        for entry in path
    )
