"""A handle that asks its cache before its component.

Here: `CachedTesseract`, what `cache=` means, which part of a component goes into the key. Not here: caches (`caches`,
`directory`). The one idea: a hit is no request, so nothing below this handle hears of it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from tesseract_flow.client.base import GENERIC_NAMES, AbstractTesseract, Endpoint, Tree
from tesseract_flow.client.caches.base import AbstractCache, RequestKey
from tesseract_flow.client.caches.directory import DirectoryCache
from tesseract_flow.client.caches.memory import shared_cache
from tesseract_flow.client.caches.probation import note_answer
from tesseract_flow.client.handles.wrapper import AbstractWrapper
from tesseract_flow.errors import OptionError
from tesseract_flow.exact import InputKey

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

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        key = self._key(endpoint, payload) if endpoint in _PURE else None
        if key is None:
            return self.tesseract.request(endpoint, payload, run_id=run_id)
        answer = self.cache.answer(
            key,
            lambda: self.tesseract.request(endpoint, payload, run_id=run_id),
            lambda answer: self.check_answer(endpoint, payload, answer),
        )
        note_answer(self.cache, key)
        return answer

    def _key(self, endpoint: Endpoint, payload: Mapping[str, Any]) -> RequestKey | None:
        """None if the payload cannot be a key; whether it can be sent is for the handle to say."""
        schema, build = self.tesseract.schema, self.tesseract.build
        if build is None and self.cache.is_lasting:  # asked now and not before, since a component is started for it
            raise OptionError(
                f"{self.tesseract!r} runs in this process, and nothing tells another process which code it has, so its "
                f"answers cannot be kept in {self.cache!r}.\nUse cache=True (in memory); serve the component, by the "
                "path of its tesseract_api.py; or, for a FunctionTesseract, give the function a version."
            )
        component = [schema.name, schema.version, schema.digest, build]
        if schema.name in GENERIC_NAMES:
            component.append(repr(self.tesseract))  # says where it is, and has no credentials
        try:
            asked = {name: sorted(item) if name in _PATHS else item for name, item in payload.items()}
            key = RequestKey(self.tesseract, InputKey({"component": component, "endpoint": endpoint, "payload": asked}))
            if self.cache.is_lasting:
                key.packed  # noqa: B018  (remembered in the key)
        except (TypeError, ValueError, RecursionError):
            self.cache.traffic.count("skipped")
            return None
        return key
