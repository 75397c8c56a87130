"""Questions to one component at a point that it really sees, within a budget, and what was seen there.

What follows from the answers is said in `component` and `blame`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tesseract_flow.checks.budget import Budget
from tesseract_flow.checks.lines import Comparison, Line, moved, stacked
from tesseract_flow.client import AbstractTesseract, AtOnce, DerivedTesseract, RetryPolicy
from tesseract_flow.client.deriving.routes import JACOBIAN, PULLBACK, PUSHFORWARD
from tesseract_flow.client.handles.wrapper import AbstractWrapper
from tesseract_flow.derivatives import get_at, set_at
from tesseract_flow.errors import CallError

_HIGHER = 2.0**10  # how many times larger than at a first point cotangents may become in a run


@dataclasses.dataclass(frozen=True, eq=False)
class Pulled:
    """What the pipeline pulled back at a point.

    Attributes:
        growth: how many times as large cotangents of a run are here.
    """

    cotangents: Mapping[str, np.ndarray]
    answer: Mapping[str, np.ndarray]
    growth: float

    @property
    def reach(self) -> float:
        """How many times as large they may become: further from an optimum than here they grow."""
        return _HIGHER * self.growth if self.growth >= 1.0 else self.growth

    @property
    def size(self) -> float:
        """The largest entry of the cotangents."""
        return largest(self.cotangents)


def largest(arrays: Mapping[str, np.ndarray]) -> float:
    """The largest entry of some arrays, regardless of signs."""
    return max((float(np.max(np.abs(array), initial=0.0)) for array in arrays.values()), default=0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """A component at a point, and the paths between which the pipeline takes derivatives there."""

    handle: AbstractTesseract
    inputs: Any
    x_paths: tuple[str, ...]
    y_paths: tuple[str, ...]
    pulled: Pulled | None = None


def own_derivatives(handle: AbstractTesseract) -> tuple[AbstractTesseract, list[str]]:
    """Whom to ask for a component's own derivative endpoints, and which of them it has and are believed."""
    asked, believed, inner = handle, handle.schema.endpoints, handle
    while isinstance(inner, AbstractWrapper):
        if isinstance(inner, DerivedTesseract):
            asked, believed = inner.tesseract, inner.settings.believed(inner.tesseract.schema.endpoints)
            break
        inner = inner.tesseract
    return asked, [endpoint for endpoint in (PULLBACK, PUSHFORWARD, JACOBIAN) if endpoint in believed]


class Probe:
    """Asks one component, within a budget.

    Attributes:
        endpoints: derivatives that it has itself, and that are believed.
        x: the inputs that carry derivatives, by path, at the point that it sees.
    """

    def __init__(self, site: Site, budget: Budget, rng: np.random.Generator):
        self.site, self.budget, self.rng = site, budget, rng
        self.handle, self.endpoints = own_derivatives(site.handle)
        self.x = {path: np.asarray(get_at(site.inputs, path)) for path in site.x_paths}
        self.is_coarse = any(x.dtype in (np.float32, np.float16, np.complex64) for x in self.x.values())

    # --- questions ---

    def _ask(self, label: str, questions: Sequence[Callable[[], Any]]) -> list[Any]:
        self.budget.spend(len(questions))
        retry = RetryPolicy()
        with AtOnce(self.handle.n_lanes) as flight:
            return list(flight.map(lambda ask: retry.run(ask, label=f"{self.handle.name}.{label}"), questions))

    def inputs_at(self, x: Mapping[str, np.ndarray]) -> Any:
        return set_at(self.site.inputs, x)

    def values(self, points: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray] | None]:
        """Outputs at some points; None where it does not answer with finite numbers."""

        def ask(x: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
            try:
                answer = self.handle.apply(self.inputs_at(x))
            except CallError as error:
                if isinstance(error, ConnectionError):
                    raise
                return None  # outside of where the component is at home
            y = {path: np.asarray(get_at(answer, path)) for path in self.site.y_paths}
            return y if all(np.isfinite(value).all() for value in y.values()) else None

        return self._ask("apply", [lambda x=x: ask(x) for x in points])

    def pullbacks(self, x: Mapping[str, Any], cotangents: Sequence[Mapping[str, Any]]) -> list[dict[str, np.ndarray]]:
        """J^T c at one point, for several c."""

        def ask(c: Mapping[str, Any]) -> dict[str, np.ndarray]:
            answer = self.handle.vector_jacobian_product(self.inputs_at(x), list(self.x), list(c), c)
            return {path: np.asarray(answer[path]) for path in self.x}

        return self._ask("pullback", [lambda c=c: ask(c) for c in cotangents])

    def pushforwards(self, x: Mapping[str, Any], tangents: Sequence[Mapping[str, Any]]) -> list[dict[str, np.ndarray]]:
        """J t at one point, for several t."""

        def ask(t: Mapping[str, Any]) -> dict[str, np.ndarray]:
            answer = self.handle.jacobian_vector_product(self.inputs_at(x), list(t), list(self.site.y_paths), t)
            return {path: np.asarray(answer[path]) for path in self.site.y_paths}

        return self._ask("pushforward", [lambda t=t: ask(t) for t in tangents])

    def jacobian(self, x: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
        def ask() -> dict[str, dict[str, np.ndarray]]:
            answer = self.handle.jacobian(self.inputs_at(x), list(self.x), list(self.site.y_paths))
            return {y: {p: np.asarray(answer[y][p]) for p in self.x} for y in self.site.y_paths}

        return self._ask("jacobian", [ask])[0]

    def line(self, x: Mapping[str, np.ndarray], t: Mapping[str, np.ndarray], y: Mapping[str, np.ndarray]) -> Line:
        """All outputs along a direction, as one vector."""

        def values(steps: Sequence[float]) -> list[np.ndarray | None]:
            answers = self.values([{**x, **moved(x, t, step)} for step in steps])
            return [None if answer is None else stacked(answer, self.site.y_paths) for answer in answers]

        return Line(values, stacked(y, self.site.y_paths), is_coarse=self.is_coarse)


@dataclasses.dataclass(eq=False)
class Look:
    """What was seen at one point.

    Attributes:
        multiples: factor → what was pulled back for so many times the cotangents.
    """

    x: dict[str, np.ndarray]
    y: dict[str, np.ndarray]
    t: dict[str, np.ndarray]
    c: dict[str, np.ndarray]
    line: Line
    pulled: dict[str, np.ndarray] | None = None
    multiples: dict[float, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    pushed: dict[str, np.ndarray] | None = None
    blocks: dict[str, dict[str, np.ndarray]] | None = None
    compared: dict[str, Comparison] = dataclasses.field(default_factory=dict)
