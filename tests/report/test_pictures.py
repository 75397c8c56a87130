"""Pictures over the steps of a run."""

from __future__ import annotations

import logging

import jax.numpy as jnp
import pytest
from matplotlib.figure import Figure

import tesseract_flow as tf
from tesseract_flow.cli import main
from tesseract_flow.errors import ProblemError
from tesseract_flow.report import Pictures


def bowl(picture=lambda design, evaluation: Figure()) -> tf.Problem:
    return tf.Problem(jnp.ones(2), lambda x: (x**2).sum(), picture=picture)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run(problem: tf.Problem, folder) -> tf.optimize.Result:
    return tf.optimize(
        problem, "sgd", learning_rate=0.1, stop={"max_steps": 5}, observers=[Pictures(folder / "pictures", every=2)]
    )


def test_the_start_every_so_many_steps_and_the_result_are_drawn(tmp_path):
    run(bowl(), tmp_path)
    assert names(tmp_path / "pictures") == ["result.png", "step-00000.png", "step-00002.png", "step-00004.png"]
    assert (tmp_path / "pictures" / "result.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_fails_is_a_warning(tmp_path, caplog):
    def picture(design, evaluation):
        raise ValueError("no ink")

    with caplog.at_level(logging.WARNING, "tesseract_flow"):
        result = run(bowl(picture), tmp_path)
    assert result.steps == 5 and "no ink" in caplog.text and not (tmp_path / "pictures").exists()


def test_what_cannot_be_drawn_is_refused(tmp_path, capsys):
    with pytest.raises(ProblemError, match="no picture"):
        run(bowl(None), tmp_path)
    with pytest.raises(ProblemError, match="1 or more"):
        Pictures(tmp_path, every=0)
    assert main(["optimize", "nothing.py:problem", "--pictures", "3"]) == 1
    assert "--out" in capsys.readouterr().err
