"""`picture`: the graph of a pipeline, by its description; or of any function, by its plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tesseract_flow.autodiff.plain import is_plain
from tesseract_flow.client import AbstractTesseract, CachedTesseract, Endpoint
from tesseract_flow.errors import OptionError, TesseractFlowError
from tesseract_flow.execute import Concurrent, concurrent
from tesseract_flow.execute.durations import durations
from tesseract_flow.execute.plan import Loop, Plan, described, pretty
from tesseract_flow.execute.units import HostStep, Node, Segment
from tesseract_flow.pictures.graph import Arrow, Box, Picture
from tesseract_flow.pipeline import Pipeline
from tesseract_flow.pipeline.wiring import Source, Wire
from tesseract_flow.schema import ArrayField, field_at

_ENDPOINTS: tuple[tuple[Endpoint, str], ...] = (("apply", ""), ("vector_jacobian_product", "pullback "))


def picture(what: Pipeline | Callable[..., Any], *inputs: Any) -> Picture:
    """What feeds what, with shapes, units, where derivatives go, how long calls took lately, and kept answers.

    Nothing is solved; components are asked for descriptions and shapes. `print` it for an N2 matrix, or take its
    `svg()`, `mermaid()`, `save("wiring.svg")`.

    Args:
        what: a pipeline, or a function that calls Tesseracts (`jax.grad` of one shows pullbacks too).
        inputs: what it is called with. A pipeline can do without, or with the shapes in its description.

    Raises:
        OptionError: it is neither.
    """
    if isinstance(what, Pipeline):
        return of_pipeline(what, inputs[0] if inputs else None)
    if not callable(what):
        raise OptionError(f"picture takes a Pipeline or a function, received {type(what).__name__}.")
    plan = (what if isinstance(what, Concurrent) else concurrent(what)).plan(*inputs)
    leaves = jax.tree_util.tree_flatten_with_path(inputs if len(inputs) != 1 else inputs[0])[0]
    arrays = [(path, leaf) for path, leaf in leaves if isinstance(leaf, jax.Array) or hasattr(leaf, "dtype")]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") or "input" for path, _ in arrays]
    return of_plan(plan, names, [aval_text(leaf) for _, leaf in arrays])


# --- a pipeline -------------------------------------------------------------------------------------------------------


def of_pipeline(pipeline: Pipeline, inputs: Any = None) -> Picture:
    """By its description; what is not known is left out."""
    wiring = pipeline.wiring
    shapes = pipeline.shapes(inputs)
    boxes = [Box(name, "input", _input_notes(pipeline, name, inputs)) for name in pipeline.inputs]
    work, groups = pipeline.tesseracts, wiring.group_of
    ordered = [node for unit in wiring.order for node in pipeline.members(unit)]
    for name in [*ordered, *sorted(wiring.idle)]:
        handle = work.get(name)
        notes = ("not needed by any output",) if name in wiring.idle else ()
        kind = "function" if handle is None else "tesseract"
        boxes.append(Box(name, kind, (*notes, *handle_notes(handle)), groups.get(name)))
    outputs = {name: f"{name} (output)" if name in {b.name for b in boxes} else name for name in pipeline.outputs}
    boxes += [Box(name, "output") for name in outputs.values()]
    arrows: dict[tuple[str, str], list[tuple[str, bool | None]]] = {}
    for wire in wiring.wires:
        target = wire.node or outputs[str(wire.keys[0])]
        for source in wire.sources.values():
            label = " ".join(filter(None, [source.path, _shape(shapes.sources.get(source)), wiring.unit_at(source)]))
            known = _is_differentiable(source, wire, work, shapes.sources.get(source))
            arrows.setdefault((source.owner, target), []).append((label, known))
    return Picture(
        ", ".join(
            f"{n} {noun}{'' if n == 1 else 's'}"
            for n, noun in ((len(ordered), "node"), (len(pipeline.inputs), "input"), (len(outputs), "output"))
        ),
        tuple(boxes),
        tuple(
            Arrow(a, b, tuple(dict.fromkeys(label for label, _ in found if label)), _all_known([k for _, k in found]))
            for (a, b), found in arrows.items()
        ),
    )


def _input_notes(pipeline: Pipeline, name: str, inputs: Any) -> tuple[str, ...]:
    about = pipeline.description.inputs[name]
    shape = f"{about.dtype}{list(about.shape)}" if about.shape is not None else ""
    if inputs is not None and name in inputs:
        shape = ", ".join(aval_text(leaf) for leaf in jax.tree.leaves(inputs[name]))
    text = " ".join(filter(None, [shape, about.units]))
    return (text,) if text else ()


def _is_differentiable(source: Source, wire: Wire, work: Any, aval: Any) -> bool | None:
    """Whether derivatives go along a wire: by the schemas at both ends, and the dtype."""
    leaves = [leaf for leaf in jax.tree.leaves(aval) if isinstance(leaf, jax.ShapeDtypeStruct)]
    if leaves and not all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves):
        return False
    known: list[bool | None] = []
    for owner, keys, side in ((source.owner, source.keys, "outputs"), (wire.node, wire.keys, "inputs")):
        handle = None if owner is None else work.get(owner)
        if handle is None or (side == "outputs" and source.is_input):
            continue
        try:
            field = field_at(getattr(handle.schema, side), keys)
        except TesseractFlowError:
            known.append(None)
            continue
        known.append(field.differentiable if isinstance(field, ArrayField) else None if keys == () else False)
    return _all_known(known)


def _all_known(known: list[bool | None]) -> bool | None:
    return False if False in known else None if None in known else True


# --- a plan -----------------------------------------------------------------------------------------------------------


def of_plan(plan: Plan, names: list[str], shapes: list[str]) -> Picture:
    """Of any function: its calls, and what reaches them through the JAX between."""
    boxes: list[Box] = []
    origins: dict[int, dict[tuple[str, str], None]] = {}  # slot → boxes and labels behind it
    taken: dict[str, int] = {}

    def box(name: str, kind: Any, notes: tuple[str, ...] = ()) -> str:
        taken[name] = taken.get(name, 0) + 1
        unique = name if taken[name] == 1 else f"{name} ({taken[name]})"
        boxes.append(Box(unique, kind, notes))
        return unique

    for slot, name, shape in zip(plan.arguments, names, shapes, strict=True):
        origins[slot] = {(box(name, "input", (shape,)), ""): None}
    arrows: dict[tuple[str, str], dict[str, None]] = {}

    def feed(refs: Any, target: str) -> None:
        for ref in refs:
            for source, label in origins.get(ref, {}) if isinstance(ref, int) else {}:
                arrows.setdefault((source, target), {})[label] = None

    for unit in plan.units:
        if isinstance(unit, Segment | HostStep):
            for slot, needs in zip(unit.outputs, unit.needs, strict=True):
                origins[slot] = {origin: None for need in sorted(needs) for origin in origins.get(need, {})}
            continue
        if isinstance(unit, Node):
            notes = () if unit.seconds is None else (pretty(unit.seconds),)
            name = box(unit.label, "tesseract", (*notes, *kept_notes(unit.call.tesseract)))
        else:
            name = box("loop", "loop", (described(unit),))
        feed(unit.operands, name)
        for k, slot in enumerate(unit.outputs):
            origins[slot] = {(name, _output_label(unit, k)): None}
    end = box("outputs", "output")
    feed(plan.results, end)
    used = {name for pair in arrows for name in pair}
    return Picture(
        str(plan).partition("\n")[0],
        tuple(one for one in boxes if one.kind != "input" or one.name in used),
        tuple(Arrow(a, b, tuple(filter(None, labels))) for (a, b), labels in arrows.items()),
    )


def _output_label(unit: Node | Loop, k: int) -> str:
    if isinstance(unit, Loop):
        return ""
    call = unit.call
    if unit.endpoint == "apply":
        return f"{call.output.paths[k]} {aval_text(call.out_avals[k])}"
    if unit.endpoint == "vector_jacobian_product":
        return f"by {call.input.paths[call.inputs[k]]}"
    return call.output.paths[call.outputs[k]] if unit.endpoint == "jacobian_vector_product" else ""


# --- words ------------------------------------------------------------------------------------------------------------


def aval_text(x: Any) -> str:
    """`float64[3, 2]`; `text` for that and for whatever else JAX only carries along."""
    if hasattr(x, "dtype") and is_plain(x):
        return "text"
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else type(x).__name__


def _shape(aval: Any) -> str:
    leaves = [leaf for leaf in jax.tree.leaves(aval) if isinstance(leaf, jax.ShapeDtypeStruct)]
    return ", ".join(map(aval_text, leaves[:3])) + (", ..." if len(leaves) > 3 else "")


def handle_notes(handle: AbstractTesseract | None) -> tuple[str, ...]:
    """How long its calls took lately, and what its cache kept."""
    if handle is None:
        return ()
    found = [(what, durations.of((hash(handle), endpoint))) for endpoint, what in _ENDPOINTS]
    times = ", ".join(f"{what}{pretty(seconds)}" for what, seconds in found if seconds is not None)
    return (*([times] if times else []), *kept_notes(handle))


def kept_notes(handle: AbstractTesseract) -> tuple[str, ...]:
    if not isinstance(handle, CachedTesseract):
        inner = getattr(handle, "tesseract", None)
        return kept_notes(inner) if isinstance(inner, AbstractTesseract) else ()
    stats = handle.cache.stats()
    return (f"cache: {stats['hits']} hits, {stats['misses']} misses",)
