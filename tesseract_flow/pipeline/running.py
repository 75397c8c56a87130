"""One evaluation of a pipeline: values along the wires, calls at the nodes. Ordinary JAX, traced or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tesseract_flow.autodiff import apply_tesseract, labelled
from tesseract_flow.client import AbstractTesseract
from tesseract_flow.errors import PipelineError, did_you_mean
from tesseract_flow.pipeline.conversions import constant, converted
from tesseract_flow.pipeline.description import Node
from tesseract_flow.pipeline.wiring import Source, Wire, Wiring
from tesseract_flow.schema import ANY, Keys, format_path

Values = Mapping[Source, Any]
Work = AbstractTesseract | Callable[..., Any]


class Evaluation:
    """What is known in one evaluation.

    Args:
        work: what each node asks or calls.
        inputs: of the pipeline, by name.
    """

    def __init__(self, wiring: Wiring, work: Mapping[str, Work], inputs: Mapping[str, Any]):
        self.wiring = wiring
        self.work = work
        self.inputs = inputs
        self.values: dict[Source, Any] = {}

    def value(self, source: Source, known: Values | None = None) -> Any:
        """The value of a source: `known`, or one of this evaluation's."""
        if known is not None and source in known:
            return known[source]
        if source.is_input:
            return reached(self.inputs[source.owner], source.keys, f"input {source.owner!r}")
        return self.values[source]

    def arriving(self, wire: Wire, known: Values | None = None) -> Any:
        """What arrives at the end of a wire."""
        connection = wire.connection
        if connection.value is not None:
            value = constant(connection.value)
        else:
            found = {text: self.value(source, known) for text, source in wire.sources.items()}
            value = next(iter(found.values())) if wire.expression is None else _calculated(wire, found)
        try:
            return converted(value, connection, *wire.units)
        except PipelineError as error:
            raise PipelineError(f"{'.'.join(map(str, wire.place))}: {error}") from error

    def outputs(self, name: str, known: Values | None = None) -> dict[Source, Any]:
        """Ask a node; those of its outputs that are used."""
        node = self.wiring.description.nodes[name]
        given = {wire.keys: self.arriving(wire, known) for wire in self.wiring.inputs_of(name)}
        answer = asked(name, node, self.work[name], nested(given))
        return {source: reached(answer, source.keys, f"node {name!r}") for source in self.wiring.used[name]}

    def run(self, name: str) -> None:
        self.values |= self.outputs(name)


def asked(name: str, node: Node, work: Work, inputs: dict[str, Any]) -> Any:
    """The outputs of a node."""
    try:
        if not isinstance(work, AbstractTesseract):
            return work(**inputs)
        with labelled(name):
            return apply_tesseract(
                work,
                inputs,
                vmap_method=node.vmap_method,  # type: ignore[arg-type]
                materialize_jacobian=node.materialize_jacobian,
                nan_policy=node.nan_policy,  # type: ignore[arg-type]
            )
    except Exception as error:
        error.add_note(f"This was node {name!r} of the pipeline.")
        raise


def nested(values: Mapping[Keys, Any]) -> Any:
    """A tree with each value at its place; whole numbers are indices of lists."""
    if () in values:
        return values[()]
    by_key: dict[Any, dict[Keys, Any]] = {}
    for keys, value in values.items():
        by_key.setdefault(keys[0], {})[keys[1:]] = value
    made = {key: nested(rest) for key, rest in by_key.items()}
    is_list = bool(made) and all(isinstance(key, int) for key in made)
    return [made[k] for k in sorted(made)] if is_list else made


def reached(tree: Any, keys: Keys, owner: str) -> Any:
    """The value at a place.

    Raises:
        PipelineError: there is no such place; the message says what there is.
    """
    for k, key in enumerate(keys):
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):
            have = list(map(str, tree)) if isinstance(tree, Mapping) else []
            inner = f" at {format_path(ANY, keys[:k])!r}" if k else ""
            there = f" It has {', '.join(have)}.{did_you_mean(str(key), have)}" if have else ""
            what = "no entries" if not isinstance(tree, Mapping | list | tuple) else f"no {key!r}"
            raise PipelineError(
                f"{owner} has {what}{inner}, and {format_path(ANY, keys)!r} is wanted.{there}"
            ) from None
    return tree


def _calculated(wire: Wire, values: Mapping[str, Any]) -> Any:
    assert wire.expression is not None
    try:
        arrays = {text: jnp.asarray(value) for text, value in values.items()}
    except TypeError:
        wrong = next(text for text, value in values.items() if not _is_arraylike(value))
        place = ".".join(map(str, wire.place))
        raise PipelineError(f"{place}: {wrong!r} is no array and no number, and the expression calculates") from None
    return wire.expression(arrays)


def _is_arraylike(value: Any) -> bool:
    return isinstance(value, bool | int | float | complex) or hasattr(value, "dtype") or isinstance(value, jax.Array)
