"""Tesseracts inside PyTorch: one call and its derivatives, through the same handles as the JAX side.

Needs the extra `torch`; JAX is not imported. Inside this package `import torch` means PyTorch, as all imports here are
absolute. `call` and `trees` know NumPy only, `function` and `batching` are the autograd side, `apply` is the public
function.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "tesseract_flow.torch needs PyTorch, which is not installed: pip install 'tesseract-flow[torch]'", name="torch"
    ) from error

from tesseract_flow.torch.apply import apply_tesseract
from tesseract_flow.torch.refusals import UnsupportedTransform

__all__ = ["UnsupportedTransform", "apply_tesseract"]
