"""Handles to Tesseracts, and what happens to a request on its way.

NumPy only: these methods run inside JAX's host callbacks, where JAX itself must not be called. Each kind of handle is
imported when it is first asked for: a component in a test brings no HTTP.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tesseract_flow.client.at_once import AtOnce
from tesseract_flow.client.base import AbstractTesseract, Endpoint, Tree, on_each_kind
from tesseract_flow.client.meter import RequestCounts, count_requests, record_request

if TYPE_CHECKING:
    from tesseract_flow.client.cached import CachedTesseract
    from tesseract_flow.client.caching import AbstractCache, MemoryCache
    from tesseract_flow.client.core import CoreTesseract
    from tesseract_flow.client.derive import Derive
    from tesseract_flow.client.derived import DerivedTesseract
    from tesseract_flow.client.directory import DirectoryCache
    from tesseract_flow.client.http import HttpTesseract
    from tesseract_flow.client.limits import LimitedTesseract
    from tesseract_flow.client.opening import TesseractLike, open_tesseract, opened
    from tesseract_flow.client.replicas import ReplicatedTesseract
    from tesseract_flow.client.retry import RetryPolicy, is_transient
    from tesseract_flow.client.served import ServedTesseract

# Public name -> the module that defines it. The imports above say the same to type checkers; a test compares the two.
_EXPORTS = {
    "AbstractCache": "tesseract_flow.client.caching",
    "CachedTesseract": "tesseract_flow.client.cached",
    "CoreTesseract": "tesseract_flow.client.core",
    "Derive": "tesseract_flow.client.derive",
    "DerivedTesseract": "tesseract_flow.client.derived",
    "DirectoryCache": "tesseract_flow.client.directory",
    "HttpTesseract": "tesseract_flow.client.http",
    "LimitedTesseract": "tesseract_flow.client.limits",
    "MemoryCache": "tesseract_flow.client.caching",
    "ReplicatedTesseract": "tesseract_flow.client.replicas",
    "RetryPolicy": "tesseract_flow.client.retry",
    "ServedTesseract": "tesseract_flow.client.served",
    "TesseractLike": "tesseract_flow.client.opening",
    "is_transient": "tesseract_flow.client.retry",
    "open_tesseract": "tesseract_flow.client.opening",
    "opened": "tesseract_flow.client.opening",
}

__all__ = [
    "AbstractCache",
    "AbstractTesseract",
    "AtOnce",
    "CachedTesseract",
    "CoreTesseract",
    "Derive",
    "DerivedTesseract",
    "DirectoryCache",
    "Endpoint",
    "HttpTesseract",
    "LimitedTesseract",
    "MemoryCache",
    "ReplicatedTesseract",
    "RequestCounts",
    "RetryPolicy",
    "ServedTesseract",
    "TesseractLike",
    "Tree",
    "count_requests",
    "is_transient",
    "on_each_kind",
    "open_tesseract",
    "opened",
    "record_request",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_EXPORTS[name]), name)
    return value
