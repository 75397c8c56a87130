"""The plugin in suites of other people: light until it is asked, one server for all workers, claims that can fail."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tesseract_flow as tf
from tesseract_flow.errors import OptionError
from tesseract_flow.testing import FunctionTesseract, assert_gradients, assert_requests, assert_resumes, in_process
from tesseract_flow.testing.plugin import NetworkUsed

ROOT = Path(__file__).parents[2]
SQUARE = FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(3)}, name="square")


def run(folder: Path, *arguments: str, **files: str) -> str:
    """What pytest says of a suite of these files, in an empty folder."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    (folder / "pytest.ini").write_text("[pytest]\n")
    plugin = ["-p", "no:benchmark", "-p", "tesseract_flow.testing.plugin"]
    command = [sys.executable, "-m", "pytest", "-q", *plugin, *arguments, str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


def test_a_suite_that_has_nothing_to_do_with_it_imports_nothing(tmp_path: Path) -> None:
    heavy = "{'jax', 'prefect', 'numpy', 'httpx', 'equinox'} & set(sys.modules)"
    code = f"import sys, tesseract_flow.testing.plugin; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n"
    said = run(tmp_path, "--fixtures")
    for fixture in ("served", "prefect_offline", "strict_jax", "count_requests", "no_network", "cassette"):
        assert f"\n{fixture}" in said


@pytest.mark.server
@pytest.mark.slow
def test_workers_share_one_server(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        "-n2",
        test_shared=f"""
        import numpy as np
        import pytest

        @pytest.mark.parametrize("k", range(4))
        def test_asks(served, k, count_requests, tmp_path_factory):
            section = served({str(ROOT / "examples" / "beam" / "section")!r})
            assert section.apply({{"thickness": np.ones(4)}})["volume"] == pytest.approx(0.1)
            assert count_requests.n_of("apply") == 1
            with open({str(tmp_path / "urls")!r}, "a") as file:
                file.write(section.url + "\\n")
        """,
    )
    assert "4 passed" in said, said
    assert len(set((tmp_path / "urls").read_text().split())) == 1


def test_no_network(no_network: None) -> None:
    with pytest.raises(NetworkUsed, match=r"127\.0\.0\.1"):
        tf.open_tesseract("http://127.0.0.1:9").apply({"x": np.ones(3)})


@pytest.mark.parametrize(("mode", "outcome"), [("record", "1 failed, 1 passed"), ("replay", "2 failed")])
def test_a_recording_is_let_through(mode: str, outcome: str, tmp_path: Path) -> None:
    said = run(
        tmp_path,
        f"--cassettes={mode}",
        test_connects="""
        import socket

        def connects(no_network):
            with socket.socket() as listening, socket.socket() as asking:
                listening.bind(("127.0.0.1", 0))
                listening.listen()
                asking.connect(listening.getsockname())

        def test_with_a_cassette(cassette, no_network):
            connects(no_network)

        def test_without(no_network):
            connects(no_network)
        """,
    )
    assert outcome in said, said


def test_strict_jax(strict_jax: None) -> None:
    assert jnp.ones(3).dtype == np.float64
    with pytest.raises(Exception, match=r"(?i)promotion"):
        jnp.ones(3) + jnp.ones(3, np.float32)


def loss(x: Any) -> Any:
    return jnp.sum(tf.apply_tesseract(SQUARE, {"x": x})["y"])


def test_requests_that_were_claimed() -> None:
    with assert_requests(apply=1, pullback=1):
        jax.value_and_grad(loss)(jnp.ones(3))
    with assert_requests():
        pass
    with assert_requests({"square.apply": 2}):
        loss(jnp.ones(3)), loss(jnp.zeros(3))
    with (
        pytest.raises(AssertionError, match="apply: 1 where 2 was expected"),
        assert_requests(apply=2, pullback=1),
    ):
        jax.value_and_grad(loss)(jnp.ones(3))
    with pytest.raises(AssertionError, match="pullback: 1 where 0 was expected"), assert_requests(apply=1):
        jax.value_and_grad(loss)(jnp.ones(3))
    with pytest.raises(AssertionError, match=r"square.apply: 1 where 0"), assert_requests({"square.apply": 0}):
        loss(jnp.ones(3))
    with pytest.raises(OptionError, match="Did you mean 'pullback'"), assert_requests(pulback=1):
        pass
    with pytest.raises(ZeroDivisionError), assert_requests(apply=1):
        raise ZeroDivisionError


def test_gradients_that_were_claimed() -> None:
    assert_gradients(loss, at=jnp.array([1.0, 2.0, 3.0]))
    wrong = {"vector_jacobian_product": lambda inputs, vjp_inputs, vjp_outputs, cotangent_vector: {"x": inputs["x"]}}
    lying = FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(3)}, name="lying", derivatives=wrong)
    of_lying = lambda x: jnp.sum(tf.apply_tesseract(lying, {"x": x})["y"])  # noqa: E731
    with pytest.raises(AssertionError, match="lying"):
        assert_gradients(of_lying, at=jnp.array([1.0, 2.0, 3.0]))
    problem = tf.Problem({"x": jnp.array([1.0, 2.0, 3.0])}, lambda d: loss(d["x"]), name="bowl")
    assert_gradients(problem)
    with pytest.raises(OptionError, match="at="):
        assert_gradients(loss)


def bowl() -> tf.Problem:
    return tf.Problem({"x": jnp.array([1.0, 2.0, 3.0])}, lambda d: loss(d["x"]), name="bowl")


def test_a_run_that_was_claimed_to_resume() -> None:
    assert_resumes(bowl(), kills=3, driver=optax.adam(0.1), stop={"max_steps": 8})
    n_evaluations = iter(range(1000))

    def drifting(design: Any) -> Any:
        return loss(design["x"]) * (1 + 1e-9 * jax.pure_callback(lambda: float(next(n_evaluations)), jnp.float64(0)))

    problem = tf.Problem({"x": jnp.ones(3)}, drifting, name="drifting")
    with pytest.raises((AssertionError, tf.errors.JournalError)):
        assert_resumes(problem, kills=2, driver=optax.sgd(0.1), stop={"max_steps": 6})


@pytest.mark.slow
def test_lives_that_end_by_sigkill(tmp_path: Path) -> None:
    (tmp_path / "bowl.py").write_text(
        "import jax.numpy as jnp\nimport tesseract_flow as tf\n"
        "def bowl():\n    return tf.Problem({'x': jnp.ones(3)}, lambda d: jnp.sum(d['x'] ** 4), name='bowl')\n"
    )
    assert_resumes(f"{tmp_path / 'bowl.py'}:bowl", kills=2, driver="adam", stop={"max_steps": 6})


def test_a_component_in_this_process() -> None:
    section = in_process(ROOT / "examples" / "beam" / "section")
    assert section.name == "section"
    assert section.apply({"thickness": np.ones(4)})["volume"] == pytest.approx(0.1)
    with pytest.raises(tf.errors.Unreachable, match="no such file"):
        in_process(ROOT / "nowhere")
