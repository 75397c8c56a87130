"""`open_tesseract`: whatever names a Tesseract → a handle to it."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from tesseract_flow.client.address import shown
from tesseract_flow.client.base import AbstractTesseract
from tesseract_flow.client.core import CoreTesseract
from tesseract_flow.client.derived import Derive, DerivedTesseract
from tesseract_flow.client.http import HttpTesseract
from tesseract_flow.client.served import ServedTesseract
from tesseract_flow.derivatives import Differences
from tesseract_flow.errors import Unreachable, did_you_mean

if TYPE_CHECKING:
    from tesseract_core import Tesseract

# `host:port/prefix` and `user:password@host`, which have slashes and colons as paths may have.
_ADDRESS = re.compile(r"([^/]*@)?[\w.-]+:[0-9]+(/|$)|[^/]*@")

TesseractLike = Union[AbstractTesseract, "Tesseract", str, os.PathLike[str]]


def open_tesseract(
    source: TesseractLike, *, derive: Derive | Differences | str | bool | None = None, **options: Any
) -> AbstractTesseract:
    """A handle to the Tesseract that `source` names. Nothing is connected or started before it is used.

    Args:
        source: a URL (`http://solver:8000`), the path of a `tesseract_api.py` or of its folder (served here, in a
            process of its own), a `tesseract_core.Tesseract`, or a handle, which is returned as it is.
        derive: what to do about derivative endpoints that the component lacks. None: nothing. True or `"exact"`: make
            them from those that it has. `"central"`, `"forward"`, `"spsa"`: the same, and if it has none, from its
            `apply` by finite differences. A `Derive` has all settings, with a budget among them. It is the one option
            that a handle which is open already takes.
        options: `label` for any of them; for a URL the fields of `HttpTesseract` (`token`, `headers`,
            `read_timeout`, `verify`, ...), for a path those of `ServedTesseract` (`n_workers`, ...).

    Raises:
        Unreachable: there is no such file, or the text is no address.
        OptionError: an option has a value that cannot be used.
        TypeError: an option or a source that is not understood.

    >>> open_tesseract("solver:8000", label="fem")
    HttpTesseract(fem: http://solver:8000)
    """
    settings = Derive.from_option(derive)
    handle = _open(source, options)
    if settings is None:
        return handle
    # Other settings replace those that a handle has already.
    return DerivedTesseract(handle.tesseract if isinstance(handle, DerivedTesseract) else handle, settings)


def _open(source: TesseractLike, options: dict[str, Any]) -> AbstractTesseract:
    if isinstance(source, AbstractTesseract):
        if options:
            raise TypeError(f"open_tesseract: {source!r} is open already; options {sorted(options)} come too late.")
        return source
    if isinstance(source, str | os.PathLike):
        path = _component_path(source)
        if path is not None:
            return _build(ServedTesseract, path, options)
        return _build(HttpTesseract, os.fspath(source), options)
    # By its methods, as `openapi_schema` asks the server, and raises on a Tesseract that is not served yet.
    if all(callable(getattr(source, method, None)) for method in ("apply", "abstract_eval")):
        if unknown := set(options) - {"label"}:
            raise TypeError(f"open_tesseract: a tesseract_core.Tesseract brings its own {sorted(unknown)}.")
        return CoreTesseract(source, **options)  # type: ignore[arg-type]
    raise TypeError(
        f"open_tesseract: expected a URL, a path to a tesseract_api.py, or a tesseract_core.Tesseract; "
        f"got {type(source).__name__}."
    )


def _component_path(source: str | os.PathLike[str]) -> Path | None:
    """The file to serve, or None if `source` is an address."""
    text = os.fspath(source)
    if "://" in text or not text.strip():
        return None
    path = Path(text)
    if path.is_dir():
        path = path / "tesseract_api.py"
        if not path.is_file():
            raise Unreachable(f"The folder {text} holds no tesseract_api.py, so there is no component to serve.")
        return path
    if path.is_file():
        return path
    if isinstance(source, os.PathLike) or path.suffix == ".py" or (os.sep in text and not _ADDRESS.match(text)):
        raise Unreachable(
            f"There is no component at {shown(text)}: no such file. If it is an address, begin it with http://."
        )
    return None


def _build(cls: type, first: Any, options: dict[str, Any]) -> AbstractTesseract:
    known = [*(field.name for field in dataclasses.fields(cls)), "derive"][1:]
    for option in options:
        if option not in known:
            raise TypeError(
                f"open_tesseract: unknown option {option!r} for {shown(str(first))}.{did_you_mean(option, known)} "
                f"It takes: {', '.join(known)}."
            )
    return cls(first, **options)
