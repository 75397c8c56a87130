"""A problem as plain functions of one flat vector, for optimisers that somebody else wrote: `Problem.function()`.

There is no run here: no journal, no failure policy, no stop rule. What evaluates is what evaluates in a run
(`oracle`), so calls are concurrent, counted, and equal points are one evaluation; and what makes vectors of trees is
what makes them for libraries (`drivers.task`), with one difference: everything stays in the problem's own units.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from tesseract_flow.autodiff import rehearsal
from tesseract_flow.client import own_requests
from tesseract_flow.errors import NonFiniteError, ProblemError
from tesseract_flow.execute import concurrent
from tesseract_flow.optimize.constraints import ConstraintSet
from tesseract_flow.optimize.drivers.task import Flat
from tesseract_flow.optimize.evaluator import Evaluator, Transform
from tesseract_flow.optimize.failures import evaluated
from tesseract_flow.optimize.oracle import Oracle
from tesseract_flow.optimize.partition import entries, named_leaves
from tesseract_flow.optimize.problem import Evaluation, Problem
from tesseract_flow.optimize.promised import Promised, precision, promised_names
from tesseract_flow.optimize.returned import check_evaluation

T = TypeVar("T")
Vector = Float[np.ndarray, " n"]


class FlatFunction:
    """Value, gradient, constraints and their Jacobian at a vector: the entries of all varying leaves, in JAX's order.

    Values are asked for first, and derivatives of a point that was looked at cost pullbacks and no more: those of the
    objective and of all constraints at once. The last three points are remembered. What is returned is the caller's to
    change. Points are evaluated where they are asked for, also outside of the bounds; and one after the other, if
    several threads ask. Numbers that are scheduled are those of the start.

    Attributes:
        start: the design of the problem, moved into its bounds.
        lower, upper: bounds of the entries; infinite where there is none.
        constraint_lower, constraint_upper: limits of the constraints' entries; equal for an equality.
        constraint_is_linear: which of them are promised to be linear (`Constraint(linear=True)`): their rows of the
            Jacobian are asked for once, and are the same at each vector.
        names, constraint_names: of the entries, such as `wing.chord[2]`.
        evaluations: how often the problem was evaluated.
        requests: solves that were asked of Tesseracts, `apply` and derivatives.

    Every function raises what a component raises, as it is, and besides:
        ProblemError: the vector has another length; or a constraint is not linear, as the problem promises.
        NonFiniteError: NaN or inf in the vector, the objective, a constraint, or a derivative.
        InvalidEvaluation: the evaluation says of itself that it is not valid (`Problem.valid`).
    """

    def __init__(self, problem: Problem, *, transform: Transform | None = None, scaled: bool = False):
        self._problem = problem
        self._lock = threading.RLock()
        # What had to be asked in order to trace serves the first evaluation.
        with rehearsal() as self._answers, own_requests() as counts:
            template = check_evaluation(problem)
        self.requests = counts.n_solves
        partition = problem.partition
        if not scaled:
            partition = dataclasses.replace(partition, scale=jax.tree.map(jnp.ones_like, partition.scale), origin=None)
        self._partition = partition
        # Measured in ones, a value is itself, and no constraint has two measures.
        demands = {name: demand.measured_in_ones for name, demand in (problem.constraints or {}).items()}
        constraints = ConstraintSet.build(demands, template.constraints, template.objective.dtype)
        transform = transform or concurrent
        self._evaluator = Evaluator(problem, template, constraints, transform)
        self._oracle = Oracle(problem, self._evaluator, list(demands), transform)
        self._duals = constraints.silent()
        self._scheduled = problem.scheduled()
        start = partition.to_scaled(problem.start)
        self._flat = flat = Flat(start, problem.box.scaled(partition), constraints, partition)
        self.start, self.lower, self.upper = flat.vector(start), flat.lower, flat.upper
        self.constraint_lower, self.constraint_upper = flat.limits
        self.names = _entry_names(partition.varying)
        linear = promised_names(problem)
        self.constraint_is_linear = np.array([name in linear for name in flat.names], bool)
        self._precision = precision(problem, template)
        self._promised: Promised | None = None  # before any derivatives were asked for
        self.constraint_names = _entry_names({name: template.constraints[name] for name in demands})

    @property
    def n(self) -> int:
        return self._flat.n

    @property
    def evaluations(self) -> int:
        return self._evaluator.n_evaluations

    def value(self, x: Vector) -> float:
        """The objective."""
        return float(self.evaluation(x).objective)

    __call__ = value

    def gradient(self, x: Vector) -> Vector:
        """Of the objective."""
        return self._flat.gradient(self._derivatives(x))

    def value_and_gradient(self, x: Vector) -> tuple[float, Vector]:
        """Both at once, for optimisers that never want one alone."""
        gradient = self.gradient(x)
        return self.value(x), gradient

    def constraints(self, x: Vector) -> Float[np.ndarray, " m"]:
        """The values that the problem makes demands on, entry by entry."""
        return self._flat.values(self.evaluation(x).constraints, self._duals)

    def jacobian(self, x: Vector) -> Float[np.ndarray, "m n"]:
        """Of the constraints, a row for each entry."""
        jacobian = self._flat.jacobian(self._derivatives(x), self._duals)
        return jacobian if self._promised is None else self._promised.filled_in(jacobian)

    def evaluation(self, x: Vector) -> Evaluation:
        """All that `evaluate` returns, `aux` included."""
        varying = self._varying(x)
        found = self._evaluator.evaluation(self._ask(lambda: self._oracle.values(varying, self._scheduled)))
        if (promised := self._promised) is not None:
            values = self._flat.values(found.constraints, self._duals)
            promised.require(np.array(x, np.float64), values, np.ones(len(values)))
        return found

    def design(self, x: Vector) -> PyTree:
        """The whole design at a vector, with what does not vary."""
        return self._partition.combine(self._varying(x))

    def vector(self, design: PyTree) -> Vector:
        """The vector of a design.

        Raises:
            ProblemError: it is not built as the problem's own is.
        """
        structure = jax.tree.structure(self._problem.design)
        if jax.tree.structure(design) != structure:
            raise ProblemError(
                f"vector(design) of problem {self._problem.name!r}: expected a design of the structure {structure}, "
                f"received {jax.tree.structure(design)}."
            )
        is_varying = [leaf is not None for leaf in structure.flatten_up_to(self._partition.varying)]
        leaves = [leaf for leaf, varies in zip(jax.tree.leaves(design), is_varying, strict=True) if varies]
        owns = jax.tree.leaves(self._partition.varying)
        for (name, own), leaf in zip(named_leaves(self._partition.varying), leaves, strict=True):
            if np.shape(leaf) != own.shape:
                raise ProblemError(
                    f"vector(design) of problem {self._problem.name!r}: '{name}' has shape {np.shape(leaf)}, expected "
                    f"{own.shape}."
                )
        varying = jax.tree.structure(self._partition.varying).unflatten(
            [jnp.asarray(leaf, own.dtype) for leaf, own in zip(leaves, owns, strict=True)]
        )
        return self._flat.vector(self._partition.to_scaled(varying))

    def _derivatives(self, x: Vector) -> Any:
        """The derivatives at a vector, without the rows that are known already."""
        varying, is_linear = self._varying(x), self.constraint_is_linear
        with self._lock:
            is_known = self._promised is not None
            found = self._ask(lambda: self._oracle.derivatives(varying, self._scheduled, but_linear=is_known))
            if is_linear.any():
                evaluation = self.evaluation(x)  # which is remembered, and held against the promise
                if not is_known:
                    values = self._flat.values(evaluation.constraints, self._duals)
                    rows, at = self._flat.jacobian(found, self._duals), np.array(x, np.float64)
                    self._promised = Promised(self._flat.names, is_linear, self._precision, at, values, rows)
            return found

    def _varying(self, x: Vector) -> PyTree:
        vector = np.array(x, np.float64)  # optimisers change theirs in place
        if vector.shape != self.start.shape:
            raise ProblemError(
                f"The functions of problem {self._problem.name!r} take a vector with {self.n} entries "
                f"({', '.join(self.names[:4])}{', ...' if self.n > 4 else ''}), received shape {vector.shape}."
            )
        if (bad := np.argwhere(~np.isfinite(vector))).size:
            raise NonFiniteError(
                f"Problem {self._problem.name!r} was to be evaluated at a vector with {entries(bad, 'NaN or infinite')}"
                ".\nThe optimiser went there; bounds, or a smaller first step, may keep it from that."
            )
        return self._partition.from_scaled(self._flat.tree(vector))

    def _ask(self, ask: Callable[[], T]) -> T:
        with self._lock, rehearsal(self._answers), own_requests() as counts:
            try:
                return evaluated(ask)
            finally:
                self.requests += counts.n_solves


def _entry_names(tree: PyTree) -> tuple[str, ...]:
    names = []
    for name, leaf in named_leaves(tree):
        name = "design" if name == "(root)" else name
        places = np.ndindex(leaf.shape) if leaf.shape else [()]
        names += [name + (f"[{', '.join(map(str, place))}]" if place else "") for place in places]
    return tuple(names)
