"""Tesseracts inside JAX: one call, its derivatives, and nothing of where it runs."""

import jax

from tesseract_flow.autodiff import batching as _batching  # registers its rules
from tesseract_flow.autodiff.apply import apply_tesseract
from tesseract_flow.autodiff.call import Call, Layout
from tesseract_flow.autodiff.primitives import ENDPOINTS, HOST, apply_p, jacobian_p, pullback_p, pushforward_p
from tesseract_flow.autodiff.sow import save_intermediates, sow
from tesseract_flow.client import CoreTesseract, HttpTesseract, ServedTesseract

# A handle inside a tree that is passed to jit is part of the structure: a node without leaves.
for _handle in (HttpTesseract, CoreTesseract, ServedTesseract):
    jax.tree_util.register_static(_handle)

del _batching

__all__ = [
    "ENDPOINTS",
    "HOST",
    "Call",
    "Layout",
    "apply_p",
    "apply_tesseract",
    "jacobian_p",
    "pullback_p",
    "pushforward_p",
    "save_intermediates",
    "sow",
]
