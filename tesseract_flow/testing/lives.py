"""A run that dies over and over until it is done, beside one that nobody disturbed.

The one idea: it dies at named moments, inside the writes of its journal, so that the same test finds the same fault
again. As a problem's address (`file.py:factory`) each life is a process that is killed by SIGKILL; as an object, it is
ended at the same moments by an exception that nothing catches.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tesseract_flow.errors import OptionError
from tesseract_flow.optimize import FileJournal, Problem, Result, load_problem, optimize

MOMENTS = ("aside half", "history", "rename", "sync folder", "prune", "aside", "history sync")
# What a step cost is also due to what a process has learned, such as shapes that only answers tell.
_COSTS = {"seconds", "requests"}


class Killed(BaseException):
    """The end of a life."""


def assert_resumes(problem: Problem | str, kills: int = 5, **options: Any) -> None:
    """A run that is killed so often ends with the bits of one that is not: same design, value and history.

    The kills come at different moments of a write to the journal, a step apart. A run that ends before has fewer.

    Args:
        problem: an object, whose run is ended in this process; or its address, `file.py:factory`, whose run is killed
            with SIGKILL in a process of its own, which takes some seconds each.
        options: of `tf.optimize`, such as `driver` and `stop`; for an address as what JSON can say.

    Raises:
        AssertionError: something was lost, or the run was over before the first kill.
    """
    if kills < 1:
        raise OptionError(f"assert_resumes: kills is {kills}; expected at least 1.")
    live = _in_this_process if isinstance(problem, Problem) else _in_its_own
    with tempfile.TemporaryDirectory(prefix="tesseract-flow-lives-") as folder:
        undisturbed = live(problem, Path(folder, "undisturbed"), options, None)
        assert undisturbed is not None
        found, n_killed = None, 0
        while n_killed < kills:
            moment = MOMENTS[n_killed % len(MOMENTS)]
            found = live(problem, Path(folder, "killed"), options, moment)
            if found is not None:
                break
            n_killed += 1
        found = found or live(problem, Path(folder, "killed"), options, None)
        if n_killed == 0:
            raise AssertionError("The run was over before it could be killed. Give it more steps.")
        assert found is not None
        if found != undisturbed:
            what = [name for name in undisturbed if found[name] != undisturbed[name]]
            raise AssertionError(
                f"After {n_killed} kills the run ends with another {' and '.join(what)} than undisturbed:\n"
                + "\n".join(f"  {line}" for name in what for line in _differences(name, undisturbed[name], found[name]))
            )


def _differences(name: str, undisturbed: Any, now: Any) -> list[str]:
    """What differs, in words; of a history what differs in the first step that does."""
    if name != "history":
        return [f"{name}: {undisturbed!r:.100} undisturbed, {now!r:.100} now"]
    if len(undisturbed) != len(now):
        return [f"history: {len(undisturbed)} steps undisturbed, {len(now)} steps now"]
    k, before, after = next(
        (k, *pair) for k, pair in enumerate(zip(undisturbed, now, strict=True)) if pair[0] != pair[1]
    )
    return [
        f"history, step {k}, {field}: {before.get(field)!r:.100} undisturbed, {after.get(field)!r:.100} now"
        for field in sorted({*before, *after})
        if before.get(field) != after.get(field)
    ]


def _in_this_process(problem: Any, folder: Path, options: dict[str, Any], moment: str | None) -> dict[str, Any] | None:
    try:
        return _life(problem, folder, options, moment, _raise)
    except Killed:
        return None


def _raise() -> None:
    raise Killed


def _in_its_own(problem: Any, folder: Path, options: dict[str, Any], moment: str | None) -> dict[str, Any] | None:
    told = json.dumps([os.fspath(problem), str(folder), options, moment])
    done = subprocess.run([sys.executable, "-m", __name__, told], capture_output=True, text=True)
    if done.returncode == -signal.SIGKILL:
        return None
    if done.returncode != 0:
        raise AssertionError(f"A life of the run ended with an error.\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _life(problem: Problem, folder: Path, options: dict[str, Any], moment: str | None, die: Any) -> dict[str, Any]:
    n_met = 0

    def at(now: str) -> None:
        nonlocal n_met
        if now == moment:
            n_met += 1
            if n_met == 2:  # the first is of the start, or of what the life before has left
                die()

    result = optimize(problem, journal=FileJournal(folder, at=at), **options)
    return _told(result)


def _told(result: Result) -> dict[str, Any]:
    """All of a result but what it cost, as what JSON can say."""
    leaves = [
        np.asarray(leaf).tobytes().hex() for leaf in jax.tree_util.tree_leaves(result.design) if _is_numeric(leaf)
    ]
    history = [{name: value for name, value in step.to_json().items() if name not in _COSTS} for step in result.history]
    return json.loads(
        json.dumps({"design": leaves, "value": float(result.value).hex(), "reason": result.reason, "history": history})
    )


def _is_numeric(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") or isinstance(leaf, int | float | complex)


if __name__ == "__main__":
    address, where, settings, when = json.loads(sys.argv[1])
    told = _life(load_problem(address), Path(where), settings, when, lambda: os.kill(os.getpid(), signal.SIGKILL))
    print(json.dumps(told), flush=True)
