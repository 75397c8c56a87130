"""What is done with a value on its way: entries are selected, keys renamed, shapes and units changed.

Each step refuses what would go wrong without a word: JAX gives the last entry where an index is beyond the end, and a
slice that is too long ends early.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tesseract_flow.errors import PipelineError, did_you_mean
from tesseract_flow.pipeline.description import Connection

_PART = re.compile(r"\s*(?:(?P<dots>\.\.\.)|(?P<index>-?\d+)|(?P<slice>(-?\d+)?\s*:\s*(-?\d+)?(\s*:\s*(-?\d+)?)?))\s*")


def parse_selection(selection: int | str | Sequence[int]) -> Any:
    """`":, 0"` → an index as NumPy takes it.

    Raises:
        PipelineError: it is no index.
    """
    if not isinstance(selection, str):
        return selection if isinstance(selection, int) else list(selection)
    text = selection.strip().removeprefix("[").removesuffix("]")
    parts: list[Any] = []
    for piece in text.split(","):
        found = _PART.fullmatch(piece)
        if found is None:
            raise PipelineError(
                f"select: {selection!r} is no selection; write indices and slices as NumPy does, such as 0, '1:3', "
                "':, 0' or '..., -1', or a list of indices"
            )
        if found["dots"]:
            parts.append(Ellipsis)
        elif found["index"] is not None:
            parts.append(int(found["index"]))
        else:
            parts.append(slice(*(int(n) if n.strip() else None for n in found["slice"].split(":"))))
    if sum(part is Ellipsis for part in parts) > 1:
        raise PipelineError(f"select: {selection!r} has more than one '...'")
    return parts[0] if len(parts) == 1 else tuple(parts)


def selected(value: Any, index: Any, where: str = "select") -> Any:
    """The entries, if they are all there."""
    shape = np.shape(value)
    parts = list(index) if isinstance(index, tuple) else [index]
    n_given = sum(part is not Ellipsis for part in parts)
    if n_given > len(shape):
        raise PipelineError(f"{where}: {_shown(index)} has {n_given} indices, and the array has shape {shape}")
    if Ellipsis in [part for part in parts if not isinstance(part, list)]:
        k = next(k for k, part in enumerate(parts) if part is Ellipsis)
        parts[k : k + 1] = [slice(None)] * (len(shape) - n_given)
    for axis, (part, n) in enumerate(zip(parts, shape, strict=False)):
        numbers = [part] if isinstance(part, int) else part if isinstance(part, list) else []
        if isinstance(part, slice):
            if part.step == 0:
                raise PipelineError(f"{where}: {_shown(index)} has a step of 0")
            ends = [end for end in (part.start, part.stop) if end is not None]
            is_inside = all(-n <= end <= n for end in ends)
        else:
            is_inside = all(-n <= k < n for k in numbers)
        if not is_inside:
            raise PipelineError(
                f"{where}: {_shown(index)} is beyond the end of an array of shape {shape}, which has {n} entries along "
                f"dimension {axis}"
            )
    return value[jnp.asarray(index) if isinstance(index, list) else index]


def converted(value: Any, connection: Connection, factor: float, shift: float) -> Any:
    """The value as it arrives.

    Args:
        factor, shift: of the units; see `units.conversion`.

    Raises:
        PipelineError: a step does not fit the value.
    """
    if connection.select is not None:
        value = selected(_array(value, "select"), parse_selection(connection.select))
    if connection.rename is not None:
        value = _renamed(value, connection.rename)
    if connection.reshape is not None:
        value = _reshaped(_array(value, "reshape"), connection.reshape)
    if (factor, shift) != (1.0, 0.0):
        value = _affine(_real(value, "units"), factor, shift)
    if connection.scale is not None or connection.offset is not None:
        scale, offset = (
            default if given is None else given
            for given, default in ((connection.scale, 1.0), (connection.offset, 0.0))
        )
        value = _affine(_real(value, "scale and offset"), scale, offset)
    return value


def constant(value: Any) -> Any:
    """A constant of a description: lists of numbers are arrays, everything else is what it is."""
    if isinstance(value, list | tuple):
        array = np.asarray(value)
        if array.dtype.kind in "biufc":
            return array
    return value


def _affine(value: Any, scale: Any, offset: Any) -> Any:
    scale, offset = (np.asarray(number, value.dtype) for number in (scale, offset))
    if np.broadcast_shapes(value.shape, scale.shape, offset.shape) != value.shape:
        raise PipelineError(
            f"scale and offset have shapes {scale.shape} and {offset.shape}, which change that of the value, "
            f"{value.shape}"
        )
    # Not what changes nothing: it would be an operation more, and -0.0 would become 0.0.
    value = value if (scale == 1.0).all() else value * scale
    return value if (offset == 0.0).all() else value + offset


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if not isinstance(value, Mapping):
        raise PipelineError(f"rename: what comes is {_kind(value)}, and only a group of named values has keys")
    for old in names:
        if old not in value:
            raise PipelineError(
                f"rename: there is no {old!r}; what comes has {', '.join(map(str, value))}.{did_you_mean(old, value)}"
            )
    new = [names.get(key, key) for key in value]
    if len(set(new)) < len(new):
        raise PipelineError(f"rename: two values would have one name ({', '.join(map(str, new))})")
    return dict(zip(new, value.values(), strict=True))


def _reshaped(value: Any, shape: Sequence[int]) -> Any:
    size, known = math.prod(value.shape), math.prod(n for n in shape if n != -1)
    n_open = sum(n == -1 for n in shape)
    fits = size == known if n_open == 0 else n_open == 1 and known > 0 and size % known == 0
    if not fits or any(n < -1 for n in shape):
        raise PipelineError(f"reshape: an array of shape {value.shape} cannot become {list(shape)}")
    return value.reshape(shape)


def _array(value: Any, step: str) -> Any:
    if isinstance(value, jax.Array | np.ndarray):
        return value
    if isinstance(value, int | float | complex | np.generic):
        return jnp.asarray(value)
    raise PipelineError(f"{step}: what comes is {_kind(value)}, and this is for arrays")


def _real(value: Any, step: str) -> Any:
    array = _array(value, step)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        raise PipelineError(f"{step}: what comes is of dtype {array.dtype}, and this is for floating-point numbers")
    return array


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a group with {', '.join(map(str, value))}"
    return type(value).__name__


def _shown(index: Any) -> str:
    def one(part: Any) -> str:
        if isinstance(part, slice):
            ends = ["" if end is None else str(end) for end in (part.start, part.stop)]
            return ":".join(ends + ([] if part.step is None else [str(part.step)]))
        return "..." if part is Ellipsis else str(part)

    return f"[{', '.join(map(one, index)) if isinstance(index, tuple) else one(index)}]"
