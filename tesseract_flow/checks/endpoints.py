"""Which endpoints a gradient asks for, those that are missing, and what it costs in requests and seconds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr

from tesseract_flow.autodiff import ENDPOINTS, Call
from tesseract_flow.checks.asking import Component
from tesseract_flow.checks.differentiability import Flow, input_avals, uses_of
from tesseract_flow.checks.findings import ComponentSummary, Finding
from tesseract_flow.client import AbstractTesseract, DerivedTesseract
from tesseract_flow.client.deriving.routes import EXACT, price, sources
from tesseract_flow.derivatives import Differences
from tesseract_flow.execute import make_plan
from tesseract_flow.execute.durations import durations
from tesseract_flow.execute.steps import Flattener, calls_of, without_unused


@dataclasses.dataclass(frozen=True)
class Asked:
    """One call that a gradient makes.

    Attributes:
        endpoint: what it asks for.
        call: whom and how; `inputs` and `outputs` are those between which a derivative is taken.
        avals: shape and dtype of each input.
    """

    endpoint: str
    call: Call
    avals: tuple[jax.ShapeDtypeStruct, ...]

    @property
    def n_calls(self) -> int:
        return self.call.batch.size if self.call.batch is not None else 1

    @property
    def between(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Inputs and outputs of the derivative, by path."""
        call = self.call
        x = {call.input.paths[i]: self.avals[i] for i in call.inputs}
        return x, {call.output.paths[j]: call.out_avals[j] for j in call.outputs}

    @property
    def n_requests(self) -> int:
        """What it costs: more than one request per call where the endpoint is derived."""
        handle = self.call.tesseract
        if not isinstance(handle, DerivedTesseract) or self.endpoint not in EXACT:
            return self.n_calls
        believed = handle.settings.believed(handle.tesseract.schema.endpoints)
        if self.endpoint in believed:
            return self.n_calls
        how = handle.settings.differences
        prices = [price(self.endpoint, source, *self.between, how) for source in sources(self.endpoint, believed)]
        return self.n_calls * min(prices)


def asked_by(gradient: ClosedJaxpr) -> list[Asked]:
    """The calls that a traced gradient makes: equal ones once, unused ones not at all."""
    flattener = Flattener()
    arguments = [flattener.new_slot(var.aval) for var in gradient.jaxpr.invars]
    results = flattener.flatten(gradient.jaxpr, gradient.consts, arguments)
    steps = without_unused(flattener.steps, results)
    eqns = calls_of([step.eqn for step in steps])
    return [Asked(ENDPOINTS[eqn.primitive], eqn.params["call"], input_avals(eqn)) for eqn in eqns]


def asked_on_paths(flows: Sequence[Flow]) -> list[Asked]:
    """The same as far as it can be told where an evaluation could not be followed whole."""
    asked = []
    for use in uses_of(flows):
        outputs = [j for j, is_open in enumerate(use.call.output.differentiable) if is_open]
        linear = use.call.linear(sorted(use.inputs), outputs, (True,) * len(outputs))
        asked += [Asked("apply", use.call, use.avals), Asked("vector_jacobian_product", linear, use.avals)]
    return asked


def missing_endpoints(asked: Sequence[Asked]) -> Iterator[Finding]:
    """What the components lack, with the price of making it here."""
    seen: set[tuple[AbstractTesseract, str]] = set()
    for one in asked:
        handle = one.call.tesseract
        if one.endpoint in handle.schema.endpoints or (handle, one.endpoint) in seen:
            continue
        seen.add((handle, one.endpoint))
        have = ", ".join(sorted(handle.schema.endpoints - {"health"}))
        remedies = [*_ways_to_derive(one), f"implement {one.endpoint!r} in its tesseract_api.py"]
        yield Finding(
            "no-endpoint",
            handle.name,
            f"the gradient asks for {one.endpoint!r}, which it does not have; it has: {have}.",
            "; or: ".join(remedies) + ".",
        )


def _ways_to_derive(one: Asked) -> list[str]:
    have = one.call.tesseract.schema.endpoints
    if one.endpoint not in EXACT or "apply" not in have:
        return []
    source = sources(one.endpoint, have)[0]
    if source != "apply":
        cost = _requests(one.n_calls * price(one.endpoint, source, *one.between, None))
        return [f"open_tesseract(..., derive=True) makes it from {source!r}, at {cost} per gradient"]
    costs = [
        _requests(one.n_calls * price(one.endpoint, "apply", *one.between, Differences(method)))
        for method in ("central", "forward")
    ]
    return [
        f"open_tesseract(..., derive='central') makes it by differences of 'apply', at {costs[0]} per gradient "
        f"(derive='forward': {costs[1]}, and less exact)"
    ]


def _requests(n: int) -> str:
    return f"{n} request{'' if n == 1 else 's'}"


def summary(component: Component, asked: Sequence[Asked]) -> ComponentSummary:
    """What a component is, and what one gradient asks of it."""
    if not component.is_up:
        return ComponentSummary(component.label, "", repr(component.handle), ())
    handle = component.asked
    own = [one for one in asked if one.call.tesseract == handle]
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
        sum(one.n_requests for one in own) if own else None,
        {endpoint: seconds for endpoint, seconds in known.items() if seconds is not None},
    )


def time_of(gradient: ClosedJaxpr) -> tuple[float | None, tuple[str, ...]]:
    """Seconds that a gradient is expected to take, by how long calls took lately; and the calls that are not known."""
    plan = make_plan(gradient)
    unknown = tuple(dict.fromkeys(node.label for node in plan.nodes if node.seconds is None))
    path = plan.critical_path
    return (path[0] if path is not None and plan.nodes else None), unknown
