"""What may go wrong, each as a function of one exchange. What takes no setting is one itself, the others make one.

`hang` and `reset` are faults; `status(503)` and `wrong_shape("stress")` make faults. Arrays are named by their place in
the answer: an output of `apply`, an input in the answer of a pullback, `output.input` in a Jacobian; without a name it
is the first one.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import orjson

from tesseract_flow import wire
from tesseract_flow.errors import OptionError
from tesseract_flow.testing.faults.exchange import Act, Exchange

Leaf = dict[str, Any]
NULL = object()  # for None in an answer, where a function returns None for "changed in place"

# --- time -------------------------------------------------------------------------------------------------------------


def latency(seconds: float) -> Act:
    """The right answer, late."""

    def act(x: Exchange) -> None:
        x.body()
        x.pause(seconds)
        x.answer_well()

    return act


def hang(x: Exchange) -> None:
    """Nothing comes, ever."""
    x.read()
    x.hang()


def slow_drip(seconds: float, n_pieces: int = 8) -> Act:
    """The right answer, a piece at a time; altogether it takes so long."""

    def act(x: Exchange) -> None:
        body = x.body()
        whole = x.head(length=len(body)) + body
        step = max(1, -(-len(whole) // n_pieces))
        for start in range(0, len(whole), step):
            x.send(whole[start : start + step])
            x.pause(seconds / n_pieces)

    return act


# --- connections ------------------------------------------------------------------------------------------------------


def refused(seconds: float) -> Act:
    """The server dies and is back after so many seconds; until then nobody takes connections."""

    def act(x: Exchange) -> None:
        x.read()
        x.server.stop_listening()
        timer = threading.Timer(seconds, x.server.listen)
        timer.daemon = True
        timer.start()
        x.reset()

    return act


def reset(x: Exchange) -> None:
    """The connection is lost before the answer."""
    x.read()
    x.reset()


def reset_in_the_middle(x: Exchange) -> None:
    """The connection is lost in the middle of the answer."""
    body = x.body()
    x.send(x.head(length=len(body)) + body[: len(body) // 2])
    x.reset()


def truncated(x: Exchange) -> None:
    """The answer ends too early, with a proper goodbye."""
    body = x.body()
    x.send(x.head(length=len(body)) + body[: len(body) // 2])
    x.close()


def surplus(x: Exchange) -> None:
    """The right answer, twice."""
    body = x.body()
    x.send(2 * (x.head(length=len(body)) + body))


# --- statuses ---------------------------------------------------------------------------------------------------------


def status(code: int, body: bytes = b"busy", *headers: tuple[str, str], retry_after: float | str | None = None) -> Act:
    """Another status than 200, such as 429, 502, 503 or 504, with `Retry-After` if wanted."""
    patience = () if retry_after is None else (("Retry-After", str(retry_after)),)

    def act(x: Exchange) -> None:
        x.answer(body, code, *headers, *patience)

    return act


def failed(text: str) -> Act:
    """The component raised, and the server says so with 500."""
    return status(500, text.encode(), ("Content-Type", "text/plain"))


def redirect(location: str, code: int = 307) -> Act:
    """Somebody else should be asked."""
    return status(code, b"", ("Location", location))


# --- bytes of the answer ----------------------------------------------------------------------------------------------


def said(body: bytes) -> Act:
    """These bytes, with status 200."""

    def act(x: Exchange) -> None:
        x.answer(body)

    return act


malformed = said(b'{"y": [1.0, 2.0')


def gigantic(n_bytes: int, *, says_so: bool = True) -> Act:
    """An answer of so many bytes; the client is told so beforehand, or not."""

    def act(x: Exchange) -> None:
        x.read()
        x.send(x.head(length=n_bytes if says_so else None))
        for start in range(0, n_bytes, 65536):
            x.send(b" " * min(65536, n_bytes - start))
        if not says_so:
            x.close()

    return act


# --- one array of the answer ------------------------------------------------------------------------------------------


def spoiled(spoil: Callable[[Leaf], Any], at: str | None = None) -> Act:
    """The right answer but for one array.

    Args:
        spoil: the encoded array (`shape`, `dtype`, `data`; of `abstract_eval` the first two) → what comes in its place;
            None if it was changed in place, `NULL` for null.
        at: where it is, such as `"stress"`; default the first.
    """

    def act(x: Exchange) -> None:
        tree = x.tree()
        parent, name = _place(tree, at)
        changed = spoil(leaf := parent[name])
        parent[name] = leaf if changed is None else None if changed is NULL else changed
        x.answer(orjson.dumps(tree))

    return act


def wrong_shape(at: str | None = None) -> Act:
    """Data and shape have an axis more than they should."""
    return spoiled(_in_one_more_axis, at)


def wrong_dtype(at: str | None = None, dtype: str = "complex128") -> Act:
    """Another dtype, data included."""

    def spoil(leaf: Leaf) -> Leaf | None:
        if "data" in leaf:
            return encoded(decoded(leaf).astype(dtype))
        return leaf.update(dtype=dtype)

    return spoiled(spoil, at)


def other_values(change: Callable[[np.ndarray], Any], at: str | None = None) -> Act:
    """Values that nobody can tell from right ones: what `change` makes of those."""
    return spoiled(lambda leaf: encoded(change(decoded(leaf))), at)


def nan(at: str | None = None) -> Act:
    """NaN in place of every value."""
    return other_values(lambda values: np.full_like(values, np.nan), at)


def lz4_bomb(at: str | None = None) -> Act:
    """A block of a few bytes that says it unpacks to 4 GB."""
    block = b"\xff\xff\xff\xff" + b"\x1f\x00\x01\x00" + b"\xff" * 4096
    return data_is({"encoding": "base64", "buffer": base64.b64encode(block).decode(), "compression": "lz4"}, at)


def path_escape(path: str = "../../etc/passwd:0", at: str | None = None) -> Act:
    """An array that is in a file where no answer may be."""
    return data_is({"encoding": "binref", "buffer": path}, at)


def data_is(data: Any, at: str | None = None) -> Act:
    """This in place of an array's data."""
    return spoiled(lambda leaf: leaf.update(data=data), at)


def decoded(leaf: Leaf) -> np.ndarray:
    return wire.decode_array(leaf)


def encoded(value: Any) -> Leaf:
    return orjson.loads(wire.dumps({"a": np.asarray(value)}))["a"]


def _in_one_more_axis(leaf: Leaf) -> Leaf | None:
    if "data" in leaf:
        return encoded(decoded(leaf)[None])
    return leaf.update(shape=[1, *leaf["shape"]])


def _place(tree: Any, at: str | None) -> tuple[Any, Any]:
    """Whom an array belongs to, and its name there."""
    found = {".".join(map(str, keys)): (parent, keys[-1]) for parent, keys in _arrays(tree, ())}
    if at is None and found:
        return next(iter(found.values()))
    if at not in found:
        raise OptionError(f"There is no array {at!r} in the answer, but {', '.join(found) or 'none at all'}.")
    return found[at]


def _arrays(tree: Any, keys: tuple[Any, ...]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, item in items:
        if isinstance(item, dict) and {"shape", "dtype"} <= set(item):
            yield tree, (*keys, key)
        else:
            yield from _arrays(item, (*keys, key))
