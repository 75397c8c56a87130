"""The cantilever of this example in closed form: the answer that the three components and the optimiser must reach.

A cantilever under a tip load P is statically determinate: its bending moment M(s) = P (L - s) does not depend on the
thickness. So the compliance is the integral of M^2 / (E I), and with rectangular sections it separates over elements:

    compliance = sum_i c_i / h_i^3,   c_i = 12 / (E b) * integral of M^2 over element i.

At a given volume the optimum makes every element trade volume for compliance at one price, 3 c_i / h_i^4 = const, thus
h_i = m c_i^(1/4), and an element whose thickness would leave the bounds stays on them. Uses NumPy only.

Source: W. Prager and J. E. Taylor, Problems of optimal structural design, J. Appl. Mech. 35 (1968), 102-106.
"""

from __future__ import annotations

import numpy as np


def coefficients(
    n: int = 50, *, youngs_modulus: float = 1.0, width: float = 0.1, length: float = 1.0, tip_load: float = -1.0
) -> np.ndarray:
    """c_i of shape (n,), from the clamped end to the tip."""
    if n < 1:
        raise ValueError(f"a beam needs at least one element, not n = {n}.")
    to_tip = length * np.arange(n, -1, -1) / n  # L - s at the nodes
    left, right = to_tip[:-1], to_tip[1:]
    # (left^3 - right^3) / 3 without its cancellation, which would cost five digits at n = 200 000.
    moment_squared = tip_load**2 * (length / n) * (left**2 + left * right + right**2) / 3.0
    return 12.0 / (youngs_modulus * width) * moment_squared


def compliance(
    h: np.ndarray,
    *,
    youngs_modulus: float = 1.0,
    width: float = 0.1,
    length: float = 1.0,
    tip_load: float = -1.0,
) -> float:
    """Compliance f . d of the beam with thickness `h` of shape (n,)."""
    c = coefficients(h.size, youngs_modulus=youngs_modulus, width=width, length=length, tip_load=tip_load)
    return float(np.sum(c / h**3))


def gradient(
    h: np.ndarray,
    *,
    youngs_modulus: float = 1.0,
    width: float = 0.1,
    length: float = 1.0,
    tip_load: float = -1.0,
) -> np.ndarray:
    """d compliance / d h_i = -3 c_i / h_i^4, of shape (n,)."""
    c = coefficients(h.size, youngs_modulus=youngs_modulus, width=width, length=length, tip_load=tip_load)
    return -3.0 * c / h**4


def volume(h: np.ndarray, *, width: float = 0.1, length: float = 1.0) -> float:
    """Volume b (L / n) sum h of the beam with thickness `h` of shape (n,)."""
    return float(width * length / h.size * np.sum(h))


def optimal_thickness(
    n: int = 50,
    *,
    target_volume: float = 0.01,
    lower: float = 1e-2,
    upper: float = 10.0,
    youngs_modulus: float = 1.0,
    width: float = 0.1,
    length: float = 1.0,
    tip_load: float = -1.0,
) -> np.ndarray:
    """Thickness of shape (n,) with the least compliance at `target_volume`, within `lower <= h <= upper`.

    Raises:
        ValueError: no thickness within the bounds has that volume.
    """
    mean = target_volume / (width * length)
    if not 0.0 < lower * (1.0 - 1e-12) <= mean <= upper * (1.0 + 1e-12):  # 0.01 / 0.1 is one rounding below 0.1
        raise ValueError(
            f"volume {target_volume:g} wants a mean thickness of {mean:g}, outside [{lower:g}, {upper:g}]."
        )
    shape = coefficients(n, youngs_modulus=youngs_modulus, width=width, length=length, tip_load=tip_load) ** 0.25
    # The volume grows with the multiplier m, from all elements at `lower` to all at `upper`.
    low, high = lower / shape.max(), upper / shape.min()
    while low < (middle := 0.5 * (low + high)) < high:  # until the two are neighbouring floating-point numbers
        if np.clip(middle * shape, lower, upper).mean() < mean:
            low = middle
        else:
            high = middle
    return np.clip(high * shape, lower, upper)
