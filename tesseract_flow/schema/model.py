"""`TesseractSchema`: all that a component says about itself, as one value.

Here: the value type and its reading from an OpenAPI document (whose details are in `openapi`). The one idea: raw
documents stop here. Beyond this package nobody looks into nested JSON; they ask `schema.differentiable_inputs`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tesseract_flow.errors import SchemaError
from tesseract_flow.schema.fields import ArrayField, FrozenMapping, ModelField
from tesseract_flow.schema.paths import array_templates


@dataclass(frozen=True)
class TesseractSchema:
    """A component's schema: immutable, hashable, equal by value, safe to send to another process.

    Attributes:
        name, version: from the document's `info`; empty if it has none.
        endpoints: the protocol's operations that this component has, without slash.
        inputs, outputs: the field trees of `apply`.
        encodings: what the server can answer in, out of "json", "base64", "binref"; None if it does not say.
        compressions: such as "lz4", empty for none at all; None if the server does not say.
        digest: changes when schemas, defaults or endpoints change, and not with wording, key order or server settings.
    """

    name: str
    version: str
    endpoints: frozenset[str]
    inputs: ModelField = field(repr=False)
    outputs: ModelField = field(repr=False)
    encodings: frozenset[str] | None
    compressions: frozenset[str] | None
    digest: str

    @classmethod
    def from_openapi(cls, document: Mapping[str, Any]) -> TesseractSchema:
        """The schema in a server's `/openapi.json`.

        Raises:
            SchemaError: the document is not that of a Tesseract; the message says what is missing.
        """
        try:
            return cls._read(document)
        except RecursionError:  # nobody's component, but anybody's document
            raise SchemaError("The OpenAPI document is nested too deeply to be that of a Tesseract.") from None

    @classmethod
    def _read(cls, document: Mapping[str, Any]) -> TesseractSchema:
        from tesseract_flow.schema import openapi  # not needed before there is a document

        input_side, output_side = openapi.sides(document)
        inputs, outputs = openapi.roots(input_side, output_side)
        info = document.get("info")
        info = info if isinstance(info, Mapping) else {}
        operations = openapi.endpoints(document)
        return cls(
            name=str(info.get("title", "")),
            version=str(info.get("version", "")),
            endpoints=operations,
            inputs=inputs,
            outputs=outputs,
            encodings=openapi.advertised(document, "x-supported-output-formats"),
            compressions=openapi.advertised(document, "x-supported-compressions"),
            digest=openapi.digest(input_side, output_side, operations),
        )

    def __hash__(self) -> int:
        # Equal schemas have equal digests, and hashing the whole tree at every JAX call would be slow.
        return hash((self.name, self.version, self.digest))

    @functools.cached_property
    def differentiable_inputs(self) -> Mapping[str, ArrayField]:
        """Path template -> array, for the inputs with respect to which derivatives can be asked."""
        return _differentiable(self.inputs)

    @functools.cached_property
    def differentiable_outputs(self) -> Mapping[str, ArrayField]:
        """Path template -> array, for the outputs whose derivatives can be asked."""
        return _differentiable(self.outputs)


def _differentiable(root: ModelField) -> Mapping[str, ArrayField]:
    found: dict[str, ArrayField] = {}
    for template, array in array_templates(root):
        if array.differentiable:
            found.setdefault(template, array)
    return FrozenMapping(found)
