"""Points of the unit cube: Latin hypercube, Sobol, and a regular grid. NumPy and SciPy only."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np

from tesseract_flow.errors import ProblemError, did_you_mean

METHODS = ("latin-hypercube", "sobol", "grid")
_MOST_SOBOL = 21201  # dimensions for which SciPy has direction numbers


def unit_points(method: str, n: int, n_dimensions: int, seed: int) -> np.ndarray:
    """`n` points of the unit cube, one a row; of a grid the largest regular one that has no more than `n`.

    Sobol's first points are the same for every `n`, so more of them are the old ones and new ones. A Latin hypercube is
    another one for another `n`: it has exactly one point in each of `n` equal slices of every dimension.

    Raises:
        ProblemError: no such method, or one that does not fit the number of dimensions.
    """
    if method not in METHODS:
        raise ProblemError(
            f"starts={method!r} is no way to choose them.{did_you_mean(method, METHODS)}\n"
            f"Choose among {', '.join(map(repr, METHODS))}, or give a list of designs."
        )
    if n == 0 or n_dimensions == 0:
        return np.zeros((n, n_dimensions))
    if method == "grid":
        return _grid(n, n_dimensions)
    from scipy.stats import qmc

    engine: Any = qmc.Sobol if method == "sobol" else qmc.LatinHypercube
    if method == "sobol" and n_dimensions > _MOST_SOBOL:
        raise ProblemError(
            f"Sobol's sequence is known up to {_MOST_SOBOL} dimensions, and this design has {n_dimensions} entries "
            "that vary between bounds.\nUse starts='latin-hypercube'."
        )
    # SciPy has called it `rng` since 1.15.
    keyword = "rng" if "rng" in inspect.signature(engine.__init__).parameters else "seed"
    sampler = engine(n_dimensions, **{keyword: np.random.default_rng(seed)})
    if method == "sobol":
        return sampler.random_base2(math.ceil(math.log2(n)))[:n]
    return sampler.random(n)


def _grid(n: int, n_dimensions: int) -> np.ndarray:
    """The ends of each dimension belong to it."""
    n_levels = max(k for k in range(1, n + 1) if k**n_dimensions <= n) if n_dimensions < 64 else 1
    if n_levels < 2:
        raise ProblemError(
            f"A grid over {n_dimensions} entries that vary has at least 2^{n_dimensions} points, and n is {n}.\n"
            "Use starts='latin-hypercube' or 'sobol', or let fewer entries vary."
        )
    levels = np.linspace(0.0, 1.0, n_levels)
    return np.stack(np.meshgrid(*[levels] * n_dimensions, indexing="ij"), axis=-1).reshape(-1, n_dimensions)
