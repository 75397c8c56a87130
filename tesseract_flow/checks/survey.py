"""A problem's evaluation as a jaxpr, also where some of its components cannot be asked.

A plain trace is tried first. If it fails, the evaluation is traced once more with stand-ins for the outputs of
components that are down, or that were given what does not fit: so one fault does not hide the next. Nothing is
evaluated, and no component is asked for more than shapes.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr

from tesseract_flow.autodiff.apply import surveyed_by
from tesseract_flow.autodiff.prefixes import SORTED
from tesseract_flow.checks.asking import PATIENCE, Component, ask_all
from tesseract_flow.checks.endpoints import Asked, asked_of_unshaped
from tesseract_flow.checks.findings import Finding
from tesseract_flow.checks.stand_ins import Outputs, Unknown, array_fields, filled, guessed_shape, stand_in
from tesseract_flow.client import AbstractTesseract, opened
from tesseract_flow.derivatives import as_tree
from tesseract_flow.errors import (
    CallError,
    EndpointNotFound,
    InvalidInput,
    NotDifferentiable,
    PlainValueUnknown,
    PrecisionError,
    ShapesUnknown,
    TesseractFlowError,
    did_you_mean,
)
from tesseract_flow.optimize import Evaluation, Problem
from tesseract_flow.optimize.partition import named_leaves
from tesseract_flow.optimize.problem import half_the_sum_of_squares
from tesseract_flow.optimize.returned import constraint_fault, flag_fault, misfit_fault
from tesseract_flow.optimize.traced import NEEDS_A_VALUE, REMEDY, UNSORTED
from tesseract_flow.schema import TesseractSchema, array_leaves, follow, format_path


@dataclasses.dataclass
class Survey:
    """What a trace found.

    Attributes:
        closed: the evaluation; its results are the objective, if there is one, and the constraints.
        names: of the results: None for the objective, else the constraint's.
        findings: what was wrong on the way.
        doubtful: number of a stand-in → a finding that holds only if what the component was given is no guess itself.
        components: all that were met or found.
        is_complete: the evaluation could be followed to its end, without a stand-in.
        unshaped: number of a stand-in → what is asked at most of a component that tells no shapes.
    """

    closed: ClosedJaxpr
    names: list[str | None]
    findings: list[Finding]
    doubtful: dict[int, list[Finding]]
    components: list[Component]
    is_complete: bool
    unshaped: dict[int, list[Asked]]


def survey(problem: Problem, components: Sequence[Component], patience: float = PATIENCE) -> Survey:
    """The evaluation of a problem, traced."""
    if all(component.is_up and component.asked is component.handle for component in components):
        tracer = _Tracer(problem, components, patience)
        found = tracer.trace()
        if tracer.failure is None:
            return found
    best: tuple[int, ...] | None = None
    result: Survey | None = None
    # Of what rank an unknown output is, only what the evaluation does with it can tell: the guess that leads furthest.
    for guess in _GUESSES:
        tracer = _Tracer(problem, components, patience, guess)
        # What a jitted function in the evaluation made of a stand-in must not be found by a later call.
        jax.clear_caches()
        try:
            with surveyed_by(tracer.call):
                found = tracer.trace()
        finally:
            jax.clear_caches()
        reached = (tracer.failure is None, tracer.n_calls, len(tracer.names))
        if best is None or reached > best:
            best, result = reached, found
        components = list(tracer.components.values())  # those that were met are not asked again
        if tracer.failure is None or not tracer.has_unknown:
            break
    assert result is not None
    result.is_complete = False
    return result


# What stands for an output of which nothing is known: an array of this rank, or an object that JAX cannot see into.
_GUESSES = (0, None, 1, 2, 3)


class _Tracer:
    def __init__(self, problem: Problem, components: Sequence[Component], patience: float, guess: int | None = None):
        self.problem = problem
        self.patience = patience
        self.components = {component.handle: component for component in components}
        self.findings: list[Finding] = []
        self.doubtful: dict[int, list[Finding]] = {}
        self.names: list[str | None] = []
        self.unshaped: dict[int, list[Asked]] = {}
        self.failure: Exception | None = None
        self.has_guessed = False
        self.has_unknown = False
        self.n_calls = 0
        self._guess = guess
        self._unknowns: list[Any] = []

    def trace(self) -> Survey:
        leaves, treedef = jax.tree.flatten(self.problem.partition.varying)

        def flat(*arrays: Any) -> list[Any]:
            try:
                answer = self.problem.answer(self.problem.partition.combine(treedef.unflatten(arrays)))
            except Exception as error:
                self.failure = error
                return []
            return self._results(answer)

        closed = jax.make_jaxpr(flat)(*leaves)
        if self.failure is not None:
            self._tell_failure(self.failure)
        return Survey(
            closed,
            self.names,
            self.findings,
            self.doubtful,
            list(self.components.values()),
            self.failure is None,
            self.unshaped,
        )

    def _results(self, answer: Any) -> list[Any]:
        """Objective and constraints, as far as they are what they should be."""
        name = self.problem.name
        objective = answer.objective if isinstance(answer, Evaluation) else answer
        if isinstance(answer, Evaluation) and answer.misfit is not None:
            objective = self._of_misfit(answer)
        constraints = (answer.constraints or {}) if isinstance(answer, Evaluation) else {}
        self._look_at_flags(answer.aux if isinstance(answer, Evaluation) else None)
        results = []
        if isinstance(objective, Unknown):
            objective = objective.scalar
        if not eqx.is_array_like(objective):
            self._find(
                "objective",
                "evaluate",
                f"it returns {type(objective).__name__} as its objective, expected a scalar.",
                "Return the objective, or tf.Evaluation(objective, constraints={...}).",
            )
        else:
            value = jnp.asarray(objective)
            if value.shape != () and not self.has_guessed:
                self._find(
                    "objective",
                    "evaluate",
                    f"the objective of {name!r} has shape {value.shape}, expected a scalar.",
                    "Reduce it inside evaluate, for example with jax.numpy.sum.",
                )
            elif not jnp.issubdtype(value.dtype, jnp.floating):
                self._find(
                    "objective",
                    "evaluate",
                    f"the objective of {name!r} is of dtype {value.dtype}, expected real floating point.",
                    "Convert it inside evaluate.",
                )
            self.names.append(None)
            results.append(value)
        if not isinstance(constraints, Mapping):
            self._find(
                "constraints",
                "evaluate",
                f"it returns constraints as {type(constraints).__name__}, expected a dictionary {{name: value}}.",
                "Return tf.Evaluation(objective, {name: value}).",
            )
            return results
        for key, value in constraints.items():
            value = value.scalar if isinstance(value, Unknown) else value
            if fault := constraint_fault(key, value):
                self._find("constraints", "evaluate", *fault)
                # In its place something that depends on the same.
                leaves = [leaf.scalar if isinstance(leaf, Unknown) else leaf for leaf in jax.tree.leaves(value)]
                value = sum((jnp.sum(leaf).astype(float) for leaf in leaves if eqx.is_array(leaf)), jnp.zeros(()))
            self.names.append(key)
            results.append(jnp.asarray(value))
        return results

    def _of_misfit(self, answer: Evaluation) -> Any:
        """The objective that a misfit stands for."""
        leaves = [leaf.scalar if isinstance(leaf, Unknown) else leaf for leaf in jax.tree.leaves(answer.misfit)]
        misfit = jax.tree.structure(answer.misfit).unflatten(leaves)
        if fault := misfit_fault(Evaluation(answer.objective, misfit=misfit)):
            self._find("misfit", "evaluate", *fault)
            return jnp.zeros(())
        return half_the_sum_of_squares(jax.tree.map(jnp.asarray, misfit))

    def _look_at_flags(self, aux: Any) -> None:
        known = [leaf for leaf in jax.tree.leaves(aux) if not isinstance(leaf, Unknown)]
        if len(known) < len(jax.tree.leaves(aux)):
            return  # what it is, only the component knows that is reported already
        computed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, Tracer) else x, aux)
        for name in self.problem.valid_names:
            if fault := flag_fault(name, named_leaves(computed)):
                message, _, remedy = fault.partition("\n")
                self._find("flag", f"valid: {name}", message, remedy)

    def _find(self, kind: str, where: str, message: str, remedy: str = "", severity: Any = "error") -> None:
        self.findings.append(Finding(kind, where, message, remedy, severity))

    def _tell_failure(self, error: Exception) -> None:
        where = _line_of(error) or "evaluate"
        text = str(error).partition("\nFor simplicity, JAX has removed")[0]
        if self.has_guessed:
            self._find(
                "unchecked",
                where,
                f"evaluate could not be followed further than here ({type(error).__name__}), as what a component gives "
                "is not known.",
                "Mend what is reported above and check again.",
                "note",
            )
        elif isinstance(error, NotDifferentiable):
            self._find("not-differentiable", where, text)
        elif isinstance(error, PlainValueUnknown):
            self._find(
                "unchecked",
                where,
                f"evaluate could not be followed further than here without a solve: {text.partition(chr(10))[0]}",
                "A run is told it by a call at the start, outside of vmap, jit and lax control flow.",
                "note",
            )
        else:
            said, remedy = self._remedy(error, text)
            self._find("evaluate", where, f"evaluate raises {type(error).__name__}: {said}", remedy)

    def _remedy(self, error: Exception, text: str) -> tuple[str, str]:
        """What is said of an error of evaluate's own, and what can be done about it."""
        unchecked = "What comes after it was not checked."
        if isinstance(error, TesseractFlowError):
            return text, ""
        design = self.problem.design
        if isinstance(error, KeyError) and error.args and isinstance(design, Mapping):
            keys = list(map(str, design))
            hint = did_you_mean(str(error.args[0]), keys)
            return f"{text}.{hint}", f"If it is meant to be of the design, that has: {', '.join(keys)}. {unchecked}"
        if isinstance(error, NEEDS_A_VALUE):
            return text.partition("\n")[0], f"{REMEDY} {unchecked}"
        if UNSORTED in text:
            return "a dictionary has keys that have no order, such as texts beside numbers", f"{SORTED} {unchecked}"
        return text, unchecked

    # --- one call of apply_tesseract, while surveyed ------------------------------------------------------------------

    def call(self, proceed: Any, tesseract: Any, inputs: Any) -> Any:
        """The outputs of a component, or what stands for them."""
        self.n_calls += 1
        try:
            handle = opened(tesseract)
        except (TesseractFlowError, TypeError) as error:
            self._find("unreachable", str(tesseract), str(error), "Correct the address or the path.")
            return self._all_unknown(inputs)
        component = self.components.get(handle)
        if component is None:  # it is opened inside of evaluate
            (component,) = ask_all([handle], self.patience)
            self.components[handle] = component
        if not component.is_up:
            return self._all_unknown(inputs)
        handle = component.asked
        schema = handle.schema
        try:
            outputs = proceed(handle, self._known(schema, inputs))
        except InvalidInput as error:
            found = [
                Finding(
                    "misfit",
                    f"{handle.name}: {fault.path or 'inputs'}",
                    f"{fault.message}.",
                    "What evaluate passes must fit the component's input schema.",
                )
                for fault in error.faults
            ]
            return self._outputs_by_schema(handle, schema, inputs, found)
        except PrecisionError:  # is reported for all outputs of all components together
            return self._outputs_by_schema(handle, schema, inputs, [])
        except ShapesUnknown:
            found = [
                Finding(
                    "no-shapes",
                    handle.name,
                    "it has no 'abstract_eval', so the shapes of what it gives are known after a call only; what comes "
                    "after it was checked with a guess.",
                    "Add abstract_eval to its tesseract_api.py.",
                    "note",
                )
            ]
            return self._outputs_by_schema(handle, schema, inputs, found, is_known=True)
        except (CallError, EndpointNotFound) as error:
            found = [Finding("abstract-eval", handle.name, str(error), "Mend its abstract_eval: shapes come from it.")]
            return self._outputs_by_schema(handle, schema, inputs, found)
        return self._tolerant(handle, outputs, inputs) if isinstance(outputs, dict) else outputs

    def _all_unknown(self, inputs: Any) -> Outputs:
        def missing(_: str) -> Any:
            return self._unknown(inputs)

        return Outputs({}, missing)

    def _tolerant(self, handle: AbstractTesseract, outputs: dict[str, Any], inputs: Any) -> Outputs:
        known = list(outputs)

        def missing(key: str) -> Any:
            self._find(
                "no-such-output",
                handle.name,
                f"evaluate reads its output {key!r}; it has: {', '.join(known)}.{did_you_mean(str(key), known)}",
                "Correct the name in evaluate.",
            )
            return self._unknown(inputs)

        return Outputs(outputs, missing)

    def _unknown(self, inputs: Any) -> Any:
        self.has_guessed = self.has_unknown = True
        shape = () if self._guess is None else (1,) * self._guess
        (array,), _ = stand_in(_floats(inputs), [(shape, np.float64)], is_guess=True)
        unknown = Unknown(array) if self._guess is None else array
        self._unknowns.append(unknown)
        return unknown

    def _known(self, schema: TesseractSchema, inputs: Any) -> Any:
        """The inputs, with unknown values in the form that the schema wants at their places."""
        if not isinstance(inputs, Mapping):
            return inputs
        replaced = {}
        for name, value in inputs.items():
            field = schema.inputs.get(name)
            if any(value is unknown for unknown in self._unknowns) and field is not None:
                scalar = jnp.ravel(value.scalar if isinstance(value, Unknown) else value)[0]
                fields = array_fields(field)
                if fields:
                    dtype = jax.dtypes.canonicalize_dtype(fields[0].dtype or "float64")
                    shape, _ = guessed_shape(fields[0], 1)
                    value = jnp.broadcast_to(jax.lax.convert_element_type(scalar, dtype), shape)
            replaced[name] = value
        return replaced

    def _outputs_by_schema(
        self,
        handle: AbstractTesseract,
        schema: TesseractSchema,
        inputs: Any,
        found: list[Finding],
        *,
        is_known: bool = False,
    ) -> Outputs:
        """Of the form that the schema promises; lengths that it leaves open are those of the inputs, for a guess."""
        lengths = [n for x in _arrays(inputs) for n in np.shape(x)]
        fields = array_fields(schema.outputs)
        shapes = [guessed_shape(field, max(lengths, default=1)) for field in fields]
        is_guess = any(guessed for _, guessed in shapes)
        avals = [(shape, field.dtype or "float64") for field, (shape, _) in zip(fields, shapes, strict=True)]
        arrays, number = stand_in(_floats(inputs), avals, is_guess=is_guess)
        self.has_guessed = self.has_guessed or is_guess
        if is_known:
            self.findings += found
            self.unshaped[number] = asked_of_unshaped(handle, _varying(schema, as_tree(inputs)))
        elif found:
            self.doubtful[number] = found
        tree = filled(schema.outputs, iter(arrays), self._unknown(inputs) if _has_gaps(schema) else None)
        return self._tolerant(handle, tree, inputs)


def _has_gaps(schema: TesseractSchema) -> bool:
    """Whether its outputs have places of which nothing is known, such as dicts with free keys."""
    marker = object()
    tree = filled(schema.outputs, iter([0] * len(array_fields(schema.outputs))), marker)
    return any(leaf is marker for leaf in jax.tree.leaves(tree))


def _arrays(inputs: Any) -> list[Any]:
    leaves = jax.tree.leaves(inputs)
    return [leaf for leaf in leaves if not isinstance(leaf, Unknown) and hasattr(leaf, "dtype")]


def _varying(schema: TesseractSchema, inputs: Any) -> dict[str, Any]:
    """The inputs that a derivative could be taken by, as they are traced."""
    found = {}
    for keys, field in array_leaves(schema.inputs, inputs):
        value = follow(inputs, keys)
        if field.differentiable and isinstance(value, Tracer):
            found[format_path(schema.inputs, keys)] = value
    return found


def _floats(inputs: Any) -> list[Any]:
    values = [leaf.scalar if isinstance(leaf, Unknown) else leaf for leaf in jax.tree.leaves(inputs)]
    arrays = [value for value in values if hasattr(value, "dtype")]
    floats = [jnp.asarray(value) for value in arrays if jnp.issubdtype(value.dtype, jnp.inexact)]
    return floats or [jnp.zeros(())]


def _line_of(error: Exception) -> str:
    """The innermost line of the user's own code."""
    from tesseract_flow.checks.differentiability import library_folders

    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*library_folders(), "<"))
    ]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}, in {frames[-1].name}" if frames else ""
