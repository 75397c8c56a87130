"""What loses a value on its way into a dtype is refused at call time here as well, mapped or not."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tesseract_flow.errors import InvalidAnswer, InvalidInput
from tesseract_flow.schema import ArrayField, LeafField
from tesseract_flow.testing import FunctionTesseract
from tesseract_flow.torch import apply_tesseract
from tests.helpers import Watched


def echo(dtype: str) -> Watched:
    """A component that gives back what it gets."""
    field = ArrayField(dtype, (None,), dtype[0] in "fc")
    example = {"x": np.ones(2, dtype)}
    plain = FunctionTesseract(lambda i: {"y": i["x"]}, example, name="echo", inputs={"x": field}, outputs={"y": field})
    return Watched(plain)


LOST = {
    "wraps": ([1, 300], torch.int64, "int8", r"300 at \[1\] does not fit into int8"),
    "sign": ([0, 200], torch.uint8, "int8", r"200 at \[1\] does not fit into int8"),
    "overflow": ([1e40, 1.0], torch.float64, "float32", r"1e\+40 at \[0\] does not fit into float32"),
    "not exact": ([2**53 + 1, 1], torch.int64, "float64", "9007199254740993"),
    "bfloat16": ([1.0, 7e4], torch.bfloat16, "float16", "does not fit into float16"),
}


@pytest.mark.parametrize("kind", ["tensor", "numpy", "vmap"])
@pytest.mark.parametrize("name", LOST)
def test_what_loses_a_value_is_refused_before_anything_is_sent(name: str, kind: str):
    values, dtype, wanted, message = LOST[name]
    x: Any = torch.tensor(values, dtype=dtype)
    tesseract = echo(wanted)
    run: Any = lambda x: apply_tesseract(tesseract, {"x": x}, vmap_method="sequential")["y"]  # noqa: E731
    if kind == "numpy":
        if dtype == torch.bfloat16:
            return  # which NumPy does not have
        x = x.numpy()
    if kind == "vmap":
        run, x = torch.vmap(run), x[None]
    with pytest.raises(InvalidInput, match=f"do not fit the schema of Tesseract 'echo'(?s:.*){message}"):
        run(x)
    assert not tesseract.payloads("apply")


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(2**24 + 1, "float32"), (2**53 + 1, "float64"), (1e39, "float32"), (complex(np.inf, 1e39), "complex64")],
)
def test_python_numbers_that_lose_their_value_are_refused(value: Any, dtype: str):
    tesseract = Watched(FunctionTesseract(lambda i: {"y": i["k"].real * 1}, {"k": np.ones((), dtype)}))
    with pytest.raises(InvalidInput, match=f"is not exact in {dtype}|does not fit into {dtype}"):
        apply_tesseract(tesseract, {"k": value})
    assert not tesseract.payloads("apply")


def test_what_loses_none_is_accepted_and_gradients_have_the_callers_dtype():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        x = torch.tensor([0.5, -2.0], dtype=dtype, requires_grad=True)
        tesseract = echo("float32")
        y = apply_tesseract(tesseract, {"x": x})["y"]
        assert y.dtype == torch.float32
        assert tesseract.payloads("apply")[0]["inputs"]["x"].dtype == np.float32
        (3.0 * y.sum()).backward()
        assert x.grad is not None
        assert x.grad.dtype == dtype
        assert x.grad.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("y", [np.array([1e40, 1.0]), np.array([1, 2]), np.array([True, False]), None], ids=str)
def test_answers_that_lose_a_value_are_refused(y: Any):
    odd = Watched(echo("float32"), lambda endpoint, answer: {"y": y} if endpoint == "apply" else answer)
    with pytest.raises(InvalidAnswer):
        apply_tesseract(odd, {"x": torch.ones(2)})


def test_mapped_each_element_has_its_own_numbers():
    inner = FunctionTesseract(
        lambda i: {"y": i["x"], "margin": 0.0, "fits": True},
        {"x": np.ones(2)},
        outputs={"margin": LeafField("float"), "fits": LeafField("bool")},
    )

    class Facts(Watched):
        def request(self, endpoint: Any, payload: Any, *, run_id: str | None = None) -> Any:
            answer = super().request(endpoint, payload, run_id=run_id)
            total = float(np.sum(payload["inputs"]["x"]))
            return answer | {"margin": total, "fits": total < 3.0} if endpoint == "apply" else answer

    facts = Facts(inner)
    rows = torch.tensor([[1.0, 1.0], [2.0, 2.0]], dtype=torch.float64)
    out = torch.vmap(lambda x: apply_tesseract(facts, {"x": x}, vmap_method="sequential"))(rows)
    assert out["margin"].tolist() == [2.0, 4.0]
    assert out["fits"].tolist() == [True, False]
