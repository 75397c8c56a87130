"""`sow` and `save_intermediates`: the values at named points of a computation, and their derivatives.

`sow` is an identity that leaves an equation in what JAX traces. JAX's transformations do the rest: forward mode adds an
equation for the tangents, and transposition turns that into one for the cotangents. `save_intermediates` traces a
function with all that is inside of it, evaluates the trace once more, and collects what passes through these equations.
Loops, branches and compiled functions with such an equation inside are built anew with one more output, by the public
functions that made them; everything else stays as it is.
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
from jax.core import Tracer
from jax.dtypes import float0
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, Literal, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from tesseract_flow.autodiff.call import ARRAY, Static

T = TypeVar("T")


def sow(value: T, name: str, *, tag: str = "intermediates") -> T:
    """`value`, unchanged; a `save_intermediates` around it sees what passes here. In compiled code nothing is left.

    Go on with what it returns, as in `y = sow(y, "y")`: what nobody uses, JAX may drop.

    Args:
        value: a tree of arrays. Numbers among them are recorded too, other leaves (text, ...) handed on.
        name: unique within the function that is watched.
        tag: a group of points, seen by a `save_intermediates` with the same tag.
    """
    leaves, treedef = jax.tree_util.tree_flatten(value)
    known = [np.asarray(leaf) if isinstance(leaf, bool | int | float | complex) else leaf for leaf in leaves]
    form = (treedef, tuple(x.dtype if _is_array(x) else Static(x) for x in known))
    arrays = [x for x in known if _is_array(x)]
    sown = iter(sow_p.bind(*arrays, name=name, tag=tag, form=form, part="primal", is_new=True))
    for k, x in enumerate(known):
        if _is_array(x) and isinstance(y := next(sown), Tracer) and x is leaves[k]:
            leaves[k] = y  # a plain number stays one: a schema may ask for it
    return jax.tree_util.tree_unflatten(treedef, leaves)


def save_intermediates(
    fn: Callable[..., Any], *, tag: str = "intermediates"
) -> Callable[..., tuple[Any, dict[str, dict[str, Any]]]]:
    """`fn`, which now returns a pair: its result, and `{name: {part: tree}}` with what passed through each `sow`.

    The parts are `"primal"`, and `"tangent"` or `"cotangent"` where forward or reverse mode passed: an outermost
    transformation, as in `save_intermediates(jax.value_and_grad(f))`. Leaves that a derivative did not reach are zero
    there, and those that have none (integers, text) are `None`, as in `equinox.filter_grad`. Of nested derivatives the
    innermost is recorded. `fn` sees traced arrays, like under `jit`; other arguments, numbers too, it gets as they are.

    Loops add axes in front: first one for each `scan`, `map` or `fori_loop` around the point, then one for each `vmap`
    along which the leaf differs. (Reverse mode may take out of a loop, and show once, what is the same in all turns.) A
    branch of `cond` that was not taken gives NaN, or zero for integers. Where values have no way out (a `while_loop`,
    whose length is not known, or `shard_map`), there is a warning instead.

    Raises:
        ValueError: a name was sown twice. The branches of one `cond` may share names.
    """

    @functools.wraps(fn, updated=())
    def saving(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, dict[str, Any]]]:
        arrays, fill = _split((args, kwargs))
        filled: Any = None

        def flat(*arrays: Any) -> list[Any]:
            nonlocal filled
            args, kwargs = fill(arrays)
            results, filled = _split(fn(*args, **kwargs))
            return results

        with jax.disable_jit(False):  # it would unroll loops, whose turns all sow the same names
            closed = jax.make_jaxpr(flat)(*arrays)
        results, found = _run(tag, closed, arrays)
        seen: dict[str, dict[str, Any]] = {}
        for (name, part), record in found.items():
            seen.setdefault(name, {})[part] = record.tree()
        return filled(results), seen

    return saving


def _is_array(leaf: Any) -> bool:
    """Whether JAX can trace it; NumPy also has arrays of text, dates and objects."""
    return isinstance(leaf, jax.Array) or (isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind not in "OSUMm")


def _split(tree: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """The arrays of a tree, and the tree as a function of its arrays."""
    leaves, treedef = jax.tree_util.tree_flatten(tree)
    others = [ARRAY if _is_array(leaf) else leaf for leaf in leaves]  # no tracer may outlive its trace

    def fill(arrays: Sequence[Any]) -> Any:
        remaining = iter(arrays)
        return jax.tree_util.tree_unflatten(treedef, [next(remaining) if x is ARRAY else x for x in others])

    return [leaf for leaf in leaves if _is_array(leaf)], fill


@functools.partial(jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["part", "form"])
@dataclasses.dataclass(frozen=True)
class _Record:
    """What passed through a point. Its form is a treedef, and per leaf the dtype, or a `Static` where there is none."""

    part: str
    form: tuple[Any, tuple[Any, ...]]
    arrays: Sequence[Any]

    def tree(self) -> Any:
        treedef, leaves = self.form
        remaining = iter(self.arrays)

        def leaf(known: Any) -> Any:
            if isinstance(known, Static):
                return known.value if self.part == "primal" else None
            return next(remaining) if self.part == "primal" or jnp.issubdtype(known, jnp.inexact) else None

        return treedef.unflatten([leaf(known) for known in leaves])


Found = dict[tuple[str, str], _Record]  # by name and part

_TWICE = """{name!r} is sown twice in one function: its {part} came up again.
Give each point a name of its own: one per turn of a Python loop, as in sow(x, f"step {{i}}"); a prefix per call of a \
function that is called more than once. (lax.scan stacks its turns under one name.)"""


sow_p = Primitive("sow")
sow_p.multiple_results = True
sow_p.def_impl(lambda *values, **_: list(values))
sow_p.def_abstract_eval(lambda *avals, **_: list(avals))
mlir.register_lowering(sow_p, lambda ctx, *values, **_: values)


def _jvp(primals, tangents, *, part: str, is_new: bool, **params: Any):
    # No longer new: the derivative of a derivative would come under the same name.
    y = sow_p.bind(*primals, part=part, is_new=False, **params)
    return y, _sow_derivative("tangent", tangents, **params) if is_new else tangents


def _transpose(y_bar, *operands, part: str, is_new: bool, **params: Any):
    x_bar = _sow_derivative("tangent" if part == "cotangent" else "cotangent", y_bar, **params)
    return [c if ad.is_undefined_primal(x) else None for c, x in zip(x_bar, operands, strict=True)]


def _sow_derivative(part: str, derivatives: Sequence[Any], **params: Any) -> list[Any]:
    """Records a zero for a symbolic one, but hands on the symbol: a Tesseract must not be asked for its derivative."""
    dtypes = [(x.aval if isinstance(x, ad.Zero) else x).dtype for x in derivatives]  # type: ignore[attr-defined]
    real = [k for k, dtype in enumerate(dtypes) if dtype != float0]
    sown = sow_p.bind(*(ad.instantiate_zeros(derivatives[k]) for k in real), part=part, is_new=False, **params)
    passed = dict(zip(real, sown, strict=True))
    return [x if isinstance(x, ad.Zero) else passed[k] for k, x in enumerate(derivatives)]


def _batch(operands, axes, **params: Any):
    moved = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(operands, axes, strict=True)]
    return sow_p.bind(*moved, **params), [None if axis is None else 0 for axis in axes]


ad.primitive_jvps[sow_p] = _jvp
ad.primitive_transposes[sow_p] = _transpose
batching.primitive_batchers[sow_p] = _batch


def _run(tag: str, body: Any, args: Sequence[Any]) -> tuple[list[Any], Found]:
    """Outputs of a jaxpr, open or closed, and what it sows."""
    jaxpr: Jaxpr = getattr(body, "jaxpr", body)
    env: dict[Any, Any] = dict(zip(jaxpr.invars, args, strict=True))
    env.update(zip(jaxpr.constvars, getattr(body, "consts", ()), strict=True))

    def read(atom: Any) -> Any:
        # A literal may be a Python number, and only its aval knows the dtype.
        return jnp.asarray(atom.val, getattr(atom.aval, "dtype", None)) if isinstance(atom, Literal) else env[atom]

    found: Found = {}
    for eqn in jaxpr.eqns:
        names = set(_names([eqn], tag))
        rule = _RULES.get(eqn.primitive.name)
        if names and rule is not None:
            outputs, new = rule(functools.partial(_run, tag), eqn, [read(atom) for atom in eqn.invars])
            for name, part in sorted(found.keys() & new.keys()):
                raise ValueError(_TWICE.format(name=name, part=part))
            found.update(new)
        else:
            outputs = _evaluate(eqn, env)
            for name in names:
                warnings.warn(f"Nothing is recorded inside of {eqn.primitive.name!r}, so not {name!r}.", stacklevel=3)
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars], found


def _run_sow(run: Any, eqn: Any, values: list[Any]) -> tuple[Sequence[Any], Found]:
    y = sow_p.bind(*values, **eqn.params)  # again, for a save_intermediates around this one
    name, part = eqn.params["name"], eqn.params["part"]
    return y, {(name, part): _Record(part, eqn.params["form"], y)}


def _run_wrapper(run: Any, eqn: Any, values: list[Any]) -> tuple[Sequence[Any], Found]:
    if eqn.primitive.name.startswith("custom"):
        values = _without_derivative(values)
    (body,) = _bodies(eqn)
    outputs, found = run(body, values)
    if eqn.params.get("differentiated"):
        # The backward pass of jax.checkpoint computes primals again; the forward pass has given them already.
        found = {key: value for key, value in found.items() if key[1] != "primal"}
    return outputs, found


def _run_jit(run: Any, eqn: Any, values: list[Any]) -> tuple[Sequence[Any], Found]:
    return jax.jit(lambda values: run(eqn.params["jaxpr"], values))(values)


def _run_scan(run: Any, eqn: Any, values: list[Any]) -> tuple[Sequence[Any], Found]:
    body = eqn.params["jaxpr"]
    # Operands are constants, carry and slices, results are carry and slices. How many of each, JAX's versions write
    # down differently; but only slices have one axis less inside.
    n_carry = sum(a.aval.ndim == b.aval.ndim for a, b in zip(eqn.outvars, body.jaxpr.outvars, strict=True))
    n_whole = sum(a.aval.ndim == b.aval.ndim for a, b in zip(eqn.invars, body.jaxpr.invars, strict=True))
    consts, carry, xs = values[: n_whole - n_carry], values[n_whole - n_carry : n_whole], values[n_whole:]

    def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], Any]:
        outputs, found = run(body, [*consts, *carry, *x])
        return outputs[:n_carry], (outputs[n_carry:], found)

    how = {key: eqn.params[key] for key in ("length", "reverse", "unroll")}
    carry, (ys, found) = jax.lax.scan(step, carry, xs, **how)
    return [*carry, *ys], found


def _run_cond(run: Any, eqn: Any, values: list[Any]) -> tuple[Sequence[Any], Found]:
    branches = [functools.partial(run, branch) for branch in eqn.params["branches"]]
    avals = {key: aval for branch in branches for key, aval in jax.eval_shape(branch, values[1:])[1].items()}

    def nothing(aval: Any) -> Any:
        return jnp.full(aval.shape, jnp.nan if jnp.issubdtype(aval.dtype, jnp.inexact) else 0, aval.dtype)

    def filled(branch: Any, operands: list[Any]) -> tuple[Sequence[Any], Found]:
        outputs, found = branch(operands)
        return outputs, {
            key: found[key] if key in found else jax.tree_util.tree_map(nothing, avals[key]) for key in avals
        }

    return jax.lax.switch(values[0], [functools.partial(filled, branch) for branch in branches], values[1:])


_RULES: dict[str, Callable[..., tuple[Sequence[Any], Found]]] = {
    "sow": _run_sow,
    "scan": _run_scan,
    "cond": _run_cond,
    **dict.fromkeys(("jit", "pjit"), _run_jit),
    # They only wrap a body, which is evaluated in their place.
    **dict.fromkeys(("eval_jaxpr", "closed_call", "core_call", "checkpoint", "remat", "remat2"), _run_wrapper),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"), _run_wrapper),
}


def _bodies(eqn: Any) -> list[Any]:
    values = [value if isinstance(value, tuple | list) else [value] for value in eqn.params.values()]
    return [item for value in values for item in value if isinstance(item, ClosedJaxpr | Jaxpr)]


def _names(eqns: Sequence[Any], tag: str) -> Iterator[str]:
    """What is sown under this tag in some equations and their bodies."""
    for eqn in eqns:
        if eqn.primitive is sow_p and eqn.params["tag"] == tag:
            yield eqn.params["name"]
        for body in _bodies(eqn):
            yield from _names(body.eqns, tag)


def _evaluate(eqn: Any, env: dict[Any, Any]) -> Sequence[Any]:
    """An equation in which nothing is sown, as a jaxpr of its own: how to evaluate it is JAX's business."""
    operands = list(dict.fromkeys(atom for atom in eqn.invars if not isinstance(atom, Literal)))
    info = DebugInfo("save_intermediates", "tesseract_flow", ("x",) * len(operands), ("y",) * len(eqn.outvars))
    alone = Jaxpr((), operands, eqn.outvars, [eqn], eqn.effects, debug_info=info)
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*(env[var] for var in operands))


@jax.custom_jvp
def _without_derivative(values: list[Any]) -> list[Any]:
    return values


@_without_derivative.defjvp
def _refuse_derivative(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "save_intermediates(f) was differentiated, and f sows inside of a function with a derivative of its own, which "
        "would get lost.\nPut the derivative inside: save_intermediates(jax.grad(f)) and not the other way round."
    )
