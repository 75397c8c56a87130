"""Handles inside trees that JAX takes apart: part of the structure, nodes without leaves.

JAX asks a registry what a container holds, and knows only types that were registered before. Our own handles are, with
this package. A `tesseract_core.Tesseract` is when that package is there already, or when the first one is seen: nothing
here imports it. If tesseract-jax is installed the registration is left to it, because it fails on finding one.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from importlib.util import find_spec
from typing import Any

import jax

from tesseract_flow import client
from tesseract_flow.client import AbstractTesseract, on_each_kind

_PEER = "tesseract_jax"


def register_handles() -> None:
    """Make JAX know every kind of handle of `tesseract_flow.client`; once."""
    on_each_kind(_register_kind)


def _register_kind(kind: type[AbstractTesseract]) -> None:
    if kind.__module__.startswith("tesseract_flow.client."):
        jax.tree_util.register_static(kind)


def register_core_tesseracts() -> None:
    """Make JAX know `tesseract_core.Tesseract`, if that is imported."""
    if (core := sys.modules.get("tesseract_core")) is not None and (known := getattr(core, "Tesseract", None)):
        _register(known)


@functools.cache
def _register(cls: type) -> None:
    if find_spec(_PEER) is not None:
        # What it raises says that it does not work with what else is installed; then it will not register anything.
        with contextlib.suppress(Exception):
            importlib.import_module(_PEER)
    with contextlib.suppress(ValueError):  # somebody has
        jax.tree_util.register_pytree_node(cls, _flatten, _unflatten)


def _flatten(tesseract: Any) -> tuple[tuple[()], client.CoreTesseract]:
    # By way of our handle, which knows when two of them reach the same component.
    return (), client.CoreTesseract(tesseract)


def _unflatten(handle: client.CoreTesseract, leaves: Any) -> Any:
    return handle.tesseract
