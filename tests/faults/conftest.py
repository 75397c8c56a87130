"""The faulty server in front of the plate, once per module."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator

import orjson
import pytest

from tesseract_flow.testing.faults import FaultyServer, of_function
from tests.faults.component import tesseract_api


@functools.cache
def document() -> bytes:
    """What tesseract-core says of the component."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic's and tesseract-core's remarks about themselves
        from tesseract_core.runtime.serve import create_rest_api

        return orjson.dumps(create_rest_api(tesseract_api).openapi())


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyServer]:
    with FaultyServer(of_function(tesseract_api.answer, document())) as server:
        yield server
