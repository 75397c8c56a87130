"""What a component is, as far as its answers depend on it; how that is written down, and found again without it.

The one idea: an answer belongs to a component's name, version, schema and build. A recording has them in writing, so
that a handle whose server is gone still knows of whom it speaks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from typing import Any

from tesseract_flow.client.base import GENERIC_NAMES, AbstractTesseract
from tesseract_flow.errors import NotRecorded, SchemaError, StaleRecording
from tesseract_flow.schema import TesseractSchema, describe, schema_from_json, schema_to_json

FORMAT = "component of a recording, 1"


@dataclasses.dataclass(frozen=True)
class Component:
    """A component, as it was when it was asked.

    Attributes:
        name: what people call it.
        schema: what it says of itself.
        build: what else tells it from others; None: nothing that another process could see.
        address: how its handle prints itself, without credentials.
        code: a digest of its files, where it is served here.
        image: of the container that it runs in, where that is known.
    """

    name: str
    schema: TesseractSchema
    build: str | None
    address: str
    code: str | None = None
    image: str | None = None

    @classmethod
    def of(cls, tesseract: AbstractTesseract) -> Component:
        """As it says itself."""
        code, image = getattr(tesseract, "code", None), getattr(tesseract, "image", None)
        return cls(tesseract.name, tesseract.schema, tesseract.build, repr(tesseract), code, image)

    @property
    def key(self) -> list[str | None]:
        """Its part in a question."""
        schema = self.schema
        key = [schema.name, schema.version, schema.digest, self.build]
        return [*key, self.address] if schema.name in GENERIC_NAMES else key

    @property
    def digest(self) -> str:
        """Of its part in questions, and of what people call it."""
        return hashlib.sha256(json.dumps([self.name, *self.key]).encode()).hexdigest()[:32]

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "name": self.name,
            "address": self.address,
            "build": self.build,
            "code": self.code,
            "image": self.image,
            "schema": schema_to_json(self.schema),
        }

    @classmethod
    def from_json(cls, content: Any) -> Component:
        """
        Raises:
            ValueError: it is none.
        """
        try:
            if content["format"] != FORMAT:
                raise ValueError("it is of another format")
            told = {name: content[name] for name in ("name", "address", "build", "code", "image")}
            if not all(isinstance(text, str | None) for text in told.values()):
                raise ValueError("it has other things where text should be")
            return cls(schema=schema_from_json(content["schema"]), **told)
        except (KeyError, TypeError, SchemaError) as error:
            raise ValueError(f"it describes no component ({error})") from error


def recorded(tesseract: AbstractTesseract, components: Iterable[Component], where: str) -> Component:
    """The component, out of those that were recorded, that a handle stands for. Nobody is asked.

    A handle that can say what it is without a question has to be what was recorded. Of any other its label decides,
    then its address, and if neither is known, it is the only one that there is.

    Raises:
        StaleRecording: the component has changed since.
        NotRecorded: there is none, or nobody can tell which.
    """
    components = sorted(components, key=lambda one: (one.name, one.digest))
    label, code = getattr(tesseract, "label", None), getattr(tesseract, "code", None)
    address = repr(tesseract)
    ours = [one for one in components if one.name == label] or [one for one in components if one.address == address]
    known = tesseract.known_schema
    if known is not None:
        of_that_name = ours or [one for one in components if one.schema.name == known.name]
        if found := [one for one in of_that_name if _tells(one) == _tells_of(known)]:
            return _not_stale(found[-1], code, where)
        if of_that_name:
            raise _stale(of_that_name[-1], known, where)
    elif ours or (len(components) == 1 and label is None):
        same_code = [one for one in ours if one.code == code]
        return _not_stale((same_code or ours or components)[-1], code, where)
    names = ", ".join(f"{one.name} ({one.address})" for one in components) or "none at all"
    raise NotRecorded(
        f"{address} is not among the components that were recorded in {where}: {names}.\n"
        "Open it with the label or the address of one of them (open_tesseract(..., label=...)), or record it: "
        'DirectoryCache(folder, mode="record").',
        tesseract=address,
        endpoint="openapi.json",
    )


def _tells(one: Component) -> tuple[str, str, str]:
    return _tells_of(one.schema)


def _tells_of(schema: TesseractSchema) -> tuple[str, str, str]:
    return schema.name, schema.version, schema.digest


def _not_stale(component: Component, code: str | None, where: str) -> Component:
    if code is not None and component.code is not None and code != component.code:
        raise StaleRecording(
            f"The recording of {component.name!r} in {where} is stale: the files of the component have changed since.\n"
            f"{_REMEDY}",
            tesseract=component.address,
        )
    return component


def _stale(component: Component, known: TesseractSchema, where: str) -> StaleRecording:
    lines = "\n".join(f"  {line}" for line in changes(component.schema, known))
    return StaleRecording(
        f"The recording of {component.name!r} in {where} is stale. Since then the component has changed:\n{lines}\n"
        f"{_REMEDY}",
        tesseract=component.address,
    )


_REMEDY = 'Remove the folder and record it again, with DirectoryCache(folder, mode="record").'


def changes(then: TesseractSchema, now: TesseractSchema) -> list[str]:
    """What two schemas differ in, a line each."""
    found = [
        f"{what}: {was!r} when it was recorded, {is_now!r} now"
        for what, was, is_now in (("name", then.name, now.name), ("version", then.version, now.version))
        if was != is_now
    ]
    if lost := then.endpoints - now.endpoints:
        found.append(f"endpoints that are gone: {', '.join(sorted(lost))}")
    if new := now.endpoints - then.endpoints:
        found.append(f"endpoints that are new: {', '.join(sorted(new))}")
    for side in ("inputs", "outputs"):
        old_fields, new_fields = getattr(then, side).fields, getattr(now, side).fields
        for name in sorted({*old_fields, *new_fields}):
            if name not in new_fields:
                found.append(f"{side}: {name!r} is gone")
            elif name not in old_fields:
                found.append(f"{side}: {name!r} is new")
            elif old_fields[name] != new_fields[name]:
                found.append(f"{side}: {name!r} was {describe(old_fields[name])}, is {describe(new_fields[name])}")
    if not found and then.digest != now.digest:
        found.append("its schema, in defaults or limits")
    return found
