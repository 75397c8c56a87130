"""What arguments of several commands have in common."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = Any

PROBLEM = "folder/problem.py:factory, package.module:factory or folder/problem.yaml"

_PYTHON = {"True": True, "False": False, "None": None, "nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def assignments(pairs: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` → a dict; values are JSON or Python's names for it where they can be, and text otherwise."""
    settings = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise SystemExit(f"tesseract-flow: expected NAME=VALUE, got {pair!r}")
        if text in _PYTHON:  # as text, `False` would be true
            settings[name] = _PYTHON[text]
            continue
        try:
            settings[name] = json.loads(text)
        except json.JSONDecodeError:
            settings[name] = text
    return settings


def at_least_one(text: str) -> int:
    """A count, for argparse."""
    try:
        n = int(text)
    except ValueError:
        n = 0
    if n < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return n
