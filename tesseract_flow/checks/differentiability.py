"""Whether a gradient gets from each varying leaf to each result of a traced function, and where it is cut.

A walk along the jaxpr of the evaluation. Each value carries, per leaf, the Tesseract calls on its differentiable paths
and the places where paths were cut. Whether an equation passes a derivative on is asked of JAX itself, by tracing the
equation's own JVP: no list of primitives would be complete. Nothing is evaluated.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, Literal, jaxpr_as_fun

from tesseract_flow.autodiff import Call, apply_p, bodies_of, calls_of
from tesseract_flow.checks.stand_ins import stand_in_p
from tesseract_flow.errors import NotDifferentiable, SecondDerivative

# Bodies that stand for themselves. Functions with a derivative of their own do not: their rule decides.
_INLINED = {"jit", "pjit", "closed_call", "core_call", "eval_jaxpr", "checkpoint", "remat", "remat2", "linear_map"}
_HERE = str(Path(__file__).resolve().parents[1])


@dataclasses.dataclass(frozen=True)
class Cut:
    """A place that hands on a value without its derivative.

    Attributes:
        what: in words, such as `a cast to int64`.
        where: file and line of the user's code, if it can be told.
        is_refused: a derivative through here is an error when it is asked for, and not zero.
    """

    what: str
    where: str = ""
    is_refused: bool = False

    def __str__(self) -> str:
        return f"{self.what} ({self.where})" if self.where else self.what


@dataclasses.dataclass(frozen=True)
class Use:
    """One Tesseract call on a differentiable path.

    Attributes:
        call: as it stands in the evaluation.
        inputs: those that carry a derivative.
        avals: shape and dtype of each input.
    """

    call: Call
    inputs: frozenset[int]
    avals: tuple[jax.ShapeDtypeStruct, ...]


@dataclasses.dataclass(frozen=True)
class Flow:
    """What is known of one value.

    Attributes:
        live: leaf → the calls on its differentiable paths to here.
        cuts: leaf → where other paths from it were cut.
        is_guessed: its shape comes from a guess, as a component could not be asked.
    """

    live: Mapping[int, frozenset[Use]] = dataclasses.field(default_factory=dict)
    cuts: Mapping[int, frozenset[Cut]] = dataclasses.field(default_factory=dict)
    is_guessed: bool = False

    @property
    def depends_on(self) -> set[int]:
        return {*self.live, *self.cuts}


NOTHING = Flow()


class Walk:
    """The flows of a jaxpr's values.

    Attributes:
        refusals: derivatives that would be an error wherever they lead, such as one by an input that has none.
        stand_ins: number → whether what it was given was a guess itself.
        n_calls: number → of how many calls it stands for the outputs, under vmap.
    """

    def __init__(self) -> None:
        self.refusals: dict[tuple[str, str], Cut] = {}
        self.stand_ins: dict[int, bool] = {}
        self.n_calls: dict[int, int] = {}

    def run(self, closed: ClosedJaxpr) -> list[Flow]:
        """The flow of each result, with the arguments as leaves."""
        start = [Flow({k: frozenset()}) for k in range(len(closed.jaxpr.invars))]
        return self._run(closed.jaxpr, start)

    def _run(self, jaxpr: Jaxpr, arguments: Sequence[Flow]) -> list[Flow]:
        env: dict[Any, Flow] = dict(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Flow:
            return NOTHING if isinstance(atom, Literal) else env.get(atom, NOTHING)

        for eqn in jaxpr.eqns:
            inputs = [read(atom) for atom in eqn.invars]
            env.update(zip(eqn.outvars, self._step(eqn, inputs), strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _step(self, eqn: Any, inputs: list[Flow]) -> list[Flow]:
        if eqn.primitive is apply_p:
            return self._apply(eqn, inputs)
        if eqn.primitive is stand_in_p:
            return self._stand_in(eqn, inputs)
        if eqn.primitive.name in _INLINED and (bodies := list(bodies_of(eqn.params))):
            return self._run(bodies[0], inputs)
        self._stand_ins_within(eqn, inputs)
        if not any(flow.depends_on or flow.is_guessed for flow in inputs):
            return [NOTHING] * len(eqn.outvars)
        passes, cut = self._passes(eqn, inputs)
        flows = [merged([(flow, passes[j][i]) for i, flow in enumerate(inputs)], cut) for j in range(len(eqn.outvars))]
        inner = _calls_within(eqn)
        return [_through(flow, inner) for flow in flows] if inner else flows

    def _apply(self, eqn: Any, inputs: list[Flow]) -> list[Flow]:
        call: Call = eqn.params["call"]
        where = location(eqn)
        name = call.tesseract.name
        arriving = []
        for i, flow in enumerate(inputs):
            is_open = call.input.differentiable[i]
            if flow.live and not is_open and jnp.issubdtype(eqn.invars[i].aval.dtype, jnp.inexact):
                path = call.input.paths[i]
                cut = Cut(f"input {path!r} of {name!r}, which is not differentiable", where, is_refused=True)
                self.refusals.setdefault((name, path), cut)
            arriving.append((flow, is_open))
        cut_in = Cut(f"an input of {name!r} that is not differentiable", where, is_refused=True)
        through = merged(arriving, cut_in)
        carrying = frozenset(i for i, (flow, is_open) in enumerate(arriving) if is_open and flow.live)
        use = Use(call, carrying, input_avals(eqn))
        outputs = []
        for j in range(len(eqn.outvars)):
            if not call.output.differentiable[j]:
                is_number = bool(jnp.issubdtype(eqn.outvars[j].aval.dtype, jnp.inexact))
                what = f"output {call.output.paths[j]!r} of {name!r}, which is not differentiable"
                outputs.append(merged([(through, False)], Cut(what, where, is_refused=is_number)))
            else:
                live = {leaf: uses | {use} for leaf, uses in through.live.items()}
                outputs.append(dataclasses.replace(through, live=live))
        return outputs

    def _stand_in(self, eqn: Any, inputs: list[Flow]) -> list[Flow]:
        through = merged([(flow, True) for flow in inputs], None)
        number = eqn.params["number"]
        self.stand_ins[number] = self.stand_ins.get(number, False) or through.is_guessed
        self.n_calls[number] = eqn.params["n_calls"]
        flow = dataclasses.replace(through, is_guessed=through.is_guessed or eqn.params["is_guess"])
        return [flow] * len(eqn.outvars)

    def _stand_ins_within(self, eqn: Any, inputs: Sequence[Flow]) -> None:
        """In bodies of loops the inputs of the whole loop count."""
        is_guessed = any(flow.is_guessed for flow in inputs)
        pending = list(bodies_of(eqn.params))
        while pending:
            for inner in pending.pop().eqns:
                pending += bodies_of(inner.params)
                if inner.primitive is stand_in_p:
                    number = inner.params["number"]
                    self.stand_ins[number] = self.stand_ins.get(number, False) or is_guessed
                    self.n_calls[number] = inner.params["n_calls"]

    def _passes(self, eqn: Any, inputs: Sequence[Flow]) -> tuple[list[list[bool]], Cut | None]:
        """Per result and operand, whether a derivative comes through; and what cuts the others."""
        where = location(eqn)
        cut = Cut(_in_words(eqn), where)
        if not any(flow.live for flow in inputs):
            return [[False] * len(inputs)] * len(eqn.outvars), cut
        try:
            return passes_derivative(eqn), cut
        except (NotDifferentiable, SecondDerivative) as error:
            first_line = str(error).partition("\n")[0]
            self.refusals.setdefault((eqn.primitive.name, first_line), Cut(first_line, where, is_refused=True))
            return [[True] * len(inputs)] * len(eqn.outvars), cut
        except Exception as error:
            first_line = str(error).partition("\n")[0]
            refused = Cut(f"{_in_words(eqn)}, which has no derivative: {first_line}", where, is_refused=True)
            self.refusals.setdefault((eqn.primitive.name, where), refused)
            return [[False] * len(inputs)] * len(eqn.outvars), refused


def _calls_within(eqn: Any) -> frozenset[Use]:
    """The calls in the body of a loop or a branch, each with all inputs that have derivatives."""
    found = []
    for inner in calls_of([eqn]):
        if inner.primitive is apply_p:
            call: Call = inner.params["call"]
            carrying = frozenset(i for i, is_open in enumerate(call.input.differentiable) if is_open)
            found.append(Use(call, carrying, input_avals(inner)))
    return frozenset(found)


def input_avals(eqn: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shape and dtype of each input of a call, of one element where it stands for a batch."""
    call: Call = eqn.params["call"]
    avals = [atom.aval for atom in eqn.invars[: call.input.n_slots]]
    shapes = [
        aval.shape[1:] if is_mapped else aval.shape for aval, is_mapped in zip(avals, call.mapped[0], strict=False)
    ]
    return tuple(jax.ShapeDtypeStruct(shape, aval.dtype) for shape, aval in zip(shapes, avals, strict=True))


def _through(flow: Flow, uses: frozenset[Use]) -> Flow:
    return dataclasses.replace(flow, live={leaf: known | uses for leaf, known in flow.live.items()})


def merged(arriving: Sequence[tuple[Flow, bool]], cut: Cut | None) -> Flow:
    """Of several values one, through some of which (True) derivatives pass."""
    live: dict[int, frozenset[Use]] = {}
    cuts: dict[int, frozenset[Cut]] = {}
    for flow, is_open in arriving:
        for leaf, known in flow.cuts.items():
            cuts[leaf] = cuts.get(leaf, frozenset()) | known
        for leaf, uses in flow.live.items():
            if is_open:
                live[leaf] = live.get(leaf, frozenset()) | uses
            elif cut is not None:
                cuts[leaf] = cuts.get(leaf, frozenset()) | {cut}
    return Flow(live, cuts, any(flow.is_guessed for flow, _ in arriving))


def passes_derivative(eqn: Any) -> list[list[bool]]:
    """Per result and operand of an equation, whether the one's tangent depends on the other's.

    Found by tracing the equation's JVP, in which symbolic zeros have become constants.
    """
    try:
        key = (eqn.primitive, tuple(sorted(eqn.params.items())), tuple(str(atom.aval) for atom in eqn.invars))
        literals = tuple(str(atom) if isinstance(atom, Literal) else "" for atom in eqn.invars)
        hash((key, literals))
    except TypeError:
        return _passes_derivative(eqn)
    known = _known.get((key, literals))
    if known is None:
        known = _passes_derivative(eqn)
        if len(_known) < _N_KNOWN and not any(True for _ in calls_of([eqn])):  # handles are not kept alive
            _known[key, literals] = known
    return known


_known: dict[Any, list[list[bool]]] = {}
_N_KNOWN = 4096


def _passes_derivative(eqn: Any) -> list[list[bool]]:
    operands = list(dict.fromkeys(atom for atom in eqn.invars if not isinstance(atom, Literal)))
    info = DebugInfo("check", "tesseract_flow", ("x",) * len(operands), ("y",) * len(eqn.outvars))
    alone = Jaxpr((), operands, eqn.outvars, [eqn], eqn.effects, debug_info=info)
    fn = jaxpr_as_fun(ClosedJaxpr(alone, ()))
    varying = [k for k, atom in enumerate(operands) if jnp.issubdtype(_aval(atom).dtype, jnp.inexact)]
    results = [j for j, var in enumerate(eqn.outvars) if jnp.issubdtype(_aval(var).dtype, jnp.inexact)]

    def tangents(values: Sequence[Any], directions: Sequence[Any]) -> list[Any]:
        def of_varying(*xs: Any) -> list[Any]:
            full = list(values)
            for k, x in zip(varying, xs, strict=True):
                full[k] = x
            outputs = fn(*full)
            return [outputs[j] for j in results]

        return jax.jvp(of_varying, tuple(values[k] for k in varying), tuple(directions))[1]

    avals = [jax.ShapeDtypeStruct(_aval(atom).shape, _aval(atom).dtype) for atom in operands]
    if not varying or not results:
        return [[False] * len(eqn.invars) for _ in eqn.outvars]
    closed = jax.make_jaxpr(tangents)(avals, [avals[k] for k in varying])
    reached = _reached(closed.jaxpr, closed.jaxpr.invars[len(operands) :])
    passes = [[False] * len(eqn.invars) for _ in eqn.outvars]
    for j, found in zip(results, reached, strict=True):
        open_operands = {operands[varying[k]] for k in found}
        passes[j] = [not isinstance(atom, Literal) and atom in open_operands for atom in eqn.invars]
    return passes


def _aval(atom: Any) -> Any:
    return atom.aval


def _reached(jaxpr: Jaxpr, sources: Sequence[Any]) -> list[set[int]]:
    """Per result, which of the sources it depends on."""
    env: dict[Any, set[int]] = {var: {k} for k, var in enumerate(sources)}

    def read(atom: Any) -> set[int]:
        return set() if isinstance(atom, Literal) else env.get(atom, set())

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        bodies = list(bodies_of(eqn.params))
        if eqn.primitive.name in _INLINED and bodies:
            inner = bodies[0]
            outputs = [set().union(*(inputs[i] for i in found), set()) for found in _reached(inner, inner.invars)]
        else:
            outputs = [set().union(*inputs)] * len(eqn.outvars)
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


# --- words ------------------------------------------------------------------------------------------------------------

_WORDS = {
    "stop_gradient": "jax.lax.stop_gradient",
    "floor": "rounding down (floor)",
    "ceil": "rounding up (ceil)",
    "round": "rounding",
    "sign": "the sign of a number",
    "argmax": "the position of a largest entry (argmax)",
    "argmin": "the position of a smallest entry (argmin)",
    "pure_callback": "a callback to Python (pure_callback)",
    "io_callback": "a callback to Python (io_callback)",
    **dict.fromkeys(("gt", "lt", "ge", "le", "eq", "ne"), "a comparison"),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"), "a derivative rule of its own"),
}


def _in_words(eqn: Any) -> str:
    name = eqn.primitive.name
    if name == "convert_element_type":
        return f"a cast to {eqn.params['new_dtype']}"
    return _WORDS.get(name, f"the operation {name!r}")


@functools.cache
def library_folders() -> tuple[str, ...]:
    import equinox
    import optax

    return (_HERE, *(str(Path(module.__file__).resolve().parent) for module in (jax, equinox, optax)))  # type: ignore[arg-type]


def location(eqn: Any) -> str:
    """Where the user's code made an equation: `problem.py:23, in evaluate`; empty if that cannot be told."""
    traceback = getattr(getattr(eqn, "source_info", None), "traceback", None)
    try:
        frames = list(traceback.frames) if traceback is not None else []
    except Exception:  # how JAX keeps it is its own affair
        return ""
    for frame in frames:
        if not frame.file_name.startswith((*library_folders(), "<")):
            return f"{Path(frame.file_name).name}:{frame.line_num}, in {frame.function_name}"
    return ""


def uses_of(flows: Sequence[Flow]) -> Iterator[Use]:
    """Each Tesseract call on a differentiable path to one of these values, once."""
    seen: dict[Use, None] = {}
    for flow in flows:
        for uses in flow.live.values():
            seen.update(dict.fromkeys(sorted(uses, key=lambda use: use.call.tesseract.name)))
    yield from seen
