"""Values first, derivatives on demand: what a library that owns its loop asks for, and `Problem.function` gives.

`jax.vjp` gives the values of a function together with its pullback, which is a tree of arrays like any other: it comes
out of one transformed function and goes into another. So values cost the forward pass and no more, and derivatives of a
point that was looked at cost pullbacks and no more, whatever runs the calls. Rows of the Jacobian are pulled back at
once; along zeros nobody is asked. Rows of a constraint that is promised to be linear (`promised`) are left out where
they are known.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from tesseract_flow.autodiff import compiled_apart
from tesseract_flow.errors import NonFiniteError
from tesseract_flow.optimize.evaluator import Evaluator, Scheduled, Transform, Warm, check_finite, check_valid
from tesseract_flow.optimize.partition import path_name
from tesseract_flow.optimize.problem import Problem
from tesseract_flow.optimize.promised import promised_names

T = TypeVar("T")
_N_REMEMBERED = 3  # points; of each the pullback holds what is between its calls


@dataclasses.dataclass(frozen=True, eq=False)
class Derivatives:
    """The objective's gradient, and per constraint its Jacobian, with the constraint's shape before that of a leaf; of
    those that were asked for."""

    gradient: PyTree
    jacobians: dict[str, PyTree]


@dataclasses.dataclass(eq=False)
class _Point:
    leaves: list[Array]
    pull: Any = None
    derivatives: Derivatives | None = None


class Oracle:
    """Looks at points of a problem: the values of the objective and of constraints, and their derivatives.

    Remembers the last few points, so that equal ones are evaluated once. Its evaluations count as the evaluator's.

    Args:
        names: of the constraints whose derivatives are wanted.
    """

    def __init__(self, problem: Problem, evaluator: Evaluator, names: Sequence[str], transform: Transform):
        self._evaluator = evaluator
        self._valid = problem.valid_names
        self._points: Remembered[_Point] = Remembered()
        template = evaluator.template
        shapes = {name: template.constraints[name] for name in sorted(names)}
        linear = promised_names(problem)
        self._names = frozenset(shapes), frozenset(shapes) - {*linear}

        def pulled(varying: PyTree, scheduled: Scheduled, warm: Warm) -> tuple[list[Any], Callable[[Any], Any]]:
            def evaluate(varying: PyTree) -> tuple[Any, list[Any]]:
                found = evaluator.evaluate(varying, scheduled, warm)
                wanted = found.objective, {name: jnp.asarray(found.constraints[name]) for name in shapes}
                return wanted, evaluator.arrays_of(found)

            _, pull, leaves = jax.vjp(evaluate, varying, has_aux=True)
            return leaves, pull

        def rows(wanted: frozenset[str], pull: Callable[[Any], Any]) -> tuple[PyTree, dict[str, PyTree]]:
            one = jnp.ones((), template.objective.dtype)
            if not wanted:
                return pull((one, {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}))[0], {}
            n_rows = 1 + sum(shapes[name].size for name in wanted)
            basis, position = np.eye(n_rows), 1
            cotangents: dict[str, Array] = {}
            for name, shape in shapes.items():
                if name not in wanted:
                    cotangents[name] = jnp.zeros((n_rows, *shape.shape), shape.dtype)
                    continue
                columns = basis[:, position : position + shape.size]
                cotangents[name] = jnp.asarray(columns.reshape(n_rows, *shape.shape), shape.dtype)
                position += shape.size
            stacked = jax.vmap(lambda *bar: pull(bar)[0])(jnp.asarray(basis[:, 0], one.dtype), cotangents)
            gradient, jacobians, position = jax.tree.map(lambda leaf: leaf[0], stacked), {}, 1
            for name, shape in shapes.items():
                if name not in wanted:
                    continue
                part = slice(position, position + shape.size)
                jacobians[name] = jax.tree.map(
                    lambda leaf, part=part, shape=shape: leaf[part].reshape(*shape.shape, *leaf.shape[1:]), stacked
                )
                position += shape.size
            return gradient, jacobians

        def both(wanted: frozenset[str], *point: Any) -> tuple[list[Any], Any]:
            leaves, pull = pulled(*point)
            return leaves, rows(wanted, pull)

        self._pulled = transform(pulled)
        self._rows = {wanted: transform(functools.partial(rows, wanted)) for wanted in self._names}
        self._both = {wanted: transform(functools.partial(both, wanted)) for wanted in self._names}

    def of_another_run(self, evaluator: Evaluator) -> Oracle:
        """One that has looked at no point, with what this one has traced and compiled."""
        other = copy.copy(self)
        other._evaluator, other._points = evaluator, Remembered()
        return other

    def values(self, varying: PyTree, scheduled: Scheduled | None = None) -> list[Array]:
        """The arrays of the `Evaluation` at a point.

        Args:
            scheduled: what `evaluate` receives besides the design.

        Raises:
            NonFiniteError: NaN or inf in it.
            InvalidEvaluation: it says of itself that it is not valid.
            Exception: whatever the transformed function raised.
        """

        def look() -> _Point:
            self._evaluator.n_evaluations += 1
            with compiled_apart():
                leaves, pull = self._evaluator.warmly(lambda warm: self._pulled(varying, scheduled or {}, warm))
            return _Point(checked(self._evaluator, self._valid, leaves), pull)

        return self._points.at((varying, scheduled), look).leaves

    def derivatives(
        self, varying: PyTree, scheduled: Scheduled | None = None, *, but_linear: bool = False
    ) -> Derivatives:
        """The derivatives at a point. One whose values are not remembered is evaluated for both at once.

        Args:
            but_linear: rows of constraints that are promised to be linear are known; nobody is asked for them.
        """
        wanted = self._names[but_linear]

        def look() -> _Point:
            self._evaluator.n_evaluations += 1
            with compiled_apart():
                leaves, found = self._evaluator.warmly(lambda warm: self._both[wanted](varying, scheduled or {}, warm))
            return _Point(checked(self._evaluator, self._valid, leaves), derivatives=_checked(found))

        point = self._points.at((varying, scheduled), look)
        if point.derivatives is not None and not wanted <= point.derivatives.jacobians.keys():
            self.forget()
            point = self._points.at((varying, scheduled), look)
        if point.derivatives is None:
            with compiled_apart():
                point.derivatives = _checked(self._rows[wanted](point.pull))
            point.pull = None
        return point.derivatives

    def forget(self) -> None:
        """Remember no point."""
        self._points.clear()


class Remembered(Generic[T]):
    """What was found at the last few points, by their bits."""

    def __init__(self) -> None:
        self._points: dict[tuple[bytes, ...], T] = {}

    def at(self, point: PyTree, look: Callable[[], T]) -> T:
        """What is remembered of a point; else what a look at it finds."""
        key = tuple(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(point))
        if key not in self._points:
            found = look()
            while len(self._points) >= _N_REMEMBERED:
                self._points.pop(next(iter(self._points)))
            self._points[key] = found
        return self._points[key]

    def clear(self) -> None:
        self._points.clear()


def checked(evaluator: Evaluator, valid: Sequence[str], leaves: Sequence[Any]) -> list[Array]:
    """The arrays of an `Evaluation`, if it is finite and says of itself that it is valid.

    Raises:
        NonFiniteError, InvalidEvaluation: it is not.
    """
    arrays = [jnp.asarray(leaf) for leaf in leaves]
    evaluation = evaluator.evaluation(arrays)
    check_valid(evaluation, valid)
    check_finite(evaluation)
    return arrays


def _checked(found: tuple[PyTree, dict[str, PyTree]]) -> Derivatives:
    derivatives = Derivatives(*jax.tree.map(jnp.asarray, found))
    bad = []
    for whose, tree in [("the gradient", derivatives.gradient), *_named(derivatives.jacobians)]:
        for path, leaf in jtu.tree_flatten_with_path(tree)[0]:
            finite = np.isfinite(np.asarray(leaf, np.float64))
            if not finite.all():
                count = f"{int((~finite).sum())} of {finite.size} entries"
                bad.append(f"{whose} with respect to '{path_name(path)}' is not finite ({count})")
    if bad:
        raise NonFiniteError(f"{'; '.join(bad)}.")
    return derivatives


def _named(jacobians: dict[str, PyTree]) -> list[tuple[str, PyTree]]:
    return [(f"the derivative of constraint {name!r}", tree) for name, tree in jacobians.items()]
