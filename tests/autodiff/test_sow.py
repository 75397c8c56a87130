"""What `save_intermediates` shows is what plain JAX gives at the cut point, whatever is wrapped around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract, save_intermediates, sow
from tesseract_flow.client import count_requests
from tesseract_flow.errors import ComponentFailed
from tesseract_flow.execute import concurrent
from tesseract_flow.schema import ArrayField
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import Faults, assert_close, maybe_jit

eager_and_jit = pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])

X = jnp.array([0.3, -1.2, 2.0])
X_DOT = jnp.array([1.0, 0.5, -2.0])


def before(x: Any) -> Any:
    return {"a": jnp.sin(x), "b": (x[:2] ** 2,)}


def after(y: Any) -> Any:
    return jnp.sum(y["a"] ** 3) + jnp.prod(y["b"][0])


def watched(x: Any) -> Any:
    return after(sow(before(x), "y"))


def unwatched(x: Any) -> Any:
    return after(before(x))


# ------------------------------------------------------------------------------------- outside of save_intermediates


@eager_and_jit
def test_sow_is_the_identity(jit: bool):
    assert_close(maybe_jit(jax.value_and_grad(watched), jit)(X), maybe_jit(jax.value_and_grad(unwatched), jit)(X))


def test_eagerly_every_leaf_is_the_same_object():
    tree = {"array": X, "numpy": np.ones(2), "number": 2.5, "count": 3, "text": "naca", "nothing": None}
    sown = sow(tree, "tree")
    assert sown.keys() == tree.keys()
    assert all(sown[key] is tree[key] for key in tree)


@pytest.mark.parametrize("transform", [lambda f: f, jax.value_and_grad, jax.vmap, jax.hessian, jax.checkpoint])
def test_compiled_code_is_the_same_without_it(transform: Any):
    def compiled(fn: Any) -> str:
        def same_name(x: Any) -> Any:
            return transform(fn)(x)

        return jax.jit(same_name).lower(jnp.ones((3, 3)) if transform is jax.vmap else X).as_text()

    assert compiled(watched) == compiled(unwatched)


# ----------------------------------------------------------------------------------------- the cut point in plain JAX

WRAPS: dict[str, Callable[[Any], Any]] = {
    "bare": lambda f: f,
    "jit": jax.jit,
    "jit in jit": lambda f: jax.jit(lambda x: jax.jit(f)(x) * 1.0),
    "checkpoint": jax.checkpoint,
    "jit of checkpoint of jit": lambda f: jax.jit(jax.checkpoint(jax.jit(f))),
    "checkpoint in checkpoint": lambda f: jax.checkpoint(lambda x: jax.checkpoint(f)(x) * 1.0),
    "filter_jit": eqx.filter_jit,
    "closure": lambda f: lambda x: jax.jit(lambda unused: f(x))(0.0),
}
over_wraps = pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS.keys())


@over_wraps
def test_primal(wrap: Any):
    result, seen = save_intermediates(wrap(watched))(X)
    assert_close(result, unwatched(X))
    assert_close(seen, {"y": {"primal": before(X)}})


CUT = {"primal": before(X), "cotangent": jax.grad(after)(before(X))}


@over_wraps
@eager_and_jit
def test_cotangent(wrap: Any, jit: bool):
    result, seen = maybe_jit(save_intermediates(jax.value_and_grad(wrap(watched))), jit)(X)
    assert_close((result, seen), (jax.value_and_grad(unwatched)(X), {"y": CUT}))


@pytest.mark.parametrize("how", ["grad", "jit of grad", "vjp", "pullback of linearize"])
def test_cotangent_however_it_is_asked_for(how: str):
    reverse = {
        "grad": jax.grad(watched),
        "jit of grad": jax.jit(jax.grad(jax.jit(watched))),
        "vjp": lambda x: jax.vjp(watched, x)[1](jnp.ones(()))[0],
        "pullback of linearize": lambda x: jax.linear_transpose(jax.linearize(watched, x)[1], x)(jnp.ones(()))[0],
    }
    result, seen = save_intermediates(reverse[how])(X)
    assert_close((result, seen), (jax.grad(unwatched)(X), {"y": CUT}))


@over_wraps
@pytest.mark.parametrize("how", ["jvp", "linearize"])
def test_tangent(wrap: Any, how: str):
    def push(fn: Any, x: Any, x_dot: Any) -> Any:
        return jax.jvp(fn, (x,), (x_dot,))[1] if how == "jvp" else jax.linearize(fn, x)[1](x_dot)

    result, seen = jax.jit(save_intermediates(lambda x, t: push(wrap(watched), x, t)))(X, X_DOT)
    assert_close(result, push(unwatched, X, X_DOT))
    primal, tangent = jax.jvp(before, (X,), (X_DOT,))
    assert_close(seen, {"y": {"primal": primal, "tangent": tangent}})


def test_only_a_pullback_shows_only_the_cotangent():
    _, pullback = jax.vjp(watched, X)
    expected = jax.tree_util.tree_map(lambda c: 2.0 * c, CUT["cotangent"])
    assert_close(save_intermediates(pullback)(2.0)[1], {"y": {"cotangent": expected}})


def test_linear_transpose():
    result, seen = save_intermediates(jax.linear_transpose(lambda x: sow(3.0 * x, "y"), X))(X_DOT)
    assert_close((result, seen), ((3.0 * X_DOT,), {"y": {"cotangent": X_DOT}}))


def test_of_nested_derivatives_the_innermost_is_recorded():
    def cubic(x: Any) -> Any:
        return jnp.sum(sow(x * x, "y") * x)

    expected = {"y": {"primal": X**2, "cotangent": X}}
    assert_close(save_intermediates(jax.jacfwd(jax.grad(cubic)))(X), (jnp.diag(6 * X), expected))
    assert_close(save_intermediates(jax.grad(lambda x: jax.grad(cubic)(x).sum()))(X), (6 * X, expected))


# -------------------------------------------------------------------------------------------- all leaves of the point


def scaled(x: Any, factor: Any) -> Any:
    point = sow({"x": x, "factor": factor, "unused": x + factor}, "point")
    return jnp.sum(point["x"] ** 2 * point["factor"])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint], ids=["bare", "jit", "checkpoint"])
def test_a_point_is_differentiated_whole(wrap: Any):
    """With respect to leaves as well that are constants to the derivative, and where one of them is not used."""
    fn = wrap(scaled)
    plain = jax.make_jaxpr(jax.grad(fn))(X, X_DOT)
    _, seen = save_intermediates(jax.grad(fn))(X, X_DOT)
    primal = {"x": X, "factor": X_DOT, "unused": X + X_DOT}
    cotangent = {"x": 2 * X * X_DOT, "factor": X**2, "unused": jnp.zeros(3)}
    assert_close(seen["point"], {"primal": primal, "cotangent": cotangent})
    # Nothing of that stays behind in what JAX remembers of a function.
    assert str(jax.make_jaxpr(jax.grad(fn))(X, X_DOT)) == str(plain)
    _, seen = save_intermediates(lambda x: jax.jvp(lambda x: fn(x, X_DOT), (x,), (X,))[1])(X)
    assert_close(seen["point"]["tangent"], {"x": X, "factor": jnp.zeros(3), "unused": X})


def test_constants_without_a_derivative_are_nan():
    def loss(x: Any, steps: Any) -> Any:
        x, steps = sow((x, steps), "point")  # reverse mode through the loop, for `steps`, would be an error
        return jnp.sum(x**2) * jax.lax.while_loop(lambda n: n < 10.0, lambda n: 2.0 * n, steps)

    grad, seen = save_intermediates(jax.grad(loss))(X, 1.5 * jnp.ones(()))
    expected = {"primal": (X, 1.5 * jnp.ones(())), "cotangent": (24.0 * X, jnp.full((), jnp.nan))}
    assert_close((grad, seen), (24.0 * X, {"point": expected}))


# ------------------------------------------------------------------------------------------------------ loops, batches


def turn(carry: Any, delta: Any, slope: Any) -> Any:
    return jnp.sin(carry) * slope + delta


def plain_loop(x: Any, slopes: Any, deltas: Any) -> Any:
    """The loop below without `sow`; `deltas` disturb the watched values, so their gradient is the cotangent."""
    total = 0.0
    points = []
    for slope, delta in zip(slopes, deltas, strict=True):
        x = turn(x, delta, slope)
        points.append(x)
        total = total + jnp.sum(x**2)
    return total + jnp.sum(x), jnp.stack(points)


def scanned(around_body: Any) -> Any:
    def loop(x: Any, slopes: Any) -> Any:
        @around_body
        def body(carry: Any, slope: Any) -> Any:
            carry = sow(turn(carry, 0.0, slope), "point")
            return carry, jnp.sum(carry**2)

        x, squares = jax.lax.scan(body, x, slopes)
        return jnp.sum(squares) + jnp.sum(x)

    return loop


def backwards(x: Any, slopes: Any) -> Any:
    def body(carry: Any, slope: Any) -> Any:
        carry = sow(turn(carry, 0.0, slope), "point")
        return carry, jnp.sum(carry**2)

    x, squares = jax.lax.scan(body, x, slopes, reverse=True, unroll=2)
    return jnp.sum(squares) + jnp.sum(x)


def by_fori_loop(x: Any, slopes: Any) -> Any:
    def body(i: Any, state: Any) -> Any:
        x, total = state
        x = sow(turn(x, 0.0, slopes[i]), "point")
        return x, total + jnp.sum(x**2)

    x, total = jax.lax.fori_loop(0, len(slopes), body, (x, jnp.zeros(())))
    return total + jnp.sum(x)


LOOPS = {
    "scan": scanned(lambda body: body),
    "jit of scan": jax.jit(scanned(lambda body: body)),
    "scan of jit": scanned(jax.jit),
    "scan of checkpoint": scanned(jax.checkpoint),
    "checkpoint of scan": jax.checkpoint(scanned(lambda body: body)),
    "backwards": backwards,
    "fori_loop": by_fori_loop,
}
SLOPES = jnp.array([1.5, -0.7, 2.0, 0.4])


plain_loop_gradient = jax.jit(jax.grad(plain_loop, argnums=(0, 2), has_aux=True))


@pytest.mark.parametrize("name, jit", [*((name, True) for name in LOOPS), ("scan", False), ("jit of scan", False)])
def test_loops_stack_their_turns(name: str, jit: bool):
    grad, seen = maybe_jit(save_intermediates(jax.grad(LOOPS[name])), jit)(X, SLOPES)
    order = slice(None, None, -1) if name == "backwards" else slice(None)
    (x_bar, cotangents), primals = plain_loop_gradient(X, SLOPES[order], jnp.zeros((4, 3)))
    assert_close(grad, x_bar)
    assert_close(seen, {"point": {"primal": primals[order], "cotangent": cotangents[order]}})


def test_loops_in_forward_mode():
    def push(x: Any, slopes: Any) -> Any:
        return jax.jvp(lambda x: LOOPS["scan"](x, slopes), (x,), (X_DOT,))[1]

    _, seen = jax.jit(save_intermediates(push))(X, SLOPES)
    push_plain = jax.jit(lambda x: jax.jvp(lambda x: plain_loop(x, SLOPES, jnp.zeros((4, 3)))[1], (x,), (X_DOT,))[1])
    tangents = push_plain(X)
    assert_close(seen["point"]["tangent"], tangents)


def test_loop_in_a_loop():
    def inner(c: Any, t: Any) -> Any:
        return sow(c * t, "c"), None

    def outer(c: Any, ts: Any) -> Any:
        return jax.lax.scan(inner, c, ts)

    factors = jnp.arange(1.0, 7.0).reshape(2, 3)
    _, seen = save_intermediates(lambda: jax.lax.scan(outer, 1.0, factors)[0])()
    assert_close(seen["c"]["primal"], jnp.cumprod(factors.ravel()).reshape(2, 3))


def test_a_while_loop_is_left_alone_with_a_warning():
    def doubled(x: Any) -> Any:
        return sow(jax.lax.while_loop(lambda x: x[0] < 10.0, lambda x: sow(2.0 * x, "inside"), x), "behind")

    with pytest.warns(UserWarning, match=r"Nothing is recorded inside of 'while', so not 'inside'"):
        result, seen = save_intermediates(doubled)(X)
    assert_close((result, seen), (X * 64, {"behind": {"primal": X * 64}}))


@pytest.mark.parametrize("in_axis, jit", [(0, True), (1, True), (1, False)])
def test_vmap_puts_its_axis_in_front(in_axis: int, jit: bool):
    batch = jnp.stack([X, 2 * X, X - 1.0], in_axis)
    rows = jnp.moveaxis(batch, in_axis, 0)
    primal, cotangent = jax.jit(jax.vmap(lambda x: (before(x), jax.grad(after)(before(x)))))(rows)
    inside = jax.vmap(jax.grad(watched), in_axes=in_axis)
    outside = jax.grad(lambda batch: jax.vmap(jax.jit(watched), in_axes=in_axis)(batch).sum())
    for transformed in inside, outside:
        _, seen = maybe_jit(save_intermediates(transformed), jit)(batch)
        assert_close(seen, {"y": {"primal": primal, "cotangent": cotangent}})
    around = maybe_jit(jax.vmap(save_intermediates(jax.grad(watched)), in_axis), jit)
    assert_close(around(batch)[1]["y"]["cotangent"], cotangent)


def test_a_leaf_that_is_the_same_for_the_batch_gets_no_axis():
    rows = jnp.stack([X, 2 * X])
    loss = jax.vmap(lambda x, factor: scaled(x, factor), in_axes=(0, None))
    _, seen = save_intermediates(jax.grad(lambda rows: loss(rows, X_DOT).sum()))(rows)
    cotangent = {"x": 2 * rows * X_DOT, "factor": 5 * X**2, "unused": jnp.zeros((2, 3))}
    assert_close(seen["point"]["primal"], {"x": rows, "factor": X_DOT, "unused": rows + X_DOT})
    assert_close(seen["point"]["cotangent"], cotangent)


@pytest.mark.parametrize("order", ["vmap of scan", "scan of vmap"])
def test_turns_come_before_the_batch(order: str):
    def body(c: Any, t: Any) -> Any:
        return (sow(c * t, "c") if order == "vmap of scan" else jax.vmap(lambda c: sow(c * t, "c"))(c)), None

    def loop(c: Any) -> Any:
        return jax.lax.scan(body, c, SLOPES)[0]

    _, seen = save_intermediates(jax.vmap(loop) if order == "vmap of scan" else loop)(X)
    assert_close(seen["c"]["primal"], jnp.cumprod(SLOPES)[:, None] * X)


def test_jacobians_show_a_row_per_basis_vector():
    _, seen = save_intermediates(jax.jacrev(lambda x: sow(x**2, "y")))(X)
    assert_close(seen["y"], {"primal": X**2, "cotangent": jnp.eye(3)})
    _, seen = save_intermediates(jax.jacfwd(lambda x: sow(x**2, "y")))(X)
    assert_close(seen["y"], {"primal": X**2, "tangent": jnp.diag(2 * X)})


# ------------------------------------------------------------------------------------------ branches, own derivatives


def branching(x: Any) -> Any:
    def high(x: Any) -> Any:
        return sow(jnp.sin(x), "both").sum() + sow(jnp.arange(2), "index").sum().astype(float)

    def low(x: Any) -> Any:
        return sow(jnp.cos(x), "both").sum() * sow(jnp.exp(x), "low").sum()

    return jax.lax.cond(x[0] > 0.0, high, low, x)


@eager_and_jit
def test_branch_that_was_not_taken_is_nan(jit: bool):
    see = maybe_jit(save_intermediates(jax.grad(jax.jit(branching))), jit)
    grad, seen = see(X)
    nothing = jnp.full(3, jnp.nan)
    assert_close(grad, jnp.cos(X))
    assert_close(seen["both"], {"primal": jnp.sin(X), "cotangent": jnp.ones(3)})
    assert_close(seen["low"], {"primal": nothing, "cotangent": nothing})
    assert_close(seen["index"], {"primal": jnp.arange(2)})
    _, seen = see(-X)
    assert_close(seen["both"], {"primal": jnp.cos(X), "cotangent": jnp.full(3, jnp.exp(-X).sum())})
    assert_close(seen["low"], {"primal": jnp.exp(-X), "cotangent": jnp.full(3, jnp.cos(X).sum())})
    assert_close(seen["index"], {"primal": jnp.zeros(2, int)})


@jax.custom_vjp
def tripled(x: Any) -> Any:
    return sow(3.0 * x, "undifferentiated")


def tripled_forward(x: Any) -> Any:
    return sow(3.0 * x, "forward"), None


def tripled_backward(_: None, y_bar: Any) -> Any:
    return (sow(7.0 * y_bar, "backward"),)  # not 3, to tell this rule from the derivative of the body


tripled.defvjp(tripled_forward, tripled_backward)


@jax.custom_jvp
def doubled(x: Any) -> Any:
    return sow(2.0 * x, "undifferentiated")


doubled.defjvp(lambda primals, tangents: (2.0 * primals[0], sow(7.0 * tangents[0], "rule")))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["bare", "jit"])
@eager_and_jit
def test_rules_of_custom_derivatives_are_followed(wrap: Any, jit: bool):
    result, seen = maybe_jit(save_intermediates(wrap(tripled)), jit)(X)
    assert_close((result, seen), (3 * X, {"undifferentiated": {"primal": 3 * X}}))
    grad = jax.grad(lambda x: sow(wrap(tripled)(x), "y").sum())
    x_bar, seen = maybe_jit(save_intermediates(grad), jit)(X)
    sevens = jnp.full(3, 7.0)
    expected = {
        "forward": {"primal": 3 * X},
        "y": {"primal": 3 * X, "cotangent": jnp.ones(3)},
        "backward": {"primal": sevens},
    }
    assert_close((x_bar, seen), (sevens, expected))
    x_bar, seen = maybe_jit(save_intermediates(jax.grad(lambda x: wrap(doubled)(x).sum())), jit)(X)
    assert_close((x_bar, seen), (sevens, {"rule": {"cotangent": jnp.ones(3)}}))


@pytest.mark.parametrize("fn", [tripled, doubled], ids=["custom_vjp", "custom_jvp"])
def test_a_custom_derivative_is_never_lost(fn: Any):
    inside_out = jax.grad(lambda x: save_intermediates(fn)(x)[0].sum())
    with pytest.raises(NotImplementedError, match=r"save_intermediates\(jax\.grad\(f\)\)"):
        inside_out(X)
    # Without sow in its body the function is left as it is.
    plain = jax.custom_jvp(lambda x: 2.0 * x)
    plain.defjvp(lambda primals, tangents: (2.0 * primals[0], 7.0 * tangents[0]))
    grad, seen = jax.grad(save_intermediates(lambda x: sow(plain(x), "y").sum()), has_aux=True)(X)
    assert_close((grad, seen), (jnp.full(3, 7.0), {"y": {"primal": 2 * X}}))


def test_inside_of_other_primitives_a_warning():
    def solve(b: Any) -> Any:
        return jax.lax.custom_linear_solve(lambda v: sow(2.0 * v, "product"), b, lambda _, b: b / 2.0)

    with pytest.warns(UserWarning, match="'custom_linear_solve', so not 'product'"):
        result, seen = save_intermediates(solve)(X)
    assert_close((result, seen), (X / 2, {}))


# ------------------------------------------------------------------------------------------------- names, tags, trees


def test_a_name_is_sown_once():
    def in_a_row(x: Any) -> Any:
        return sow(sow(x, "a") * 2.0, "a")

    jitted = jax.jit(watched)
    twice_called = [lambda x: watched(x) + watched(2 * x), lambda x: jitted(x) + jitted(2 * x)]
    for fn in (in_a_row, jax.jit(in_a_row), *twice_called, jax.grad(twice_called[1])):
        with pytest.raises(ValueError, match=r"Duplicate sow name '.': its primal .*\nNumber the turns"):
            save_intermediates(fn)(X)


def test_branches_share_a_name_only_for_equal_trees():
    def fn(x: Any) -> Any:
        return jax.lax.cond(x[0] > 0, lambda x: sow({"a": x}, "y")["a"], lambda x: sow([x], "y")[0], x)

    with pytest.raises(TypeError, match=r"branch.*\('y', 'primal'\)"):
        save_intermediates(fn)(X)


def test_tags_are_groups():
    def fn(x: Any) -> Any:
        return sow(sow(x**2, "y", tag="early") + 1.0, "y", tag="late").sum()

    assert_close(save_intermediates(fn, tag="early")(X)[1], {"y": {"primal": X**2}})
    assert_close(save_intermediates(jax.jit(fn), tag="late")(X)[1], {"y": {"primal": X**2 + 1}})
    assert save_intermediates(fn)(X)[1] == {}
    (_, late), early = save_intermediates(save_intermediates(fn, tag="late"), tag="early")(X)
    assert_close((early, late), ({"y": {"primal": X**2}}, {"y": {"primal": X**2 + 1}}))
    _, outer = save_intermediates(jax.value_and_grad(save_intermediates(fn, tag="late"), has_aux=True), tag="late")(X)
    assert_close(outer, {"y": {"primal": X**2 + 1, "cotangent": jnp.ones(3)}})


def mixed_loss(x: Any) -> Any:
    tree = {"x": 2 * x, "unused": 3 * x, "int": jnp.arange(2), "key": jax.random.key(1), "number": 2.5, "text": "naca"}
    tree = sow({**tree, "none": None}, "tree")
    assert type(tree["number"]) is float
    return jnp.sum(tree["x"] * tree["number"])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["bare", "jit"])
def test_leaves_without_a_derivative_are_none(wrap: Any):
    _, seen = save_intermediates(jax.grad(wrap(mixed_loss)))(X)
    parts = seen["tree"]
    assert parts.keys() == {"primal", "cotangent"}
    assert parts["primal"]["text"] == "naca"
    assert parts["primal"]["key"] == jax.random.key(1)
    assert parts["primal"]["number"] == 2.5
    none = dict.fromkeys(["int", "key", "text", "none", "number"])
    assert_close(parts["cotangent"], {"x": jnp.full(3, 2.5), "unused": jnp.zeros(3), **none})


def test_integers_in_forward_mode():
    def fn(x: Any, n: Any) -> Any:
        x, n = sow((x, n), "pair")
        return x * n.astype(float)

    float0 = np.zeros((3,), jax.dtypes.float0)
    see = save_intermediates(lambda x, n: jax.jvp(jax.jit(fn), (x, n), (X_DOT, float0))[1])
    result, seen = see(X, jnp.arange(3))
    assert_close(result, X_DOT * jnp.arange(3.0))
    assert_close(seen["pair"], {"primal": (X, jnp.arange(3)), "tangent": (X_DOT, None)})


# ----------------------------------------------------------------------------------------------- the function around


def test_arguments_and_results_may_be_mixed_trees():
    def fn(design: Any, n: int, *, power: int) -> Any:
        assert design["family"] == "naca" and type(n) is int and power == 2
        return {"y": sow(design["x"] ** power * n, "y"), "family": design["family"], "n": n, "one": 1.0}

    result, seen = save_intermediates(fn)({"x": np.asarray(X), "family": "naca"}, 3, power=2)
    assert_close(result.pop("y"), 3 * X**2)
    assert result == {"family": "naca", "n": 3, "one": 1.0}
    assert_close(seen, {"y": {"primal": 3 * X**2}})


def test_nothing_sown_nothing_seen():
    assert save_intermediates(lambda: "done")() == ("done", {})
    assert_close(save_intermediates(unwatched)(X), (unwatched(X), {}))


def test_plain_numbers():
    assert save_intermediates(lambda x: sow(x**2, "y") + 1)(3) == (10, {"y": {"primal": 9}})
    _, seen = save_intermediates(jax.grad(lambda x: sow(x**2, "y")))(3.0)
    assert_close(seen, {"y": {"primal": jnp.array(9.0), "cotangent": jnp.array(1.0)}})


def test_name_and_signature_are_kept():
    assert save_intermediates(watched).__name__ == "watched"
    assert save_intermediates(eqx.nn.Lambda(jnp.sin))(X)[1] == {}  # has no name


def test_differentiable_itself():
    seeing = jax.jit(jax.value_and_grad(save_intermediates(LOOPS["scan of jit"]), has_aux=True))
    (value, seen), grad = seeing(X, SLOPES)
    assert_close((value, grad), jax.jit(jax.value_and_grad(LOOPS["scan"]))(X, SLOPES))
    assert seen.keys() == {"point"}
    # The recorded values are results like any other.
    grad = jax.grad(lambda x: save_intermediates(watched)(x)[1]["y"]["primal"]["a"].sum())(X)
    assert_close(grad, jnp.cos(X))


def test_inside_of_another_trace():
    def outer(factor: Any) -> Any:
        return save_intermediates(lambda x: sow(x * factor, "y").sum())(X)

    assert_close(jax.jit(outer)(2.0), (2 * X.sum(), {"y": {"primal": 2 * X}}))
    assert_close(jax.vmap(outer)(jnp.array([1.0, 2.0]))[1]["y"]["primal"], jnp.stack([X, 2 * X]))


def test_nothing_leaks_from_the_trace():
    with jax.checking_leaks():
        save_intermediates(jax.jit(jax.grad(LOOPS["scan of checkpoint"])))(X, SLOPES)


def test_loops_under_disable_jit():
    def fn(x: Any) -> Any:
        return jax.lax.scan(lambda c, _: (sow(2.0 * c, "c"), None), x, None, length=2)[0]

    with jax.disable_jit():
        assert_close(save_intermediates(fn)(X), (4 * X, {"c": {"primal": jnp.stack([2 * X, 4 * X])}}))


def test_what_was_compiled_stays_compiled():
    jaxpr = jax.make_jaxpr(save_intermediates(jax.grad(jax.jit(watched))))(X)
    assert len(jaxpr.eqns) < 5 and {eqn.primitive.name for eqn in jaxpr.eqns} >= {"jit"}


def test_effects_happen_once():
    happened = []

    def fn(x: Any) -> Any:
        jax.debug.callback(lambda x: happened.append(float(x)), x[0])
        return sow(x, "x")

    save_intermediates(jax.jit(fn))(X)
    jax.effects_barrier()
    assert happened == [0.3]


# ---------------------------------------------------------------------------------------------------- with Tesseracts


def wave(i: Any) -> Any:
    return {"y": jnp.sin(i["x"]) * i["gain"], "energy": jnp.sum(i["x"] ** 2), "kind": "wave"}


def product(i: Any) -> Any:
    return {"z": i["y"] ** 2 * i["w"]}


def pair() -> tuple[FunctionTesseract, FunctionTesseract]:
    example = {"x": np.ones(3), "gain": np.ones(()), "label": "a"}
    # A derivative of `energy` is an error, so sow must not make zeros of what is not there.
    first = FunctionTesseract(wave, example, name="wave", outputs={"energy": ArrayField("float64", (), False)})
    return first, FunctionTesseract(product, {"y": np.ones(3), "w": np.ones(3)}, name="product")


def pipeline(see: Any, call: Any) -> Any:
    """Two waves and a product of each."""

    def loss(x: Any) -> Any:
        inputs = see({"x": x, "gain": jnp.array(2.0), "label": "steep"}, "inputs")
        left = see(call(0, inputs), "left")
        right = see(call(0, {**inputs, "x": 3.0 * inputs["x"]}), "right")
        return jnp.sum(call(1, {"y": left["y"], "w": x})["z"] + call(1, {"y": right["y"], "w": x})["z"])

    return loss


def through_tesseracts(see: Any) -> Any:
    handles = pair()
    return pipeline(see, lambda k, inputs: apply_tesseract(handles[k], inputs))


in_plain_jax = pipeline(lambda value, name: value, lambda k, inputs: (wave, product)[k](inputs))


def waves(x: Any) -> Any:
    return [jnp.sin(x) * 2.0, jnp.sin(3.0 * x) * 2.0]


@pytest.mark.parametrize("how", ["eager", "jit inside", "jit outside", "concurrent"])
def test_gradient_through_tesseracts(how: str):
    loss = through_tesseracts(sow)
    run = {
        "eager": lambda: save_intermediates(jax.value_and_grad(loss)),
        "jit inside": lambda: save_intermediates(jax.jit(jax.value_and_grad(loss))),
        "jit outside": lambda: eqx.filter_jit(save_intermediates(jax.value_and_grad(loss))),
        "concurrent": lambda: concurrent(save_intermediates(jax.value_and_grad(loss))),
    }[how]()
    result, seen = run(X)
    assert_close(result, jax.value_and_grad(in_plain_jax)(X))
    left, right = waves(X)
    assert seen["left"]["primal"]["kind"] == "wave"
    assert_close([seen[side]["primal"]["y"] for side in ("left", "right")], [left, right])
    assert_close([seen[side]["cotangent"]["y"] for side in ("left", "right")], [2 * left * X, 2 * right * X])
    assert_close(seen["left"]["cotangent"]["energy"], jnp.zeros(()))
    assert seen["left"]["cotangent"]["kind"] is None  # a text has none
    # What the pullbacks of both waves add up to; the gain is a constant to the derivative, and counts nevertheless.
    x_bar = 2 * left * X * 2 * jnp.cos(X) + 2 * right * X * 6 * jnp.cos(3 * X)
    gain_bar = jnp.vdot(2 * left * X, jnp.sin(X)) + jnp.vdot(2 * right * X, jnp.sin(3 * X))
    assert_close(seen["inputs"]["cotangent"], {"x": x_bar, "gain": gain_bar, "label": None})


@eager_and_jit
def test_forward_mode_through_tesseracts(jit: bool):
    def push(x: Any) -> Any:
        return jax.jvp(through_tesseracts(sow), (x,), (X_DOT,))[1]

    result, seen = (eqx.filter_jit if jit else lambda f: f)(save_intermediates(push))(X)
    assert_close(result, jax.jvp(in_plain_jax, (X,), (X_DOT,))[1])
    assert_close(seen["right"]["tangent"]["y"], jax.jvp(lambda x: waves(x)[1], (X,), (X_DOT,))[1])
    assert_close(seen["inputs"]["tangent"]["x"], X_DOT)


def test_sow_costs_no_request():
    def requests(see: Any, transform: Any) -> Any:
        with count_requests() as counts:
            transform(through_tesseracts(see))(X)
        return dict(counts)

    for transform in jax.value_and_grad, lambda loss: concurrent(jax.value_and_grad(loss)):
        assert requests(sow, transform) == requests(lambda value, name: value, transform)


def test_sow_changes_nothing_in_a_concurrent_plan():
    def shape_of(see: Any) -> Any:
        plan = concurrent(jax.value_and_grad(through_tesseracts(see))).plan(X)
        return [(node.label, node.producers, node.wave) for node in plan.nodes]

    assert shape_of(sow) == shape_of(lambda value, name: value)
    run = concurrent(jax.value_and_grad(through_tesseracts(sow)))
    assert_close(run(X), jax.value_and_grad(in_plain_jax)(X))


def test_a_sown_input_need_not_be_differentiable():
    example = {"x": np.ones(3), "speed": np.ones(3)}
    handle = FunctionTesseract(
        lambda i: {"y": i["x"] * i["speed"]}, example, inputs={"speed": ArrayField("float64", (None,), False)}
    )

    def loss(x: Any) -> Any:
        return apply_tesseract(handle, sow({"x": x, "speed": X_DOT}, "inputs"))["y"].sum()

    assert_close(jax.grad(loss)(X), X_DOT)
    grad, seen = save_intermediates(jax.grad(loss))(X)
    assert_close((grad, seen["inputs"]["cotangent"]), (X_DOT, {"x": X_DOT, "speed": jnp.full(3, jnp.nan)}))


def test_errors_of_a_component_keep_their_type():
    broken = FunctionTesseract(wave, {"x": np.ones(3), "gain": np.ones(())}, before=Faults(ComponentFailed("no mesh")))

    def fn(x: Any) -> Any:
        return apply_tesseract(broken, sow({"x": x, "gain": jnp.ones(())}, "inputs"))["y"]

    with pytest.raises(ComponentFailed, match="no mesh"):
        save_intermediates(fn)(X)
    assert_close(save_intermediates(fn)(X)[0], jnp.sin(X))
