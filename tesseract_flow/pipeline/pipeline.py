"""`Pipeline`: named nodes and the wires between them, as one JAX function."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from pydantic import ValidationError

from tesseract_flow.client import AbstractTesseract, open_tesseract
from tesseract_flow.errors import PipelineError, did_you_mean
from tesseract_flow.named import named_function
from tesseract_flow.pipeline.arriving import misfits
from tesseract_flow.pipeline.checking import Shapes, look, target_starts
from tesseract_flow.pipeline.description import Connection, Coupling, Description, Group, Input, Node
from tesseract_flow.pipeline.document import Document, declared_settings
from tesseract_flow.pipeline.groups import Coupled, open_up, solve
from tesseract_flow.pipeline.running import Evaluation, Work
from tesseract_flow.pipeline.validation import faults_of
from tesseract_flow.pipeline.wiring import Place, Wiring, flaws

_FUNCTION = "Name a function as file.py:function (beside the file that names it) or package.module:function."


class Pipeline:
    """Several components as one function: `pipeline(inputs) -> outputs`, two dictionaries by name.

    The function is ordinary JAX: `jit`, `grad`, `vmap` and `tf.concurrent` go around it, and calls are labelled by the
    names of nodes. What no output needs is not called. Nothing is asked while it is made; `check` asks for shapes.

    Args:
        nodes: by name; see `tesseract_flow.pipeline.Node`.
        outputs: by name, where each comes from; see `tesseract_flow.pipeline.Connection`.
        inputs: names, or what is known of each by name; see `tesseract_flow.pipeline.Input`.
        groups: coupled nodes by name; see `tesseract_flow.pipeline.Group`.
        coupling: `"mdf"`: groups are solved at each evaluation, by `tf.fixed_point`. `"idf"`: each value that is fed
            back is a further input, its target (`targets`), named after the output, such as `"y2.y2"`; and the answer
            less the target is a further output, `"<group>.y2.y2"`, which an optimiser has to bring to zero.
        folder: where paths to components and files begin; default the working directory.
        tell: how faults become one error; a file says its lines.

    Raises:
        PipelineError: with everything that is wrong: `error.faults`.

    >>> import jax
    >>> pipeline = Pipeline(
    ...     inputs=["x"],
    ...     nodes={"square": {"function": lambda x: x**2, "inputs": {"x": "x"}}},
    ...     outputs={"y": {"from": "square", "scale": 3.0}},
    ... )
    >>> jax.grad(lambda x: pipeline({"x": x})["y"])(2.0)
    Array(12., dtype=float32, weak_type=True)
    """

    def __init__(
        self,
        nodes: Mapping[str, Node | Mapping[str, Any]],
        outputs: Mapping[str, Connection | Mapping[str, Any] | str],
        inputs: Sequence[str] | Mapping[str, Input | Mapping[str, Any] | None] = (),
        groups: Mapping[str, Group | Mapping[str, Any]] | None = None,
        *,
        coupling: Coupling = "mdf",
        folder: str | os.PathLike[str] | None = None,
        tell: Callable[[Sequence[tuple[Place, str]]], PipelineError] = flaws,
    ):
        given = {"nodes": nodes, "outputs": outputs, "inputs": inputs, "groups": groups or {}, "coupling": coupling}
        try:
            self.description = Description.model_validate(given)
        except ValidationError as error:
            raise tell(faults_of(error, Description)) from None
        self.tell = tell
        self.wiring = Wiring(self.description, tell)
        self.folder = Path.cwd() if folder is None else Path(folder)
        self._groups = {name: Coupled.of(name, self.wiring) for name in self.description.groups}
        self._work = self._opened()

    @classmethod
    def from_yaml(cls, file: str | os.PathLike[str], **settings: Any) -> Pipeline:
        """The pipeline that a file describes: the arguments above as keys, or under the key `pipeline`.

        Paths and files of functions begin at the file's folder.

        Args:
            settings: values for those that the file declares under `settings`; `$name` stands for them.

        Raises:
            PipelineError: with everything that is wrong, each with line, column and path.
        """
        document = Document(file)
        data = document.filled(declared_settings(document, settings), keep=["settings"])
        if "pipeline" in data:
            return cls.described(data["pipeline"], document, ("pipeline",))
        return cls.described({key: value for key, value in data.items() if key != "settings"}, document)

    @classmethod
    def described(cls, data: Any, document: Document, place: Place = ()) -> Pipeline:
        """A pipeline from (a part of) a file.

        Args:
            data: what the file says there, settings filled in.
            place: where it says so.
        """

        def tell(faults: Sequence[tuple[Place, str]]) -> PipelineError:
            return document.error([((*place, *at), message) for at, message in faults])

        try:
            Description.model_validate(data)
        except ValidationError as error:
            raise tell(faults_of(error, Description)) from None
        return cls(**data, folder=document.file.parent, tell=tell)

    def __repr__(self) -> str:
        return f"Pipeline({', '.join(self.description.inputs)} -> {', '.join(self.description.outputs)})"

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs at these inputs.

        Raises:
            PipelineError: an input is missing, is none, or has another shape or dtype than is declared; or a value does
                not fit what is done with it.
            CallError, NotConverged, ...: as `apply_tesseract` and `fixed_point` do.
        """
        self._check_names(inputs)
        if wrong := self.misfits(inputs):
            said = "; ".join(f"input {name!r}: {message}" for name, message in wrong.items())
            raise PipelineError(f"The pipeline is not given what it declares. {said}.")
        evaluation = Evaluation(self.wiring, self._work, inputs)
        gaps: dict[str, Any] = {}
        for unit in self.wiring.order:
            if unit not in self._groups:
                evaluation.run(unit)
            elif self.coupling == "mdf":
                solve(self._groups[unit], evaluation)
            else:
                gaps |= open_up(self._groups[unit], evaluation, inputs)
        found = {str(wire.keys[0]): evaluation.arriving(wire) for wire in self.wiring.inputs_of(None)}
        return {**found, **gaps}

    def check(self, inputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Shapes and dtypes of the outputs, if nothing is wrong: names against schemas, shapes along all wires.

        Components are asked for descriptions and shapes alone; no request goes to `apply` or a derivative. Outputs of
        which nothing can be told without one are left out.

        Args:
            inputs: values or shapes; default: those in the description (`inputs: {x: {shape: [3]}}`).

        Raises:
            PipelineError: with everything that is wrong.
        """
        shapes = self.shapes(inputs)
        if shapes.faults:
            raise self.tell(shapes.faults)
        return shapes.outputs

    def shapes(self, inputs: Mapping[str, Any] | None = None) -> Shapes:
        """What `check` finds out, faults among it."""
        known: dict[str, Any] = {
            name: jax.ShapeDtypeStruct(tuple(one.shape), jax.dtypes.canonicalize_dtype(one.dtype))
            for name, one in self.description.inputs.items()
            if one.shape is not None
        }
        wrong = self.misfits(inputs or {})
        known |= {name: value for name, value in (inputs or {}).items() if name in self.inputs and name not in wrong}
        found = look(self.wiring, self._work, self._groups, known)
        found.faults += [(("inputs", name), message) for name, message in wrong.items()]
        used = {s.owner for wire in self.wiring.wires for s in wire.sources.values() if s.is_input}
        for name in self.inputs:
            if name not in known and name in used:
                message = "its shape is not known: give it here (shape: [3]), or values to check with"
                found.faults.append((("inputs", name), message))
        return found

    def misfits(self, inputs: Mapping[str, Any]) -> dict[str, str]:
        """By input what is wrong with the shape or dtype of its value, as far as the description says something."""
        return misfits(self.description.inputs, inputs)

    def starts(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """With `coupling="idf"`: where the targets begin, as the groups say, in the shapes that belong to them.

        Raises:
            PipelineError: as `check` does.
        """
        if not self.targets:
            return {}
        shapes = self.shapes(inputs)
        if shapes.faults:
            raise self.tell(shapes.faults)
        groups = {name: group for name, group in self._groups.items() if name in self.wiring.order}
        return target_starts(groups, shapes, inputs, self.wiring.source)

    @property
    def coupling(self) -> Coupling:
        return self.description.coupling

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, targets not among them."""
        return tuple(self.description.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, distances from targets not among them."""
        return tuple(self.description.outputs)

    @property
    def targets(self) -> dict[str, str]:
        """With `coupling="idf"`: the further inputs, and the further output that belongs to each."""
        if self.coupling != "idf":
            return {}
        groups = [group for name, group in self._groups.items() if name in self.wiring.order]
        return {str(source): f"{one.name}.{source}" for one in groups for source in one.fed_back(one.order())}

    @property
    def tesseracts(self) -> dict[str, AbstractTesseract]:
        """The handle of each node that is a Tesseract."""
        return {name: work for name, work in self._work.items() if isinstance(work, AbstractTesseract)}

    def members(self, unit: str) -> tuple[str, ...]:
        """The nodes of a group, in the order in which they run; or the node itself."""
        return self._groups[unit].order() if unit in self._groups else (unit,)

    def _check_names(self, inputs: Mapping[str, Any]) -> None:
        if not isinstance(inputs, Mapping):
            raise PipelineError(
                f"A pipeline takes its inputs by name, in a dictionary; received {type(inputs).__name__}."
            )
        known = [*self.inputs, *self.targets]
        for name in inputs:
            if name not in known:
                raise PipelineError(
                    f"The pipeline has no input {name!r}.{did_you_mean(str(name), known)} It takes: {', '.join(known)}."
                )
        if missing := [name for name in known if name not in inputs]:
            raise PipelineError(
                f"The pipeline also needs {', '.join(map(repr, missing))}. It takes: {', '.join(known)}."
            )

    def _opened(self) -> dict[str, Work]:
        """A handle or a function per node. Nobody is asked, and no process starts."""
        found: dict[str, Work] = {}
        faults = []
        for name, node in self.description.nodes.items():
            try:
                found[name] = self._function(node.function) if node.tesseract is None else self._handle(name, node)
            except Exception as error:
                kind = "function" if node.tesseract is None else "tesseract"
                faults.append((("nodes", name, kind), str(error)))
        if faults:
            raise self.tell(faults)
        return found

    def _handle(self, name: str, node: Node) -> AbstractTesseract:
        source = node.tesseract
        if not isinstance(source, str | os.PathLike | list | tuple):
            return open_tesseract(source)
        return open_tesseract(self._located(source), **{"label": name, **node.options})

    def _located(self, source: Any) -> Any:
        """A path to a component as one from here."""
        if isinstance(source, list | tuple):
            return source
        text = os.fspath(source)
        if text.startswith("block:"):
            raise PipelineError(
                f"{text!r} is the name of a Prefect block, which is given from outside: declare a setting for this "
                "node's tesseract, and give it to the flow"
            )
        here = self.folder / text
        return here if "://" not in text and here.exists() else source

    def _function(self, function: Callable[..., Any] | str | None) -> Callable[..., Any]:
        assert function is not None
        if not isinstance(function, str):
            return function
        return named_function(function, _FUNCTION, folder=self.folder)[0]
