"""`sow` and `save_intermediates`: the values at named points of a computation, and their derivatives.

`sow` is an identity that leaves an equation in what JAX traces. Forward mode adds one for the tangents, transposition
turns that into one for the cotangents. `save_intermediates` traces a function with all its transformations, evaluates
the trace once more, and collects what passes through these equations. Loops, branches and compiled functions that
contain some are built anew with one more output, by the functions that made them; the rest stays as it is.
"""

from __future__ import annotations

import contextvars
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
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, Literal, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.tree_util import Partial

from tesseract_flow.autodiff import plain
from tesseract_flow.autodiff.layout import Static

T = TypeVar("T")
Seen = dict[str, dict[str, Any]]  # by name and part: trees like those that were sown


def sow(value: T, name: str, *, tag: str = "intermediates") -> T:
    """`value`, unchanged; a `save_intermediates` around it sees what passes here. In compiled code nothing is left.

    Go on with what it returns, as in `y = sow(y, "y")`: what nobody uses, JAX may drop.

    Args:
        value: a tree of arrays; other leaves (text, plain numbers) are constants.
        name: unique within the function that is watched.
        tag: a group of points, seen by a `save_intermediates` with the same tag.
    """
    arrays, form = split(value)
    sown = sow_p.bind(*arrays, name=name, tag=tag, form=form, part="new", is_whole=False)
    return form([y if isinstance(y, Tracer) else x for x, y in zip(arrays, sown, strict=True)])


def save_intermediates(fn: Callable[..., Any], *, tag: str = "intermediates") -> Callable[..., tuple[Any, Seen]]:
    """`fn`, which now returns a pair: its result, and `{name: {part: tree}}` with what passed through each `sow`.

    The parts are `"primal"`, and `"tangent"` or `"cotangent"` where forward or reverse mode passed: an outermost
    transformation, as in `save_intermediates(jax.value_and_grad(f))`. They are whole: constant arrays count as well (if
    something then has no derivative, there is NaN for them), and `None` stands for what is no floating-point array. Of
    nested derivatives the innermost is recorded. `fn` sees traced arrays, like under `jit`; plain numbers and all else
    it gets as they are.

    Loops add axes in front: first one for each `scan`, `map` or `fori_loop` around the point, then one for each `vmap`
    along which the leaf differs. (Reverse mode may take out of a loop, and show once, what is the same in all turns.) A
    branch of `cond` that was not taken gives NaN, or zero for integers. Where values have no way out (a `while_loop`,
    whose length is not known, or `shard_map`), there is a warning instead.

    Raises:
        ValueError: a name was sown twice. The branches of one `cond` may share names.
    """

    @functools.wraps(fn, updated=())
    def saving(*args: Any, **kwargs: Any) -> tuple[Any, Seen]:
        arrays, form = split((args, kwargs))
        out_form: Any = None

        def flat(*arrays: Any) -> list[Any]:
            nonlocal out_form
            args, kwargs = form(arrays)
            results, out_form = split(fn(*args, **kwargs))
            return results

        try:
            closed = _traced(flat, arrays, is_whole=True)
        except Exception:  # perhaps only because something has no derivative by a constant
            closed = None
        results, found = _run(tag, closed or _traced(flat, arrays, is_whole=False), arrays)
        seen: Seen = {}
        for (name, part), record in found.items():
            seen.setdefault(name, {})[part] = record(part)
        return out_form(results), seen

    return saving


_is_whole: contextvars.ContextVar[bool] = contextvars.ContextVar("is_whole", default=False)


def _traced(fn: Callable[..., Any], arrays: Sequence[Any], is_whole: bool) -> ClosedJaxpr:
    """A trace. Where a derivative passes a point, all of the point is differentiated, or what the derivative needs."""
    token = _is_whole.set(is_whole)
    # JAX remembers the traces of functions inside. Metadata are part of its key, so these serve nobody else. And under
    # disable_jit it would unroll loops, whose turns all sow the same names.
    with set_xla_metadata(tesseract_flow_sow=str(is_whole)), jax.disable_jit(False):
        try:
            return jax.make_jaxpr(fn)(*arrays)
        finally:
            _is_whole.reset(token)


@dataclasses.dataclass(frozen=True)
class _Form:
    """A tree as a function of its arrays, of which it keeps the dtypes (no tracer may outlive its trace)."""

    treedef: Any
    leaves: tuple[Any, ...]  # dtypes, and a Static for what is no array

    def __call__(self, arrays: Sequence[Any], part: str = "primal") -> Any:
        remaining = iter(arrays)

        def leaf(known: Any) -> Any:
            if isinstance(known, Static):
                return known.value if part == "primal" else None
            return next(remaining) if part == "primal" or jnp.issubdtype(known, jnp.inexact) else None

        tree = self.treedef.unflatten([leaf(known) for known in self.leaves])
        return tree if part == "primal" else plain.without_plain_outputs(tree)


def split(tree: Any) -> tuple[list[Any], _Form]:
    """What JAX can trace, and the rest. (NumPy also has arrays of text, dates and objects.)"""
    leaves, treedef = jax.tree_util.tree_flatten(tree)
    kinds = [x.dtype.kind if isinstance(x, np.ndarray | np.generic) else "O" for x in leaves]
    traced = [isinstance(x, jax.Array) or kind not in "OSUMm" for x, kind in zip(leaves, kinds, strict=True)]
    known = tuple(x.dtype if yes else Static(x) for x, yes in zip(leaves, traced, strict=True))
    return [x for x, yes in zip(leaves, traced, strict=True) if yes], _Form(treedef, known)


Found = dict[tuple[str, str], Partial]  # by name and part: the form of what was sown, with the arrays that passed

_TWICE = """Duplicate sow name {name!r}: its {part} came up twice in one function.
Number the turns of a Python loop and the calls of a function: sow(x, f"step {{i}}"). lax.scan stacks its turns."""

sow_p = Primitive("sow")
sow_p.multiple_results = True
sow_p.def_impl(lambda *values, **_: list(values))
sow_p.def_abstract_eval(lambda *avals, **_: list(avals))
mlir.register_lowering(sow_p, lambda ctx, *values, **_: values)


def _jvp(primals, tangents, *, part: str, is_whole: bool, **params: Any):
    if part != "new":  # the derivative of a derivative would come under the same name
        return sow_p.bind(*primals, part=part, is_whole=is_whole, **params), tangents
    is_whole = _is_whole.get()
    y = sow_p.bind(*primals, part="primal", is_whole=False, **params)
    y_dot = _sow_derivative("tangent", tangents, (), is_whole=is_whole, **params)
    return y, [x if isinstance(x, ad.Zero) and not is_whole else y_dot.get(k, x) for k, x in enumerate(tangents)]


def _transpose(y_bar, *operands, part: str, **params: Any):
    known = [k for k, x in enumerate(operands) if not ad.is_undefined_primal(x)]
    x_bar = _sow_derivative("tangent" if part == "cotangent" else "cotangent", y_bar, known, **params)
    # A symbolic zero stays one: a Tesseract must not be asked for the derivative of an output that nobody uses.
    return [None if k in known or isinstance(c, ad.Zero) else x_bar[k] for k, c in enumerate(y_bar)]


def _sow_derivative(part: str, values: Sequence[Any], known: Sequence[int], is_whole: bool, **params: Any) -> Any:
    """What can be recorded, by position: symbolic zeros as numbers, and NaN for cotangents that nobody computes."""
    dtypes = [(x.aval if isinstance(x, ad.Zero) else x).dtype for x in values]  # type: ignore[attr-defined]
    real = {k: ad.instantiate_zeros(x) for k, x in enumerate(values) if dtypes[k] != float0}
    if not is_whole:
        real |= {k: jnp.full_like(real[k], jnp.nan) for k in known if k in real and isinstance(values[k], ad.Zero)}
    return dict(zip(real, sow_p.bind(*real.values(), part=part, is_whole=is_whole, **params), strict=True))


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
        rule = _RULES.get(eqn.primitive.name) if names else None
        if rule is not None:
            outputs, new = rule(functools.partial(_run, tag), eqn, [read(atom) for atom in eqn.invars])
            for name, part in sorted(found.keys() & new.keys()):
                raise ValueError(_TWICE.format(name=name, part=part))
            found.update(new)
        else:
            outputs = evaluate_equation(eqn, env)
            for name in names:
                warnings.warn(f"Nothing is recorded inside of {eqn.primitive.name!r}, so not {name!r}.", stacklevel=3)
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars], found


def _run_sow(run: Any, eqn: Any, values: list[Any]) -> tuple[Sequence[Any], Found]:
    y = sow_p.bind(*values, **eqn.params)  # again, for a save_intermediates around this one
    part = "primal" if eqn.params["part"] == "new" else eqn.params["part"]
    return y, {(eqn.params["name"], part): Partial(eqn.params["form"], y)}


def _run_wrapper(run: Any, eqn: Any, values: list[Any]) -> tuple[Sequence[Any], Found]:
    if eqn.primitive.name.startswith("custom"):
        values = _without_derivative(values)
    (body,) = bodies_of_equation(eqn)
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
        missing = {key: aval for key, aval in avals.items() if key not in found}
        return outputs, found | jax.tree_util.tree_map(nothing, missing)

    return jax.lax.switch(values[0], [functools.partial(filled, branch) for branch in branches], values[1:])


_RULES: dict[str, Callable[..., tuple[Sequence[Any], Found]]] = {
    "sow": _run_sow,
    "scan": _run_scan,
    "cond": _run_cond,
    **dict.fromkeys(("jit", "pjit"), _run_jit),
    **dict.fromkeys(("eval_jaxpr", "closed_call", "core_call", "checkpoint", "remat", "remat2"), _run_wrapper),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"), _run_wrapper),
}


def bodies_of_equation(eqn: Any) -> list[Any]:
    values = [value if isinstance(value, tuple | list) else [value] for value in eqn.params.values()]
    return [item for value in values for item in value if isinstance(item, ClosedJaxpr | Jaxpr)]


def _names(eqns: Sequence[Any], tag: str) -> Iterator[str]:
    """What is sown under this tag in some equations and their bodies."""
    for eqn in eqns:
        if eqn.primitive is sow_p and eqn.params["tag"] == tag:
            yield eqn.params["name"]
        yield from (name for body in bodies_of_equation(eqn) for name in _names(body.eqns, tag))


def evaluate_equation(eqn: Any, env: dict[Any, Any]) -> Sequence[Any]:
    """An equation in which nothing is sown, as a jaxpr of its own: how to evaluate it is JAX's business."""
    operands = list(dict.fromkeys(atom for atom in eqn.invars if not isinstance(atom, Literal)))
    info = DebugInfo("save_intermediates", "tesseract_flow", ("x",) * len(operands), ("y",) * len(eqn.outvars))
    alone = Jaxpr((), operands, eqn.outvars, [eqn], eqn.effects, debug_info=info)
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*(env[var] for var in operands))


_without_derivative = jax.custom_jvp(lambda values: values)


@_without_derivative.defjvp
def _refuse_derivative(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "save_intermediates(f) was differentiated, and f sows inside of a function with a derivative of its own, which "
        "would get lost.\nPut the derivative inside: save_intermediates(jax.grad(f)) and not the other way round."
    )
