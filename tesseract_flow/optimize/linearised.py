"""The misfit of a least-squares problem at points: values first, and derivatives from the side that is cheaper.

`jax.linearize` gives the values of a function together with its derivative as a linear map, which is a tree of arrays:
it comes out of one transformed function and goes into others. Along entries of the design it asks components for
pushforwards, a column of the Jacobian each; transposed, along entries of the misfit, for pullbacks, a row each. All are
asked at once. Where there are too many of both, it is asked for single products, one after the other.

Vectors here are of the varying part in its own units, in JAX's order of leaves, and of the misfit likewise.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from tesseract_flow.autodiff import compiled_apart, informed
from tesseract_flow.client import AbstractTesseract, DerivedTesseract
from tesseract_flow.errors import NonFiniteError
from tesseract_flow.optimize.canonical import handles_of
from tesseract_flow.optimize.evaluator import Evaluator, Scheduled, Transform, Warm
from tesseract_flow.optimize.oracle import Remembered, checked
from tesseract_flow.optimize.partition import named_leaves
from tesseract_flow.optimize.problem import Problem, as_evaluation

Side = Literal["rows", "columns", "products"]
_AT_ONCE = 10**7  # numbers
_FORWARD, _BACKWARD, _BOTH = "jacobian_vector_product", "vector_jacobian_product", "jacobian"


@dataclasses.dataclass(eq=False)
class _Point:
    leaves: list[Array]
    linear: Any
    jacobian: np.ndarray | None = None
    slopes: np.ndarray | None = None


class Linearised:
    """Looks at points of a problem that has a misfit. Its evaluations count as the evaluator's.

    Remembers the last few points, so that equal ones are evaluated once.

    Args:
        is_free: which entries of the design may move; columns of others are zeros, and are not asked for.
    """

    def __init__(self, problem: Problem, evaluator: Evaluator, transform: Transform, is_free: np.ndarray):
        self._evaluator, self._valid = evaluator, problem.valid_names
        self._points: Remembered[_Point] = Remembered()
        self._varying, self._misfit = _Layout(problem.partition.varying), _Layout(evaluator.template.misfit)
        self._is_free = is_free
        design, misfit = self._varying, self._misfit

        def linearised(varying: PyTree, scheduled: Scheduled, warm: Warm) -> tuple[list[Any], Any]:
            def evaluate(varying: PyTree) -> tuple[PyTree, list[Any]]:
                found = evaluator.evaluate(varying, scheduled, warm)
                return found.misfit, evaluator.arrays_of(found)

            try:
                _, linear, leaves = jax.linearize(evaluate, varying, has_aux=True)
            except TypeError as error:
                if "custom_vjp" not in str(error):
                    raise
                # It can be pulled back through, and no more.
                _, pull, leaves = jax.vjp(evaluate, varying, has_aux=True)
                return leaves, _Pullback(pull)
            return leaves, linear

        def forward(linear: Any, tangent: PyTree) -> PyTree:
            if isinstance(linear, _Pullback):
                return jax.linear_transpose(lambda bar: linear.pull(bar)[0], misfit.shapes)(tangent)[0]
            return linear(tangent)

        def backward(linear: Any, cotangent: PyTree) -> PyTree:
            if isinstance(linear, _Pullback):
                return linear.pull(cotangent)[0]
            return jax.linear_transpose(linear, design.shapes)(cotangent)[0]

        self._linearised = transform(linearised)
        self._forward, self._backward = transform(forward), transform(backward)
        self._columns = transform(lambda linear, basis: jax.vmap(lambda one: forward(linear, one))(basis))
        self._rows = transform(lambda linear, basis: jax.vmap(lambda one: backward(linear, one))(basis))

    def of_another_run(self, evaluator: Evaluator) -> Linearised:
        """One that has looked at no point, with what this one has traced and compiled."""
        other = copy.copy(self)
        other._evaluator, other._points = evaluator, Remembered()
        return other

    @property
    def n_misfit(self) -> int:
        return self._misfit.n

    def values(self, varying: PyTree, scheduled: Scheduled | None = None) -> list[Array]:
        """The arrays of the `Evaluation` at a point.

        Raises:
            NonFiniteError: NaN or inf in it.
            InvalidEvaluation: it says of itself that it is not valid.
            Exception: whatever the transformed function raised.
        """
        return self._at(varying, scheduled).leaves

    def misfit(self, leaves: list[Array]) -> Float[np.ndarray, " m"]:
        """The misfit in what `values` gave."""
        return self._misfit.vector(self._evaluator.evaluation(leaves).misfit)

    def jacobian(self, varying: PyTree, side: Side, scheduled: Scheduled | None = None) -> Float[np.ndarray, "m n"]:
        """Of the misfit; from pullbacks alone (`rows`), or pushforwards alone (`columns`)."""
        point = self._at(varying, scheduled)
        if point.jacobian is None:
            with compiled_apart():
                if side == "rows":
                    rows = (self._rows(point.linear, basis) for basis in self._misfit.bases(np.arange(self._misfit.n)))
                    jacobian = np.concatenate([self._varying.stacked(found) for found in rows])
                    jacobian[:, ~self._is_free] = 0.0
                else:
                    free = np.flatnonzero(self._is_free)
                    columns = (self._columns(point.linear, basis) for basis in self._varying.bases(free))
                    jacobian = np.zeros((self._misfit.n, self._varying.n))
                    jacobian[:, free] = np.concatenate([self._misfit.stacked(found) for found in columns]).T
            point.jacobian = self._finite(jacobian)
        return point.jacobian

    def slopes(self, varying: PyTree, scheduled: Scheduled | None = None) -> Float[np.ndarray, " n"]:
        """Jᵀ times the misfit, by one pullback."""
        point = self._at(varying, scheduled)
        if point.slopes is None:
            point.slopes = self.products(varying, scheduled)[1](self.misfit(point.leaves))
        return point.slopes

    def products(
        self, varying: PyTree, scheduled: Scheduled | None = None
    ) -> tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]:
        """t -> J t by a pushforward of each component, and c -> Jᵀ c by a pullback."""
        linear = self._at(varying, scheduled).linear

        def forward(tangent: np.ndarray) -> np.ndarray:
            with compiled_apart():
                return self._finite(self._misfit.vector(self._forward(linear, self._varying.tree(tangent))))

        def backward(cotangent: np.ndarray) -> np.ndarray:
            with compiled_apart():
                found = self._varying.vector(self._backward(linear, self._misfit.tree(cotangent)))
            return self._finite(np.where(self._is_free, found, 0.0))

        return forward, backward

    def forget(self) -> None:
        """Remember no point."""
        self._points.clear()

    def _at(self, varying: PyTree, scheduled: Scheduled | None) -> _Point:
        def look() -> _Point:
            self._evaluator.n_evaluations += 1
            with compiled_apart():
                leaves, linear = self._evaluator.warmly(lambda warm: self._linearised(varying, scheduled or {}, warm))
            return _Point(checked(self._evaluator, self._valid, leaves), linear)

        return self._points.at((varying, scheduled), look)

    def _finite(self, found: np.ndarray) -> np.ndarray:
        finite = np.isfinite(found)
        if not finite.all():
            where = ""
            if found.ndim == 2:
                where = f" with respect to {', '.join(self._varying.names(np.asarray(~finite.all(axis=0))))}"
            count = f"{int((~finite).sum())} of {finite.size} entries"
            raise NonFiniteError(f"the derivative of the misfit{where} is not finite ({count}).")
        return found


class _Pullback:
    """A linear map that is known by its transpose."""

    def __init__(self, pull: Any):
        self.pull = pull


jax.tree_util.register_pytree_node(_Pullback, lambda map: ((map.pull,), None), lambda _, children: _Pullback(*children))


class _Layout:
    """The way between a tree and the vector of all of its entries."""

    def __init__(self, tree: PyTree):
        leaves, self._treedef = jax.tree.flatten(tree)
        self._leaves = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        self._names = [name for name, _ in named_leaves(tree)]
        self._ends = np.cumsum([leaf.size for leaf in self._leaves])
        self.n = int(self._ends[-1])

    @property
    def shapes(self) -> PyTree:
        return self._treedef.unflatten(self._leaves)

    def vector(self, tree: PyTree) -> np.ndarray:
        return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])

    def tree(self, vector: np.ndarray) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[0], self._trees(vector[None]))

    def bases(self, places: np.ndarray) -> Iterator[PyTree]:
        """The unit vectors of these entries, as trees with an axis in front: one, unless memory would not hold it."""
        n_at_once = max(1, _AT_ONCE // self.n)
        for part in np.split(places, list(range(n_at_once, len(places), n_at_once))):
            rows = np.zeros((len(part), self.n))
            rows[np.arange(len(part)), part] = 1.0
            yield self._trees(rows)

    def _trees(self, rows: np.ndarray) -> PyTree:
        parts = zip(np.split(rows, self._ends[:-1], axis=1), self._leaves, strict=True)
        return self._treedef.unflatten(
            [jnp.asarray(part.reshape(len(rows), *leaf.shape), leaf.dtype) for part, leaf in parts]
        )

    def stacked(self, tree: PyTree) -> np.ndarray:
        """Trees with an axis in front, as rows."""
        leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
        return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)

    def names(self, mask: np.ndarray) -> list[str]:
        """The leaves that have entries in a mask."""
        parts = zip(np.split(mask, self._ends[:-1]), self._names, strict=True)
        return [f"'{name}'" for part, name in parts if part.any()]


def endpoints_of(problem: Problem) -> list[frozenset[str]]:
    """What each component behind the misfit offers of its own. Runs nothing."""

    def evaluate(varying: PyTree) -> Any:
        return as_evaluation(problem.answer(problem.partition.combine(varying))).misfit

    closed = informed(lambda: jax.make_jaxpr(evaluate)(problem.start), lambda: evaluate(problem.start))
    return [_offered(handle) for handle in dict.fromkeys(handles_of(closed.jaxpr))]


def cheaper_side(offered: Sequence[frozenset[str]], n_free: int, n_misfit: int, many: int) -> Side:
    """From which side the Jacobian costs less: by what components offer, and by its shape.

    Args:
        many: more rows and columns than this are not asked for, where there is a choice.
    """
    if min(n_free, n_misfit) > many and all({_FORWARD, _BACKWARD} <= endpoints for endpoints in offered):
        return "products"
    forward, backward = (all({one, _BOTH} & endpoints for endpoints in offered) for one in (_FORWARD, _BACKWARD))
    if forward and (n_free < n_misfit or not backward):
        return "columns"
    return "rows"


def _offered(handle: AbstractTesseract) -> frozenset[str]:
    # What is derived from other endpoints may cost as much as a Jacobian for each product.
    if isinstance(handle, DerivedTesseract):
        return handle.settings.believed(handle.tesseract.schema.endpoints)
    return frozenset(handle.schema.endpoints)
