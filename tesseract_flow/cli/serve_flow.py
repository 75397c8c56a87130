"""`tesseract-flow serve-flow`: a problem, deployed and run from this machine until interrupted."""

from __future__ import annotations

import argparse

from tesseract_flow.cli.arguments import PROBLEM, Commands, assignments, at_least_one


def add(commands: Commands) -> None:
    parser = commands.add_parser("serve-flow", help="run a problem from the Prefect UI, on this machine")
    add_options(parser)
    parser.set_defaults(run=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes to serve a problem."""
    parser.add_argument("problem", help=PROBLEM)
    parser.add_argument("--name", help="of the deployments (default: that of the problem)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the factory")
    parser.add_argument("--limit", type=at_least_one, default=1, metavar="N", help="runs at once (default 1)")


def run(arguments: argparse.Namespace) -> int:
    from tesseract_flow.flows.deploying import serve_problem

    settings = assignments(arguments.set)
    serve_problem(arguments.problem, name=arguments.name, settings=settings, limit=arguments.limit)
    return 0
