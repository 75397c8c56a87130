"""`open_tesseract`: whatever names a Tesseract → a handle to it."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

from tesseract_flow import client  # for handles over HTTP, which are imported with the first of them
from tesseract_flow.client.address import shown
from tesseract_flow.client.base import AbstractTesseract
from tesseract_flow.client.deriving.derive import Derive
from tesseract_flow.client.handles.adaptive import AdaptiveTesseract
from tesseract_flow.client.handles.cached import CachedTesseract, CacheLike, cache_from_option
from tesseract_flow.client.handles.core import CoreTesseract
from tesseract_flow.client.handles.derived import DerivedTesseract
from tesseract_flow.client.handles.limited import LimitedTesseract
from tesseract_flow.client.handles.source import code_of
from tesseract_flow.derivatives import Differences
from tesseract_flow.errors import OptionError, Unreachable, did_you_mean
from tesseract_flow.storage import require_allowed

if TYPE_CHECKING:
    from tesseract_core import Tesseract

_OPTIONS_OF_REPLICAS = ("first_pause", "longest_pause", "retry", "clock", "sleep")
# `host:port/prefix` and `user:password@host`, which have slashes and colons as paths may have.
_ADDRESS = re.compile(r"([^/]*@)?[\w.-]+:[0-9]+(/|$)|[^/]*@")
_BARE = re.compile(r"[\w-]+")  # could be a host without a port, and is a folder that is not there

_LANES_TO_FIND_OUT = 64  # a bound for what is found out

TesseractLike = Union[AbstractTesseract, "Tesseract", str, os.PathLike[str]]


def open_tesseract(
    source: TesseractLike | Sequence[str | AbstractTesseract],
    *,
    derive: Derive | Differences | str | bool | None = None,
    cache: CacheLike = None,
    max_in_flight: int | Literal["auto"] | None = None,
    limit_folder: str | os.PathLike[str] | None = None,
    **options: Any,
) -> AbstractTesseract:
    """A handle to the Tesseract that `source` names. Nothing is connected or started before it is used.

    Args:
        source: a URL (`http://solver:8000`), the path of a `tesseract_api.py` or of its folder (served here, in a
            process of its own), a `tesseract_core.Tesseract`, or a handle, which is returned as it is. A list of URLs
            (or handles) names replicas: servers of one component, of which the least busy gets a call.
        derive: what to do about derivative endpoints that the component lacks. None: nothing. True or `"exact"`: make
            them from those that it has. `"central"`, `"forward"`, `"spsa"`: the same, and if it has none, from its
            `apply` by finite differences. A `Derive` has all settings, with a budget among them.
        cache: where answers are kept, so that an equal call is no request. None: nowhere. True: in the memory of this
            process, half a GiB for all together. A path: in this folder, also for other processes and later ones. A
            `MemoryCache` or `DirectoryCache` has its own bound.
        max_in_flight: the most requests under way at once, over all equal handles of this process, as licences may
            demand it. `"auto"`: as many as the server takes, found out from what it refuses (429, 503). This,
            `limit_folder`, `cache`, `derive` and `label` are the options that a handle which is open already takes.
        limit_folder: a folder that makes `max_in_flight` the bound over all processes which name the folder.
        options: `label` for any of them; for a URL the fields of `HttpTesseract` (`token`, `headers`,
            `read_timeout`, `verify`, ...), for several URLs the same and those of `ReplicatedTesseract`, for a path
            those of `ServedTesseract` (`n_workers`, ...).

    Raises:
        Unreachable: there is no such file, or the text is no address.
        OptionError: an option has a value that cannot be used.
        TypeError: an option or a source that is not understood.

    >>> open_tesseract("solver:8000", label="fem")
    HttpTesseract(fem: http://solver:8000)
    """
    settings, answers = Derive.from_option(derive), cache_from_option(cache)
    if limit_folder is not None and max_in_flight is None:
        raise OptionError("limit_folder says where places are counted; say with max_in_flight how many there are.")
    if limit_folder is not None and max_in_flight == "auto":
        raise OptionError('max_in_flight="auto" needs no limit_folder: each process finds out what the server takes.')
    if max_in_flight == "auto" and not isinstance(source, AbstractTesseract) and _may_have_lanes(source):
        options.setdefault("n_lanes", _LANES_TO_FIND_OUT)
    handle = _open(source, options)
    if settings is None and answers is None and max_in_flight is None:
        return handle
    # Other settings replace those that a handle has already.
    if isinstance(handle, DerivedTesseract):
        settings = handle.settings if settings is None else settings
        handle = handle.tesseract
    if isinstance(handle, CachedTesseract):
        answers = handle.cache if answers is None else answers
        handle = handle.tesseract
    if max_in_flight is not None:  # inside the cache, as a remembered answer takes no licence
        handle = handle.tesseract if isinstance(handle, LimitedTesseract | AdaptiveTesseract) else handle
        if max_in_flight == "auto":
            handle = AdaptiveTesseract(handle)
        else:
            handle = LimitedTesseract(handle, max_in_flight, limit_folder)  # type: ignore[arg-type]
    # The cache is inside, where it keeps the probes of derived endpoints as well.
    handle = handle if answers is None else CachedTesseract(handle, answers)
    return handle if settings is None else DerivedTesseract(handle, settings)


def opened(source: TesseractLike) -> AbstractTesseract:
    """`open_tesseract`, remembering what it opened for a text: the schema is then read once and not per call."""
    if not isinstance(source, str):
        return open_tesseract(source)
    path = _component_path(source)
    return _open_text(source, "" if path is None else code_of(path))


@functools.lru_cache(maxsize=64)
def _open_text(source: str, code: str) -> AbstractTesseract:
    return open_tesseract(source)


def _open(source: TesseractLike | Sequence[str | AbstractTesseract], options: dict[str, Any]) -> AbstractTesseract:
    if isinstance(source, list | tuple):
        return _open_replicas(source, options)
    if isinstance(source, AbstractTesseract):
        if others := sorted(set(options) - {"label"}):
            raise TypeError(f"open_tesseract: {source!r} is open already; options {others} come too late.")
        return source if options.get("label") is None else source.labelled(options["label"])
    if isinstance(source, str | os.PathLike):
        path = _component_path(source)
        if path is not None:
            require_allowed(path)
            return _build(client.ServedTesseract, path, options)
        return _build(client.HttpTesseract, os.fspath(source), options)
    # By its methods, as `openapi_schema` asks the server, and raises on a Tesseract that is not served yet.
    if all(callable(getattr(source, method, None)) for method in ("apply", "abstract_eval")):
        if unknown := set(options) - {"label"}:
            raise TypeError(f"open_tesseract: a tesseract_core.Tesseract brings its own {sorted(unknown)}.")
        return CoreTesseract(source, **options)  # type: ignore[arg-type]
    raise TypeError(
        f"open_tesseract: expected a URL, a list of URLs, a path to a tesseract_api.py, or a tesseract_core.Tesseract; "
        f"got {type(source).__name__}."
    )


def _may_have_lanes(source: Any) -> bool:
    """Whether it is an address, or several."""
    if isinstance(source, list | tuple):
        return all(isinstance(one, str) for one in source)
    return isinstance(source, str) and _component_path(source) is None


def _open_replicas(sources: Sequence[Any], options: dict[str, Any]) -> AbstractTesseract:
    own = {name: options.pop(name) for name in _OPTIONS_OF_REPLICAS if name in options}
    label = {name: options[name] for name in ("label",) if name in options}
    replicas = []
    for source in sources:
        if isinstance(source, AbstractTesseract):
            replicas.append(_open(source, {name: value for name, value in options.items() if name != "label"}))
        elif isinstance(source, str) and _component_path(source) is None:
            replicas.append(_build(client.HttpTesseract, source, options))
        else:
            raise TypeError(
                f"open_tesseract: replicas are named by their URLs, or are handles; got {shown(str(source))}, "
                f"a {type(source).__name__}."
            )
    return client.ReplicatedTesseract(tuple(replicas), **label, **own)


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
    if _BARE.fullmatch(text) and text.lower() != "localhost":
        near = sorted(found.parent.name for found in Path().glob("*/tesseract_api.py"))
        raise Unreachable(
            f"There is no component {text!r}: no such folder in {Path.cwd()}.{did_you_mean(text, near)} "
            f"If it is a host, begin it with http://, and end it with its port: http://{text}:8000."
        )
    return None


def _build(cls: type, first: Any, options: dict[str, Any]) -> AbstractTesseract:
    fields = [field.name for field in dataclasses.fields(cls) if field.init][1:]
    known = [*fields, "derive", "cache", "max_in_flight", "limit_folder"]
    for option in options:
        if option not in known:
            raise TypeError(
                f"open_tesseract: unknown option {option!r} for {shown(str(first))}.{did_you_mean(option, known)} "
                f"It takes: {', '.join(known)}."
            )
    return cls(first, **options)
