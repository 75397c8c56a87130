"""States survive being taken apart into named arrays."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.errors import JournalError
from tesseract_flow.optimize import AugmentedLagrangian, Constraint
from tesseract_flow.optimize.constraints import ConstraintSet
from tesseract_flow.optimize.evaluator import Sample
from tesseract_flow.optimize.state import Best, State, pack, unpack


def state(fill: float, driver) -> State:
    shapes = {"c": jax.ShapeDtypeStruct((2,), jnp.float64)}
    demands = ConstraintSet.build({"c": Constraint(equals=1.0)}, shapes, jnp.dtype("float64"))
    duals, tally = demands.start(AugmentedLagrangian.for_steps())
    u = {"a": jnp.full((2,), fill), "b": [None, jnp.asarray(fill, jnp.float32)]}
    sample = Sample(jnp.asarray(fill), u, [jnp.asarray(fill), jnp.full((3,), fill, jnp.bfloat16)])
    return State(u, driver, jnp.asarray(fill), duals, tally, sample, Best(u, sample.leaves, jnp.asarray(3)))


def test_pack_and_unpack_are_inverse_to_the_bit():
    key = jax.random.key(5)
    original = state(0.1, (jnp.asarray(3, jnp.int32), {"key": key, "old": jax.random.PRNGKey(2)}))
    again = unpack(
        pack(original), state(9.0, (jnp.asarray(0), {"key": jax.random.key(0), "old": jax.random.PRNGKey(0)}))
    )
    assert jax.tree.structure(again) == jax.tree.structure(original)
    for a, b in zip(pack(again).values(), pack(original).values(), strict=True):
        assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())
    assert (jax.random.normal(again.driver[1]["key"]) == jax.random.normal(key)).all()
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(again) if leaf is not again.driver[1]["key"])


def test_names_can_be_read():
    assert list(pack(state(0.0, (jnp.asarray(1),))))[:3] == ["u.a", "u.b.[1]", "driver.[0]"]


def test_arrays_of_another_structure_are_refused_by_name():
    arrays = pack(state(0.0, (jnp.asarray(1),)))
    with pytest.raises(JournalError, match=r"driver.\[1\]"):
        unpack(arrays, state(0.0, (jnp.asarray(1), jnp.asarray(2))))
    shuffled = dict(reversed(arrays.items()))
    with pytest.raises(JournalError, match="does not fit this run"):
        unpack(shuffled, state(0.0, (jnp.asarray(1),)))


def test_restored_arrays_do_not_alias_the_buffer_they_came_from():
    buffer = np.zeros(2)
    arrays = pack(state(0.0, ()))
    restored = unpack({**arrays, "u.a": buffer}, state(0.0, ()))
    buffer += 1
    assert restored.u["a"].tolist() == [0.0, 0.0]
    assert dataclasses.is_dataclass(restored)


def test_a_state_from_before_units_is_read_with_units_of_one():
    whole = state(0.5, ())
    arrays = pack(whole)
    old = {name: array for name, array in arrays.items() if not name.startswith("duals.unit")}
    assert len(old) == len(arrays) - 1
    restored = unpack(old, whole)
    assert restored.duals.unit["c"].tolist() == [1.0, 1.0] and float(restored.here.lagrangian) == 0.5


def test_a_state_with_one_unit_for_all_entries_is_read_with_as_many_as_there_are():
    whole = state(0.5, ())
    arrays = pack(whole)
    assert arrays["duals.unit.c"].shape == (2,)
    restored = unpack({**arrays, "duals.unit.c": np.asarray(7.0)}, whole)
    assert restored.duals.unit["c"].tolist() == [7.0, 7.0]
    with pytest.raises(JournalError, match=r"duals.unit.c has shape \(3,\)"):
        unpack({**arrays, "duals.unit.c": np.ones(3)}, whole)
