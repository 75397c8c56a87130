"""A small path beside a large one: wrong ones are named, right ones are left in peace, what cannot show is said."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.client import AbstractTesseract
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import Watched

PULLBACK, JACOBIAN, PUSHFORWARD = "vector_jacobian_product", "jacobian", "jacobian_vector_product"
REVERSE = ("apply", "abstract_eval", PULLBACK)
N = 8


def weighted(scale: np.ndarray, gains: np.ndarray, endpoints: Any = REVERSE) -> FunctionTesseract:
    """y_j = gain_j (Σ scale_i sin(x_i) + b), z = Σ scale_i x_i²."""
    return FunctionTesseract(
        lambda i: {"y": gains * (jnp.sum(scale * jnp.sin(i["x"])) + i["b"]), "z": jnp.sum(scale * i["x"] ** 2)},
        {"x": np.ones(scale.size), "b": np.array(1.0)},
        name="part",
        endpoints=endpoints,
    )


def scales(n: int, decades: float) -> np.ndarray:
    return np.logspace(0.0, -decades, n)


def problem_of(part: AbstractTesseract, n: int = N) -> tf.Problem:
    def evaluate(design: Any) -> Any:
        out = tf.apply_tesseract(part, design)
        return jnp.sum(out["y"]) + out["z"]

    x = np.random.default_rng(2).uniform(0.5, 1.2, n)
    return tf.Problem({"x": jnp.asarray(x), "b": jnp.asarray(0.7)}, evaluate, name="small")


def changed(part: AbstractTesseract, index: int, factor: float) -> Watched:
    def change(endpoint: str, y: Any) -> Any:
        if endpoint != PULLBACK:
            return y
        x = np.array(y["x"])
        x[index] *= factor
        return {**y, "x": x}

    return Watched(part, change)


@pytest.mark.parametrize("factor", [-1.0, 0.0, 2.0])
@pytest.mark.parametrize("share", [1e-3, 1e-6, 1e-9])
def test_one_wrong_entry_that_adds_little(share: float, factor: float) -> None:
    scale = np.ones(N)
    scale[3] = share
    report = tf.check_gradients(problem_of(changed(weighted(scale, np.ones(2)), 3, factor)))
    assert report.verdicts[0].status == "wrong", str(report)
    (fault, *_) = [v for v in report.faults if v.component == "part"]
    assert (fault.endpoint, fault.input) == (PULLBACK, "x"), str(report)
    assert {"total", "part"} == {v.component for v in report.faults}, str(report)
    if factor != 0.0:
        assert fault.input_index in (None, (3,))


@pytest.mark.parametrize("ratio", [1e6, 1e8])
def test_one_wrong_path_that_adds_little(ratio: float) -> None:
    part = FunctionTesseract(
        lambda i: {"y": ratio * jnp.sum(i["a"] ** 2) + jnp.sum(i["b"] ** 2)},
        {"a": np.ones(3), "b": np.ones(3)},
        name="part",
        endpoints=REVERSE,
    )
    wrong = Watched(part, lambda asked, y: {**y, "b": -y["b"]} if asked == PULLBACK else y)
    start = {"a": jnp.ones(3), "b": jnp.ones(3)}
    report = tf.check_gradients((lambda d: tf.apply_tesseract(wrong, d)["y"], start))
    assert [(v.component, v.input, v.kind) for v in report.faults] == [
        ("total", None, "differs"),
        ("part", "b", "sign"),
    ]


@pytest.mark.parametrize("index", [20, 50, 80, 99])
def test_one_wrong_entry_among_twelve_decades(index: int) -> None:
    scale = scales(100, 10.0)
    problem = problem_of(changed(weighted(scale, np.ones(2)), index, 3.0), 100)
    report = tf.check_gradients(problem)
    assert ("part", "x") in {(v.component, v.input) for v in report.faults}, str(report)
    assert report.sent <= report.most


@pytest.mark.parametrize("share", [1e-3, 1e-6, 1e-9])
def test_a_leaf_of_the_design_in_a_rule_of_its_own(share: float) -> None:
    """No component: the fault is in the evaluation."""

    @jax.custom_vjp
    def half(x: Any) -> Any:
        return x / 2

    half.defvjp(lambda x: (x / 2, None), lambda _, c: (2 * c,))
    loss = lambda d: jnp.sum(d["a"] ** 2) + share * half(d["b"])  # noqa: E731
    report = tf.check_gradients((loss, {"a": jnp.ones(3), "b": jnp.asarray(1.0)}))
    (fault,) = report.faults
    assert fault.component == "total"
    assert fault.input in (None, "b")
    assert "b" in fault.message


@pytest.mark.parametrize("share", [1e-3, 1e-6, 1e-9])
def test_a_dependence_that_the_gradient_says_is_not_there(share: float) -> None:
    part = FunctionTesseract(
        lambda i: {"y": jnp.sum(i["a"] ** 2) + share * jnp.sum(i["b"] ** 2)},
        {"a": np.ones(3), "b": np.ones(2)},
        name="part",
        endpoints=REVERSE,
    )
    silent = Watched(part, lambda asked, y: {**y, "b": 0.0 * y["b"]} if asked == PULLBACK else y)
    start = {"a": jnp.ones(3), "b": jnp.ones(2)}
    report = tf.check_gradients((lambda d: tf.apply_tesseract(silent, d)["y"], start))
    assert ("part", "b", "missing") in {(v.component, v.input, v.kind) for v in report.faults}, str(report)
    report = tf.check_gradients((lambda d: jnp.sum(d["a"] ** 2) + share * jax.lax.stop_gradient(d["b"]).sum(), start))
    assert [v.component for v in report.faults] == ["total"]


@pytest.mark.parametrize("endpoint", [PULLBACK, JACOBIAN])
@pytest.mark.parametrize("gain", [1e-3, 1e-6, 1e-9])
def test_an_output_that_adds_little(gain: float, endpoint: str) -> None:
    """Beside others of the same array, with a sign of its own that is wrong."""
    gains = np.array([1.0, 1.0, gain, 1.0])
    plain = weighted(np.ones(N), gains, ("apply", "abstract_eval", PULLBACK, JACOBIAN))

    class Wrong(Watched):
        def request(self, asked: Any, payload: Any, *, run_id: str | None = None) -> Any:
            payload = dict(payload)
            if asked == PULLBACK == endpoint and "y" in payload["cotangent_vector"]:
                c = np.array(payload["cotangent_vector"]["y"])
                c[2] *= -1.0
                payload["cotangent_vector"] = {**payload["cotangent_vector"], "y": c}
            answer = super().request(asked, payload, run_id=run_id)
            if asked == JACOBIAN == endpoint:
                signs = np.array([1.0, 1.0, -1.0, 1.0])
                of_y = {k: np.asarray(b) * signs.reshape(4, *[1] * (np.ndim(b) - 1)) for k, b in answer["y"].items()}
                answer = {**answer, "y": of_y}
            return answer

    report = tf.check_gradients(problem_of(Wrong(plain)), components=True)
    assert (endpoint, "y") in {(v.endpoint, v.output) for v in report.faults if v.component == "part"}, str(report)
    assert {v.endpoint for v in report.faults if v.component == "part"} == {endpoint}


@pytest.mark.parametrize("gain", [1e-3, 1e-6, 1e-9])
def test_a_constraint_that_adds_little(gain: float) -> None:
    @jax.custom_vjp
    def half(x: Any) -> Any:
        return x / 2

    half.defvjp(lambda x: (x / 2, None), lambda _, c: (-c / 2,))
    problem = tf.Problem(
        {"x": jnp.ones(3)},
        lambda d: tf.Evaluation(jnp.sum(d["x"] ** 2), {"c": gain * jnp.sum(half(d["x"]))}),
        constraints={"c": tf.Constraint(upper=1.0)},
    )
    assert not tf.check_gradients(problem).ok


@pytest.mark.parametrize("b", [0.0, 1e-3])
@pytest.mark.parametrize("seed", range(3))
def test_a_term_that_is_forgotten_and_nearly_zero_at_the_start(b: float, seed: int) -> None:
    """3 b² in the derivative by b. What was moved from zero kept the size of that small part, and showed nothing."""

    def pullback(inputs: Any, vjp_inputs: Any, vjp_outputs: Any, cotangent_vector: Any) -> Any:
        by = {"a": 2 * (np.asarray(inputs["a"]) - 2), "b": 2 * (np.asarray(inputs["b"]) - 1)}
        return {name: cotangent_vector["y"] * by[name] for name in vjp_inputs}

    part = FunctionTesseract(
        lambda i: {"y": ((i["a"] - 2) ** 2 + (i["b"] - 1) ** 2 + 3 * i["b"] ** 2).sum()},
        {"a": np.ones(4), "b": np.ones(4)},
        name="part",
        derivatives={PULLBACK: pullback},
    )
    start = {"a": jnp.ones(4), "b": jnp.full(4, b)}
    report = tf.check_gradients((lambda d: tf.apply_tesseract(part, d)["y"], start), seed=seed)
    assert ("part", PULLBACK, "b") in {(v.component, v.endpoint, v.input) for v in report.faults}, str(report)


def test_a_square_that_is_forgotten_where_it_is_zero() -> None:
    """p² in the derivative by x: of p = 1e-3 it would be a millionth."""

    def pullback(inputs: Any, vjp_inputs: Any, vjp_outputs: Any, cotangent_vector: Any) -> Any:
        x, p = np.asarray(inputs["x"]), np.asarray(inputs["p"])
        by = {"x": 2 * (x - 2), "p": 2 * (p - 1) + 2 * p * x.sum()}
        return {name: cotangent_vector["y"] * by[name] for name in vjp_inputs}

    part = FunctionTesseract(
        lambda i: {"y": ((i["x"] - 2) ** 2).sum() + (i["p"] - 1) ** 2 + i["p"] ** 2 * i["x"].sum()},
        {"x": np.ones(6), "p": np.zeros(())},
        name="part",
        derivatives={PULLBACK: pullback},
    )
    start = {"x": jnp.ones(6), "p": jnp.zeros(())}
    report = tf.check_gradients((lambda d: tf.apply_tesseract(part, d)["y"], start))
    assert ("part", PULLBACK, "x") in {(v.component, v.endpoint, v.input) for v in report.faults}, str(report)


@pytest.mark.parametrize("index", [0, 1])
def test_a_wrong_entry_beside_one_in_a_unit_of_its_own(index: int) -> None:
    example = {"x": np.ones(2)}
    part = FunctionTesseract(lambda i: {"y": jnp.sin(i["x"][0] / 1e-8) + i["x"][1] ** 2}, example, name="part")
    wrong = changed(part, index, 1.5)

    def loss(x: jax.Array) -> jax.Array:
        return tf.apply_tesseract(wrong, {"x": x})["y"]

    report = tf.check_gradients((loss, jnp.array([0.5e-8, 0.7])))
    assert {v.endpoint for v in report.faults if v.component == "part"} == {PULLBACK}, str(report)


class TestSilence:
    @pytest.mark.parametrize(("decades", "status"), [(10.0, "right"), (12.0, "unsure")])
    def test_contributions_over_many_decades(self, decades: float, status: str) -> None:
        """Of twelve, the last one is at the end of what 64 bits can show."""
        endpoints = ("apply", "abstract_eval", PULLBACK, PUSHFORWARD, JACOBIAN)
        problem = problem_of(weighted(scales(N, decades), scales(3, decades), endpoints))
        for seed in range(3):
            report = tf.check_gradients(problem, seed=seed, components=True)
            assert report.ok, str(report)
            assert report.verdicts[0].status in (status, "right"), str(report)

    @pytest.mark.parametrize("seed", range(4))
    def test_noise_hides_what_is_small_and_is_said_to(self, seed: int) -> None:
        rng = np.random.default_rng(seed)

        def distort(endpoint: str, y: Any) -> Any:
            if endpoint != "apply":
                return y
            return {key: v * (1 + 1e-6 * rng.standard_normal(np.shape(v))) for key, v in y.items()}

        part = Watched(weighted(scales(N, 12.0), scales(3, 12.0)), distort)
        report = tf.check_gradients(problem_of(part), seed=seed, components=True)
        assert report.ok, str(report)
        assert report.verdicts[0].status == "unsure"
        assert "too small beside the rest to show" in report.verdicts[0].message
        assert "x (" in report.verdicts[0].message

    @pytest.mark.parametrize("components", [None, True])
    @pytest.mark.parametrize("is_split", [True, False])
    @pytest.mark.parametrize("bend", [jnp.sin, lambda v: 1.0 / (1.0 + v**2)], ids=["wave", "peak"])
    def test_an_entry_in_a_unit_of_its_own(self, bend: Any, is_split: bool, components: bool | None) -> None:
        """Moved by the size of its neighbour it is far beyond its own range, where values say nothing of its slope."""
        unit, example = 1e-8, {"x": np.ones(2)}
        if is_split:
            example = {"p": np.ones(()), "q": np.ones(())}
            part = FunctionTesseract(lambda i: {"y": bend(i["p"]) * 1e-6 + i["q"] ** 2}, example)
        else:
            part = FunctionTesseract(lambda i: {"y": bend(i["x"][0] / unit) * 1e-6 + (i["x"][1] / 700) ** 2}, example)

        def loss(x: jax.Array) -> jax.Array:
            inputs = {"p": x[0] / unit, "q": x[1] / 700} if is_split else {"x": x}
            return tf.apply_tesseract(part, inputs)["y"]

        report = tf.check_gradients((loss, jnp.array([0.5 * unit, 490.0])), components=components)
        assert "wrong" not in {v.status for v in report.verdicts}, str(report)

    def test_zeros_of_symmetry_and_leaves_that_nobody_uses(self) -> None:
        start = {"x": jnp.asarray([1.0, 0.0, -1.0]), "unused": jnp.ones(4)}
        report = tf.check_gradients((lambda d: jnp.sum(d["x"] ** 2) + d["x"][0] * 1e-20, start))
        assert [v.status for v in report.verdicts] == ["right"], str(report)

    def test_a_gradient_by_differences_is_not_blamed_for_its_digits(self) -> None:
        part = tf.open_tesseract(weighted(scales(N, 9.0), np.ones(2), ("apply", "abstract_eval")), derive="forward")
        report = tf.check_gradients(problem_of(part))
        assert report.ok, str(report)


def test_the_price_is_kept() -> None:
    part = weighted(scales(N, 12.0), scales(3, 6.0))
    for most in (9, 10, 11, 14, 20):
        with tf.count_requests() as requests:
            report = tf.check_gradients(problem_of(part), max_requests=most)
        assert report.sent <= most
        assert requests.n_total - requests.n_of("abstract_eval") <= most
        assert report.ok
    assert report.verdicts[0].status == "unsure"


def test_uniform_fields_cost_nothing_more() -> None:
    report = tf.check_gradients(problem_of(weighted(np.ones(2000), np.ones(2)), 2000))
    assert report.verdicts[0].status == "right"
    assert report.sent == report.planned
