"""`torch.vmap` by each method: the same numbers as a loop, and the promised number of requests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tesseract_flow.client import count_requests
from tesseract_flow.errors import EndpointNotFound, InvalidAnswer, InvalidInput, OptionError
from tesseract_flow.schema import ArrayField, LeafField
from tesseract_flow.torch import UnsupportedTransform, apply_tesseract
from tests.torch.helpers import ANY_RANK, INT, NumpyTesseract, any_rank, product, tensor, vector

METHODS = ("sequential", "expand_dims", "broadcast_all")
over_methods = pytest.mark.parametrize("method", METHODS)
X = torch.arange(12.0, dtype=torch.float64).reshape(4, 3)
W = torch.tensor([0.5, 4.5, 8.5], dtype=torch.float64)


def call(tesseract: Any, method: str) -> Any:
    return lambda x, w: apply_tesseract(tesseract, {"x": x, "w": w}, vmap_method=method)


def arrays(out: dict[str, Any]) -> tuple[Any, ...]:
    return out["y"], out["z"], out["mask"]


@over_methods
def test_equals_a_loop(method: str):
    with count_requests() as requests:
        y, z, mask = torch.vmap(lambda x: arrays(call(any_rank(), method)(x, W)))(X)
    assert requests.n_of("apply") == (4 if method == "sequential" else 1)
    assert torch.equal(y, X**2)
    assert torch.allclose(z, torch.sin(W).expand(4, 3))
    # Not differentiable, so outside of vmap it would be a NumPy array.
    assert torch.equal(mask, X > W)


@over_methods
@pytest.mark.parametrize("in_dims", [(0, None), (1, None), (None, 0), (1, 1), (-1, 0)])
def test_over_any_dimension_of_any_input(method: str, in_dims: tuple[int | None, ...]):
    plain = [X if dim == 0 else X.T if dim is not None else W for dim in in_dims]
    got = torch.vmap(lambda x, w: arrays(call(any_rank(), method)(x, w)), in_dims)(*plain)
    expected = torch.vmap(lambda x, w: (x**2, torch.sin(w), x > w), in_dims)(*plain)
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b)


@over_methods
def test_unmapped_arrays_at_the_component(method: str):
    """What is mapped has the batch first. What is not has a 1 there, or the whole batch; numbers stay numbers."""
    for w in (W, W.numpy()):
        tesseract = any_rank()
        torch.vmap(lambda x, w=w, t=tesseract: call(t, method)(x, w)["y"])(X)
        shapes = {np.shape(payload["inputs"]["w"]) for payload in tesseract.payloads("apply")}
        assert shapes == {{"sequential": (3,), "expand_dims": (1, 3), "broadcast_all": (4, 3)}[method]}
    tesseract = NumpyTesseract(
        lambda i: {"y": i["x"] * i["w"]}, inputs={"x": ANY_RANK, "w": ANY_RANK}, outputs={"y": ANY_RANK}
    )
    assert torch.equal(torch.vmap(lambda x: call(tesseract, method)(x, 2.0)["y"])(X), 2 * X)
    assert {np.shape(payload["inputs"]["w"]) for payload in tesseract.payloads("apply")} == {()}


@over_methods
def test_backward_through_a_map(method: str):
    x, w = X.clone().requires_grad_(), W.clone().requires_grad_()
    with count_requests() as requests:
        y, z = torch.vmap(lambda x: arrays(call(any_rank(), method)(x, w))[:2])(x)
        (y.sum() + z.sum()).backward()
    n = 4 if method == "sequential" else 1
    assert requests == {"any_rank.apply": n, "any_rank.vector_jacobian_product": n}
    assert torch.allclose(x.grad, 2 * X)
    assert torch.allclose(w.grad, 4 * torch.cos(W))


@over_methods
def test_gradcheck_of_a_map(method: str):
    def fn(x: torch.Tensor, w: torch.Tensor) -> Any:
        return torch.vmap(lambda x: arrays(call(any_rank(), method)(x, w))[:2])(x)

    x, w = tensor([1.0, -2.0], [0.5, 3.0]), tensor(0.3, 1.2)
    assert torch.autograd.gradcheck(fn, (x[0], w), check_forward_ad=True)


@over_methods
def test_map_of_a_map(method: str):
    xs = torch.stack([X, -X])
    with count_requests() as requests:
        inner = torch.vmap(lambda x: arrays(call(any_rank(), method)(x, W)))
        y, z, mask = torch.vmap(inner)(xs)
    assert torch.equal(y, xs**2)
    assert torch.allclose(z, torch.sin(W).expand(2, 4, 3))
    assert torch.equal(mask, xs > W)
    assert requests.n_total == (8 if method == "sequential" else 1)


def test_one_by_one_fits_a_schema_with_fixed_shapes():
    fixed = NumpyTesseract(
        lambda i: {"y": i["x"] * 2, "n": i["k"]},
        inputs={"x": ArrayField("float64", (3,), True), "k": INT},
        outputs={"y": ArrayField("float64", (3,), True), "n": INT},
    )

    def fn(x: torch.Tensor, k: torch.Tensor, method: str = "sequential") -> Any:
        return apply_tesseract(fixed, {"x": x, "k": k}, vmap_method=method)["y"]

    # An integer that is mapped arrives as a number, element by element.
    assert torch.equal(torch.vmap(lambda x: fn(x, torch.tensor(5)))(X), 2 * X)
    torch.vmap(fn)(X, torch.arange(4))
    assert [payload["inputs"]["k"] for payload in fixed.payloads("apply")] == [5, 5, 5, 5, 0, 1, 2, 3]
    with pytest.raises(InvalidInput, match=r"x: expected shape \(3,\), got shape \(4, 3\)\n.*use 'sequential'"):
        torch.vmap(lambda x: fn(x, torch.tensor(5), "expand_dims"))(X)


@pytest.mark.parametrize("method", METHODS[1:])
def test_schema_that_counts_the_batch_itself(method: str):
    """A component whose first dimension is a batch by declaration: one element has a dimension less than the schema."""
    rows = ArrayField("float64", (None, 3), True)
    summed = NumpyTesseract(
        lambda i: {"y": i["x"].sum(axis=1)}, inputs={"x": rows}, outputs={"y": ArrayField("float64", (None,), True)}
    )
    got = torch.vmap(lambda x: apply_tesseract(summed, {"x": x}, vmap_method=method)["y"])(X)
    assert torch.equal(got, X.sum(dim=1))
    # Not mapped, the same inputs are refused.
    with pytest.raises(InvalidInput, match=r"x: expected shape \(\*, 3\), got shape \(3,\)"):
        apply_tesseract(summed, {"x": X[0]}, vmap_method=method)


@pytest.mark.parametrize("method", METHODS[1:])
def test_component_that_does_not_batch_is_found_out(method: str):
    total = NumpyTesseract(lambda i: {"y": np.sum(i["x"])}, inputs={"x": ANY_RANK}, outputs={"y": ANY_RANK})
    with pytest.raises(InvalidAnswer, match=rf"{method!r} needs outputs with the batch .*'y' with shape \(\)"):
        torch.vmap(lambda x: apply_tesseract(total, {"x": x}, vmap_method=method)["y"])(X)


def test_elements_with_different_shapes_cannot_be_stacked():
    ragged = NumpyTesseract(
        lambda i: {"y": np.ones(int(i["x"][0]) // 3 + 1)}, inputs={"x": vector()}, outputs={"y": vector()}
    )
    with pytest.raises(InvalidAnswer, match=r"'y' with shape \(1,\) for element 0 and \(2,\) for element 1"):
        torch.vmap(lambda x: apply_tesseract(ragged, {"x": x}, vmap_method="sequential")["y"])(X)


def test_arrays_in_fields_without_a_schema_are_stacked_too():
    free = NumpyTesseract(
        lambda i: {"log": {"steps": np.arange(3), "name": "run", "nan": float("nan")}},
        inputs={"x": vector()},
        outputs={"log": LeafField("any")},
    )
    seen = []

    def fn(x: torch.Tensor) -> torch.Tensor:
        seen.append(apply_tesseract(free, {"x": x}, vmap_method="sequential")["log"])
        return seen[0]["steps"]

    assert torch.vmap(fn)(X).tolist() == [[0, 1, 2]] * 4
    assert seen[0]["name"] == "run"


def test_empty_batch():
    with pytest.raises(OptionError, match=r"torch\.vmap over nothing"):
        torch.vmap(lambda x: call(any_rank(), "sequential")(x, W)["y"])(X[:0])
    assert torch.vmap(lambda x: call(any_rank(), "broadcast_all")(x, W)["y"])(X[:0]).shape == (0, 3)


@over_methods
def test_method_has_no_influence_outside_of_vmap(method: str):
    out = call(any_rank(), method)(X, W)
    assert torch.equal(out["y"], X**2)
    assert isinstance(out["mask"], np.ndarray)


def test_map_over_something_else_calls_once():
    with count_requests() as requests:
        got = torch.vmap(lambda x: x * apply_tesseract(product(), {"a": W, "b": W})["total"])(X)
    assert requests.n_total == 1
    assert torch.equal(got, X * W.sum())


def test_without_a_method_it_is_refused():
    with pytest.raises(
        UnsupportedTransform, match=r"'any_rank' needs a batching strategy[^§]*vmap_method[^§]*'sequential'"
    ) as caught:
        torch.vmap(lambda x: apply_tesseract(any_rank(), {"x": x, "w": W})["y"])(X)
    assert isinstance(caught.value, NotImplementedError)


@over_methods
def test_missing_pullback_is_found_before_the_solve(method: str):
    tesseract = any_rank(endpoints=[])
    x = X.clone().requires_grad_()
    with pytest.raises(EndpointNotFound, match="'vector_jacobian_product'"):
        torch.vmap(lambda x: call(tesseract, method)(x, W)["y"])(x)
    assert tesseract.requests == []
