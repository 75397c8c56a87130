"""Endpoints from one function: what plain JAX gives, with residuals kept or not."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.recipes import JaxRecipe
from tests.cases import CASES, Case, is_inexact
from tests.helpers import assert_close, inner, magnitude
from tests.recipes.helpers import answers_of, as_numpy, jacobian_of, recipe_of

over_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
kept_or_not = pytest.mark.parametrize("keep", [False, True], ids=["anew", "kept"])


@over_cases
@kept_or_not
def test_apply_is_the_function(case: Case, keep: bool) -> None:
    answers = answers_of(case)
    got = recipe_of(case, keep).apply(answers.inputs)
    assert_close(eqx.filter(got, eqx.is_array), answers.y, rtol=case.rtol)
    assert eqx.filter(got, eqx.is_array, inverse=True) == answers.plain
    assert all(type(leaf) is np.ndarray for leaf in jax.tree_util.tree_leaves(eqx.filter(got, eqx.is_array)))


@over_cases
def test_pushforward_is_that_of_jax(case: Case) -> None:
    answers = answers_of(case)
    y_dot = recipe_of(case).jacobian_vector_product(answers.inputs, set(answers.x), set(answers.c), answers.t)
    assert_close(y_dot, answers.y_dot, rtol=case.rtol)


@over_cases
@kept_or_not
def test_pullback_is_that_of_jax(case: Case, keep: bool) -> None:
    recipe, answers = recipe_of(case, keep), answers_of(case)
    recipe.apply(answers.inputs)
    n_hits = recipe.stats()["hits"]
    x_bar = recipe.vector_jacobian_product(answers.inputs, set(answers.x), set(answers.c), answers.c)
    assert_close(x_bar, answers.x_bar, rtol=case.rtol)
    assert recipe.stats()["hits"] == n_hits + keep
    # <J t, c> = <t, J^T c>
    expected = inner(answers.y_dot, answers.c)
    assert abs(expected - inner(answers.t, x_bar)) <= 10 * case.rtol * magnitude(answers.y_dot, answers.c)


@over_cases
def test_jacobian_is_that_of_jax(case: Case) -> None:
    answers = answers_of(case)
    blocks = jacobian_of(case)
    assert {output: set(row) for output, row in blocks.items()} == {key: set(answers.x) for key in answers.c}
    for output, row in blocks.items():
        for path, block in row.items():
            assert block.shape == answers.c[output].shape + answers.x[path].shape
        product = sum(np.tensordot(row[path], t, axes=t.ndim) for path, t in answers.t.items())
        assert_close(np.asarray(product), answers.y_dot[output], rtol=10 * case.rtol)


@over_cases
def test_abstract_eval_is_the_form_of_the_outputs(case: Case) -> None:
    abstract = jax.tree_util.tree_map(
        lambda leaf: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} if hasattr(leaf, "dtype") else leaf,
        case.inputs,
    )
    outputs = recipe_of(case).apply(answers_of(case).inputs)
    expected = jax.tree_util.tree_map(
        lambda leaf: {"shape": leaf.shape, "dtype": str(leaf.dtype)} if eqx.is_array(leaf) else leaf, outputs
    )
    assert recipe_of(case).abstract_eval(abstract) == expected
    assert recipe_of(case).abstract_eval(as_numpy(case.inputs)) == expected


@kept_or_not
def test_each_subset_of_paths(keep: bool) -> None:
    (case,) = (case for case in CASES if case.name == "vector_add")
    recipe, answers = recipe_of(case, keep), answers_of(case)
    for path in answers.x:
        parts = [
            recipe.vector_jacobian_product(answers.inputs, {path}, {output}, {output: c})[path]
            for output, c in answers.c.items()
        ]
        assert_close(np.asarray(sum(parts)), answers.x_bar[path])


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_jacobian_mode_is_a_matter_of_cost(mode: Any) -> None:
    recipe = JaxRecipe(lambda i: {"y": i["x"][:, None] * i["x"] ** 2}, jacobian_mode=mode)
    x = np.array([0.3, -1.0])
    eye = np.eye(2)
    # d (x_i x_j^2) / d x_k
    expected = eye[:, None, :] * x[None, :, None] ** 2 + 2 * x[:, None, None] * (x[:, None] * eye)[None]
    assert_close(recipe.jacobian({"x": x}, {"x"}, {"y"}), {"y": {"x": expected}})


def _callback(t: Any) -> Any:
    return jax.pure_callback(lambda t: t, t, t, vmap_method="sequential")


@pytest.mark.parametrize("mode, forward_only", [("auto", True), ("auto", False), ("reverse", True), ("forward", False)])
def test_jacobian_goes_the_cheaper_way(mode: Any, forward_only: bool) -> None:
    """A derivative that exists in one direction only tells which way it was taken."""

    @jax.custom_jvp
    def one_way(x: Any) -> Any:
        return x

    # A callback without a rule cannot be transposed, and a custom_vjp cannot be pushed forward.
    one_way.defjvp(lambda primals, tangents: (primals[0], _callback(tangents[0])))
    reverse_only = jax.custom_vjp(lambda x: x)
    reverse_only.defvjp(lambda x: (x, None), lambda _, x_bar: (x_bar,))

    def fn(i):
        return {"y": jnp.sum(reverse_only(i["x"])) if not forward_only else one_way(i["x"][0]) * jnp.arange(3.0)}

    inputs = {"x": np.ones(2)}
    recipe = JaxRecipe(fn, jacobian_mode=mode)
    if mode == "auto":
        assert recipe.jacobian(inputs, {"x"}, {"y"})["y"]["x"].shape == ((3, 2) if forward_only else (2,))
    else:
        with pytest.raises((TypeError, ValueError, NotImplementedError)):
            recipe.jacobian(inputs, {"x"}, {"y"})


def test_complex_outputs_of_real_inputs_have_a_jacobian() -> None:
    def fn(i):
        return {"y": jnp.exp(jax.lax.complex(jnp.zeros_like(i["x"]), i["x"])), "r": i["x"] ** 2}

    x = np.array([0.5, 1.0, 2.0])
    blocks = JaxRecipe(fn).jacobian({"x": x}, {"x"}, {"y", "r"})
    assert_close(blocks["y"]["x"], np.diag(1j * np.exp(1j * x)))
    assert_close(blocks["r"]["x"], np.diag(2 * x))


# Refusals


@kept_or_not
@pytest.mark.parametrize(
    "inputs, outputs, message",
    [
        ({"n"}, {"y"}, "input 'n', which is an array of int64"),
        ({"name"}, {"y"}, r"input 'name', which is no array \(str\)"),
        ({"x"}, {"n"}, "output 'n', which is an array of int64"),
        ({"x"}, {"name"}, r"output 'name', which is no array \(str\)"),
        ({"z"}, {"y"}, "Path 'z' leads nowhere: no 'z' here; there are n, name, x"),
        ({"x"}, {"z"}, "Path 'z' leads nowhere"),
        ({"x.."}, {"y"}, "is not a path"),
    ],
)
def test_paths_that_cannot_be_differentiated(keep: bool, inputs: Any, outputs: Any, message: str) -> None:
    recipe = JaxRecipe(lambda i: {"y": i["x"] * 2.0, "n": i["n"], "name": i["name"]}, residual_cache=keep)
    point = {"x": np.ones(2), "n": np.arange(2), "name": "wing"}
    with pytest.raises(ValueError, match=message):
        recipe.jacobian(point, inputs, outputs)
    with pytest.raises(ValueError, match=message):
        recipe.jacobian_vector_product(point, inputs, outputs, dict.fromkeys(inputs, np.ones(2)))
    with pytest.raises(ValueError, match=message):
        recipe.vector_jacobian_product(point, inputs, outputs, dict.fromkeys(outputs, np.ones(2)))


@kept_or_not
def test_vectors_that_do_not_fit(keep: bool) -> None:
    recipe = JaxRecipe(lambda i: {"y": i["x"] * 2.0}, residual_cache=keep)
    inputs = {"x": np.ones(2)}
    for vector in ({"y": np.ones(3)}, {"y": 1.0}, {"y": 1j * np.ones(2)}):
        with pytest.raises(ValueError, match=r"of 'y' is an array .* expected shape \(2,\) and dtype float64"):
            recipe.vector_jacobian_product(inputs, {"x"}, {"y"}, vector)
    with pytest.raises(ValueError, match=r"cotangent_vector has entries for \[\]; expected \['y'\]"):
        recipe.vector_jacobian_product(inputs, {"x"}, {"y"}, {})
    with pytest.raises(ValueError, match="tangent_vector has entries for"):
        recipe.jacobian_vector_product(inputs, {"x"}, {"y"}, {"x": np.ones(2), "z": 1.0})


def test_64_bit_inputs_need_64_bit_mode() -> None:
    recipe = JaxRecipe(lambda i: {"y": i["x"] * 2})
    with jax.enable_x64(False):
        for inputs in ({"x": np.ones(2)}, {"x": np.ones(2, complex)}, {"x": np.array([2**40])}):
            with pytest.raises(ValueError, match="jax_enable_x64"):
                recipe.apply(inputs)
        with pytest.raises(ValueError, match="declare the field as float32"):
            recipe.abstract_eval({"x": {"shape": [2], "dtype": "float64"}})
        # Indices and counts fit into 32 bits.
        assert recipe.apply({"x": np.array([7])})["y"].tolist() == [14]
        assert recipe.abstract_eval({"x": {"shape": [2], "dtype": "int64"}}) == {"y": {"shape": (2,), "dtype": "int32"}}


def test_unknown_jacobian_mode() -> None:
    with pytest.raises(ValueError, match="expected 'auto', 'forward' or 'reverse'"):
        JaxRecipe(lambda i: i, jacobian_mode="backward")  # pyright: ignore[reportArgumentType]


def test_answers_cannot_be_written_into() -> None:
    """They are views of JAX's memory, which residuals may share."""
    recipe = JaxRecipe(lambda i: {"y": jnp.exp(i["x"])}, residual_cache=True)
    y = recipe.apply({"x": np.ones(100)})["y"]
    with pytest.raises(ValueError, match="read-only"):
        y[:] = 0.0


def test_cases_cover_what_they_should() -> None:
    kinds = {type(leaf) for case in CASES for leaf in jax.tree_util.tree_leaves(case.inputs) if not is_inexact(leaf)}
    assert {str, int, bool} <= kinds


@pytest.mark.parametrize("keep", [False, True])
def test_a_function_may_write_into_its_own_dicts(keep: bool) -> None:
    def fn(inputs: Any) -> Any:
        inputs["x"] = 2.0 * inputs["x"]
        return {"y": inputs["x"] * inputs["parts"].pop("scale"), "left": sorted(inputs["parts"])}

    recipe = JaxRecipe(fn, residual_cache=keep)
    inputs = {"x": np.ones(2), "parts": {"scale": 3, "offset": 1}}
    for _ in range(2):
        assert recipe.apply(inputs)["y"].tolist() == [6.0, 6.0]
        assert recipe.apply(inputs)["left"] == ["offset"]
        x_bar = recipe.vector_jacobian_product(inputs, {"x"}, {"y"}, {"y": np.ones(2)})
        assert x_bar["x"].tolist() == [6.0, 6.0]
        assert recipe.jacobian(inputs, {"x"}, {"y"})["y"]["x"].tolist() == [[6.0, 0.0], [0.0, 6.0]]
    assert inputs["parts"] == {"scale": 3, "offset": 1}
