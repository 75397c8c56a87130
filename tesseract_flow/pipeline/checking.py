"""What can be told of a pipeline without a solve: names against schemas, shapes and dtypes along the wires.

Components are asked for descriptions and shapes (`abstract_eval`), never for an `apply`. One fault does not hide the
next: what hangs on it is left out, everything else is looked at.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tesseract_flow.client import AbstractTesseract
from tesseract_flow.errors import (
    InvalidInput,
    PipelineError,
    ShapesUnknown,
    TesseractFlowError,
    did_you_mean,
)
from tesseract_flow.pipeline.conversions import constant
from tesseract_flow.pipeline.groups import Coupled, aval_of, beginning
from tesseract_flow.pipeline.running import Evaluation, Work
from tesseract_flow.pipeline.wiring import Place, Source, Wire, Wiring
from tesseract_flow.schema import ModelField, describe, field_at, format_path


@dataclasses.dataclass
class Shapes:
    """What is known of values before there are any.

    Attributes:
        sources: shape and dtype of outputs of nodes, where they are known; values that are no arrays as they are.
        arriving: the same at the ends of wires.
        faults: what is wrong, with its place in the description.
        unknown: nodes of which nothing can be told without an `apply`, as they have no `abstract_eval`.
    """

    sources: dict[Source, Any] = dataclasses.field(default_factory=dict)
    arriving: dict[Wire, Any] = dataclasses.field(default_factory=dict)
    faults: list[tuple[Place, str]] = dataclasses.field(default_factory=list)
    unknown: set[str] = dataclasses.field(default_factory=set)

    @property
    def outputs(self) -> dict[str, Any]:
        return {str(wire.keys[0]): aval for wire, aval in self.arriving.items() if wire.node is None}


def look(wiring: Wiring, work: Mapping[str, Work], groups: Mapping[str, Coupled], inputs: Mapping[str, Any]) -> Shapes:
    """Everything that can be told.

    Args:
        inputs: values or shapes (`jax.ShapeDtypeStruct`) of those inputs of which something is known.
    """
    found = Shapes()
    broken: set[str] = set()
    for name in wiring.description.nodes:
        if name not in wiring.idle:
            faults = list(_of_names(name, wiring, work[name]))
            found.faults += faults
            broken |= {name} if faults else set()
    for place, message in _of_sources(wiring, work):
        found.faults.append((place, message))
        broken |= {str(place[1])} if place[0] == "nodes" else set()
    flat = {name: jax.tree.flatten(value) for name, value in inputs.items()}
    arrays = {name: [leaf for leaf in leaves if _is_array(leaf)] for name, (leaves, _) in flat.items()}

    def run(arrays: Mapping[str, list[Any]]) -> None:
        values = {}
        for name, (leaves, treedef) in flat.items():
            traced = iter(arrays[name])
            values[name] = treedef.unflatten([next(traced) if _is_array(leaf) else leaf for leaf in leaves])
        _Walk(wiring, groups, Evaluation(wiring, work, values), found, broken).run()

    jax.eval_shape(run, arrays)
    return found


class _Walk:
    """Along the units of a pipeline, inside of a trace."""

    def __init__(
        self,
        wiring: Wiring,
        groups: Mapping[str, Coupled],
        evaluation: Evaluation,
        found: Shapes,
        broken: set[str],
    ):
        self.wiring = wiring
        self.groups = groups
        self.evaluation = evaluation
        self.found = found
        self.broken = broken  # nodes, and those that hang on them

    def run(self) -> None:
        for unit in self.wiring.order:
            nodes = self.groups[unit].group.nodes if unit in self.groups else [unit]
            if not any(self._hangs(node) for node in nodes) and self._ran(unit):
                self._note(nodes)
            else:
                self.broken |= set(nodes)
        for wire in self.wiring.inputs_of(None):
            if not any(self._is_unknown(source) for source in wire.sources.values()):
                self._arrived(wire)

    def _hangs(self, node: str) -> bool:
        others = [source for wire in self.wiring.inputs_of(node) for source in wire.sources.values()]
        return node in self.broken or any(map(self._is_unknown, others))

    def _is_unknown(self, source: Source) -> bool:
        return source.owner not in self.evaluation.inputs if source.is_input else source.owner in self.broken

    def _ran(self, unit: str) -> bool:
        place: Place = ("groups", unit) if unit in self.groups else ("nodes", unit)
        try:
            if unit in self.groups:
                _, avals = beginning(self.groups[unit], self.evaluation)
                self.evaluation.values |= {source: jax.tree.map(_stand_in, aval) for source, aval in avals.items()}
            else:
                self.evaluation.run(unit)
        except ShapesUnknown:
            self.found.unknown |= {unit}
        except InvalidInput as error:
            self._tell_inputs(place, error)
        except Exception as error:  # of a function of the user's too: it is told where it happened
            self.found.faults.append(_told(place, error))
        else:
            return True
        return False

    def _tell_inputs(self, place: Place, error: InvalidInput) -> None:
        """Faults at the wires that brought the values."""
        nodes = self.groups[str(place[1])].group.nodes if place[0] == "groups" else [str(place[1])]
        by_path = {
            format_path(self._root(node), wire.keys): wire.place
            for node in nodes
            for wire in self.wiring.inputs_of(node)
        }
        for fault in error.faults:
            near = [path for path in by_path if fault.path == path or fault.path.startswith((f"{path}.", f"{path}["))]
            at = by_path[max(near, key=len)] if near else place
            self.found.faults.append((at, f"what arrives does not fit {fault.path!r}: {fault.message}"))

    def _root(self, node: str) -> Any:
        work = self.evaluation.work[node]
        return work.schema.inputs if isinstance(work, AbstractTesseract) else ModelField({})

    def _note(self, nodes: list[str]) -> None:
        for node in nodes:
            for source in self.wiring.used[node]:
                self.found.sources[source] = jax.tree.map(aval_of, self.evaluation.values[source])
            for wire in self.wiring.inputs_of(node):
                self._arrived(wire)

    def _arrived(self, wire: Wire) -> None:
        try:
            self.found.arriving[wire] = jax.tree.map(aval_of, self.evaluation.arriving(wire))
        except PipelineError as error:
            self.found.faults.append(_told(wire.place, error))


def _told(place: Place, error: Exception) -> tuple[Place, str]:
    """An error as a fault; one that says its place itself begins with it."""
    text = str(error).partition("\nFor simplicity, JAX has removed")[0]
    if isinstance(error, PipelineError):
        at, colon, rest = text.partition(": ")
        if colon and at.startswith(("nodes.", "outputs.", "groups.")):
            kind, _, name = at.partition(".")
            node, _, inner = name.partition(".inputs.")
            return ((kind, node, "inputs", inner) if inner else (kind, name)), rest
        return place, text
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith("Shapes in group")]
    said = text if isinstance(error, TesseractFlowError) else f"it raises {type(error).__name__}: {text}"
    return place, " ".join([said, *notes])


def _of_names(name: str, wiring: Wiring, work: Work) -> Iterator[tuple[Place, str]]:
    """Inputs of a node that it does not have, and those that it needs and does not get."""
    wires = wiring.inputs_of(name)
    tops = dict.fromkeys(wire.keys[0] for wire in wires)
    if not isinstance(work, AbstractTesseract):
        try:
            inspect.signature(work).bind(**{str(key): None for key in tops})
        except TypeError as error:
            yield ("nodes", name), f"its function does not take these inputs: {error}"
        except ValueError:  # of code that is not Python's, nobody knows
            pass
        return
    try:
        schema = work.schema
    except TesseractFlowError as error:
        yield ("nodes", name, "tesseract"), str(error)
        return
    for wire in wires:
        if field_at(schema.inputs, wire.keys) is None:
            known = list(schema.inputs.fields)
            path = format_path(schema.inputs, wire.keys)
            hint = did_you_mean(path.partition(".")[0], known)
            yield wire.place, f"{work.name!r} has no input {path!r}.{hint} It has {', '.join(known) or 'none'}"
    for missing in [field for field in schema.inputs.fields if field in schema.inputs.required and field not in tops]:
        kind = describe(schema.inputs.fields[missing])
        yield ("nodes", name, "inputs"), f"nothing is connected to its input {missing!r} ({kind})"


def _of_sources(wiring: Wiring, work: Mapping[str, Work]) -> Iterator[tuple[Place, str]]:
    """Outputs that a Tesseract does not have."""
    for wire in wiring.wires:
        if wire.node in wiring.idle:
            continue
        for source in wire.sources.values():
            handle = None if source.is_input else work[source.owner]
            if not isinstance(handle, AbstractTesseract):
                continue
            try:
                root = handle.schema.outputs
            except TesseractFlowError:  # which is told at its node
                continue
            if source.keys and field_at(root, source.keys) is None:
                known = list(root.fields)
                hint = did_you_mean(source.path.partition(".")[0], known)
                yield (
                    wire.place,
                    f"node {source.owner!r} has no output {source.path!r}.{hint} It has {', '.join(known)}",
                )


def target_starts(
    groups: Mapping[str, Coupled], shapes: Shapes, inputs: Mapping[str, Any], source_of: Callable[[str], Source]
) -> dict[str, Any]:
    """Where the targets of groups begin, as arrays of the shapes that their outputs have.

    Raises:
        PipelineError: a shape is not known, or the start is the output of a node, which only a run knows.
    """
    found = {}
    for name, coupled in groups.items():
        given = {source_of(text): value for text, value in coupled.group.start.items()}
        for target in coupled.fed_back(coupled.order()):
            aval = shapes.sources.get(target)
            if not isinstance(aval, jax.ShapeDtypeStruct) or not jnp.issubdtype(aval.dtype, jnp.inexact):
                raise PipelineError(
                    f"groups.{name}: {str(target)!r} is fed back and not one floating-point array, so it cannot be a "
                    "variable of the design. Connect the arrays in it one by one"
                )
            value = given.get(target, 1.0)
            if isinstance(value, str):
                start = source_of(value)
                if not start.is_input or start.keys:
                    raise PipelineError(
                        f"groups.{name}.start.{target}: the start of a target is a number, an array or an input"
                    )
                value = inputs[start.owner]
            found[str(target)] = jnp.broadcast_to(jnp.asarray(constant(value), aval.dtype), aval.shape)
    return found


def _stand_in(aval: Any) -> Any:
    return jnp.zeros(aval.shape, aval.dtype) if isinstance(aval, jax.ShapeDtypeStruct) else aval


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")
