"""Handles to Tesseracts, and what happens to a request on its way.

NumPy only: these methods run inside JAX's host callbacks, where JAX itself must not be called.
"""

from tesseract_flow.client.at_once import AtOnce
from tesseract_flow.client.base import AbstractTesseract, Endpoint, Tree
from tesseract_flow.client.cached import CachedTesseract
from tesseract_flow.client.caching import AbstractCache, MemoryCache
from tesseract_flow.client.core import CoreTesseract
from tesseract_flow.client.derived import Derive, DerivedTesseract
from tesseract_flow.client.directory import DirectoryCache
from tesseract_flow.client.http import HttpTesseract
from tesseract_flow.client.limits import LimitedTesseract
from tesseract_flow.client.meter import RequestCounts, count_requests, record_request
from tesseract_flow.client.opening import TesseractLike, open_tesseract, opened
from tesseract_flow.client.replicas import ReplicatedTesseract
from tesseract_flow.client.retry import RetryPolicy, is_transient
from tesseract_flow.client.served import ServedTesseract

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
    "open_tesseract",
    "opened",
    "record_request",
]
