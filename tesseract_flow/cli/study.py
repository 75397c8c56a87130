"""`tesseract-flow multi-start` and `tesseract-flow sweep`: many runs in this process, without Prefect."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tesseract_flow.cli.arguments import PROBLEM, Commands, assignments
from tesseract_flow.cli.optimize import GO_ON, add_run_options, moment, run_options, say

if TYPE_CHECKING:
    from tesseract_flow.study import AbstractStudy


def add(commands: Commands) -> None:
    parser = commands.add_parser("multi-start", help="optimise a problem from several starts")
    parser.add_argument("problem", help=PROBLEM)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the factory")
    parser.add_argument("-n", "--n", type=int, default=None, metavar="N", help="how many runs (default 16)")
    parser.add_argument(
        "--starts",
        default="latin-hypercube",
        metavar="HOW",
        help="latin-hypercube (default), sobol or grid, between the bounds",
    )
    parser.add_argument("--seed", type=int, default=0, help="other starts for another seed (default 0)")
    parser.add_argument("--spread", type=float, help="no farther from the problem's own start than this, in its units")
    _add_common(parser)
    parser.set_defaults(run=run_multi_start)

    parser = commands.add_parser("sweep", help="optimise a factory's problems for several settings")
    parser.add_argument("problem", help=PROBLEM)
    parser.add_argument(
        "--over",
        action="append",
        default=[],
        required=True,
        metavar="NAME=VALUES",
        help="values of a setting, as 1,2,5 or a JSON list; of several settings all combinations are run",
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of all runs")
    _add_common(parser)
    parser.set_defaults(run=run_sweep)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_run_options(parser)
    parser.add_argument(
        "--until",
        type=moment,
        metavar="WHEN",
        help="end in time before this moment, as for optimize: 2026-05-01T08:00, +3600 or slurm; the exit code is then "
        f"{GO_ON}, and the same command goes on with --journal",
    )
    parser.add_argument("--max-workers", type=int, metavar="N", help="runs at once (default 8)")
    parser.add_argument(
        "--out", type=Path, help="folder for runs.csv, runs.txt, and of the best run result.json, report.html, ..."
    )


def run_multi_start(arguments: argparse.Namespace) -> int:
    say(f"loading {arguments.problem}")
    from tesseract_flow.optimize import load_problem
    from tesseract_flow.study import StudyProgress, multi_start

    problem = load_problem(arguments.problem, assignments(arguments.set))
    study = multi_start(
        problem,
        arguments.n,
        **_options(arguments),
        starts=arguments.starts,
        seed=arguments.seed,
        spread=arguments.spread,
        journal=arguments.journal,
        max_workers=arguments.max_workers,
        observers=[StudyProgress()],
    )
    return _finish(study, arguments.out)


def run_sweep(arguments: argparse.Namespace) -> int:
    say(f"loading {arguments.problem}")
    from tesseract_flow.study import StudyProgress, sweep

    fixed = {name: [value] for name, value in assignments(arguments.set).items()}
    swept = {name: _values(name, value) for name, value in assignments(arguments.over).items()}
    if twice := sorted(fixed.keys() & swept.keys()):
        raise SystemExit(f"tesseract-flow: {twice[0]} is in --set and in --over")
    study = sweep(
        arguments.problem,
        {**swept, **fixed},
        **_options(arguments),
        journal=arguments.journal,
        max_workers=arguments.max_workers,
        observers=[StudyProgress()],
    )
    return _finish(study, arguments.out)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {**run_options(arguments), "recheck": arguments.recheck or None, "until": arguments.until}


def _values(name: str, value: Any) -> list[Any]:
    if isinstance(value, str):
        return [assignments([f"{name}={part.strip()}"])[name] for part in value.split(",")]
    return value if isinstance(value, list) else [value]


def _finish(study: AbstractStudy, out: Path | None) -> int:
    print(study.table())
    if out is not None:
        print(f"Written to {out}: {', '.join(study.report(out))}")
    from tesseract_flow.optimize.stopping import TIME_IS_UP

    if any(run.why.startswith(TIME_IS_UP) for run in study.runs):
        return GO_ON
    return 0 if study.ranked[0].result is not None else 1
