"""Derivative endpoints that a component lacks, or that are not believed, made on this side from the others.

Here: `DerivedTesseract`, a handle around a handle. Not here: what is allowed (`derive`), one derived call
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
from tesseract_flow.client.deriving.derivation import Derivation
from tesseract_flow.client.deriving.derive import Derive
from tesseract_flow.client.deriving.memory import described, memory_of, structure_of
from tesseract_flow.client.deriving.routes import JACOBIAN, PULLBACK, derivable
from tesseract_flow.client.handles.wrapper import AbstractWrapper
from tesseract_flow.schema import TesseractSchema


@dataclasses.dataclass(frozen=True)
class DerivedTesseract(AbstractWrapper):
    """A handle with more derivative endpoints than its component has. Equal if handle and settings are.

    Attributes:
        tesseract: the handle to the component itself.
        settings: what may be derived, how, and at what price.
    """

    tesseract: AbstractTesseract
    settings: Derive = dataclasses.field(default_factory=Derive)

    def __repr__(self) -> str:
        how = "exact" if self.settings.differences is None else self.settings.differences.method
        return f"DerivedTesseract({self.tesseract!r}, {how})"

    @functools.cached_property
    def schema(self) -> TesseractSchema:
        """The component's, with the endpoints that are derived among the others."""
        schema = self.tesseract.schema
        believed = self.settings.believed(schema.endpoints)
        endpoints = believed | derivable(believed, self.settings.differences)
        digest = hashlib.sha256(f"{schema.digest}\n{sorted(endpoints)}\n{self.settings}".encode()).hexdigest()
        return dataclasses.replace(schema, endpoints=endpoints, digest=digest)

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        have = self.settings.believed(self.tesseract.schema.endpoints)
        if endpoint in self.settings.replace:
            self.require(endpoint)  # it must not come through to the component in place of nothing
        if endpoint in have or endpoint not in self.schema.endpoints:
            answer = self.tesseract.request(endpoint, payload, run_id=run_id)
            # In passing: where the derivative goes by rows, it will ask for the shapes of these outputs.
            if endpoint in ("apply", "abstract_eval") and PULLBACK in have and JACOBIAN not in have:
                memory_of(self, self.settings).remember_shapes(structure_of(payload["inputs"]), described(answer))
            return answer
        return Derivation(self, self.tesseract, self.settings, endpoint, payload, run_id).answer()
