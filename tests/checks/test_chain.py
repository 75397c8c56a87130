"""Eight faults, one after the other in a chain of six components that are really served: each is named."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.client import ServedTesseract

pytestmark = pytest.mark.server
N_COMPONENTS = 6
PULLBACK = "vector_jacobian_product"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    root = tmp_path_factory.mktemp("chain")
    handles = []
    for k in range(N_COMPONENTS):
        folder = root / f"part{k}"
        folder.mkdir()
        shutil.copy(Path(__file__).with_name("chain.py"), folder / "tesseract_api.py")
        handles.append(tf.open_tesseract(folder, label=f"part{k}", startup_timeout=300.0))
    yield handles
    for handle in handles:
        assert isinstance(handle, ServedTesseract)
        handle.stop()


def problem_of(chain: list[Any], faults: dict[int, str], n: int = 12) -> tf.Problem:
    rng = np.random.default_rng(3)
    weights = jnp.asarray(rng.uniform(0.5, 1.5, (N_COMPONENTS, n)))

    def evaluate(design: Any) -> tf.Evaluation:
        x, total = design["x"], 0.0
        for k, part in enumerate(chain):
            inputs = {"x": x, "w": design["w"] * weights[k], "s": design["s"] + k, "fault": faults.get(k, "")}
            out = tf.apply_tesseract(part, inputs)
            x, total = out["y"], total + out["z"]
        return tf.Evaluation(jnp.sum(x**2) + total, {"first": x[0]})

    design = {"x": jnp.asarray(rng.uniform(0.5, 1.5, n)), "w": jnp.asarray(1.3), "s": jnp.asarray(0.7)}
    return tf.Problem(design, evaluate, constraints={"first": tf.Constraint(upper=2.0)}, name="chain")


@pytest.mark.slow
def test_nothing_is_said_of_a_healthy_chain_and_the_price_is_kept(chain):
    problem = problem_of(chain, {})
    with tf.count_requests() as requests:
        report = tf.check_gradients(problem)
    assert {v.status for v in report.verdicts} == {"right"}, str(report)
    # Three gradients of six applies and six pullbacks, four values of six applies, and each pullback once more.
    assert report.planned == 3 * 12 + 4 * 6 + 6
    # One group of entries adds less than a hundredth, and is moved by itself: two values.
    assert report.sent == requests.n_total - requests.n_of("abstract_eval") == report.planned + 2 * 6
    report = tf.check_gradients(problem, components=True)
    assert {(v.component, v.status) for v in report.verdicts} == {
        ("total", "right"),
        *((f"part{k}", "right") for k in range(N_COMPONENTS)),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "kind", "endpoint", "output", "input"),
    [
        ("sign", "sign", PULLBACK, "z", "s"),
        ("factor", "factor", PULLBACK, "y", "w"),
        ("missing", "differs", PULLBACK, "y", "x"),
        ("transposed", "transposed", PULLBACK, "y", "x"),
        ("path", "differs", PULLBACK, "y", "x"),
        ("stale", "stale", PULLBACK, None, None),
        ("float32", "float32", "apply", "y", None),
    ],
)
@pytest.mark.parametrize("place", [1, 4])
def test_a_fault_is_named(chain, fault, kind, endpoint, output, input, place):
    with tf.count_requests() as requests:
        # A fault of precision and an answer that was kept need not show in the total.
        report = tf.check_gradients(problem_of(chain, {place: fault}), components=True)
    named = [v for v in report.faults if v.component != "total"]
    assert {v.component for v in named} == {f"part{place}"}, str(report)
    hits = [v for v in named if (v.kind, v.endpoint, v.output, v.input) == (kind, endpoint, output, input)]
    assert hits, str(report)
    assert all(v.remedy for v in hits)
    assert report.sent <= report.most
    assert report.sent == requests.n_solves


@pytest.mark.slow
def test_one_wrong_entry_of_a_thousand_is_found_without_being_asked_for_components(chain):
    report = tf.check_gradients(problem_of(chain, {3: "entry"}, n=1000))
    (worst, *_) = [v for v in report.faults if v.component != "total"]
    assert (worst.component, worst.endpoint, worst.output, worst.input) == ("part3", PULLBACK, "y", "x"), str(report)
    assert worst.input_index == (333,)
    assert "one entry is wrong" in worst.message


@pytest.mark.slow
def test_two_faults_are_both_named(chain):
    report = tf.check_gradients(problem_of(chain, {0: "factor", 5: "missing"}))
    assert {v.component for v in report.faults} == {"total", "part0", "part5"}


@pytest.mark.slow
def test_a_pullback_that_is_wrong_is_replaced_without_touching_the_component(chain):
    mended = list(chain)
    mended[1] = tf.open_tesseract(chain[1], derive=tf.Derive(tf.Differences(), replace=PULLBACK))
    report = tf.check_gradients(problem_of(mended, {1: "transposed"}))
    assert report.ok, str(report)
