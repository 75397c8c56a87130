"""Stands in for debugpy in the processes that `served` starts, and does nothing. Not for import from here.

tesseract-core tells a component's own error text in debug mode only, and in debug mode it also starts a debugger. That
makes Python code run several times slower (a loop of a million calls took 0.31 s instead of 0.04 s), and lets everybody
who can reach a local port run code in the process.
"""

from typing import Any


def listen(address: Any, **options: Any) -> Any:
    """No debugger, whatever the address."""
    return address


def wait_for_client() -> None:
    """Nobody will come."""
