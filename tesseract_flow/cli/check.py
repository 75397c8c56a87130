"""`tesseract-flow check`: what is wrong with a problem, without a solve."""

from __future__ import annotations

import argparse
import json

from tesseract_flow.cli.arguments import PROBLEM, Commands, assignments
from tesseract_flow.cli.output import show


def add(commands: Commands) -> None:
    parser = commands.add_parser("check", help="report all that is wrong with a problem, without a solve")
    parser.add_argument("problem", help=PROBLEM)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the factory")
    parser.add_argument("--patience", type=float, default=None, metavar="SECONDS", help="for a component's description")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0 if a run can start, 1 if not."""
    from tesseract_flow.checks import check
    from tesseract_flow.checks.views import as_tables
    from tesseract_flow.optimize import load_problem

    problem = load_problem(arguments.problem, assignments(arguments.set))
    report = check(problem, **({} if arguments.patience is None else {"patience": arguments.patience}))
    if arguments.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        show(*as_tables(report))
    return 0 if report.ok else 1
