"""Derivatives: right numbers, no request too many, and second derivatives refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.autograd.gradcheck import GradcheckError
from torch.utils.checkpoint import checkpoint

from tesseract_flow.client import count_requests
from tesseract_flow.errors import ComponentFailed, InvalidAnswer, SecondDerivative
from tesseract_flow.schema import ArrayField
from tesseract_flow.torch import apply_tesseract
from tests.cases import CASES, Case
from tests.torch.helpers import NumpyTesseract, holomorphic, product, rosenbrock, tensor, vector

# Those whose trees are not found in the other tests, as compiling the JAX side takes a while.
TREES = {"nested", "static_between", "integers", "plain_outputs", "complex", "zero_size"}
over_cases = pytest.mark.parametrize("case", [case for case in CASES if case.name in TREES], ids=lambda case: case.name)


def y_of(tesseract: Any, **fixed: Any) -> Any:
    return lambda a, b: apply_tesseract(tesseract, {"a": a, "b": b, **fixed})["y"]


# ----------------------------------------------------------------------------------------------------------- gradcheck


def _product(a: Any, b: Any) -> Any:
    out = apply_tesseract(product(), {"a": a, "b": b})
    return out["y"], out["total"]


def _rosenbrock(x: Any, y: Any) -> Any:
    return apply_tesseract(rosenbrock(), {"x": x, "y": y})["f"]


def _holomorphic(z: Any) -> Any:
    out = apply_tesseract(holomorphic(), {"z": z})
    return out["w"], out["p"]


def _inside_torch(a: Any, b: Any) -> Any:
    out = apply_tesseract(product(), {"a": torch.sin(a) * b.sum(), "b": b})
    return (out["y"] ** 2).sum() + out["total"].exp()


GRADCHECKS: dict[str, tuple[Any, tuple[torch.Tensor, ...]]] = {
    "vectors": (_product, (tensor(1.0, -2.0, 0.5), tensor(0.3, 1.5, -1.0))),
    "scalars": (_rosenbrock, (torch.tensor(-1.2).double().requires_grad_(), torch.tensor(1.0).double())),
    "complex": (_holomorphic, (tensor(1 + 2j, -0.5j, 3.0, dtype=torch.complex128),)),
    "between torch operations": (_inside_torch, (tensor(0.1, -0.2, 0.5), tensor(0.3, 0.5, -1.0))),
}


@pytest.mark.parametrize("fn, x", GRADCHECKS.values(), ids=GRADCHECKS)
def test_gradcheck(fn: Any, x: tuple[torch.Tensor, ...]):
    assert torch.autograd.gradcheck(fn, x, check_forward_ad=True, check_batched_grad=False)


@pytest.mark.parametrize("fn, x", GRADCHECKS.values(), ids=GRADCHECKS)
def test_gradgradcheck_is_refused(fn: Any, x: tuple[torch.Tensor, ...]):
    with pytest.raises(SecondDerivative, match="Second derivative requested of Tesseract"):
        torch.autograd.gradgradcheck(fn, x)


def test_gradcheck_in_process_with_dicts_and_lists(in_process: Any):
    wing, tail, first, second = tensor(1.0, -2.0), tensor(0.3), tensor(0.5, 1.5), tensor(2.0, -1.0)

    def fn(wing: Any, tail: Any, first: Any, second: Any, scale: Any) -> Any:
        inputs = {"parts": {"wing": wing, "tail": tail}, "knots": [first, second], "scale": scale}
        out = apply_tesseract(in_process, inputs)
        return out["squares"]["wing"], out["squares"]["tail"], *out["products"], out["total"]

    x = (wing, tail, first, second, torch.tensor(1.5, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(fn, x, check_forward_ad=True)


def test_gradcheck_finds_a_wrong_pullback():
    def distort(endpoint: str, answer: Any) -> Any:
        return answer if endpoint == "apply" else {path: 1.01 * value for path, value in answer.items()}

    wrong = product(distort=distort)
    with pytest.raises(GradcheckError):
        torch.autograd.gradcheck(y_of(wrong), (tensor(1.0, 2.0), tensor(3.0, 4.0)))


# -------------------------------------------------------------------------------------- the same as in JAX, on any tree


def to_torch(tree: Any) -> Any:
    return jax.tree_util.tree_map(lambda leaf: torch.from_numpy(np.array(leaf)), tree)


def leaves(tree: Any) -> list[Any]:
    """In JAX's order, which both sides share, as tensors are leaves to JAX too."""
    return jax.tree_util.tree_leaves(tree)


def flat(case: Case) -> Any:
    """Tensors at the differentiable inputs -> tensors at the differentiable outputs, both as tuples."""
    treedef = jax.tree_util.tree_structure(case.x)

    def fn(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        full = case.full(jax.tree_util.tree_unflatten(treedef, tensors))
        # The inputs that are not differentiable go as NumPy arrays, as they would from a torch program.
        full = jax.tree_util.tree_map(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, full)
        return tuple(leaf for leaf in leaves(apply_tesseract(case.tesseract, full)) if isinstance(leaf, torch.Tensor))

    return fn


def assert_same(got: Any, expected: Any, rtol: float) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        a, b = a.detach().resolve_conj().numpy(), np.asarray(b)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.max(np.abs(b), initial=0.0))


@over_cases
def test_outputs_and_derivatives_equal_jax(case: Case):
    x, x_dot, y_bar = (leaves(to_torch(tree)) for tree in (case.x, case.tangent(1), case.cotangent(2)))
    y = flat(case)(*(leaf.requires_grad_() for leaf in x))
    x_bar = torch.autograd.grad(y, x, y_bar, materialize_grads=True)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(leaf.detach(), leaf_dot) for leaf, leaf_dot in zip(x, x_dot, strict=True)]
        y_dot = [forward_ad.unpack_dual(leaf).tangent for leaf in flat(case)(*duals)]

    @jax.jit
    def expected(x: Any, x_dot: Any, y_bar: Any) -> Any:
        # PyTorch's gradients are the conjugates of JAX's.
        (x_bar,) = jax.vjp(case.plain, x)[1](jax.tree_util.tree_map(jnp.conj, y_bar))
        return *jax.jvp(case.plain, (x,), (x_dot,)), jax.tree_util.tree_map(jnp.conj, x_bar)

    for got, tree in zip((y, y_dot, x_bar), expected(case.x, case.tangent(1), case.cotangent(2)), strict=True):
        assert_same(got, leaves(tree), 10 * case.rtol)


# ------------------------------------------------------------------------------------------------ requests, and no more


def test_one_request_for_the_value_and_one_for_the_gradient():
    with count_requests() as requests:
        y_of(product())(tensor(1.0, 2.0), tensor(3.0, 4.0)).sum().backward()
    assert requests == {"product.apply": 1, "product.vector_jacobian_product": 1}


def test_only_what_is_needed_is_requested():
    tesseract = product()
    a, b = tensor(1.0, 2.0), tensor(3.0, 4.0, grad=False)
    out = apply_tesseract(tesseract, {"a": a, "b": b})
    out["total"].backward()
    (payload,) = tesseract.payloads("vector_jacobian_product")
    assert payload["vjp_inputs"] == ["a"]
    assert payload["vjp_outputs"] == ["total"]
    assert set(payload["cotangent_vector"]) == {"total"}
    assert a.grad is not None
    assert a.grad.tolist() == [1.0, 1.0]
    assert b.grad is None


def test_forward_mode_requests_only_what_carries_a_tangent():
    tesseract = product()
    a, b = tensor(1.0, 2.0, grad=False), tensor(3.0, 4.0, grad=False)
    with forward_ad.dual_level(), count_requests() as requests:
        out = apply_tesseract(tesseract, {"a": a, "b": forward_ad.make_dual(b, torch.ones_like(b))})
        assert forward_ad.unpack_dual(out["y"]).tangent.tolist() == [1.0, 2.0]
        assert forward_ad.unpack_dual(out["total"]).tangent.item() == 0.0
    assert requests == {"product.apply": 1, "product.jacobian_vector_product": 1}
    (payload,) = tesseract.payloads("jacobian_vector_product")
    assert payload["jvp_inputs"] == list(payload["tangent_vector"]) == ["b"]


def test_zero_cotangents_and_tangents_cost_no_request():
    a, b = tensor(1.0, 2.0), tensor(3.0, 4.0)
    with count_requests() as requests:
        (0.0 * y_of(product())(a, b)).sum().backward()
        with forward_ad.dual_level():
            y = y_of(product())(forward_ad.make_dual(a, torch.zeros_like(a)), b.detach())
            assert forward_ad.unpack_dual(y).tangent.tolist() == [0.0, 0.0]
    assert requests == {"product.apply": 2}
    assert a.grad is not None
    assert a.grad.tolist() == [0.0, 0.0]


def test_nan_is_not_zero():
    a = tensor(1.0, 2.0)
    with count_requests() as requests:
        y_of(product())(a, tensor(3.0, 4.0)).backward(torch.tensor([np.nan, 0.0], dtype=torch.float64))
    assert requests.n_of("vector_jacobian_product") == 1
    assert a.grad is not None
    assert torch.isnan(a.grad[0])


def test_without_grad_there_is_no_graph():
    a, b = tensor(1.0, 2.0), tensor(3.0, 4.0)
    with count_requests() as requests:
        with torch.no_grad():
            assert y_of(product())(a, b).grad_fn is None
        with torch.inference_mode():
            assert y_of(product())(a, b).is_inference()
        assert y_of(product())(a.detach(), b.detach()).grad_fn is None
    assert requests == {"product.apply": 3}


def test_several_backward_passes():
    a, b = tensor(1.0, 2.0), tensor(3.0, 4.0)
    with count_requests() as requests:
        y = y_of(product())(a, b)
        once = torch.autograd.grad(y.sum(), a, retain_graph=True)[0]
        twice = torch.autograd.grad(2.0 * y.sum(), a)[0]
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            torch.autograd.grad(y.sum(), a)
    assert torch.equal(twice, 2.0 * once)
    assert requests == {"product.apply": 1, "product.vector_jacobian_product": 2}


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_inside_checkpoint(use_reentrant: bool):
    a, b = tensor(1.0, 2.0), tensor(3.0, 4.0)
    with count_requests() as requests:
        y = checkpoint(lambda a, b: torch.sin(y_of(product())(a, b)), a, b, use_reentrant=use_reentrant)
        y.sum().backward()
    assert requests == {"product.apply": 2, "product.vector_jacobian_product": 1}
    assert a.grad is not None
    assert torch.allclose(a.grad, torch.cos(a * b) * b)


def test_jacobian_of_torch():
    with count_requests() as requests:
        j_a, j_b = torch.autograd.functional.jacobian(y_of(product()), (tensor(1.0, 2.0), tensor(3.0, 4.0)))
    assert torch.equal(j_a, torch.diag(tensor(3.0, 4.0)))
    assert torch.equal(j_b, torch.diag(tensor(1.0, 2.0)))
    assert requests == {"product.apply": 1, "product.vector_jacobian_product": 2}


def test_threads_do_not_mix_their_gradients():
    tesseract = product()

    def gradient(k: int) -> bool:
        a, b = tensor(*range(k, k + 5)), tensor(*range(5))
        y_of(tesseract)(a, b).sum().backward()
        return torch.equal(a.grad, b.detach()) and torch.equal(b.grad, a.detach())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(gradient, range(24)))
    assert len(tesseract.requests) == 48


def test_an_optimizer_of_torch_descends():
    x, y = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (-1.2, 1.0))
    optimizer = torch.optim.LBFGS([x, y], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = apply_tesseract(rosenbrock(), {"x": x, "y": y})["f"]
        loss.backward()
        return loss

    optimizer.step(closure)
    assert x.item() == pytest.approx(1.0, abs=1e-4)
    assert y.item() == pytest.approx(1.0, abs=1e-4)


# --------------------------------------------------------------------------------------------- dtypes, views, write-ins


def test_gradients_have_the_dtype_of_their_inputs():
    a, b = tensor(1.0, 2.0, dtype=torch.float32), tensor(3.0, 4.0)
    y = y_of(product())(a, b)
    y.sum().backward()
    assert y.dtype == b.grad.dtype == torch.float64
    assert a.grad.dtype == torch.float32
    assert a.grad.tolist() == [3.0, 4.0]


def test_gradient_of_a_broadcast_input_is_summed():
    fixed = NumpyTesseract(
        lambda i: {"y": 2.0 * i["x"]},
        lambda i: {("y", "x"): 2.0 * np.eye(3)},
        inputs={"x": ArrayField("float64", (3,), True)},
        outputs={"y": ArrayField("float64", (3,), True)},
    )
    x = tensor(1.0)
    y = apply_tesseract(fixed, {"x": x})["y"]
    assert y.tolist() == [2.0, 2.0, 2.0]
    y.sum().backward()
    assert x.grad.tolist() == [6.0]


def test_float32_stays_float32():
    single = NumpyTesseract(
        lambda i: {"y": i["x"] ** 2},
        lambda i: {("y", "x"): np.diag(2 * i["x"])},
        inputs={"x": vector("float32")},
        outputs={"y": vector("float32")},
    )
    x = tensor(1.0, 2.0, dtype=torch.float32)
    y = apply_tesseract(single, {"x": x})["y"]
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.float32
    assert {payload["inputs"]["x"].dtype for _, payload in single.requests} == {np.dtype("float32")}


def test_views_of_every_kind():
    z = tensor(1 + 2j, 3 - 1j, dtype=torch.complex128, grad=False)
    assert torch.equal(apply_tesseract(holomorphic(), {"z": z.conj()})["w"], (1 + 2j) * z.conj() ** 2)
    negative = z.conj().imag  # a view with a negative bit
    assert negative.is_neg()
    a = torch.arange(8.0, dtype=torch.float64)[::4]
    assert y_of(product())(a, negative).tolist() == (a * -z.imag).tolist()


def test_input_changed_before_backward_is_refused_by_torch():
    x = tensor(1.0, 2.0)
    a = x * 1.0
    y = y_of(product())(a, a)
    a.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_numpy_input_changed_before_backward_changes_nothing():
    a, b = tensor(1.0, 2.0), np.array([3.0, 4.0])
    y = y_of(product())(a, b)
    b[:] = 0.0
    y.sum().backward()
    assert a.grad.tolist() == [3.0, 4.0]


def test_component_can_neither_write_into_tensors_nor_share_its_own():
    kept = np.zeros(2)

    def overwrite(i: Any) -> Any:
        i["x"] += 1.0
        return {"y": i["x"]}

    fields = {"inputs": {"x": vector()}, "outputs": {"y": vector()}}
    with pytest.raises(ValueError, match="read-only"):
        apply_tesseract(NumpyTesseract(overwrite, **fields), {"x": tensor(1.0, 2.0)})
    apply_tesseract(NumpyTesseract(lambda i: {"y": kept}, **fields), {"x": tensor(1.0, 2.0)})["y"].detach().add_(1.0)
    assert kept.tolist() == [0.0, 0.0]


def test_tesseract_without_differentiable_outputs():
    size = NumpyTesseract(
        lambda i: {"n": len(i["x"]), "k": i["x"] > 0},
        inputs={"x": vector()},
        outputs={"k": ArrayField("bool", (None,), False)},
    )
    x = tensor(1.0, -2.0)
    with forward_ad.dual_level():
        out = apply_tesseract(size, {"x": forward_ad.make_dual(x, torch.ones_like(x))})
    assert out["n"] == 2
    assert out["k"].tolist() == [True, False]
    assert [endpoint for endpoint, _ in size.requests] == ["apply"]


# -------------------------------------------------------------------------------------------------- second derivatives


def test_gradient_with_create_graph_can_be_used():
    a, b = tensor(1.0, 2.0), tensor(3.0, 4.0)
    (gradient,) = torch.autograd.grad(y_of(product())(a, b).sum(), a, create_graph=True)
    assert gradient.tolist() == [3.0, 4.0]
    assert gradient.requires_grad


def _penalty(a: Any, b: Any) -> Any:
    (gradient,) = torch.autograd.grad(y_of(product())(a, b).sum(), a, create_graph=True)
    # Without the refusal, b would get the gradient of the first term alone.
    return (b**2).sum() + (gradient**2).sum()


def _forward_over_reverse(a: Any, b: Any) -> Any:
    with forward_ad.dual_level():
        return torch.autograd.grad(y_of(product())(forward_ad.make_dual(a, torch.ones_like(a)), b).sum(), b)


def _reverse_over_forward(a: Any, b: Any) -> Any:
    with forward_ad.dual_level():
        y = y_of(product())(forward_ad.make_dual(a, torch.ones_like(a)), b)
        return ((b**2).sum() + forward_ad.unpack_dual(y).tangent.sum()).backward()


SECOND = {
    "reverse over reverse": lambda a, b: _penalty(a, b).backward(),
    "hessian": lambda a, b: torch.autograd.functional.hessian(lambda a: y_of(product())(a, b).sum(), a),
    "forward over reverse": _forward_over_reverse,
    "reverse over forward": _reverse_over_forward,
}


@pytest.mark.parametrize("second", SECOND.values(), ids=SECOND)
def test_second_derivatives_are_refused(second: Any):
    with pytest.raises(SecondDerivative, match=r"of Tesseract 'product'[^§]*L-BFGS"):
        second(tensor(1.0, 2.0), tensor(3.0, 4.0))


# ------------------------------------------------------------------------------------------------------- wrong answers


def _push(f: Any, a: torch.Tensor, b: torch.Tensor) -> None:
    with forward_ad.dual_level():
        f(forward_ad.make_dual(a, torch.ones_like(a)), b)


def _pull(f: Any, a: torch.Tensor, b: torch.Tensor) -> None:
    f(a, b).sum().backward()


@pytest.mark.parametrize("endpoint, ask", [("jacobian_vector_product", _push), ("vector_jacobian_product", _pull)])
@pytest.mark.parametrize(
    "distort, message",
    [
        (lambda value: np.zeros(5), r"of shape \(5,\) and dtype float64; expected shape \(2,\)"),
        (lambda value: np.asarray(value) * 1j, "dtype complex128; expected shape .* and dtype float64"),
        (None, "without"),
    ],
    ids=["shape", "dtype", "missing"],
)
def test_derivative_that_does_not_fit_is_refused(endpoint: str, ask: Any, distort: Any, message: str):
    def wrong(asked: str, answer: Any) -> Any:
        if asked != endpoint:
            return answer
        return {} if distort is None else {path: distort(value) for path, value in answer.items()}

    with pytest.raises(InvalidAnswer, match=message) as caught:
        ask(y_of(product(distort=wrong)), tensor(1.0, 2.0), tensor(3.0, 4.0))
    assert caught.value.endpoint == endpoint
    assert "'product'" in str(caught.value)


def test_error_of_the_component_comes_through_backward_and_leaves_the_graph_usable():
    failing = {"is_on": True}

    def slopes(i: Any) -> Any:
        if failing["is_on"]:
            raise ZeroDivisionError("the mesh is tangled")
        return {("y", "x"): np.diag(2 * i["x"])}

    tesseract = NumpyTesseract(lambda i: {"y": i["x"] ** 2}, slopes, inputs={"x": vector()}, outputs={"y": vector()})
    x = tensor(1.0, 2.0)
    y = apply_tesseract(tesseract, {"x": x})["y"].sum()
    with pytest.raises(ComponentFailed, match="the mesh is tangled"):
        y.backward(retain_graph=True)
    failing["is_on"] = False
    y.backward()
    assert x.grad.tolist() == [2.0, 4.0]
