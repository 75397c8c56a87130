"""Testing pipelines without a server."""

import jax

from tesseract_flow.testing.function import FunctionTesseract

jax.tree_util.register_static(FunctionTesseract)

__all__ = ["FunctionTesseract"]
