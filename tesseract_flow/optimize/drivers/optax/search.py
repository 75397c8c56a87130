"""One update of a driver, with its trial evaluations as calls like any other.

Optax writes a line search as `jax.lax.while_loop`, inside which an evaluation would be an opaque host callback. Here
the update is traced with a stand-in for the objective, the primitive `trial`, and run as a plan, in which a trial is a
step of the host: `sample` is called with concrete arrays, on the thread that makes the update, and the evaluation is
visible, cached, counted. Whatever contains no trial is compiled. A driver without a line search has no trial in it,
and is one compiled function.

(The other way to the same calls is to run the whole update under `jax.disable_jit`. It took 14 s to warm up and 73 ms
per step of L-BFGS on 50 variables.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, Float, PyTree

from tesseract_flow.execute import HostPrimitive, Plan, Segment, default_submitter, make_plan, run_plan
from tesseract_flow.optimize.bounds import Box
from tesseract_flow.optimize.drivers.optax.holding import has_memory, without_held
from tesseract_flow.optimize.drivers.optax.named import OptaxDriver, cannot_drive, lenient_promotion, strongly_typed

# Value and gradient of what is minimised, at a point inside the box.
SampleFn = Callable[[PyTree], tuple[Float[Array, ""], PyTree]]

_trial_p = HostPrimitive("trial")


@_trial_p.def_abstract_eval
def _trial_aval(*leaves: Any, dtype: Any) -> list[Any]:
    return [leaves[0].update(shape=(), dtype=dtype, weak_type=False), *leaves]


@dataclasses.dataclass(frozen=True)
class _Trace:
    closed: ClosedJaxpr
    plan: Plan
    out_tree: Any


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
        return not all(isinstance(unit, Segment) for unit in self._traced(u, state).plan.units)

    def is_holding(self, u: PyTree, state: PyTree) -> bool:
        """Whether entries are held at bounds: there are bounds, and a driver that searches or has L-BFGS in it."""
        return self._is_bounded and (has_memory(state) or self.is_searching(u, state))

    def traced(self, u: PyTree, state: PyTree) -> ClosedJaxpr:
        """What an update computes; runs nothing. Its arguments are leaves of the box, `u`, the state, the gradient,
        and the value."""
        return self._traced(u, state).closed

    def _traced(self, u: PyTree, state: PyTree) -> _Trace:
        return self._trace(self._box, u, state, u, jnp.zeros((), self._dtype))

    def __call__(
        self, u: PyTree, state: PyTree, gradient: PyTree, value: Float[Array, ""], sample: SampleFn
    ) -> tuple[PyTree, PyTree]:
        """The next point inside the box, and the driver's next state.

        `gradient` is raw; the driver sees it projected.
        """
        own, treedef = jax.tree.flatten(u)
        held = self._box.held(u, gradient) if self._is_bounded else None

        def trial(*leaves: Array, dtype: Any) -> list[Array]:
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
            return [jnp.asarray(trial_value, dtype), *widened]

        arguments = self._box, u, state, gradient, jnp.asarray(value, self._dtype)
        trace = self._trace(*arguments)
        outputs = run_plan(trace.plan, jax.tree.leaves(arguments), default_submitter(), host_fns={_trial_p: trial})
        return trace.out_tree.unflatten(x if isinstance(x, jax.Array) else jnp.asarray(x) for x in outputs)

    def _trace(self, *arguments: Any) -> _Trace:
        leaves, treedef = jax.tree.flatten(arguments)
        compiled: dict[Any, _Trace] = self._driver.compiled
        key = self._is_bounded, treedef, tuple(jax.typeof(leaf) for leaf in leaves), jax.config.jax_enable_x64  # type: ignore[attr-defined]
        if key not in compiled:
            out_tree = None

            def flat(*leaves: Array) -> list[Array]:
                nonlocal out_tree
                outputs, out_tree = jax.tree.flatten(self._update(*treedef.unflatten(leaves)))
                return outputs

            try:
                closed = jax.make_jaxpr(flat)(*leaves)
                plan = make_plan(closed)
            except Exception as error:
                raise cannot_drive(self._driver, error) from error
            compiled[key] = _Trace(closed, plan, out_tree)
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
