"""The truth of the twin experiment and what was seen of it, in NumPy alone: the answer that the assimilation must find.

The model is written down a second time here, so an error in the component cannot hide in its own observations.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Twin:
    """A truth and its observations.

    Attributes:
        state: of shape (n,), at the beginning.
        forcing: the same everywhere.
        background: of shape (n,), the state as it was forecast, with errors of standard deviation 0.5.
        observations: of shape (n_times, n_seen), at equal distances in time, the first one after the beginning.
        seen: of shape (n_seen,), the places that are observed.
    """

    state: np.ndarray
    forcing: float
    background: np.ndarray
    observations: np.ndarray
    seen: np.ndarray


def integrated(x: np.ndarray, forcing: float, n_steps: int, dt: float = 0.01) -> np.ndarray:
    """The state of shape (n,) `n_steps` steps of Runge-Kutta later."""

    def rate(x: np.ndarray) -> np.ndarray:
        return (np.roll(x, -1) - np.roll(x, 2)) * np.roll(x, 1) - x + forcing

    for _ in range(n_steps):
        k1 = rate(x)
        k2 = rate(x + dt / 2 * k1)
        k3 = rate(x + dt / 2 * k2)
        k4 = rate(x + dt * k3)
        x = x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def twin(n: int = 40, n_times: int = 12, n_steps: int = 5, every: int = 2, noise: float = 0.0, seed: int = 0) -> Twin:
    """A state on the attractor (ten units of time from rest, slightly disturbed), and observations of every so many
    places, `n_steps` steps apart, with Gaussian errors of standard deviation `noise`."""
    forcing, rng = 8.0, np.random.default_rng(seed)
    x = state = integrated(forcing + 0.01 * rng.standard_normal(n), forcing, 1000)
    trajectory = [x := integrated(x, forcing, n_steps) for _ in range(n_times)]
    seen = np.arange(0, n, every)
    exact = np.stack(trajectory)[:, seen]
    background = state + 0.5 * rng.standard_normal(n)
    return Twin(state, forcing, background, exact + noise * rng.standard_normal(exact.shape), seen)
