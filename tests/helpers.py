"""What tests of several packages share: handles that watch or distort, comparisons, counted and delayed components."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from tesseract_flow.client import AbstractTesseract, Endpoint, Tree
from tesseract_flow.schema import TesseractSchema


def maybe_jit(fn: Callable[..., Any], jit: bool) -> Callable[..., Any]:
    return jax.jit(fn) if jit else fn


def assert_close(got: Any, expected: Any, rtol: float = 1e-12) -> None:
    """Equal trees, leaf by leaf, to `rtol` of each leaf's largest entry."""
    got_leaves, got_tree = jax.tree_util.tree_flatten(got)
    expected_leaves, expected_tree = jax.tree_util.tree_flatten(expected)
    assert got_tree == expected_tree
    for a, b in zip(got_leaves, expected_leaves, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        scale = float(np.max(np.abs(b), initial=0.0)) if b.dtype.kind in "fc" else 0.0
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale)


def inner(a: Any, b: Any) -> Any:
    """Sum of products over two trees. Bilinear for complex numbers as well, which is how JAX pairs them."""
    products = jax.tree_util.tree_map(lambda x, y: np.sum(np.asarray(x) * np.asarray(y), dtype=np.complex128), a, b)
    return sum(jax.tree_util.tree_leaves(products))


def magnitude(a: Any, b: Any) -> float:
    """What rounding errors in `inner` are relative to."""
    return float(abs(inner(jax.tree_util.tree_map(np.abs, a), jax.tree_util.tree_map(np.abs, b)))) + 1e-300


@dataclasses.dataclass(frozen=True)
class Watched(AbstractTesseract):
    """A handle that keeps what passes through it and may distort answers. Equal if it wraps the same Tesseract.

    Attributes:
        distort: (endpoint, answer) -> the answer that the caller gets.
        requests: (endpoint, payload) in order.
    """

    tesseract: AbstractTesseract
    distort: Callable[[str, Tree], Tree] = dataclasses.field(default=lambda endpoint, answer: answer, compare=False)
    requests: list[tuple[str, Mapping[str, Any]]] = dataclasses.field(default_factory=list, compare=False)

    @property
    def name(self) -> str:
        return self.tesseract.name

    @property
    def schema(self) -> TesseractSchema:
        return self.tesseract.schema

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        self.requests.append((endpoint, payload))
        return self.distort(endpoint, self.tesseract.request(endpoint, payload, run_id=run_id))

    def payloads(self, endpoint: str) -> list[Mapping[str, Any]]:
        return [payload for asked, payload in self.requests if asked == endpoint]


class Faults:
    """A component's trouble, for `FunctionTesseract(before=...)`: raises the given errors one after the other.

    Args:
        errors: what goes wrong at each attempt; attempts after the last one succeed.
        endpoint: where.
    """

    def __init__(self, *errors: Exception, endpoint: str = "apply"):
        self.errors = list(errors)
        self.endpoint = endpoint

    def __call__(self, endpoint: str, inputs: Any) -> None:
        if endpoint == self.endpoint and self.errors:
            raise self.errors.pop(0)


class RandomDelay:
    """Solves that take a random time, from threads in any order, for `FunctionTesseract(before=...)`."""

    def __init__(self, seed: int, longest: float = 2e-3):
        self.rng = np.random.default_rng(seed)
        self.longest = longest
        self.lock = threading.Lock()

    def __call__(self, endpoint: str, inputs: Any) -> None:
        with self.lock:
            seconds = self.rng.uniform(0.0, self.longest)
        time.sleep(seconds)
