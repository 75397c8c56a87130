"""Faults of the kit: what a handle makes of each, when they happen, and that what stands behind is passed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow import errors
from tesseract_flow.client import RetryPolicy, count_requests
from tesseract_flow.testing import FunctionTesseract, faults
from tesseract_flow.testing.faults import FaultyServer, Rule, at, faulty

ROOT = Path(__file__).parents[2]
X = {"x": np.array([1.0, 2.0, 3.0])}
ONCE = RetryPolicy(n_retries=0)
QUICK = RetryPolicy(n_retries=3, first_delay=0.01, longest_delay=0.02)


def square(**options: Any) -> FunctionTesseract:
    return FunctionTesseract(lambda i: {"y": i["x"] ** 2, "kind": "steel"}, {"x": np.ones(3)}, name="square", **options)


RIGHT = {
    "latency": faults.latency(0.01),
    "slow drip": faults.slow_drip(0.02),
    "surplus": faults.surplus,  # of which the second attempt is the right one
}
WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "hang": (faults.hang, errors.CallTimeout, "no answer"),
    "reset": (faults.reset, errors.ConnectionLost, "."),
    "reset in the middle": (faults.reset_in_the_middle, errors.ConnectionLost, "."),
    "truncated": (faults.truncated, errors.ConnectionLost, "."),
    "429": (faults.status(429, retry_after=7), errors.Overloaded, "429"),
    "502": (faults.status(502), errors.Overloaded, "502"),
    "504": (faults.status(504), errors.Overloaded, "504"),
    "500": (faults.failed("ValueError: the mesh folds"), errors.ComponentFailed, "the mesh folds"),
    "redirect": (faults.redirect("http://elsewhere/apply"), errors.InvalidAnswer, "elsewhere"),
    "malformed": (faults.malformed, errors.InvalidAnswer, "not understood"),
    "gigantic": (faults.gigantic(2**21), errors.InvalidAnswer, "max_bytes"),
    "gigantic without a word": (faults.gigantic(2**21, says_so=False), errors.InvalidAnswer, "max_bytes"),
    "wrong shape": (faults.wrong_shape("y"), errors.InvalidAnswer, "y"),
    "wrong dtype": (faults.wrong_dtype("y"), errors.InvalidAnswer, "complex128"),
    "lz4 bomb": (faults.lz4_bomb(), errors.InvalidAnswer, "."),
    "path escape": (faults.path_escape(), errors.InvalidAnswer, "."),
}


@pytest.fixture(scope="module")
def server() -> Any:
    with FaultyServer(square()) as server:
        yield server


def handle_to(server: FaultyServer, **options: Any) -> Any:
    return tf.open_tesseract(server.url, label="square", retry=ONCE, read_timeout=0.5, max_bytes=2**20, **options)


@pytest.mark.parametrize("name", RIGHT)
def test_what_a_server_may_do(server: FaultyServer, name: str) -> None:
    server.plant(at("apply", RIGHT[name]))
    handle = tf.open_tesseract(server.url, label="square", retry=QUICK)
    for _ in range(2):
        assert handle.apply(X)["y"].tolist() == [1.0, 4.0, 9.0]
    assert server.n_faulty >= 2


@pytest.mark.parametrize("name", WRONG)
def test_what_it_may_not(server: FaultyServer, name: str) -> None:
    act, error, says = WRONG[name]
    handle = handle_to(server)
    server.plant(at("apply", act, nth=2))
    handle.apply(X)
    with pytest.raises(error, match=says) as caught:
        handle.apply(X)
    if isinstance(caught.value, errors.Overloaded) and name == "429":
        assert caught.value.retry_after == 7
    assert handle.apply(X)["kind"] == "steel"


def test_refused_for_a_while(server: FaultyServer) -> None:
    server.plant(at("apply", faults.refused(0.05), first=1))
    handle = tf.open_tesseract(
        server.url, label="square", retry=RetryPolicy(n_retries=20, first_delay=0.02, longest_delay=0.05)
    )
    assert handle.apply(X)["y"].tolist() == [1.0, 4.0, 9.0]


def test_nan_is_a_value_that_the_pipeline_has_to_find() -> None:
    with faulty(square(), [at("pullback", faults.nan("x"))]) as handle:
        gradient = jax.grad(lambda x: tf.apply_tesseract(handle, {"x": x})["y"].sum())(jnp.ones(3))
    assert np.isnan(gradient).all()


def test_the_third_pullback_and_every_tenth() -> None:
    script = [at("pullback", faults.status(503), nth=3), at(("apply", "pushforward"), faults.failed("no"), every=10)]
    loss = lambda handle: jax.value_and_grad(lambda x: tf.apply_tesseract(handle, {"x": x})["y"].sum())  # noqa: E731
    with faulty(square(), script, retry=QUICK) as handle, count_requests() as requests:
        for k in range(9):
            value, gradient = loss(handle)(jnp.full(3, float(k)))
            assert (value, gradient.tolist()) == (3.0 * k**2, [2.0 * k] * 3)
        with pytest.raises(errors.ComponentFailed, match="no"):
            loss(handle)(jnp.ones(3))
    assert requests.n_of("vector_jacobian_product") == 10  # one of them twice
    assert requests.n_of("apply") == 10


def test_for_some_seconds() -> None:
    now = [0.0]
    rule = Rule(faults.hang, ("apply",), seconds=2.0, clock=lambda: now[0])
    taken = []
    for seconds in (0.0, 1.0, 0.9, 0.2, 5.0):
        now[0] += seconds
        taken.append(rule.takes("apply"))
    assert taken == [True, True, True, False, False]
    assert not rule.takes("jacobian")
    assert rule.n_asked == 5
    assert rule.anew().n_asked == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(endpoint="pulback"), "Did you mean 'pullback'"),
        (dict(endpoint="apply", nth=0), "nth is 0"),
        (dict(endpoint="apply", nth=1, every=2), "Only one of"),
        (dict(endpoint="apply", every=1.5), "every is 1.5"),
    ],
)
def test_a_script_that_means_nothing(arguments: Any, says: str) -> None:
    with pytest.raises(errors.OptionError, match=says):
        at(act=faults.hang, **arguments)


@pytest.mark.server
def test_in_front_of_a_real_server_everything_is_passed_on() -> None:
    section = tf.open_tesseract(ROOT / "examples" / "beam" / "section")
    url = section.url  # type: ignore[attr-defined]
    h = jnp.linspace(0.1, 0.2, 4)
    volume = lambda handle: jax.value_and_grad(lambda h: tf.apply_tesseract(handle, {"thickness": h})["volume"])  # noqa: E731
    for source in (url, section):
        with faulty(source, [at("apply", faults.reset, first=1)], retry=QUICK) as handle:
            assert handle.name == section.name
            assert handle.schema == section.schema
            value, gradient = volume(handle)(h)
            expected = volume(section)(h)
            assert value == expected[0]
            assert (gradient == expected[1]).all()
            with pytest.raises(errors.InvalidInput, match="thickness"):
                handle.request("apply", {"inputs": {"thickness": "much"}})
