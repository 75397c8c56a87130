"""The `tesseract-flow` command, one module per subcommand (two that are alike share one).

Each subcommand is a few lines around the library: `add` says what it takes, `run` does it. Errors that we raise on
purpose end with their message and exit code 1; anything else is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tesseract_flow.cli import (
    cache,
    check,
    check_gradients,
    deploy,
    init,
    inspect,
    optimize,
    picture,
    report,
    serve,
    serve_flow,
    steer,
    study,
    up,
)
from tesseract_flow.errors import TesseractFlowError

# In the order of --help.
_COMMANDS = (
    *(init, inspect, serve, check, check_gradients, picture, optimize, study, steer, report),
    *(up, serve_flow, deploy, cache),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    # A problem by package.module:factory is found in this folder, as a run of a deployment finds it. Behind what is
    # installed, of which no file here hides anything.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return arguments.run(arguments)
    except TesseractFlowError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        for note in getattr(error, "__notes__", ()):
            if not note.startswith("---"):  # JAX's remark on shortened tracebacks; none is shown
                print(note, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tesseract-flow",
        description="Design optimisation through Tesseracts: differentiable, concurrent, resumable.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    return parser
