"""Secrets are used and never told: what a run says and writes is searched for those that were given to it."""

from __future__ import annotations

import base64
import logging
import os
import pickle
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from pydantic import SecretStr

import tesseract_flow as tf
from tesseract_flow import errors
from tesseract_flow.cli import main
from tesseract_flow.client import RetryPolicy
from tesseract_flow.optimize import load_problem
from tesseract_flow.testing.faults import Exchange, FaultyServer, at, status
from tests.planted import SECRET, files_with_it, forms, is_in

INPUTS = {"x": np.ones(3), "w": np.ones((2, 3)), "s": np.float64(2.0)}
WORD = quote(SECRET, safe="")

PROBLEM = """
import jax.numpy as jnp
import numpy as np
import tesseract_flow as tf

def weight(solver="", token=None, headers=None, proxy=None, cache=None):
    solver = tf.open_tesseract(solver, token=token, headers=headers or {}, proxy=proxy, cache=cache)

    def evaluate(design):
        out = tf.apply_tesseract(solver, {"x": design["x"], "w": np.ones((2, 3)), "s": jnp.asarray(2.0)})
        return out["e"] - out["y"].sum() / 10

    return tf.Problem({"x": jnp.ones(3)}, evaluate, name="weight")
"""


def with_password(server: FaultyServer) -> str:
    return f"http://bob:{WORD}@{urlsplit(server.url).netloc}"


def of_the_environment(server: FaultyServer, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setenv("HTTP_PROXY", with_password(server))
    patch.delenv("NO_PROXY", raising=False)
    return {"solver": "http://plate.example:8000"}


# How credentials come to a handle.
CREDENTIALS: dict[str, Callable[[FaultyServer, pytest.MonkeyPatch], dict[str, Any]]] = {
    "address": lambda server, patch: {"solver": with_password(server)},
    "token": lambda server, patch: {"solver": server.url, "token": SECRET},
    "headers": lambda server, patch: {"solver": server.url, "headers": {"X-Api-Key": SECRET}},
    "proxy": lambda server, patch: {"solver": "http://plate.example:8000", "proxy": with_password(server)},
    "environment": of_the_environment,
}


@pytest.fixture
def problem(tmp_path: Path) -> str:
    file = tmp_path / "weight.py"
    file.write_text(textwrap.dedent(PROBLEM))
    return f"{file}:weight"


@pytest.fixture
def server(server: FaultyServer) -> FaultyServer:
    server.clear()
    server.asked.clear()
    return server


def credentials_seen(server: FaultyServer) -> bool:
    """Whether the server was told them: a run that forgot them would keep every secret."""
    return any(is_in("\n".join(asked.headers.values())) for asked in server.asked)


def test_the_search_finds_every_form_of_a_secret(tmp_path):
    secret = "an0ther/one=that;is+written"  # and found at the end of all tests, were it the planted one
    in_base64 = [base64.b64encode(b"bob:"[:n] + secret.encode() + b"..") for n in range(4)]
    for k, data in enumerate([secret.encode(), quote(secret, safe="").encode(), *in_base64]):
        (tmp_path / f"{k}").write_bytes(b"something before " + data)
    (tmp_path / "innocent").write_bytes(b"nothing")
    assert len(list(files_with_it(tmp_path, secret))) == 6
    assert all(len(form) > 12 for form in forms(secret))


@pytest.mark.parametrize("given", CREDENTIALS)
def test_a_run_and_all_that_it_writes(server, problem, given, tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level(logging.DEBUG)
    server.plant(at("pullback", status(429, retry_after=0), every=4))  # so that there is something to log
    settings = {**CREDENTIALS[given](server, monkeypatch), "cache": str(tmp_path / "cache")}
    made = tf.optimize(
        load_problem(problem, settings),
        "lbfgs",
        stop={"max_steps": 4},
        journal=tmp_path / "journal",
    )
    assert credentials_seen(server)
    told = [repr(made), str(made.notes), caplog.text, *capsys.readouterr()]
    assert not is_in("\n".join(told))
    assert not list(files_with_it(tmp_path))


def test_the_command_line_and_its_report(server, problem, tmp_path, capsys, caplog):
    caplog.set_level(logging.DEBUG)
    folder = tmp_path / "out"
    command = ["optimize", problem, "--set", f"solver={with_password(server)}", "--max-steps", "3"]
    assert main([*command, "--journal", str(tmp_path / "journal"), "--out", str(folder)]) == 0
    assert credentials_seen(server)
    assert (folder / "report.html").stat().st_size > 0
    # Another solver is another run; what tells them apart names none of the two.
    server.plant(at("apply", status(403)))
    assert main([*command, "--journal", str(tmp_path / "other")]) != 0
    assert not is_in("\n".join([caplog.text, *capsys.readouterr()]))
    assert not list(files_with_it(tmp_path))


def echoes(x: Exchange) -> None:
    """A server that is being debugged tells all that it was told."""
    x.answer(repr(dict(x.asked.headers)).encode(), 500, ("Content-Type", "text/plain"))


TELLING = {
    "401": lambda x: x.answer(b"no", 401),
    "redirect": lambda x: x.answer(b"", 302, ("Location", "http://elsewhere/")),
    "lost": lambda x: x.reset(),
    "garbage": lambda x: x.answer(b"<html>"),
    "echo": echoes,
}


@pytest.mark.parametrize("fault", TELLING)
@pytest.mark.parametrize("given", CREDENTIALS)
def test_errors_tell_no_secret(server, given, fault, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    settings = CREDENTIALS[given](server, monkeypatch)
    handle = tf.open_tesseract(settings.pop("solver"), **settings, retry=RetryPolicy(n_retries=0))
    server.plant(at("apply", TELLING[fault]))
    with pytest.raises(errors.CallError) as caught:
        handle.apply(INPUTS)
    told = [*traceback.format_exception(caught.value), repr(caught.value), str(caught.value.__dict__), caplog.text]
    assert credentials_seen(server)
    assert not is_in("\n".join(told))
    assert not is_in(pickle.dumps(caught.value))


@pytest.mark.parametrize("given", CREDENTIALS)
def test_handles_and_traced_programs_print_none(server, given, monkeypatch):
    import jax

    settings = CREDENTIALS[given](server, monkeypatch)
    handle = tf.open_tesseract(settings.pop("solver"), **settings, cache=True, derive=True, max_in_flight=2)
    fn = lambda x: tf.apply_tesseract(handle, {**INPUTS, "x": x})["e"]  # noqa: E731
    fn(np.full(3, 0.123))  # an equal handle of another test may know all that is asked beforehand
    told = [repr(handle), str(handle), f"{handle}", handle.name, repr(handle.schema)]
    told += [str(jax.make_jaxpr(jax.grad(fn))(np.ones(3))), str(tf.concurrent(jax.grad(fn)).plan(np.ones(3)))]
    assert credentials_seen(server)
    assert not is_in("\n".join(told))
    # A pickle has to bring them along, or the other process could not call; it is for a wire and not for a disk.
    assert pickle.loads(pickle.dumps(handle)) == handle


def test_a_flow_with_a_block_and_the_database_of_prefect(server, tmp_path, prefect_harness, caplog):
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_HOME

    from tesseract_flow.blocks import TesseractEndpoint
    from tesseract_flow.flows import Stop, optimize_design

    TesseractEndpoint(url=server.url, token=SecretStr(SECRET)).save("planted-token")
    TesseractEndpoint(url=server.url, user="bob", password=SecretStr(SECRET)).save("planted-password")
    (tmp_path / "blocks.py").write_text(
        textwrap.dedent(PROBLEM).replace(
            "tf.open_tesseract(solver, token=token, headers=headers or {}, proxy=proxy, cache=cache)",
            "tf.open_tesseract(solver, cache=cache)",
        )
    )
    problem = f"{tmp_path / 'blocks.py'}:weight"
    options = {"stop": Stop(max_steps=1), "observe": "calls", "folder": str(tmp_path / "runs")}
    server.plant(at("pullback", status(503), first=1))  # so that there is something to log
    settings = {"solver": "block:planted-token", "cache": str(tmp_path / "cache")}
    optimize_design(problem, settings=settings, run_key="good", **options)
    assert credentials_seen(server)
    server.asked.clear()
    # And one that fails, with whatever Prefect writes of a failure.
    server.plant(at("apply", echoes))
    with pytest.raises((errors.ComponentFailed, errors.EvaluationFailed)):
        optimize_design(problem, settings={"solver": "block:planted-password"}, run_key="bad", **options)
    assert credentials_seen(server)
    server.clear()
    assert not is_in(caplog.text)
    assert not list(files_with_it(tmp_path))
    database = Path(urlsplit(str(PREFECT_API_DATABASE_CONNECTION_URL.value())).path)
    assert database.is_file()
    for folder in {database.parent, PREFECT_HOME.value(), Path(os.environ["PREFECT_HOME"])}:
        assert not list(files_with_it(folder))
