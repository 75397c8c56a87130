"""Objects of a JSON text in which a key stands twice. RFC 8259 leaves their meaning open, and libraries take the last.

The one idea: keys are counted while a tree is walked anyway, and colons in the text cost next to nothing; only where
the two differ, because a string has a colon in it or a key stands twice, is the text read again.
"""

from __future__ import annotations

import json
from typing import Any

from tesseract_flow.errors import WireError
from tesseract_flow.wire._common import abridged


def check_once(text: bytes, n_keys: int | None = None) -> None:
    """Refuse a JSON text (one that has been read) if an object in it has a key twice.

    Args:
        n_keys: how many keys the objects have that were made of it; without it, the text is read in any case.

    Raises:
        WireError: a key that stands twice in one object; so deep a text that it cannot be told.
    """
    if text.count(b":") == n_keys:
        return
    # Numbers stay text: they are not looked at, and an integer of thousands of digits is not for here to refuse.
    try:
        json.loads(text, object_pairs_hook=_once, parse_int=str, parse_float=str, parse_constant=str)
    except RecursionError:
        raise WireError("the text is nested too deeply to be looked through for keys that stand twice.") from None


def _once(pairs: list[tuple[str, Any]]) -> None:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            others = ", ".join(abridged(other) for other in dict.fromkeys(other for other, _ in pairs) if other != key)
            beside = f" (beside {others[:200]})" if others else ""
            raise WireError(
                f"the key {abridged(key)} stands twice in one object{beside}, and nothing tells which of the two is "
                "meant."
            )
        seen.add(key)
