"""Entries with a gradient of exactly zero: which of them are cut off, and which of them are rightly silent.

`look_around` is given values and gradients as an objective has them, without a run around it: properties over random
masks and shapes. A few whole runs show what a user sees.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.optimize import Constraint, Evaluation, Problem, optimize
from tesseract_flow.optimize.constraints import ConstraintSet
from tesseract_flow.optimize.evaluator import Evaluator, Sample, Weights
from tesseract_flow.optimize.probe import View, look_around
from tesseract_flow.optimize.returned import check_evaluation
from tesseract_flow.testing import FunctionTesseract

SHAPES = [{"x": (2, 3), "y": ()}, {"a": (4,), "b": (3, 2), "c": (1,)}]


def looked_around(problem: Problem) -> tuple[View, int]:
    """What is found, and with how many evaluations besides the start's own."""
    template = check_evaluation(problem)
    constraints = ConstraintSet.build(problem.constraints or {}, template.constraints, template.objective.dtype)
    evaluator = Evaluator(problem, template, constraints, lambda fn: fn)
    weights = Weights(jnp.ones((), evaluator.dtype), constraints.silent())

    def sample(u) -> Sample | None:
        return evaluator(u, weights)

    u = problem.start
    here = sample(u)
    assert here is not None
    view = look_around(problem, problem.box, u, here, sample, evaluator)
    return view, evaluator.n_evaluations - 1


def tree_of(rng, shapes, draw):
    return {name: np.asarray(draw(rng, shape)) for name, shape in shapes.items()}


def masks_of(rng, shapes):
    masks = tree_of(rng, shapes, lambda rng, shape: rng.random(shape) < rng.choice([0.2, 0.5, 0.9]))
    name = rng.choice(list(shapes))
    masks[name].flat[rng.integers(masks[name].size)] = True
    return masks


def cut(x, mask):
    return jnp.where(mask, jax.lax.stop_gradient(x), x)


def seed_of(key) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("k", range(2))
def test_cut_entries_are_found_whichever_they_are(shapes, k, key):
    rng = seed_of(jax.random.fold_in(key, k))
    masks, goal, start = masks_of(rng, shapes), tree_of(rng, shapes, np.random.Generator.standard_normal), {}
    for name, shape in shapes.items():
        start[name] = jnp.asarray(goal[name] + rng.choice([-1, 1], shape) * rng.uniform(0.5, 2.0, shape))

    def evaluate(d):
        return sum(((cut(d[name], masks[name]) - goal[name]) ** 2).sum() for name in shapes)

    view, n = looked_around(Problem(start, evaluate))
    assert view.doubt is not None and "cannot be right" in view.doubt and view.events == (view.doubt,)
    assert n <= 6
    named = [name for name in shapes if f"'{name}'" in view.doubt]
    # Of several, some may be left out once they are known to have no part; none is accused that has none.
    assert named and all(masks[name].any() for name in named)


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("k", range(2))
def test_one_cut_entry_among_silent_ones_is_named(shapes, k, key):
    """Others are off, and some come to life next to the start: neither has a part in the change."""
    rng = seed_of(jax.random.fold_in(key, 100 + k))
    masks = tree_of(rng, shapes, lambda rng, shape: np.zeros(shape, bool))
    name = str(rng.choice(list(shapes)))
    at = np.unravel_index(rng.integers(masks[name].size), masks[name].shape)
    masks[name][at] = True
    off = tree_of(rng, shapes, lambda rng, shape: rng.random(shape) < 0.4)

    def evaluate(d):
        total = jnp.asarray(5.0)
        for name in shapes:
            alive = jnp.where(off[name] & ~masks[name], 0.0 * d[name], d[name])
            total += ((cut(alive, masks[name]) - jnp.where(masks[name], 3.0, 0.0)) ** 2).sum()
        return total

    view, n = looked_around(Problem({name: jnp.zeros(shape) for name, shape in shapes.items()}, evaluate))
    assert view.doubt is not None and f"'{name}'" in view.doubt and n <= 9
    assert not any(f"'{other}'" in view.doubt for other in shapes if other != name)
    if masks[name].size > 1:
        assert f"'{name}' (1 entry, at {[int(i) for i in at]})" in view.doubt


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("k", range(2))
@pytest.mark.parametrize(
    "kind", ["off", "rectified", "at rest", "products", "clipped", "largest", "sharp", "noise behind what is off"]
)
def test_silent_entries_of_healthy_problems_are_not_accused(kind, shapes, k, key):
    rng = seed_of(jax.random.fold_in(key, 200 + k))
    masks = masks_of(rng, shapes)
    next(iter(masks.values())).flat[0] = False  # where nothing at all has a gradient, more is looked for

    def pair(x, mask):
        match kind:
            case "off" | "noise behind what is off":
                return jnp.where(mask, 0.0, (x - 1) ** 2)
            case "rectified":
                return jnp.where(mask, jax.nn.relu(x) ** 2 + jax.nn.relu(x), (x - 1) ** 2)
            case "at rest":
                return jnp.where(mask, x**2, (x - 1) ** 2)
            case "products":
                return jnp.where(mask, jnp.roll(x, 1) * x**2, (x - 1) ** 2)
            case "clipped":
                return jnp.where(mask, jnp.clip(x, 0.002, 0.004), (x - 1) ** 2)
            case "sharp":
                return jnp.where(mask, 1e6 * x**4, (x - 1) ** 2)
        return x

    def evaluate(d):
        if kind == "largest":
            return jnp.concatenate([jnp.ravel(d[name]) for name in shapes]).max()
        value = sum(jnp.sum(pair(d[name], masks[name])) for name in shapes) + 1.0
        if kind.startswith("noise"):
            seed = jnp.concatenate([jnp.ravel(d[name]) for name in shapes])
            value += 1e-7 * jax.lax.stop_gradient(jnp.sin(1e12 * seed.sum()))
        return value

    start = {name: jnp.where(mask, -0.5 if kind == "rectified" else 0.0, 2.0) for name, mask in masks.items()}
    bounds = (0.0, 5.0) if k % 2 and kind != "rectified" else None
    view, spent = looked_around(Problem(start, evaluate, bounds=bounds))
    # What is clipped moves the value without a gradient: a short move, narrowing, and the other side.
    assert view.doubt is None and spent <= (9 if kind == "clipped" else 4), (view, spent)
    # That nothing depends on a leaf at all is a fact and no accusation.
    assert all("nothing depends on" in event or kind == "clipped" for event in view.events), view.events


def test_nothing_is_evaluated_where_nothing_is_silent():
    view, n = looked_around(Problem({"x": jnp.ones(4)}, lambda d: (d["x"] ** 2).sum()))
    assert view.doubt is None and view.events == () and n == 0


def test_what_cannot_move_is_not_looked_at():
    problem = Problem(
        jnp.array([0.0, 2.0]),
        lambda x: (jax.lax.stop_gradient(x[0]) - 3) ** 2 + x[1] ** 2,
        bounds=(jnp.array([0.0, -5.0]), jnp.array([0.0, 5.0])),
    )
    assert looked_around(problem)[1] == 0


@pytest.mark.parametrize("at", ["lower", "upper"])
def test_a_silent_entry_at_a_bound_is_moved_inwards(at):
    bounds = (0.0, 5.0) if at == "lower" else (-5.0, 0.0)
    for i in range(4):  # whatever the sign that it would be moved by
        mask = np.arange(4) == i
        problem = Problem(jnp.zeros(4), lambda x, m=mask: ((cut(x, m) - 3) ** 2).sum(), bounds=bounds)
        view, _ = looked_around(problem)
        assert view.doubt is not None and f"1 entry, at [{i}]" in view.doubt


def test_a_leaf_without_effect_is_not_accused_of_what_others_did():
    """All is flat at b = 1, so b was moved too; the change was laid at the door of a."""
    view, _ = looked_around(Problem({"a": jnp.ones(2), "b": jnp.ones(())}, lambda d: (d["b"] - 1) ** 2 + 0 * d["a"][0]))
    assert view.doubt is None
    assert any("nothing depends on 'a'" in event for event in view.events)
    assert not any("exactly zero" in event for event in view.events)


@pytest.mark.parametrize(
    ("driver", "dtype"), [("lbfgs", jnp.float64), ("adam", jnp.float32), ("slsqp", jnp.float64)], ids=str
)
def test_a_partly_cut_array_is_not_converged(driver, dtype):
    """Ended as converged, one entry having stayed where it was; in two leaves it was told."""
    problem = Problem(
        {"x": jnp.asarray([0.5, 0.0], dtype)},
        lambda d: (jax.lax.stop_gradient(d["x"][0]) - 3) ** 2 + (d["x"][1] - 1) ** 2,
    )
    result = optimize(problem, driver, transform=jax.jit, stop={"max_steps": 20})
    assert not result.converged
    assert any("'x' (1 entry, at [0]) is exactly zero" in note and "cannot be right" in note for note in result.notes)


@pytest.mark.parametrize(
    "rounded", [lambda x: jnp.round(500 * x) / 500, lambda x: (500 * x).astype(int).astype(float) / 500]
)
def test_a_partly_rounded_array_is_not_converged(rounded):
    problem = Problem({"x": jnp.array([1.0, 0.0])}, lambda d: (rounded(d["x"][0]) - 3) ** 2 + (d["x"][1] - 1) ** 2)
    result = optimize(problem, "lbfgs", transform=jax.jit)
    assert not result.converged
    assert any("'x' (1 entry, at [0]) is exactly zero" in note and "a rounding" in note for note in result.notes)


def test_what_is_flat_at_two_places_is_told_and_does_not_keep_from_converging():
    """Between them it rises, and on the other side it is flat."""
    problem = Problem(jnp.array([0.0, 0.0]), lambda x: jnp.clip(1e3 * x[0], 0.5, 1.5) + (x[1] - 1) ** 2)
    result = optimize(problem, "lbfgs", transform=jax.jit)
    assert result.converged and any("two flat places" in note for note in result.notes)


def test_a_component_without_a_derivative_by_one_entry_of_its_input():
    class Half(FunctionTesseract):
        def request(self, endpoint, payload, *, run_id=None):
            answer = super().request(endpoint, payload, run_id=run_id)
            if endpoint == "vector_jacobian_product":
                answer = {path: np.where(np.arange(3) == 1, 0.0, value) for path, value in answer.items()}
            return answer

    square = Half(lambda i: {"y": jnp.sum((i["x"] - 3) ** 2)}, {"x": jnp.ones(3)}, name="square")
    problem = Problem({"x": jnp.ones(3)}, lambda design: apply_tesseract(square, {"x": design["x"]})["y"])
    result = optimize(problem, "lbfgs", stop={"max_steps": 20})
    assert not result.converged and any("'x' (1 entry, at [1])" in note for note in result.notes)


def test_an_entry_that_only_a_constraint_depends_on_is_silent_rightly():
    problem = Problem(
        jnp.array([2.0, 2.0]),
        lambda x: Evaluation(x[0] ** 2, {"sum": x.sum()}),
        constraints={"sum": Constraint(lower=1.0)},
    )
    view, n = looked_around(problem)
    assert view.doubt is None and view.events == () and n == 1
