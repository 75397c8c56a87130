"""Names that lead somewhere: a description as a graph of nodes, groups and connections.

Here: what each text refers to, in which order things can run, and everything that is wrong with that, all at once. Not
here: shapes, schemas and values. Nobody is asked anything.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tesseract_flow.errors import Fault, PipelineError, SchemaError, did_you_mean
from tesseract_flow.pipeline.conversions import parse_selection
from tesseract_flow.pipeline.cycles import Loop, in_order
from tesseract_flow.pipeline.description import NAME, Connection, Description, Group, Node
from tesseract_flow.pipeline.expressions import Expression
from tesseract_flow.pipeline.units import conversion, unit_of
from tesseract_flow.schema import ANY, Keys, format_path, parse_path

Place = tuple[str | int, ...]  # in the description, such as ("nodes", "fem", "inputs", "load")

_SOURCE = re.compile(rf"\s*(?P<first>{NAME})(?:\.(?P<rest>.+))?\s*", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a value comes from: an output of a node, or part of an input of the pipeline.

    Attributes:
        owner: the node, or the input.
        is_input: which of the two.
        keys: the place in it.
    """

    owner: str
    is_input: bool
    keys: Keys

    @property
    def path(self) -> str:
        return format_path(ANY, self.keys)

    def __str__(self) -> str:
        return f"{self.owner}.{self.path}" if self.keys else self.owner


@dataclasses.dataclass(frozen=True, eq=False)
class Wire:
    """A connection with what its texts refer to.

    Attributes:
        place: where it is described.
        node: whose input it feeds; None for an output of the pipeline.
        keys: the place in the node's inputs; of an output of the pipeline its name.
        sources: by the text that stands for each: of an expression several, of a constant none.
        units: (factor, shift) of its conversion.
        given: the unit in which the value comes, if that is known.
    """

    place: Place
    node: str | None
    keys: Keys
    connection: Connection
    sources: Mapping[str, Source]
    expression: Expression | None = None
    units: tuple[float, float] = (1.0, 0.0)
    given: str | None = None

    @property
    def target(self) -> str:
        """In words, such as `fem.load`."""
        path = format_path(ANY, self.keys)
        return path if self.node is None else f"{self.node}.{path}"


class Wiring:
    """A description, understood.

    Attributes:
        wires: all connections, those of a node's inputs and those of outputs.
        order: names of nodes and groups, in an order in which they can run; without what no output needs.
        idle: nodes that no output needs.

    Raises:
        PipelineError: with all that is wrong.
    """

    def __init__(self, description: Description, tell: Callable[[Sequence[tuple[Place, str]]], PipelineError]):
        self.description = description
        self.faults: list[tuple[Place, str]] = []
        self._names()
        self.wires = tuple(self._wires())
        self.group_of = {node: name for name, group in description.groups.items() for node in group.nodes}
        self._groups()
        self.order: tuple[str, ...] = ()
        self._order()
        if self.faults:
            raise tell(self.faults)

    @functools.cached_property
    def wires_to(self) -> Mapping[str | None, tuple[Wire, ...]]:
        """Per node (None: outputs of the pipeline) its connections."""
        found: dict[str | None, list[Wire]] = {}
        for wire in self.wires:
            found.setdefault(wire.node, []).append(wire)
        return {node: tuple(wires) for node, wires in found.items()}

    def inputs_of(self, node: str | None) -> tuple[Wire, ...]:
        return self.wires_to.get(node, ())

    @functools.cached_property
    def used(self) -> Mapping[str, tuple[Source, ...]]:
        """Per node the outputs that somebody needs, in order."""
        found: dict[str, dict[Source, None]] = {name: {} for name in self.description.nodes}
        for wire in self.wires:
            if wire.node is None or wire.node not in self.idle:
                for source in wire.sources.values():
                    if not source.is_input:
                        found[source.owner][source] = None
        for _, _, source in self.starts():
            if source is not None and not source.is_input:
                found[source.owner][source] = None
        return {name: tuple(sources) for name, sources in found.items()}

    def starts(self) -> Iterator[tuple[str, str, Source | None]]:
        """(group, text of the output, the source of its start if it is one)."""
        for name, group in self.description.groups.items():
            for text, value in group.start.items():
                try:
                    yield name, text, self.source(value) if isinstance(value, str) else None
                except PipelineError:  # which is told where groups are looked at
                    continue

    def unit_at(self, source: Source) -> str | None:
        """The unit in which a source gives its value, if it says so."""
        if source.is_input:
            return self.description.inputs[source.owner].units
        units = self.description.nodes[source.owner].units
        return next((unit for path, unit in units.items() if parse_path(path) == source.keys), None)

    def source(self, text: str) -> Source:
        """What a text refers to.

        Raises:
            PipelineError: nothing; the nearest name is suggested.
        """
        found = _SOURCE.fullmatch(text)
        nodes, inputs = self.description.nodes, self.description.inputs
        known = [*inputs, *nodes]
        if found is None:
            raise PipelineError(f"{text!r} is no source: write the name of an input, or node.path")
        first = found["first"]
        if first not in known:
            has = f"inputs are {_listed(inputs)}, nodes are {_listed(nodes)}"
            raise PipelineError(f"{text!r}: there is no node and no input {first!r}.{did_you_mean(first, known)} {has}")
        try:
            keys = parse_path(found["rest"]) if found["rest"] else ()
        except SchemaError as error:
            raise PipelineError(str(error)) from None
        return Source(first, first in inputs, keys)

    # --- what is wrong ------------------------------------------------------------------------------------------------

    def _fault(self, place: Place, message: str) -> None:
        self.faults.append((place, message))

    def _names(self) -> None:
        for name in self.description.inputs:
            if name in self.description.nodes:
                self._fault(("inputs", name), f"there is a node {name!r} too; a source could be either of them")
            self._unit(("inputs", name, "units"), self.description.inputs[name].units)
        for name, node in self.description.nodes.items():
            for path, unit in node.units.items():
                self._unit(("nodes", name, "units", path), unit)
                try:
                    parse_path(path)
                except SchemaError as error:
                    self._fault(("nodes", name, "units", path), str(error))

    def _unit(self, place: Place, unit: str | None) -> None:
        if unit is not None:
            try:
                unit_of(unit)
            except PipelineError as error:
                self._fault(place, str(error))

    def _wires(self) -> Iterator[Wire]:
        for name, node in self.description.nodes.items():
            places: dict[Keys, str] = {}
            for path, connection in node.inputs.items():
                place = ("nodes", name, "inputs", path)
                try:
                    keys = parse_path(path)
                except SchemaError as error:
                    self._fault(place, str(error))
                    continue
                other = next((text for known, text in places.items() if _overlap(known, keys)), None)
                if other is not None:
                    self._fault(place, f"it and {other!r} give the same input twice")
                places[keys] = path
                yield from self._wire(place, name, keys, connection)
            self._lists(name, node, places)
        for name, connection in self.description.outputs.items():
            yield from self._wire(("outputs", name), None, (name,), connection)

    def _lists(self, name: str, node: Node, places: Mapping[Keys, str]) -> None:
        """Items of lists have to be there without a gap."""
        prefixes = {keys[:k] for keys in places for k, key in enumerate(keys) if isinstance(key, int)}
        for prefix in prefixes:
            n = len(prefix)
            items = {keys[n] for keys in places if keys[:n] == prefix and len(keys) > n}
            if items != set(range(len(items))):
                path = format_path(ANY, prefix)
                shown = ", ".join(sorted(map(str, items)))
                self._fault(
                    ("nodes", name, "inputs"), f"items of the list {path!r} must be 0, 1, ...: there are {shown}"
                )

    def _wire(self, place: Place, node: str | None, keys: Keys, connection: Connection) -> Iterator[Wire]:
        expression, texts = None, [] if connection.source is None else [connection.source]
        try:
            if connection.select is not None:
                parse_selection(connection.select)
            if connection.expression is not None:
                expression = Expression(connection.expression)
                texts = list(expression.names)
        except PipelineError as error:
            self._fault(place, str(error))
            return
        sources = {}
        for text in texts:
            try:
                sources[text] = self.source(text)
            except PipelineError as error:
                self._fault(place, str(error))
        if len(sources) < len(texts):
            return
        said = self.unit_at(sources[texts[0]]) if connection.source is not None else None
        units, given = (1.0, 0.0), connection.from_units or said
        try:
            for unit in (connection.from_units, connection.units):
                if unit is not None:
                    unit_of(unit)
            if said and connection.from_units and unit_of(said) != unit_of(connection.from_units):
                raise PipelineError(f"from_units is {connection.from_units!r}, and {texts[0]!r} is given in {said!r}")
            if connection.units is not None and given is not None:
                units = conversion(given, connection.units)
            elif connection.units is not None and connection.value is None:
                raise PipelineError(
                    f"it should arrive in {connection.units!r}, and nobody says in which unit it comes: give "
                    "from_units here, or units at its source"
                )
        except PipelineError as error:
            self._fault((*place, "units"), str(error))
        yield Wire(place, node, keys, connection, sources, expression, units, given)

    def _groups(self) -> None:
        nodes = self.description.nodes
        owner: dict[str, str] = {}
        for name, group in self.description.groups.items():
            if name in nodes or name in self.description.inputs:
                self._fault(("groups", name), f"there is a node or an input {name!r} too")
            for k, node in enumerate(group.nodes):
                if node not in nodes:
                    hint = did_you_mean(node, nodes)
                    self._fault(("groups", name, "nodes", k), f"there is no node {node!r}.{hint}")
                elif node in owner:
                    self._fault(("groups", name, "nodes", k), f"{node!r} is in group {owner[node]!r} already")
                owner.setdefault(node, name)
            if group.order is not None and sorted(group.order) != sorted(group.nodes):
                self._fault(("groups", name, "order"), f"it must name each of {_listed(group.nodes)} once")
            self._starts(name, group)

    def _starts(self, name: str, group: Group) -> None:
        given = {source for wire in self.wires for source in wire.sources.values()}
        inside = [source for source in given if not source.is_input and source.owner in group.nodes]
        for text, value in group.start.items():
            place = ("groups", name, "start", text)
            try:
                source = self.source(text)
                if source not in inside:
                    known = sorted(map(str, inside))
                    raise PipelineError(
                        f"no connection takes {text!r} from a node of this group.{did_you_mean(text, known)} "
                        f"There are {_listed(known)}"
                    )
                if isinstance(value, str):
                    start = self.source(value)
                    if start.owner in group.nodes:
                        raise PipelineError(f"it starts from {value!r}, which this group has to find itself")
            except PipelineError as error:
                self._fault(place, str(error))

    # --- order --------------------------------------------------------------------------------------------------------

    def _order(self) -> None:
        """Nodes and groups in an order in which they can run, or the cycles that there are."""
        needs = self.needs()
        found = in_order(needs)
        if isinstance(found, list):
            for loop in found:
                self._fault(*self._told(loop))
        if self.faults:
            return
        needed: set[str] = set()
        wanted = [
            source.owner for wire in self.inputs_of(None) for source in wire.sources.values() if not source.is_input
        ]
        while wanted:
            unit = self.unit_of_node(wanted.pop())
            if unit not in needed:
                needed.add(unit)
                wanted += needs[unit]
        self.order = tuple(unit for unit in found if unit in needed)

    def unit_of_node(self, name: str) -> str:
        """The group that a node is in, or itself."""
        return self.group_of.get(name, name)

    def needs(self) -> dict[str, list[str]]:
        """Per node outside of groups and per group, those that it waits for; a node that needs itself is in it."""
        units = dict.fromkeys(self.unit_of_node(name) for name in self.description.nodes)
        found: dict[str, dict[str, None]] = {unit: {} for unit in units}
        for wire in self.wires:
            if wire.node is not None:
                for source in wire.sources.values():
                    a, b = self.unit_of_node(wire.node), None if source.is_input else self.unit_of_node(source.owner)
                    if b is not None and (a != b or a not in self.description.groups):
                        found[a][b] = None
        for group, _, source in self.starts():
            if source is not None and not source.is_input:
                found[group][self.unit_of_node(source.owner)] = None
        return {unit: list(others) for unit, others in found.items()}

    def _told(self, loop: Loop) -> tuple[Place, str]:
        groups = self.description.groups
        inside = [node for unit in loop for node in (groups[unit].nodes if unit in groups else [unit])]
        first = next(unit for unit in loop if unit not in groups) if any(u not in groups for u in loop) else loop[0]
        shown = " -> ".join([*loop, loop[0]])
        has_groups = any(unit in groups for unit in loop)
        remedy = (
            f"Nodes that need each other's outputs belong to one group: "
            f"groups: {{loop: {{nodes: [{', '.join(inside)}]}}}}"
            + (" in place of those that there are" if has_groups else "")
        )
        place: Place = ("groups", first) if first in groups else ("nodes", first)
        return place, f"{'it needs its own output' if len(loop) == 1 else 'these need each other'}: {shown}. {remedy}"

    @functools.cached_property
    def idle(self) -> frozenset[str]:
        return frozenset(name for name in self.description.nodes if self.unit_of_node(name) not in self.order)


def flaws(found: Sequence[tuple[Place, str]]) -> PipelineError:
    """One error with all that is wrong, each with its place."""
    faults = [Fault(".".join(map(str, place)), message) for place, message in found]
    count = "" if len(faults) == 1 else f" ({len(faults)} faults)"
    lines = "\n".join(f"  {fault}" for fault in faults)
    return PipelineError(f"The pipeline is not what it should be{count}:\n{lines}", faults=faults)


def _overlap(a: Keys, b: Keys) -> bool:
    n = min(len(a), len(b))
    return a[:n] == b[:n]


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"
