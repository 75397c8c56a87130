"""A derived endpoint is the one it stands for, at the price that its docstring names."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.derivatives import (
    jacobian_from_jvp,
    jacobian_from_vjp,
    jvp_from_jacobian,
    jvp_from_vjp,
    vjp_from_jacobian,
    vjp_from_jvp,
)
from tesseract_flow.recipes import JaxRecipe
from tests.cases import CASES, Case
from tests.helpers import assert_close
from tests.recipes.helpers import Counted, Linear, answers_of, jacobian_of, recipe_of

over_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def is_real(case: Case) -> bool:
    return all(x.dtype.kind == "f" for x in answers_of(case).x.values())


@over_cases
def test_products_from_the_jacobian(case: Case) -> None:
    a, rtol = answers_of(case), 10 * case.rtol
    jacobian = Counted(Linear(case).jacobian)
    assert_close(vjp_from_jacobian(jacobian, a.inputs, set(a.x), set(a.c), a.c), a.x_bar, rtol)
    assert_close(jvp_from_jacobian(jacobian, a.inputs, set(a.x), set(a.c), a.t), a.y_dot, rtol)
    assert jacobian.n_calls == 2


@over_cases
def test_from_jvp(case: Case) -> None:
    a, rtol = answers_of(case), 10 * case.rtol
    jvp = Counted(Linear(case).jvp)
    assert_close(jacobian_from_jvp(jvp, a.inputs, set(a.x), set(a.c)), jacobian_of(case), rtol)
    # An input without elements is probed once, for shapes.
    assert jvp.n_calls == a.n_inputs + sum(x.size == 0 for x in a.x.values())
    jvp.n_calls = 0
    assert_close(vjp_from_jvp(jvp, a.inputs, set(a.x), set(a.c), a.c), a.x_bar, rtol)
    assert jvp.n_calls == a.n_inputs * (1 if is_real(case) else 2)


@over_cases
@pytest.mark.parametrize("shapes_from", ["apply", "abstract_eval"])
def test_from_vjp(case: Case, shapes_from: str) -> None:
    a, rtol = answers_of(case), 10 * case.rtol
    vjp = Counted(Linear(case).vjp)
    outputs_of = Counted(getattr(recipe_of(case), shapes_from))
    assert_close(jacobian_from_vjp(vjp, outputs_of, a.inputs, set(a.x), set(a.c)), jacobian_of(case), rtol)
    assert (vjp.n_calls, outputs_of.n_calls) == (a.n_outputs, 1)
    vjp.n_calls = 0
    assert_close(jvp_from_vjp(vjp, outputs_of, a.inputs, set(a.x), set(a.c), a.t), a.y_dot, rtol)
    assert (vjp.n_calls, outputs_of.n_calls) == (a.n_outputs * (1 if is_real(case) else 2), 2)


@over_cases
def test_only_what_is_asked_for(case: Case) -> None:
    a, linear = answers_of(case), Linear(case)
    path, output = min(a.x), max(a.c)
    one = {output: {path: jacobian_of(case)[output][path]}}
    assert_close(jacobian_from_jvp(linear.jvp, a.inputs, {path}, {output}), one)
    assert_close(jacobian_from_vjp(linear.vjp, lambda inputs: a.y, a.inputs, {path}, {output}), one)
    assert vjp_from_jacobian(linear.jacobian, a.inputs, {path}, {output}, a.c).keys() == {path}
    assert jvp_from_jacobian(linear.jacobian, a.inputs, {path}, {output}, a.t).keys() == {output}


COMPLEX = {
    "real of complex": lambda i: {"y": jnp.abs(i["z"]) ** 2, "s": jnp.sum(jnp.real(i["z"]) * i["x"])},
    "complex of real": lambda i: {"y": jax.lax.complex(i["x"], i["x"] ** 2)},
    "not holomorphic": lambda i: {"y": jnp.conj(i["z"]) * i["z"] ** 2 * jax.lax.complex(i["x"], 1.0 - i["x"])},
}


@pytest.mark.parametrize("fn", COMPLEX.values(), ids=COMPLEX)
def test_products_of_complex_numbers_follow_jax(fn) -> None:
    """Every map that is differentiable over the reals has both products, whether a complex Jacobian exists or not."""
    recipe = JaxRecipe(fn)
    rng = np.random.default_rng(0)
    inputs = {"x": rng.normal(size=3), "z": rng.normal(size=3) + 1j * rng.normal(size=3)}
    t = {"x": rng.normal(size=3), "z": rng.normal(size=3) + 1j * rng.normal(size=3)}
    y = recipe.apply(inputs)
    c = {
        path: (rng.normal(size=(2, *v.shape)).T @ ([1.0, 1j] if v.dtype.kind == "c" else [1.0, 0.0])).T.astype(v.dtype)
        for path, v in y.items()
    }
    jvp, vjp = recipe.jacobian_vector_product, recipe.vector_jacobian_product
    assert_close(vjp_from_jvp(jvp, inputs, t, c, c), vjp(inputs, t, c, c))
    assert_close(jvp_from_vjp(vjp, recipe.apply, inputs, t, c, t), jvp(inputs, t, c, t))


def test_jacobian_with_complex_numbers() -> None:
    recipe = JaxRecipe(COMPLEX["complex of real"])
    inputs = {"x": np.array([1.0, 2.0]), "z": np.array([1j, 2.0])}
    expected = {"y": {"x": np.diag(1.0 + 2j * inputs["x"])}}
    assert_close(jacobian_from_jvp(recipe.jacobian_vector_product, inputs, {"x"}, {"y"}), expected)
    assert_close(jacobian_from_vjp(recipe.vector_jacobian_product, recipe.apply, inputs, {"x"}, {"y"}), expected)
    c = np.array([1.0 + 2j, -1j])
    x_bar = recipe.vector_jacobian_product(inputs, {"x"}, {"y"}, {"y": c})
    assert_close(vjp_from_jacobian(recipe.jacobian, inputs, {"x"}, {"y"}, {"y": c}), x_bar)
    real = JaxRecipe(COMPLEX["real of complex"])
    with pytest.raises(ValueError, match="no Jacobian"):
        jacobian_from_jvp(real.jacobian_vector_product, inputs, {"z"}, {"y"})
    with pytest.raises(ValueError, match="no Jacobian"):
        jacobian_from_vjp(real.vector_jacobian_product, real.apply, inputs, {"z"}, {"y"})


def test_integers_have_no_derivative() -> None:
    with pytest.raises(ValueError, match="input 'n' of int64"):
        jacobian_from_jvp(lambda *_: {}, {"n": np.arange(2)}, {"n"}, {"y"})
