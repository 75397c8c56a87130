"""What a caller gives to a handle, looked at before anything is sent: whether all of it can arrive.

Here: masks, units and the like, which no way to a component carries, and values that the schema's dtypes do not hold,
which a server rounds without a word. Not here: whether the inputs fit the schema otherwise, which the component says of
raw calls (`schema.check_inputs` says it for those who ask beforehand).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tesseract_flow.errors import Fault, InvalidInput
from tesseract_flow.schema import (
    Field,
    ValueLost,
    array_leaves,
    cast,
    check_inputs,
    follow,
    format_path,
    is_castable,
    what_is_lost,
)

if TYPE_CHECKING:
    from tesseract_flow.client.base import AbstractTesseract, Endpoint

# Of a payload, what has arrays, and what its entries are in a message.
_ARRAYS = {"inputs": "", "tangent_vector": "the tangent of ", "cotangent_vector": "the cotangent of "}

_SURE = 2048  # what Float16 still counts up to


def require_whole(tesseract: AbstractTesseract, endpoint: Endpoint, payload: Mapping[str, Any]) -> None:
    """Refuse what would arrive as something else.

    Raises:
        InvalidInput: a value says more than its numbers, or would be another one in the schema's dtype.
    """
    given = [(what, *leaf) for name, what in _ARRAYS.items() for leaf in _leaves(payload.get(name), "")]
    faults = [
        Fault(what + path, lost, "meaning_lost")
        for what, path, value in given
        if (lost := what_is_lost(value)) is not None
    ]
    if not faults:
        schema = tesseract.known_schema
        if schema is None and any(_may_be_lost(value) for what, _, value in given if not what):
            schema = tesseract.schema  # worth a question, the first time
        if schema is not None:
            faults = _values_lost(schema.inputs, payload["inputs"])
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        # Messages must not depend on a question to a server.
        whom = repr(tesseract) if tesseract.known_schema is None else f"Tesseract {tesseract.name!r}"
        raise InvalidInput(
            f"{endpoint!r} of {whom}: not all of the inputs would arrive:\n{lines}\nNothing was sent.",
            faults=faults,
            tesseract=repr(tesseract),
            endpoint=endpoint,
        )


def _may_be_lost(value: Any) -> bool:
    """Whether there is a dtype in which a value would be another one, and that no server refuses."""
    if isinstance(value, bool | str | None):
        return False
    if isinstance(value, int | float):
        return abs(value) > _SURE and math.isfinite(value)
    if not isinstance(value, np.ndarray | np.generic):
        return hasattr(type(value), "__array__")
    array: Any = np.asarray(value)
    kind = array.dtype.kind
    if kind in "iu":
        return bool(np.any(array > _SURE)) or (kind == "i" and bool(np.any(array < -_SURE)))
    return kind in "fc" and bool(np.any(np.isfinite(array) & (np.abs(array) > _SURE)))


def _values_lost(root: Field, inputs: Any) -> list[Fault]:
    faults = {fault.path: fault for fault in check_inputs(root, inputs) if fault.kind == "out_of_range"}
    for keys, field in array_leaves(root, inputs):
        value = follow(inputs, keys)
        if field.dtype is None or isinstance(value, Mapping | bool | int | float | complex | str):
            continue
        try:
            array = np.asarray(value)
            if is_castable(array.dtype.name, field.dtype):
                cast(array, field.dtype)
        except ValueLost as error:
            path = format_path(root, keys)
            faults.setdefault(path, Fault(path, str(error), "out_of_range"))
        except Exception:  # whatever a foreign __array__ raises, and lists of unequal lengths: others have words for it
            continue
    return list(faults.values())


def _leaves(node: Any, path: str, above: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
    if id(node) in above:  # a list in itself; the wire has words for it
        return
    above = (*above, id(node))
    if isinstance(node, Mapping):
        for key, item in node.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key), above)
    elif isinstance(node, list | tuple):
        for index, item in enumerate(node):
            yield from _leaves(item, f"{path}.[{index}]" if path else f"[{index}]", above)
    else:
        yield path, node
