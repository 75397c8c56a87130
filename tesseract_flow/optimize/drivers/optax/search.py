"""One update of a driver, with its trial evaluations as calls like any other.

Optax writes a line search as `jax.lax.while_loop`, inside which an evaluation would be an opaque host callback. Here
the update is traced with a stand-in for the objective, the primitive `trial`. Whatever contains no trial is compiled;
loops and branches that contain one are walked in Python, and each trial becomes a call of `sample` with concrete
arrays: visible, cached, counted. A driver without a line search has no trial in it, and is one compiled function.

(The other way to the same calls is to run the whole update under `jax.disable_jit`. It took 14 s to warm up and 73 ms
per step of L-BFGS on 50 variables.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, JaxprEqn, Literal, Primitive, Var, jaxpr_as_fun
from jaxtyping import Array, Float, PyTree

from tesseract_flow.optimize.bounds import Box
from tesseract_flow.optimize.drivers.optax.holding import has_memory, without_held
from tesseract_flow.optimize.drivers.optax.named import OptaxDriver, cannot_drive, lenient_promotion, strongly_typed

# Value and gradient of what is minimised, at a point inside the box.
SampleFn = Callable[[PyTree], tuple[Float[Array, ""], PyTree]]

_trial_p = Primitive("trial")
_trial_p.multiple_results = True


@_trial_p.def_abstract_eval
def _trial_aval(*leaves: Any, dtype: Any) -> list[Any]:
    return [leaves[0].update(shape=(), dtype=dtype, weak_type=False), *leaves]


class Updater:
    """Updates of one driver inside one box. Compiled once per driver and structure, for all runs.

    Trial points are projected before they are evaluated: the driver searches along the projected path, whose derivative
    is the projected gradient (Nocedal & Wright 2006, section 16.7). Entries that the gradient pushes against their
    bounds are held there for the whole of a search, and L-BFGS remembers free entries only (`holding`): whatever else a
    driver makes of the gradient, the slope that its search is told is that of the path. A driver that only steps is
    moved by what it remembers, as in Optax, and projected.
    """

    def __init__(self, driver: OptaxDriver, box: Box, value_dtype: np.dtype):
        self._driver, self._box, self._dtype = driver, box, np.dtype(value_dtype)
        self._is_bounded = box.is_bounded  # without bounds an update is Optax's, bit by bit

    def is_searching(self, u: PyTree, state: PyTree) -> bool:
        """Whether the driver evaluates trial points of its own. Runs nothing.

        Raises:
            DriverError: the driver cannot be used on this design, or wants arguments that nobody offers.
        """
        return not all(isinstance(unit, _Segment) for unit in self._traced(u, state).units)

    def is_holding(self, u: PyTree, state: PyTree) -> bool:
        """Whether entries are held at bounds: there are bounds, and a driver that searches or has L-BFGS in it."""
        return self._is_bounded and (has_memory(state) or self.is_searching(u, state))

    def traced(self, u: PyTree, state: PyTree) -> ClosedJaxpr:
        """What an update computes; runs nothing. Its arguments are leaves of the box, `u`, the state, the gradient,
        and the value."""
        return self._traced(u, state).closed

    def _traced(self, u: PyTree, state: PyTree) -> _Block:
        return self._trace(self._box, u, state, u, jnp.zeros((), self._dtype))[0]

    def __call__(
        self, u: PyTree, state: PyTree, gradient: PyTree, value: Float[Array, ""], sample: SampleFn
    ) -> tuple[PyTree, PyTree]:
        """The next point inside the box, and the driver's next state.

        `gradient` is raw; the driver sees it projected.
        """
        own, treedef = jax.tree.flatten(u)
        held = self._box.held(u, gradient) if self._is_bounded else None

        def trial(leaves: Sequence[Array]) -> list[Array]:
            # Optax counts steps in 64 bits where it may, and trial points of 32-bit designs come out wider.
            point = treedef.unflatten([jnp.asarray(leaf, x.dtype) for leaf, x in zip(leaves, own, strict=True)])
            if held is not None:
                point = jax.tree.map(jnp.where, held, u, point)
            trial_value, trial_gradient = sample(self._box.project(point))
            slopes = self._box.projected_gradient(point, trial_gradient)
            if held is not None:
                slopes = jax.tree.map(lambda stays, slope: jnp.where(stays, 0, slope), held, slopes)
            widened = [
                jnp.asarray(slope, leaf.dtype) for slope, leaf in zip(jax.tree.leaves(slopes), leaves, strict=True)
            ]
            return [jnp.asarray(trial_value, self._dtype), *widened]

        arguments = self._box, u, state, gradient, jnp.asarray(value, self._dtype)
        block, out_tree = self._trace(*arguments)
        outputs = block.run(jax.tree.leaves(arguments), trial)
        return jax.tree.unflatten(out_tree, outputs)

    def _trace(self, *arguments: Any) -> tuple[_Block, Any]:
        leaves, treedef = jax.tree.flatten(arguments)
        compiled: dict[Any, tuple[_Block, Any]] = self._driver.compiled
        key = self._is_bounded, treedef, tuple(jax.typeof(leaf) for leaf in leaves), jax.config.jax_enable_x64  # type: ignore[attr-defined]
        if key not in compiled:
            out_tree = None

            def flat(*leaves: Array) -> list[Array]:
                nonlocal out_tree
                outputs, out_tree = jax.tree.flatten(self._update(*treedef.unflatten(leaves)))
                return outputs

            try:
                block = _block(jax.make_jaxpr(flat)(*leaves))
            except Exception as error:
                raise cannot_drive(self._driver, error) from error
            compiled[key] = block, out_tree
        return compiled[key]

    def _update(self, box: Box, u: PyTree, state: PyTree, gradient: PyTree, value: Array) -> tuple[PyTree, PyTree]:
        pushed = box.projected_gradient(u, gradient)
        is_holding = self._is_bounded and has_memory(state)

        def value_fn(params: PyTree) -> Float[Array, ""]:
            nonlocal is_holding
            is_holding = self._is_bounded
            return self._value_fn(params)

        with lenient_promotion():
            if is_holding:
                state = without_held(box, u, gradient, state)
            updates, state = self._driver.transformation.update(
                pushed, state, u, value=value, grad=pushed, value_fn=value_fn
            )
            # Not of the moved design: an update of another shape may well broadcast, to something that nobody meant.
            shapes = [jax.tree.map(jnp.shape, tree) for tree in (u, updates)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"for a design of shapes {shapes[0]} its update has shapes {shapes[1]}")
            goal = optax.apply_updates(u, updates)
            if is_holding:
                goal = jax.tree.map(jnp.where, box.held(u, gradient), u, goal)
            moved = box.project(goal)
        return moved, strongly_typed(state)

    def _value_fn(self, params: PyTree) -> Float[Array, ""]:
        """What Optax differentiates. One trial answers both questions, so the gradient is its own residual."""

        def value_and_gradient(params: PyTree) -> tuple[Array, PyTree]:
            leaves, treedef = jax.tree.flatten(params)
            value, *gradient = _trial_p.bind(*leaves, dtype=self._dtype)
            return value, treedef.unflatten(gradient)

        value_fn = jax.custom_vjp(lambda params: value_and_gradient(params)[0])
        value_fn.defvjp(
            value_and_gradient, lambda grad, bar: (jax.tree.map(lambda g: g * jnp.asarray(bar, g.dtype), grad),)
        )
        return value_fn(params)


# -- walking a jaxpr

# Primitives that only wrap one body with the same operands and results.
_WRAPPERS = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "checkpoint",
    "remat",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
}

TrialFn = Callable[[Sequence[Array]], list[Array]]
Env = dict[Any, Any]


@dataclasses.dataclass(frozen=True)
class _Segment:
    """Equations without a trial in them, compiled as one function."""

    inputs: tuple[Var, ...]
    outputs: tuple[Var, ...]
    fn: Callable[..., list[Any]]

    def run(self, env: Env, trial: TrialFn) -> None:
        env.update(zip(self.outputs, self.fn(*(env[var] for var in self.inputs)), strict=True))


@dataclasses.dataclass(frozen=True)
class _Walked:
    """An equation that is a trial, or contains one; `kind` says how to run it."""

    eqn: JaxprEqn
    kind: Callable[[JaxprEqn, tuple[_Block, ...], list[Any], TrialFn], list[Any]]
    blocks: tuple[_Block, ...]

    def run(self, env: Env, trial: TrialFn) -> None:
        operands = [_read(env, atom) for atom in self.eqn.invars]
        env.update(zip(self.eqn.outvars, self.kind(self.eqn, self.blocks, operands, trial), strict=True))


@dataclasses.dataclass(frozen=True)
class _Block:
    """A jaxpr, cut at its trials."""

    closed: ClosedJaxpr
    units: tuple[_Segment | _Walked, ...]

    def run(self, arguments: Sequence[Any], trial: TrialFn) -> list[Any]:
        jaxpr = self.closed.jaxpr
        env: Env = dict(zip(jaxpr.constvars, self.closed.consts, strict=True))
        env.update(zip(jaxpr.invars, arguments, strict=True))
        for unit in self.units:
            unit.run(env, trial)
        return [_read(env, atom) for atom in jaxpr.outvars]


def _read(env: Env, atom: Any) -> Any:
    if not isinstance(atom, Literal):
        return env[atom]
    aval: Any = atom.aval
    return jnp.asarray(atom.val, aval.dtype)


def _run_trial(eqn: JaxprEqn, blocks: tuple[_Block, ...], operands: list[Any], trial: TrialFn) -> list[Any]:
    return trial(operands)


def _run_while(eqn: JaxprEqn, blocks: tuple[_Block, ...], operands: list[Any], trial: TrialFn) -> list[Any]:
    cond, body = blocks
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond_consts, body_consts = operands[:n_cond], operands[n_cond : n_cond + n_body]
    carry = operands[n_cond + n_body :]
    while bool(cond.run([*cond_consts, *carry], trial)[0]):
        carry = body.run([*body_consts, *carry], trial)
    return carry


def _run_branch(eqn: JaxprEqn, blocks: tuple[_Block, ...], operands: list[Any], trial: TrialFn) -> list[Any]:
    index, *rest = operands
    return blocks[min(max(int(index), 0), len(blocks) - 1)].run(rest, trial)


def _run_inside(eqn: JaxprEqn, blocks: tuple[_Block, ...], operands: list[Any], trial: TrialFn) -> list[Any]:
    return blocks[0].run(operands, trial)


def _block(closed: ClosedJaxpr) -> _Block:
    """Cut at the equations that contain a trial; compile what lies between."""
    runs: list[list[JaxprEqn] | _Walked] = [[]]
    for eqn in closed.jaxpr.eqns:
        if not _has_trial(eqn):
            if not isinstance(runs[-1], list):
                runs.append([])
            runs[-1].append(eqn)  # type: ignore[union-attr]
        else:
            runs.append(_walked(eqn))
    # Read from the end: a segment has to give out what anything after it reads.
    needed = {atom for atom in closed.jaxpr.outvars if isinstance(atom, Var)}
    units: list[_Segment | _Walked] = []
    for run in reversed(runs):
        if isinstance(run, _Walked):
            units.append(run)
            needed.update(atom for atom in run.eqn.invars if isinstance(atom, Var))
        elif run:
            segment = _segment(run, needed)
            units.append(segment)
            needed.update(segment.inputs)
    return _Block(closed, tuple(reversed(units)))


def _segment(eqns: list[JaxprEqn], needed: set[Any]) -> _Segment:
    made = {var for eqn in eqns for var in eqn.outvars}
    outputs = tuple(var for eqn in eqns for var in eqn.outvars if var in needed)
    reads = (atom for eqn in eqns for atom in eqn.invars if isinstance(atom, Var) and atom not in made)
    inputs = tuple(dict.fromkeys(reads))
    names = tuple(f"in{k}" for k in range(len(inputs))), tuple(f"out{k}" for k in range(len(outputs)))
    effects = set().union(*(eqn.effects for eqn in eqns))
    jaxpr = Jaxpr((), inputs, outputs, eqns, effects, debug_info=DebugInfo("update", "tesseract_flow", *names))
    return _Segment(inputs, outputs, jax.jit(jaxpr_as_fun(ClosedJaxpr(jaxpr, ()))))


def _walked(eqn: JaxprEqn) -> _Walked:
    if eqn.primitive is _trial_p:
        return _Walked(eqn, _run_trial, ())
    if eqn.primitive.name == "while":
        return _Walked(eqn, _run_while, (_block(eqn.params["cond_jaxpr"]), _block(eqn.params["body_jaxpr"])))
    if eqn.primitive.name == "cond":
        return _Walked(eqn, _run_branch, tuple(_block(branch) for branch in eqn.params["branches"]))
    if eqn.primitive.name in _WRAPPERS:
        (body,) = list(_bodies(eqn.params))
        return _Walked(eqn, _run_inside, (_block(body),))
    raise NotImplementedError(
        f"it evaluates value_fn inside {eqn.primitive.name!r}; while_loop, cond and plain calls are understood"
    )


def _bodies(params: Mapping[str, Any]) -> Iterator[ClosedJaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item
            elif isinstance(item, Jaxpr):
                yield ClosedJaxpr(item, ())


def _has_trial(eqn: JaxprEqn) -> bool:
    return eqn.primitive is _trial_p or any(
        _has_trial(inner) for body in _bodies(eqn.params) for inner in body.jaxpr.eqns
    )
