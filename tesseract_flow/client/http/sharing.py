"""Whether a server reads its arrays from the folder that we write to.

The one idea: inputs are decoded before a solve begins. So the server is asked with inputs that cannot be decoded: an
array in a file that is too short for it. What it says differs from what it says of a file that is not there, if and
only if it has found the file.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from tesseract_flow.errors import ComponentFailed, EndpointNotFound, InvalidAnswer, InvalidInput
from tesseract_flow.schema import TesseractSchema, array_templates


def is_read_from(folder: Path, schema: TesseractSchema, ask: Callable[[bytes], bytes]) -> bool:
    """Whether the server looks below `folder` for arrays of its inputs.

    Args:
        ask: sends the body of a request to its `apply`. The inputs are always refused, so no solve begins. What it
            raises when the server cannot be reached is passed on.
    """
    place = _place_of_an_array(schema)
    if place is None:
        return False
    template, shape, dtype = place
    path = folder / f"tesseract-flow-{uuid.uuid4().hex}.bin"
    try:
        path.touch(mode=0o644)
    except OSError:
        return False
    try:
        here, missing = (
            _said(ask, _nested(template, _wire_form(name, shape, dtype)), name)
            for name in (path.name, f"tesseract-flow-{uuid.uuid4().hex}.bin")
        )
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    # An error of the operating system: it may not open the file, or looks elsewhere.
    return here is not None and here != missing and "[Errno" not in here


def _place_of_an_array(schema: TesseractSchema) -> tuple[str, list[int], str] | None:
    for template, field in array_templates(schema.inputs):
        if "root" not in template.split("."):
            # Lengths of one fit everywhere, as they are broadcast.
            return template, [1] * len(field.shape or ()), field.dtype or "float64"
    return None


def _nested(template: str, leaf: Any) -> Any:
    for part in reversed(template.split(".")):
        leaf = [leaf] if part == "[]" else {"probe" if part == "{}" else part: leaf}
    return leaf


def _wire_form(name: str, shape: list[int], dtype: str) -> Mapping[str, Any]:
    data = {"buffer": f"{name}:0", "encoding": "binref"}
    return {"object_type": "array", "shape": shape, "dtype": dtype, "data": data}


def _said(ask: Callable[[bytes], bytes], inputs: Any, name: str) -> str | None:
    """What the server finds wrong with the inputs, without their file's name."""
    try:
        ask(orjson.dumps({"inputs": inputs}))
    except InvalidInput as error:
        return re.sub(re.escape(name), "FILE", "\n".join(f"{fault.path} {fault.message}" for fault in error.faults))
    except (ComponentFailed, EndpointNotFound, InvalidAnswer):
        return None
    return None
