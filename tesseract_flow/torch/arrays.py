"""Tensors to NumPy arrays and back, on whatever device they live."""

# Where PyTorch is not installed, pyright takes this package for it.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import numpy as np
import torch


def has_numbers(tensor: torch.Tensor) -> bool:
    """Whether a tensor has memory. Those that a `torch.func` transform or a batched backward hands out have none."""
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The numbers of a tensor, on the CPU: without a copy where they are there, and then read-only.

    A component in this process could otherwise write into the caller's tensors behind autograd's back.
    """
    # NumPy has no arrays that are conjugated or negated by a flag.
    array = tensor.detach().resolve_conj().resolve_neg().cpu().numpy()
    array.flags.writeable = False
    return array


def to_tensor(array: np.ndarray, device: torch.device | None = None) -> torch.Tensor:
    """A tensor of the same numbers, in memory of its own: a component in this process may keep what it returned."""
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C")).to(device)
