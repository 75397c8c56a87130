"""A run that kills its own process, over and over, until it is done. Started by `test_resume` as a script.

    python -m tests.optimize.killed_run FOLDER DRIVER SEED N_KILLS

Each life is a fork of this process, made before JAX starts anything, so that lives cost little. A life ends by SIGKILL
at a random moment (inside an evaluation, or inside a write of the journal) or by finishing. FOLDER/killed.json is what
the last life found, FOLDER/undisturbed.json what a run found that nobody killed.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import signal
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from tesseract_flow.optimize import Constraint, Evaluation, FileJournal, MaxSteps, Problem, optimize

MOMENTS = ["history", "history sync", "aside", "aside half", "rename", "sync folder", "prune"]
N_STEPS = {"adam": 40, "lbfgs": 12}  # with prices and penalties changing on the way


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def make_problem(on_evaluation) -> Problem:
    matrix = np.random.default_rng(0).normal(size=(6, 6))
    matrix = matrix @ matrix.T + np.eye(6)

    def evaluate(design):
        x = design["x"]
        jax.debug.callback(on_evaluation)
        return Evaluation(x @ jnp.asarray(matrix) @ x + jnp.sin(x).sum(), {"sum": x.sum()}, aux={"x": x})

    design = {"x": jnp.linspace(0.5, 2.0, 6), "name": "killed"}
    demands = {"sum": Constraint(equals=3.0)}
    return Problem(design, evaluate, bounds=(-0.2, None), constraints=demands, settings={"n": 6})


def live(folder: pathlib.Path, name: str, driver: str, kill: tuple[str, int] | None) -> None:
    counts: dict[str, int] = {}

    def at(moment: str) -> None:
        counts[moment] = counts.get(moment, 0) + 1
        if kill == (moment, counts[moment]):
            die()

    result = optimize(
        make_problem(lambda: at("evaluate")),
        driver,
        stop=MaxSteps(N_STEPS[driver]),
        journal=FileJournal(folder / name, at=at),
        transform=eqx.filter_jit,
    )
    history = [{key: value for key, value in record.to_json().items() if key != "seconds"} for record in result.history]
    answer = {
        "design": np.asarray(result.design["x"]).tobytes().hex(),
        "value": result.value,
        "aux": np.asarray(result.evaluation.aux["x"]).tobytes().hex(),
        "multiplier": float(result.multipliers["sum"]),
        "history": history,
    }
    (folder / f"{name}.json").write_text(json.dumps(answer))


def last_signal(folder: pathlib.Path, name: str, driver: str, kill: tuple[str, int] | None) -> int:
    """Live once; the signal that ended it, or 0 if it finished."""
    child = os.fork()
    if child == 0:
        live(folder, name, driver, kill)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    if os.WEXITSTATUS(status) != 0:
        raise SystemExit(1)
    return 0


def main(folder: pathlib.Path, driver: str, seed: int, n_kills: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    assert last_signal(folder, "undisturbed", driver, None) == 0
    for k in range(n_kills):
        # Every other death inside an evaluation; early enough that there is always something left to do.
        moment = "evaluate" if k % 2 == 0 else rng.choice(MOMENTS)
        assert last_signal(folder, "killed", driver, (moment, rng.randint(1, 4))) == signal.SIGKILL
    assert last_signal(folder, "killed", driver, None) == 0


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
