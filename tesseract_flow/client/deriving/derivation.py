"""One call to an endpoint that the component does not have: checks, route, budget, probes, answer.

Not here: which route and at what price (`routes`), the mathematics (`tesseract_flow.derivatives`), threads
(`at_once`), what is remembered from one call to the next (`memory`). The one idea: nothing is sent before the price is
known, allowed and told.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any, ClassVar

import numpy as np

from tesseract_flow.client.at_once import AtOnce
from tesseract_flow.client.base import AbstractTesseract, Endpoint, Tree
from tesseract_flow.client.deriving.derive import Derive
from tesseract_flow.client.deriving.memory import Memory, described, described_inputs, memory_of, structure_of
from tesseract_flow.client.deriving.routes import JACOBIAN, PULLBACK, PUSHFORWARD, description, price, sources
from tesseract_flow.derivatives import (
    Differences,
    estimate_noise,
    get_at,
    jacobian_from_apply,
    jacobian_from_jvp,
    jacobian_from_vjp,
    jvp_from_apply,
    jvp_from_jacobian,
    jvp_from_vjp,
    set_at,
    vjp_from_apply,
    vjp_from_jacobian,
    vjp_from_jvp,
)
from tesseract_flow.derivatives.derive import zeros_of_outputs
from tesseract_flow.errors import Fault, InvalidAnswer, InvalidInput, OverBudget, SchemaError, did_you_mean
from tesseract_flow.schema import ArrayField, array_leaves, parse_path, template_of

_log = logging.getLogger("tesseract_flow")

_N_NOISE_POINTS = 8  # requests of one attempt to measure the noise
_N_NOISE_ATTEMPTS = 6

_FROM_APPLY = {JACOBIAN: jacobian_from_apply, PUSHFORWARD: jvp_from_apply, PULLBACK: vjp_from_apply}
_FROM_JACOBIAN = {PUSHFORWARD: jvp_from_jacobian, PULLBACK: vjp_from_jacobian}
_FROM_PUSHFORWARD = {JACOBIAN: jacobian_from_jvp, PULLBACK: vjp_from_jvp}
_FROM_PULLBACK = {JACOBIAN: jacobian_from_vjp, PUSHFORWARD: jvp_from_vjp}


class Derivation:
    """One request to an endpoint that the component does not have.

    Attributes:
        handle: what was asked, `component` what answers.
        inputs: with arrays of the schema's dtypes at the paths of `x`: a step in another precision would be rounded.
        x: the inputs to differentiate, by path.
        vector: tangents or cotangents, by path; empty for a Jacobian.
    """

    def __init__(
        self,
        handle: AbstractTesseract,
        component: AbstractTesseract,
        settings: Derive,
        endpoint: Endpoint,
        payload: Mapping[str, Any],
        run_id: str | None,
    ):
        prefix = {JACOBIAN: "jac", PUSHFORWARD: "jvp", PULLBACK: "vjp"}[endpoint]
        self.handle = handle
        self.component = component
        self.settings = settings
        self.endpoint = endpoint
        self.run_id = run_id
        self.outputs = tuple(payload[f"{prefix}_outputs"])
        self.x, self.dtypes = self._checked(payload["inputs"], payload[f"{prefix}_inputs"])
        self.inputs = set_at(payload["inputs"], self.x)
        self.vector = {
            path: np.asarray(value)
            for path, value in payload.get(f"{'co' if endpoint == PULLBACK else ''}tangent_vector", {}).items()
        }
        # Shapes that answers must have, by path; outputs of unknown shape are entered by the first answer.
        self.shapes = {("input", path): leaf.shape for path, leaf in self.x.items()}
        side, paths = ("output", self.outputs) if endpoint == PULLBACK else ("input", tuple(self.x))
        if endpoint != JACOBIAN:
            self._check_vector(side, paths)

    def answer(self) -> Tree:
        source, cost = self._cheapest()
        is_measured = source != "apply" or not self.settings.measure_noise or self._noise_key in self._memory.noise
        self._require_budget(source, cost + (0 if is_measured else _N_NOISE_POINTS))
        self._tell(source, cost)
        with AtOnce(self.settings.n_in_flight or self.component.n_lanes, self.run_id) as flight:
            return self._finished(self._derive(source, flight, cost))

    # What is asked, and what is answered

    def _checked(self, inputs: Any, paths: Collection[str]) -> tuple[dict[str, np.ndarray], dict[str, str | None]]:
        """Inputs to differentiate as arrays of their dtype in the schema; dtypes of the outputs, if they are known."""
        schema = self.component.schema
        fields = dict(array_leaves(schema.inputs, inputs))
        faults: list[Fault] = []
        x: dict[str, np.ndarray] = {}
        for path in paths:
            field = _lookup(lambda path=path: fields.get(parse_path(path, schema.inputs)))
            if field is None or not field.differentiable:
                faults.append(_fault("input", path, schema.differentiable_inputs))
            else:
                x[path] = np.asarray(get_at(inputs, path), field.dtype)
        dtypes: dict[str, str | None] = {}
        for path in self.outputs:
            template = _lookup(lambda path=path: template_of(schema.outputs, parse_path(path, schema.outputs)))
            field = None if template is None else schema.differentiable_outputs.get(template)
            if field is None:
                faults.append(_fault("output", path, schema.differentiable_outputs))
            else:
                dtypes[path] = field.dtype
        self._refuse(faults)
        return x, dtypes

    def _check_vector(self, side: str, paths: tuple[str, ...]) -> None:
        kind = "tangent" if side == "input" else "cotangent"
        faults = []
        for path in sorted(set(paths) | set(self.vector)):
            if path not in paths or path not in self.vector:
                problem = "missing" if path in paths else f"not asked for; {side}s are {', '.join(map(repr, paths))}"
                faults.append(Fault(path, f"{kind} {problem}"))
                continue
            shape = self.shapes.setdefault((side, path), self.vector[path].shape)
            if self.vector[path].shape != shape:
                faults.append(Fault(path, f"expected a {kind} of shape {shape}, got {self.vector[path].shape}"))
        self._refuse(faults)

    def _refuse(self, faults: list[Fault]) -> None:
        if faults:
            raise InvalidInput(
                f"{self.endpoint!r} of Tesseract {self.handle.name!r}, which is derived, cannot be asked for this:\n"
                + "\n".join(f"  {fault}" for fault in faults)
                + "\nNothing was sent.",
                faults=faults,
                tesseract=repr(self.handle),
                endpoint=self.endpoint,
            )

    def _finished(self, answer: Any) -> Tree:
        """In the dtypes of the protocol: a cotangent has its input's, everything else its output's."""
        if self.endpoint == PULLBACK:
            return {path: _cast(value, str(self.x[path].dtype)) for path, value in answer.items()}
        if self.endpoint == PUSHFORWARD:
            return {path: _cast(value, self.dtypes[path]) for path, value in answer.items()}
        return {
            output: {path: _cast(block, self.dtypes[output]) for path, block in blocks.items()}
            for output, blocks in answer.items()
        }

    # Route and price

    def _cheapest(self) -> tuple[str, int]:
        """What to derive it from, and the price."""

        def price_of(source: str, y: Mapping[str, Any]) -> int:
            return price(self.endpoint, source, self.x, y, self.settings.differences)

        found = sources(self.endpoint, self.settings.believed(self.component.schema.endpoints))
        prices = {source: price_of(source, {}) for source in found if source != PULLBACK}
        # One probe per output element: the shapes of the outputs are asked for where they can make a difference.
        if PULLBACK in found and min(prices.values(), default=2) > 1:
            y = zeros_of_outputs(self._described_outputs, self.inputs, self.outputs)
            self.shapes |= {("output", path): leaf.shape for path, leaf in y.items()}
            prices[PULLBACK] = price_of(PULLBACK, y)
        return min(prices.items(), key=lambda item: item[1])

    def _require_budget(self, source: str, cost: int) -> None:
        budget = self.settings.max_requests
        if budget is None or cost <= budget:
            return
        if source == "apply":
            others = "Differences('spsa', n_samples=k) estimates in 2k requests"
            if self.settings.differences is not None and self.settings.differences.method == "central":
                others = f"Differences('forward') costs about half, {others}"
        else:
            others = f"a component with {self.endpoint!r} of its own needs 1"
        raise OverBudget(
            f"{self.endpoint!r} of Tesseract {self.handle.name!r} {self._route(source)} would take {cost} requests for "
            f"inputs and outputs of this size; the budget of one call is {budget}. No probe was sent.\n"
            f"Differentiate with respect to less ({others}), or allow it: "
            f"open_tesseract(..., derive=Derive(..., max_requests={cost})).",
            tesseract=repr(self.handle),
            endpoint=self.endpoint,
        )

    def _route(self, source: str) -> str:
        return description(source, self.settings.differences)

    def _tell(self, source: str, cost: int) -> None:
        if not self._memory.is_first_of(self.endpoint, source):
            return
        is_exact = source != "apply"
        n_in_flight = self.settings.n_in_flight or self.component.n_lanes
        _log.log(
            logging.INFO if is_exact else logging.WARNING,
            "Tesseract %r %s endpoint %r: it is made here %s%s, at %d request%s per call of this size%s. "
            "This is said once.",
            self.handle.name,
            "is not to be believed at its" if self.endpoint in self.settings.replace else "has no",
            self.endpoint,
            self._route(source),
            " and exact" if is_exact else ", an approximation",
            cost,
            "" if cost == 1 else "s",
            f", up to {n_in_flight} at once" if min(cost, n_in_flight) > 1 else "",
        )

    # Answers of the component

    def _derive(self, source: str, flight: AtOnce, cost: int) -> Any:
        ask: Callable[..., Any] = functools.partial(self._asks[source], self, flight)
        at = (self.inputs, set(self.x), set(self.outputs))
        vector = () if self.endpoint == JACOBIAN else (self.vector,)
        if source == "apply":
            return _FROM_APPLY[self.endpoint](ask, *at, *vector, self._differences(flight, cost), map_probes=flight.map)
        if source == JACOBIAN:
            return _FROM_JACOBIAN[self.endpoint](ask, *at, *vector)
        if source == PUSHFORWARD:
            return _FROM_PUSHFORWARD[self.endpoint](ask, *at, *vector, map_probes=flight.map)
        return _FROM_PULLBACK[self.endpoint](ask, self._described_outputs, *at, *vector, map_probes=flight.map)

    def _ask_apply(self, flight: AtOnce, inputs: Tree) -> Tree:
        answer = self.component.apply(inputs, run_id=flight.run_id)
        for path in self.outputs:
            try:
                value = get_at(answer, path)
            except ValueError as error:
                raise InvalidAnswer(
                    f"Tesseract {self.handle.name!r} answered 'apply' without output {path!r}: {error}",
                    tesseract=repr(self.handle),
                    endpoint="apply",
                ) from error
            self._check("apply", "output", path, value)
        return answer

    def _ask_jacobian(self, flight: AtOnce, inputs: Tree, paths: Collection[str], outputs: Collection[str]) -> Any:
        blocks = self.component.jacobian(inputs, sorted(paths), sorted(outputs), run_id=flight.run_id)
        for output in outputs:
            for path in paths:
                shape, of_input = np.shape(blocks[output][path]), self.shapes["input", path]
                n = len(shape) - len(of_input)
                of_output = self.shapes.setdefault(("output", output), shape[:n])
                if shape != of_output + of_input:
                    self._complain("jacobian", f"{output!r} by {path!r}", shape, of_output + of_input)
        return blocks

    def _ask_pushforward(
        self, flight: AtOnce, inputs: Tree, paths: Collection[str], outputs: Collection[str], t: Mapping[str, Any]
    ) -> Any:
        ask = self.component.jacobian_vector_product
        answer = ask(inputs, sorted(paths), sorted(outputs), t, run_id=flight.run_id)
        for path in outputs:
            self._check(PUSHFORWARD, "output", path, answer[path])
        return answer

    def _ask_pullback(
        self, flight: AtOnce, inputs: Tree, paths: Collection[str], outputs: Collection[str], c: Mapping[str, Any]
    ) -> Any:
        ask = self.component.vector_jacobian_product
        answer = ask(inputs, sorted(paths), sorted(outputs), c, run_id=flight.run_id)
        for path in paths:
            self._check(PULLBACK, "input", path, answer[path])
        return answer

    _asks: ClassVar[Mapping[str, Callable[..., Any]]] = {
        "apply": _ask_apply,
        JACOBIAN: _ask_jacobian,
        PUSHFORWARD: _ask_pushforward,
        PULLBACK: _ask_pullback,
    }

    def _check(self, endpoint: str, side: str, path: str, value: Any) -> None:
        """A server's word is not trusted: with another shape a sum would broadcast, and be wrong in silence."""
        expected = self.shapes.setdefault((side, path), np.shape(value))
        if np.shape(value) != expected:
            self._complain(endpoint, repr(path), np.shape(value), expected)

    def _complain(self, endpoint: str, what: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
        raise InvalidAnswer(
            f"Tesseract {self.handle.name!r} answered {endpoint!r} with {what} of shape {shape}; expected {expected}, "
            f"to derive {self.endpoint!r} from it.\n"
            "Either the cotangent has another shape than the output, or the endpoint has a fault.",
            tesseract=repr(self.handle),
            endpoint=endpoint,
        )

    # What is known of the component

    @property
    def _memory(self) -> Memory:
        return memory_of(self.handle, self.settings)

    def _described_outputs(self, inputs: Tree) -> Tree:
        """Shapes and dtypes of the outputs: asked once per structure of the inputs."""
        structure = structure_of(inputs)
        tree = self._memory.shapes.get(structure)
        if tree is None:
            if "abstract_eval" not in self.component.schema.endpoints:
                tree = described(self.component.apply(inputs))
            else:
                tree = described(self.component.abstract_eval(described_inputs(self.component.schema, inputs)))
            self._memory.remember_shapes(structure, tree)
        return tree

    def _differences(self, flight: AtOnce, cost: int) -> Differences:
        """The settings, for these inputs and with the noise of these outputs."""
        how = self.settings.differences or Differences()
        noise = how.noise
        if self.settings.measure_noise:
            noise = self._memory.noise.get(self._noise_key)
            if noise is None:
                noise = self._measured_noise(flight, cost)
        elif noise is None:
            noise = self._rounding()
        typical = {path: value for path, value in how.typical.items() if path in self.x}
        return dataclasses.replace(how, noise=noise, typical=typical)

    def _rounding(self) -> float | None:
        """That of the coarsest dtype: a step for 64-bit inputs would drown in the rounding of 32-bit outputs."""
        dtypes = [leaf.dtype for leaf in self.x.values()]
        for dtype in self.dtypes.values():
            if dtype is None:
                return None  # not in the schema; the answers will be looked at
            dtypes.append(np.dtype(dtype))
        return max((float(np.finfo(dtype).eps) for dtype in dtypes), default=None)

    @property
    def _noise_key(self) -> Hashable:
        return structure_of(self.inputs), frozenset(self.x), frozenset(self.outputs)

    def _measured_noise(self, flight: AtOnce, cost: int) -> float:
        budget = self.settings.max_requests
        n_attempts = _N_NOISE_ATTEMPTS
        if budget is not None:
            n_attempts = min(n_attempts, (budget - cost) // _N_NOISE_POINTS)
        by_path = estimate_noise(
            functools.partial(self._ask_apply, flight),
            self.inputs,
            set(self.x),
            set(self.outputs),
            n_points=_N_NOISE_POINTS,
            n_attempts=n_attempts,
            map_probes=flight.map,
        )
        noise = max(by_path.values(), default=float(np.finfo(np.float64).eps))
        self._memory.remember_noise(self._noise_key, noise)
        _log.warning(
            "Tesseract %r: its outputs %s have a relative noise of %.1e here, which %d requests to 'apply' have "
            "measured; finite differences step accordingly, at all inputs of this structure.",
            self.handle.name,
            ", ".join(sorted(by_path)),
            noise,
            flight.n_made,
        )
        return noise


def _lookup(fn: Any) -> Any:
    try:
        return fn()
    except SchemaError:  # no path at all
        return None


def _fault(side: str, path: str, differentiable: Mapping[str, ArrayField]) -> Fault:
    known = ", ".join(map(repr, differentiable)) or "none"
    return Fault(path, f"not a differentiable {side}; these are: {known}.{did_you_mean(path, differentiable)}")


def _cast(value: Any, dtype: str | None) -> np.ndarray:
    array = np.asarray(value)
    if dtype is None or not np.can_cast(array.dtype, dtype, "same_kind"):
        return array
    return array.astype(dtype, copy=False)
