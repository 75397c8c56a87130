"""Fixed points and their derivatives: equal to closed forms on every way, or refused by name."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.compose import Anderson, Gmres, NewtonKrylov
from tesseract_flow.errors import NotConverged, OptionError, SecondDerivative, cause
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import assert_close, inner, magnitude

PULLBACKS_ALONE = ("apply", "abstract_eval", "vector_jacobian_product")
TIGHT = Gmres(rtol=1e-13)


# --- linear loops, whose answer is known ------------------------------------------------------------------------------


def random_loop(key: jax.Array, gain: float, n: int = 5) -> tuple[jax.Array, jax.Array]:
    """A matrix of this spectral radius, and a right-hand side."""
    of_matrix, of_rhs = jax.random.split(key)
    matrix = jax.random.normal(of_matrix, (n, n))
    radius = np.max(np.abs(np.linalg.eigvals(np.asarray(matrix))))
    return matrix * (gain / radius), jax.random.normal(of_rhs, (n,))


def linear_state(matrix: Any, rhs: Any, **settings: Any) -> Any:
    """T = A T + b, in a tree of a number, a matrix and a complex number."""

    def phi(T: Any, matrix: Any, rhs: Any) -> Any:
        flat = jnp.concatenate([T["u"][None], T["v"].ravel(), jnp.stack([T["w"].real, T["w"].imag])])
        new = matrix @ flat + rhs
        return {"u": new[0], "v": new[1:-2].reshape(1, -1), "w": jax.lax.complex(new[-2], new[-1])}

    n = rhs.shape[0]
    start = {"u": jnp.zeros(()), "v": jnp.zeros((1, n - 3)), "w": jnp.zeros((), jnp.complex128)}
    T = tf.fixed_point(phi, start, matrix, rhs, linear=TIGHT, **settings)
    return jnp.concatenate([T["u"][None], T["v"].ravel(), jnp.stack([T["w"].real, T["w"].imag])])


@functools.cache
def both_modes() -> Callable[..., Any]:
    def both(matrix: Any, rhs: Any, dots: Any, bar: Any) -> Any:
        value, pull = jax.vjp(linear_state, matrix, rhs)
        return value, jax.jvp(linear_state, (matrix, rhs), dots)[1], pull(bar)

    return jax.jit(both)


@pytest.mark.parametrize("gain", [pytest.param(0.3, marks=pytest.mark.slow), 0.999, 3.0])
def test_value_and_both_derivatives_of_a_linear_loop(key: jax.Array, gain: float):
    keys = jax.random.split(key, 4)
    matrix, rhs = random_loop(keys[0], gain)
    dots = jax.random.normal(keys[1], matrix.shape), jax.random.normal(keys[2], rhs.shape)
    bar = jax.random.normal(keys[3], rhs.shape)
    value, dot, bars = both_modes()(matrix, rhs, dots, bar)

    inverse = np.linalg.inv(np.eye(5) - matrix)
    rtol = 1e-9 * np.linalg.cond(np.eye(5) - matrix)
    assert_close(value, jnp.asarray(inverse @ rhs), rtol=rtol)
    assert_close(dot, jnp.asarray(inverse @ (dots[0] @ value + dots[1])), rtol=rtol)
    price = inverse.T @ bar
    assert_close(bars, (jnp.asarray(np.outer(price, value)), jnp.asarray(price)), rtol=rtol)
    assert abs(inner(dot, bar) - inner(dots, bars)) <= 1e-10 * max(magnitude(dot, bar), magnitude(dots, bars))


@pytest.mark.slow
def test_of_many_at_once_each_is_its_own(key: jax.Array):
    loops = [random_loop(k, gain) for k, gain in zip(jax.random.split(key, 3), (0.2, 0.9, 2.0), strict=True)]
    matrices, sides = (jnp.stack(parts) for parts in zip(*loops, strict=True))
    one = jax.value_and_grad(lambda matrix, rhs: jnp.sum(linear_state(matrix, rhs) ** 2), argnums=(0, 1))
    at_once = jax.jit(jax.vmap(one))(matrices, sides)
    compiled = jax.jit(one)
    for k in range(3):
        got = jax.tree_util.tree_map(lambda x: x[k], at_once)  # noqa: B023
        assert_close(got, compiled(matrices[k], sides[k]), rtol=1e-9)


@pytest.mark.slow
def test_rows_of_a_jacobian_are_right_hand_sides_of_one_system(key: jax.Array):
    matrix, rhs = random_loop(key, 1.5)
    inverse = jnp.linalg.inv(jnp.eye(5) - matrix)
    state = functools.partial(linear_state, matrix)
    assert_close(jax.jit(jax.jacrev(state))(rhs), inverse, rtol=1e-9)
    assert_close(jax.jit(jax.jacfwd(state))(rhs), inverse, rtol=1e-9)


# --- solvers ----------------------------------------------------------------------------------------------------------


def curved(T: Any, k: Any) -> Any:
    return {"a": jnp.cos(k * T["b"]), "b": 0.5 * jnp.tanh(T["a"]) + 0.1 * T["b"]}


CURVED = {"a": np.zeros(3), "b": np.ones(3)}
K = jnp.array([0.4, 0.7, 1.1])


@pytest.mark.parametrize(("solver", "unit"), [("newton-krylov", 1e-23), ("newton-krylov", 1e23), ("picard", 1e-23)])
@pytest.mark.slow
def test_units_in_which_squares_leave_single_precision(solver: str, unit: float):
    """State, cotangent and tangent of any magnitude: nothing counts as solved because its square is zero."""
    k = jnp.float32(unit)

    def solved(k):
        return tf.fixed_point(lambda T, k: 0.5 * T + k, jnp.full(3, 5 * unit, jnp.float32), k, solver=solver)

    T, pull = jax.vjp(solved, k)
    assert np.asarray(T) / unit == pytest.approx(2.0, rel=1e-3)
    for cotangent in (1e-25, 1e25):
        (slope,) = pull(jnp.full(3, cotangent, jnp.float32))
        assert float(slope) / cotangent == pytest.approx(6.0, rel=1e-3)
        _, rate = jax.jvp(solved, (k,), (jnp.float32(cotangent),))
        assert np.asarray(rate) / cotangent == pytest.approx(2.0, rel=1e-3)


def test_a_start_of_nothing_is_judged_by_its_own_size():
    assert float(tf.fixed_point(lambda T: 2.0 * T, 1e-200)) == 0.0
    with pytest.raises(NotConverged):
        tf.fixed_point(lambda T: 2.0 * T, 1e-200, solver="picard")


@pytest.mark.parametrize("form", ["map", "residual"])
def test_a_state_without_entries(form: str):
    def total(k):
        return tf.fixed_point(lambda T, k: T * k, jnp.zeros((0, 2)), k, form=form).sum() + k

    assert float(jax.jit(total)(2.0)) == 2.0 and float(jax.grad(total)(2.0)) == 1.0


@pytest.mark.parametrize("solver", ["newton-krylov", "picard", "aitken", "anderson", "broyden", Anderson(depth=2)])
def test_every_solver_ends_at_the_same_state(solver: Any):
    T, convergence = jax.jit(lambda k: tf.fixed_point(curved, CURVED, k, solver=solver, with_convergence=True))(K)
    assert_close(curved(T, K), T, rtol=1e-9)
    residuals = np.asarray(convergence.residuals)
    assert residuals[convergence.n_steps] <= 4e-11 < residuals[convergence.n_steps - 1]
    assert np.isnan(residuals[convergence.n_steps + 1 :]).all()
    assert convergence.n_rounds > convergence.n_steps


@pytest.mark.parametrize("solver", ["newton-krylov", "anderson", "broyden"])
def test_a_loop_that_amplifies_is_solved(solver: str):
    def phi(T: Any, k: Any) -> Any:
        return k - 3.0 * jnp.sin(T)  # from 1 a slope of -1.6, at the solution of -2.8

    T = jax.jit(lambda k: tf.fixed_point(phi, 1.0, k, solver=solver))(jnp.asarray(1.5))
    assert_close(T + 3.0 * jnp.sin(T), jnp.asarray(1.5), rtol=1e-10)


@pytest.mark.slow
def test_a_residual_is_another_form_of_the_same():
    def as_map(k: Any) -> Any:
        return tf.fixed_point(curved, CURVED, k, linear=TIGHT)["a"].sum()

    def as_residual(k: Any, start: Any = CURVED) -> Any:
        def left(T: Any) -> Any:
            # Of another size and sign than the state.
            return jax.tree_util.tree_map(lambda a, b: 1e6 * (b - a), T, curved(T, k))

        return tf.fixed_point(left, start, form="residual", linear=TIGHT)["a"].sum()

    expected = jax.jit(jax.value_and_grad(as_map))(K)
    assert_close(jax.jit(jax.value_and_grad(as_residual))(K), expected, rtol=1e-9)
    # From the solution itself nothing can be brought down any further.
    there = tf.fixed_point(curved, CURVED, K)
    assert_close(jax.jit(as_residual)(K, there), expected[0], rtol=1e-9)


@pytest.mark.slow
def test_a_fixed_point_within_another_is_like_both_at_once():
    def nested(k: Any) -> Any:
        def outer(a: Any, k: Any) -> Any:
            b = tf.fixed_point(lambda b, a: 0.5 * jnp.tanh(a) + 0.1 * b, jnp.ones(3), a, linear=TIGHT)
            return jnp.cos(k * b)

        return tf.fixed_point(outer, jnp.zeros(3), k, linear=TIGHT).sum()

    def flat(k: Any) -> Any:
        return tf.fixed_point(curved, CURVED, k, linear=TIGHT)["a"].sum()

    assert_close(jax.jit(jax.value_and_grad(nested))(K), jax.jit(jax.value_and_grad(flat))(K), rtol=1e-8)


@pytest.mark.slow
def test_what_phi_closes_over_is_a_parameter_too():
    def listed(k: Any) -> Any:
        return tf.fixed_point(lambda T, k: jnp.cos(k * T), 0.0, k)

    def closed_over(k: Any) -> Any:
        return tf.fixed_point(lambda T: jnp.cos(k * T), 0.0)

    k = jnp.asarray(0.7)
    assert_close(jax.jit(jax.grad(closed_over))(k), jax.jit(jax.grad(listed))(k))


@pytest.mark.slow
def test_integers_and_texts_are_parameters_without_derivatives():
    def phi(T: Any, parameters: Any) -> Any:
        assert parameters["kind"] == "cosine"
        return jnp.cos(parameters["k"] * T) / parameters["n"].astype(T.dtype)

    def state(k: Any, n: Any) -> Any:
        return tf.fixed_point(phi, 0.0, {"kind": "cosine", "k": k, "n": n})

    slope = jax.jit(jax.grad(state))(jnp.asarray(0.7), jnp.asarray(2))
    T = state(0.7, np.array(2))
    assert_close(slope, -0.5 * T * jnp.sin(0.7 * T) / (1.0 + 0.35 * jnp.sin(0.7 * T)), rtol=1e-8)


@pytest.mark.slow
def test_a_second_derivative_is_refused():
    with pytest.raises(SecondDerivative, match="fixed point 'loop' was differentiated once more"):
        jax.hessian(lambda k: tf.fixed_point(lambda T, k: jnp.cos(k * T), 0.0, k, name="loop"))(0.7)


# --- components -------------------------------------------------------------------------------------------------------


def component(fn: Callable[[Any], Any], example: Any, name: str, endpoints: Any = PULLBACKS_ALONE) -> FunctionTesseract:
    return FunctionTesseract(fn, example, name=name, endpoints=endpoints)


X, ONE = np.ones(3), np.ones(())
aero = component(lambda i: {"load": jnp.sin(i["shape"]) * i["speed"]}, {"shape": X, "speed": ONE}, "aero")
struct = component(lambda i: {"shape": 0.4 * jnp.cos(i["load"]) + 0.1}, {"load": X}, "struct")
PHI = {
    "struct": lambda T: tf.apply_tesseract(struct, {"load": T["aero"]})["shape"],
    "aero": lambda T, *speed: tf.apply_tesseract(aero, {"shape": T["struct"], "speed": speed[0]})["load"],
}
COUPLED = {
    "struct": lambda T, speed: PHI["struct"](T),
    "aero": PHI["aero"],
}
AT_REST = {"aero": np.zeros(3), "struct": np.zeros(3)}


def lift(speed: Any, **settings: Any) -> Any:
    return jnp.sum(tf.fixed_point(COUPLED, AT_REST, speed, **settings)["aero"])


def lift_in_jax(speed: Any) -> Any:
    shape = jnp.zeros(3)
    for _ in range(60):
        shape = 0.4 * jnp.cos(jnp.sin(shape) * speed) + 0.1
    return jnp.sum(jnp.sin(shape) * speed)


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(tf.concurrent, id="concurrent", marks=pytest.mark.slow),
        pytest.param(jax.jit, id="jit", marks=pytest.mark.slow),
        pytest.param(lambda fn: fn, id="eager", marks=pytest.mark.slow),
    ],
)
def test_components_with_pullbacks_alone(run: Any):
    with tf.count_requests() as requests:
        got = run(jax.value_and_grad(functools.partial(lift, linear=TIGHT)))(jnp.asarray(1.3))
    assert_close(got, jax.jit(jax.value_and_grad(lift_in_jax))(jnp.asarray(1.3)), rtol=1e-9)
    assert requests.n_of("jacobian_vector_product") == requests.n_of("jacobian") == 0
    # Three different numbers are fed back, so GMRES needs three directions and one application to see that it is right.
    # It has as many right-hand sides as the loop has states, of which one component's own do not count.
    assert requests["aero.vector_jacobian_product"] == requests["struct.vector_jacobian_product"] <= 5


@pytest.mark.slow
def test_forward_mode_without_pushforwards_is_by_differences():
    slope = tf.concurrent(lambda speed: jax.jvp(lift, (speed,), (jnp.ones(()),)))(jnp.asarray(1.3))
    assert_close(slope[1], jax.jit(jax.grad(lift_in_jax))(jnp.asarray(1.3)), rtol=1e-7)


@pytest.mark.slow
def test_directions_are_pushforwards_where_all_have_them():
    able = FunctionTesseract(lambda i: {"y": jnp.cos(i["x"])}, {"x": X}, name="able")
    solve = tf.concurrent(lambda T0: tf.fixed_point(lambda T: tf.apply_tesseract(able, {"x": T})["y"], T0))
    with tf.count_requests() as requests:
        T = solve(X)
    assert_close(jnp.cos(T), T, rtol=1e-9)
    assert requests["able.jacobian_vector_product"] > 0
    with tf.count_requests() as requests:
        tf.concurrent(
            lambda T0: tf.fixed_point(
                lambda T: tf.apply_tesseract(able, {"x": T})["y"], T0, solver=NewtonKrylov(directions="differences")
            )
        )(X)
    assert requests["able.jacobian_vector_product"] == 0


def test_the_plan_says_what_goes_round():
    labels = [
        re.sub(r" \([^()]* m?s\)", "", line) for line in str(tf.concurrent(lift).plan(jnp.asarray(1.3))).splitlines()
    ]
    assert labels == [
        "2 calls and 1 loop in 3 waves, 3 segments of pure JAX",
        "  wave 1: struct.apply",
        "  wave 2: aero.apply",
        # A step: some directions, a round each, and then a few trials.
        "  wave 3: while: (while: struct.apply, then aero.apply, then while: struct.apply, then aero.apply)",
    ]


def test_who_goes_first_is_found():
    big, small = jnp.zeros(50), jnp.zeros(2)
    phi = {
        "tail": lambda T: T["nose"][:2] + T["body"][:2],
        "body": lambda T: 2.0 * T["nose"],
        "nose": lambda T: 0.5 * jnp.tile(T["tail"], 25) + 1.0,
    }
    T0 = {"tail": small, "body": big, "nose": big}
    T, convergence = jax.jit(
        lambda: tf.fixed_point(phi, T0, solver="gauss-seidel", with_convergence=True, max_steps=3, atol=1e3)
    )()
    assert convergence.n_steps == 0
    # Only the two numbers of the tail are guessed, so one round gives all else as they demand.
    assert_close(T["body"], 2.0 * T["nose"])
    assert_close(T["nose"], jnp.ones(50))


def test_without_feedback_one_round_is_all():
    phi = {"b": lambda T: 2.0 * T["a"], "a": lambda T: jnp.ones(2)}
    T, convergence = tf.fixed_point(phi, {"a": jnp.zeros(2), "b": jnp.zeros(2)}, with_convergence=True)
    assert_close(T, {"a": jnp.ones(2), "b": 2.0 * jnp.ones(2)})
    assert convergence.n_rounds == 1


# --- what does not converge -------------------------------------------------------------------------------------------


def run_away(k: Any, **settings: Any) -> Any:
    return tf.fixed_point(lambda T, k: 1.0 + k * T, 0.0, k, name="loop", **settings)


WAYS = {
    "eager": lambda fn: fn,
    "jit": jax.jit,
    "concurrent": tf.concurrent,
    "gradient": lambda fn: tf.concurrent(jax.value_and_grad(fn)),
    "eager gradient": jax.grad,
    "eager jvp": lambda fn: lambda k: jax.jvp(fn, (k,), (k,)),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_value_where_the_loop_runs_away(way: str):
    with pytest.raises(Exception, match="loop") as raised:
        jax.block_until_ready(WAYS[way](functools.partial(run_away, solver="picard"))(jnp.asarray(3.0)))
    error = cause(raised.value)
    assert isinstance(error, NotConverged)
    assert way == "jit" or raised.value is error
    assert (error.name, error.part) == ("loop", "solution")
    assert "The loop amplifies what is left (its gain is above 1)" in str(error)
    assert error.n_rounds == len(error.residuals) < 30


NOWHERE = {
    "a shift": lambda T: T + 1.0,
    "a shift that is small beside the state": lambda T: T + 1e-12,
    "a hyperbola": lambda T: jnp.sqrt(T * T + 1.0),
    "a tail": lambda T: T + jnp.exp(-T),
}


@pytest.mark.parametrize("solver", ["newton-krylov", "aitken", "anderson", "broyden"])
@pytest.mark.parametrize("name", NOWHERE)
def test_no_value_where_there_is_no_solution(solver: str, name: str):
    """What is left is small beside a state that has grown; accepted at -4503, 123749 and 21 before."""
    with pytest.raises(NotConverged):
        jax.block_until_ready(tf.fixed_point(NOWHERE[name], 0.0, solver=solver))


def test_where_the_residual_is_small_and_the_solution_is_not_near_the_reason_says_so():
    with pytest.raises(NotConverged, match="the solution is anywhere, or nowhere"):
        jax.block_until_ready(tf.fixed_point(lambda T: T + 1e-12, 0.0, solver="anderson"))


@pytest.mark.parametrize("solver", ["picard", "aitken", "anderson", "newton-krylov"])
def test_a_slow_loop_ends_where_its_solution_is(solver: str):
    """A gain of 1 - 1e-4: what is left is 1e-4 of the way, and was taken for all of it."""
    solved = tf.fixed_point(lambda T: (1 - 1e-4) * T + 1e-4, 0.9, solver=solver, rtol=1e-5, max_steps=10**5)
    np.testing.assert_allclose(solved, 1.0, rtol=0.02)


def test_of_many_the_one_is_named():
    gains = jnp.array([0.1, 0.2, 3.0])
    with pytest.raises(NotConverged, match=r"was not reached by picard, in element \[2\] of \[3\]"):
        tf.concurrent(jax.vmap(functools.partial(run_away, solver="picard")))(gains)


@pytest.mark.parametrize("way", ["eager gradient", "gradient", "eager jvp"])
@pytest.mark.slow
def test_no_derivative_at_a_gain_of_one(way: str):
    def at_rest(k: Any) -> Any:  # T = 1 whatever k is; at k = 1 any T is a solution
        return tf.fixed_point(lambda T, k: k * T + (1.0 - k) + jnp.sin(k - 1.0), 1.0, k, name="loop")

    with pytest.raises(NotConverged, match=r"of fixed point 'loop' was not solved by GMRES") as raised:
        jax.block_until_ready(WAYS[way](at_rest)(jnp.asarray(1.0)))
    assert raised.value.part == ("tangent" if "jvp" in way else "adjoint")


@pytest.mark.slow
def test_the_leaf_that_is_not_finite_is_named():
    def phi(T: Any) -> Any:
        return {"a": 0.5 * T["b"], "b": jnp.log(T["a"])}

    with pytest.raises(NotConverged, match=r"Not finite: 'b'\.\nStart closer to the solution"):
        tf.fixed_point(phi, {"a": jnp.asarray(-1.0), "b": jnp.zeros(())})


def test_where_no_step_is_better_newton_says_so():
    with pytest.raises(NotConverged, match="No step along Newton's direction makes the residual smaller"):
        tf.fixed_point(lambda T: T + 1.0 + T**2, 0.3)


def test_what_is_too_little_is_named_with_the_remedy():
    with pytest.raises(NotConverged, match=r"after 2 steps[^@]*Allow more steps \(max_steps=") as raised:
        tf.fixed_point(curved, CURVED, K, solver="picard", max_steps=2)
    assert len(raised.value.residuals) == 3


@pytest.mark.slow
def test_a_step_of_an_optimisation_goes_back_from_where_there_is_no_state():
    """T = x T² + 1 has a real solution up to x = 1/4."""

    def evaluate(x: Any) -> Any:
        return (tf.fixed_point(lambda T, x: x * T**2 + 1.0, 1.0, x, name="loop") - 1.6) ** 2

    result = tf.optimize(tf.Problem(jnp.asarray(0.0), evaluate), driver="lbfgs")
    assert_close(result.design, jnp.asarray(0.6 / 1.6**2), rtol=1e-3)
    assert result.converged


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((lambda T: T, 1), {}, "'the state' is of int"),
        ((lambda T: T, {"n": "text"}), {}, "'n' is of str"),
        ((lambda T: (T, T), 0.0), {}, "phi must give the state in the form of T0"),
        ((lambda T: jnp.stack([T, T]), 0.0), {}, r"phi gave 'the state' as float64\[2\], and T0 has it as float64\[\]"),
        ((lambda T: T, 0.0), {"solver": "newton"}, "Did you mean 'newton-krylov'"),
        ((lambda T: T, 0.0), {"form": "root"}, "form='root'"),
        ((lambda T: T, 0.0), {"rtol": 0.0}, "rtol=0.0"),
        ((lambda T: T, 0.0), {"max_steps": 0}, "max_steps=0"),
        ((lambda T: T, 0.0), {"atol": "small"}, "atol='small'"),
        ((lambda T: T, 0.0), {"atol": float("inf")}, "atol=inf"),
        (({"a": lambda T: T["a"]}, jnp.zeros(2)), {}, "the state is a dictionary with the part of each"),
        (({"a": lambda T: T["a"]}, {"b": 0.0}), {}, "T0 has a part 'b', and no component gives it"),
        (({"a": lambda T: 1.0, "b": lambda T: 1.0}, {"a": 0.0}), {}, "T0 has no part for 'b'"),
        (({"alpha": lambda T: T["alfa"]}, {"alpha": 0.0}), {}, r"component 'alpha' asks for 'alfa' .*mean 'alpha'"),
        ((lambda T: {"a": T["b"]}, {"a": 0.0}), {}, r"phi asks for 'b' \(test_fixed_point.py, .*The state has 'a'"),
        (({"a": lambda T: T["a"]}, {"a": 0.0}), {"order": ["b"]}, "must name each component once"),
        (({"a": lambda T: T["a"]}, {"a": 0.0}), {"form": "residual"}, "components by name"),
    ],
)
def test_what_does_not_fit_is_said(arguments: Any, settings: Any, message: str):
    with pytest.raises(OptionError, match=message):
        tf.fixed_point(*arguments, **settings)


def test_how_it_converged_can_be_seen():
    value, seen = tf.save_intermediates(
        lambda k: tf.fixed_point(curved, CURVED, k, name="loop", with_convergence=True)
    )(K)
    T, convergence = value
    for got, expected in zip(seen["loop"]["primal"], convergence, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert_close(curved(T, K), T, rtol=1e-9)
