"""Where the runs of a multi-start begin: points of the region that the bounds leave, or a list of designs.

Only what varies is sampled, entry by entry; all else of a design stays what it is. The one idea: a start is named by
its own bits, so that the same one is the same run whatever else is asked for beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from tesseract_flow.autodiff.prefixes import as_leaf_array, spread
from tesseract_flow.errors import BoundsError, ProblemError
from tesseract_flow.optimize import Problem
from tesseract_flow.optimize.partition import entries, leaf_names, named_leaves
from tesseract_flow.study.sampling import METHODS, unit_points

DEFAULT_N = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Starts:
    """The problems that differ in their start alone, each under its key; and what one should know of them."""

    problems: dict[str, Problem]
    notes: tuple[str, ...] = ()


def starts_of(
    problem: Problem,
    n: int | None,
    starts: str | Sequence[PyTree],
    seed: int,
    reach: PyTree,
    include_start: bool | None,
) -> Starts:
    """The starts that are asked for, each once; see `multi_start` for the arguments.

    Raises:
        ProblemError: a number or a list that cannot be used.
        BoundsError: entries without bounds, between which nothing can be chosen.
    """
    if n is not None and (isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1):
        raise ProblemError(f"n must be a whole number of runs, at least 1, received {n!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ProblemError(f"seed must be a whole number, zero or more, received {seed!r}.")
    notes: list[str] = []
    if isinstance(starts, str):
        with_own = starts != "grid" if include_start is None else include_start
        wanted = DEFAULT_N if n is None else int(n)
        sampled = _sampled(problem, starts, wanted - with_own, int(seed), reach)
        chosen = [problem] * with_own + [problem.starting_at(varying) for varying in sampled]
        if starts == "grid" and len(chosen) < wanted:
            notes.append(f"the largest regular grid within n={wanted} has {len(sampled)} points")
    else:
        if reach is not None:
            raise ProblemError(
                "spread says how far to sample around the start, and starts is a list: give one of them."
            )
        if not isinstance(starts, Sequence | np.ndarray | jax.Array):
            raise ProblemError(
                f"starts must be one of {', '.join(map(repr, METHODS))}, or a list of designs, received "
                f"{type(starts).__name__}."
            )
        given = [_from_design(problem, design, k) for k, design in enumerate(starts)]
        chosen = [problem] * bool(include_start) + given
        if not chosen:
            raise ProblemError("starts is an empty list: there is nothing to run.")
        if n is not None and n != len(chosen):
            raise ProblemError(f"n={n}, and there are {len(chosen)} starts in the list: leave n out.")
    found: dict[str, Problem] = {}
    for one in chosen:
        found.setdefault(start_key(one), one)
    if len(found) < len(chosen):
        notes.append(f"{len(chosen) - len(found)} of {len(chosen)} starts are the same as another one, and run once")
    return Starts(found, tuple(notes))


def start_key(problem: Problem) -> str:
    """`start-` and a digest of the varying part: names, dtypes, shapes and bits."""
    digest = hashlib.sha256()
    for name, leaf in named_leaves(problem.partition.varying):
        array = np.asarray(leaf)
        digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"start-{digest.hexdigest()[:16]}"


def _sampled(problem: Problem, method: str, n: int, seed: int, reach: PyTree) -> list[PyTree]:
    leaves, treedef = jax.tree.flatten(problem.partition.varying)
    sides = [(np.asarray(a), np.asarray(b)) for a, b in _region(problem, reach, bounded=n > 0)]
    lower, upper = (np.concatenate([side[k].ravel().astype(np.float64) for side in sides]) for k in (0, 1))
    is_free = lower < upper
    points = unit_points(method, n, int(is_free.sum()), seed)
    cuts = np.cumsum([leaf.size for leaf in leaves])[:-1]
    found = []
    for point in points:
        u = np.zeros(lower.size)
        u[is_free] = point
        # Not lower + u (upper - lower), which overflows between the largest numbers.
        flat = np.where(is_free, lower * (1.0 - u) + upper * u, lower)
        parts = [
            # In a leaf of less precision, rounding may lead past a bound.
            jnp.asarray(np.clip(part.reshape(leaf.shape).astype(leaf.dtype), low, high))
            for part, leaf, (low, high) in zip(np.split(flat, cuts), leaves, sides, strict=True)
        ]
        found.append(treedef.unflatten(parts))
    return found


def _region(problem: Problem, reach: PyTree, *, bounded: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Lower and upper ends per varying leaf, in its dtype: the bounds, and where `reach` is given no farther from the
    start than that.

    Raises:
        BoundsError: a reach that cannot be used; or, if it has to be bounded, an entry that is not.
    """
    varying = problem.partition.varying
    reaches = spread(reach, varying, what="spread", error=BoundsError)
    box = (jax.tree.leaves(problem.box.lower), jax.tree.leaves(problem.box.upper))
    found, open_ends = [], []
    for name, leaf, given, lower, upper in zip(
        leaf_names(varying), jax.tree.leaves(problem.start), reaches, *box, strict=True
    ):
        low, high = np.asarray(lower), np.asarray(upper)
        if given is not None:
            size = as_leaf_array(given, leaf, name, "spread", BoundsError)
            if not (np.isfinite(size) & (size >= 0)).all():
                raise BoundsError(
                    f"spread of '{name}' must be finite, and zero or more, received {given!r}.\n"
                    "It is how far from the start runs may begin, in the design's own units."
                )
            start = np.asarray(leaf)
            low, high = np.maximum(low, start - size), np.minimum(high, start + size)
        where = np.argwhere(~(np.isfinite(low) & np.isfinite(high)))
        if len(where):
            open_ends.append(f"'{name}'" + (f" ({entries(where)})" if np.ndim(leaf) else ""))
        found.append((low, high))
    if bounded and open_ends:
        raise BoundsError(
            f"Starts are chosen between bounds, and problem {problem.name!r} has none on both sides of "
            f"{', '.join(open_ends[:8])}{', ...' if len(open_ends) > 8 else ''}.\n"
            "Give bounds=(lower, upper) to the problem; or spread=..., how far from the problem's own start to begin "
            "(a number in the design's units, or one for each leaf); or starts=[...], a list of designs."
        )
    return found


def _from_design(problem: Problem, design: PyTree, k: int) -> Problem:
    """The problem with the start that a list has at `k`: a whole design, or its varying part alone."""
    partition = problem.partition

    def refuse(why: str) -> ProblemError:
        return ProblemError(
            f"starts[{k}] is no start for problem {problem.name!r}: {why}.\n"
            "Expected a design as the problem's own, in which only what varies is another."
        )

    given = dict(named_leaves(design))
    whole = dict(named_leaves(problem.design))
    if unknown := [name for name in given if name not in whole]:
        raise refuse(f"the design has no leaf {unknown[0]!r}")
    leaves, treedef = jax.tree.flatten(partition.varying)
    names = leaf_names(partition.varying)
    for name, value in given.items():
        if name not in names and not _is_same(value, whole[name]):
            raise refuse(f"{name!r} does not vary, and is another one there")
    found = []
    for name, leaf in zip(names, leaves, strict=True):
        if name not in given:
            raise refuse(f"it has no {name!r}, which varies")
        try:
            array = np.asarray(given[name], leaf.dtype)
        except (TypeError, ValueError) as error:
            raise refuse(f"{name!r} is not a number ({error})") from error
        if array.shape != leaf.shape:
            raise refuse(f"{name!r} has shape {array.shape}, expected {leaf.shape}")
        found.append(jnp.asarray(array))
    try:
        return problem.starting_at(treedef.unflatten(found))
    except ProblemError as error:
        raise refuse(str(error).partition("\n")[0]) from error


def _is_same(value: Any, other: Any) -> bool:
    if value is other:
        return True
    try:
        return bool(np.array_equal(np.asarray(value), np.asarray(other)))
    except (TypeError, ValueError):
        return False
