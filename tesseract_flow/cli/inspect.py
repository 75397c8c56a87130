"""`tesseract-flow inspect`: what a Tesseract takes, gives and offers."""

from __future__ import annotations

import argparse
import os
from typing import Any

from tesseract_flow.cli.arguments import Commands
from tesseract_flow.cli.output import show


def add(commands: Commands) -> None:
    parser = commands.add_parser("inspect", help="show what a Tesseract takes, gives and offers")
    parser.add_argument("tesseract", help="URL, or path of a tesseract_api.py or its folder")
    parser.add_argument("--token", help="sent as Authorization: Bearer (better: TESSERACT_FLOW_TOKEN)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from tesseract_flow.client import open_tesseract
    from tesseract_flow.report.schema import schema_tables

    options: dict[str, Any] = {}
    token = arguments.token or os.environ.get("TESSERACT_FLOW_TOKEN")
    if token and "://" in arguments.tesseract:
        options["token"] = token
    show(*schema_tables(open_tesseract(arguments.tesseract, **options).schema))
    return 0
