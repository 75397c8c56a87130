"""`Static`, `Layout` and `Call` as values: equal exactly when nothing that could influence a result differs."""

from __future__ import annotations

import dataclasses
import enum
import math
import struct
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesseract_flow.autodiff import Call, InputLayout, OutputLayout, Slot
from tesseract_flow.autodiff.layout import Static
from tesseract_flow.errors import InvalidAnswer
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import Watched


class Colour(enum.Enum):
    RED = 1
    CRIMSON = "1"


LEAVES = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.booleans(),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, -2.0, math.nan, math.inf]),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=3),
    st.none(),
    st.sampled_from(Colour),
    st.sampled_from([np.float32(1.0), np.float64(1.0), np.int64(1), np.bool_(True), np.float64(-0.0)]),
    st.binary(max_size=2),
)


def is_same(a: Any, b: Any) -> bool:
    """The definition, written the long way: same type and same bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.generic):
        return a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, complex):
        return is_same(a.real, b.real) and is_same(a.imag, b.imag)
    return a == b


@given(LEAVES, LEAVES)
@settings(max_examples=500)
def test_statics_are_equal_if_type_and_bits_are(a: Any, b: Any):
    assert (Static(a) == Static(b)) == is_same(a, b)
    assert Static(a) == Static(a)
    if is_same(a, b):
        assert hash(Static(a)) == hash(Static(b))


# The pairs that have served wrong results somewhere: equal hashes, or equality across types.
CONFUSABLE = [
    (-1, -2),
    (1, 1.0),
    (1, True),
    (0, False),
    (0.0, -0.0),
    (1.0, np.float64(1.0)),
    ("1", 1),
    (0j, -0j),
    (None, 0),
]


@pytest.mark.parametrize("pair", CONFUSABLE, ids=repr)
def test_confusable_values_differ(pair: tuple[Any, Any]):
    assert Static(pair[0]) != Static(pair[1])
    assert len({Static(pair[0]), Static(pair[1])}) == 2


def test_nan_equals_itself():
    assert Static(math.nan) == Static(float("nan"))
    assert Static(complex(0.0, math.nan)) == Static(complex(0.0, math.nan))


def test_long_arrays_are_compared_to_the_last_element():
    a, b = np.zeros(5000), np.zeros(5000)
    assert Static(a) == Static(b)
    b[2500] = 1.0  # where repr has only dots
    assert repr(a) == repr(b)
    assert Static(a) != Static(b)
    assert Static(np.zeros(4)) != Static(np.zeros((2, 2)))
    assert Static(np.zeros(4)) != Static(np.zeros(4, np.float32))


def test_unhashable_values_are_compared_by_identity():
    class Opaque:
        __hash__ = None  # type: ignore[assignment]

        def __repr__(self) -> str:
            return "Opaque(...)"

    one, other = Opaque(), Opaque()
    assert Static(one) == Static(one)
    assert Static(one) != Static(other)
    words = np.array(["a", None], dtype=object)  # whose bytes are addresses
    assert Static(words) == Static(words)


def layout_of(tree: Any) -> InputLayout:
    leaves, treedef = jax.tree_util.tree_flatten(tree)
    is_array = [isinstance(leaf, np.ndarray) for leaf in leaves]
    n = sum(is_array)
    return InputLayout(
        treedef,
        tuple(Slot.ARRAY if array else Static(leaf) for leaf, array in zip(leaves, is_array, strict=True)),
        tuple((k,) for k in range(n)),
        tuple(f"[{k}]" for k in range(n)),
        (True,) * n,
        (False,) * n,
    )


X = np.zeros(2)
TREES = [
    {"a": X, "n": 1},
    {"a": X, "n": 1.0},
    {"a": X, "n": True},
    {"b": X, "n": 1},
    {"a": X, "n": None},
    {"a": X, "n": [1]},
    {"a": X, "n": (1,)},
    {"a": [X], "n": 1},
    {"a": 1, "n": X},
    [X, 1],
]


def test_layouts_are_values():
    layouts = [layout_of(tree) for tree in TREES]
    assert len(set(layouts)) == len(TREES)
    assert layouts == [layout_of(tree) for tree in TREES]
    assert len(set(layouts) | {layout_of(tree) for tree in TREES}) == len(TREES)


@given(st.recursive(LEAVES | st.just(X), lambda kids: st.lists(kids, max_size=3) | st.dictionaries(st.text(), kids)))
def test_fill_undoes_the_splitting(tree: Any):
    leaves = jax.tree_util.tree_leaves(tree)
    filled = layout_of(tree).fill([leaf for leaf in leaves if isinstance(leaf, np.ndarray)])
    assert jax.tree_util.tree_structure(filled) == jax.tree_util.tree_structure(tree)
    assert all(a is b for a, b in zip(jax.tree_util.tree_leaves(filled), leaves, strict=True))


@pytest.fixture
def call() -> Call:
    tesseract = FunctionTesseract(lambda i: {"y": i["x"] * 2.0}, {"x": X})
    aval = jax.ShapeDtypeStruct((2,), np.dtype(np.float64))
    layout = dataclasses.replace(layout_of({"x": X}), keys=(("x",),), paths=("x",))
    treedef = jax.tree_util.tree_structure({"y": X})
    output = OutputLayout(treedef, (Slot.ARRAY,), (("y",),), ("y",), (True,), (False,))
    return Call(tesseract, layout, output, (aval,))


def test_calls_are_equal_if_all_of_their_parts_are(call: Call):
    twin = dataclasses.replace(call)
    assert twin == call
    assert hash(twin) == hash(call)
    others = [
        call.linear([0], [0]),
        call.linear([], [0]),
        call.linear([0], []),
        dataclasses.replace(call, out_avals=(jax.ShapeDtypeStruct((3,), np.dtype(np.float64)),)),
        dataclasses.replace(call, input=layout_of(TREES[0])),
        dataclasses.replace(call, tesseract=FunctionTesseract(lambda i: {"y": i["x"] * 2.0}, {"x": X})),
    ]
    assert len({call, twin, *others}) == 1 + len(others)


def test_calls_through_equal_handles_are_equal(call: Call):
    first, second = (dataclasses.replace(call, tesseract=Watched(call.tesseract)) for _ in range(2))
    assert first.tesseract is not second.tesseract
    assert first == second


# --------------------------------------------------------------------------- answers that are not what was promised

WRONG = {
    "shape": lambda y: np.zeros((3,)),
    "rank": lambda y: y[None],
    "complex for real": lambda y: y + 0j,
    "text": lambda y: "two",
    "nothing": lambda y: None,
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(
    ("endpoint", "ask"),
    [
        ("apply", lambda c: c.apply([X])),
        ("jacobian_vector_product", lambda c: c.linear([0], [0]).pushforward([X, X + 1.0])),
        ("vector_jacobian_product", lambda c: c.linear([0], [0]).pullback([X, X + 1.0])),
    ],
)
def test_wrong_answers_are_named(call: Call, endpoint: str, ask: Any, wrong: str):
    def distort(asked: str, answer: Any) -> Any:
        return {path: WRONG[wrong](value) for path, value in answer.items()}

    lying = dataclasses.replace(call, tesseract=Watched(call.tesseract, distort))
    with pytest.raises(
        InvalidAnswer, match=rf"'function' answered '{endpoint}' with '[xy]'.*expected shape \(2,\)"
    ) as caught:
        ask(lying)
    assert caught.value.endpoint == endpoint
    assert ask(call)[0].shape == (2,)


@pytest.mark.parametrize("endpoint", ["apply", "jacobian_vector_product", "vector_jacobian_product"])
def test_missing_answers_are_named(call: Call, endpoint: str):
    empty = dataclasses.replace(call, tesseract=Watched(call.tesseract, lambda asked, answer: {})).linear([0], [0])
    ask = {"apply": lambda: empty.apply([X]), "jacobian_vector_product": lambda: empty.pushforward([X, X + 1.0])}
    with pytest.raises(InvalidAnswer, match=endpoint):
        ask.get(endpoint, lambda: empty.pullback([X, X + 1.0]))()


def test_answers_of_another_precision_are_cast(call: Call):
    narrow = Watched(call.tesseract, lambda asked, answer: {path: y.astype(np.float32) for path, y in answer.items()})
    (y,) = dataclasses.replace(call, tesseract=narrow).apply([np.array([0.5, 1.5])])
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, [1.0, 3.0])


def test_a_component_that_contradicts_its_own_abstract_eval_under_jit(call: Call):
    from tesseract_flow.autodiff import apply_tesseract

    lying = Watched(call.tesseract, lambda asked, answer: {"y": np.zeros(5)} if asked == "apply" else answer)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"'y' of shape \(5,\).*expected shape \(2,\)"):
        jax.jit(lambda x: apply_tesseract(lying, {"x": x})["y"])(jnp.zeros(2)).block_until_ready()
