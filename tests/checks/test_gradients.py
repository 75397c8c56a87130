"""`check_gradients`: planted faults are named with their place, healthy pipelines left in peace, the price is kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.checks import GradientReport
from tesseract_flow.checks.views import gradient_markdown, gradient_tables
from tesseract_flow.client import AbstractTesseract
from tesseract_flow.errors import ComponentFailed, JournalError, OptionError, ProblemError
from tesseract_flow.optimize import FileJournal
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import Watched
from tests.optimize.helpers import beam_problem, hs71_problem, rosenbrock_problem

PULLBACK, PUSHFORWARD, JACOBIAN = "vector_jacobian_product", "jacobian_vector_product", "jacobian"
REVERSE = ("apply", "abstract_eval", PULLBACK)
ALL = (*REVERSE, PUSHFORWARD, JACOBIAN)


def smooth(name: str = "part", n: int = 4, endpoints: Any = REVERSE, **options: Any) -> FunctionTesseract:
    """y = sin(x) + 0.3 w roll(x), z = s mean(x²)."""
    return FunctionTesseract(
        lambda i: {"y": jnp.sin(i["x"]) + 0.3 * i["w"] * jnp.roll(i["x"], 1), "z": i["s"] * jnp.mean(i["x"] ** 2)},
        {"x": np.ones(n), "w": np.ones(n), "s": np.array(1.0)},
        name=name,
        endpoints=endpoints,
        **options,
    )


def distorted(change: Callable[[Any], Any], endpoint: str = PULLBACK, endpoints: Any = REVERSE) -> Watched:
    return Watched(smooth("bad", endpoints=endpoints), lambda asked, y: change(y) if asked == endpoint else y)


def problem_of(*parts: AbstractTesseract, n: int = 4) -> tf.Problem:
    def evaluate(design: Any) -> Any:
        x, total = design["x"], 0.0
        for part in parts:
            out = tf.apply_tesseract(part, {**design, "x": x})
            x, total = out["y"], total + out["z"]
        return jnp.sum(x**2) + total

    rng = np.random.default_rng(1)
    design = {"x": rng.uniform(0.5, 1.5, n), "w": rng.uniform(0.5, 1.5, n), "s": np.array(0.7)}
    return tf.Problem(jax.tree.map(jnp.asarray, design), evaluate, name="parts")


def named(report: GradientReport) -> set[tuple[str, str, str, str | None, str | None]]:
    return {(v.component, v.endpoint, v.kind, v.output, v.input) for v in report.faults if v.component != "total"}


class TestFaults:
    @pytest.mark.parametrize(
        ("change", "kind", "output", "input"),
        [
            (lambda y: {**y, "s": -y["s"]}, "sign", "z", "s"),
            (lambda y: {**y, "w": 2 * y["w"]}, "factor", "y", "w"),
            (lambda y: {**y, "w": 0 * y["w"]}, "missing", "y", "w"),
            (lambda y: {**y, "x": y["w"], "w": y["x"]}, "differs", "y", "x"),
            (lambda y: {**y, "x": y["x"] * np.array([1.0, 1.0, 1.1, 1.0])}, "differs", "y", "x"),
            (lambda y: {**y, "x": y["x"] * np.nan}, "differs", "y", "x"),
        ],
        ids=["sign", "factor", "missing", "wrong path", "one entry", "not a number"],
    )
    def test_a_pullback(self, change: Any, kind: str, output: str, input: str) -> None:
        report = tf.check_gradients(problem_of(smooth("a"), distorted(change), smooth("c")))
        assert ("bad", PULLBACK, kind, output, input) in named(report), str(report)
        assert {component for component, *_ in named(report)} == {"bad"}
        assert all('replace="vector_jacobian_product"' in v.remedy for v in report.faults if v.component == "bad")

    @pytest.mark.parametrize("endpoint", [PUSHFORWARD, JACOBIAN])
    @pytest.mark.slow
    def test_other_endpoints_are_looked_at_as_well(self, endpoint: str) -> None:
        def change(y: Any) -> Any:
            return jax.tree.map(lambda leaf: leaf * 1.5, y)

        problem = problem_of(smooth("a", endpoints=ALL), distorted(change, endpoint, ALL))
        assert tf.check_gradients(problem, components=False).ok  # the gradient does not ask for it
        for components in (None, True):
            report = tf.check_gradients(problem, components=components)
            assert {(c, e) for c, e, *_ in named(report)} == {("bad", endpoint)}, str(report)
        assert {kind for *_, kind, _, _ in named(report)} == {"factor"}

    def test_an_entry_of_a_jacobian(self) -> None:
        def change(y: Any) -> Any:
            block = y["y"]["x"].copy()
            block[2, 1] += 0.1
            return {**y, "y": {**y["y"], "x": block}}

        report = tf.check_gradients(problem_of(distorted(change, JACOBIAN, ALL)), components=True)
        (fault,) = report.faults
        assert (fault.endpoint, fault.output, fault.input) == (JACOBIAN, "y", "x")
        assert (fault.output_index, fault.input_index) == ((2,), (1,))

    def test_a_transposed_block(self) -> None:
        matrix = np.random.default_rng(0).normal(size=(5, 5))
        plain = FunctionTesseract(lambda i: {"y": matrix @ i["x"]}, {"x": np.ones(5)}, name="matrix", endpoints=REVERSE)

        class Transposed(Watched):
            def request(self, endpoint: Any, payload: Any, *, run_id: str | None = None) -> Any:
                answer = super().request(endpoint, payload, run_id=run_id)
                return {"x": matrix @ payload["cotangent_vector"]["y"]} if endpoint == PULLBACK else answer

        report = tf.check_gradients(
            (lambda x: jnp.sum(tf.apply_tesseract(Transposed(plain), {"x": x})["y"] ** 2), jnp.arange(1.0, 6.0))
        )
        assert named(report) == {("matrix", PULLBACK, "transposed", "y", "x")}

    def test_wrong_where_a_limiter_is_active_and_right_at_the_start(self) -> None:
        """The Jacobian of a published discipline: slope 4 said, flat in truth."""
        limited = FunctionTesseract(
            lambda i: {"y": jnp.minimum(4.0 * i["x"], 2.0)}, {"x": np.ones(())}, name="limited", endpoints=REVERSE
        )

        class Unlimited(Watched):
            def request(self, endpoint: Any, payload: Any, *, run_id: str | None = None) -> Any:
                answer = super().request(endpoint, payload, run_id=run_id)
                return {"x": 4.0 * payload["cotangent_vector"]["y"]} if endpoint == PULLBACK else answer

        said = Unlimited(limited)
        problem = tf.Problem(
            {"x": jnp.asarray(0.2)}, lambda d: tf.apply_tesseract(said, {"x": d["x"]})["y"] + d["x"] ** 2
        )
        assert tf.check_gradients(problem).ok
        report = tf.check_gradients(problem, at={"x": jnp.asarray(0.9)})
        assert named(report) == {("limited", PULLBACK, "surplus", "y", "x")}, str(report)

    def test_a_cache_that_is_keyed_on_rounded_inputs(self) -> None:
        kept: dict[Any, Any] = {}

        class Cached(Watched):
            def request(self, endpoint: Any, payload: Any, *, run_id: str | None = None) -> Any:
                answer = super().request(endpoint, payload, run_id=run_id)
                if endpoint != PULLBACK:
                    return answer
                rounded = [np.round(x, 3).tobytes() for x in jax.tree.leaves(payload["inputs"])]
                cotangents = sorted((k, np.asarray(c).tobytes()) for k, c in payload["cotangent_vector"].items())
                return kept.setdefault((*rounded, *cotangents), answer)

        problem = problem_of(smooth("a"), Cached(smooth("cached")))
        report = tf.check_gradients(problem, components=True)
        assert {(c, kind) for c, _, kind, *_ in named(report)} == {("cached", "stale")}, str(report)

    def test_an_answer_that_depends_on_what_was_asked_before(self) -> None:
        last: dict[str, Any] = {}

        class Residuals(Watched):
            """Pulls back at the inputs of its latest apply, whatever it is given."""

            def request(self, endpoint: Any, payload: Any, *, run_id: str | None = None) -> Any:
                if endpoint == "apply":
                    last["inputs"] = payload["inputs"]
                if endpoint == PULLBACK:
                    payload = {**payload, "inputs": last["inputs"]}
                return super().request(endpoint, payload, run_id=run_id)

        report = tf.check_gradients(problem_of(Residuals(smooth("last"))), components=True)
        assert "last" in {component for component, *_ in named(report)}, str(report)

    def test_values_that_are_kept_by_rounded_inputs(self) -> None:
        class Rounded(Watched):
            def request(self, endpoint: Any, payload: Any, *, run_id: str | None = None) -> Any:
                if endpoint == "apply":
                    inputs = {path: np.round(x, 2) for path, x in payload["inputs"].items()}
                    payload = {**payload, "inputs": inputs}
                return super().request(endpoint, payload, run_id=run_id)

        report = tf.check_gradients(problem_of(Rounded(smooth("rounded"))), components=True)
        assert not all(v.status == "right" for v in report.verdicts), str(report)

    def test_float32_where_float64_is_said(self) -> None:
        def narrow(endpoint: str, y: Any) -> Any:
            return {k: v.astype(np.float32).astype(np.float64) for k, v in y.items()} if endpoint == "apply" else y

        report = tf.check_gradients(problem_of(Watched(smooth("narrow"), narrow)), components=True)
        assert ("narrow", "apply", "float32", "y", None) in named(report), str(report)

    def test_shapes_that_abstract_eval_has_wrong(self) -> None:
        part = FunctionTesseract(lambda i: {"y": i["x"] ** 2, "extra": i["x"]}, {"x": np.ones(3)}, name="part")
        fn = lambda x: jnp.sum(tf.apply_tesseract(part, {"x": x})["y"])  # noqa: E731
        assert tf.check_gradients((fn, jnp.ones(3)), components=True).ok

        def distort(endpoint: str, y: Any) -> Any:
            return {**y, "y": {"shape": [3], "dtype": "float32"}} if endpoint == "abstract_eval" else y

        watched = Watched(part, distort)
        report = tf.check_gradients(
            (lambda x: jnp.sum(tf.apply_tesseract(watched, {"x": x})["y"]), jnp.ones(3)), components=True
        )
        assert {kind for *_, kind, _, _ in named(report)} == {"shapes"}, str(report)

    @pytest.mark.parametrize("pace", [1e6, 1e7])
    def test_the_sign_of_waves_shorter_than_the_usual_steps(self, pace: float) -> None:
        wave = FunctionTesseract(lambda i: {"y": jnp.sum(jnp.sin(pace * i["a"]))}, {"a": np.ones(3)}, name="wave")
        part = Watched(wave, lambda asked, y: {"a": -y["a"]} if asked == PULLBACK else y)
        report = tf.check_gradients((lambda a: tf.apply_tesseract(part, {"a": a})["y"], jnp.ones(3)))
        assert named(report) == {("wave", PULLBACK, "sign", "y", "a")}, str(report)

    @pytest.mark.parametrize("said", [1.0, 1e6])
    def test_a_dependence_that_is_not_there(self, said: float) -> None:
        flat = FunctionTesseract(lambda i: {"y": 1.0 + 0 * jnp.sum(i["a"])}, {"a": np.ones(3)}, name="flat")
        part = Watched(flat, lambda asked, y: {"a": y["a"] + said} if asked == PULLBACK else y)
        report = tf.check_gradients((lambda a: tf.apply_tesseract(part, {"a": a})["y"], jnp.ones(3)))
        assert named(report) == {("flat", PULLBACK, "surplus", "y", "a")}, str(report)

    def test_a_rule_of_the_evaluation_itself(self) -> None:
        """All components are right, and the total is wrong: then the leaf is named."""

        @jax.custom_vjp
        def half(x: Any) -> Any:
            return x / 2

        half.defvjp(lambda x: (x / 2, None), lambda _, c: (2 * c,))
        part = smooth("fine")

        def evaluate(design: Any) -> Any:
            out = tf.apply_tesseract(part, {**design, "s": half(design["s"])})
            return jnp.sum(out["y"]) + out["z"]

        design = problem_of(part).design
        report = tf.check_gradients(tf.Problem(design, evaluate))
        (fault,) = report.faults
        assert (fault.component, fault.input) == ("total", "s")
        assert "custom_vjp" in fault.message


class TestSilence:
    @pytest.mark.parametrize("make", [beam_problem, rosenbrock_problem, hs71_problem])
    def test_plain_problems_take_nothing(self, make: Any) -> None:
        report = tf.check_gradients(make())
        assert [v.status for v in report.verdicts] == ["right"], str(report)
        assert report.planned == report.sent == 0

    def test_float32(self) -> None:
        part = FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(3, np.float32)}, name="single")
        report = tf.check_gradients(
            (lambda x: jnp.sum(tf.apply_tesseract(part, {"x": x})["y"]), jnp.ones(3, jnp.float32)), components=True
        )
        assert report.ok, str(report)

    @pytest.mark.slow
    def test_calls_in_a_loop_are_looked_at_where_they_are(self) -> None:
        part = distorted(lambda y: {**y, "w": 2 * y["w"]})

        def loss(design: Any) -> Any:
            def step(x: Any, _: Any) -> Any:
                return tf.apply_tesseract(part, {**design, "x": x})["y"], None

            return jnp.sum(jax.lax.scan(step, design["x"], None, length=3)[0])

        design = problem_of(part).design
        report = tf.check_gradients((loss, design))
        assert {(c, kind) for c, _, kind, *_ in named(report)} == {("bad", "factor")}, str(report)

    def test_a_kink_at_the_point_is_no_fault(self) -> None:
        report = tf.check_gradients((lambda x: jnp.abs(x) + x, jnp.asarray(0.0)), n_points=1)
        assert report.ok, str(report)

    @pytest.mark.parametrize("power", [1, 2])
    def test_an_even_function_is_no_cache(self, power: int) -> None:
        """Outputs on both sides of the middle are alike, and are not that of the middle."""
        part = FunctionTesseract(
            lambda i: {"y": jnp.sum(jnp.abs(i["a"]) + (power - 1) * i["a"] ** 2)}, {"a": np.zeros(3)}, name="even"
        )
        report = tf.check_gradients((lambda a: tf.apply_tesseract(part, {"a": a})["y"], jnp.zeros(3)), components=True)
        assert report.ok, str(report)

    def test_numbers_too_large_to_show_a_step_are_no_cache(self) -> None:
        part = FunctionTesseract(lambda i: {"y": 1e17 + jnp.sum(i["a"])}, {"a": np.ones(3)}, name="large")
        report = tf.check_gradients((lambda a: tf.apply_tesseract(part, {"a": a})["y"], jnp.ones(3)), components=True)
        assert report.ok, str(report)
        assert "unsure" in {v.status for v in report.verdicts}

    @pytest.mark.parametrize(("pace", "status"), [(1e5, "right"), (1e6, "right"), (1e7, "right"), (1e12, "unsure")])
    def test_waves_shorter_than_the_usual_steps(self, pace: float, status: str) -> None:
        part = FunctionTesseract(lambda i: {"y": jnp.sum(jnp.sin(pace * i["a"]))}, {"a": np.ones(3)}, name="wave")
        report = tf.check_gradients((lambda a: tf.apply_tesseract(part, {"a": a})["y"], jnp.ones(3)), components=True)
        assert report.ok, str(report)
        assert {v.status for v in report.verdicts} == {status}, str(report)
        if status == "unsure":
            assert "smaller scale than the smallest usable step" in str(report)

    @pytest.mark.parametrize("scale", [None, np.array([1e-6, 1e3])])
    def test_a_thickness_beside_a_load_in_one_array(self, scale: Any) -> None:
        """Was moved by a thousand of its sizes, to where there is neither value nor gradient, and called wrong."""
        part = FunctionTesseract(
            lambda i: {"y": jnp.exp(i["p"]) * (1 + i["q"] ** 2)}, {"p": np.ones(()), "q": np.ones(())}
        )

        def loss(x: jax.Array) -> jax.Array:
            return tf.apply_tesseract(part, {"p": x[0] / 1e-6, "q": x[1] / 1e3})["y"]

        report = tf.check_gradients(tf.Problem(jnp.array([0.8e-6, 700.0]), loss, scale=scale))
        assert {v.status for v in report.verdicts} == {"right"}, str(report)

    def test_points_on_bounds(self) -> None:
        problem = tf.Problem(
            {"x": jnp.array([0.0, 1.0])}, lambda d: jnp.sum(jnp.sqrt(d["x"] + 1e-12)), bounds=(0.0, 1.0)
        )
        report = tf.check_gradients(problem)
        assert report.ok, str(report)

    def test_a_component_that_fails_nearby_is_not_blamed_for_it(self) -> None:
        def before(endpoint: str, inputs: Any) -> None:
            if endpoint == "apply" and np.any(np.asarray(inputs["x"]) > 1.505):
                raise ComponentFailed("mesh has negative volumes")

        wall = smooth("wall", before=before)
        report = tf.check_gradients(problem_of(wall), components=True)
        assert not report.faults, str(report)

    @pytest.mark.slow
    def test_two_hundred_random_pipelines(self) -> None:
        alarms = []
        for seed in range(200):
            problem = random_pipeline(seed)
            report = tf.check_gradients(problem, components=True, seed=seed)
            if not report.ok:
                alarms.append((seed, str(report)))
        assert not alarms

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(6))
    def test_random_pipelines(self, seed: int) -> None:
        report = tf.check_gradients(random_pipeline(seed), components=True, seed=seed)
        assert report.ok, str(report)


def random_pipeline(seed: int) -> tf.Problem:
    """Components in a random order and with random functions, one of them with a noise of 1e-6."""
    rng = np.random.default_rng([seed, 7])
    n, n_parts = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    functions = [jnp.sin, jnp.tanh, lambda x: x / (1 + x**2), lambda x: jnp.exp(-x), lambda x: jnp.sqrt(1 + x**2)]
    noisy = int(rng.integers(0, n_parts + 1))
    parts: list[AbstractTesseract] = []
    for k in range(n_parts):
        fn, matrix = functions[rng.integers(len(functions))], jnp.asarray(rng.normal(size=(n, n)) / np.sqrt(n))
        part: AbstractTesseract = FunctionTesseract(
            lambda i, fn=fn, matrix=matrix: {"y": fn(matrix @ i["x"] + i["a"]), "z": jnp.sum(fn(i["x"])) * i["a"]},
            {"x": np.ones(n), "a": np.array(1.0)},
            name=f"part{k}",
            endpoints=ALL if rng.uniform() < 0.5 else REVERSE,
        )
        if k == noisy:
            noise = np.random.default_rng(seed)

            def distort(endpoint: str, y: Any, noise: Any = noise) -> Any:
                if endpoint != "apply":
                    return y
                return {key: v * (1 + 1e-6 * noise.standard_normal(np.shape(v))) for key, v in y.items()}

            part = Watched(part, distort)
        parts.append(part)

    def evaluate(design: Any) -> tf.Evaluation:
        x, total = design["x"], 0.0
        for part in parts:
            out = tf.apply_tesseract(part, {"x": x, "a": design["a"]})
            x, total = out["y"], total + out["z"]
        return tf.Evaluation(jnp.sum(x**2) + total, {"c": x})

    design = {"x": jnp.asarray(rng.normal(size=n)), "a": jnp.asarray(rng.normal())}
    return tf.Problem(design, evaluate, constraints={"c": tf.Constraint(upper=1.0)}, name=f"random {seed}")


class TestPrice:
    def test_it_is_said_beforehand_and_kept(self, caplog: pytest.LogCaptureFixture) -> None:
        problem = problem_of(smooth("a"), smooth("b"))
        with caplog.at_level(logging.INFO, "tesseract_flow"), tf.count_requests() as requests:
            report = tf.check_gradients(problem)
        # Two points, each a gradient (two calls each way) and two values; and two pullbacks once more.
        assert report.planned == report.sent == requests.n_total - requests.n_of("abstract_eval") == 2 * (4 + 2 * 2) + 2
        assert "takes 18 requests, and at most 2000 if something is wrong" in caplog.text

    @pytest.mark.slow
    def test_calls_in_loops_count_as_often_as_they_are_made(self, caplog: pytest.LogCaptureFixture) -> None:
        """Said 22 requests where 243 were sent: a fixed point was one call, and differences were too."""
        part = FunctionTesseract(lambda i: {"y": 1.0 + i["k"] * jnp.sin(i["T"])}, {"k": np.ones(2), "T": np.ones(2)})
        other = FunctionTesseract(lambda i: {"z": jnp.sum(i["k"] ** 3)}, {"k": np.ones(2)}, endpoints=["apply"])
        priced = tf.open_tesseract(other, derive="central")

        def evaluate(k: jax.Array) -> jax.Array:
            T = tf.fixed_point(
                lambda T, k: tf.apply_tesseract(part, {"k": k, "T": T})["y"], jnp.ones(2), k, solver="picard"
            )
            return jnp.sum(T**2) + tf.apply_tesseract(priced, {"k": k})["z"]

        with caplog.at_level(logging.INFO, "tesseract_flow"), tf.count_requests() as requests:
            report = tf.check_gradients(tf.Problem(jnp.array([0.3, 0.4]), evaluate))
        assert report.ok and report.sent == requests.n_solves > 3 * report.planned
        assert "more where its loops go round more than once" in caplog.text

    @pytest.mark.slow
    def test_a_budget_that_ends_leaves_what_was_seen(self) -> None:
        bad = distorted(lambda y: {**y, "w": 2 * y["w"]})
        problem = problem_of(smooth("a"), bad, smooth("c"))
        assert tf.check_gradients(problem, max_requests=30).verdicts[0].status == "unsure"
        for most in (60, 90, 120, 160):
            with tf.count_requests() as requests:
                report = tf.check_gradients(problem, max_requests=most)
            assert requests.n_total - requests.n_of("abstract_eval") <= most
            assert report.sent <= most
        assert "bad" in {v.component for v in report.faults}

    def test_a_budget_for_less_than_the_total_is_refused(self) -> None:
        with pytest.raises(OptionError, match="takes 18 requests"):
            tf.check_gradients(problem_of(smooth("a"), smooth("b")), max_requests=17)


class TestInterface:
    def test_what_can_be_looked_at(self) -> None:
        problem = problem_of(smooth())
        assert tf.check_gradients((problem.evaluate, problem.design)).ok
        result = tf.optimize(problem, "adam", stop={"max_steps": 1})
        assert tf.check_gradients(problem, at=result).ok
        with pytest.raises(ProblemError, match="with a Problem only"):
            tf.check_gradients((problem.evaluate, problem.design), at="runs/beam")
        with pytest.raises(ProblemError, match=r"takes a tesseract_flow\.Problem"):
            tf.check_gradients(problem.evaluate)  # type: ignore[arg-type]
        with pytest.raises(ProblemError, match="structure of the design"):
            tf.check_gradients(problem, at={"x": jnp.ones(3)})
        with pytest.raises(ProblemError, match="no floating-point"):
            tf.check_gradients((lambda x: "text", jnp.ones(3)))

    def test_the_design_of_a_journal(self, tmp_path: Path) -> None:
        """Each design of a run by itself: the slope is wrong below -1, where a step too long ended."""

        @jax.custom_vjp
        def bent(x: Any) -> Any:
            return x**2

        bent.defvjp(lambda x: (x**2, x), lambda x, c: (jnp.where(x < -1.0, -2.0, 2.0) * x * c,))
        problem = tf.Problem({"x": jnp.asarray(0.9)}, lambda d: jnp.sum(bent(d["x"])), name="bent")
        tf.optimize(problem, "sgd", learning_rate=2.2, stop={"max_steps": 1}, journal=tmp_path)
        address = f"file://{tmp_path}"
        for journal in (tmp_path, str(tmp_path), address, FileJournal(tmp_path)):
            assert tf.check_gradients(problem, at=journal).ok
            assert not tf.check_gradients(problem, at=(journal, "last")).ok
        with pytest.raises(JournalError, match="no journal"):
            tf.check_gradients(problem, at=tmp_path / "nowhere")
        other = tf.Problem({"z": jnp.asarray(0.9)}, lambda d: d["z"] ** 2)
        with pytest.raises(ProblemError, match="what varies here is z, and there x"):
            tf.check_gradients(other, at=tmp_path)

    def test_views(self) -> None:
        report = tf.check_gradients(problem_of(distorted(lambda y: {**y, "w": 2 * y["w"]})))
        assert json.loads(json.dumps(report.to_json()))["ok"] is False
        assert "bad.vector_jacobian_product: y by w" in str(report)
        assert "look at bad" in report.headline
        assert "| wrong | bad.vector_jacobian_product: y by w |" in gradient_markdown(report)
        assert len(gradient_tables(report)) == 2


@pytest.mark.slow
def test_a_problem_that_looks_at_a_text_is_checked() -> None:
    speaker = FunctionTesseract(
        lambda i: {"said": "hi" if np.asarray(i["x"])[0] > 1.0 else "lo"},
        {"x": np.ones(2)},
        endpoints=["apply", "abstract_eval"],
    )

    def evaluate(design: Any) -> Any:
        is_high = tf.apply_tesseract(speaker, {"x": design["x"]})["said"] == "hi"
        return jnp.sum(design["x"] ** 2) * (1.0 if is_high else 100.0)

    problem = tf.Problem({"x": jnp.array([2.0, 3.0])}, evaluate)
    assert tf.check_gradients(problem).ok
    report = tf.check(problem)  # for which no solve is made, so that nobody knows the text
    assert report.ok
    assert [finding.kind for finding in report.findings] == ["unchecked"]
