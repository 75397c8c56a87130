"""Outputs that are no arrays in the schema are what the component answers, in traced code as well.

`abstract_eval` has to put something in their places. Once that was what a traced function worked with: 0.0 for a margin
of 6, and a gradient of 0.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import AbstractTesseract, Endpoint, count_requests
from tesseract_flow.errors import InvalidAnswer, NonFiniteError, NotDifferentiable, PlainValueUnknown
from tesseract_flow.execute import concurrent
from tesseract_flow.schema import ArrayField, LeafField, ListField, ModelField, UnionField
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import Watched, assert_close

X = np.array([1.0, 2.0, 3.0])
ROWS = np.stack([X, 2.0 * X])
PLACEHOLDERS = {"margin": 0.0, "converged": True, "n_steps": 0, "status": "unknown", "history": [], "gap": None}
OUTER = {"eager": lambda f: f, "jit": jax.jit, "concurrent": concurrent}


def facts(total: float) -> dict[str, Any]:
    """What the component says beside its array."""
    return {
        "margin": total,
        "converged": total < 10.0,
        "n_steps": int(total),
        "status": "good" if total < 10.0 else "bad",
        "history": [total] * int(total),
        "gap": total / 2.0 if total < 10.0 else None,
    }


class Plain(AbstractTesseract):
    """Answers y = 2 x and facts about the sum of x; its abstract_eval has placeholders for them."""

    def __init__(self) -> None:
        number = LeafField("float")
        self.inner = FunctionTesseract(
            lambda i: {"y": i["x"] * 2.0, **PLACEHOLDERS},
            {"x": X},
            name="plain",
            outputs={
                "margin": number,
                "converged": LeafField("bool"),
                "n_steps": LeafField("int"),
                "status": LeafField("enum", ("good", "bad", "unknown")),
                "history": ListField(number),
                "gap": UnionField((number, LeafField("null"))),
            },
        )

    @property
    def name(self) -> str:
        return "plain"

    @property
    def schema(self) -> Any:
        return self.inner.schema

    def request(self, endpoint: Endpoint, payload: Any, *, run_id: str | None = None) -> Any:
        answer = self.inner.request(endpoint, payload, run_id=run_id)
        if endpoint == "apply":
            answer |= facts(float(np.sum(payload["inputs"]["x"])))
        return answer


@pytest.fixture
def plain() -> Plain:
    return Plain()


def value_of(leaf: Any) -> Any:
    return leaf.value if hasattr(leaf, "value") else leaf


# ------------------------------------------------------------------------------------------------ numbers and flags


@pytest.mark.parametrize("outer", OUTER)
def test_a_number_that_is_used_is_the_components(plain: Plain, outer: str):
    def product(x: Any) -> Any:
        out = apply_tesseract(plain, {"x": x})
        return jnp.sum(out["y"]) * out["margin"] + jnp.where(out["converged"], 100.0, 0.0) + 1000.0 * out["n_steps"]

    for x in (X, 2.0 * X):
        total = float(np.sum(x))
        expected = 2.0 * total * total + 100.0 * (total < 10.0) + 1000.0 * int(total)
        assert_close(OUTER[outer](product)(x), jnp.asarray(expected))


@pytest.mark.parametrize("outer", ["jit", "concurrent"])
def test_it_has_no_derivative_and_says_so(plain: Plain, outer: str):
    def product(x: Any, is_stopped: bool) -> Any:
        out = apply_tesseract(plain, {"x": x})
        return jnp.sum(out["y"]) * (jax.lax.stop_gradient(out["margin"]) if is_stopped else out["margin"])

    for run in (lambda f: f, OUTER[outer]):
        with pytest.raises(NotDifferentiable, match="output 'margin' of Tesseract 'plain'"):
            run(jax.grad(lambda x: product(x, False)))(X)
        value, gradient = run(jax.value_and_grad(lambda x: product(x, True)))(X)
        assert_close((value, gradient), (jnp.asarray(72.0), jnp.full(3, 12.0)))
        assert np.isnan(run(lambda x: jax.jvp(lambda x: product(x, False), (x,), (x,))[1])(X))


@pytest.mark.parametrize("outer", OUTER)
def test_mapped_each_element_has_its_own(plain: Plain, outer: str):
    def both(x: Any) -> Any:
        out = apply_tesseract(plain, {"x": x})
        return out["margin"] * jnp.sum(out["y"]), out["converged"]

    product, converged = OUTER[outer](jax.vmap(both))(ROWS)
    assert_close(product, jnp.asarray([72.0, 288.0]))
    assert converged.tolist() == [True, False]


def test_with_a_dtype_that_gives_way_like_a_python_number(plain: Plain):
    """Half precision times a plain number stays half precision, traced or not, with strict promotion."""
    half = jnp.ones((), jnp.float16)
    for run in OUTER.values():
        assert run(lambda x: half * apply_tesseract(plain, {"x": x})["margin"])(X).dtype == jnp.float16


def test_flags_and_integers_are_python_values_where_jax_has_them(plain: Plain):
    seen = []

    def loss(x: Any) -> Any:
        out = apply_tesseract(plain, {"x": x})
        seen.append((out["converged"], out["n_steps"], out["status"], out["history"]))
        return jnp.sum(out["y"])

    jax.grad(loss)(X)
    assert seen == [(True, 6, "good", [6.0] * 6)]
    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.jit(lambda x: 1.0 if apply_tesseract(plain, {"x": x})["converged"] else 0.0)(X)


WRONG = {
    "text for a number": ({"margin": "large"}, "'margin' = 'large', where the traced function expects a number"),
    "nothing": ({"margin": None}, "'margin' = None"),
    "number for a flag": ({"converged": 1.0}, "expects a bool"),
    "flag for a number": ({"margin": True}, "expects a number"),
    "fraction": ({"n_steps": 2.5}, "expects an int"),
    "too large": ({"n_steps": 2**70}, "'n_steps' = 1180591620717411303424"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_answer_of_another_kind_is_named(plain: Plain, wrong: str):
    change, message = WRONG[wrong]
    odd = Watched(plain, lambda endpoint, answer: answer | change if endpoint == "apply" else answer)
    with pytest.raises(InvalidAnswer, match=f"'plain' answered 'apply' with .*{message}"):
        concurrent(lambda x: apply_tesseract(odd, {"x": x})["y"])(X)


@pytest.mark.parametrize("outer", ["eager", "concurrent"])
def test_nan_in_a_number_is_named_if_that_is_wanted(plain: Plain, outer: str):
    odd = Watched(plain, lambda endpoint, answer: answer | {"margin": np.nan} if endpoint == "apply" else answer)
    run = OUTER[outer](lambda x: apply_tesseract(odd, {"x": x}, nan_policy="raise")["y"])
    with pytest.raises(NonFiniteError, match="'margin' not finite"):
        run(X)


# ----------------------------------------------------------------------------------- text, None, lists of any length


@pytest.mark.parametrize("name", ["status", "history", "gap"])
@pytest.mark.parametrize("outer", OUTER)
def test_what_is_passed_on_comes_back_as_it_is(plain: Plain, outer: str, name: str):
    run = OUTER[outer](lambda x: apply_tesseract(plain, {"x": x})[name])
    for x in (X, 2.0 * X):
        expected = facts(float(np.sum(x)))[name]
        got = run(x)
        assert got == expected
        assert type(value_of(got)) is type(expected)


@pytest.mark.parametrize("outer", OUTER)
def test_as_auxiliary_data_too(plain: Plain, outer: str):
    def loss(x: Any) -> Any:
        out = apply_tesseract(plain, {"x": x})
        return jnp.sum(out["y"]), (out["status"], {"gap": out["gap"]})

    for x in (X, 2.0 * X):
        (_, (status, rest)), _ = OUTER[outer](jax.value_and_grad(loss, has_aux=True))(x)
        expected = facts(float(np.sum(x)))
        assert status == expected["status"]
        assert rest["gap"] == expected["gap"]


def test_mapped_and_in_loops_there_is_one_each(plain: Plain):
    status = lambda x: apply_tesseract(plain, {"x": x})["status"]  # noqa: E731
    for run in OUTER.values():
        assert run(jax.vmap(status))(ROWS) == ["good", "bad"]
        assert run(lambda rows: jax.lax.map(status, rows))(ROWS) == ["good", "bad"]
        assert run(lambda x: jax.lax.cond(x[0] > 0.0, status, lambda x: status(2.0 * x), x))(X) == "good"


LOOKS = {
    "comparison": lambda s: s == "good",
    "truth": bool,
    "text": str,
    "format": lambda s: f"{s:>9}",
    "hash": hash,
    "method": lambda s: s.upper(),
    "length": len,
    "iteration": list,
    "arithmetic": lambda s: 2.0 * s,
    "an array's arithmetic": lambda s: jnp.ones(3) * s,
    "indexing": lambda s: s[0],
    "membership": lambda s: "g" in s,
    "a key of a dict": lambda s: {"good": 1}[s],
}


@pytest.mark.parametrize("look", LOOKS)
def test_whoever_looks_while_jax_traces_is_told(plain: Plain, look: str):
    def run(x: Any) -> Any:
        out = apply_tesseract(plain, {"x": x})
        LOOKS[look](out["status"])
        return out["y"]

    with pytest.raises(PlainValueUnknown, match="Output 'status' of Tesseract 'plain'"):
        jax.jit(run)(X)


def test_nobody_computes_with_the_bytes_of_a_text(plain: Plain):
    """A loop over all arrays of an answer does not take it for one of numbers."""
    with pytest.raises((TypeError, ValueError)):
        jax.jit(lambda x: sum(jnp.sum(leaf) for leaf in jax.tree_util.tree_leaves(apply_tesseract(plain, {"x": x}))))(X)

    @jax.jit
    def total(x: Any) -> Any:
        numbers = eqx.filter(apply_tesseract(plain, {"x": x}), eqx.is_inexact_array)
        return sum(jnp.sum(leaf) for leaf in jax.tree_util.tree_leaves(numbers))

    assert total(X) == 12.0 + 6.0


def test_a_text_does_not_look_like_an_array(plain: Plain):
    @jax.jit
    def run(x: Any) -> Any:
        status = apply_tesseract(plain, {"x": x})["status"]
        assert not hasattr(status, "dtype")
        assert not hasattr(status, "shape")
        assert not hasattr(status, "__array__")
        assert not eqx.is_array_like(status)
        return x

    run(X)


@pytest.mark.parametrize("outer", [eqx.filter_jit, eqx.filter_value_and_grad], ids=["jit", "grad"])
def test_equinox_takes_answers_apart_and_puts_them_together(plain: Plain, outer: Any):
    def run(x: Any) -> Any:
        arrays, rest = eqx.partition(apply_tesseract(plain, {"x": x}), eqx.is_array)
        out = eqx.combine(arrays, rest)
        return (jnp.sum(out["y"]), out) if outer is eqx.filter_jit else jnp.sum(out["y"])

    answer = outer(run)(jnp.asarray(X))
    if outer is eqx.filter_jit:
        assert answer[1]["status"] == "good"
    assert jax.tree_util.tree_leaves(answer)[0] == 12.0


def test_what_is_too_long_for_jax_is_refused_and_not_cut(plain: Plain):
    long = Watched(plain, lambda endpoint, answer: answer | {"status": "x" * 10**5} if endpoint == "apply" else answer)
    status = jax.jit(lambda x: apply_tesseract(long, {"x": x})["status"])(X)
    with pytest.raises(PlainValueUnknown, match="room for 16384 bytes"):
        str(status)
    assert apply_tesseract(long, {"x": X})["status"] == "x" * 10**5


# ------------------------------------------------------------------------------------ asked first, and then compared


def sided(plain: Any) -> Any:
    def loss(x: Any) -> Any:
        out = apply_tesseract(plain, {"x": x})
        return jnp.sum(out["y"]) if out["status"] == "good" else -jnp.sum(out["y"])

    return loss


def test_a_function_that_looks_at_a_text_is_told_it_beforehand(plain: Plain):
    step = concurrent(jax.value_and_grad(sided(plain)))
    for x in (X, 0.5 * X):
        with count_requests() as requests:
            value, gradient = step(x)
        assert_close((value, gradient), (jnp.sum(2.0 * x), jnp.full(3, 2.0)))
        # Asked first, and not again.
        assert requests.n_of("apply") == requests.n_of("vector_jacobian_product") == 1


def test_another_value_later_is_an_error_that_names_it_and_never_the_wrong_branch(plain: Plain):
    step = concurrent(sided(plain))
    assert step(X) == 12.0
    with pytest.raises(InvalidAnswer, match=r"'plain' answered 'apply' with 'status' = 'bad'(?s:.*)looks at it"):
        step(2.0 * X)
    assert step(2.0 * X) == -24.0  # traced anew, as the function is now another one


@pytest.mark.parametrize("has_array", [True, False], ids=["beside an array", "alone"])
@pytest.mark.parametrize("transform", [lambda f: f, jax.grad, jax.value_and_grad], ids=["value", "grad", "both"])
def test_a_text_that_was_looked_at_is_guarded_if_nothing_else_of_the_call_is_used(transform: Any, has_array: bool):
    def answer(i: Any) -> Any:
        said = {"said": "hi" if np.asarray(i["x"])[0] > 1.0 else "lo"}
        return said | {"y": i["x"] ** 2} if has_array else said

    speaker = FunctionTesseract(answer, {"x": np.ones(2)}, name="speaker", endpoints=["apply", "abstract_eval"])

    def loss(x: Any) -> Any:
        return jnp.sum(x) * (1.0 if apply_tesseract(speaker, {"x": x})["said"] == "hi" else 100.0)

    high, low = jnp.array([2.0, 3.0]), jnp.array([0.5, 3.0])
    step = concurrent(transform(loss))
    with count_requests() as requests:
        assert_close(step(high), transform(lambda x: jnp.sum(x))(high))
    assert requests.n_of("apply") == 1
    with pytest.raises(InvalidAnswer, match=r"'speaker' answered 'apply' with 'said' = 'lo'(?s:.*)looks at it"):
        step(low)
    assert_close(step(low), transform(lambda x: 100.0 * jnp.sum(x))(low))


def test_with_several_calls_each_is_told_its_own(plain: Plain):
    def signs(x: Any) -> Any:
        outs = [apply_tesseract(plain, {"x": k * x}) for k in (1.0, 2.0, 0.5, 3.0)]
        inner = jax.jit(lambda x: apply_tesseract(plain, {"x": x})["y"])(x)
        return jnp.sum(inner), [1.0 if out["status"] == "good" else -1.0 for out in outs]

    assert concurrent(signs)(X)[1] == [1.0, -1.0, 1.0, -1.0]


def test_in_a_loop_there_is_nothing_to_ask_first(plain: Plain):
    with pytest.raises(PlainValueUnknown):
        concurrent(lambda rows: jax.lax.map(sided(plain), rows))(ROWS)


# --------------------------------------------------------------------------------------------- the nesting of arrays


def test_a_list_of_arrays_of_another_length_is_refused():
    item = ArrayField("float64", (None,), True)
    model = ModelField({"part": item, "note": LeafField("str")}, frozenset({"part", "note"}))
    n_parts = [2]

    def fn(i: Any) -> Any:
        return {"parts": [{"part": i["x"], "note": f"{k}"} for k in range(n_parts[0])], "more": None}

    listing = FunctionTesseract(
        fn,
        {"x": X},
        name="listing",
        outputs={"parts": ListField(model), "more": UnionField((item, LeafField("null")))},
    )
    run = concurrent(lambda x: apply_tesseract(listing, {"x": x})["parts"])
    assert [part["note"] for part in run(X)] == ["0", "1"]
    n_parts[0] = 3
    with pytest.raises(InvalidAnswer, match="3 items in 'parts'; expected 2"):
        run(X)
    surprising = Watched(listing, lambda endpoint, answer: answer | {"more": X} if endpoint == "apply" else answer)
    with pytest.raises(InvalidAnswer, match="an array at 'more', where none was expected"):
        concurrent(lambda x: apply_tesseract(surprising, {"x": x})["parts"])(X)
