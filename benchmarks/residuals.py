"""What it costs to differentiate a JAX component whose `apply` keeps residuals for its pullback.

In this process and without a server, so that nothing but the recipes is measured.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np

from benchmarks.measuring import Bench, Row, median_seconds

PATH = "temperature"


def recipe_rows(bench: Bench) -> list[Row]:
    """An `apply` and its pullback: our recipe, tesseract-core's with and without its cache, and plain compiled JAX.

    Residuals are as large as the states of all steps. Where a step costs little, keeping them costs as much.
    """
    size, n_steps = (8, 5) if bench.is_quick else (64, 200)
    rows = []
    for steps in ("costly", "cheap"):
        contestants = _contestants(size, n_steps, steps)
        ours, cached, plain, compiled = (1e3 * seconds for seconds in median_seconds(contestants, bench.repeat(41)))
        work = f"apply + pullback of a JAX component, residuals kept ({size} × {size}, {n_steps} {steps} steps)"
        rows += [
            Row(f"recipe-{steps}", work, "ms", ours, cached, "tesseract-core's recipe, with its cache", 0.9),
            Row(f"recipe-{steps}", work, "ms", ours, plain, "tesseract-core's recipe, without", 0.9),
            Row(f"compiled-{steps}", work, "ms", ours, compiled, "compiled forward + backward", 1.05),
        ]
    return rows


def _contestants(size: int, n_steps: int, steps: str) -> list[Callable[[], Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks of pydantic and tesseract-core about themselves
        from tesseract_core.runtime.experimental import set_jax_vjp_cache_size
        from tesseract_core.runtime.jax_recipes import jax_apply, jax_vjp

        from benchmarks.heat import tesseract_api as heat

    compiled_conduct = eqx.filter_jit(heat.conduct)
    random = np.random.default_rng(0)
    start, c = random.normal(size=(size, size)), random.normal(size=(size, size))
    n_made = 0

    def fresh() -> Any:
        """Inputs that nobody has seen."""
        nonlocal n_made
        n_made += 1
        values: dict[str, Any] = {PATH: start * (1.0 + 1e-3 * n_made), "n_steps": n_steps, "steps": steps}
        return heat.InputSchema(**values)

    def our_recipe() -> Any:
        inputs = fresh()
        y = heat.recipe.apply(inputs)
        return y, heat.recipe.vector_jacobian_product(inputs, {PATH}, {PATH}, {PATH: c})

    def their_recipe() -> Any:
        inputs = fresh()
        # On its way out of a component every answer becomes NumPy.
        y = np.asarray(jax_apply(compiled_conduct, inputs)[PATH])
        return y, np.asarray(jax_vjp(compiled_conduct, inputs, {PATH}, {PATH}, {PATH: c})[PATH])

    def with_cache(n_entries: int) -> Callable[[], Any]:
        def run() -> Any:
            set_jax_vjp_cache_size(n_entries)
            return their_recipe()

        return run

    @jax.jit
    def both(x: Any, c: Any) -> Any:
        y, pullback = jax.vjp(lambda x: heat.conduct({PATH: x, "n_steps": n_steps, "steps": steps})[PATH], x)
        return y, pullback(c)[0]

    def by_hand() -> Any:
        return tuple(map(np.asarray, both(fresh().temperature, c)))

    return [our_recipe, with_cache(1), with_cache(0), by_hand]
