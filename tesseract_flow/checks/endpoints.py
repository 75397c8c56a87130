"""Which endpoints a gradient asks for, those that are missing, and what it costs in requests and seconds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr

from tesseract_flow.autodiff import ENDPOINTS, HOST, Call, bodies_of
from tesseract_flow.checks.asking import Component
from tesseract_flow.checks.differentiability import Flow, input_avals, uses_of
from tesseract_flow.checks.findings import ComponentSummary, Counts, Finding
from tesseract_flow.checks.stand_ins import stand_in_p
from tesseract_flow.client import AbstractTesseract, DerivedTesseract
from tesseract_flow.client.deriving.routes import EXACT, PULLBACK, price, sources
from tesseract_flow.client.handles.wrapper import AbstractWrapper
from tesseract_flow.derivatives import Differences
from tesseract_flow.execute import make_plan
from tesseract_flow.execute.durations import durations
from tesseract_flow.execute.steps import Flattener, without_unused


@dataclasses.dataclass(frozen=True)
class Asked:
    """Calls that a gradient makes.

    Attributes:
        endpoint: what they ask for, and whom.
        n_calls: how many there are.
        x, y: inputs and outputs, by path, between which a derivative is taken; only their sizes and dtypes are used.
        is_certain: whether they were seen in a trace; else they are what there is at most.
        is_looped: whether a run makes them again and again, and only it knows how often. Here they count once.
    """

    endpoint: str
    handle: AbstractTesseract
    n_calls: int
    x: Mapping[str, Any]
    y: Mapping[str, Any]
    is_certain: bool = True
    is_looped: bool = False

    @classmethod
    def of(cls, endpoint: str, call: Call, avals: Sequence[Any], times: int = 1, *, is_looped: bool = False) -> Asked:
        """A call as it was traced; its `inputs` and `outputs` are those between which a derivative is taken."""
        x = {call.input.paths[i]: avals[i] for i in call.inputs}
        y = {call.output.paths[j]: call.out_avals[j] for j in call.outputs}
        n_calls = times * (call.batch.size if call.batch is not None else 1)
        return cls(endpoint, call.tesseract, n_calls, x, y, is_looped=is_looped)

    @property
    def n_requests(self) -> int:
        """What it costs: more than one request per call where the endpoint is derived."""
        handle = self.handle
        if not isinstance(handle, DerivedTesseract) or self.endpoint not in EXACT:
            return self.n_calls
        believed = handle.settings.believed(handle.tesseract.schema.endpoints)
        if self.endpoint in believed:
            return self.n_calls
        how = handle.settings.differences
        prices = [price(self.endpoint, source, self.x, self.y, how) for source in sources(self.endpoint, believed)]
        return self.n_calls * min(prices)


def asked_of_unshaped(handle: AbstractTesseract, x: Mapping[str, Any]) -> list[Asked]:
    """What is asked at most, by the inputs alone, of a component whose outputs have no known shapes.

    The price of a pullback does not depend on outputs.
    """
    asked = [Asked("apply", handle, 1, {}, {}, is_certain=False)]
    return [*asked, Asked(PULLBACK, handle, 1, x, {}, is_certain=False)] if x else asked


def asked_by(gradient: ClosedJaxpr) -> list[Asked]:
    """The calls that a traced gradient makes: equal ones once, unused ones not at all."""
    flattener = Flattener()
    arguments = [flattener.new_slot(var.aval) for var in gradient.jaxpr.invars]
    results = flattener.flatten(gradient.jaxpr, gradient.consts, arguments)
    steps = without_unused(flattener.steps, results)
    return [
        Asked.of(ENDPOINTS[eqn.primitive], eqn.params["call"], input_avals(eqn), times, is_looped=is_looped)
        for eqn, times, is_looped in _calls([step.eqn for step in steps])
    ]


def _calls(eqns: Iterable[Any], times: int = 1, is_looped: bool = False) -> Iterator[tuple[Any, int, bool]]:
    """The calls among these and in their bodies; how often each is made, or once where only a run knows."""
    for eqn in eqns:
        if eqn.primitive in HOST:
            yield eqn, times, is_looped
        n = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for body in bodies_of(eqn.params):
            yield from _calls(body.eqns, times * n, is_looped or eqn.primitive.name == "while")


def looped_calls(evaluation: ClosedJaxpr, unshaped: Mapping[int, Sequence[Asked]]) -> set[AbstractTesseract]:
    """The components that are called in loops of an evaluation.

    Args:
        unshaped: number of a stand-in → what is asked of the component that it stands for.
    """
    found: set[AbstractTesseract] = set()
    pending = [(evaluation.jaxpr, False)]
    while pending:
        jaxpr, is_looped = pending.pop()
        for eqn in jaxpr.eqns:
            if is_looped and eqn.primitive in HOST:
                found.add(eqn.params["call"].tesseract)
            elif is_looped and eqn.primitive is stand_in_p:
                found |= {one.handle for one in unshaped.get(eqn.params["number"], ())}
            is_loop = eqn.primitive.name in ("while", "scan")
            pending += [(body, is_looped or is_loop) for body in bodies_of(eqn.params)]
    return found


def asked_on_paths(flows: Sequence[Flow]) -> list[Asked]:
    """The same as far as it can be told where an evaluation could not be followed whole."""
    asked = []
    for use in uses_of(flows):
        outputs = [j for j, is_open in enumerate(use.call.output.differentiable) if is_open]
        linear = use.call.linear(sorted(use.inputs), outputs, (True,) * len(outputs))
        asked += [Asked.of("apply", use.call, use.avals), Asked.of(PULLBACK, linear, use.avals)]
    return asked


def missing_endpoints(asked: Sequence[Asked]) -> Iterator[Finding]:
    """What the components lack, with the price of making it here."""
    seen: set[tuple[AbstractTesseract, str]] = set()
    for one in asked:
        handle = one.handle
        if one.endpoint in handle.schema.endpoints or (handle, one.endpoint) in seen:
            continue
        seen.add((handle, one.endpoint))
        have = ", ".join(sorted(handle.schema.endpoints - {"health"}))
        remedies = [*_ways_to_derive(one), f"implement {one.endpoint!r} in its tesseract_api.py"]
        yield Finding(
            "no-endpoint",
            handle.name,
            f"the gradient {'asks' if one.is_certain else 'may ask'} for {one.endpoint!r}, which it does not have; it "
            f"has: {have}.",
            "; or: ".join(remedies) + ".",
            "error" if one.is_certain else "warning",
        )


def _ways_to_derive(one: Asked) -> list[str]:
    have = one.handle.schema.endpoints
    if one.endpoint not in EXACT or "apply" not in have:
        return []
    source = sources(one.endpoint, have)[0]
    if source != "apply":
        cost = _requests(one.n_calls * price(one.endpoint, source, one.x, one.y, None))
        return [f"open_tesseract(..., derive=True) makes it from {source!r}, at {cost} per gradient"]
    costs = [
        _requests(one.n_calls * price(one.endpoint, "apply", one.x, one.y, Differences(method)))
        for method in ("central", "forward")
    ]
    return [
        f"open_tesseract(..., derive='central') makes it by differences of 'apply', at {costs[0]} per gradient "
        f"(derive='forward': {costs[1]}, and less exact)"
    ]


def _requests(n: int) -> str:
    return f"{n} request{'' if n == 1 else 's'}"


def summary(
    component: Component, asked: Sequence[Asked], *, is_complete: bool, is_hidden: bool = False
) -> ComponentSummary:
    """What a component is, and what one gradient asks of it.

    Args:
        is_complete: the gradient could be traced.
        is_hidden: it is called in a loop that could not be followed, so that nothing is known of it.
    """
    if not component.is_up:
        return ComponentSummary(component.label, "", repr(component.handle), ())
    handle = component.asked
    own = [one for one in asked if one.handle == handle and not is_hidden]
    calls: Counter[str] = Counter()
    for one in own:
        calls[one.endpoint] += one.n_calls
    known = {endpoint: durations.of((hash(handle), endpoint)) for endpoint in calls}
    return ComponentSummary(
        component.label,
        handle.schema.version,
        repr(component.handle),
        tuple(sorted(handle.schema.endpoints - {"health"})),
        dict(calls),
        sum(one.n_requests for one in own) if own or is_complete else None,
        {endpoint: seconds for endpoint, seconds in known.items() if seconds is not None},
        _counts(own) if own or is_complete else "at most",
        *_derived(handle),
    )


def _counts(own: Sequence[Asked]) -> Counts:
    if any(one.is_looped for one in own):
        return "once per loop"
    return "exact" if all(one.is_certain for one in own) else "at most"


def _derived(handle: AbstractTesseract) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Endpoints that the component itself does not have, or is not believed in; and those of them that are made of
    differences."""
    while isinstance(handle, AbstractWrapper):
        if isinstance(handle, DerivedTesseract):
            own = handle.settings.believed(handle.tesseract.schema.endpoints)
            derived = tuple(sorted(handle.schema.endpoints - own - {"health"}))
            return derived, tuple(e for e in derived if e in EXACT and sources(e, own) == ["apply"])
        handle = handle.tesseract
    return (), ()


def time_of(gradient: ClosedJaxpr) -> tuple[float | None, tuple[str, ...]]:
    """Seconds that a gradient is expected to take, by how long calls took lately; and the calls that are not known."""
    plan = make_plan(gradient)
    unknown = tuple(dict.fromkeys(node.label for node in plan.nodes if node.seconds is None))
    path = plan.critical_path
    return (path[0] if path is not None and plan.nodes else None), unknown
