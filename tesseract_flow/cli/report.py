"""`tesseract-flow report`: the files of a run, made from its journal; of one that is still going, too."""

from __future__ import annotations

import argparse

from tesseract_flow.cli.arguments import Commands


def add(commands: Commands) -> None:
    parser = commands.add_parser("report", help="write result, history and report of a run from its journal")
    parser.add_argument("journal", help="folder or URL of a journal, or the folder of a run with the journal in it")
    parser.add_argument("--out", help="folder or URL to write to (default: what was given)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from tesseract_flow.report import report

    written = report(arguments.journal, arguments.out)
    print(f"Written to {arguments.out or arguments.journal}: {', '.join(written)}")
    return 0
