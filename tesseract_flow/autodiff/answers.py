"""From an answer to what JAX was promised of it: arrays of known shapes and dtypes. A server's word is not trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tesseract_flow.autodiff import memory
from tesseract_flow.autodiff.layout import OutputLayout, Slot
from tesseract_flow.autodiff.plain import to_words
from tesseract_flow.client import AbstractTesseract
from tesseract_flow.errors import InvalidAnswer, NonFiniteError
from tesseract_flow.exact import pack
from tesseract_flow.schema import ValueLost, cast, cast_number, follow, format_path, is_same_kind

CONTRADICTION = (
    "What abstract_eval said, or an earlier call where there is none, was something else. It is forgotten here, and "
    "what is traced anew asks again (for functions that jax.jit has compiled: jax.clear_caches()).\n"
    "Either abstract_eval does not agree with apply, or the form of the outputs depends on more than shapes."
)
FAULT = "Either its abstract_eval does not agree with its other endpoints, or the endpoint has a fault."


def read_outputs(
    tesseract: AbstractTesseract,
    output: OutputLayout,
    avals: Sequence[jax.ShapeDtypeStruct],
    answer: Any,
    suspicion: str = CONTRADICTION,
) -> dict[str, np.ndarray]:
    """What an answer of `apply` has in each slot, by path.

    Raises:
        InvalidAnswer: it is of another form than was foreseen, which is then forgotten; or a plain value that the
            traced function has looked at is another one now.
    """
    outputs: dict[str, np.ndarray] = {}
    try:
        for slot, keys, path, aval in zip(output.slots, output.keys, output.paths, avals, strict=True):
            value = follow(answer, keys)
            if slot is Slot.ARRAY:
                outputs[path] = checked(tesseract, "apply", path, value, aval, suspicion)
            elif slot is Slot.NUMBER:
                outputs[path] = _number(tesseract, path, value, aval.dtype)
            else:
                outputs[path] = to_words(value)
        if output.absent or output.lengths:
            _check_form(tesseract, output, answer)
    except InvalidAnswer:
        memory.forget(tesseract)
        raise
    memory.confirm(tesseract, (output, tuple(avals)))
    for keys, path, content in output.known:
        if pack(value := follow(answer, keys)) != content:
            raise _refused(
                tesseract,
                f"{path!r} = {value!r}; it was another value when the function was traced, and the function looks at "
                "it (in an if, a comparison, a text), so that what was traced may not hold here.\n"
                "Return it instead (as auxiliary data) and look at it after the call; or declare it a number, a bool "
                "or an array in the Tesseract's OutputSchema, and use jnp.where or jax.lax.cond.",
            )
    return outputs


def checked(
    tesseract: AbstractTesseract, endpoint: str, path: str, value: Any, expected: Any, suspicion: str = FAULT
) -> np.ndarray:
    """`value` as an array of the expected shape and dtype."""
    array = np.asarray(value)
    try:
        if array.shape != tuple(expected.shape) or not is_same_kind(array.dtype, expected.dtype):
            raise ValueLost("")
        return cast(array, expected.dtype)
    except ValueLost as error:
        detail = f" ({error})" if str(error) else ""
        raise _refused(
            tesseract,
            f"{path!r} of shape {array.shape} and dtype {array.dtype}; expected shape {tuple(expected.shape)} and "
            f"dtype {expected.dtype}{detail}.\n{suspicion}",
            endpoint,
        ) from None


def _number(tesseract: AbstractTesseract, path: str, value: Any, dtype: np.dtype) -> np.ndarray:
    """A plain number or flag as an array without dimensions."""
    if isinstance(value, np.generic | np.ndarray) and np.ndim(value) == 0:
        value = value.item()
    kinds = {"b": bool, "i": int}.get(dtype.kind, int | float)
    if isinstance(value, kinds) and (dtype.kind == "b" or not isinstance(value, bool)):
        try:
            return cast_number(value, dtype)
        except ValueLost as error:
            raise _refused(
                tesseract,
                f"{path!r} = {value!r}, which traced code works with as {dtype}: {error}.\n"
                'With 64 bits it may fit: jax.config.update("jax_enable_x64", True).',
            ) from None
    wanted = {"b": "a bool", "i": "an int"}.get(dtype.kind, "a number")
    raise _refused(tesseract, f"{path!r} = {value!r}, where the traced function expects {wanted}.\n{CONTRADICTION}")


def _check_form(tesseract: AbstractTesseract, output: OutputLayout, answer: Any) -> None:
    root = tesseract.schema.outputs
    for keys in output.absent:
        if follow(answer, keys) is not None:
            path = format_path(root, keys)
            raise _refused(tesseract, f"an array at {path!r}, where none was expected.\n{CONTRADICTION}")
    for keys, expected in output.lengths:
        part = follow(answer, keys)
        is_right_kind = isinstance(part, list | tuple if isinstance(expected, int) else Mapping)
        found = None if not is_right_kind else len(part) if isinstance(expected, int) else frozenset(part)
        if found != expected:
            unit = "items" if isinstance(expected, int) else "keys"
            names = [sorted(map(str, x)) if isinstance(x, frozenset) else x for x in (found, expected)]
            path = format_path(root, keys)
            raise _refused(tesseract, f"{names[0]} {unit} in {path!r}; expected {names[1]}.\n{CONTRADICTION}")


def _refused(tesseract: AbstractTesseract, what: str, endpoint: str = "apply") -> InvalidAnswer:
    return InvalidAnswer(
        f"Tesseract {tesseract.name!r} answered {endpoint!r} with {what}", tesseract=repr(tesseract), endpoint=endpoint
    )


def require_finite(
    tesseract: AbstractTesseract,
    endpoint: str,
    answer: Mapping[str, np.ndarray],
    given: Mapping[str, np.ndarray],
) -> None:
    """Raise `NonFiniteError` if an answer has NaN or inf, and tell whether what it was made from had some already."""
    for path, array in answer.items():
        if not (n_bad := _n_not_finite(array)):
            continue
        first = tuple(int(k) for k in np.argwhere(~np.isfinite(array))[0])
        known = [name for name, x in given.items() if _n_not_finite(x)]
        origin = (
            f"It was given some already: {', '.join(known)}." if known else "Everything that it was given is finite."
        )
        raise NonFiniteError(
            f"Tesseract {tesseract.name!r} answered {endpoint!r} with {path!r} not finite: {n_bad} of {array.size} "
            f"entries are NaN or inf, the first at {list(first)}.\n{origin}"
        )


def _n_not_finite(array: np.ndarray) -> int:
    return int(np.count_nonzero(~np.isfinite(array))) if array.dtype.kind in "fc" else 0
