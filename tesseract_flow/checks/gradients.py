"""`check_gradients`: are the derivatives right, and whose are wrong?

First the gradient as a whole, along one random direction and at two points, which takes two values each. If that is
right, so are the pullbacks that it is made of, and each other endpoint has to agree with these, at one request each.
Only if something fails, or on demand, a component is looked at by itself (`sites`). The one idea: a right total needs
right parts, so nearly all of the time hardly more than the total is paid for.
"""

from __future__ import annotations

import contextvars
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from tesseract_flow.autodiff import jacobian_p, pullback_p, rehearsal
from tesseract_flow.checks.budget import Budget, Spent
from tesseract_flow.checks.identities import n_questions
from tesseract_flow.checks.lines import LONGEST, Line, by_own_size, direction, inner, own_share, size_of
from tesseract_flow.checks.recording import Seen, Traced
from tesseract_flow.checks.shares import Closer, Part
from tesseract_flow.checks.sites import of_components, of_endpoints
from tesseract_flow.checks.verdicts import GradientReport, Verdict, in_order
from tesseract_flow.client import AbstractTesseract, DerivedTesseract, open_tesseract, own_requests
from tesseract_flow.client.deriving.routes import JACOBIAN, PULLBACK, PUSHFORWARD
from tesseract_flow.client.handles.wrapper import AbstractWrapper
from tesseract_flow.errors import OptionError, ProblemError
from tesseract_flow.optimize import FileJournal, Problem, Result, StartFrom
from tesseract_flow.optimize.partition import named_leaves, partition_design, path_name
from tesseract_flow.optimize.problem import as_evaluation
from tesseract_flow.optimize.resuming import started_from
from tesseract_flow.optimize.returned import check_evaluation

_log = logging.getLogger("tesseract_flow.checks")
# Relative distance of the second point: what is kept by rounded inputs shows close by, and among numbers of seven
# digits only what changes by some per cent.
_AWAY, _COARSE_AWAY = 1e-3, 3e-2
# Times that, for what is zero at the first point: there a forgotten product of it is zero, too, and of 1e-3 the square
# would not show.
_OF_ZEROS = 30.0
_MARGIN = 1e-3  # of the room between bounds: how far inside a point that lies on one is moved


@rehearsal()  # what had to be asked in order to trace serves the first values
def check_gradients(
    target: Problem | tuple[Callable[[Any], Any], PyTree],
    *,
    at: Any = None,
    components: bool | None = None,
    max_requests: int = 2000,
    n_points: int = 2,
    seed: int = 0,
) -> GradientReport:
    """Whether derivatives agree with the values; if not, whose are wrong, where, and how sure that is.

    The gradient of objective (or misfit) and constraints together is compared with differences along a random
    direction: one gradient and two values per point, and a gradient of another sum of several results, told in the log
    before they are asked. What adds too little to
    show beside the rest is then moved, or weighed, by itself, which costs more values. If it is right, so are the
    pullbacks that it is made of; each component's pushforward and Jacobian, which other drivers ask for, are then
    compared with its pullback at both points, and this with itself, asked once more: up to five requests for a
    pushforward, two for a Jacobian, one for a pullback. If anything fails, components are looked at by themselves, at
    the inputs that they really get: each derivative endpoint against differences of its own `apply`, at points close
    together; pushforward against pullback; a pullback along cotangents of several sizes; `abstract_eval` against what
    comes.

    Args:
        target: a problem, or a function and the point to look at: `(loss, design)`.
        at: another design than the problem's start: a derivative may be right at the start and wrong where a run ends.
            A design, a `Result`, or a journal (folder or URL), of which the best design is taken; `(journal, "last")`
            is where that run stands.
        components: look at each component even if nothing was wrong; False: at the gradient as a whole alone, which
            says nothing about pushforwards and Jacobians.
        max_requests: the most that is sent, whatever is found.
        n_points: where the total is looked at: the point itself, and others close to it.
        seed: of the random directions.

    Raises:
        ProblemError: there is nothing to differentiate, or `at` is no design of the problem.
        JournalError: there is no such journal, or no finished step in it.
        CallError: a component does not answer.

    >>> report = tf.check_gradients(problem)
    >>> report.ok, report.faults, report.to_json()
    """
    if max_requests < 1 or n_points < 1:
        raise OptionError(f"max_requests={max_requests}, n_points={n_points}; expected at least 1.")
    with own_requests() as requests:
        total = _Total.of(target, at, seed)
        planned = n_points * (total.gradient.price.of_a_run + 2 * total.values.price.of_a_run)
        planned += total.gradient.price.of_a_run if total.n_results > 1 else 0
        if components is None:
            planned += sum(n_questions(handle, is_elsewhere=n_points > 1) for handle in total.pulled)
        if planned > max_requests:
            raise OptionError(
                f"The gradient of {total.name!r} takes {planned} requests to compare at {n_points} points; "
                f"max_requests is {max_requests}.\nAllow more, or take fewer points (n_points=1)."
            )
        _log.info(
            "Checking the gradient of %r takes %d requests%s, and at most %d if something is wrong or too small beside "
            "the rest to show.",
            total.name,
            planned,
            " (more where its loops go round more than once)" if total.gradient.has_loops else "",
            max_requests,
        )
        budget = Budget(max_requests)
        budget.spent = requests.n_solves  # what only answers tell had to be asked in order to trace
        verdicts, seen, is_right = total.compare(n_points, budget)
        if components is None and is_right:
            verdicts += of_endpoints(seen[0], seen[1] if n_points > 1 else None, total.growth, budget, seed)
        elif components is not False:
            first = seen[0] if seen else []
            found = of_components(first, total.growth, budget, seed, each_alone=components is True)
            if not is_right and len(seen) > 1 and not any(verdict.status == "wrong" for verdict in found):
                # Right where the total is, too; what contradicts it was seen at the other point.
                found = of_components(seen[-1], total.growth, budget, seed)
            verdicts += found
            if not is_right and not any(verdict.status == "wrong" for verdict in found):
                verdicts = [total.located(verdict, budget) for verdict in verdicts]
    return GradientReport(total.name, in_order(verdicts), planned, max_requests, requests.n_solves)


class _Total:
    """A function of a design whose gradient is looked at: its results as one vector."""

    def __init__(
        self, name: str, fn: Callable[[PyTree], Mapping[str, Any]], point: PyTree, bounds: tuple[Any, Any], seed: int
    ):
        self.name = name
        self.rng = np.random.default_rng(seed)
        leaves, self.treedef = jtu.tree_flatten_with_path(point)
        self.paths = [path_name(path) for path, _ in leaves]
        self.point = {path: np.asarray(leaf) for path, (_, leaf) in zip(self.paths, leaves, strict=True)}
        self.bounds = {
            path: (np.asarray(low, np.float64), np.asarray(high, np.float64))
            for path, low, high in zip(self.paths, *map(jax.tree.leaves, bounds), strict=True)
        }
        self.results: list[str] = []
        self.is_coarse = any(leaf.dtype != np.float64 for leaf in self.point.values())

        def values(point: PyTree) -> jax.Array:
            found = {key: jnp.ravel(value) for key, value in fn(point).items()}
            self.results = [key for key, value in found.items() for _ in range(value.size)]
            dtype = np.result_type(*(value.dtype for value in found.values()))
            return jnp.concatenate([value.astype(dtype) for value in found.values()])

        def weighted(point: PyTree, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
            vector = values(point)
            return jnp.sum(vector * weights), vector

        self.values = Traced(values, point)
        aval = self.values.closed.out_avals[0]
        weights = jnp.ones(aval.shape, aval.dtype)  # type: ignore[attr-defined]
        self.gradient = Traced(jax.value_and_grad(weighted, has_aux=True), point, weights, swap=_with_pullback)
        self._looks: list[tuple[dict[str, np.ndarray], Part]] = []

    @property
    def n_results(self) -> int:
        """How many numbers there are to take derivatives of."""
        aval: Any = self.values.closed.out_avals[0]
        return aval.size

    @property
    def pulled(self) -> set[AbstractTesseract]:
        """The components through which the gradient goes."""
        nodes = self.gradient.plan.all_nodes
        return {node.call.tesseract for node in nodes if node.primitive in (pullback_p, jacobian_p)}

    @property
    def growth(self) -> float:
        """How many times as large cotangents are in a run, where no result is weighed, than at the first point."""
        weights = np.abs(self._looks[0][1].weights) if self._looks else np.ones(0)
        return float(1.0 / np.min(weights, where=weights > 0.0, initial=np.inf)) if weights.any() else 1.0

    @classmethod
    def of(cls, target: Any, at: Any, seed: int) -> _Total:
        if isinstance(target, Problem):
            return _of_problem(target, at, seed)
        if isinstance(target, tuple) and len(target) == 2 and callable(target[0]):
            fn, point = target
            if _is_journal(at):
                raise ProblemError("A journal says where a problem's run was: at= takes one with a Problem only.")
            partition = partition_design(point if at is None else at, eqx.is_inexact_array)
            boundless = jax.tree.map(lambda x: np.full(x.shape, np.inf), partition.varying)

            def results(varying: PyTree) -> dict[str, Any]:
                return _named_floats(fn(partition.combine(varying)))

            limits = jax.tree.map(np.negative, boundless), boundless
            return cls(getattr(fn, "__name__", "function"), results, partition.varying, limits, seed)
        raise ProblemError(
            "check_gradients takes a tesseract_flow.Problem, or a function and a point: "
            f"check_gradients((loss, design)); received {type(target).__name__}."
        )

    def compare(self, n_points: int, budget: Budget) -> tuple[list[Verdict], list[list[Seen]], bool]:
        """Verdicts on the gradient as a whole, what components were asked at each point, and whether it is right."""
        point, seen = self._inside(self.point), list[list[Seen]]()
        distance, zeros = (_COARSE_AWAY, 1.0) if self.is_coarse else (_AWAY, _OF_ZEROS)
        try:
            for k in range(n_points):
                away = self._direction(point)
                part = {p: distance * np.where(point[p] == 0.0, zeros, 1.0) * own_share(point[p]) for p in point}
                x = self._inside({p: point[p] + k * part[p] * away[p] for p in point})
                seen.append(self._look(x, budget))
                if self._looks[-1][1].comparison.is_wrong:
                    break  # one contradiction is enough; what is left is for finding out whose it is
            else:
                if self.n_results > 1:
                    self._weigh_otherwise(budget)
        except Spent as spent:
            return [Verdict("unsure", "total", "", message=str(spent))], seen, False
        parts = [part for _, part in self._looks]
        worst = max(parts, key=_badness)
        closer: Closer | None = None
        message = f"{worst.comparison.agreement}"
        if all(part.comparison.is_sure and not part.comparison.is_wrong for part in parts):
            closer = self._closer(budget, seen[0])
            try:
                closer.look(parts[-1])
            except Spent as spent:
                closer.unseen.append(f"what is small beside the rest ({str(spent).rstrip('.')})")
            if closer.wrong:
                worst = max(closer.wrong, key=_badness)
                self._looks += [(self._looks[-1][0], part) for part in closer.wrong]
        found = worst.comparison
        facts: dict[str, Any] = {"said": found.said, "found": found.found, "bound": found.bound}
        if found.is_wrong:
            along = "along one direction" if worst.share == 1.0 else f"by {worst.names} alone, {_share(worst)},"
            message = f"{along} the gradient says {found.said:.6g}, and the values say {found.found:.6g} "
            message += f"(± {found.bound:.1g})."
            return [Verdict("wrong", "total", "gradient", "differs", message=message, **facts)], seen, False
        if closer is None:
            return [Verdict("unsure", "total", "gradient", message=found.doubt, **facts)], seen, False
        if closer.unseen:
            message += f" What it says by {', '.join(closer.unseen[:6])} is too small beside the rest to show."
            return [Verdict("unsure", "total", "gradient", message=message, **facts)], seen, False
        return [Verdict("right", "total", "gradient", message=message, **facts)], seen, True

    def _closer(self, budget: Budget, seen: Sequence[Seen]) -> Closer:
        """At the last point: at a start, more terms than elsewhere are zero by chance."""
        x, whole = self._looks[-1]

        def line_of(t: Mapping[str, np.ndarray]) -> Line:
            return self._line_of(x, t, whole.line.at_zero, budget)

        def pull(weights: np.ndarray) -> dict[str, np.ndarray]:
            return self._pulled(x, weights, budget)

        return Closer(x, line_of, pull, self.results, is_rough=any(_is_by_differences(one.handle) for one in seen))

    def _line_of(
        self, x: Mapping[str, np.ndarray], t: Mapping[str, np.ndarray], at_zero: np.ndarray, budget: Budget
    ) -> Line:
        """Where the value at the point is known."""
        line, _ = self._line(x, t, budget)
        line.at_zero = at_zero
        return line

    def _pulled(self, x: Mapping[str, np.ndarray], weights: np.ndarray, budget: Budget) -> dict[str, np.ndarray]:
        aval: Any = self.values.closed.out_avals[0]
        with budget.spending(self.gradient.price):
            _, gradient = self.gradient(self._tree(x), jnp.asarray(weights, aval.dtype))
        return dict(zip(self.paths, map(np.asarray, jax.tree.leaves(gradient)), strict=True))

    def _look(self, x: dict[str, np.ndarray], budget: Budget) -> list[Seen]:
        t = self._direction(x)
        line, center = self._line(x, t, budget)
        line.ask([line.first_step])
        slopes = line.difference(line.first_step)
        # Each result counts as much as any other, whatever its size.
        slopes = np.ones(center.shape) if slopes is None else np.abs(slopes)
        weights = 1.0 / np.maximum(slopes, 1e-3 * float(np.max(slopes, initial=0.0)) or 1.0)
        weights = weights * self.rng.choice([-1.0, 1.0], weights.shape) * self.rng.uniform(0.5, 1.0, weights.shape)
        arguments = self._tree(x), jnp.asarray(weights, center.dtype)
        with budget.spending(self.gradient.price):
            ((_, vector), gradient), seen = self.gradient.watched(*arguments)
        line.at_zero = np.asarray(vector, np.float64)
        by_path = dict(zip(self.paths, map(np.asarray, jax.tree.leaves(gradient)), strict=True))
        comparison = line.compare(inner(by_path, t), size_of(by_path, t), weights)
        own = by_own_size(x, t, is_coarse=self.is_coarse) if comparison.is_wrong else None
        if own is not None:
            line, t = self._line_of(x, own, line.at_zero, budget), own
            comparison = line.compare(inner(by_path, t), size_of(by_path, t), weights)
        self._looks.append((x, Part(t, weights, by_path, line, comparison)))
        return seen

    def _weigh_otherwise(self, budget: Budget) -> None:
        """Another sum of the results at the last point: an adjoint that was kept, and only multiplied, is right for the
        first one. Takes a gradient, and no values."""
        x, part = self._looks[-1]
        signs = np.where(np.arange(part.weights.size) % 2, -1.0, 1.0)
        weights = part.weights * signs * self.rng.uniform(0.5, 1.0, signs.shape)
        gradient = self._pulled(x, weights, budget)
        comparison = part.line.compare(inner(gradient, part.t), size_of(gradient, part.t), weights)
        self._looks.append((x, Part(part.t, weights, gradient, part.line, comparison)))

    def _line(self, x: Mapping[str, np.ndarray], t: Mapping[str, np.ndarray], budget: Budget) -> tuple[Line, Any]:
        aval: Any = self.values.closed.out_avals[0]
        center = np.zeros(aval.shape, aval.dtype)

        def values(steps: Sequence[float]) -> list[np.ndarray | None]:
            points = [{p: np.asarray(x[p] + s * t[p], x[p].dtype) if p in t else x[p] for p in x} for s in steps]

            def ask(point: Mapping[str, np.ndarray]) -> np.ndarray:
                return np.asarray(self.values(self._tree(point)))

            # What each of them waits for are calls, which overlap.
            with budget.spending(self.values.price, len(points)), ThreadPoolExecutor(len(points)) as pool:
                asked = [pool.submit(contextvars.copy_context().run, ask, point) for point in points]
                answers = [one.result() for one in asked]
            return [answer if np.isfinite(answer).all() else None for answer in answers]

        return Line(values, center, is_coarse=self.is_coarse), center

    def located(self, verdict: Verdict, budget: Budget) -> Verdict:
        """With the leaf at which the total is worst, where every component is right by itself."""
        if verdict.component != "total" or verdict.status != "wrong":
            return verdict
        x, part = max(self._looks, key=lambda look: _badness(look[1]))
        worst, error = None, 0.0
        try:
            for path, step in part.t.items():
                one, _ = self._line(x, {path: step}, budget)
                one.ask([part.comparison.step])
                slopes = one.difference(part.comparison.step)
                said = inner({path: part.gradient[path]}, part.t)
                found = float("nan") if slopes is None else float((part.weights * slopes).sum())
                if abs(said - found) > error:
                    worst, error = path, abs(said - found)
        except Spent:
            pass
        at = f", by {worst!r}" if worst is not None else ""
        return Verdict(
            "wrong",
            "total",
            "gradient",
            "differs",
            input=worst,
            said=verdict.said,
            found=verdict.found,
            bound=verdict.bound,
            message=f"{verdict.message} Every component that was looked at is right at what it gets, so the fault is "
            f"between them{at}: a derivative rule of the evaluation's own (custom_vjp, custom_jvp), or stop_gradient.",
            remedy="tf.check(problem) names where derivatives are cut.",
        )

    def _direction(self, x: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Random, and short enough to stay between the bounds. What was zero and was moved by a part of a size has that
        size, not that of the part."""
        t = direction(self.point, self.rng)
        for path, step in t.items():
            low, high = self.bounds[path]
            room = np.minimum(np.asarray(x[path], np.float64) - low, high - np.asarray(x[path], np.float64))
            limit = np.maximum(room, 0.0) / LONGEST
            t[path] = np.asarray(np.clip(step, -limit, limit), x[path].dtype)
        return t

    def _inside(self, x: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The nearest point with a little room to all bounds: there is no derivative to compare across one."""
        moved = {}
        for path, value in x.items():
            low, high = self.bounds[path]
            width = np.where(np.isfinite(high - low), high - low, np.maximum(np.abs(value), 1.0))
            margin = _MARGIN * width
            moved[path] = np.asarray(
                np.clip(value, np.minimum(low + margin, high), np.maximum(high - margin, low)), self.point[path].dtype
            )
        return moved

    def _tree(self, x: Mapping[str, np.ndarray]) -> PyTree:
        return self.treedef.unflatten([jnp.asarray(x[path]) for path in self.paths])


def _badness(part: Part) -> tuple[bool, bool, float]:
    one = part.comparison
    return one.is_wrong, not one.is_sure, one.error / (one.size or 1.0)


def _share(part: Part) -> str:
    return f"{part.share:.0e} of the whole" if part.share else "which is said to add nothing"


def _with_pullback(handle: AbstractTesseract) -> AbstractTesseract:
    """A component that a run takes pushforwards of alone, or Jacobians: its gradient is made of these here, too."""
    have = handle.schema.endpoints
    is_enough = PULLBACK in have or not have & {PUSHFORWARD, JACOBIAN}
    return handle if is_enough else open_tesseract(handle, derive=True)


def _is_by_differences(handle: AbstractTesseract) -> bool:
    """Whether a pullback of it is made of values, and so known to some digits only."""
    while isinstance(handle, AbstractWrapper):
        if isinstance(handle, DerivedTesseract) and handle.settings.differences is not None:
            own = handle.settings.believed(handle.tesseract.schema.endpoints)
            return not own & {PULLBACK, PUSHFORWARD, JACOBIAN}
        handle = handle.tesseract
    return False


def _of_problem(problem: Problem, at: Any, seed: int) -> _Total:
    check_evaluation(problem)
    partition = problem.partition
    if _is_journal(at):
        problem, _ = started_from(problem, at)
        at = None
    varying = problem.start
    if at is not None:
        design = at.design if isinstance(at, Result) else at
        if jax.tree.structure(design) != jax.tree.structure(problem.design):
            raise ProblemError(f"at= does not have the structure of the design of problem {problem.name!r}.")
        varying = problem.box.project(partition_design(design, problem.vary).varying)
    demanded = problem.constraints or {}

    def results(varying: PyTree) -> dict[str, Any]:
        evaluation = as_evaluation(problem.answer(partition.combine(varying)))
        # A search for least squares takes the derivatives of each entry, of which one that is zero here adds none to
        # the objective's.
        misfit = {f"misfit: {name}": leaf for name, leaf in named_leaves(evaluation.misfit)}
        values = misfit or {"objective": evaluation.objective}
        return values | {name: jnp.asarray(evaluation.constraints[name]) for name in demanded}

    return _Total(problem.name, results, varying, (problem.box.lower, problem.box.upper), seed)


def _is_journal(at: Any) -> TypeGuard[StartFrom]:
    source = at[0] if isinstance(at, tuple) and len(at) == 2 and isinstance(at[1], str) else at
    return isinstance(source, str | os.PathLike | FileJournal)


def _named_floats(answer: Any) -> dict[str, Any]:
    """The floating-point leaves of what a function returns, by path."""
    if isinstance(answer, eqx.Module) and hasattr(answer, "objective"):
        evaluation = as_evaluation(answer)
        return {"objective": evaluation.objective, **evaluation.constraints}
    found = {}
    for path, leaf in jtu.tree_flatten_with_path(answer)[0]:
        if eqx.is_array_like(leaf) and jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating):
            found[path_name(path)] = jnp.asarray(leaf)
    if not found:
        raise ProblemError("The function returns no floating-point number, so it has no gradient.")
    return found
