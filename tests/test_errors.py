"""`cause`: ours behind whatever JAX, a group of exceptions or somebody's `raise ... from` made of it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow import errors
from tesseract_flow.errors import ComponentFailed, InvalidInput, NonFiniteError, TesseractFlowError, cause
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import Faults

X = np.ones(3)
SLOW = ComponentFailed("'apply' of 'mesher': mesh has negative volumes\nat element 7", tesseract="M", endpoint="apply")
OURS = {
    "component": lambda: copy.copy(SLOW),
    "bad input": lambda: InvalidInput("x: 300 does not fit", faults=[errors.Fault("x", "300")], tesseract="M"),
    "not finite": lambda: NonFiniteError("NaN at [3]"),
}


def caught(fn: Any) -> BaseException:
    try:
        fn()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("endpoint", ["apply", "vector_jacobian_product"])
def test_under_jit_the_error_itself_comes_back(name: str, endpoint: str):
    ours = OURS[name]()
    failing = FunctionTesseract(lambda i: {"y": i["x"] * 2.0}, {"x": X}, before=Faults(ours, endpoint=endpoint))
    run = jax.jit(jax.value_and_grad(lambda x: jnp.sum(tf.apply_tesseract(failing, {"x": x})["y"])))
    theirs = caught(lambda: jax.block_until_ready(run(X)))
    assert not isinstance(theirs, TesseractFlowError)
    found = cause(theirs)
    assert type(found) is type(ours)
    assert str(found) == str(ours)
    assert vars(found).keys() >= vars(ours).keys() - {"__notes__"}
    if isinstance(ours, InvalidInput):
        assert found.faults == ours.faults  # type: ignore[union-attr]


def test_of_several_the_one_that_it_was():
    def failing(text: str) -> Any:
        trouble = Faults(ComponentFailed(text, tesseract=text))
        component = FunctionTesseract(lambda i: {"y": i["x"]}, {"x": X}, before=trouble)
        return jax.jit(lambda x: tf.apply_tesseract(component, {"x": x})["y"])

    runs = {text: failing(text) for text in ("first", "second")}
    found = {text: caught(lambda run=run: jax.block_until_ready(run(X))) for text, run in runs.items()}
    for text, error in found.items():
        assert str(cause(error)) == text


def test_what_this_process_has_not_seen_is_made_of_the_text():
    """Such as an error that another process has written down."""
    text = "INTERNAL: CpuCallback error: Traceback ...\n  File x\nValueError: a: b\nNonFiniteError: NaN\nhere"
    found = cause(RuntimeError(text))
    assert type(found) is NonFiniteError
    assert str(found) == "NaN\nhere"
    found = cause(RuntimeError("Traceback\ntesseract_flow.errors.ComponentFailed: no mesh"))
    assert isinstance(found, ComponentFailed)
    assert found.endpoint == "?"
    assert str(found) == "no mesh"


def raised(error: Exception, origin: Exception | None) -> Exception:
    try:
        raise error from origin
    except Exception as made:
        return made


WRAPPED = {
    "itself": lambda ours: ours,
    "cause": lambda ours: raised(ValueError("theirs"), ours),
    "cause of a cause": lambda ours: raised(KeyError("outer"), raised(ValueError("theirs"), ours)),
    "group": lambda ours: ExceptionGroup("several", [ValueError("other"), ExceptionGroup("inner", [ours])]),
    "pickled": lambda ours: pickle.loads(pickle.dumps(ours)),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_chains_and_groups_are_followed(wrapped: str):
    found = cause(WRAPPED[wrapped](copy.copy(SLOW)))
    assert isinstance(found, ComponentFailed)
    assert (str(found), found.tesseract, found.endpoint) == (str(SLOW), "M", "apply")


@pytest.mark.parametrize("error", [ValueError("theirs"), KeyError("NonFiniteError"), RuntimeError("a\nb: c")], ids=repr)
def test_what_is_not_ours_is_none(error: Exception):
    assert cause(error) is None


def test_circles_end():
    one, other = ValueError("one"), ValueError("other")
    one.__context__, other.__context__ = other, one
    assert cause(one) is None


def test_what_is_remembered_holds_no_frames():
    error = caught(lambda: (_ for _ in ()).throw(NonFiniteError("with frames")))
    assert error.__traceback__ is not None
    errors.remember(error)  # type: ignore[arg-type]
    assert errors._recent[-1].__traceback__ is None
    assert errors._recent.maxlen is not None
