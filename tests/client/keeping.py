"""Components and questions that the tests of result caches share."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tesseract_flow.client import AbstractTesseract, Endpoint, Tree, open_tesseract, record_request
from tesseract_flow.client.caches.base import AbstractCache
from tesseract_flow.schema import ANY, ModelField, TesseractSchema
from tesseract_flow.testing import FunctionTesseract


def square(**options: Any) -> FunctionTesseract:
    """y = x², entry by entry, of a version: other processes may know it."""
    options = {"version": "1.0", "name": "square", **options}
    return FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(3)}, **options)


# One that takes any answer.
_SCHEMA = dataclasses.replace(square().schema, outputs=ModelField({}, extra=ANY))


class Numbering(AbstractTesseract):
    """A component that answers the n-th request with n, whatever the question."""

    def __init__(self, answer: Callable[[int], Tree] = lambda n: {"n": n}, schema: TesseractSchema = _SCHEMA):
        self._schema = schema
        self.numbers = itertools.count()
        self._answer = answer

    def __repr__(self) -> str:
        return "Numbering()"

    @property
    def name(self) -> str:
        return "numbering"

    @property
    def schema(self) -> TesseractSchema:
        return self._schema

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        record_request(self.name, endpoint)
        return self._answer(next(self.numbers))


class Gate:
    """For `FunctionTesseract(before=...)`: holds requests until it is opened, and fails as it is told.

    Attributes:
        arrived: set with the first request.
        n_arrived: requests so far.
    """

    def __init__(self, *errors: BaseException | None):
        self.errors = list(errors)
        self.arrived = threading.Event()
        self.opened = threading.Event()
        self.n_arrived = 0
        self._lock = threading.Lock()

    def __call__(self, endpoint: str, inputs: Any) -> None:
        with self._lock:
            self.n_arrived += 1
            error = self.errors.pop(0) if self.errors else None
        self.arrived.set()
        assert self.opened.wait(60)
        if error is not None:
            raise error


def version_of(component: AbstractTesseract, **changes: Any) -> AbstractTesseract:
    """The component with another schema."""
    return _Rebuilt(component, dataclasses.replace(component.schema, **changes))


@dataclasses.dataclass(frozen=True)
class _Rebuilt(AbstractTesseract):
    tesseract: AbstractTesseract
    changed: TesseractSchema

    @property
    def name(self) -> str:
        return self.tesseract.name

    @property
    def schema(self) -> TesseractSchema:
        return self.changed

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        return self.tesseract.request(endpoint, payload, run_id=run_id)


def kept(component: AbstractTesseract, cache: AbstractCache | None) -> AbstractTesseract:
    return open_tesseract(component, cache=cache)


def wait_until_merging(cache: AbstractCache, n: int) -> None:
    """Wait until `n` calls wait for others."""
    ticks = threading.Event()
    for _ in range(6000):
        if cache.traffic.n_waiting >= n:
            return
        ticks.wait(0.01)
    raise AssertionError(f"{cache.traffic.n_waiting} calls wait, not {n}")
