"""`tesseract-flow picture`: what feeds what in a problem."""

from __future__ import annotations

import argparse
from pathlib import Path

from tesseract_flow.cli.arguments import PROBLEM, Commands, assignments


def add(commands: Commands) -> None:
    parser = commands.add_parser("picture", help="show what feeds what, without a solve")
    parser.add_argument("problem", help=PROBLEM)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the factory")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write .svg, .mmd (Mermaid) or .txt, and do not print")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from tesseract_flow.optimize import load_problem
    from tesseract_flow.pictures import picture
    from tesseract_flow.pipeline import Pipeline

    problem = load_problem(arguments.problem, assignments(arguments.set))
    pipeline = getattr(problem.evaluate, "pipeline", None)
    what = pipeline if isinstance(pipeline, Pipeline) else problem.evaluate
    found = picture(what, problem.design)
    if arguments.out is None:
        print(found)
    else:
        print(f"Written to {found.save(arguments.out)}")
    return 0
