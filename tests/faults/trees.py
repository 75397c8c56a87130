"""Faults in answers that are good JSON: other paths, shapes, dtypes and encodings than were promised.

A fault spoils one array of an answer, that with two axes: the output `z`, the gradient of `w`, the block `y` by `x`.
What is a pair of shape and dtype in the answer of `abstract_eval` can be spoilt in the same way.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson

from tesseract_flow.testing import faults
from tesseract_flow.testing.faults import NULL, Exchange
from tesseract_flow.testing.faults import decoded as values
from tesseract_flow.testing.faults import encoded as array
from tests.faults.faults import CALLS, SOLVES, Comes, fault

Leaf = dict[str, Any]
REFUSED = ("InvalidAnswer",)


def place(endpoint: str) -> tuple[str, ...]:
    """Where the array with two axes is."""
    return {"vector_jacobian_product": ("w",), "jacobian": ("y", "x")}.get(endpoint, ("z",))


def spoils(
    comes: Comes, *errors: str, at: tuple[str, ...] = CALLS, name: str = "", free: tuple[str, ...] = ()
) -> Callable[[Callable[[Leaf], Any]], Callable[[Leaf], Any]]:
    """Enter a fault that puts something else in the place of the array, or changes it."""

    def enter(spoil: Callable[[Leaf], Any]) -> Callable[[Leaf], Any]:
        def act(x: Exchange) -> None:
            faults.spoiled(spoil, ".".join(place(x.asked.endpoint)))(x)

        fault(comes, *errors, at=at, free=free, name=name or spoil.__name__.replace("_", " "))(act)
        return spoil

    return enter


# --- shapes -----------------------------------------------------------------------------------------------------------

SHAPES: dict[str, Any] = {
    "negative": [-2, 3],
    "twice negative": [-2, -3],
    "huge": [2**31, 2**31],
    "beyond 64 bits": [2**40, 2**40],
    "of another rank": [6],
    "one axis more": [1, 2, 3],
    "of texts": ["2", "3"],
    "of fractions": [2.5, 3.0],
    "of lists": [[2], [3]],
    "of null": [None, 3],
    "of flags": [True, True],
    "a number": 6,
    "a text": "2,3",
    "null": None,
    "an object": {"0": 2, "1": 3},
}
for _name, _shape in SHAPES.items():
    spoils(Comes.REFUSED, *REFUSED, name=f"shape {_name}")(lambda leaf, shape=_shape: leaf.update(shape=shape))

# Which the schema allows: only what the component does next contradicts them.
ALLOWED = {"with a row more": [3, 3], "without rows": [0, 3], "transposed": [3, 2]}
for _name, _shape in ALLOWED.items():
    for _comes, _at in ((Comes.REFUSED, SOLVES), (Comes.CONTRADICTED, ("abstract_eval",))):
        spoils(_comes, *REFUSED, at=_at, free=("apply",), name=f"shape {_name}")(
            lambda leaf, shape=_shape: leaf.update(shape=shape)
        )


@spoils(Comes.REFUSED, *REFUSED, at=SOLVES, free=("apply",))
def transposed(leaf):
    return array(values(leaf).T)


@spoils(Comes.REFUSED, *REFUSED, at=SOLVES)
def flattened(leaf):
    return array(values(leaf).ravel())


@spoils(Comes.REFUSED, *REFUSED, at=SOLVES, free=("apply",))
def one_row_more(leaf):
    return array(np.vstack([values(leaf), values(leaf)[:1]]))


@spoils(Comes.REFUSED, *REFUSED, at=SOLVES, free=("apply",))
def empty(leaf):
    return array(np.zeros((0, 3)))


@spoils(Comes.REFUSED, *REFUSED, at=SOLVES)
def scalar_array_for_array(leaf):
    return array(np.float64(1.0))


# --- no array ---------------------------------------------------------------------------------------------------------

NOT_ARRAYS: dict[str, Any] = {
    "number": 1.5,
    "null": NULL,
    "text": "1.5",
    "flag": True,
    "empty object": {},
    "empty list": [],
    "list of one number": [1.5],
    "object of numbers": {"0": 1.5},
}
for _name, _value in NOT_ARRAYS.items():
    spoils(Comes.REFUSED, *REFUSED, name=f"{_name} for array")(lambda leaf, value=_value: value)


@spoils(Comes.EITHER, *REFUSED, at=SOLVES)
def nested_list_for_array(leaf):
    return values(leaf).tolist()


@spoils(Comes.REFUSED, *REFUSED, at=("abstract_eval",))
def real_array_for_shape_and_dtype(leaf):
    return array(np.full((2, 3), 1998.0))


# --- dtypes -----------------------------------------------------------------------------------------------------------

DTYPES: dict[str, Any] = {
    "unknown": "float65",
    "of objects": "object",
    "of raw bytes": "V8",
    "of texts": "<U8",
    "of dates": "datetime64[ns]",
    "empty": "",
    "null": NULL,
    "a list": ["float64"],
    "a number": 64,
    "an object": {},
    "of records": "f8,f8",
    "complex": "complex128",
    "integer": "int64",
    "flag": "bool",
}
for _name, _dtype in DTYPES.items():
    spoils(Comes.REFUSED, *REFUSED, name=f"dtype {_name}")(
        lambda leaf, dtype=_dtype: leaf.update(dtype=None if dtype is NULL else dtype)
    )


@spoils(Comes.EITHER, *REFUSED)
def dtype_big_endian(leaf):
    if "data" in leaf:
        leaf["data"] = {"encoding": "base64", "buffer": text(values(leaf).astype(">f8").tobytes())}
    leaf["dtype"] = ">f8"


@spoils(Comes.REFUSED, *REFUSED, at=SOLVES)
def complex_for_real(leaf):
    return array(values(leaf) + 1j)


@spoils(Comes.EITHER, *REFUSED, at=SOLVES)
def complex_with_nothing_imaginary_for_real(leaf):
    return array(values(leaf) + 0j)


@spoils(Comes.REFUSED, *REFUSED, at=SOLVES)
def flags_for_numbers(leaf):
    return array(values(leaf) > 0)


# --- encodings of one array -------------------------------------------------------------------------------------------


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def buffer(leaf: Leaf) -> str:
    return leaf["data"]["buffer"]


def rewritten(name: str, comes: Comes, rewrite: Callable[[str], Any]) -> None:
    def spoil(leaf: Leaf) -> None:
        leaf["data"]["buffer"] = rewrite(buffer(leaf))

    spoils(comes, *REFUSED, at=SOLVES, name=f"base64 {name}")(spoil)


rewritten("with characters that are none", Comes.REFUSED, lambda data: "*" + data[1:])
rewritten("too short", Comes.REFUSED, lambda data: text(base64.b64decode(data)[:-8]))
rewritten("too short by a byte", Comes.REFUSED, lambda data: text(base64.b64decode(data)[:-1]))
rewritten("too long", Comes.REFUSED, lambda data: text(base64.b64decode(data) + bytes(8)))
rewritten("empty", Comes.REFUSED, lambda data: "")
rewritten("cut off", Comes.REFUSED, lambda data: data[:-3])
rewritten("with a letter that is not of ASCII", Comes.REFUSED, lambda data: "é" + data[1:])
rewritten("with a line feed", Comes.EITHER, lambda data: data[:4] + "\n" + data[4:])
rewritten("in the alphabet of URLs", Comes.EITHER, lambda data: data.replace("+", "-").replace("/", "_"))
rewritten("as a number", Comes.REFUSED, lambda data: 5)
rewritten("as null", Comes.REFUSED, lambda data: None)
rewritten("as a list of numbers", Comes.REFUSED, lambda data: [1.0, 2.0])


def encoded(name: str, comes: Comes, make: Callable[[np.ndarray], Any]) -> None:
    """A fault whose `data` is made from the values."""

    def spoil(leaf: Leaf) -> None:
        leaf["data"] = make(values(leaf))

    spoils(comes, *REFUSED, at=SOLVES, name=name)(spoil)


def as_json(make: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], Any]:
    return lambda x: {"encoding": "json", "buffer": make(x)}


encoded("json in place of base64, nested", Comes.EITHER, as_json(lambda x: x.tolist()))
encoded("json in place of base64, flat", Comes.RIGHT, as_json(lambda x: x.ravel().tolist()))
encoded("json too short", Comes.REFUSED, as_json(lambda x: x.ravel().tolist()[:-1]))
encoded("json too long", Comes.REFUSED, as_json(lambda x: [*x.ravel().tolist(), 1.0]))
encoded("json ragged", Comes.REFUSED, as_json(lambda x: [[1.0], [2.0, 3.0, 4.0, 5.0, 6.0]]))
encoded("json transposed", Comes.REFUSED, as_json(lambda x: x.T.tolist()))
encoded("json of texts", Comes.REFUSED, as_json(lambda x: [str(v) for v in x.ravel()]))
encoded("json with null", Comes.REFUSED, as_json(lambda x: [None, *x.ravel().tolist()[1:]]))
encoded("json of flags", Comes.REFUSED, as_json(lambda x: [True] * x.size))
encoded("json of an object", Comes.REFUSED, as_json(lambda x: {"0": 1.0}))
encoded("json of one number", Comes.REFUSED, as_json(lambda x: 1.0))
encoded("binref without a folder", Comes.REFUSED, lambda x: {"encoding": "binref", "buffer": "a.bin:0"})
encoded("binref from the root", Comes.REFUSED, lambda x: {"encoding": "binref", "buffer": "/etc/passwd:0"})
encoded("binref with an address", Comes.REFUSED, lambda x: {"encoding": "binref", "buffer": "http://a/b.bin:0"})
encoded("encoding unknown", Comes.REFUSED, lambda x: {"encoding": "hex", "buffer": x.tobytes().hex()})
encoded("encoding null", Comes.REFUSED, lambda x: {"encoding": None, "buffer": text(x.tobytes())})
encoded("encoding missing", Comes.REFUSED, lambda x: {"buffer": text(x.tobytes())})
encoded("buffer missing", Comes.REFUSED, lambda x: {"encoding": "base64"})
encoded("data null", Comes.REFUSED, lambda x: None)
encoded("data a text", Comes.REFUSED, lambda x: text(x.tobytes()))
encoded("lz4 that is none", Comes.REFUSED, lambda x: compressed(text(x.tobytes())))
encoded("compression unknown", Comes.REFUSED, lambda x: compressed(text(x.tobytes()), "snappy"))


def compressed(data: str, by: str = "lz4") -> dict[str, Any]:
    return {"encoding": "base64", "buffer": data, "compression": by}


for _key in ("shape", "dtype"):

    @spoils(Comes.REFUSED, *REFUSED, name=f"{_key} missing")
    def _without(leaf, key=_key):
        leaf.pop(key)


@spoils(Comes.REFUSED, *REFUSED, at=SOLVES, name="data missing")
def without_data(leaf):
    leaf.pop("data")


@spoils(Comes.EITHER, *REFUSED, at=SOLVES, name="object_type missing")
def without_object_type(leaf):
    leaf.pop("object_type")


@spoils(Comes.REFUSED, *REFUSED, at=SOLVES, name="object_type unknown")
def unknown_object_type(leaf):
    leaf["object_type"] = "matrix"


def at_the_array(comes: Comes, name: str, make: Callable[[str], Callable[[Exchange], object]]) -> None:
    """A fault of the library's, for its array."""
    errors = () if comes is Comes.ASKED_FOR else REFUSED
    fault(comes, *errors, at=SOLVES, name=name)(lambda x: make(".".join(place(x.asked.endpoint)))(x))


at_the_array(Comes.REFUSED, "lz4 bomb", faults.lz4_bomb)
at_the_array(Comes.REFUSED, "binref that climbs", lambda at: faults.path_escape(at=at))


# --- paths ------------------------------------------------------------------------------------------------------------


def moves(comes: Comes, name: str, at: tuple[str, ...] = CALLS):
    """Enter a fault that changes what is where, given the dict that holds the array and the array's name."""

    def enter(move: Callable[[dict[str, Any], str], Any]) -> Callable[[dict[str, Any], str], Any]:
        def act(x: Exchange) -> None:
            tree = x.tree()
            *above, last = place(x.asked.endpoint)
            parent = tree
            for key in above:
                parent = parent[key]
            move(parent, last)
            x.answer(orjson.dumps(tree))

        fault(comes, *REFUSED, at=at, name=name)(act)
        return move

    return enter


@moves(Comes.REFUSED, "path missing")
def missing(parent, name):
    del parent[name]


@moves(Comes.REFUSED, "path misspelt")
def misspelt(parent, name):
    parent[name.upper()] = parent.pop(name)


@moves(Comes.REFUSED, "path one level deeper")
def deeper(parent, name):
    parent[name] = {name: parent[name]}


@moves(Comes.EITHER, "path that nobody asked for")
def surplus(parent, name):
    parent["extra"] = parent[name]


@moves(Comes.REFUSED, "all paths missing")
def all_missing(parent, name):
    parent.clear()


@fault(Comes.REFUSED, *REFUSED, at=("vector_jacobian_product",))
def gradients_under_the_names_of_outputs(x: Exchange) -> None:
    tree = x.tree()
    x.answer(orjson.dumps({{"x": "y", "w": "z", "s": "e"}[key]: leaf for key, leaf in tree.items()}))


@fault(Comes.REFUSED, *REFUSED, at=("jacobian",))
def jacobian_by_input_and_then_output(x: Exchange) -> None:
    x.answer(orjson.dumps({"x": {out: blocks["x"] for out, blocks in x.tree().items()}}))


@fault(Comes.REFUSED, *REFUSED, at=("apply",))
def answer_of_another_endpoint(x: Exchange) -> None:
    x.answer(orjson.dumps({"x": array(np.ones(3))}))


# --- contents that no client can tell from right ones -----------------------------------------------------------------


@spoils(Comes.ASKED_FOR, at=SOLVES)
def other_values(leaf):
    return array(values(leaf) + 1.0)


at_the_array(Comes.ASKED_FOR, "values that are nan", faults.nan)


@spoils(Comes.ASKED_FOR, at=SOLVES)
def values_that_are_infinite(leaf):
    return array(np.full_like(values(leaf), np.inf))


@spoils(Comes.ASKED_FOR, at=SOLVES)
def bytes_in_the_other_order(leaf):
    leaf["data"]["buffer"] = text(values(leaf).astype(">f8").tobytes())


@spoils(Comes.ASKED_FOR, at=SOLVES)
def another_object_type_of_the_same_size(leaf):
    leaf["data"]["buffer"] = text(np.arange(values(leaf).size, dtype="int64").tobytes())
