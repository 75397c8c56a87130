"""Tesseracts that go wrong on demand, over real HTTP: to see what a pipeline makes of a bad day.

```python
script = [at("pullback", status(503), nth=3), at("apply", hang, every=10)]
with faulty("http://fem:8000", script, read_timeout=5) as fem:
    ...
```
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from tesseract_flow.client import AbstractTesseract, TesseractLike, open_tesseract
from tesseract_flow.testing.faults.acts import (
    NULL,
    data_is,
    decoded,
    encoded,
    failed,
    gigantic,
    hang,
    latency,
    lz4_bomb,
    malformed,
    nan,
    other_values,
    path_escape,
    redirect,
    refused,
    reset,
    reset_in_the_middle,
    said,
    slow_drip,
    spoiled,
    status,
    surplus,
    truncated,
    wrong_dtype,
    wrong_shape,
)
from tesseract_flow.testing.faults.exchange import Act, Asked, Exchange
from tesseract_flow.testing.faults.script import Rule, at
from tesseract_flow.testing.faults.server import FaultyServer
from tesseract_flow.testing.faults.source import Source, of_function

__all__ = [
    "NULL",
    "Act",
    "Asked",
    "Exchange",
    "FaultyServer",
    "Rule",
    "Source",
    "at",
    "data_is",
    "decoded",
    "encoded",
    "failed",
    "faulty",
    "gigantic",
    "hang",
    "latency",
    "lz4_bomb",
    "malformed",
    "nan",
    "of_function",
    "other_values",
    "path_escape",
    "redirect",
    "refused",
    "reset",
    "reset_in_the_middle",
    "said",
    "slow_drip",
    "spoiled",
    "status",
    "surplus",
    "truncated",
    "wrong_dtype",
    "wrong_shape",
]


@contextlib.contextmanager
def faulty(source: TesseractLike, script: Iterable[Rule], **options: Any) -> Iterator[AbstractTesseract]:
    """A handle to a Tesseract that goes wrong by a script, while the block is open.

    Args:
        source: the URL of a server, the path of a component, or a handle, in process or not: it has the right answers.
        script: what goes wrong (`at`). The first rule that takes a request answers it.
        options: of the handle, as for a URL: `read_timeout`, `retry`, `cache`, ... It has the name of the source.
    """
    handle = open_tesseract(source)
    # To a server bytes are passed on as they are.
    with FaultyServer(source if isinstance(source, str) and "://" in source else handle, script) as server:
        yield open_tesseract(server.url, **{"label": handle.name, **options})
