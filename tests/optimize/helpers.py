"""Problems with known answers, in plain JAX, and small tools that several test modules share."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from tesseract_flow.optimize import Constraint, Evaluation, Problem, Result, build_driver
from tesseract_flow.optimize.drivers.optax.named import OptaxDriver

BEAM_OPTIMUM = 23762.153678
N_ELEMENTS = 50


@jax.jit
def beam_compliance(thickness: jax.Array) -> jax.Array:
    """Tip-loaded Euler–Bernoulli cantilever: stiffness matrix of Hermite elements, dense solve."""
    n = thickness.shape[0]
    length = 1 / n
    second_moment = 0.1 * thickness**3 / 12
    a, b = 6 * length, length**2
    element = jnp.array([[12, a, -12, a], [a, 4 * b, -a, 2 * b], [-12, -a, 12, -a], [a, 2 * b, -a, 4 * b]]) / length**3
    dofs = 2 * jnp.arange(n)[:, None] + jnp.arange(4)
    stiffness = jnp.zeros((2 * n + 2, 2 * n + 2))
    stiffness = stiffness.at[dofs[:, :, None], dofs[:, None, :]].add(second_moment[:, None, None] * element)
    load = jnp.zeros(2 * n).at[2 * n - 2].set(-1.0)
    return load @ jnp.linalg.solve(stiffness[2:, 2:], load)


def beam_problem(constraint: Constraint | None = None, start: float = 0.1) -> Problem:
    def evaluate(design):
        h = design["thickness"]
        return Evaluation(
            beam_compliance(h), {"volume": 0.1 / N_ELEMENTS * h.sum()}, aux={"thickness": h, "kind": "beam"}
        )

    return Problem(
        {"thickness": jnp.full(N_ELEMENTS, start), "label": "beam"},
        evaluate,
        bounds=(1e-2, 10.0),
        constraints={"volume": constraint or Constraint(equals=0.01)},
        scale=0.1,
        name="beam",
    )


def beam_thickness() -> np.ndarray:
    """The optimal thickness in closed form: h ∝ c^(1/4) with c_i = 12/(E b) ∫_i M², scaled to the volume."""
    s = np.arange(N_ELEMENTS + 1) / N_ELEMENTS
    c = 120 * ((1 - s[:-1]) ** 3 - (1 - s[1:]) ** 3) / 3
    h = c**0.25
    return h * 0.01 / (0.1 / N_ELEMENTS * h.sum())


def rosenbrock(design: dict[str, jax.Array]) -> jax.Array:
    x, y = design["x"], design["y"]
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def rosenbrock_problem(**kwargs) -> Problem:
    return Problem({"x": jnp.asarray(-1.2), "y": jnp.asarray(1.0)}, rosenbrock, name="rosenbrock", **kwargs)


def hs71_problem() -> Problem:
    """Hock & Schittkowski 71: an equality, an inequality, and bounds that are active at the optimum 17.0140173."""

    def evaluate(x):
        objective = x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2]
        return Evaluation(objective, {"product": jnp.prod(x), "squares": (x**2).sum()})

    demands = {"product": Constraint(lower=25.0), "squares": Constraint(equals=40.0)}
    return Problem(jnp.array([1.0, 5.0, 5.0, 1.0]), evaluate, bounds=(1.0, 5.0), constraints=demands)


def optax_driver(driver: Any, learning_rate: float | None = None, settings: Any = None) -> OptaxDriver:
    """`build_driver`, for what only Optax's drivers have."""
    built = build_driver(driver, learning_rate, settings)
    assert isinstance(built, OptaxDriver)
    return built


class Counted:
    """A `transform` that counts calls of what it transforms, and compiles it."""

    def __init__(self, before=lambda n: None):
        self.n_calls, self.n_traces, self.before = 0, 0, before

    def __call__(self, fn):
        def traced(*args):
            self.n_traces += 1
            return fn(*args)

        compiled = eqx.filter_jit(traced)

        def call(*args):
            self.n_calls += 1
            self.before(self.n_calls)
            return compiled(*args)

        return call


def same_bits(a: Result, b: Result) -> bool:
    """Equal designs to the bit, and equal histories but for the clock."""

    def timeless(result):
        return [
            {key: value for key, value in record.to_json().items() if key != "seconds"} for record in result.history
        ]

    leaves = zip(jax.tree.leaves(a.design), jax.tree.leaves(b.design), strict=True)
    return timeless(a) == timeless(b) and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() if eqx.is_array(x) else x == y for x, y in leaves
    )
