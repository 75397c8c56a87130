"""Prices are counted before anything is sent, and are what the derivation then takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tesseract_flow.client.deriving.routes import EXACT, advice, derivable, price, sources
from tesseract_flow.derivatives import (
    Differences,
    jacobian_from_apply,
    jacobian_from_jvp,
    jacobian_from_vjp,
    jvp_from_apply,
    jvp_from_jacobian,
    jvp_from_vjp,
    vjp_from_apply,
    vjp_from_jacobian,
    vjp_from_jvp,
)
from tests.cases import CASES, Case
from tests.recipes.helpers import Counted, Linear, answers_of, recipe_of

JACOBIAN, JVP, VJP = "jacobian", "jacobian_vector_product", "vector_jacobian_product"
over_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@over_cases
def test_price_of_exact_routes_is_what_they_take(case: Case) -> None:
    a, linear = answers_of(case), Linear(case)
    between = (a.inputs, set(a.x), set(a.c))
    source = {JACOBIAN: linear.jacobian, JVP: linear.jvp, VJP: linear.vjp}

    def outputs_of(inputs: Any) -> Any:
        return a.y

    derived = {
        (VJP, JACOBIAN): lambda ask: vjp_from_jacobian(ask, *between, a.c),
        (JVP, JACOBIAN): lambda ask: jvp_from_jacobian(ask, *between, a.t),
        (JACOBIAN, JVP): lambda ask: jacobian_from_jvp(ask, *between),
        (VJP, JVP): lambda ask: vjp_from_jvp(ask, *between, a.c),
        (JACOBIAN, VJP): lambda ask: jacobian_from_vjp(ask, outputs_of, *between),
        (JVP, VJP): lambda ask: jvp_from_vjp(ask, outputs_of, *between, a.t),
    }
    assert {(wanted, have) for wanted, routes in EXACT.items() for have in routes} == set(derived)
    for (wanted, have), derive in derived.items():
        ask = Counted(source[have])
        derive(ask)
        assert ask.n_calls == price(wanted, have, a.x, a.c, None), (wanted, have)


@over_cases
@pytest.mark.parametrize("how", [Differences("central", noise=1e-6), Differences("forward", noise=1e-6)])
def test_price_of_differences_is_what_they_take(case: Case, how: Differences) -> None:
    a = answers_of(case)
    between = (a.inputs, set(a.x), set(a.c))
    derived = {
        JVP: lambda ask: jvp_from_apply(ask, *between, a.t, how),
        VJP: lambda ask: vjp_from_apply(ask, *between, a.c, how),
        JACOBIAN: lambda ask: jacobian_from_apply(ask, *between, how),
    }
    for wanted, derive in derived.items():
        ask = Counted(recipe_of(case).apply)
        derive(ask)
        assert ask.n_calls == price(wanted, "apply", a.x, {}, how), wanted


@pytest.mark.parametrize("n, expected", [(3, 6), (10, 20), (11, 20), (5000, 20)])
def test_price_of_samples(n: int, expected: int) -> None:
    """As many samples as entries are central differences, entry by entry."""
    for wanted in (VJP, JACOBIAN):
        assert price(wanted, "apply", {"x": np.zeros(n)}, {}, Differences("spsa", n_samples=10)) == expected


def test_what_is_derivable() -> None:
    rest = {"apply", "abstract_eval", "health"}
    assert derivable(rest, None) == frozenset()
    assert derivable(rest, Differences()) == {JACOBIAN, JVP, VJP}
    for have in EXACT:
        for differences in (None, Differences()):
            assert derivable(rest | {have}, differences) == set(EXACT) - {have}
    assert derivable(rest | set(EXACT), Differences()) == frozenset()
    assert derivable({JACOBIAN}, Differences()) == frozenset()


def test_exact_comes_before_differences() -> None:
    assert sources(VJP, {"apply"}) == ["apply"]
    assert sources(VJP, {"apply", JVP}) == [JVP]
    assert sources(JACOBIAN, {"apply", JVP, VJP}) == [JVP, VJP]


def test_advice_is_silent_where_nothing_helps() -> None:
    assert advice("abstract_eval", {"apply", JVP}) is None
    assert advice("apply", set()) is None
    assert advice(VJP, {"health"}) is None
