"""A component's own `tesseract_api.py` in this process: no server, and breakpoints work."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from tesseract_flow.client import AbstractTesseract, open_tesseract
from tesseract_flow.client.handles.source import forget_bytecode
from tesseract_flow.errors import Unreachable


def in_process(path: str | os.PathLike[str], label: str | None = None) -> AbstractTesseract:
    """The component in a `tesseract_api.py`, or in the folder of one, run by tesseract-core in this process.

    Args:
        label: what to call it; default the name in its `tesseract_config.yaml`, else its folder's.

    Raises:
        Unreachable: there is no such file.
    """
    file = Path(path)
    file = file / "tesseract_api.py" if file.is_dir() else file
    if not file.is_file():
        raise Unreachable(f"There is no component at {os.fspath(path)}: no such file.")
    forget_bytecode(file.parent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic's and tesseract-core's remarks about themselves
        from tesseract_core import Tesseract

        handle = open_tesseract(Tesseract.from_tesseract_api(file))
        name = handle.name
    return open_tesseract(handle.tesseract, label=label or (file.parent.name if name == "tesseract" else name))  # type: ignore[attr-defined]
