"""A cached handle answers as the handle does, with fewer requests, and never with the answer to something else."""

from __future__ import annotations

import copy
import pickle
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import (
    AbstractCache,
    CachedTesseract,
    CoreTesseract,
    DerivedTesseract,
    DirectoryCache,
    MemoryCache,
    ServedTesseract,
    count_requests,
    open_tesseract,
)
from tesseract_flow.client.caches.base import Origin
from tesseract_flow.client.caches.memory import shared_cache
from tesseract_flow.client.handles.limited import LimitedTesseract
from tesseract_flow.client.handles.replicas import ReplicatedTesseract
from tesseract_flow.errors import ComponentFailed, InvalidAnswer, OptionError, Overloaded
from tesseract_flow.execute import concurrent
from tesseract_flow.testing import FunctionTesseract
from tests.cases import CASES, Case
from tests.client.keeping import Numbering, kept, square, version_of
from tests.exact.trees import TREES, written_out
from tests.helpers import Faults, Watched, assert_close

X = {"x": np.array([1.0, 2.0, 3.0])}
ENDPOINTS = ["apply", "abstract_eval", "jacobian", "jacobian_vector_product", "vector_jacobian_product"]
NANS = [np.array([bits], np.uint64).view(np.float64) for bits in (0x7FF8000000000000, 0x7FF8000000000001)]


@pytest.fixture(params=["memory", "directory"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> AbstractCache:
    return MemoryCache() if request.param == "memory" else DirectoryCache(tmp_path)


def ask(handle: Any, inputs: Any, c: Any = None) -> dict[str, Any]:
    """Every endpoint of `square`."""
    c = np.array([1.0, -1.0, 0.5]) if c is None else c
    return {
        "apply": handle.apply(inputs),
        "abstract_eval": handle.abstract_eval({"x": {"shape": list(inputs["x"].shape), "dtype": "float64"}}),
        "jacobian": handle.jacobian(inputs, ["x"], ["y"]),
        "jacobian_vector_product": handle.jacobian_vector_product(inputs, ["x"], ["y"], {"x": c}),
        "vector_jacobian_product": handle.vector_jacobian_product(inputs, ["x"], ["y"], {"y": c}),
    }


# What is kept


def test_every_endpoint_is_asked_once(cache: AbstractCache) -> None:
    component = square()
    handle = kept(component, cache)
    expected = ask(component, X)
    with count_requests() as counts:
        for _ in range(3):
            assert written_out(ask(handle, {"x": X["x"].copy()})) == written_out(expected)
    assert counts == {f"square.{endpoint}": 1 for endpoint in ENDPOINTS}
    stats = cache.stats()
    assert (stats["misses"], stats["hits"], stats["entries"]) == (5, 10, 5)
    with count_requests() as counts:
        ask(handle, X, np.ones(3))
    assert counts.n_total == 2  # another tangent, another cotangent


def test_run_id_and_order_of_paths_say_nothing(cache: AbstractCache) -> None:
    component = FunctionTesseract(
        lambda i: {"s": i["a"] + i["b"], "p": i["a"] * i["b"]}, {"a": np.ones(2), "b": np.ones(2)}, version="1"
    )
    handle = kept(component, cache)
    inputs = {"a": np.array([1.0, 2.0]), "b": np.array([3.0, 4.0])}
    c = {"s": np.ones(2), "p": np.ones(2)}
    with count_requests() as counts:
        first = handle.vector_jacobian_product(inputs, ["a", "b"], ["s", "p"], c, run_id="one")
        again = handle.vector_jacobian_product(
            dict(reversed(inputs.items())), ["b", "a"], ["p", "s"], dict(reversed(c.items())), run_id="two"
        )
        assert counts.n_total == 1
        handle.vector_jacobian_product(inputs, ["a"], ["s", "p"], c)
        assert counts.n_total == 2
    assert_close(again, first)


@pytest.mark.parametrize(
    "a, b",
    [
        (-1, -2),
        (1, 1.0),
        (1, True),
        (1.0, True),
        (0.0, -0.0),
        (np.array([0.0]), np.array([-0.0])),
        tuple(NANS),
        ({"p": 1, "q": 2}, {"p": 2, "q": 1}),
        ([1, 2], [2, 1]),
        (np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(3, 2)),
        (np.arange(6.0), np.arange(6.0).view(np.int64)),
        (np.zeros(2, np.float32), np.zeros(1, np.float64)),
        ("1", 1),
        (None, False),
    ],
    ids=str,
)
def test_near_misses_are_misses(cache: AbstractCache, a: Any, b: Any) -> None:
    handle = kept(Numbering(), cache)
    assert [handle.apply({"v": v})["n"] for v in (a, b, b, a)] == [0, 1, 1, 0]


@given(st.lists(TREES, min_size=2, max_size=4))
def test_same_answer_exactly_for_the_same_input(trees: list[Any]) -> None:
    handle = kept(Numbering(), MemoryCache())
    numbers = [handle.apply({"v": tree})["n"] for tree in trees]
    forms = [str(written_out(tree)) for tree in trees]
    assert len(set(numbers)) == len(set(forms)) == len(set(zip(numbers, forms, strict=True)))
    assert [handle.apply({"v": tree})["n"] for tree in trees] == numbers


@settings(max_examples=25)
@given(st.lists(TREES, min_size=2, max_size=3))
def test_same_answer_exactly_for_the_same_input_in_a_folder(trees: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        handle = kept(Numbering(), DirectoryCache(folder))
        numbers = [handle.apply({"v": tree})["n"] for tree in trees]
        forms = [str(written_out(tree)) for tree in trees]
        assert len(set(numbers)) == len(set(forms)) == len(set(zip(numbers, forms, strict=True)))
        assert [kept(Numbering(), DirectoryCache(folder)).apply({"v": tree})["n"] for tree in trees] == numbers


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_answers_are_those_of_the_handle(case: Case, cache: AbstractCache) -> None:
    component = FunctionTesseract(
        case.fn, case.inputs, name=case.name, version="1", inputs=case.input_fields, outputs=case.output_fields
    )
    handle = kept(component, cache)
    expected = component.apply(case.inputs)
    for _ in range(2):
        assert written_out(handle.apply(case.inputs)) == written_out(expected)
    assert cache.stats()["hits"] == 1


def test_nobody_can_change_what_is_kept(cache: AbstractCache) -> None:
    answers = [{"y": np.arange(3.0), "list": [np.ones(2), {"z": 1}]}]
    handle = kept(Numbering(lambda n: answers[0]), cache)
    x = np.ones(3)
    first = handle.apply({"x": x})
    for answer in (first, handle.apply({"x": np.ones(3)})):
        answer["y"][...] = -1.0  # it may: it is the caller's own
        answer["list"][0][0] = -1.0
        answer["list"].append("more")
        answer["list"][1]["z"] = 2
    answers[0]["y"][...] = -2.0
    x[0] = 7.0
    assert_close(handle.apply({"x": np.ones(3)}), {"y": np.arange(3.0), "list": [np.ones(2), {"z": 1}]})
    assert cache.stats()["misses"] == 1


def test_component_that_writes_into_its_inputs_does_not_change_the_key(cache: AbstractCache) -> None:
    class Spoiling(Watched):
        def request(self, endpoint: Any, payload: Any, *, run_id: str | None = None) -> Any:
            payload["inputs"]["x"][...] = 0.0
            return super().request(endpoint, payload, run_id=run_id)

    handle = kept(Spoiling(Numbering()), cache)
    assert [handle.apply({"x": np.ones(3)})["n"] for _ in range(2)] == [0, 0]
    assert handle.apply({"x": np.zeros(3)})["n"] == 1


@pytest.mark.parametrize("error", [ComponentFailed("diverged"), Overloaded("busy"), RuntimeError("odd")], ids=repr)
def test_failures_are_not_kept(cache: AbstractCache, error: Exception) -> None:
    faults = Faults(error)

    def before(endpoint: str, answer: Any) -> Any:
        faults(endpoint, None)
        return answer

    handle = kept(Watched(square(), before), cache)
    with pytest.raises(type(error), match=str(error)) as caught:
        handle.apply(X)
    assert caught.value is error
    assert_close(handle.apply(X), {"y": X["x"] ** 2})
    assert cache.stats()["entries"] == 1


def test_what_cannot_be_a_key_is_sent(cache: AbstractCache) -> None:
    handle = kept(Numbering(), cache)
    loop: list[Any] = []
    loop.append(loop)
    for v in (bytearray(b"1"), np.array([object()]), loop):
        assert [handle.apply({"v": v})["n"] - handle.apply({"v": v})["n"] for _ in range(2)] == [-1, -1]
    stats = cache.stats()
    assert (stats["skipped"], stats["entries"], stats["misses"]) == (12, 0, 0)


def test_answer_that_cannot_be_kept_is_given(cache: AbstractCache) -> None:
    handle = kept(Numbering(lambda n: {"n": n, "odd": {1, 2}}), cache)
    assert [handle.apply(X)["n"] for _ in range(3)] == [0, 1, 2]
    assert cache.stats()["skipped"] == 3


# Whose answers


@pytest.mark.parametrize("change", [{"version": "2"}, {"digest": "other"}, {"name": "cube"}], ids=str)
def test_another_component_misses(cache: AbstractCache, change: dict[str, str]) -> None:
    component = Numbering()
    assert kept(component, cache).apply(X)["n"] == 0
    assert kept(version_of(component, **change), cache).apply(X)["n"] == 1
    assert kept(component, cache).apply(X)["n"] == 0


def test_another_build_misses(cache: AbstractCache) -> None:
    component = Numbering()
    for expected, build in enumerate(("", "one", "two")):
        component.build = build
        assert kept(component, cache).apply(X)["n"] == expected
        for handle in (
            LimitedTesseract(component, 3),
            DerivedTesseract(component),
            kept(component, cache),
            ReplicatedTesseract((component, square())),
        ):
            assert handle.build == build
    component.build = None
    assert ReplicatedTesseract((component, square())).build is None


def test_served_component_tells_its_build(served: ServedTesseract, tmp_path: Path) -> None:
    assert len(served.build) == 64
    handle = kept(served, DirectoryCache(tmp_path))
    inputs = {"x": X["x"]}
    assert handle.schema == served.schema
    with count_requests() as counts:
        assert_close(handle.apply(inputs), kept(served, DirectoryCache(tmp_path)).apply(inputs))
    assert counts.n_total == 1


def test_in_memory_two_handles_share_nothing() -> None:
    """Same name, version and schema, but other code: in one process the handles tell them apart."""
    cache = MemoryCache()
    assert_close(kept(square(), cache).apply(X), {"y": X["x"] ** 2})
    cube = FunctionTesseract(lambda i: {"y": i["x"] ** 3}, {"x": np.ones(3)}, name="square", version="1.0")
    assert_close(kept(cube, cache).apply(X), {"y": X["x"] ** 3})


def test_component_without_a_name_goes_by_its_address(tmp_path: Path) -> None:
    component = Numbering()
    nameless = version_of(component, name="Tesseract")
    assert kept(nameless, DirectoryCache(tmp_path)).apply(X)["n"] == 0
    assert kept(nameless, DirectoryCache(tmp_path)).apply(X)["n"] == 0

    class Elsewhere(Watched):
        def __repr__(self) -> str:
            return "Elsewhere()"

    assert kept(Elsewhere(nameless), DirectoryCache(tmp_path)).apply(X)["n"] == 1


def test_code_in_this_process_is_not_kept_beyond_it(tmp_path: Path, in_process: Any) -> None:
    unversioned = FunctionTesseract(lambda i: {"y": i["x"]}, {"x": np.ones(3)})
    for component in (unversioned, CoreTesseract(in_process), open_tesseract(unversioned, derive=True)):
        with (
            count_requests() as counts,
            pytest.raises(OptionError, match=r"runs in this process(.|\n)*Use cache=True"),
        ):
            CachedTesseract(component, DirectoryCache(tmp_path)).apply(X)
        assert counts.n_total == 0
        CachedTesseract(component, MemoryCache()).apply(X)


def test_nothing_is_started_before_it_is_used(tmp_path: Path) -> None:
    missing = ServedTesseract(tmp_path / "tesseract_api.py")
    handle = open_tesseract(missing, cache=tmp_path / "cache", derive=True)
    with pytest.raises(ComponentFailed, match="no component"):
        handle.apply(X)


# A handle like any other


def test_options(tmp_path: Path) -> None:
    component = square()
    assert open_tesseract(component, cache=None) is component
    assert open_tesseract(component, cache=False) is component
    assert open_tesseract(component, cache=True) == CachedTesseract(component, shared_cache())
    assert open_tesseract(component, cache=tmp_path) == CachedTesseract(component, DirectoryCache(tmp_path))
    assert open_tesseract(component, cache=str(tmp_path)) == open_tesseract(component, cache=tmp_path)
    assert open_tesseract("solver:8000", cache=True).url == "http://solver:8000"  # type: ignore[attr-defined]
    with pytest.raises(OptionError, match=r"cache is 3; expected True .*MemoryCache"):
        open_tesseract(component, cache=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Did you mean 'cache'"):
        open_tesseract("solver:8000", cahce=True)


def test_cache_is_inside_of_what_is_derived() -> None:
    component, one, two = square(endpoints={"apply", "abstract_eval"}), MemoryCache(), MemoryCache()
    both = open_tesseract(component, derive="central", cache=one)
    assert isinstance(both, DerivedTesseract)
    assert both.tesseract == CachedTesseract(component, one)
    assert open_tesseract(open_tesseract(component, derive="central"), cache=one) == both
    assert open_tesseract(open_tesseract(component, cache=one), derive="central") == both
    assert open_tesseract(both) is both
    other = open_tesseract(both, cache=two)
    assert other == open_tesseract(component, derive="central", cache=two) != both
    with count_requests() as counts:
        first = both.vector_jacobian_product(X, ["x"], ["y"], {"y": np.ones(3)})
        n = counts.n_of("apply")
        assert n == 6
        assert_close(both.vector_jacobian_product(X, ["x"], ["y"], {"y": np.ones(3)}), first)
        assert counts.n_of("apply") == n
    assert both.cache.stats()["hits"] >= n  # type: ignore[attr-defined]


def test_handle_is_a_value(cache: AbstractCache) -> None:
    component = version_of(Numbering(), name="x")
    handle = kept(component, cache)
    assert handle == kept(component, cache)
    assert hash(handle) == hash(kept(component, cache))
    assert handle != component
    assert handle != kept(component, MemoryCache())
    assert copy.deepcopy(cache) == pickle.loads(pickle.dumps(cache)) == cache
    assert jax.tree_util.tree_leaves({"handle": kept(square(), cache)}) == []
    assert repr(handle).startswith("CachedTesseract(")
    with pytest.raises(AttributeError):
        handle.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_cache_in_memory_goes_elsewhere_empty() -> None:
    cache = MemoryCache(max_bytes=1000)
    data = pickle.dumps([cache, cache])
    del cache
    one, two = pickle.loads(data)
    assert one is two
    assert one.max_bytes == 1000
    assert pickle.loads(data)[0] is one
    assert pickle.loads(pickle.dumps(one)) is one


# Through JAX


@pytest.mark.parametrize("transform", [lambda fn: fn, jax.jit, concurrent], ids=["eager", "jit", "concurrent"])
def test_second_equal_gradient_costs_no_request(cache: AbstractCache, transform: Any) -> None:
    handle = kept(square(), cache)

    def loss(x: jax.Array) -> jax.Array:
        return jnp.sum(apply_tesseract(handle, {"x": x})["y"] ** 2)

    fn = transform(jax.value_and_grad(loss))
    with count_requests() as counts:
        value, gradient = fn(jnp.asarray(X["x"]))
        assert (counts.n_of("apply"), counts.n_of("vector_jacobian_product")) == (1, 1)
    with count_requests() as counts:
        again = fn(jnp.asarray(X["x"]))
    assert counts.n_total == 0
    assert_close(again, (value, gradient))
    assert_close(gradient, 4 * jnp.asarray(X["x"]) ** 3)
    with count_requests() as counts:
        fn(jnp.asarray(X["x"]) + 1.0)
    assert counts.n_total == 2


def test_equal_calls_by_url_trace_once() -> None:
    """Handles opened anew with cache=True are equal, so jitted code does not notice."""
    component = square()
    n_traced = []

    @jax.jit
    def fn(handle: Any, x: jax.Array) -> jax.Array:
        n_traced.append(1)
        return apply_tesseract(handle, {"x": x})["y"]

    for _ in range(3):
        fn(open_tesseract(component, cache=True), jnp.asarray(X["x"]))
    assert len(n_traced) == 1


# Answers that are none


@pytest.mark.parametrize(
    "bad", [{}, {"y": np.ones((3, 3))}, {"y": np.ones(3, int)}, {"z": np.ones(3)}, {"y": None}, None]
)
def test_refused_answers_are_not_kept(cache: AbstractCache, bad: Any) -> None:
    component = Numbering(lambda n: bad if n == 0 else {"y": np.full(3, float(n))}, schema=square().schema)
    handle = kept(component, cache)
    with pytest.raises(InvalidAnswer, match="does not fit"):
        handle.apply(X)
    assert cache.size()["entries"] == 0
    assert handle.apply(X)["y"][0] == 1.0
    assert handle.apply(X)["y"][0] == 1.0


@pytest.mark.parametrize("bad", [{}, {"y": np.ones((3, 3))}, {"y": None}])
def test_what_was_kept_and_is_no_answer_is_asked_for_again(cache: AbstractCache, bad: Any, caplog: Any) -> None:
    component = Numbering(lambda n: {"y": np.full(3, float(n))}, schema=square().schema)
    handle = kept(component, cache)
    assert isinstance(handle, CachedTesseract)
    key = handle.key_of("apply", {"inputs": X})
    assert key is not None
    cache.put(key.kept(), bad, Origin())
    assert handle.apply(X)["y"][0] == 0.0
    assert "is no answer" in caplog.text
    assert handle.apply(X)["y"][0] == 0.0
    assert next(component.numbers) == 1
