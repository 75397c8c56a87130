"""What a run is about to call an optimum is looked at once, by values alone; healthy problems are never accused."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.optimize import claims
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import Watched
from tests.optimize.helpers import beam_problem, hs71_problem, rosenbrock_problem

CENTRE = np.array([1.0, -2.0, 3.0])
SAYS = "check the gradients of faulty"


class Off(Watched):
    """A square of a distance whose pullback is changed, by a function of what it is and of where."""

    def __init__(self, change: Any):
        part = FunctionTesseract(
            lambda i: {"y": ((i["x"] - jnp.asarray(CENTRE)) ** 2).sum()}, {"x": np.ones(3)}, name="faulty"
        )
        super().__init__(part)
        self.change = change

    def request(self, endpoint: Any, payload: Any, *, run_id: str | None = None) -> Any:
        answer = super().request(endpoint, payload, run_id=run_id)
        if endpoint != "vector_jacobian_product":
            return answer
        return {"x": self.change(np.asarray(answer["x"]), np.asarray(payload["inputs"]["x"]))}


def through(change: Any, more: Any = lambda x: 0.0) -> tf.Problem:
    part = Off(change)
    return tf.Problem(jnp.full(3, 5.0), lambda x: tf.apply_tesseract(part, {"x": x})["y"] + more(x), name="planted")


def away(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return y * np.where(np.abs(x - 5.0) < 0.3, 1.0, np.array([1.0, 1.0, 0.0]))


FAULTS = {
    "a constant": lambda: through(lambda y, x: y + np.array([8.0, 0.0, 0.0])),
    "a small constant": lambda: through(lambda y, x: y + np.array([0.05, 0.0, 0.0])),
    "a factor beside a plain term": lambda: through(lambda y, x: 1.2 * y, lambda x: (x**2).sum()),
    "an entry, away from the start": lambda: through(away),
}


def slowly(*drivers: str) -> list[Any]:
    return [pytest.param(driver, marks=pytest.mark.slow) for driver in drivers]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("driver", ["slsqp", *slowly("lbfgs", "l-bfgs-b", "mma", "trust-constr")])
def test_what_the_start_does_not_show_is_not_claimed(fault: str, driver: str) -> None:
    result = tf.optimize(FAULTS[fault](), driver, verify_gradients="start", stop={"max_steps": 40})
    # Those that find the true optimum all the same, along a way that is right, may say so.
    assert not result.converged or result.value < 1e-12
    if driver == "slsqp":
        assert "the gradient predicts" in result.reason
        assert SAYS in result.reason


@pytest.mark.parametrize("entry", [0, 1, 2])
@pytest.mark.parametrize("driver", ["slsqp", *slowly("l-bfgs-b", "lbfgs", "mma")])
def test_what_a_wrong_gradient_holds_at_a_bound_is_not_claimed(driver: str, entry: int) -> None:
    """There no entry has room on both sides, and the sign of its own slope is all that the claim says of it."""
    sign = np.where(np.arange(3) == entry, -1.0, 1.0)
    problem = dataclasses.replace(
        through(lambda y, x: sign * y), bounds=(-6.0, 6.0), design=jnp.where(sign < 0, 6.0, 5.0)
    )
    assert tf.optimize(problem, driver, stop={"max_steps": 60}).converged
    result = tf.optimize(problem, driver, verify_gradients="start", stop={"max_steps": 60})
    assert not result.converged
    assert "the gradient predicts" in result.reason and SAYS in result.reason


def test_what_a_look_costs_is_counted() -> None:
    def problem() -> tf.Problem:
        return through(lambda y, x: y)

    plain = tf.optimize(problem(), "slsqp")
    with tf.count_requests() as requests:
        looked = tf.optimize(problem(), "slsqp", verify_gradients="start")
    assert plain.converged and looked.converged
    assert looked.evaluations == plain.evaluations + 3 == requests.n_of("apply")
    assert looked.requests == requests.n_total - requests.n_of("abstract_eval")
    faulty = tf.optimize(FAULTS["a constant"](), "slsqp", verify_gradients="start")
    assert faulty.evaluations == faulty.history[-1].evaluations <= faulty.history[-2].evaluations + 5


def test_a_journal_of_a_refused_claim_is_looked_at_again(tmp_path: Any) -> None:
    """It is no way to get the claim; and once the component is mended, the run goes on to the optimum."""
    faults = [lambda y, x: y + np.array([8.0, 0.0, 0.0])]
    problem = through(lambda y, x: faults[0](y, x))
    options: dict[str, Any] = {"journal": tmp_path, "verify_gradients": "start"}
    first = tf.optimize(problem, "slsqp", **options)
    again = tf.optimize(problem, "slsqp", **options)
    assert SAYS in first.reason and SAYS in again.reason
    assert not again.converged and again.steps > first.steps
    faults[0] = lambda y, x: y
    mended = tf.optimize(problem, "slsqp", **options)
    assert mended.converged and mended.value < 1e-9, mended.reason
    n_steps, n_spent = mended.steps, mended.evaluations
    read = tf.optimize(problem, "slsqp", **options)
    assert read.converged and (read.steps, read.evaluations) == (n_steps, n_spent)


@pytest.mark.parametrize("before", [{"stop": {"gradient_tolerance": 0, "max_steps": 2}}, {"verify_gradients": None}])
def test_a_claim_that_a_journal_does_not_know_of_is_looked_at(tmp_path: Any, before: dict[str, Any]) -> None:
    """A wider tolerance makes an optimum of a design that no step called one."""
    options: dict[str, Any] = {"journal": tmp_path, "verify_gradients": "start"}
    first = tf.optimize(FAULTS["a constant"](), "slsqp", **options | before)
    assert "predicts" not in first.reason
    result = tf.optimize(FAULTS["a constant"](), "slsqp", **options)
    assert not result.converged and SAYS in result.reason
    assert result.steps == first.steps + 1


def test_a_claim_is_looked_at_once(tmp_path: Any) -> None:
    options: dict[str, Any] = {"journal": tmp_path}
    first = tf.optimize(hs71_problem(), "slsqp", **options)
    looked = tf.optimize(hs71_problem(), "slsqp", verify_gradients="start", **options)
    assert first.converged and looked.converged and looked.steps == first.steps + 1
    for verify in ("start", None):
        again = tf.optimize(hs71_problem(), "slsqp", verify_gradients=verify, **options)
        assert again.converged and (again.steps, again.evaluations) == (looked.steps, looked.evaluations)


def test_a_run_that_was_cut_off_before_the_claim_gives_the_same_bits(tmp_path: Any) -> None:
    def run(**options: Any) -> Any:
        return tf.optimize(hs71_problem(), "slsqp", verify_gradients="start", **options)

    whole = run()
    for n in (whole.steps - 1, None):
        cut = run(journal=tmp_path, stop=None if n is None else {"max_steps": n})
    assert whole.converged and cut.converged
    assert (cut.value, cut.evaluations, cut.steps) == (whole.value, whole.evaluations, whole.steps)
    assert np.array_equal(np.asarray(cut.design), np.asarray(whole.design))


def quadratic(n: int, condition: float, constant: float = 0.0) -> tf.Problem:
    rng = np.random.default_rng(n)
    axes, _ = np.linalg.qr(rng.standard_normal((n, n)))
    hessian, centre = axes @ np.diag(np.logspace(0, np.log10(condition), n)) @ axes.T, 3 * rng.standard_normal(n)
    return tf.Problem(
        jnp.asarray(rng.standard_normal(n)), lambda x: 0.5 * (x - centre) @ hessian @ (x - centre) + constant
    )


def noisy(noise: float) -> tf.Problem:
    def evaluate(x: Any) -> Any:
        y = 1 + (x[0] - 1) ** 2 + (x[1] + 2) ** 2 + (x[0] * x[1]) ** 2
        return y + jax.lax.stop_gradient(noise * y * jnp.sin(1e13 * y))

    return tf.Problem(jnp.array([0.3, 0.2]), evaluate)


def of_two(evaluate: Any, start: Any = (3.0, 2.0), **options: Any) -> Any:
    return lambda: tf.Problem(jnp.asarray(start), evaluate, **options)


HEALTHY = {
    "a bowl": lambda: quadratic(5, 1e2),
    "a long valley": lambda: quadratic(8, 1e6),
    "a large constant": lambda: quadratic(4, 10.0, 1e6),
    "Rosenbrock": rosenbrock_problem,
    "HS71": hs71_problem,
    "active bounds": of_two(lambda x: ((x - jnp.array([3.0, 0.3])) ** 2).sum(), (0.5, 0.5), bounds=(0.0, 1.0)),
    "close to a bound": of_two(lambda x: ((x - jnp.array([1 - 1e-7, 1e-5])) ** 2).sum(), (0.5, 0.5), bounds=(0.0, 1.0)),
    "noise": lambda: noisy(1e-10),
    "more noise": lambda: noisy(1e-8),
    "single precision": lambda: tf.Problem(
        jnp.array([-1.2, 1.0], jnp.float32), lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
    ),
    "a kink at it": of_two(lambda x: ((x - 1.0) ** 2).sum() + 10 * jnp.maximum(0.0, x[0] - 1.0)),
    "a kink next to it": of_two(lambda x: ((x - 1.0) ** 2).sum() + jnp.maximum(0.0, x[0] - 1.0 - 5e-5)),
    "two kinks": of_two(lambda x: ((x - 1.0) ** 2).sum() + jnp.abs(x[1] - 1 + 3e-4) + jnp.abs(x[0] - 1 - 1e-6)),
    "as good as a kink": of_two(lambda x: jnp.sqrt(1e-12 + x[0] ** 2) + 0.1 * x[0] + x[1] ** 2, (1e-6, 1.0)),
    "a small entry": of_two(lambda x: jnp.log(x / 1e-6).sum() ** 2, (2e-6, 3e-6), bounds=(1e-9, 1.0)),
    "lopsided": of_two(lambda x: jnp.exp(50 * x[0]) + jnp.exp(-30 * x[0]) + x[1] ** 2, (0.1, 1.0)),
    "a saddle of the Lagrangian": of_two(
        lambda x: tf.Evaluation(-x[0] * x[1], {"sum": x.sum()}),
        (0.1, 1.0),
        constraints={"sum": tf.Constraint(upper=2.0)},
        bounds=(0.0, 5.0),
    ),
}


@pytest.mark.slow
def test_neither_is_a_larger_one() -> None:
    assert tf.optimize(beam_problem(), "slsqp", verify_gradients="start").converged


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        *(("slsqp", name) for name in HEALTHY),
        *(
            pytest.param(driver, name, marks=pytest.mark.slow)
            for driver in ("lbfgs", "trust-constr", "mma", "adam")
            for name in HEALTHY
            if (driver, name) != ("mma", "HS71")  # which has an equality
        ),
    ],
)
def test_right_gradients_are_never_accused(name: str, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, look = [], claims.verify_claim

    def looked(*args: Any) -> Any:
        looks.append(look(*args))
        return looks[-1]

    monkeypatch.setattr(claims, "verify_claim", looked)
    result = tf.optimize(HEALTHY[name](), driver, verify_gradients="start", stop={"max_steps": 150})
    assert "predicts" not in result.reason
    assert looks == ([None] if result.converged else [])


@pytest.mark.parametrize("dtype", [jnp.float16, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_half_precision_claims_nothing_absurd(dtype: Any) -> None:
    """The tolerance was a thousand roundings: 0.98, or 7.8 and an error of a rule that nobody had set."""
    problem = tf.Problem(
        {"a": jnp.array([0.3, 1.0], dtype), "b": jnp.asarray(2.0)},
        lambda d: 1 + ((d["a"].astype(jnp.float64) - 0.7) ** 2).sum() + d["b"] ** 2,
    )
    result = tf.optimize(problem, "lbfgs", stop={"max_steps": 20})
    assert result.optimality is not None and result.optimality.tolerance == 0.01
    assert result.converged and result.value == pytest.approx(1.0, abs=1e-3)
    assert any("'a' varies in half precision" in note for note in result.notes)
    assert not any("'b'" in note for note in result.notes)
    at_start = tf.optimize(problem, "lbfgs", stop={"max_steps": 0})
    assert not at_start.converged


@pytest.mark.parametrize("power", [2, 3, 4])
def test_a_start_on_a_ridge_is_told(power: int) -> None:
    def evaluate(d: Any) -> Any:
        return d["x"] ** 6 - jnp.abs(d["x"]) ** power + d["y"] ** 2

    start = {"x": jnp.asarray(0.0), "y": jnp.asarray(1.0)}
    result = tf.optimize(tf.Problem(start, evaluate), "lbfgs")
    assert result.value == pytest.approx(0.0, abs=1e-12)  # nothing that follows gradients leaves it
    (note,) = [note for note in result.notes if "ridge" in note]
    assert "with respect to 'x' is exactly zero" in note
    beside = tf.optimize(tf.Problem({**start, "x": jnp.asarray(0.1)}, evaluate), "lbfgs")
    assert beside.value < -0.1
    assert not any("ridge" in note for note in beside.notes)


def test_a_ridge_costs_no_evaluation_and_a_valley_is_none() -> None:
    start = {"x": jnp.asarray(0.0), "y": jnp.asarray(1.0)}
    ridge = tf.optimize(tf.Problem(start, lambda d: d["y"] ** 2 - d["x"] ** 2 + d["x"] ** 4), stop={"max_steps": 0})
    valley = tf.optimize(tf.Problem(start, lambda d: d["y"] ** 2 + d["x"] ** 2 + d["x"] ** 4), stop={"max_steps": 0})
    assert ridge.evaluations == valley.evaluations == 2
    assert any("ridge" in note for note in ridge.notes) and not any("ridge" in note for note in valley.notes)
