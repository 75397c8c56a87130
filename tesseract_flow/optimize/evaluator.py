"""Evaluating a problem: one traced function, the calls of it that a step makes, and whether the answers are finite.

The traced function is the augmented Lagrangian, with multipliers, penalties, the objective's scale and what is
scheduled as arguments, so it is traced once. `transform` decides how it runs: compiled here, or spread over Tesseracts
as they become ready. This is the only place of the package where a solver may be behind a call.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from tesseract_flow.autodiff import compiled_apart, revealed
from tesseract_flow.autodiff.carried import Left, as_it_was, carrying
from tesseract_flow.errors import EndpointNotFound, InvalidEvaluation, NonFiniteError, NotConverged, cause
from tesseract_flow.optimize.constraints import ConstraintSet, Duals
from tesseract_flow.optimize.partition import named_leaves, path_name
from tesseract_flow.optimize.problem import Evaluation, Problem, as_evaluation

T = TypeVar("T")
# What makes `jax.value_and_grad(f, has_aux=True)` into something that can be called.
Transform = Callable[[Callable[..., Any]], Callable[..., Any]]
# Numbers that `evaluate` receives besides the design. Arguments of what is traced, so that nothing is traced again when
# they change.
Scheduled = Mapping[str, Array]
# What the fixed points in `evaluate` have left: where they begin. Arguments as well, and results.
Warm = Sequence[Left]


class Weights(eqx.Module):
    """What turns objective and constraints into one number: `objective / objective_scale + augmentation(duals)`."""

    objective_scale: Float[Array, ""]
    duals: Duals


class Sample(eqx.Module):
    """The Lagrangian at a point, its gradient with respect to the varying part, and the arrays of the `Evaluation`."""

    lagrangian: Float[Array, ""]
    gradient: PyTree
    leaves: list[Array]


class Evaluator:
    """Evaluates a problem, and remembers the points of the current step, so that no point is evaluated twice in it.

    `n_evaluations` counts calls of the transformed function since construction.

    Args:
        with_gradients: false where nobody wants any; samples then have zeros in their place.
        may_push_forward: where a component has no pullbacks, a gradient is a pushforward for each entry of the design.
    """

    def __init__(
        self,
        problem: Problem,
        template: Evaluation,
        constraints: ConstraintSet,
        transform: Transform,
        *,
        with_gradients: bool = True,
        may_push_forward: bool = False,
    ):
        self.template = template
        self.kind = {"with_gradients": with_gradients, "may_push_forward": may_push_forward}
        leaves, self._treedef = jax.tree.flatten(template)
        self._is_array = [isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves]
        self._static = [None if array else leaf for array, leaf in zip(self._is_array, leaves, strict=True)]
        self.shapes = [leaf for leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct)]
        self.dtype = template.objective.dtype
        self.n_evaluations = 0
        self._memory: list[tuple[list[bytes], Sample]] = []
        self._problem = problem
        self._coupled = template.coupled
        self._cold = [jax.tree.map(_cold, left) for left in self._coupled.values()]
        self._warm: Warm = ()

        def lagrangian(varying: PyTree, weights: Weights, scheduled: Scheduled, warm: Warm):
            evaluation = self.evaluate(varying, scheduled, warm)
            augmentation = constraints.augmentation(evaluation.constraints, weights.duals, self.dtype)
            return evaluation.objective / weights.objective_scale + augmentation, self.arrays_of(evaluation)

        def alone(varying: PyTree, weights: Weights, scheduled: Scheduled, warm: Warm):
            return lagrangian(varying, weights, scheduled, warm), jax.tree.map(jnp.zeros_like, varying)

        def pushed(varying: PyTree, weights: Weights, scheduled: Scheduled, warm: Warm):
            def twice(varying: PyTree):
                value, leaves = lagrangian(varying, weights, scheduled, warm)
                return value, (value, leaves)

            gradient, found = jax.jacfwd(twice, has_aux=True)(varying)
            return found, gradient

        self._valid = problem.valid_names
        self._by_pushforwards = transform(pushed) if may_push_forward else None
        self._call = transform(jax.value_and_grad(lagrangian, has_aux=True) if with_gradients else alone)

    def __call__(self, varying: PyTree, weights: Weights, scheduled: Scheduled | None = None) -> Sample:
        """The sample at a point; from memory if the same bits were evaluated in this step.

        Args:
            scheduled: what `evaluate` receives besides the design.

        Raises:
            NonFiniteError: NaN or inf in it.
            InvalidEvaluation: it says of itself that it is not valid.
            Exception: whatever the transformed function raised.
        """
        scheduled = scheduled or {}
        key = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((varying, weights, scheduled))]
        for known, sample in self._memory:
            if known == key:
                return sample
        self.n_evaluations += 1
        with compiled_apart():
            try:
                (value, leaves), gradient = self.warmly(lambda warm: self._call(varying, weights, scheduled, warm))
            except EndpointNotFound:
                if self._by_pushforwards is None:
                    raise
                self._call = self._by_pushforwards
                (value, leaves), gradient = self.warmly(lambda warm: self._call(varying, weights, scheduled, warm))
        sample = jax.tree.map(jnp.asarray, Sample(value, gradient, list(leaves)))
        evaluation = self.evaluation(sample.leaves)
        check_valid(evaluation, self._valid)  # first: a solver that gave up may well have left NaN behind
        check_finite(evaluation, sample)
        self._memory.append((key, sample))
        return sample

    def of_another_run(self) -> Evaluator:
        """One that has evaluated nothing, with what this one has traced and compiled."""
        other = copy.copy(self)
        other.n_evaluations, other._memory, other._warm = 0, [], ()
        return other

    def evaluate(self, varying: PyTree, scheduled: Scheduled, warm: Warm) -> Evaluation:
        """What is traced: the problem at a point, its fixed points begun where `warm` says."""

        def cold(varying: PyTree, scheduled: Scheduled) -> Evaluation:
            return as_evaluation(self._problem.answer(self._problem.partition.combine(varying), scheduled))

        if not self._coupled:
            return cold(varying, scheduled)
        evaluation, left = carrying(cold)(warm, varying, scheduled)
        return dataclasses.replace(evaluation, coupled=dict(zip(self._coupled, left, strict=True)))

    def warmly(self, call: Callable[[Warm], T]) -> T:
        """What a call finds that begins fixed points where the step before left them; or, if one of them cannot be
        reached from there, where they begin by themselves.

        Raises:
            Exception: whatever the call raised.
        """
        if not self._warm:
            return call(self._cold)
        try:
            return call(self._warm)
        except Exception as error:
            ours = cause(error)
            if not isinstance(ours, NotConverged) or ours.part != "solution":
                raise
            return call(self._cold)

    def forget(self) -> None:
        """Start a new step: trial points of the last one will not come back. Fixed points begin by themselves."""
        self._memory.clear()
        self._warm = ()

    def begin_at(self, leaves: Sequence[Array], *, once_more: bool = False) -> None:
        """Begin fixed points where an evaluation, given by its arrays, has found them, for the rest of this step.

        Args:
            once_more: that evaluation is to be repeated: what it has found is found again, and no step follows it.
        """
        if self._coupled and len(leaves) == len(self.shapes):
            found = self.evaluation(leaves).coupled
            # Of one type, whether they come from an evaluation or from a journal: nothing is traced again for them.
            self._warm = [
                jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), found[name]) for name in self._coupled
            ]
            if once_more:
                self._warm = [as_it_was(left) for left in self._warm]

    def arrays_of(self, evaluation: Evaluation) -> list[Any]:
        """What leaves a traced function; what else `aux` holds is known from the template."""
        return [leaf for leaf, array in zip(jax.tree.leaves(evaluation), self._is_array, strict=True) if array]

    def evaluation(self, leaves: Iterable[Array]) -> Evaluation:
        """The `Evaluation` that a sample's arrays belong to."""
        arrays = iter(leaves)
        filled = [next(arrays) if array else static for array, static in zip(self._is_array, self._static, strict=True)]
        return revealed(self._treedef.unflatten(filled))


def convergence_of(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """How the fixed points of an evaluation were reached, as plain numbers by name; see `StepRecord.coupled`."""
    return {
        name: {
            "steps": int(np.max(left.n_steps)),
            "rounds": int(np.sum(left.n_rounds)),
            "residual": float(np.max(left.residual)),
        }
        for name, left in evaluation.coupled.items()
    }


def residual_of(evaluation: Evaluation) -> tuple[float, str]:
    """The largest relative residual that a fixed point of an evaluation has left, and its name; 0 without one."""
    return max(((left["residual"], name) for name, left in convergence_of(evaluation).items()), default=(0.0, ""))


def check_finite(evaluation: Evaluation, sample: Sample | None = None) -> None:
    """Refuse a point where NaN or inf appeared.

    Args:
        sample: the Lagrangian there and its gradient, if they were evaluated as well.

    Raises:
        NonFiniteError: names the objective or the misfit, the constraints, or the leaves of the gradient.
    """
    bad = []
    for name, leaf in named_leaves(evaluation.misfit):
        if not np.isfinite(np.asarray(leaf, np.float64)).all():
            what = "the misfit" if name == "(root)" else f"the misfit {name!r}"
            bad.append(f"{what} is not finite ({_count(leaf)})")
    if not bad and not np.isfinite(evaluation.objective):
        bad.append(f"the objective is {float(evaluation.objective)}")
    for name, value in evaluation.constraints.items():
        if not np.isfinite(np.asarray(value, np.float64)).all():
            bad.append(f"constraint {name!r} is not finite ({_count(value)})")
    for path, leaf in [] if sample is None else jtu.tree_flatten_with_path(sample.gradient)[0]:
        if not np.isfinite(np.asarray(leaf, np.float64)).all():
            bad.append(f"the gradient with respect to '{path_name(path)}' is not finite ({_count(leaf)})")
    if not bad and sample is not None and not np.isfinite(sample.lagrangian):
        bad.append(f"the penalty for violated constraints makes the objective {float(sample.lagrangian)}")
    if bad:
        raise NonFiniteError(f"{'; '.join(bad)}.")


def check_valid(evaluation: Evaluation, names: Sequence[str]) -> None:
    """Refuse a point of which the evaluation itself says that it is not valid.

    Raises:
        InvalidEvaluation: names the flags that are not true.
    """
    flags = dict(named_leaves(evaluation.aux)) if names else {}
    down = [f"{name!r} is {np.asarray(flags[name]).tolist()}" for name in names if not np.asarray(flags[name]).all()]
    if down:
        raise InvalidEvaluation(f"evaluate says that its answer is not valid: {'; '.join(down)}.")


def _cold(shape: jax.ShapeDtypeStruct) -> Array:
    return jnp.full(shape.shape, jnp.nan if jnp.issubdtype(shape.dtype, jnp.inexact) else 0, shape.dtype)


def _count(array: Array) -> str:
    finite = np.isfinite(np.asarray(array, np.float64))
    return f"{int((~finite).sum())} of {finite.size} entries"
