"""A run that dies over and over until it is done. Started by tests as a script.

    python -m tests.optimize.killed_run FOLDER DRIVER KIND SEED N_KILLS

Each life is a fork of this process, made before JAX starts anything, so that lives cost little. A life ends at once, at
a random moment: inside an evaluation, inside a write of the journal, at any instant of the clock.
FOLDER/killed.json is what the last life found, FOLDER/undisturbed.json what a run found that nobody killed. A life that
begins with fewer steps than the ones before had announced ends with an error.

KIND is `free`, `bounded`, `constrained` (and bounded), `walled` (evaluations fail beyond a wall), `misfit` (one that
stays, so that steps do not end; bounded, and beyond a wall evaluations fail), `coupled` (a fixed point, begun where the
step before left it; constrained), `scheduled` and `scheduled misfit` (in three phases, with a number that changes),
`steered` (bounded; changed by hand on the way), `phases` (SLSQP, DRIVER, SLSQP, under other limits each), or the URL of
the component of `tests.faults`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import tesseract_flow as tf
from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import HttpTesseract
from tesseract_flow.optimize import (
    Constraint,
    Evaluation,
    FileJournal,
    MaxSteps,
    Observer,
    Phase,
    Problem,
    Schedule,
    optimize,
)
from tesseract_flow.optimize.commands import Command

MOMENTS = ["history", "history sync", "aside", "aside half", "rename", "sync folder", "prune"]
N_STEPS = {"adam": 40}  # with prices and penalties changing on the way
FEW = 12
ABRUPT = (signal.SIGKILL, signal.SIGALRM)
ASKED = (
    Command(changes={"learning_rate": 0.02}),
    Command(changes={"bounds": {"x": [-0.4, 2.5]}}),
    Command(changes={"learning_rate": 0.05}),
)
Kill = tuple[str, float]  # a moment and its number, or "instant" and seconds


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def make_problem(kind: str, on_evaluation) -> Problem:
    matrix = np.random.default_rng(0).normal(size=(6, 6))
    matrix = matrix @ matrix.T + np.eye(6)

    def evaluate(design):
        x = design["x"]
        jax.debug.callback(on_evaluation)
        value = x @ jnp.asarray(matrix) @ x + jnp.sin(x).sum()
        value = jnp.where(x[0] < 0.45, jnp.nan, value) if kind == "walled" else value
        return Evaluation(value, {"sum": x.sum()} if kind == "constrained" else {}, aux={"x": x})

    def scheduled(design, numbers):
        found = evaluate(design)
        misfit = jnp.concatenate([jnp.asarray(matrix) @ design["x"], numbers["beta"] * jnp.cos(design["x"])])
        if kind == "scheduled misfit":
            return Evaluation(misfit=misfit, aux=found.aux)
        return Evaluation(found.objective + numbers["beta"] * (misfit**2).sum(), {"sum": design["x"].sum()}, found.aux)

    def fit(design):
        x = design["x"]
        jax.debug.callback(on_evaluation)
        misfit = {"up": jnp.asarray(matrix) @ x + jnp.sin(3.0 * x), "down": jnp.exp(x) - 4.0, "wall": x[:2] - 3.0}
        misfit["wall"] = jnp.where(x[0] > 1.5, jnp.nan, misfit["wall"])
        return Evaluation(misfit=misfit, aux={"x": x})

    def coupled(design):
        found = evaluate(design)
        T = tf.fixed_point(lambda T, x: jnp.cos(x) + 0.9 * jnp.tanh(T), jnp.zeros(6), design["x"], name="loop")
        return Evaluation(found.objective + (T**2).sum(), {"sum": design["x"].sum()}, found.aux)

    def ask(design):
        x = design["x"]
        jax.debug.callback(on_evaluation)
        out = apply_tesseract(HttpTesseract(kind), {"x": x, "w": matrix[:2], "s": jnp.asarray(0.5), "mode": "plain"})
        return Evaluation((out["y"] ** 2).sum() + out["e"], {"sum": x.sum()}, aux={"x": x})

    design = {"x": jnp.linspace(0.5, 2.0, 6), "name": "killed"}
    bounds = (-0.2, None) if kind in ("bounded", "constrained", "misfit", "steered") else None
    if kind in ("scheduled", "scheduled misfit", "phases"):
        stop = {"max_steps": 4}
        phases = [Phase(stop=stop), Phase(stop=stop), Phase()]
        demands = {}
        if kind == "phases":
            demands = {"sum": Constraint(equals=3.0)}
            half = {"sum": Constraint(lower=2.0)}
            phases = [Phase(driver="slsqp", stop=stop), Phase(constraints=half, stop=stop), Phase(driver="slsqp")]
        schedule = {"beta": Schedule([0.5, 1.0, 2.0])}
        return Problem(
            design, scheduled, bounds=(-0.2, 3.0), constraints=demands, schedule=schedule, phases=phases, name=kind
        )
    if kind.startswith("http://"):
        fn, demands = ask, {"sum": Constraint(equals=3.0)}
    elif kind == "misfit":
        fn, demands = fit, {}
    elif kind == "coupled":
        fn, demands = coupled, {"sum": Constraint(equals=3.0)}
    else:
        fn, demands = evaluate, {"sum": Constraint(equals=3.0)} if kind == "constrained" else {}
    return Problem(design, fn, bounds=bounds, constraints=demands, settings={"n": 6})


def live(folder: pathlib.Path, name: str, driver: str, kind: str, kill: Kill | None) -> None:
    counts: dict[str, int] = {}
    announced = folder / f"{name}.steps"  # one byte for each step that is finished

    def at(moment: str) -> None:
        counts[moment] = counts.get(moment, 0) + 1
        if kill is not None and kill[0] == "instant" and moment == "evaluate" and counts[moment] == 1:
            # Its default action ends a process as SIGKILL does, wherever it is, interpreter or not.
            signal.setitimer(signal.ITIMER_REAL, kill[1])
        if kill == (moment, counts[moment]):
            die()

    def compare(problem, history) -> None:
        n_before = announced.stat().st_size if announced.exists() else 0
        assert len(history) >= n_before, f"{n_before} steps were finished, {len(history)} are there"
        announced.write_bytes(b"." * len(history))

    def announce(record, design, evaluation) -> None:
        with announced.open("ab", buffering=0) as file:
            file.write(b".")

    if kind == "steered" and not announced.exists():  # nothing is finished, and the first life may have asked already
        store = FileJournal(folder / name).store
        store.make()
        for k, command in enumerate(ASKED):
            command = dataclasses.replace(command, at="noon", id=f"{k:032}")
            store.write(f"steer-{k:020d}-00000000.json", command.encoded())

    began = time.monotonic()
    result = optimize(
        make_problem(kind, lambda: at("evaluate")),
        driver,
        stop=MaxSteps(N_STEPS.get(driver, FEW)),
        journal=FileJournal(folder / name, at=at),
        transform=None if kind.startswith("http://") else eqx.filter_jit,
        observers=[Observer(on_start=compare, on_step=announce)],
    )
    signal.setitimer(signal.ITIMER_REAL, 0)
    # Requests to a component that fails now and then count those that were repeated.
    passing = {"seconds", "requests"} if kind.startswith("http://") else {"seconds"}
    history = [{k: value for k, value in record.to_json().items() if k not in passing} for record in result.history]
    answer = {
        "design": np.asarray(result.design["x"]).tobytes().hex(),
        "value": result.value,
        "aux": np.asarray(result.evaluation.aux["x"]).tobytes().hex(),
        "multipliers": {key: float(value) for key, value in result.multipliers.items()},
        "history": history,
    }
    (folder / f"{name}.json").write_text(json.dumps(answer))
    (folder / f"{name}.seconds").write_text(str(time.monotonic() - began))


def last_signal(*life) -> int:
    """Live once; the signal that ended it, or 0 if it finished."""
    child = os.fork()
    if child == 0:
        live(*life)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    if os.WEXITSTATUS(status) != 0:
        raise SystemExit(1)
    return 0


class Before:
    """What a run had on disk before a life, to live that life again."""

    def __init__(self, folder: pathlib.Path, name: str):
        self.paths = [folder / name, folder / f"{name}.steps"]
        self.kept = folder / "before"

    def keep(self) -> None:
        _remove(self.kept)
        self.kept.mkdir()
        for path in self.paths:
            _copy(path, self.kept / path.name)

    def bring_back(self) -> None:
        self.forget()
        for path in self.paths:
            _copy(self.kept / path.name, path)

    def forget(self) -> None:
        for path in self.paths:
            _remove(path)


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.exists():
        shutil.copy2(source, target)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main(folder: pathlib.Path, driver: str, kind: str, seed: int, n_kills: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    assert last_signal(folder, "undisturbed", driver, kind, None) == 0
    seconds = float((folder / "undisturbed.seconds").read_text())
    before, n_killed = Before(folder, "killed"), 0
    while n_killed < n_kills:
        kill = [
            ("evaluate", rng.randint(1, 4)),
            (rng.choice(MOMENTS), rng.randint(1, 3)),
            ("instant", rng.uniform(0.0, seconds / (2 * n_kills))),
        ][(seed + n_killed) % 3]
        before.keep()
        # A life that was over before its moment came is lived again, with a moment that is sure to come: at once, if
        # need be from the beginning.
        for moment, anew in ((kill, False), (("evaluate", 1), False), (("evaluate", 1), True)):
            if anew:
                before.forget()
            how = last_signal(folder, "killed", driver, kind, moment)
            if how != 0:
                break
            before.bring_back()
        assert how in ABRUPT
        n_killed += 1
    assert last_signal(folder, "killed", driver, kind, None) == 0


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
