"""`check`: everything that can be known to be wrong with a problem before its first solve, at once.

Asked are descriptions and shapes (`openapi.json`, `abstract_eval`), never an `apply`. Each part below looks at one
thing and reports what it finds; none stops the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from tesseract_flow.autodiff.shapes import is_x64_on
from tesseract_flow.checks.around import cheapest_differences
from tesseract_flow.checks.asking import PATIENCE, Component, ask_all, handles_in
from tesseract_flow.checks.differentiability import Cut, Flow, Walk
from tesseract_flow.checks.endpoints import (
    Asked,
    asked_by,
    asked_on_paths,
    looped_calls,
    missing_endpoints,
    summary,
    time_of,
)
from tesseract_flow.checks.findings import Finding, Report, in_order
from tesseract_flow.checks.survey import Survey, survey
from tesseract_flow.client import AbstractTesseract
from tesseract_flow.errors import NotDifferentiable, ProblemError, closest
from tesseract_flow.execute.planning import make_plan
from tesseract_flow.optimize import Constraint, Problem
from tesseract_flow.optimize.partition import leaf_names, path_name
from tesseract_flow.optimize.returned import other_names
from tesseract_flow.pictures import Picture
from tesseract_flow.pictures.making import aval_text, of_pipeline, of_plan
from tesseract_flow.pipeline import Pipeline
from tesseract_flow.schema import array_templates

# Kinds of findings that a fault in the wiring of a pipeline brings about.
_SAME = ("evaluate", "misfit", "no-such-output", "unchecked", "abstract-eval")
_WIDE = 1e4  # between a variable's scale and its size: beyond, a step of the driver is nothing, or far too much


def check(problem: Problem, *, patience: float = PATIENCE) -> Report:
    """Everything that can be seen to be wrong with a problem without a solve: all of it at once, each with its remedy.

    Looked at are: whether each component and each of its replicas can be asked, and is the same; shapes and dtypes
    along the pipeline; a differentiable path from every varying leaf to the objective, and to each constraint, and
    where it is cut; derivative endpoints that are missing, and what `derive=` would cost, or differences of several
    components together; 64-bit mode; bounds, scale
    and start; names of constraints; numbers that do not vary. Components are asked for descriptions and shapes alone:
    no request goes to `apply` or a derivative.

    Args:
        problem: what is to be optimised.
        patience: seconds that a component has for its description, all being asked at once. One that is served here
            has at least its `startup_timeout`.

    >>> report = tf.check(problem)
    >>> print(report)
    >>> report.ok, report.findings, report.to_json()
    """
    if not isinstance(problem, Problem):
        raise ProblemError(
            f"check takes a tesseract_flow.Problem, received {type(problem).__name__}.\n"
            "A Pipeline checks itself: pipeline.check(inputs). "
            "Make one with tf.Problem(design, evaluate), or load one: tesseract-flow check folder/problem.py:factory."
        )
    components = ask_all(handles_in(problem.evaluate, problem.design), patience)
    is_precise = is_x64_on()
    # Without 64 bits nothing of a component with such outputs can be traced, and one fault must not hide the next.
    is_hidden = not is_precise and any(_of_precision(components))
    with jax.enable_x64(True) if is_hidden else contextlib.nullcontext():
        return _report(problem, components, patience, is_precise=is_precise)


def _report(problem: Problem, components: Sequence[Component], patience: float, *, is_precise: bool) -> Report:
    found = survey(problem, components, patience)
    pipeline = getattr(problem.evaluate, "pipeline", None)
    wired: list[Finding] = []
    if isinstance(pipeline, Pipeline) and all(component.is_up for component in components):
        wired = list(_of_pipeline(pipeline, problem))
        if wired:  # the same once more, by what came of it
            found.findings = [finding for finding in found.findings if finding.kind not in _SAME]
            found.doubtful.clear()
    walk = Walk()
    flows = walk.run(found.closed)
    findings = [
        *(finding for component in found.components for finding in component.findings()),
        *(() if is_precise else _of_precision(found.components)),
        *wired,
        *found.findings,
        *_of_stand_ins(found, walk),
        *_of_constraint_names(problem, found),
        *_of_design(problem),
        *_of_paths(problem, found, walk, flows),
    ]
    gradient = _gradient(found, flows) if found.is_complete and not walk.refusals else None
    if isinstance(gradient, Finding):
        if not any(finding.kind == "no-gradient" for finding in findings):  # which has told it already
            findings.append(gradient)
        gradient = None
    asked = asked_by(gradient) if gradient is not None else [*asked_on_paths(flows), *_unshaped(found, walk)]
    missing = list(missing_endpoints(asked))
    hidden = set() if found.is_complete else looped_calls(found.closed, found.unshaped)
    cheaper = list(cheapest_differences(found.closed)) if found.is_complete else []
    seconds, unknown = time_of(gradient) if gradient is not None and not missing else (None, ())
    return Report(
        problem.name,
        in_order([*findings, *missing, *cheaper, *(() if wired else _of_hidden(found, hidden))]),
        tuple(
            summary(
                component,
                asked,
                is_complete=gradient is not None,
                is_hidden=component.is_up and component.asked in hidden,
            )
            for component in found.components
        ),
        seconds,
        unknown,
        _wiring(problem, found, pipeline) if found.is_complete and not wired else None,
    )


def _wiring(problem: Problem, found: Survey, pipeline: Any) -> Picture:
    """What feeds what: as it was described, or as it was traced."""
    if isinstance(pipeline, Pipeline):
        return of_pipeline(pipeline, problem.design)
    shapes = [aval_text(aval) for aval in found.closed.in_avals]
    return of_plan(make_plan(found.closed), leaf_names(problem.partition.varying), shapes)


def _of_pipeline(pipeline: Pipeline, problem: Problem) -> Iterator[Finding]:
    shapes = pipeline.shapes(problem.design)
    if shapes.faults:
        for fault in pipeline.tell(shapes.faults).faults:
            yield Finding("pipeline", fault.path, f"{fault.message}.", "Correct the wiring there.")


# --- components -------------------------------------------------------------------------------------------------------


def _of_precision(components: Sequence[Component]) -> Iterator[Finding]:
    for component in components:
        if not component.is_up:
            continue
        fields = array_templates(component.asked.schema.outputs)
        wide = [path for path, field in fields if field.dtype in ("float64", "complex128", "int64", "uint64")]
        if wide:
            yield Finding(
                "x64",
                component.label,
                f"its outputs {', '.join(map(repr, wide))} have 64 bits, and JAX's 64-bit mode is off: they would lose "
                "half of their digits, which is refused.",
                'Turn it on at the top of the program: jax.config.update("jax_enable_x64", True), or set '
                "JAX_ENABLE_X64=1.",
            )


def _of_stand_ins(found: Survey, walk: Walk) -> Iterator[Finding]:
    for number, findings in found.doubtful.items():
        if not walk.stand_ins.get(number, False):
            yield from findings
            continue
        for finding in findings:
            yield Finding(
                "unchecked",
                finding.where,
                f"it could not be checked with what it will be given, which comes from a component reported above "
                f"({finding.message.rstrip('.')}).",
                "Mend the other component and check again.",
                "note",
            )


def _unshaped(found: Survey, walk: Walk) -> Iterator[Asked]:
    for number, asked in found.unshaped.items():
        n_calls = walk.n_calls.get(number, 0)  # what nothing depends on is not called
        if n_calls:
            yield from (dataclasses.replace(one, n_calls=n_calls) for one in asked)


def _of_hidden(found: Survey, hidden: Collection[AbstractTesseract]) -> Iterator[Finding]:
    labels = [component.label for component in found.components if component.is_up and component.asked in hidden]
    if labels:
        yield Finding(
            "unchecked",
            ", ".join(labels),
            "what a gradient asks there is not known: the calls are made in a loop, or a fixed point, which could not "
            "be followed, as the shapes in it are a guess.",
            "Mend what is said of the component whose shapes are not known, and check again.",
            "note",
        )


# --- the problem itself -----------------------------------------------------------------------------------------------


def _of_constraint_names(problem: Problem, found: Survey) -> Iterator[Finding]:
    returned = {name: aval for name, aval in zip(found.names, found.closed.out_avals, strict=True) if name is not None}
    if None not in found.names:  # the evaluation did not get that far
        return
    demanded: Mapping[str, Constraint] = problem.constraints or {}
    for name, constraint in demanded.items():
        if name not in returned:
            came, remedy = other_names(name, returned)
            yield Finding(
                "constraint", f"constraint {name!r}", f"the problem demands it, but evaluate returns {came}", remedy
            )
            continue
        try:
            constraint.check_against(name, returned[name])  # type: ignore[arg-type]
        except ProblemError as error:
            yield Finding("constraint", f"constraint {name!r}", str(error))
        if constraint.linear:
            yield Finding(
                "constraint-linear",
                f"constraint {name!r}",
                "it is promised to be linear: drivers that have constraints for themselves, such as slsqp, ask for its "
                "derivatives once, and stop at a value that does not fit them.",
                severity="note",
            )
    # One that is written in another way is told of already.
    meant = {closest(name, returned) for name in demanded if name not in returned}
    for name in sorted(returned.keys() - demanded.keys() - meant):
        yield Finding(
            "constraint-unused",
            f"constraint {name!r}",
            "evaluate returns it, but the problem demands nothing of it.",
            f"Add constraints={{{name!r}: tf.Constraint(...)}}, or return it in aux.",
            "warning",
        )


def _of_design(problem: Problem) -> Iterator[Finding]:
    partition, box = problem.partition, problem.box
    # With a filter of the author's own what stays fixed is meant to.
    if problem.vary is eqx.is_inexact_array:
        for path, leaf in jtu.tree_flatten_with_path(problem.design)[0]:
            if isinstance(leaf, float):
                yield Finding(
                    "fixed-number",
                    f"design: {path_name(path)}",
                    f"the Python number {leaf!r} does not vary: only arrays do.",
                    f"To vary it, make it an array: jnp.asarray({leaf!r}). Otherwise it is fine as it is.",
                    "note",
                )
            elif eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.integer):
                yield Finding(
                    "fixed-number",
                    f"design: {path_name(path)}",
                    f"the array of dtype {leaf.dtype} does not vary: only floating-point arrays do.",
                    "To vary it, make it one: jnp.asarray(..., float). Otherwise it is fine as it is.",
                    "note",
                )
    paths = jtu.tree_flatten_with_path(partition.varying)[0]
    origin = jax.tree.map(jnp.zeros_like, partition.varying) if partition.origin is None else partition.origin
    sides = (jax.tree.leaves(tree) for tree in (box.lower, box.upper, partition.scale, origin))
    for (path, leaf), *arrays in zip(paths, *sides, strict=True):
        where = f"design: {path_name(path)}"
        yield from _of_leaf(where, *(np.asarray(array, np.float64) for array in (leaf, *arrays)))


def _of_leaf(
    where: str, x: np.ndarray, lower: np.ndarray, upper: np.ndarray, scale: np.ndarray, origin: np.ndarray
) -> Iterator[Finding]:
    outside = np.argwhere((x < lower) | (x > upper))
    if len(outside):
        at = tuple(int(i) for i in outside[0])
        index = f" at {list(at)}" if at else ""
        yield Finding(
            "start",
            where,
            f"the start is outside the bounds in {len(outside)} of {x.size} entries: {x[at]:.6g}{index} is not in "
            f"[{lower[at]:.6g}, {upper[at]:.6g}].",
            "It will be moved to the nearest point inside. Start there, or correct the bounds.",
            "warning",
        )
    if x.size and (lower == upper).all():
        yield Finding(
            "start",
            where,
            "its lower and upper bounds are equal, so it cannot move.",
            "Leave it out of vary, or widen the bounds.",
            "warning",
        )
    width = np.where(np.isfinite(upper - lower), upper - lower, 0.0)
    size = float(np.max(np.maximum(np.abs(x - origin), width), initial=0.0))
    typical = float(np.max(scale, initial=0.0))
    if size and not 1.0 / _WIDE <= typical / size <= _WIDE:
        yield Finding(
            "scale",
            where,
            f"its values are around {size:.1g}, and its scale is {typical:.1g}: steps of a driver, which are in units "
            f"of the scale, are {'far too long' if typical > size else 'next to nothing'}.",
            f"Problem(..., scale={{...: {size:.1g}}}) says how large its values are.",
            "warning",
        )


# --- derivatives ------------------------------------------------------------------------------------------------------


def _of_paths(problem: Problem, found: Survey, walk: Walk, flows: Sequence[Flow]) -> Iterator[Finding]:
    for cut in walk.refusals.values():
        yield Finding(
            "not-differentiable",
            cut.where or "evaluate",
            f"a derivative by the design would be asked through {cut.what}.",
            "Mark the field Differentiable[...] in the component's schema, or, if this part should not count, pass "
            "jax.lax.stop_gradient(value).",
        )
    by_name = dict(zip(found.names, flows, strict=True))
    if None not in by_name:
        return
    objective = by_name.pop(None)
    demanded = {name: by_name[name] for name in problem.constraints or {} if name in by_name}
    names = leaf_names(problem.partition.varying)
    yield from _of_outcomes(objective, demanded, names)
    for k, name in enumerate(names):
        if objective.live.get(k) is not None or not objective.live:
            continue  # what reaches nothing at all is told of the objective as a whole
        where = f"design: {name}"
        constrained = [c for c, flow in demanded.items() if k in flow.live]
        if k in objective.cuts:
            places = _places(objective.cuts[k])
            yield Finding(
                "no-gradient",
                where,
                f"the objective depends on it, but no derivative gets there: it is cut by {places}.",
                "Keep the path differentiable, or leave the leaf out of vary.",
                "warning" if constrained else "error",
            )
        elif not constrained:
            on = next((c for c, flow in demanded.items() if k in flow.cuts), None)
            through = f" (constraint {on!r} does, through {_places(demanded[on].cuts[k])})" if on is not None else ""
            yield Finding(
                "no-gradient",
                where,
                f"nothing depends on it{through}: it will stay where it starts.",
                "Use it in evaluate, or leave it out of vary.",
            )


def _of_outcomes(objective: Flow, demanded: Mapping[str, Flow], names: Sequence[str]) -> Iterator[Finding]:
    """Results to which no derivative gets from anywhere, or by an output that has none."""
    for what, flow in [("objective", objective), *((f"constraint {name!r}", flow) for name, flow in demanded.items())]:
        refused = {cut for cuts in flow.cuts.values() for cut in cuts if cut.is_refused}
        if flow.live:
            continue
        if not flow.depends_on:
            yield Finding(
                "no-gradient",
                what,
                "it does not depend on the design at all.",
                "Compute it from the design that evaluate is given, and not from a copy outside of it.",
            )
            continue
        leaves = ", ".join(repr(names[k]) for k in sorted(flow.depends_on))
        cuts = frozenset(cut for known in flow.cuts.values() for cut in known)
        ending = " Asking for it is an error." if refused else ""
        yield Finding(
            "no-gradient",
            what,
            f"it depends on {leaves}, but no derivative gets there: it is cut by {_places(cuts)}.{ending}",
            "Keep one path from the design differentiable.",
        )


def _places(cuts: frozenset[Cut]) -> str:
    shown = sorted({str(cut) for cut in cuts})
    return "; ".join(shown[:3]) + (f"; and {len(shown) - 3} more" if len(shown) > 3 else "")


def _gradient(found: Survey, flows: Sequence[Flow]) -> ClosedJaxpr | Finding | None:
    """The gradient of objective and constraints together, traced as the optimiser will."""
    if not flows or not any(flow.live for flow in flows):
        return None
    fn = jaxpr_as_fun(found.closed)

    def total(leaves: Sequence[Any]) -> tuple[Any, list[Any]]:
        values = fn(*leaves)
        floats = [value for value in values if jnp.issubdtype(value.dtype, jnp.floating)]
        dtype = np.result_type(*floats)
        return sum((jnp.sum(value).astype(dtype) for value in floats), jnp.zeros((), dtype)), values

    avals = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in found.closed.in_avals]  # type: ignore[attr-defined]
    try:
        return jax.make_jaxpr(jax.value_and_grad(total, has_aux=True))(avals)
    except Exception as error:
        first = str(error).partition("\nFor simplicity, JAX has removed")[0]
        kind = "not-differentiable" if isinstance(error, NotDifferentiable) else "gradient"
        return Finding(kind, "evaluate", f"it cannot be differentiated in reverse mode: {first}")
