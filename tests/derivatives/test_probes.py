"""Probes run one after the other or at once, in any order, and come to the same; their names tell where they are."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tesseract_flow.derivatives import (
    Differences,
    estimate_noise,
    jacobian_from_apply,
    jacobian_from_jvp,
    jacobian_from_vjp,
    jvp_from_apply,
    jvp_from_vjp,
    vjp_from_apply,
    vjp_from_jvp,
)
from tesseract_flow.derivatives.probes import MapProbes, n_units, units
from tests.cases import CASES
from tests.helpers import assert_close
from tests.recipes.helpers import Linear, answers_of, recipe_of

(CASE,) = (case for case in CASES if case.name == "nested")
A = answers_of(CASE)
SPSA = Differences("spsa", n_samples=3)
BETWEEN = (A.inputs, set(A.x), set(A.c))

DERIVED: dict[str, Callable[[MapProbes], Any]] = {
    "jacobian from jvp": lambda how: jacobian_from_jvp(Linear(CASE).jvp, *BETWEEN, map_probes=how),
    "jacobian from vjp": lambda how: jacobian_from_vjp(Linear(CASE).vjp, lambda _: A.y, *BETWEEN, map_probes=how),
    "vjp from jvp": lambda how: vjp_from_jvp(Linear(CASE).jvp, *BETWEEN, A.c, map_probes=how),
    "jvp from vjp": lambda how: jvp_from_vjp(Linear(CASE).vjp, lambda _: A.y, *BETWEEN, A.t, map_probes=how),
    "jvp from apply": lambda how: jvp_from_apply(recipe_of(CASE).apply, *BETWEEN, A.t, map_probes=how),
    "vjp from apply": lambda how: vjp_from_apply(recipe_of(CASE).apply, *BETWEEN, A.c, map_probes=how),
    "jacobian from apply, forward": lambda how: jacobian_from_apply(
        recipe_of(CASE).apply, *BETWEEN, Differences("forward"), map_probes=how
    ),
    "vjp by SPSA": lambda how: vjp_from_apply(recipe_of(CASE).apply, *BETWEEN, A.c, SPSA, map_probes=how),
    "jacobian by SPSA": lambda how: jacobian_from_apply(recipe_of(CASE).apply, *BETWEEN, SPSA, map_probes=how),
    "noise": lambda how: estimate_noise(recipe_of(CASE).apply, *BETWEEN, map_probes=how),
}


def shuffled(fn: Callable[[Any], Any], probes: Sequence[Any]) -> Iterator[Any]:
    """As a pool might run them: in any order, answered in theirs."""
    order = list(range(len(probes)))
    random.Random(0).shuffle(order)
    answers = {k: fn(probes[k]) for k in order}
    return (answers[k] for k in range(len(probes)))


@pytest.mark.parametrize("derive", DERIVED.values(), ids=DERIVED)
def test_order_of_the_probes_does_not_matter(derive: Callable[[MapProbes], Any]) -> None:
    one_by_one = derive(map)
    assert_close(derive(shuffled), one_by_one, 0.0)
    with ThreadPoolExecutor(4) as pool:
        assert_close(derive(pool.map), one_by_one, 0.0)


@pytest.mark.parametrize("derive", DERIVED.values(), ids=DERIVED)
def test_probes_come_in_one_go_and_have_names(derive: Callable[[MapProbes], Any]) -> None:
    seen: list[list[str]] = []

    def watched(fn: Callable[[Any], Any], probes: Sequence[Any]) -> Iterator[Any]:
        seen.append([str(probe) for probe in probes])
        return map(fn, probes)

    derive(watched)
    assert len(seen) == 1
    assert all(name.startswith(("input '", "output '", "the ", "random direction ")) for name in seen[0])


def test_units_are_counted_without_being_made() -> None:
    arrays = {"a": np.zeros((2, 3)), "z": np.zeros(2, complex), "s": np.zeros(()), "none": np.zeros((0, 4))}
    for imaginary in (None, 1j):
        found = list(units("input", arrays, imaginary))
        assert len(found) == n_units(arrays, is_split=imaginary is not None) == (9 if imaginary is None else 11)
        assert len({str(unit) for unit in found}) == len(found)
        total = np.concatenate([unit.vector(arrays)[unit.path].ravel() for unit in found])
        assert np.sum(np.abs(total)) == len(found)


def test_noise_of_complex_outputs() -> None:
    x = np.linspace(0.5, 1.5, 20)

    def apply(i: Any) -> Any:
        jitter = 1e-8 * np.sin(3e15 * i["x"].real)
        return {"y": np.exp(1j * i["x"]) * (1.0 + jitter)}

    for dtype in (float, complex):
        assert 1e-9 < estimate_noise(apply, {"x": x.astype(dtype)}, {"x"}, {"y"})["y"] < 1e-7


def test_settings_are_values() -> None:
    one, other = (Differences(typical={"x": typical}) for typical in (np.array([1.0, 2.0]), [1, 2]))
    assert one == other
    assert hash(one) == hash(other)
    assert one != Differences(typical={"x": [1.0, 3.0]})
