"""What a recipe compiles, runs and keeps: each as little as it can, and never for another input."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import BaseModel

from tesseract_flow.recipes import JaxRecipe, ResidualCache
from tests.helpers import assert_close
from tests.recipes.helpers import Counted

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pydantic's and tesseract-core's remarks about themselves
    from tesseract_core.runtime import Array, Differentiable, Float64

kept_or_not = pytest.mark.parametrize("keep", [False, True], ids=["anew", "kept"])


def forward_runs(fn: Any) -> tuple[Any, list[int]]:
    """The function, and a list that grows with each run of it; compiling it is no run."""
    runs: list[int] = []

    def counted(inputs: Any) -> Any:
        jax.debug.callback(lambda: runs.append(1))
        return fn(inputs)

    return counted, runs


def test_pullback_after_apply_runs_the_backward_pass_alone() -> None:
    fn, runs = forward_runs(lambda i: {"y": jnp.sin(i["x"]) * i["x"]})
    recipe = JaxRecipe(fn, residual_cache=True)
    inputs = {"x": np.array([1.0, 2.0])}
    recipe.apply(inputs)
    for scale in (1.0, -2.0, 3.0):
        x_bar = recipe.vector_jacobian_product({"x": inputs["x"].copy()}, {"x"}, {"y"}, {"y": scale * np.ones(2)})
        x = inputs["x"]
        assert_close(x_bar, {"x": scale * (np.cos(x) * x + np.sin(x))})
    jax.effects_barrier()
    assert len(runs) == 1
    assert recipe.residual_cache is not None
    assert (recipe.residual_cache.hits, recipe.residual_cache.misses) == (3, 0)


def test_pullbacks_without_apply_run_forward_once() -> None:
    fn, runs = forward_runs(lambda i: {"y": jnp.sin(i["x"])})
    recipe = JaxRecipe(fn, residual_cache=True)
    for _ in range(3):
        recipe.vector_jacobian_product({"x": np.ones(2)}, {"x"}, {"y"}, {"y": np.ones(2)})
    jax.effects_barrier()
    assert len(runs) == 1
    assert recipe.stats() | {"programs": 0, "bytes": 0} == {
        "programs": 0,
        "hits": 2,
        "misses": 1,
        "evictions": 0,
        "oversized": 0,
        "entries": 1,
        "bytes": 0,
    }


def test_nothing_is_kept_by_default() -> None:
    fn, runs = forward_runs(lambda i: {"y": jnp.sin(i["x"])})
    recipe = JaxRecipe(fn)
    recipe.apply({"x": np.ones(2)})
    recipe.vector_jacobian_product({"x": np.ones(2)}, {"x"}, {"y"}, {"y": np.ones(2)})
    jax.effects_barrier()
    assert recipe.residual_cache is None
    assert len(runs) == 2
    assert set(recipe.stats().values()) == {0, 2}  # two programs, and no counter of a cache


def test_residuals_are_of_the_values_at_the_time() -> None:
    """Whoever writes into an array that was an input gets the gradient of its new values, and not of the old ones."""
    recipe = JaxRecipe(lambda i: {"y": jnp.sum(i["x"] ** 3)}, residual_cache=True)
    x = np.array([1.0, 2.0])
    recipe.apply({"x": x})
    x[0] = 5.0

    def gradient():
        return recipe.vector_jacobian_product({"x": x}, {"x"}, {"y"}, {"y": 1.0})["x"]

    assert gradient().tolist() == [75.0, 12.0]
    x[0] = 1.0
    assert gradient().tolist() == [3.0, 12.0]
    assert recipe.stats()["hits"] == 1


def test_inputs_that_only_python_takes_for_equal_are_apart() -> None:
    factors = {int: 2.0, float: 3.0, bool: 4.0}
    recipe = JaxRecipe(lambda i: {"y": i["x"] * factors[type(i["flag"])] * jnp.sign(1 / i["z"])}, residual_cache=True)
    points = [{"x": np.ones(1), "flag": flag, "z": np.array(z)} for flag in (1, 1.0, True) for z in (0.0, -0.0)]
    for inputs in points:
        recipe.apply(inputs)
    for inputs in points:
        x_bar = recipe.vector_jacobian_product(inputs, {"x"}, {"y"}, {"y": np.ones(1)})["x"]
        assert x_bar.item() == factors[type(inputs["flag"])] * np.copysign(1.0, inputs["z"])
    assert recipe.stats()["hits"] == len(points)


@kept_or_not
def test_minus_one_and_minus_two(keep: bool) -> None:
    """Their hashes are equal, in dictionaries and in JAX's cache of compiled programs."""
    recipe = JaxRecipe(lambda i: {"y": i["n"] * i["x"]}, residual_cache=keep)
    inputs = [{"n": n, "x": np.array(3.0)} for n in (-1, -2)]
    assert [recipe.apply(point)["y"].item() for point in inputs] == [-3.0, -6.0]
    for point in inputs:
        assert recipe.vector_jacobian_product(point, {"x"}, {"y"}, {"y": 1.0})["x"].item() == point["n"]


def test_nan_is_found_again() -> None:
    recipe = JaxRecipe(lambda i: {"y": i["x"] * i["scale"]}, residual_cache=True)

    def inputs():
        return {"x": np.array([np.nan, 1.0]), "scale": float("nan")}

    recipe.apply(inputs())
    recipe.vector_jacobian_product(inputs(), {"x"}, {"y"}, {"y": np.ones(2)})
    assert recipe.stats()["hits"] == 1


def test_recipes_may_share_a_cache() -> None:
    cache = ResidualCache()
    double, triple = (
        JaxRecipe(lambda i, factor=factor: {"y": factor * i["x"]}, residual_cache=cache) for factor in (2.0, 3.0)
    )
    for recipe, slope in ((double, 2.0), (triple, 3.0), (double, 2.0)):
        recipe.apply({"x": np.ones(())})
        assert recipe.vector_jacobian_product({"x": np.ones(())}, {"x"}, {"y"}, {"y": 1.0})["x"].item() == slope
    assert len(cache) == 2


def test_bounds_hold() -> None:
    cache = ResidualCache(max_entries=3)
    recipe = JaxRecipe(lambda i: {"y": jnp.sin(i["x"])}, residual_cache=cache)
    points = [{"x": np.full(100, float(i))} for i in range(5)]
    for point in points:
        recipe.apply(point)
    assert (len(cache), cache.evictions) == (3, 2)
    # The cosines and the inputs, and perhaps the inputs again.
    assert 3 * 1600 <= cache.bytes <= 3 * 2400
    small = JaxRecipe(recipe.fn, residual_cache=ResidualCache(max_bytes=cache.bytes // 3))
    for point in points:
        small.apply(point)
        small.vector_jacobian_product(point, {"x"}, {"y"}, {"y": np.ones(100)})
    assert small.stats()["entries"] == 1
    tiny = JaxRecipe(recipe.fn, residual_cache=ResidualCache(max_bytes=1000))
    assert_close(tiny.apply(points[1]), {"y": np.sin(points[1]["x"])})
    assert tiny.stats()["oversized"] == 1


def test_no_more_residuals_exist_than_may_be_kept() -> None:
    """The oldest ones go before new ones are computed, and not after."""
    cache = ResidualCache(max_entries=2)
    kept_meanwhile: list[int] = []

    def fn(i: Any) -> Any:
        jax.debug.callback(lambda: kept_meanwhile.append(len(cache)))
        return {"y": jnp.sin(i["x"])}

    recipe = JaxRecipe(fn, residual_cache=cache)
    for x in (1.0, 2.0, 3.0, 3.0, 4.0):
        recipe.apply({"x": np.array(x)})
        jax.effects_barrier()
    assert kept_meanwhile == [0, 1, 1, 1, 1]
    assert (len(cache), cache.evictions) == (2, 2)


def test_failed_run_leaves_everything_usable() -> None:
    def fn(i: Any) -> Any:
        if i["mode"] == "raise":
            raise RuntimeError("the mesh is tangled")
        return {"y": i["x"] * 2.0}

    recipe = JaxRecipe(fn, residual_cache=True)
    good = {"x": np.ones(2), "mode": "go"}
    recipe.apply(good)
    with pytest.raises(RuntimeError, match="tangled"):
        recipe.apply({"x": np.ones(2), "mode": "raise"})
    assert recipe.vector_jacobian_product(good, {"x"}, {"y"}, {"y": np.ones(2)})["x"].tolist() == [2.0, 2.0]
    assert recipe.stats()["hits"] == 1


@kept_or_not
def test_everything_is_compiled_once_per_structure(keep: bool) -> None:
    fn = Counted(lambda i: {"y": i["x"] * i["power"] * i["parts"][0], "unused": i["x"]})
    recipe = JaxRecipe(fn, residual_cache=keep)

    def call_all(size: int, power: int) -> int:
        inputs = {"x": np.random.default_rng(size).normal(size=size), "power": power, "parts": [np.float64(2.0)]}
        before = fn.n_calls
        one = np.ones(size)
        recipe.apply(inputs)
        recipe.vector_jacobian_product(inputs, {"x"}, {"y"}, {"y": one})
        recipe.vector_jacobian_product(inputs, {"parts.[0]"}, {"y"}, {"y": one})
        recipe.jacobian_vector_product(inputs, {"x"}, {"y"}, {"x": one})
        recipe.jacobian(inputs, {"x"}, {"y"})
        recipe.abstract_eval(inputs)
        return fn.n_calls - before

    first = call_all(3, 2)
    n_programs = recipe.stats()["programs"]
    assert [call_all(3, 2) for _ in range(3)] == [0, 0, 0]
    # Running and its form are one program, unless running keeps residuals.
    assert recipe.stats()["programs"] == n_programs == (6 if keep else 5)
    # Other shapes and other constants are other programs, and the old ones stay.
    assert [call_all(4, 2), call_all(3, 3), call_all(4, 2), call_all(3, 2), call_all(3, 3)] == [first, first, 0, 0, 0]


def test_apply_and_pullbacks_trace_the_function_once() -> None:
    fn = Counted(lambda i: {"y": jnp.sin(i["x"]), "z": i["x"] ** 2})
    recipe = JaxRecipe(fn, residual_cache=True)
    for seed in range(4):
        inputs = {"x": np.random.default_rng(seed).normal(size=3)}
        recipe.apply(inputs)
        for output in ("y", "z"):
            recipe.vector_jacobian_product(inputs, {"x"}, {output}, {output: np.ones(3)})
    assert fn.n_calls == 1


def test_order_of_requested_paths_is_no_structure() -> None:
    fn = Counted(lambda i: {"y": i["a"] * i["b"], "z": i["a"]})
    recipe = JaxRecipe(fn)
    inputs = {"a": np.array(2.0), "b": np.array(3.0)}
    for paths in (["a", "b"], ["b", "a"], {"a", "b"}, ("a", "b", "a")):
        recipe.vector_jacobian_product(inputs, paths, {"y", "z"}, {"y": 1.0, "z": 1.0})
    assert fn.n_calls == 1


def test_floats_are_constants_unless_traced() -> None:
    def fn(i: Any) -> Any:
        return {"y": i["x"] * i["scale"], "kind": type(i["scale"]) is float}

    for trace_floats, n_calls in ((False, 3), (True, 1)):
        counted = Counted(fn)
        recipe = JaxRecipe(counted, trace_floats=trace_floats, residual_cache=True)
        for scale in (1.0, 2.0, 3.0):
            out = recipe.apply({"x": np.ones(2, np.float32), "scale": scale})
            assert out["kind"] is not trace_floats
            # Traced or not, a Python number gives way to the array's precision.
            assert_close(out["y"], np.full(2, scale, np.float32))
        assert counted.n_calls == n_calls
        assert recipe.vector_jacobian_product(
            {"x": np.ones(2, np.float32), "scale": 2.0}, {"x"}, {"y"}, {"y": np.ones(2)}
        )["x"].tolist() == [2.0, 2.0]


def test_eight_threads_get_their_own_answers() -> None:
    recipe = JaxRecipe(lambda i: {"y": i["x"] ** i["power"]}, residual_cache=ResidualCache(max_entries=3))
    points = [{"x": np.arange(1.0, 4.0) + shift, "power": power} for shift in range(3) for power in (2, 3)]
    barrier = threading.Barrier(8)
    wrong: list[Any] = []
    failures: list[BaseException] = []
    n_rounds = 20

    def work(seed: int) -> None:
        try:
            barrier.wait()
            for i in np.random.default_rng(seed).integers(len(points), size=n_rounds):
                point = points[i]
                y = recipe.apply(point)["y"]
                x_bar = recipe.vector_jacobian_product(point, {"x"}, {"y"}, {"y": np.full(3, float(seed))})["x"]
                x, n = point["x"], point["power"]
                if not (np.allclose(y, x**n) and np.allclose(x_bar, seed * n * x ** (n - 1))):
                    wrong.append((seed, i))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = recipe.stats()
    assert (wrong, failures) == ([], [])
    assert stats["hits"] + stats["misses"] == 8 * n_rounds
    assert stats["entries"] <= 3
    assert stats["hits"] > 0


# Only what is differentiable is differentiated


@jax.custom_jvp
def _opaque(x: Any) -> Any:
    return x


@_opaque.defjvp
def _(primals: Any, tangents: Any) -> Any:
    raise RuntimeError("differentiated")


class Inputs(BaseModel):
    a: Differentiable[Array[(None,), Float64]]  # pyright: ignore[reportInvalidTypeForm]
    b: Array[(None,), Float64]  # pyright: ignore[reportInvalidTypeForm]
    parts: dict[str, Differentiable[Float64]] = {}  # pyright: ignore[reportInvalidTypeForm]


class Outputs(BaseModel):
    y: Differentiable[Array[(None,), Float64]]  # pyright: ignore[reportInvalidTypeForm]
    z: Array[(None,), Float64]  # pyright: ignore[reportInvalidTypeForm]


def test_only_requested_inputs_are_differentiated() -> None:
    recipe = JaxRecipe(lambda i: {"y": i["a"] * _opaque(i["b"])})
    inputs = {"a": np.ones(2), "b": np.full(2, 3.0)}
    assert recipe.vector_jacobian_product(inputs, {"a"}, {"y"}, {"y": np.ones(2)})["a"].tolist() == [3.0, 3.0]
    assert recipe.jacobian_vector_product(inputs, {"a"}, {"y"}, {"a": np.ones(2)})["y"].tolist() == [3.0, 3.0]
    with pytest.raises(RuntimeError, match="differentiated"):
        recipe.vector_jacobian_product(inputs, {"b"}, {"y"}, {"y": np.ones(2)})


def test_residuals_are_kept_for_what_the_models_mark() -> None:
    def fn(i: Any) -> Any:
        return {"y": i["a"] * _opaque(i["b"]) + i["parts"]["left"], "z": jnp.sin(i["a"])}

    recipe = JaxRecipe(fn, residual_cache=True, outputs=Outputs)
    inputs = Inputs(a=np.ones(2), b=np.full(2, 3.0), parts={"left": 1.0})
    assert recipe.apply(inputs)["y"].tolist() == [4.0, 4.0]
    x_bar = recipe.vector_jacobian_product(inputs, {"a", "parts.{left}"}, {"y"}, {"y": np.ones(2)})
    assert {path: value.tolist() for path, value in x_bar.items()} == {"a": [3.0, 3.0], "parts.{left}": 2.0}
    assert recipe.stats()["hits"] == 1
    more = JaxRecipe(fn, residual_cache=True)
    more.apply(inputs)
    # Without the model the cosine for the second output is kept as well.
    assert more.stats()["bytes"] == recipe.stats()["bytes"] + 16


def test_what_the_models_do_not_mark_can_still_be_asked_for() -> None:
    """Then the whole function is differentiated, as if nothing had been kept."""
    recipe = JaxRecipe(lambda i: {"y": i["a"] * i["b"], "z": i["b"] ** 2}, residual_cache=True, outputs=Outputs)
    inputs = Inputs(a=np.ones(2), b=np.full(2, 3.0))
    recipe.apply(inputs)
    assert recipe.vector_jacobian_product(inputs, {"b"}, {"y"}, {"y": np.ones(2)})["b"].tolist() == [1.0, 1.0]
    assert recipe.vector_jacobian_product(inputs, {"b"}, {"z"}, {"z": np.ones(2)})["b"].tolist() == [6.0, 6.0]


def test_component_without_differentiable_inputs() -> None:
    recipe = JaxRecipe(lambda i: {"n": i["n"] + 1}, residual_cache=True)
    assert recipe.apply({"n": np.array([1, 2])})["n"].tolist() == [2, 3]
