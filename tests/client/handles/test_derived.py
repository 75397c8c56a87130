"""Probes of derived endpoints overlap, cost what is told and allowed, and leave the handle a value."""

from __future__ import annotations

import copy
import logging
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import Derive, DerivedTesseract, count_requests, open_tesseract
from tesseract_flow.derivatives import Differences
from tesseract_flow.errors import ComponentFailed, EndpointNotFound, OptionError, OverBudget
from tesseract_flow.testing import FunctionTesseract
from tests.client.derivations import JACOBIAN, JVP, VJP, C, X, ask, square, told, vjp
from tests.helpers import Watched

# At once


def test_probes_are_in_flight_at_once() -> None:
    barrier = threading.Barrier(6, timeout=60.0)
    # Each of the six probes waits until all six are there.
    handle = open_tesseract(
        square(before=lambda endpoint, inputs: barrier.wait()), derive=Derive(Differences(), n_in_flight=6)
    )
    np.testing.assert_allclose(vjp(handle)["x"], 2 * X["x"] * C["y"], rtol=1e-8)


def test_no_more_are_in_flight_than_allowed() -> None:
    lock = threading.Lock()
    n_now, seen = [0], []

    class Gauge(Watched):
        def request(self, *args: Any, **options: Any) -> Any:
            with lock:
                n_now[0] += 1
                seen.append(n_now[0])
            try:
                return super().request(*args, **options)
            finally:
                with lock:
                    n_now[0] -= 1

    n = 30
    component = FunctionTesseract(
        lambda i: {"y": i["x"] ** 2}, {"x": np.ones(n)}, endpoints={"apply", "abstract_eval"}, delay=1e-3
    )
    inputs, c = {"x": np.arange(1.0, n + 1)}, {"y": np.ones(n)}
    for allowed in (1, 3):
        seen.clear()
        handle = open_tesseract(Gauge(component), derive=Derive(Differences("forward"), n_in_flight=allowed))
        np.testing.assert_allclose(vjp(handle, inputs, c)["x"], 2 * inputs["x"], rtol=1e-5)
        assert len(seen) == n + 1
        assert max(seen) == allowed
    default = open_tesseract(Gauge(component), derive="central")
    assert default.n_lanes == component.n_lanes


def test_first_failure_keeps_the_rest_from_starting() -> None:
    def fail(endpoint: str, inputs: Any) -> None:
        if float(inputs["x"][2]) > 1.0:
            raise RuntimeError("the mesh is tangled")

    n = 500
    component = FunctionTesseract(
        lambda i: {"y": i["x"] ** 2},
        {"x": np.ones(n)},
        name="fragile",
        endpoints={"apply", "abstract_eval"},
        before=fail,
    )
    handle = open_tesseract(component, derive=Derive(Differences("forward"), n_in_flight=2))
    with count_requests() as counts, pytest.raises(RuntimeError, match="the mesh is tangled") as caught:
        vjp(handle, {"x": np.ones(n)}, {"y": np.ones(n)})
    assert caught.value.__notes__ == ["This was probe 4 of 501 (input 'x' at [2], a step up)."]
    assert 4 <= counts.n_total <= 8
    # Nothing is left behind: the next call is a new one.
    component.before = None
    np.testing.assert_allclose(vjp(handle, {"x": np.ones(n)}, {"y": np.ones(n)})["x"], 2.0, rtol=1e-6)


@pytest.mark.parametrize(
    "have, endpoint, probe",
    [
        (JVP, VJP, "probe 2 of 3 (input 'x' at [1])"),
        (VJP, JVP, "probe 2 of 3 (output 'y' at [1])"),
        ("apply", JVP, "probe 2 of 2 (the tangent, a step down)"),
    ],
)
def test_error_names_the_probe_and_keeps_its_type(have: str, endpoint: str, probe: str) -> None:
    n_asked = [0]

    def distort(asked: str, answer: Any) -> Any:
        n_asked[0] += asked == have
        if asked == have and n_asked[0] == 2:
            raise ComponentFailed("diverged", tesseract="square", endpoint=have)
        return answer

    watched = Watched(square(*([have] if have != "apply" else [])), distort)
    handle = open_tesseract(watched, derive=Derive(Differences(), n_in_flight=1))
    with pytest.raises(ComponentFailed, match="diverged") as caught:
        ask(handle, endpoint)
    assert caught.value.__notes__ == [f"This was {probe}."]
    assert n_asked == [2]


def test_run_ids_are_distinct() -> None:
    seen: list[str | None] = []

    class Keeping(Watched):
        def request(self, endpoint: Any, payload: Any, *, run_id: str | None = None) -> Any:
            seen.append(run_id)
            return super().request(endpoint, payload, run_id=run_id)

    vjp(open_tesseract(Keeping(square(JVP)), derive=True), run_id="step-7")
    assert sorted(map(str, seen)) == ["step-7-0001", "step-7-0002", "step-7-0003"]
    seen.clear()
    vjp(open_tesseract(Keeping(square(JACOBIAN)), derive=True), run_id="step-7")
    vjp(open_tesseract(Keeping(square(JACOBIAN)), derive=True))
    assert seen == ["step-7", None]


# Told, and refused


def test_it_is_said_once_with_the_price(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tesseract_flow")
    component = square()
    for _ in range(3):
        vjp(open_tesseract(component, derive="central"))
    ((level, message),) = told(caplog)
    assert level == logging.WARNING
    assert "'square' has no endpoint 'vector_jacobian_product'" in message
    assert "by central finite differences of 'apply', an approximation, at 6 requests per call" in message
    assert "up to 8 at once" in message
    open_tesseract(component, derive="central").jacobian(X, ["x"], ["y"])
    vjp(open_tesseract(component, derive="forward"))
    assert len(told(caplog)) == 3
    caplog.clear()
    handle = open_tesseract(square(JACOBIAN), derive=True)
    for _ in range(2):
        vjp(handle)
    ((level, message),) = told(caplog)
    assert level == logging.INFO
    assert "made here from 'jacobian' and exact, at 1 request per call of this size." in message


def test_what_is_not_derived_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tesseract_flow")
    vjp(open_tesseract(square(VJP), derive="central"))
    open_tesseract(square(), derive="central").apply(X)
    assert told(caplog) == []


@pytest.mark.parametrize(
    "have, endpoint, price, remedy",
    [
        ((), VJP, 6, "Differences('forward') costs about half"),
        ((JVP,), VJP, 3, "a component with 'vector_jacobian_product' of its own needs 1"),
        ((VJP,), JVP, 3, "a component with 'jacobian_vector_product' of its own needs 1"),
        ((JVP,), JACOBIAN, 3, "a component with 'jacobian' of its own needs 1"),
    ],
)
def test_over_budget_nothing_is_sent(have: tuple[str, ...], endpoint: str, price: int, remedy: str) -> None:
    component = square(*have)

    def ask_within(max_requests: int | None) -> None:
        handle = open_tesseract(component, derive=Derive(Differences(), max_requests=max_requests))
        handle.abstract_eval({"x": {"shape": [3], "dtype": "float64"}})
        with count_requests() as counts:
            try:
                ask(handle, endpoint)
            finally:
                n_sent.append(counts.n_total)

    n_sent: list[int] = []
    with pytest.raises(OverBudget) as caught:
        ask_within(price - 1)
    message = str(caught.value)
    assert f"would take {price} requests" in message
    assert f"the budget of one call is {price - 1}" in message
    assert remedy in message
    assert f"max_requests={price}" in message
    assert caught.value.endpoint == endpoint
    ask_within(price)
    ask_within(None)
    assert n_sent == [0, price, price]


def test_default_budget_protects_from_thousands_of_solves() -> None:
    n = 501
    component = FunctionTesseract(
        lambda i: {"y": jnp.sum(i["x"])}, {"x": np.ones(n)}, name="mesh", endpoints={"apply", "abstract_eval"}
    )
    with count_requests() as counts, pytest.raises(OverBudget, match=r"1002 requests.*is 1000"):
        vjp(open_tesseract(component, derive="central"), {"x": np.ones(n)}, {"y": np.ones(())})
    assert counts.n_total == 0


@pytest.mark.parametrize(
    "have, endpoint, advice",
    [
        ((JACOBIAN,), VJP, r"derive=True\) makes it from 'jacobian', at 1 request per call"),
        ((JVP,), VJP, r"derive=True\) makes it from 'jacobian_vector_product', at one request per input element"),
        ((VJP,), JVP, r"derive=True\) makes it from 'vector_jacobian_product', at one request per output element"),
        ((), VJP, r"derive='central'\) makes it by finite differences of 'apply', at 2 requests per input element"),
        ((), JVP, r"derive='central'\) makes it by finite differences of 'apply', at 2 requests per call"),
    ],
)
def test_without_derive_the_error_says_what_it_would_do(have: tuple[str, ...], endpoint: str, advice: str) -> None:
    x = jnp.asarray(X["x"])

    def f(x: jax.Array) -> jax.Array:
        return jnp.sum(apply_tesseract(component, {"x": x})["y"])

    component = square(*have)
    transform = {VJP: lambda: jax.grad(f)(x), JVP: lambda: jax.jvp(f, (x,), (x,))}
    with pytest.raises(EndpointNotFound, match=f"(?s)'square' has no endpoint '{endpoint}'.*{advice}") as caught:
        transform[endpoint]()
    assert isinstance(caught.value, NotImplementedError)


def test_exact_routes_only_do_not_difference() -> None:
    handle = open_tesseract(square(), derive=True)
    assert handle.schema.endpoints == {"apply", "abstract_eval"}
    with count_requests() as counts, pytest.raises(EndpointNotFound, match=r"derive='central'\)"):
        vjp(handle)
    assert counts.n_total == 0


def test_missing_abstract_eval_is_not_derived() -> None:
    with pytest.raises(EndpointNotFound, match="Implement 'abstract_eval'") as caught:
        open_tesseract(square(VJP, has_shapes=False), derive=True).abstract_eval(
            {"x": {"shape": [3], "dtype": "float64"}}
        )
    assert "derive=" not in str(caught.value)


# The handle


def test_handle_is_a_value() -> None:
    component = square(JACOBIAN)
    handle = open_tesseract(component, derive=True)
    assert handle == open_tesseract(component, derive="exact")
    assert hash(handle) == hash(DerivedTesseract(component, Derive()))
    assert handle != open_tesseract(component, derive="central")
    assert handle != component
    assert handle != open_tesseract(square(JACOBIAN), derive=True)
    typical = Derive(Differences(typical={"x": np.array([1.0, 2.0])}))
    assert hash(typical) == hash(Derive(Differences(typical={"x": [1, 2]})))
    assert typical == Derive(Differences(typical={"x": [1, 2]}))
    assert typical != Derive(Differences(typical={"x": [1, 3]}))
    assert copy.copy(handle) == handle
    assert repr(handle) == "DerivedTesseract(FunctionTesseract(square), exact)"
    assert repr(open_tesseract(component, derive="spsa")) == "DerivedTesseract(FunctionTesseract(square), spsa)"
    assert handle.name == "square"


def test_schema_tells_what_can_be_asked() -> None:
    component = square(JVP)
    handle = open_tesseract(component, derive=True)
    assert handle.schema is handle.schema
    assert handle.schema.endpoints == {"apply", "abstract_eval", JACOBIAN, JVP, VJP}
    assert component.schema.endpoints == {"apply", "abstract_eval", JVP}
    assert handle.schema.inputs == component.schema.inputs
    assert handle.schema.digest != component.schema.digest


def test_what_the_inner_handle_can_do_is_still_there() -> None:
    handle: Any = open_tesseract(Watched(square(JVP)), derive=True)
    assert handle.payloads("apply") == []
    assert handle.tesseract.payloads("apply") == []
    with pytest.raises(AttributeError, match="no attribute 'stop'"):
        handle.stop()


@pytest.mark.server
@pytest.mark.parametrize("fixture", ["served", "in_process"])
def test_component_with_a_pullback_alone(fixture: str, request: pytest.FixtureRequest) -> None:
    """As tesseract-core serves it: rows are requests to its own endpoint, and nothing else."""
    handle = open_tesseract(request.getfixturevalue(fixture), derive=True)
    f = jax.jit(lambda x: apply_tesseract(handle, {"x": x, "mode": "square"})["y"])
    x, t = jnp.asarray(X["x"]), jnp.asarray(C["y"])
    with count_requests() as counts:
        y, y_dot = jax.jvp(f, (x,), (t,))
    np.testing.assert_allclose(y, x**2)
    np.testing.assert_allclose(y_dot, 2 * x * t)
    assert counts == {f"{handle.name}.{endpoint}": n for endpoint, n in (("abstract_eval", 1), ("apply", 1), (VJP, 3))}


# In place of an endpoint that is wrong


def wrong_pullback(*endpoints: str) -> Watched:
    def distort(endpoint: str, answer: Any) -> Any:
        return {"x": -answer["x"]} if endpoint == VJP else answer

    return Watched(square(*endpoints), distort)


@pytest.mark.parametrize(
    ("replace", "asked"),
    [(VJP, {JACOBIAN}), ((VJP, JACOBIAN), {JVP}), ((VJP, JACOBIAN, JVP), {"apply"})],
    ids=["from the Jacobian", "from the pushforward", "by differences"],
)
def test_a_wrong_endpoint_is_replaced_from_what_is_left(replace: Any, asked: set[str]) -> None:
    component = wrong_pullback(JACOBIAN, JVP, VJP)
    handle = open_tesseract(component, derive=Derive(Differences("central"), replace=replace))
    np.testing.assert_allclose(vjp(handle)["x"], 2 * X["x"] * C["y"], rtol=1e-8)
    assert {endpoint for endpoint, _ in component.requests} == asked
    assert open_tesseract(component, derive="central") != handle
    np.testing.assert_allclose(vjp(open_tesseract(component, derive="central"))["x"], -2 * X["x"] * C["y"])


def test_what_is_replaced_and_cannot_be_made_is_not_asked_of_the_component() -> None:
    component = wrong_pullback(VJP)
    handle = open_tesseract(component, derive=Derive(replace=VJP))
    with pytest.raises(EndpointNotFound):
        handle.request(VJP, {"inputs": X, "vjp_inputs": ["x"], "vjp_outputs": ["y"], "cotangent_vector": C})
    assert component.requests == []


@pytest.mark.parametrize("replace", ["apply", "abstract_eval", "vector_jacobian_produkt"])
def test_only_derivatives_can_be_replaced(replace: str) -> None:
    with pytest.raises(OptionError, match="expected derivative endpoints"):
        Derive(Differences("central"), replace=replace)  # type: ignore[arg-type]


def test_replacing_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    handle = open_tesseract(
        wrong_pullback(JACOBIAN, JVP, VJP), derive=Derive(Differences("central"), replace=(VJP, JACOBIAN, JVP))
    )
    with caplog.at_level(logging.INFO, logger="tesseract_flow"):
        vjp(handle)
    assert "is not to be believed at its endpoint 'vector_jacobian_product'" in caplog.text
