"""A handle that asks its cache before its component.

Here: `CachedTesseract`, what `cache=` means, which part of a component goes into the key. Not here: caches (`caches`,
`directory`). The one idea: a hit is no request, so nothing below this handle hears of it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from tesseract_flow.client.base import AbstractTesseract, Endpoint, Tree
from tesseract_flow.client.caches.base import AbstractCache, RequestKey
from tesseract_flow.client.caches.components import Component
from tesseract_flow.client.caches.directory import DirectoryCache
from tesseract_flow.client.caches.memory import shared_cache
from tesseract_flow.client.caches.probation import note_answer
from tesseract_flow.client.handles.wrapper import AbstractWrapper
from tesseract_flow.client.meter import record_request
from tesseract_flow.errors import NotRecorded, OptionError
from tesseract_flow.exact import InputKey
from tesseract_flow.schema import TesseractSchema

_PURE = frozenset({"apply", "abstract_eval", "jacobian", "jacobian_vector_product", "vector_jacobian_product"})
# Lists of paths, whose order says nothing: answers come by path.
_PATHS = frozenset(f"{kind}_{side}" for kind in ("jac", "jvp", "vjp") for side in ("inputs", "outputs"))

CacheLike = AbstractCache | str | os.PathLike[str] | bool | None


def cache_from_option(value: Any) -> AbstractCache | None:
    """What `cache=` means: None and False, True, the path of a folder, or a cache."""
    if value is None or value is False:
        return None
    if value is True:
        return shared_cache()
    if isinstance(value, AbstractCache):
        return value
    if isinstance(value, str | os.PathLike):
        return DirectoryCache(value)
    raise OptionError(
        f"cache is {value!r}; expected True (in memory), the path of a folder, or a cache such as "
        "MemoryCache(max_bytes=...) or DirectoryCache(path, max_bytes=...)."
    )


@dataclasses.dataclass(frozen=True)
class CachedTesseract(AbstractWrapper):
    """A handle whose answers are kept. Equal if handle and cache are.

    Attributes:
        tesseract: the handle that is asked for what is not in the cache.
        cache: where answers are kept; `cache.stats()` has its counters.

    The first request raises `OptionError` if the cache outlives the process, and nothing outside of the process tells
    this component from another of the same name.
    """

    tesseract: AbstractTesseract
    cache: AbstractCache

    def __repr__(self) -> str:
        return f"CachedTesseract({self.tesseract!r}, {self.cache!r})"

    @property
    def name(self) -> str:
        return self._component.name if self._is_replay else self.tesseract.name

    @property
    def schema(self) -> TesseractSchema:
        return self.tesseract.schema if self.cache.mode == "use" else self._component.schema

    def read_schema(self) -> TesseractSchema:
        return self._component.schema if self._is_replay else self.tesseract.read_schema()

    def refresh(self) -> None:
        if not self._is_replay:
            self.tesseract.refresh()

    @property
    def known_schema(self) -> TesseractSchema | None:
        return self._component.schema if self._is_replay else self.tesseract.known_schema

    @property
    def build(self) -> str | None:  # type: ignore[override]
        return self._component.build if self._is_replay else self.tesseract.build

    @property
    def anchor(self) -> object:
        return self.cache.anchor(self.tesseract)

    @property
    def _is_replay(self) -> bool:
        return self.cache.mode == "replay"

    @property
    def _component(self) -> Component:
        if not self._is_replay and self.tesseract.build is None and self.cache.is_lasting:
            # Asked now and not before, since a component is started for it.
            raise OptionError(
                f"{self.tesseract!r} runs in this process, and nothing tells another process which code it has, so its "
                f"answers cannot be kept in {self.cache!r}.\nUse cache=True (in memory); serve the component, by the "
                "path of its tesseract_api.py; or, for a FunctionTesseract, give the function a version."
            )
        return self.cache.component(self.tesseract)

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        key = self.key_of(endpoint, payload) if endpoint in _PURE else None
        if key is None and self._is_replay:
            raise NotRecorded(
                f"{endpoint!r} of Tesseract {self.name!r} asks what cannot be written down, so {self.cache!r} has no "
                "answer to it.\nNothing was sent. Give inputs that are arrays and plain values.",
                tesseract=repr(self.tesseract),
                endpoint=endpoint,
            )
        if key is None:
            return self.tesseract.request(endpoint, payload, run_id=run_id)
        if self._is_replay:
            record_request(self.name, endpoint)  # of which the recording answers each, as a server would
        answer = self.cache.answer(
            key,
            lambda: self.tesseract.request(endpoint, payload, run_id=run_id),
            lambda answer: self.check_answer(endpoint, payload, answer),
        )
        note_answer(self.cache, key)
        return answer

    def key_of(self, endpoint: Endpoint, payload: Mapping[str, Any]) -> RequestKey | None:
        """By what the answer to a question is kept; None if the payload cannot be a key. Whether it can be sent is for
        the handle to say."""
        self.refresh()
        component = self._component.key
        try:
            asked = {name: sorted(item) if name in _PATHS else item for name, item in payload.items()}
            key = RequestKey(self.tesseract, InputKey({"component": component, "endpoint": endpoint, "payload": asked}))
            if self.cache.is_lasting:
                key.digest  # noqa: B018  (remembered in the key)
        except (TypeError, ValueError, RecursionError) as error:
            self.cache.skip(f"the question cannot be written down: {error}")
            return None
        return key
