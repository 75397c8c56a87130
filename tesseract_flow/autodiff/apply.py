"""`apply_tesseract`: a Tesseract as a function of JAX arrays, differentiable where its schema says so."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tesseract_flow import client
from tesseract_flow.autodiff.answers import checked, require_finite
from tesseract_flow.autodiff.call import Call, NanPolicy, Options, VmapMethod
from tesseract_flow.autodiff.handles import register_core_tesseracts
from tesseract_flow.autodiff.layout import InputLayout, Slot, Static, cast_input, misfit
from tesseract_flow.autodiff.plain import About, PlainOutput, revealed
from tesseract_flow.autodiff.primitives import apply_p, is_staging
from tesseract_flow.autodiff.rehearsal import current_rehearsal, current_script, rehearsal
from tesseract_flow.autodiff.shapes import (
    has_shapes,
    keys_of,
    learn_outputs,
    output_arrays,
    output_layout,
    require_precision,
)
from tesseract_flow.client import AbstractTesseract
from tesseract_flow.errors import Fault, InvalidInput, InvalidType, OptionError, did_you_mean
from tesseract_flow.schema import (
    ArrayField,
    Keys,
    ValueLost,
    array_leaves,
    array_templates,
    cast,
    check_inputs,
    follow,
    format_path,
    is_arraylike,
    lossless,
    plain_tree,
)

if TYPE_CHECKING:
    from tesseract_flow.client import TesseractLike


def apply_tesseract(
    tesseract: TesseractLike,
    inputs: Mapping[str, Any],
    *,
    vmap_method: VmapMethod | None = None,
    materialize_jacobian: bool | None = None,
    nan_policy: NanPolicy | None = None,
) -> Any:
    """Outputs of a Tesseract at `inputs`, as a tree of JAX arrays and plain values.

    Works eagerly and under `jit`, `grad`, `value_and_grad`, `vjp`, `jvp`, `jacfwd`, `jacrev`, `linearize`, `vmap`,
    `checkpoint` and inside `lax` control flow. Eagerly it costs one request. A transformation asks `abstract_eval` for
    the outputs' shapes, once per structure of the inputs; where there is no `abstract_eval`, an `apply` tells them.

    Outputs that are no arrays are what the component answers, in traced code as well. There numbers and flags are
    traced (without derivatives); what is left (text, None, lists of numbers) is a `PlainOutput`, which can be passed on
    and returned, and looked at when there are values again.

    Args:
        tesseract: a handle from `open_tesseract`, a URL, a path, or a `tesseract_core.Tesseract`.
        inputs: a tree that fits its `InputSchema`: arrays (or scalars) where that has arrays, plain values elsewhere.
        vmap_method: what `jax.vmap` makes of the call.

            - `"concurrent"`, which is also what None means: a request per element, several in flight at once (as many
              as the handle has lanes).
            - `"sequential"`: a request per element, one after the other.
            - `"expand_dims"`, `"broadcast_all"`: one request, in which all arrays have the batch as a new first
              dimension, of length 1 or of full length in those that are not mapped. The component must take it.
            - `"auto"`: one request if the schema has room for a batch dimension (`Array[..., dtype]`) in all outputs
              and all mapped inputs, the dimensions of the inputs line up, and `abstract_eval` says that the batch comes
              back; otherwise `"concurrent"`. Shapes do not show all: a component that looks along an axis counted from
              the front, or over a whole array (`x / x.max()`), mixes the elements of the batch.
            - `"auto_experimental"`: the same, but otherwise `"sequential"`; tesseract-jax's name.

        materialize_jacobian: what happens to many tangents or cotangents at one point (as in `jacfwd` and `jacrev`).
            None: one request to `jacobian` and products with it, if there is that endpoint, else a request per
            (co)tangent. True demands the former, False the latter.
        nan_policy: `"raise"` stops where a NaN or inf comes back, outputs and derivatives alike, and names the place;
            `"propagate"` lets it pass. None: as `jax.config.jax_debug_nans` says.

    Raises:
        InvalidInput: the inputs do not fit the schema. Raised before any request.
        InvalidType: a list or tuple where the schema wants an array, or a traced value where it wants a plain one.
        NotDifferentiable: a derivative that the schema does not offer.
        EndpointNotFound: a derivative that the component does not have.
        ShapesUnknown: a transformation without values, as `jit` is, and no `abstract_eval`.
        PlainValueUnknown: traced code looks at a plain output that is no number.
        PrecisionError: 64-bit outputs while JAX's x64 mode is off.
        NonFiniteError: NaN or inf, with `nan_policy="raise"`.
        OptionError: an option has a value that is not known.
        CallError: the request failed; see `tesseract_flow.errors`.
    """
    options = _options(vmap_method, materialize_jacobian, nan_policy)
    if (survey := _survey.get()) is not None:
        return survey(lambda handle, trees: _apply(handle, trees, options), tesseract, inputs)
    return _apply(tesseract, inputs, options)


_label: contextvars.ContextVar[str | None] = contextvars.ContextVar("label", default=None)


@contextlib.contextmanager
def labelled(label: str) -> Iterator[None]:
    """Calls that are traced inside are called so in plans and tasks, whatever their components are called."""
    token = _label.set(label)
    try:
        yield
    finally:
        _label.reset(token)


_survey: contextvars.ContextVar[Callable[..., Any] | None] = contextvars.ContextVar("survey", default=None)


@contextlib.contextmanager
def surveyed_by(survey: Callable[[Callable[[Any, Any], Any], Any, Any], Any]) -> Iterator[None]:
    """Inside, on this thread, `apply_tesseract` gives what `survey(proceed, tesseract, inputs)` does.

    `proceed(tesseract, inputs)` is what it would have done itself. For tracing only: nothing here is to be run.
    """
    token = _survey.set(survey)
    try:
        yield
    finally:
        _survey.reset(token)


def _apply(tesseract: TesseractLike, inputs: Mapping[str, Any], options: Options) -> Any:
    if not isinstance(tesseract, str):
        register_core_tesseracts()  # one may be in a tree that passes through JAX later
    handle = client.opened(tesseract)  # imported with the first call, and HTTP with the first address
    for template, field in array_templates(handle.schema.outputs):
        require_precision(handle, template, field.dtype)
    operands, layout = split_inputs(handle, inputs)
    script = current_script()
    number = None if script is None else script.next_call()
    if not is_staging() and not any(isinstance(x, Tracer) for x in operands):
        outputs = _apply_eagerly(handle, operands, layout, options)
    elif has_shapes(handle) or current_rehearsal() is not None:
        outputs = _apply_traced(handle, operands, layout, options, number)
    else:
        with rehearsal():  # a call that tells the shapes is the call itself, where there are values
            outputs = _apply_traced(handle, operands, layout, options, number)
    if script is not None:
        script.note(outputs)
    return outputs


def _apply_traced(
    handle: AbstractTesseract, operands: list[Any], layout: InputLayout, options: Options, number: int | None
) -> Any:
    """The call as an equation. Where there are values it is evaluated at once, by JAX's own rules."""
    output, out_avals = output_layout(handle, layout, operands)
    script = current_script()
    if script is not None:
        output, kept = output.knowing(script.values(output))
        out_avals = tuple(out_avals[k] for k in kept)
    call = Call(handle, layout, output, out_avals, options=options)
    # What the caller writes into an array later is nothing to a pullback, or to a trace.
    operands = [x.copy() if isinstance(x, np.ndarray) else x for x in operands]
    results = apply_p.bind(*operands, call=call)

    def seen(slot: Slot, path: str, keys: Keys, value: Any) -> Any:
        if slot is Slot.ARRAY or (slot is Slot.NUMBER and isinstance(value, Tracer)):
            return value
        if slot is Slot.NUMBER:
            return np.asarray(value).item()
        return revealed(PlainOutput.of(value, About(handle.name, path, None if number is None else (number, keys))))

    return output.fill([seen(*each) for each in zip(output.slots, output.paths, output.keys, results, strict=True)])


def _options(vmap_method: str | None, materialize_jacobian: bool | None, nan_policy: str | None) -> Options:
    for name, value, known in (
        ("vmap_method", vmap_method, get_args(VmapMethod)),
        ("nan_policy", nan_policy, get_args(NanPolicy)),
    ):
        if value is not None and value not in known:
            raise OptionError(
                f"{name}={value!r} is none of {', '.join(map(repr, known))}.{did_you_mean(str(value), known)}"
            )
    if materialize_jacobian not in (None, True, False):
        raise OptionError(f"materialize_jacobian={materialize_jacobian!r}; expected None, True or False.")
    if nan_policy is None:
        nan_policy = "raise" if jax.config.jax_debug_nans else "propagate"  # type: ignore[attr-defined]
    return Options(vmap_method or "concurrent", materialize_jacobian, nan_policy, _label.get())  # type: ignore[arg-type]


def _apply_eagerly(handle: AbstractTesseract, operands: list[Any], layout: InputLayout, options: Options) -> Any:
    """One request and no `abstract_eval`: nobody needs the shapes in advance."""
    primals = [np.asarray(x) for x in operands]
    inputs = layout.request(handle, primals)
    known = current_rehearsal()
    answer = handle.apply(inputs) if known is None else known.ask(handle, "apply", (inputs,), None)
    fields = output_arrays(handle, "apply", answer)
    if not has_shapes(handle):
        learn_outputs(handle, layout, operands, answer)
    arrays: dict[Keys, np.ndarray] = {}
    root = handle.schema.outputs
    for keys, field in fields.items():
        value = np.asarray(follow(answer, keys))
        expected = jax.ShapeDtypeStruct(value.shape, field.dtype or value.dtype)
        arrays[keys] = checked(handle, "apply", format_path(root, keys), value, expected)
    if options.nan_policy == "raise":
        given = {repr(path): x for path, x in zip(layout.paths, primals, strict=True)}
        found = {format_path(root, keys): array for keys, array in (arrays | _plain_floats(answer)).items()}
        require_finite(handle, "apply", found, given)

    def finished(path: tuple[Any, ...], leaf: Any) -> Any:
        array = arrays.get(keys_of(path))
        if array is None:
            return leaf
        require_precision(handle, format_path(root, keys_of(path)), array.dtype)
        return jnp.asarray(array)

    return jax.tree_util.tree_map_with_path(finished, answer)


def _plain_floats(answer: Any) -> dict[Keys, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(answer)
    return {keys_of(path): np.asarray(leaf) for path, leaf in leaves if isinstance(leaf, float)}


def split_inputs(handle: AbstractTesseract, inputs: Any) -> tuple[list[Any], InputLayout]:
    """Array operands in JAX's order, and the layout of everything else."""
    root = handle.schema.inputs
    inputs = plain_tree(root, inputs)
    _refuse_misfits(handle, inputs)
    fields = dict(array_leaves(root, inputs))
    # An object that offers itself as an array is one, even where JAX would take it apart.
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(inputs, is_leaf=is_arraylike)
    found = {keys_of(path): value for path, value in with_paths}
    operands, leaves, keys, paths, differentiable, any_rank, casts = [], [], [], [], [], [], []
    for at, value in found.items():
        field = fields.get(at)
        if field is None:
            leaves.append(Static(_plain(handle, format_path(root, at), value)))
            continue
        path = format_path(root, at)
        operand, later = _operand(handle, path, value, field)
        operands.append(operand)
        casts.append(later)
        leaves.append(Slot.ARRAY)
        keys.append(at)
        paths.append(path)
        differentiable.append(field.differentiable)
        any_rank.append(field.shape is None)
    columns = (leaves, keys, paths, differentiable, any_rank, casts)
    return operands, InputLayout(treedef, *map(tuple, columns))


def _refuse_misfits(handle: AbstractTesseract, inputs: Any) -> None:
    faults = check_inputs(handle.schema.inputs, inputs)
    if faults:
        is_type = all(fault.kind == "list_for_array" for fault in faults)
        raise misfit(handle, faults, InvalidType if is_type else InvalidInput)


def _operand(handle: AbstractTesseract, path: str, value: Any, field: ArrayField) -> tuple[Any, np.dtype | None]:
    """`value` as an array at full size where the schema broadcasts, and the dtype to which the call must convert it.

    Broadcasting on this side, and casting where that loses nothing, makes them part of the traced function, so that JAX
    differentiates them: a server that broadcasts (1,) to (3,) would answer a pullback with three numbers where one is
    due.
    """
    if (as_jax := getattr(value, "__jax_array__", None)) is not None:
        value = as_jax()
    is_jax = isinstance(value, jax.Array)
    dtype = None if field.dtype is None else np.dtype(field.dtype)
    if dtype is not None and is_jax:
        dtype = jax.dtypes.canonicalize_dtype(dtype)
    if not isinstance(value, Tracer):
        # Without what a subclass adds: masks, or the weak types of JAX's own constants.
        array = np.asarray(value)
        if not is_jax and not jax.config.jax_enable_x64 and is_staging():  # type: ignore[attr-defined]
            _refuse_narrowing(handle, path, array, array.dtype if dtype is None else dtype)
        if dtype is not None and array.dtype != dtype:
            if isinstance(value, bool | int | float | complex) and not isinstance(value, np.generic):
                array = np.asarray(value, dtype)  # whether it fits was looked at
            else:
                array = cast_input(handle, array, dtype, path)
            value = array
        elif not is_jax:
            value = array
    later = None
    if dtype is not None and isinstance(value, jax.Array):
        if value.dtype != dtype and not lossless(value.dtype, dtype):
            later, dtype = dtype, value.dtype
        # Weak types are converted too: the gradient is then weak where the input is, as elsewhere in JAX.
        if value.dtype != dtype or getattr(value, "weak_type", False):
            value = jax.lax.convert_element_type(value, dtype)
    if field.shape is not None:
        shape = tuple(have if want is None else want for have, want in zip(value.shape, field.shape, strict=True))
        if shape != value.shape:
            value = (jnp if isinstance(value, jax.Array) else np).broadcast_to(value, shape)
    return value, later


def _refuse_narrowing(handle: AbstractTesseract, path: str, array: np.ndarray, dtype: np.dtype) -> None:
    """What JAX records in its 32-bit mode it makes narrower, without a word."""
    narrow = jax.dtypes.canonicalize_dtype(dtype)
    if narrow == dtype:
        return
    try:
        cast(array, narrow)
    except ValueLost as error:
        message = f'{error}, to which JAX converts it while tracing; jax.config.update("jax_enable_x64", True) keeps it'
        raise misfit(handle, [Fault(path, message, "out_of_range")]) from None


def _plain(handle: AbstractTesseract, path: str, value: Any) -> Any:
    if isinstance(value, Tracer):
        raise InvalidType(
            f"Input {path!r} of Tesseract {handle.name!r} is not an array in its schema, so it must be a plain Python "
            f"value, but it is traced by JAX ({value.aval}).\n"
            "Close over it, mark it static (jax.jit's static_argnames, eqx.filter_jit), or split it off with "
            "equinox.partition. To vary it in traced code, declare it an array in the Tesseract's schema, such as "
            "Float64 or Differentiable[Float64].",
            tesseract=repr(handle),
            endpoint="apply",
        )
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return value.item() if value.ndim == 0 else np.array(value)
    return value
