"""What goes in, what comes out, and what is refused before anything is sent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ConfigDict
from torch.autograd import forward_ad

from tesseract_flow.client import AbstractTesseract, count_requests, open_tesseract
from tesseract_flow.errors import ComponentFailed, EndpointNotFound, InvalidAnswer, InvalidInput, OptionError
from tesseract_flow.schema import ArrayField, LeafField, UnionField
from tesseract_flow.torch import apply_tesseract
from tests.torch.helpers import INT, TEXT, NumpyTesseract, product, tensor, vector

ROOT = Path(__file__).resolve().parents[2]


def inputs_of_containers(**more: Any) -> dict[str, Any]:
    parts = {"wing": tensor(1.0, 2.0), "tail.{left}": tensor(3.0)}
    return {"parts": parts, "knots": [tensor(0.5, 1.5), np.array([2.0, 3.0])], "note": "hello", **more}


# ---------------------------------------------------------------------------------------------------------- whom to ask


def check_containers(source: Any) -> None:
    """Dict- and list-valued fields on both sides, plain values between them, and the gradients of all."""
    inputs = inputs_of_containers(scale=torch.tensor(2.0), index=torch.tensor([4, 5]), order=torch.tensor(7))
    with count_requests() as requests:
        out = apply_tesseract(source, inputs)
        (out["squares"]["wing"].sum() + out["products"][0].sum() + out["total"]).backward()
    assert (requests.n_of("apply"), requests.n_of("vector_jacobian_product"), requests.n_total) == (1, 1, 2)
    assert out["squares"]["wing"].tolist() == [1.0, 4.0]
    assert out["squares"]["tail.{left}"].tolist() == [9.0]
    assert [y.tolist() for y in out["products"]] == [[1.0, 4.5], [2.5, 4.5]]
    assert out["total"].item() == 26.0
    assert isinstance(out["next_index"], np.ndarray)
    assert (out["next_index"].dtype, out["next_index"].tolist()) == (np.int64, [5, 6])
    assert (out["is_large"].dtype, out["is_large"].tolist()) == (np.bool_, [False, True])
    assert (out["note"], out["order"]) == ("hello!", 7)
    assert inputs["parts"]["wing"].grad.tolist() == [4.0, 6.0]
    assert inputs["parts"]["tail.{left}"].grad.tolist() == [2.0]
    assert inputs["knots"][0].grad.tolist() == [4.0, 5.0]


def test_tesseract_of_tesseract_core(in_process: Any):
    check_containers(in_process)


def test_pydantic_models_are_taken_apart(in_process: Any):
    class Inputs(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        parts: dict[str, Any]
        knots: tuple[Any, ...]
        note: str = "hello"

    plain = inputs_of_containers()
    model = Inputs(parts=plain["parts"], knots=tuple(plain["knots"]))
    apply_tesseract(in_process, model)["total"].backward()
    assert plain["parts"]["wing"].grad is not None


@pytest.mark.server
def test_handle_and_url(served: Any):
    check_containers(served)
    check_containers(served.url)
    check_containers(open_tesseract(served.url, label="far"))


@pytest.mark.server
def test_error_of_a_served_component(served: Any):
    with pytest.raises(ComponentFailed, match="not enough values to unpack"):
        apply_tesseract(served, {"parts": {}, "knots": [tensor(1.0, 2.0)]})


# ------------------------------------------------------------------------------------------------------ inputs, outputs


def echo(field: Any, **outputs: Any) -> NumpyTesseract:
    return NumpyTesseract(lambda i: {"x": i["x"]}, inputs={"x": field}, outputs={"x": field, **outputs})


def sent(tesseract: NumpyTesseract) -> Any:
    return tesseract.payloads("apply")[-1]["inputs"]["x"]


NUMBERS = {
    "tensor": torch.tensor([1.5, 2.5]),
    "parameter": torch.nn.Parameter(torch.tensor([1.5, 2.5])),
    "half": torch.tensor([1.5, 2.5], dtype=torch.float16),
    "numpy": np.array([1.5, 2.5], np.float32),
    "numpy, strided": np.array([2.5, 1.5])[::-1],
}


@pytest.mark.parametrize("value", NUMBERS.values(), ids=NUMBERS)
def test_arrays_are_cast_to_the_schema(value: Any):
    tesseract = echo(vector())
    out = apply_tesseract(tesseract, {"x": value})["x"]
    assert isinstance(sent(tesseract), np.ndarray)
    assert (sent(tesseract).dtype, sent(tesseract).tolist()) == (np.float64, [1.5, 2.5])
    assert (out.dtype, out.tolist()) == (torch.float64, [1.5, 2.5])


@pytest.mark.parametrize("value", [3, 3.0, True, np.float32(3.0), torch.tensor(3)], ids=str)
def test_numbers_are_arrays_where_the_schema_has_one(value: Any):
    tesseract = echo(ArrayField("float64", (), True))
    assert apply_tesseract(tesseract, {"x": value})["x"].item() == float(value)
    assert sent(tesseract).shape == ()


DTYPES = ["bool", "int8", "int64", "uint8", "uint16", "uint64", "float16", "float32", "complex64"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_travels_both_ways(dtype: str):
    tesseract = echo(vector(dtype, differentiable=dtype[0] in "fc"))
    value = torch.tensor([0, 1, 1]).to(getattr(torch, dtype))
    out = apply_tesseract(tesseract, {"x": value})["x"]
    assert sent(tesseract).dtype == np.dtype(dtype)
    assert isinstance(out, torch.Tensor if dtype[0] in "fc" else np.ndarray)
    assert str(out.dtype).removeprefix("torch.") == dtype
    assert out.tolist() == value.tolist()


PLAIN = {
    "int": (INT, torch.tensor(3), 3),
    "int of NumPy": (INT, np.int32(3), 3),
    "float": (LeafField("float"), torch.tensor(0.5, requires_grad=True), 0.5),
    "bool": (LeafField("bool"), torch.tensor(True), True),
    "text": (TEXT, "linear", "linear"),
    "none": (UnionField((vector(), LeafField("null"))), None, None),
}


@pytest.mark.parametrize("field, value, expected", PLAIN.values(), ids=PLAIN)
def test_plain_values_stay_plain(field: Any, value: Any, expected: Any):
    tesseract = echo(field)
    assert apply_tesseract(tesseract, {"x": value}) == {"x": expected}
    assert type(sent(tesseract)) is type(expected)


def test_tensors_in_a_field_without_a_schema_become_arrays():
    tesseract = echo(LeafField("any"))
    out = apply_tesseract(tesseract, {"x": {"table": [torch.tensor([1.0, 2.0]), "name"], "n": torch.tensor(2)}})["x"]
    assert isinstance(out["table"][0], np.ndarray)
    assert (out["table"][0].tolist(), out["table"][1], out["n"]) == ([1.0, 2.0], "name", 2)


def test_tensor_in_a_field_that_is_not_differentiable_is_detached():
    tesseract = NumpyTesseract(
        lambda i: {"y": i["x"] * i["w"]},
        lambda i: {("y", "x"): np.diag(i["w"]), ("y", "w"): np.diag(i["x"])},
        inputs={"x": vector(), "w": vector(differentiable=False)},
        outputs={"y": vector()},
    )
    x, w = tensor(1.0, 2.0), tensor(3.0, 4.0)
    apply_tesseract(tesseract, {"x": x, "w": w})["y"].sum().backward()
    assert tesseract.payloads("vector_jacobian_product")[0]["vjp_inputs"] == ["x"]
    assert w.grad is None
    assert apply_tesseract(tesseract, {"x": x.detach(), "w": w})["y"].grad_fn is None


def test_float_output_that_is_not_differentiable_is_an_array_without_a_graph():
    tesseract = NumpyTesseract(
        lambda i: {"y": i["x"] ** 2, "residual": i["x"]},
        lambda i: {("y", "x"): np.diag(2 * i["x"])},
        inputs={"x": vector()},
        outputs={"y": vector(), "residual": vector(differentiable=False)},
    )
    x = tensor(1.0, 2.0, grad=False)
    with forward_ad.dual_level():
        out = apply_tesseract(tesseract, {"x": forward_ad.make_dual(x, torch.ones_like(x))})
    assert isinstance(out["residual"], np.ndarray)
    assert tesseract.payloads("jacobian_vector_product")[0]["jvp_outputs"] == ["y"]


def test_optional_array():
    tesseract = NumpyTesseract(
        lambda i: {"y": i["x"] if i["load"] is None else i["x"] + i["load"]},
        lambda i: {("y", "x"): np.eye(2), ("y", "load"): np.eye(2)},
        inputs={"x": vector(), "load": UnionField((vector(), LeafField("null")))},
        outputs={"y": vector()},
    )
    x, load = tensor(1.0, 2.0), tensor(3.0, 4.0)
    for inputs, wanted in ({"x": x, "load": None}, ["x"]), ({"x": x, "load": load}, ["x", "load"]):
        apply_tesseract(tesseract, inputs)["y"].sum().backward()
        assert tesseract.payloads("vector_jacobian_product")[-1]["vjp_inputs"] == wanted


def test_zero_sized_arrays():
    x = torch.zeros(0, dtype=torch.float64, requires_grad=True)
    out = apply_tesseract(product(), {"a": x, "b": x})
    (out["total"] + out["y"].sum()).backward()
    assert x.grad.shape == out["y"].shape == (0,)


def test_outputs_go_where_the_inputs_are():
    """Seen with the one other device that every machine has, which keeps shapes and no numbers."""
    from tesseract_flow.torch.arrays import to_tensor

    assert to_tensor(np.ones(3), torch.device("meta")).device.type == "meta"
    assert to_tensor(np.ones(3)).device.type == "cpu"


def test_big_endian_answer():
    swapped = NumpyTesseract(
        lambda i: {"x": i["x"].astype(">f8")}, inputs={"x": vector()}, outputs={"x": ArrayField(None, None, True)}
    )
    assert apply_tesseract(swapped, {"x": tensor(1.0, 2.0)})["x"].tolist() == [1.0, 2.0]


# PyTorch's compiler looks at .grad of what crosses a break in its graph, and PyTorch warns of that.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_code_calls_it_between_two_graphs():
    tesseract, b = product(), tensor(3.0, 4.0, grad=False)

    def loss(a: torch.Tensor) -> torch.Tensor:
        return (apply_tesseract(tesseract, {"a": 2.0 * a, "b": b})["y"] ** 2).sum()

    a = tensor(1.0, 2.0)
    compiled = torch.compile(loss, backend="eager")
    torch.autograd.grad(compiled(a), a)
    assert torch.equal(torch.autograd.grad(compiled(a), a)[0], torch.autograd.grad(loss(a), a)[0])


# ------------------------------------------------------------------------------------------------------------- refusals

MISFITS = {
    "list": ({"a": [1.0, 2.0], "b": tensor(1.0)}, r"a: .*got a list; make it a tensor with torch.as_tensor"),
    "rank": ({"a": tensor([1.0, 2.0]), "b": tensor(1.0)}, r"a: expected shape \(\*,\), got shape \(1, 2\)"),
    "number": ({"a": 1.0, "b": tensor(1.0)}, r"a: expected shape .*torch.full\(shape, value\)"),
    "dtype": ({"a": tensor(1j, dtype=torch.complex64), "b": tensor(1.0)}, r"a: complex64 .*\.to\(torch\.float64\)"),
    "foreign dtype": (
        {"a": tensor(1.0).to(torch.float8_e5m2), "b": tensor(1.0)},
        r"a: float8_e5m2 .*\.to\(torch\.float64",
    ),
    "sparse": ({"a": tensor(1.0).to_sparse(), "b": tensor(1.0)}, r"a: .*torch.sparse_coo.*\.to_dense\(\)"),
    "missing": ({"a": tensor(1.0)}, r"b: required field is missing; expected: float64 array"),
    "unknown": ({"a": tensor(1.0), "b": tensor(1.0), "bb": 1}, r"bb: unknown field"),
    "no dict": (tensor(1.0), "model with fields a, b"),
}


@pytest.mark.parametrize("inputs, message", MISFITS.values(), ids=MISFITS)
def test_misfit_is_refused_in_torch_words(inputs: Any, message: str):
    tesseract = product()
    with pytest.raises((InvalidInput, TypeError), match=message) as caught:
        apply_tesseract(tesseract, inputs)
    text = str(caught.value)
    assert "Tesseract 'product'" in text
    assert text.endswith("Nothing was sent.")
    assert not {"jnp", "JAX", "astype"} & set(text.replace(".", " ").replace("(", " ").split())
    assert tesseract.requests == []


def test_list_is_a_type_error():
    with pytest.raises(TypeError, match="got a list"):
        apply_tesseract(product(), {"a": [1.0], "b": tensor(1.0)})
    with pytest.raises(InvalidInput, match="got a list"):
        apply_tesseract(product(), {"a": [1.0]})


def test_missing_pullback_is_found_before_the_solve():
    tesseract = product(endpoints=["jacobian_vector_product"])
    a, b = tensor(1.0, 2.0), tensor(3.0, 4.0)
    with pytest.raises(
        EndpointNotFound, match=r"'vector_jacobian_product'; it has: apply[^§]*\(VJP\)[^§]*no_grad\(\)[^§]*detach"
    ):
        apply_tesseract(tesseract, {"a": a, "b": b})
    assert tesseract.requests == []
    with torch.no_grad():
        assert apply_tesseract(tesseract, {"a": a, "b": b})["y"].tolist() == [3.0, 8.0]
    assert apply_tesseract(tesseract, {"a": a.detach(), "b": b.detach()})["y"].tolist() == [3.0, 8.0]


def test_missing_pushforward_is_found_before_the_solve():
    tesseract = product(endpoints=["vector_jacobian_product"])
    a = tensor(1.0, 2.0, grad=False)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(a, torch.ones_like(a))
        with pytest.raises(EndpointNotFound, match=r"forward mode \(JVP\)") as caught:
            apply_tesseract(tesseract, {"a": dual, "b": a})
    assert caught.value.endpoint == "jacobian_vector_product"
    assert tesseract.requests == []


@pytest.mark.parametrize(
    "answer, message",
    [
        ({"y": np.ones(2)}, "total: required field is missing"),
        ({"y": np.ones((2, 2)), "total": 1.0}, r"y: expected shape \(\*,\)"),
        ([1.0], "expected an object with the fields y, total, got list"),
    ],
)
def test_answer_that_does_not_fit_the_schema_is_refused(answer: Any, message: str):
    with pytest.raises(InvalidAnswer, match=message):
        apply_tesseract(product(distort=lambda endpoint, _: answer), {"a": tensor(1.0), "b": tensor(1.0)})


def test_unknown_method():
    with pytest.raises(OptionError, match=r"'sequentiel' is none of 'sequential', .*Did you mean 'sequential'\?"):
        apply_tesseract(product(), {"a": tensor(1.0), "b": tensor(1.0)}, vmap_method="sequentiel")


def test_text_is_opened_once(monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []

    def opening(source: str) -> AbstractTesseract:
        opened.append(source)
        return product()

    monkeypatch.setattr("tesseract_flow.client.opening.open_tesseract", opening)
    for _ in range(3):
        apply_tesseract("http://solver.test:8000", {"a": tensor(1.0), "b": tensor(1.0)})
    assert opened == ["http://solver.test:8000"]


# -------------------------------------------------------------------------------------------------------------- imports


def run_alone(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_jax_is_not_needed():
    run_alone(
        "import sys; sys.modules['jax'] = None\n"
        "import tesseract_flow.torch\n"
        "assert sys.modules['torch'].Tensor and tesseract_flow.torch.apply_tesseract"
    )


def test_without_torch_the_error_says_what_to_install():
    run_alone(
        "import sys; sys.modules['torch'] = None\n"
        "import tesseract_flow\n"
        "try:\n    import tesseract_flow.torch\n"
        "except ModuleNotFoundError as error:\n    assert 'tesseract-flow[torch]' in str(error), error\n"
        "else:\n    raise AssertionError"
    )
