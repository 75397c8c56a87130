"""Derivative endpoints that a component does not have, made on this side from those that it has.

Here: `Derive`, what the user allows; `DerivedTesseract`, a handle around a handle. Not here: one derived call
(`derivation`), which route and at what price (`routes`). The one idea: the component sees nothing but its own
endpoints, and whoever holds the handle sees all of them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any

from tesseract_flow.client.base import AbstractTesseract, Endpoint, Tree
from tesseract_flow.client.derivation import Derivation
from tesseract_flow.client.memory import described, memory_of, structure_of
from tesseract_flow.client.routes import JACOBIAN, PULLBACK, derivable
from tesseract_flow.client.wrapper import AbstractWrapper
from tesseract_flow.derivatives import Differences
from tesseract_flow.errors import OptionError, did_you_mean
from tesseract_flow.schema import TesseractSchema

_METHODS = ("central", "forward", "spsa")


@dataclasses.dataclass(frozen=True)
class Derive:
    """How missing derivative endpoints are made, for `open_tesseract(..., derive=...)`.

    Attributes:
        differences: how to difference `apply` when no derivative endpoint is there; None: not at all.
        max_requests: the most that one derived call may send; dearer ones are refused before the first. None: any.
        n_in_flight: requests at once; default as many as the handle has lanes.
        measure_noise: whether the step is chosen by the component's own noise. It is measured, by `estimate_noise`,
            before the first difference and remembered per structure of the inputs: 8 more requests, rarely up to 48.
    """

    differences: Differences | None = None
    max_requests: int | None = 1000
    n_in_flight: int | None = None
    measure_noise: bool = False

    def __post_init__(self) -> None:
        if self.differences is not None and not isinstance(self.differences, Differences):
            raise OptionError(
                f"Derive.differences is {self.differences!r}; expected a Differences(...), such as "
                "Differences('central'), or None for exact routes only."
            )
        for name in ("max_requests", "n_in_flight"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise OptionError(f"Derive.{name} is {value!r}; expected a whole number of at least 1, or None.")
        if self.measure_noise and (self.differences is None or self.differences.noise is not None):
            raise OptionError(
                "Derive.measure_noise chooses the step of finite differences: it takes differences=Differences(...), "
                "and these without a noise of their own."
            )

    @classmethod
    def from_option(cls, value: Any) -> Derive | None:
        """What `derive=` means: None, False, True, "exact", a method of `Differences`, or settings in full."""
        if value is None or value is False:
            return None
        if value is True or value == "exact":
            return cls()
        if isinstance(value, Derive):
            return value
        if isinstance(value, Differences):
            return cls(value)
        if isinstance(value, str) and value in _METHODS:
            return cls(Differences(value))  # type: ignore[arg-type]
        known = ("exact", *_METHODS)
        hint = did_you_mean(value, known) if isinstance(value, str) else ""
        raise OptionError(
            f"derive is {value!r}; expected True or 'exact' (only from derivatives that the component has), one of "
            f"{', '.join(map(repr, _METHODS))} (else finite differences of its apply), or a Derive(...).{hint}"
        )


@dataclasses.dataclass(frozen=True)
class DerivedTesseract(AbstractWrapper):
    """A handle with more derivative endpoints than its component has. Equal if handle and settings are.

    Attributes:
        tesseract: the handle to the component itself.
        settings: what may be derived, how, and at what price.
    """

    tesseract: AbstractTesseract
    settings: Derive = Derive()

    def __repr__(self) -> str:
        how = "exact" if self.settings.differences is None else self.settings.differences.method
        return f"DerivedTesseract({self.tesseract!r}, {how})"

    @property
    def learns_shapes(self) -> bool:  # type: ignore[override]
        return "abstract_eval" not in self.tesseract.schema.endpoints

    @functools.cached_property
    def schema(self) -> TesseractSchema:
        """The component's, with the endpoints that are derived among the others."""
        schema = self.tesseract.schema
        endpoints = schema.endpoints | derivable(schema.endpoints, self.settings.differences)
        digest = hashlib.sha256(f"{schema.digest}\n{sorted(endpoints)}\n{self.settings}".encode()).hexdigest()
        return dataclasses.replace(schema, endpoints=endpoints, digest=digest)

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        have = self.tesseract.schema.endpoints
        if endpoint in have or endpoint not in self.schema.endpoints:
            answer = self.tesseract.request(endpoint, payload, run_id=run_id)
            # In passing: where the derivative goes by rows, it will ask for the shapes of these outputs.
            if endpoint in ("apply", "abstract_eval") and PULLBACK in have and JACOBIAN not in have:
                memory_of(self).remember_shapes(structure_of(payload["inputs"]), described(answer))
            return answer
        return Derivation(self, endpoint, payload, run_id).answer()
