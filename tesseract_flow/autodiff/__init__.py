"""Tesseracts inside JAX: one call, its derivatives, and nothing of where it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tesseract_flow.autodiff import batching as _batching  # registers its rules
from tesseract_flow.autodiff.accounts import compiled_apart, compiled_for_all
from tesseract_flow.autodiff.apply import apply_tesseract, labelled
from tesseract_flow.autodiff.call import Call
from tesseract_flow.autodiff.calls import bodies_of, calls_of, has_calls
from tesseract_flow.autodiff.curvature import hvp
from tesseract_flow.autodiff.handles import register_core_tesseracts, register_handles
from tesseract_flow.autodiff.judging import AbstractCase, judged
from tesseract_flow.autodiff.layout import InputLayout, OutputLayout, Slot
from tesseract_flow.autodiff.linear import linear_map
from tesseract_flow.autodiff.plain import PlainOutput, as_words, has_plain_outputs, revealed
from tesseract_flow.autodiff.primitives import (
    AVALS,
    ENDPOINTS,
    HOST,
    apply_p,
    guards,
    jacobian_p,
    only,
    pullback_p,
    pushforward_p,
)
from tesseract_flow.autodiff.rehearsal import current_rehearsal, informed, rehearsal
from tesseract_flow.autodiff.sow import save_intermediates, sow

if TYPE_CHECKING:
    from tesseract_flow.autodiff.whole import Differenced as Differenced
    from tesseract_flow.autodiff.whole import differences as differences

register_handles()
register_core_tesseracts()
del _batching

__all__ = [
    "AVALS",
    "ENDPOINTS",
    "HOST",
    "AbstractCase",
    "Call",
    "Differenced",
    "InputLayout",
    "OutputLayout",
    "PlainOutput",
    "Slot",
    "apply_p",
    "apply_tesseract",
    "as_words",
    "bodies_of",
    "calls_of",
    "compiled_apart",
    "compiled_for_all",
    "current_rehearsal",
    "differences",
    "guards",
    "has_calls",
    "has_plain_outputs",
    "hvp",
    "informed",
    "jacobian_p",
    "judged",
    "labelled",
    "linear_map",
    "only",
    "pullback_p",
    "pushforward_p",
    "rehearsal",
    "revealed",
    "save_intermediates",
    "sow",
]


def __getattr__(name: str) -> Any:
    """What few problems use, when it is asked for: it takes a quarter of the time of all of this."""
    if name in ("Differenced", "differences"):
        from tesseract_flow.autodiff import whole

        return getattr(whole, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
