"""Runs whose components say little beforehand: no shapes, or texts at which the evaluation looks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import count_requests
from tesseract_flow.errors import EvaluationFailed, InvalidAnswer
from tesseract_flow.optimize import Evaluation, Problem, check_evaluation, optimize
from tesseract_flow.optimize.notes import leaves_without_effect
from tesseract_flow.testing import FunctionTesseract
from tesseract_flow.testing.function import ALL_ENDPOINTS
from tests.helpers import Watched

X = np.array([3.0, -1.0])
SILENT = set(ALL_ENDPOINTS) - {"abstract_eval"}


def facts(x: Any) -> dict[str, Any]:
    size = float(np.sum(np.abs(x)))
    return {"margin": size, "status": "good" if size < 6.0 else "bad", "remark": f"size {size:.1f}"}


def bowl(endpoints: Any = ALL_ENDPOINTS) -> Watched:
    inner = FunctionTesseract(
        lambda i: {"y": (i["x"] - 1.0) ** 2, "margin": 0.0, "status": "", "remark": ""},
        {"x": X},
        name="bowl",
        endpoints=endpoints,
    )

    class Bowl(Watched):
        def request(self, endpoint: Any, payload: Any, *, run_id: str | None = None) -> Any:
            answer = super().request(endpoint, payload, run_id=run_id)
            return answer | facts(payload["inputs"]["x"]) if endpoint == "apply" else answer

    return Bowl(inner)


def problem_of(tesseract: Any, is_looking: bool = False) -> Problem:
    def evaluate(design: Any) -> Evaluation:
        out = apply_tesseract(tesseract, {"x": design["x"]})
        sign = 1.0 if not is_looking or out["status"] == "good" else -1.0
        return Evaluation(sign * jnp.sum(out["y"]), aux={"remark": out["remark"], "margin": out["margin"]})

    return Problem({"x": jnp.asarray(X)}, evaluate, name="bowl")


@pytest.mark.parametrize("transform", [None, jax.jit], ids=["concurrent", "jit"])
def test_a_component_that_does_not_say_its_shapes_costs_nothing_more(transform: Any):
    def requests(endpoints: Any) -> Any:
        with count_requests() as counts:
            problem = problem_of(bowl(endpoints))
            result = optimize(problem, driver="sgd", learning_rate=0.4, stop={"max_steps": 6}, transform=transform)
        assert result.value < 1e-6
        return counts

    silent, telling = requests(SILENT), requests(ALL_ENDPOINTS)
    # Compiled code may ask on another thread, where nothing is known of answers that are there.
    assert silent.n_of("apply") - telling.n_of("apply") in ((0, 1) if transform is jax.jit else (0,))
    assert silent.n_of("vector_jacobian_product") == telling.n_of("vector_jacobian_product")


@pytest.mark.parametrize("endpoints", [ALL_ENDPOINTS, SILENT], ids=["with shapes", "without"])
def test_what_an_evaluation_passes_on_is_that_of_its_design(endpoints: Any):
    result = optimize(problem_of(bowl(endpoints)), driver="sgd", learning_rate=0.4, stop={"max_steps": 3})
    expected = facts(result.design["x"])
    assert result.evaluation.aux["remark"] == expected["remark"]
    np.testing.assert_allclose(result.evaluation.aux["margin"], expected["margin"])


def test_a_run_with_texts_in_its_journal_goes_on(tmp_path: Any):
    run = lambda stop: optimize(  # noqa: E731
        problem_of(bowl()), driver="sgd", learning_rate=0.4, stop={"max_steps": stop}, journal=tmp_path / "journal"
    )
    run(2)
    result = run(5)
    assert result.steps == 5
    assert result.evaluation.aux["remark"] == facts(result.design["x"])["remark"]


def test_an_evaluation_that_looks_at_a_text_is_told_that_of_the_start():
    tesseract = bowl()
    with count_requests() as counts:
        result = optimize(problem_of(tesseract, True), driver="sgd", learning_rate=0.4, stop={"max_steps": 6})
    assert result.value < 1e-6
    assert counts.n_of("apply") == counts.n_of("vector_jacobian_product") == 7


def test_and_is_not_taken_further_where_it_is_another():
    """Downhill of the wrong branch would be uphill in truth."""
    with pytest.raises((InvalidAnswer, EvaluationFailed), match="'status' = 'bad'"):
        optimize(problem_of(bowl(), True), driver="sgd", learning_rate=4.0, stop={"max_steps": 6}, on_failure="raise")


def spoken_problem(start: float) -> Problem:
    """Nothing of its component is used but a text, which is another one where x[0] is at most 1."""
    speaker = FunctionTesseract(
        lambda i: {"y": i["x"] ** 2, "said": "hi" if np.asarray(i["x"])[0] > 1.0 else "lo"},
        {"x": np.ones(2)},
        name="speaker",
        endpoints=["apply", "abstract_eval"],
    )

    def evaluate(design: Any) -> Any:
        is_high = apply_tesseract(speaker, {"x": design["x"]})["said"] == "hi"
        return jnp.sum(design["x"] ** 2) * (1.0 if is_high else 100.0)

    return Problem({"x": jnp.array([start, 3.0])}, evaluate, name="spoken")


@pytest.mark.slow
def test_a_text_decides_alone_and_is_guarded_on_the_way():
    result = optimize(spoken_problem(3.0), driver="sgd", learning_rate=0.1, stop={"max_steps": 2})
    assert np.isclose(result.value, 2 * 9.0 * 0.8**4)
    with pytest.raises(InvalidAnswer, match="'said' = 'lo'"):
        optimize(spoken_problem(1.05), driver="sgd", learning_rate=0.1, stop={"max_steps": 2})


def test_what_reaches_a_text_that_is_looked_at_has_an_effect():
    speaker = FunctionTesseract(lambda i: {"said": "hi"}, {"x": np.ones(2)}, endpoints=["apply", "abstract_eval"])

    def evaluate(design: Any) -> Any:
        return jnp.sum(design["y"] ** 2) * (
            1.0 if apply_tesseract(speaker, {"x": design["x"]})["said"] == "hi" else 2.0
        )

    design = {"x": jnp.ones(2), "y": jnp.ones(2), "idle": jnp.ones(2)}
    problem = Problem(design, evaluate, name="spoken")
    assert leaves_without_effect(problem, check_evaluation(problem)) == ["idle"]
