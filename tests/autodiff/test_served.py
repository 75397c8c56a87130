"""The beam through its three real components: the gradient is the closed form's, however it is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tesseract_core import Tesseract

from examples.beam import closed_form
from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import ServedTesseract, count_requests, open_tesseract
from tesseract_flow.execute import concurrent

BEAM = Path(closed_form.__file__).parent
NAMES = ("section", "fem", "compliance")
H = np.linspace(0.2, 0.05, 50)

OUTER = {"eager": lambda f: f, "jit": jax.jit, "concurrent": concurrent}


@pytest.fixture(scope="module")
def served() -> Iterator[dict[str, Any]]:
    """Each component in a process of its own, behind HTTP."""
    handles = {name: open_tesseract(BEAM / name / "tesseract_api.py") for name in NAMES}
    yield handles
    for handle in handles.values():
        assert isinstance(handle, ServedTesseract)
        handle.stop()


@pytest.fixture(scope="module")
def in_process() -> dict[str, Any]:
    """tesseract-core's own handles, as somebody who comes from tesseract-jax has them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tesseract-core's remarks about itself
        return {name: Tesseract.from_tesseract_api(BEAM / name / "tesseract_api.py") for name in NAMES}


def loss_of(beam: Mapping[str, Any]) -> Callable[[Any], Any]:
    def loss(h: Any) -> Any:
        section = apply_tesseract(beam["section"], {"thickness": h})
        state = apply_tesseract(beam["fem"], {"inertia": section["inertia"]})
        return apply_tesseract(beam["compliance"], {"displacement": state["displacement"]})["compliance"]

    return loss


def check(outer: str, beam: Mapping[str, Any]) -> None:
    step = OUTER[outer](jax.value_and_grad(loss_of(beam)))
    for h in (H, np.flip(H).copy()):
        with count_requests() as requests:
            value, gradient = step(h)
        assert gradient.dtype == jnp.float64
        assert float(value) == pytest.approx(closed_form.compliance(h), rel=1e-10)
        np.testing.assert_allclose(gradient, closed_form.gradient(h), rtol=1e-10)
    assert requests.n_of("apply") == requests.n_of("vector_jacobian_product") == 3
    assert requests.n_total == 6


@pytest.mark.server
@pytest.mark.parametrize("outer", OUTER)
def test_gradient_through_served_components_is_the_closed_form(outer: str, served: Mapping[str, Any]):
    check(outer, served)


@pytest.mark.parametrize("outer", OUTER)
def test_gradient_through_tesseract_core_objects_is_the_closed_form(outer: str, in_process: Mapping[str, Any]):
    check(outer, in_process)


def test_equal_calls_through_one_core_object_are_one_request(in_process: Mapping[str, Any]):
    """Each call wraps the object in a handle of its own, and these handles are equal."""

    def volume(h: Any) -> Any:
        return apply_tesseract(in_process["section"], {"thickness": h})["volume"]

    jax.jit(volume)(H)
    with count_requests() as requests:
        assert float(jax.jit(lambda h: volume(h) + 2.0 * volume(h))(H)) == pytest.approx(3.0 * closed_form.volume(H))
    assert requests.n_total == 1
