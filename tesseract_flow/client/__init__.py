"""Handles to Tesseracts, and what happens to a request on its way.

NumPy only: these methods run inside JAX's host callbacks, where JAX itself must not be called. Each kind of handle is
imported when it is first asked for: a component in a test brings no HTTP.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tesseract_flow.client.at_once import AtOnce
from tesseract_flow.client.base import AbstractTesseract, Endpoint, Tree, on_each_kind
from tesseract_flow.client.meter import (
    Account,
    Recall,
    RequestCounts,
    charge,
    charged_to,
    count_requests,
    current_account,
    open_account,
    own_requests,
    record_request,
)

if TYPE_CHECKING:
    from tesseract_flow.client.caches.base import AbstractCache
    from tesseract_flow.client.caches.directory import DirectoryCache
    from tesseract_flow.client.caches.memory import MemoryCache
    from tesseract_flow.client.deriving.derive import Derive
    from tesseract_flow.client.handles.adaptive import AdaptiveTesseract
    from tesseract_flow.client.handles.cached import CachedTesseract
    from tesseract_flow.client.handles.core import CoreTesseract
    from tesseract_flow.client.handles.derived import DerivedTesseract
    from tesseract_flow.client.handles.limited import LimitedTesseract
    from tesseract_flow.client.handles.replicas import ReplicatedTesseract
    from tesseract_flow.client.handles.served import ServedTesseract
    from tesseract_flow.client.http import HttpTesseract
    from tesseract_flow.client.opening import TesseractLike, open_tesseract, opened
    from tesseract_flow.client.retry import RetryPolicy, is_transient

# Public name -> the module that defines it. The imports above say the same to type checkers; a test compares the two.
_EXPORTS = {
    "AbstractCache": "tesseract_flow.client.caches.base",
    "AdaptiveTesseract": "tesseract_flow.client.handles.adaptive",
    "CachedTesseract": "tesseract_flow.client.handles.cached",
    "CoreTesseract": "tesseract_flow.client.handles.core",
    "Derive": "tesseract_flow.client.deriving.derive",
    "DerivedTesseract": "tesseract_flow.client.handles.derived",
    "DirectoryCache": "tesseract_flow.client.caches.directory",
    "HttpTesseract": "tesseract_flow.client.http",
    "LimitedTesseract": "tesseract_flow.client.handles.limited",
    "MemoryCache": "tesseract_flow.client.caches.memory",
    "ReplicatedTesseract": "tesseract_flow.client.handles.replicas",
    "RetryPolicy": "tesseract_flow.client.retry",
    "ServedTesseract": "tesseract_flow.client.handles.served",
    "TesseractLike": "tesseract_flow.client.opening",
    "is_transient": "tesseract_flow.client.retry",
    "open_tesseract": "tesseract_flow.client.opening",
    "opened": "tesseract_flow.client.opening",
}

__all__ = [
    "AbstractCache",
    "AbstractTesseract",
    "Account",
    "AdaptiveTesseract",
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
    "Recall",
    "ReplicatedTesseract",
    "RequestCounts",
    "RetryPolicy",
    "ServedTesseract",
    "TesseractLike",
    "Tree",
    "charge",
    "charged_to",
    "count_requests",
    "current_account",
    "is_transient",
    "on_each_kind",
    "open_account",
    "open_tesseract",
    "opened",
    "own_requests",
    "record_request",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_EXPORTS[name]), name)
    return value
