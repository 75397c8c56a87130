"""`tesseract-flow up`: a problem in the Prefect UI with one command, its components included; Ctrl-C ends all of it."""

from __future__ import annotations

import argparse
import signal
from typing import Any

from tesseract_flow.cli.arguments import Commands, assignments
from tesseract_flow.cli.optimize import say
from tesseract_flow.cli.serve_flow import add_options


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "up",
        help="run a problem from the Prefect UI, on this machine, with its components and a Prefect server",
    )
    add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from tesseract_flow.cli.server import prefect_server
    from tesseract_flow.optimize import load_problem

    settings = assignments(arguments.set)
    say(f"loading {arguments.problem}")
    if not any(isinstance(value, str) and value.startswith("block:") for value in settings.values()):
        load_problem(arguments.problem, settings)  # mistakes are said before a server is started
    # A closed terminal, and whoever says kill, end the server as well.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _leave)
    with prefect_server(say) as api:
        from tesseract_flow.flows.deploying import serve_problem

        print(f"The pages: {api.removesuffix('/api')}", flush=True)
        serve_problem(arguments.problem, name=arguments.name, settings=settings, limit=arguments.limit, components=True)
    return 0


def _leave(number: int, _: Any) -> None:
    raise SystemExit(128 + number)
