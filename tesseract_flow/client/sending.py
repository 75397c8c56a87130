"""What a caller gives to a handle, looked at before anything is sent: whether all of it can arrive.

Here: masks, units and the like, which no way to a component carries. Not here: whether the inputs fit the schema, which
the component says of raw calls (`schema.check_inputs` says it for those who ask beforehand).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tesseract_flow.errors import Fault, InvalidInput
from tesseract_flow.schema import what_is_lost

if TYPE_CHECKING:
    from tesseract_flow.client.base import AbstractTesseract, Endpoint

# Of a payload, what has arrays, and what its entries are in a message.
_ARRAYS = {"inputs": "", "tangent_vector": "the tangent of ", "cotangent_vector": "the cotangent of "}


def require_whole(tesseract: AbstractTesseract, endpoint: Endpoint, payload: Mapping[str, Any]) -> None:
    """Refuse what would arrive as something else.

    Raises:
        InvalidInput: a value says more than its numbers.
    """
    faults = [
        Fault(what + path, lost, "meaning_lost")
        for name, what in _ARRAYS.items()
        for path, value in _leaves(payload.get(name), "")
        if (lost := what_is_lost(value)) is not None
    ]
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


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, item in node.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for index, item in enumerate(node):
            yield from _leaves(item, f"{path}.[{index}]" if path else f"[{index}]")
    else:
        yield path, node
