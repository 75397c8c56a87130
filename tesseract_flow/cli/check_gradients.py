"""`tesseract-flow check-gradients`: whether derivatives agree with values, and whose do not."""

from __future__ import annotations

import argparse
import json
import logging

from tesseract_flow.cli.arguments import PROBLEM, Commands, assignments
from tesseract_flow.cli.output import show


def add(commands: Commands) -> None:
    parser = commands.add_parser("check-gradients", help="compare derivatives with values, and say whose are wrong")
    parser.add_argument("problem", help=PROBLEM)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the factory")
    parser.add_argument(
        "--at", metavar="JOURNAL", help="look at the design of a run, by the folder or URL of its journal"
    )
    parser.add_argument(
        "--at-design", choices=["best", "last"], default="best", help="which of that run (default best)"
    )
    parser.add_argument("--components", action="store_true", help="look at each component even if the total is right")
    parser.add_argument("--max-requests", type=int, default=2000, metavar="N", help="the most that is sent")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0 if nothing was shown to be wrong, 1 otherwise."""
    from rich.console import Console
    from rich.logging import RichHandler

    from tesseract_flow.checks import check_gradients
    from tesseract_flow.checks.views import gradient_tables
    from tesseract_flow.optimize import load_problem

    problem = load_problem(arguments.problem, assignments(arguments.set))
    log, handler = (
        logging.getLogger("tesseract_flow.checks"),
        RichHandler(console=Console(stderr=True), show_path=False),
    )
    level = log.level
    log.addHandler(handler)  # the price is said before it is paid
    log.setLevel(logging.INFO)
    try:
        report = check_gradients(
            problem,
            at=None if arguments.at is None else (arguments.at, arguments.at_design),
            components=arguments.components or None,
            max_requests=arguments.max_requests,
        )
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
    if arguments.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        show(*gradient_tables(report))
    return 0 if report.ok else 1
