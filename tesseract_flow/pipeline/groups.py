"""Groups of nodes that need each other: solved as a fixed point (`mdf`), or cut open for an optimiser to close (`idf`).

The state of a group are those of its outputs that somebody needs, inside or outside. Run one after the other, a node
reads what those before it have just given, and of those after it a guess: what is *fed back*. Both forms of coupling
come of the same order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tesseract_flow.client import AbstractTesseract
from tesseract_flow.compose import Aitken, Anderson, Broyden, GaussSeidel, NewtonKrylov, Picard, fixed_point
from tesseract_flow.errors import CallError, OptionError, PipelineError, ShapesUnknown, did_you_mean
from tesseract_flow.pipeline.cycles import best_order
from tesseract_flow.pipeline.description import Group
from tesseract_flow.pipeline.running import Evaluation
from tesseract_flow.pipeline.wiring import Source, Wiring
from tesseract_flow.schema import ArrayField, field_at

Avals = dict[Source, Any]  # shape and dtype of arrays; other values as they are

_SOLVERS = {
    "newton-krylov": NewtonKrylov,
    "picard": Picard,
    "gauss-seidel": GaussSeidel,
    "aitken": Aitken,
    "anderson": Anderson,
    "broyden": Broyden,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Coupled:
    """A group, with what follows from its wires.

    Attributes:
        reads: per node the outputs of the group's own nodes that it takes.
        state: the outputs that somebody needs.
        targets: fed back in the order in which the fewest values are, as far as that is known without shapes.
    """

    name: str
    group: Group
    reads: Mapping[str, tuple[Source, ...]]
    state: tuple[Source, ...]

    @classmethod
    def of(cls, name: str, wiring: Wiring) -> Coupled:
        group = wiring.description.groups[name]

        def read_by(node: str) -> tuple[Source, ...]:
            found = [source for wire in wiring.inputs_of(node) for source in wire.sources.values()]
            return tuple(dict.fromkeys(s for s in found if not s.is_input and s.owner in group.nodes))

        return cls(
            name,
            group,
            {node: read_by(node) for node in group.nodes},
            tuple(source for node in group.nodes for source in wiring.used[node]),
        )

    def order(self, avals: Avals | None = None) -> tuple[str, ...]:
        """The order in which the fewest values are fed back: the user's, or of all of them the best."""
        if self.group.order is not None:
            return tuple(self.group.order)
        sizes = {source: 1 if avals is None else _size(avals[source]) for source in self.state}

        def guessed(names: Sequence[str]) -> int:
            early = {s for k, name in enumerate(names) for s in self.reads[name] if s.owner not in names[:k]}
            return sum(sizes[source] for source in early)

        return best_order(self.group.nodes, guessed)

    def fed_back(self, order: Sequence[str]) -> tuple[Source, ...]:
        """The outputs that are read before they are there."""
        found = [s for k, name in enumerate(order) for s in self.reads[name] if s.owner not in order[:k]]
        return tuple(dict.fromkeys(found))


def solve(coupled: Coupled, evaluation: Evaluation) -> None:
    """The state of a group, at which its nodes agree, as values of the evaluation."""
    start, avals = beginning(coupled, evaluation)
    floats = {source for source in coupled.state if _is_float(avals[source])}
    known = {
        (node, str(s)): s for node in coupled.group.nodes for s in coupled.state if s.owner == node and s in floats
    }

    def component(node: str) -> Any:
        def part(state: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
            values = {source: state[owner][text] for (owner, text), source in known.items()}
            found = evaluation.outputs(node, values)
            return {str(source): found[source] for source in found if source in floats}

        return part

    group = coupled.group
    state = fixed_point(
        {node: component(node) for node in group.nodes},
        {node: {text: start[s] for (owner, text), s in known.items() if owner == node} for node in group.nodes},
        solver=_solver(coupled),
        rtol=group.rtol,
        warm_start=group.warm_start,
        atol=group.atol,
        max_steps=group.max_steps,
        order=coupled.order(avals),
        name=coupled.name,
    )
    found = {source: state[owner][text] for (owner, text), source in known.items()}
    evaluation.values |= found
    # A state consists of floating-point arrays. What else a node says, such as a flag, it says once more at the end.
    for node in dict.fromkeys(source.owner for source in coupled.state if source not in floats):
        again = evaluation.outputs(node, found)
        evaluation.values |= {source: value for source, value in again.items() if source not in floats}


def open_up(coupled: Coupled, evaluation: Evaluation, targets: Mapping[str, Any]) -> dict[str, Any]:
    """One round through a group with its targets in place of what is fed back.

    Returns:
        How far the answers are from their targets, by `group.target`.
    """
    order = coupled.order()
    cut = {source: jnp.asarray(targets[str(source)]) for source in coupled.fed_back(order)}
    done: list[str] = []
    for node in order:
        # Of those before it, it sees what they have just given.
        evaluation.values |= evaluation.outputs(node, {s: x for s, x in cut.items() if s.owner not in done})
        done.append(node)
    gaps = {}
    for source, target in cut.items():
        found = jnp.asarray(evaluation.values[source])
        if found.shape != target.shape:
            raise PipelineError(
                f"{str(source)!r} has shape {found.shape}, and its target in group {coupled.name!r} has "
                f"{target.shape}: give the target in the shape of the answer"
            )
        gaps[f"{coupled.name}.{source}"] = found - target
    return gaps


def beginning(coupled: Coupled, evaluation: Evaluation) -> tuple[Avals, Avals]:
    """Where the search for a group's state begins, and shapes and dtypes of all that is needed of it.

    Shapes come from the nodes themselves (`abstract_eval`), asked in turn until they agree; of what is fed back the
    first guess is that of its start, or of its schema.

    Raises:
        PipelineError: they do not agree, or cannot be told.
    """
    given = _given(coupled, evaluation)
    order = coupled.order()
    avals: Avals = {source: _guess(source, given, evaluation) for source in coupled.fed_back(order)}
    for _ in range(len(order) + 2):
        before = dict(avals)
        for node in order:
            avals |= _abstract(node, avals, evaluation, coupled)
        if all(source in before and _same(before[source], avals[source]) for source in avals):
            break
    else:
        raise PipelineError(
            f"group {coupled.name!r}: shapes do not settle: each round gives others. Give the shape of what is fed "
            f"back ({', '.join(map(str, coupled.fed_back(order)))}) with its start: an array."
        )
    start: Avals = {}
    for source, aval in avals.items():
        if not _is_float(aval):
            continue
        start[source] = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), aval)
        if source in given:
            start[source] = _filled(source, given[source], aval, coupled)
    return start, avals


def aval_of(value: Any) -> Any:
    """Shape and dtype of a number or an array; anything else is what it is."""
    if isinstance(value, float | complex):
        value = jnp.asarray(value)
    return jax.ShapeDtypeStruct(value.shape, value.dtype) if hasattr(value, "dtype") else value


def _given(coupled: Coupled, evaluation: Evaluation) -> dict[Source, Any]:
    found = {}
    for text, value in coupled.group.start.items():
        source = evaluation.wiring.source(text)
        if isinstance(value, str):
            value = evaluation.value(evaluation.wiring.source(value))
        found[source] = value
    return found


def _guess(source: Source, given: Mapping[Source, Any], evaluation: Evaluation) -> Any:
    dtype = np.dtype(jnp.result_type(float))
    if source in given and (np.ndim(given[source]) or hasattr(given[source], "dtype")):
        value = jnp.asarray(given[source])
        return jax.ShapeDtypeStruct(value.shape, value.dtype if jnp.issubdtype(value.dtype, jnp.inexact) else dtype)
    work = evaluation.work[source.owner]
    field = field_at(work.schema.outputs, source.keys) if isinstance(work, AbstractTesseract) else None
    if isinstance(field, ArrayField):
        shape = tuple(1 if n is None else n for n in field.shape or ())
        return jax.ShapeDtypeStruct(shape, dtype if field.dtype is None else np.dtype(field.dtype))
    return jax.ShapeDtypeStruct((), dtype)


def _abstract(node: str, avals: Avals, evaluation: Evaluation, coupled: Coupled) -> Avals:
    """What a node gives, as shapes and dtypes."""
    arrays = {source: aval for source, aval in avals.items() if _is_array(aval)}
    others = {source: aval for source, aval in avals.items() if not _is_array(aval)}
    found: Avals = {}

    def run(values: Mapping[Source, Any]) -> None:
        for source, value in evaluation.outputs(node, {**others, **values}).items():
            found[source] = jax.tree.map(aval_of, value)

    try:
        jax.eval_shape(lambda values: run(dict(zip(arrays, values, strict=True))), list(arrays.values()))
    except ShapesUnknown:
        return {s: avals[s] if s in avals else _guess(s, {}, evaluation) for s in evaluation.wiring.used[node]}
    except (PipelineError, CallError, TypeError, ValueError) as error:
        fed = ", ".join(f"{s} as {avals[s].dtype}{list(avals[s].shape)}" for s in arrays)
        error.add_note(
            f"Shapes in group {coupled.name!r} were looked for with {fed}. If they are not that, give the start "
            "of what is fed back as an array of its shape."
        )
        raise
    return found


def _filled(source: Source, value: Any, aval: Any, coupled: Coupled) -> Any:
    if not _is_array(aval):
        return value
    array = jnp.asarray(value, aval.dtype)
    if array.shape not in ((), aval.shape):
        raise PipelineError(
            f"group {coupled.name!r}: the start of {str(source)!r} has shape {array.shape}, and it is of shape "
            f"{aval.shape}"
        )
    return jnp.broadcast_to(array, aval.shape)


def _solver(coupled: Coupled) -> Any:
    solver, settings = coupled.group.solver, coupled.group.solver_settings
    if not settings:
        return solver
    if not isinstance(solver, str) or solver not in _SOLVERS:
        raise PipelineError(
            f"group {coupled.name!r}: solver_settings are for a solver by name, {', '.join(_SOLVERS)}; it is "
            f"{solver!r}." + did_you_mean(str(solver), _SOLVERS)
        )
    try:
        return _SOLVERS[solver](**settings)
    except TypeError as error:
        raise OptionError(f"group {coupled.name!r}: solver {solver!r} does not take these settings: {error}") from None


def _is_array(aval: Any) -> bool:
    return isinstance(aval, jax.ShapeDtypeStruct)


def _is_float(aval: Any) -> bool:
    leaves = jax.tree.leaves(aval)
    return bool(leaves) and all(_is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves)


def _size(aval: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(aval) if _is_array(leaf))


def _same(a: Any, b: Any) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        (x.shape, x.dtype) == (y.shape, y.dtype) if _is_array(x) and _is_array(y) else x is y or bool(x == y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
