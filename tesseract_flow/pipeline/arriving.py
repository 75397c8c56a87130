"""What a pipeline is given, against what its description says of it: JAX broadcasts what does not fit without a word.

Inside of `vmap` a value has the shape of one element, and that is what a description means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tesseract_flow.pipeline.description import Input

_FITS = {"b": "b", "i": "iufc", "u": "iufc", "f": "fc", "c": "c"}  # what a number of Python's can stand for, by kind


def misfits(declared: Mapping[str, Input], given: Mapping[str, Any]) -> dict[str, str]:
    """By input what is wrong with its value or shape; inputs of which nothing is declared or given are left out."""
    found = {}
    for name, one in declared.items():
        if name in given and (message := _misfit(one, given[name])) is not None:
            found[name] = message
    return found


def _misfit(declared: Input, value: Any) -> str | None:
    has_dtype = "dtype" in declared.model_fields_set
    if declared.shape is None and not has_dtype:
        return None
    array = _as_array(value)
    if array is None:
        what = f"shape {declared.shape}" if declared.shape is not None else f"dtype {declared.dtype}"
        kind = f"a group with {', '.join(map(str, value))}" if isinstance(value, Mapping) else type(value).__name__
        return f"declared is an array of {what}, and given is {kind}"
    if declared.shape is not None and tuple(array.shape) != tuple(declared.shape):
        return f"declared is shape {declared.shape}, and given is {list(array.shape)}"
    if has_dtype and not _is_of(jnp.dtype(declared.dtype), value, array.dtype):
        return f"declared is dtype {declared.dtype}, and given is {array.dtype}"
    return None


def _as_array(value: Any) -> Any:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return value
    if isinstance(value, bool | int | float | complex | list | tuple):
        try:
            array = np.asarray(value)
        except ValueError:  # rows of several lengths
            return None
        return array if array.dtype.kind in "biufc" else None
    return None


def _is_of(declared: Any, value: Any, dtype: Any) -> bool:
    if hasattr(value, "dtype"):  # at JAX's precision: without its 64-bit mode all are shorter
        return jax.dtypes.canonicalize_dtype(declared) == jax.dtypes.canonicalize_dtype(
            dtype, allow_extended_dtype=True
        )
    return declared.kind in _FITS.get(dtype.kind, "")
