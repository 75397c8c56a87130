"""`sow` and `save_intermediates`: see the values, and their derivatives, at named points of a computation.

`sow` is an identity that leaves an equation in what JAX traces, one per array leaf, so that it ties no leaf to another.
JAX's transformations do the rest: forward mode adds an equation for the tangent, transposition turns that into one for
the cotangent. `save_intermediates` traces a function with everything that is inside of it and evaluates the trace once
more, collecting what passes through these equations. Bodies that contain some are built anew with one more output, by
the same public functions that made them (`jax.jit`, `lax.scan`, ...); all others stay as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, JaxprEqn, Literal, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

T = TypeVar("T")
Key = tuple[str, str, int]  # name, part, number of the leaf
Found = dict[Key, Any]

PARTS = ("primal", "tangent", "cotangent")


def sow(value: T, name: str, *, tag: str = "intermediates") -> T:
    """`value`, unchanged; `save_intermediates` around it sees what passes here. Compiled code has no trace of it.

    Go on with the result, as in `y = sow(y, "y")`: what nobody uses, JAX may drop.

    Args:
        value: a tree of arrays. Numbers in it are recorded, other leaves (text, ...) only handed on.
        name: unique within the function that is watched.
        tag: a group of points; `save_intermediates` with the same tag sees it.
    """
    leaves, treedef = jax.tree_util.tree_flatten(value)
    point = _Point(name, tag, treedef, tuple(_Slot.of(leaf) for leaf in leaves))
    sown = [
        leaf if slot.dtype is None else _sow_leaf(leaf, point, k)
        for k, (leaf, slot) in enumerate(zip(leaves, point.slots, strict=True))
    ]
    return jax.tree_util.tree_unflatten(treedef, sown)


def save_intermediates(
    fn: Callable[..., Any], *, tag: str = "intermediates"
) -> Callable[..., tuple[Any, dict[str, dict[str, Any]]]]:
    """`fn`, returning besides its result what passed through each `sow` with this tag: `{name: {part: tree}}`.

    The parts are `"primal"`, and `"tangent"` or `"cotangent"` where forward or reverse mode passed: an outermost
    transformation, to be written `save_intermediates(jax.value_and_grad(f))`. A leaf that no derivative reached is zero
    there, and `None` if it has none (integers, text), as in `equinox.filter_grad`. Of nested derivatives, those of the
    innermost are recorded. Like under `jit`, `fn` sees traced arrays; other arguments (numbers too) it gets as they are.

    Extra axes come in front: first one per `scan`, `map` or `fori_loop` around the point, then one per `vmap` if the
    leaf differs along it. From a `while_loop` comes the last turn. Where nothing passed (a branch of `cond` that was not
    taken, a loop without turns) there is NaN, or zero for integers.

    Raises:
        ValueError: a name was sown twice (not counting branches of one `cond`, of which only one is taken).
    """

    @functools.wraps(fn, updated=())
    def saving(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, dict[str, Any]]]:
        leaves, treedef = jax.tree_util.tree_flatten((args, kwargs))
        results: list[Any] = []
        out_tree: Any = None

        def flat(*arrays: Any) -> list[Any]:
            nonlocal results, out_tree
            remaining = iter(arrays)
            full = [next(remaining) if _is_array(leaf) else leaf for leaf in leaves]
            args, kwargs = jax.tree_util.tree_unflatten(treedef, full)
            results, out_tree = jax.tree_util.tree_flatten(fn(*args, **kwargs))
            return [leaf for leaf in results if _is_array(leaf)]

        arrays = [leaf for leaf in leaves if _is_array(leaf)]
        harvest = _Harvest(tag)
        outputs, found = harvest.run(jax.make_jaxpr(flat)(*arrays), arrays)
        remaining = iter(outputs)
        filled = [next(remaining) if _is_array(leaf) else leaf for leaf in results]
        return jax.tree_util.tree_unflatten(out_tree, filled), harvest.trees(found)

    return saving


def _is_array(leaf: Any) -> bool:
    """Whether JAX can trace it; NumPy also has arrays of text, dates and objects."""
    return isinstance(leaf, jax.Array) or (isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind not in "OSUMm")


# --- the primitive ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Point:
    """One call of `sow`. Equal only to itself, so that JAX never takes two points for one another."""

    name: str
    tag: str
    treedef: Any
    leaves: tuple[jax.ShapeDtypeStruct | Static, ...]  # Static: no number, so there is nothing to record

    def __repr__(self) -> str:  # as a jaxpr prints it
        return repr(self.name)


def _sow_leaf(leaf: T, point: _Point, k: int) -> T:
    if _is_array(leaf):
        return sow_p.bind(leaf, point=point, leaf=k, part="primal", is_new=True)
    sow_p.bind(np.asarray(leaf), point=point, leaf=k, part="primal", is_new=True)
    return leaf  # still a Python number, which a Tesseract's schema may ask for


sow_p = Primitive("sow")
sow_p.def_impl(lambda x, **_: x)
sow_p.def_abstract_eval(lambda x, **_: x)
mlir.register_lowering(sow_p, lambda ctx, x, **_: [x])


def _jvp(primals, tangents, *, part: str, is_new: bool, **params: Any):
    (x,), (x_dot,) = primals, tangents
    # Old from now on: a derivative of the derivative would come under the same name.
    y = sow_p.bind(x, part=part, is_new=False, **params)
    if not is_new or isinstance(x_dot, ad.Zero):
        return y, x_dot
    return y, sow_p.bind(x_dot, part="tangent", is_new=False, **params)


def _transpose(y_bar, x, *, part: str, is_new: bool, **params: Any):
    if isinstance(y_bar, ad.Zero):
        return [y_bar]
    return [sow_p.bind(y_bar, part="tangent" if part == "cotangent" else "cotangent", is_new=False, **params)]


def _batch(operands, axes, **params: Any):
    (x,), (axis,) = operands, axes
    return sow_p.bind(jnp.moveaxis(x, axis, 0), **params), 0


ad.primitive_jvps[sow_p] = _jvp
ad.primitive_transposes[sow_p] = _transpose
batching.primitive_batchers[sow_p] = _batch


# --- the second evaluation --------------------------------------------------------------------------------------------

# Primitives that only wrap a body, which is evaluated in their place, and the parameter that holds it. A custom
# derivative is not needed any more: what was to be differentiated is, by the time that we see the trace.
_WRAPPERS = {
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


class _Harvest:
    """One evaluation of a trace: `run` gives its outputs, and what was found on the way."""

    def __init__(self, tag: str):
        self.tag = tag
        self.points: dict[str, _Point] = {}
        self.rules: dict[str, Callable[[Any, list[Any]], tuple[Sequence[Any], Found]]] = {
            "sow": self._sow,
            "jit": self._jit,
            "pjit": self._jit,
            "scan": self._scan,
            "while": self._while,
            "cond": self._cond,
            **dict.fromkeys(_WRAPPERS, self._wrapper),
        }

    def run(self, body: Any, args: Sequence[Any]) -> tuple[list[Any], Found]:
        """Outputs of a jaxpr, open or closed, and what it sows."""
        jaxpr: Jaxpr = getattr(body, "jaxpr", body)
        env: dict[Any, Any] = dict(zip(jaxpr.invars, args, strict=True))
        env.update(zip(jaxpr.constvars, getattr(body, "consts", ()), strict=True))

        def read(atom: Any) -> Any:
            # A literal may be a Python number, and only its aval knows the dtype.
            return jnp.asarray(atom.val, atom.aval.dtype) if isinstance(atom, Literal) else env[atom]

        found: Found = {}
        for eqn in jaxpr.eqns:
            names = [point.name for point in _points(eqn, self.tag)]
            rule = self.rules.get(eqn.primitive.name) if names else None
            if names and rule is None:
                warnings.warn(
                    f"Nothing is recorded of {', '.join(map(repr, names))}, sown inside of {eqn.primitive.name!r}.",
                    stacklevel=2,
                )
            if rule is None:
                outputs, new = _evaluate(eqn, env), {}
            else:
                outputs, new = rule(eqn, [read(atom) for atom in eqn.invars])
            _refuse_doubles(found, new)
            found.update(new)
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars], found

    def trees(self, found: Found) -> dict[str, dict[str, Any]]:
        """What was found, as the trees that were sown."""
        return {
            name: {
                part: jax.tree_util.tree_unflatten(
                    point.treedef, [_leaf(found, (name, part, k), slot) for k, slot in enumerate(point.slots)]
                )
                for part in PARTS
                if any((name, part, k) in found for k in range(len(point.slots)))
            }
            for name, point in self.points.items()
        }

    def _sow(self, eqn: JaxprEqn, values: list[Any]) -> tuple[Sequence[Any], Found]:
        point: _Point = eqn.params["point"]
        known = self.points.setdefault(point.name, point)
        if (known.treedef, known.slots) != (point.treedef, point.slots):
            raise ValueError(f"{point.name!r} is sown twice, with trees of another structure, shape or dtype.")
        # Sown again, for a save_intermediates around this one.
        y = sow_p.bind(*values, **eqn.params)
        return [y], {(point.name, eqn.params["part"], eqn.params["leaf"]): y}

    def _wrapper(self, eqn: JaxprEqn, values: list[Any]) -> tuple[Sequence[Any], Found]:
        if eqn.primitive.name.startswith("custom"):
            values = list(_without_derivative(*values))
        outputs, found = self.run(eqn.params[_WRAPPERS[eqn.primitive.name]], values)
        if eqn.params.get("differentiated"):
            # The backward pass of a checkpoint computes primals again, which the forward pass has recorded.
            found = {key: value for key, value in found.items() if key[1] != "primal"}
        return outputs, found

    def _jit(self, eqn: JaxprEqn, values: list[Any]) -> tuple[Sequence[Any], Found]:
        return jax.jit(lambda *args: self.run(eqn.params["jaxpr"], args))(*values)

    def _scan(self, eqn: JaxprEqn, values: list[Any]) -> tuple[Sequence[Any], Found]:
        params = eqn.params
        body = params["jaxpr"]
        # Operands are constants, carry and slices, results are carry and slices; slices have lost an axis in the body.
        n_carry = sum(map(_same_rank, eqn.outvars, body.jaxpr.outvars))
        n_whole = sum(map(_same_rank, eqn.invars, body.jaxpr.invars))
        consts, carry, xs = values[: n_whole - n_carry], values[n_whole - n_carry : n_whole], values[n_whole:]

        def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], Any]:
            outputs, found = self.run(body, [*consts, *carry, *x])
            return outputs[:n_carry], (outputs[n_carry:], found)

        carry, (ys, found) = jax.lax.scan(
            step, carry, xs, length=params["length"], reverse=params["reverse"], unroll=params["unroll"]
        )
        return [*carry, *ys], found

    def _while(self, eqn: JaxprEqn, values: list[Any]) -> tuple[Sequence[Any], Found]:
        params = eqn.params
        n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
        cond_consts, body_consts, carry = values[:n_cond], values[n_cond : n_cond + n_body], values[n_cond + n_body :]
        test = jaxpr_as_fun(params["cond_jaxpr"])

        def turn(state: tuple[list[Any], Found]) -> tuple[list[Any], Found]:
            return self.run(params["body_jaxpr"], [*body_consts, *state[0]])

        nothing = {key: _absent(aval) for key, aval in jax.eval_shape(turn, (carry, {}))[1].items()}
        return jax.lax.while_loop(lambda state: test(*cond_consts, *state[0])[0], turn, (carry, nothing))

    def _cond(self, eqn: JaxprEqn, values: list[Any]) -> tuple[Sequence[Any], Found]:
        index, *operands = values
        branches = [functools.partial(self.run, branch) for branch in eqn.params["branches"]]
        avals: Found = {}
        for branch in branches:
            avals |= jax.eval_shape(branch, operands)[1]

        def filled(branch: Callable[..., Any], *operands: Any) -> tuple[Sequence[Any], Found]:
            outputs, found = branch(operands)
            return outputs, {key: found[key] if key in found else _absent(aval) for key, aval in avals.items()}

        return jax.lax.switch(index, [functools.partial(filled, branch) for branch in branches], *operands)


def _points(eqn: Any, tag: str) -> Iterator[_Point]:
    """The points with this tag in an equation and its bodies."""
    if eqn.primitive is sow_p and eqn.params["point"].tag == tag:
        yield eqn.params["point"]
    for value in eqn.params.values():
        for body in value if isinstance(value, tuple | list) else (value,):
            if isinstance(body, ClosedJaxpr | Jaxpr):
                for inner in body.eqns:
                    yield from _points(inner, tag)


def _evaluate(eqn: Any, env: dict[Any, Any]) -> list[Any]:
    """An equation without anything to record, as a jaxpr of its own: how it is evaluated is JAX's business."""
    operands = list(dict.fromkeys(atom for atom in eqn.invars if not isinstance(atom, Literal)))
    info = DebugInfo("save_intermediates", "tesseract_flow", ("x",) * len(operands), ("y",) * len(eqn.outvars))
    alone = Jaxpr((), operands, eqn.outvars, [eqn], eqn.effects, debug_info=info)
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*(env[var] for var in operands))


def _leaf(found: Found, key: Key, slot: _Slot) -> Any:
    """A leaf of the tree of one part."""
    name, part, k = key
    if key in found:
        return found[key]
    if part == "primal":
        return slot.value
    if not slot.is_inexact:
        return None
    return jnp.zeros_like(found.get((name, "primal", k), jax.ShapeDtypeStruct(slot.shape, slot.dtype)))


def _absent(aval: Any) -> jax.Array:
    """What stands where nothing passed."""
    return jnp.full(aval.shape, jnp.nan if jnp.issubdtype(aval.dtype, jnp.inexact) else 0, aval.dtype)


def _same_rank(outside: Any, inside: Any) -> bool:
    return len(outside.aval.shape) == len(inside.aval.shape)


def _refuse_doubles(found: Found, new: Found) -> None:
    for name, part, _ in sorted(found.keys() & new.keys()):
        raise ValueError(
            f"{name!r} is sown twice in one function (its {part} came up again).\n"
            "Give each point a name of its own: in a Python loop one per turn, as in sow(x, f'step {i}'); in a function "
            "that is called several times, a prefix for each call. lax.scan stacks its turns under one name."
        )


@jax.custom_jvp
def _without_derivative(*values: Any) -> tuple[Any, ...]:
    return values


@_without_derivative.defjvp
def _refuse_derivative(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "A derivative was taken of save_intermediates(f), where f sows inside of a function with a derivative of its own "
        "(custom_jvp, custom_vjp), which would be lost.\n"
        "Put the derivative inside: save_intermediates(jax.grad(f)), not jax.grad(save_intermediates(f))."
    )
