"""What `python -m examples.NAME` does in each example: `tesseract-flow optimize`, and then the comparison with the
known answer. Components are served from the example's folder, as processes of this machine.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tesseract_flow.cli import main
from tesseract_flow.cli.arguments import assignments

HERE = Path(__file__).resolve().parent


class Answer(NamedTuple):
    """What a run has left.

    Attributes:
        settings: those given to the factory.
        result: `result.json`.
        design: `design.npz`, each leaf by its path.
        folder: of the run, with report.html.
    """

    settings: dict[str, Any]
    result: dict[str, Any]
    design: dict[str, np.ndarray]
    folder: Path


def optimised(factory: str, about: str | None, *options: str) -> Answer:
    """The answer of a run of `factory` (`NAME/problem.py:FACTORY` in this folder).

    The command line may add options of `tesseract-flow optimize`. The journal is in the run's folder: killed and
    started again it goes on, and once finished it tells its result again.
    """
    name = Path(factory).parts[0]
    parser = argparse.ArgumentParser(
        prog=f"python -m examples.{name}",
        description=about,
        epilog="Anything else is an option of `tesseract-flow optimize`, such as --driver NAME.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--folder", type=Path, help=f"where to leave results (default runs/{name})")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the factory")
    given, others = parser.parse_known_args()
    run = given.folder or Path("runs") / name
    command = ["optimize", str(HERE / factory), *(f"--set={pair}" for pair in given.set), *options]
    command += [f"--journal={run / 'journal'}", f"--out={run}", *others]
    print("tesseract-flow", shlex.join(command), flush=True)
    if code := main(command):
        sys.exit(code)
    with np.load(run / "design.npz", allow_pickle=False) as file:
        design = dict(file)
    return Answer(assignments(given.set), json.loads((run / "result.json").read_text()), design, run)


def compare(answer: Answer, facts: Sequence[tuple[str, float, float]]) -> None:
    """Print each (what, how far from the known answer, what is allowed); exits with 1 if one of them is too far."""
    print(f"\n  {answer.result['steps']} steps, {answer.result['requests']} requests: {answer.result['reason']}")
    for what, distance, allowed in facts:
        print(f"  {what:<56} {distance:9.2e}   allowed {allowed:.0e}")
    print(f"  {answer.folder / 'report.html'}")
    if not all(distance <= allowed for _, distance, allowed in facts):  # written so that NaN is too far
        sys.exit("The known answer was missed.")
