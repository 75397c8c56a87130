"""What an array-like value would lose without a word on its way to a plain array: `what_is_lost`.

Here: masks, units, and the emptiness of sparse matrices. Not here: values that do not fit a dtype (`casting`). The one
idea: `numpy.asarray` gives numbers of anything, also where these are not all that the value says: a masked entry has a
number that nobody meant, and 3 mm and 3 m have the same one. Names of places (the index of a pandas Series, the
dimensions of an xarray) change no number, and are dropped as everywhere in NumPy and JAX.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_NO_UNIT = frozenset({"", "1", "dimensionless"})


def what_is_lost(value: Any) -> str | None:
    """Why a value must not be sent as a plain array, and what to do about it; None if nothing would be lost."""
    kind = type(value)
    if kind is np.ndarray or isinstance(value, bool | int | float | str | np.generic | type | None):
        return None
    # astropy has masked arrays of its own, and PyTorch has masked tensors.
    if hasattr(kind, "mask" if isinstance(value, np.ndarray) else "get_mask"):
        return (
            "it is a masked array, and the mask cannot travel: the component would compute with the numbers behind it; "
            "call .filled(...) first, or leave the masked entries out"
        )
    if hasattr(kind, "todense"):
        return f"it is a sparse {kind.__name__}, and arrays travel dense; make it one with .todense()"
    unit = _unit(value)
    if unit is not None:
        return (
            f"it has the unit {unit!r}, which cannot travel; convert it to the unit that the component expects, and "
            "give the plain numbers (of pint .to(...).magnitude, of astropy .to_value(...))"
        )
    return None


def _unit(value: Any) -> str | None:
    if not (hasattr(value, "__array__") or hasattr(value, "__jax_array__") or hasattr(value, "dtype")):
        return None
    for name in ("unit", "units"):
        # Of the type or the object itself: pandas finds its columns and rows as attributes as well.
        if hasattr(type(value), name) or name in getattr(value, "__dict__", ()):
            unit = getattr(value, name, None)
            if unit is not None and not callable(unit) and str(unit) not in _NO_UNIT:
                return str(unit)
    attributes = getattr(value, "attrs", None)  # where xarray has them
    unit = attributes.get("units") if isinstance(attributes, dict) else None
    return None if unit is None or str(unit) in _NO_UNIT else str(unit)
