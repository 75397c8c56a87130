"""Multipliers by least squares: the ones with which the gradient of the Lagrangian is smallest at a point.

Libraries tell multipliers in conventions of their own, of their last subproblem, or not at all. From the gradient and
the rows of the Jacobian there is one answer for all: minimise |∇f + Jᵀλ - z|² + |λ · room|², where `room` is the
distance of each constraint to its limit, λ pushes towards that limit only, and z are the bounds' own multipliers. At a
point that is optimal to first order both terms vanish. Elsewhere λ is an estimate, and the figures that are made of
it (`optimality`) say how good.

Each row is taken in units of its own length, and its room as the part of the design's size that a step to the limit
takes. So the answer for ten times a constraint is a tenth, and that for ten times the objective is ten times as large.

Source: the first-order estimate of Nocedal & Wright, Numerical Optimization (2006), equation (18.21), with the weight
on complementarity that Conn, Gould & Toint use for inequalities, Trust-Region Methods (2000), section 15.4.
"""

from __future__ import annotations

import numpy as np
import scipy.optimize

_NEAR = 1e-5  # of the design's size: an entry this close to its bound may have a multiplier there
_FAR = 0.1  # of the design's size: what has more room than this is not active
_ROUNDS = 5


def least_squares_multipliers(
    gradient: np.ndarray,
    jacobian: np.ndarray,
    values: np.ndarray,
    limits: tuple[np.ndarray, np.ndarray],
    point: np.ndarray,
    box: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """λ in f + λ c, one for each of the `values`: positive where the upper limit holds c back, negative for the lower.

    Args:
        gradient, jacobian: of the objective and of the values, in the same variables as `point` and `box`.
        limits: lower and upper ones of the values; equal for an equality.
    """
    multipliers = np.zeros(len(values))
    lower, upper = limits
    is_equal = lower == upper
    below, above = np.maximum(values - lower, 0.0), np.maximum(upper - values, 0.0)
    room = np.where(is_equal, 0.0, np.minimum(below, above))
    size = max(1.0, float(np.abs(point).max(initial=0.0)))
    lengths = np.abs(jacobian).max(axis=1, initial=0.0)
    rows = np.flatnonzero((lengths > 0) & (is_equal | (room <= _FAR * lengths * size)))
    if not len(rows):
        return multipliers
    unit = lengths[rows]
    normalised = jacobian[rows] / unit[:, None]
    sides = (
        np.where(is_equal | (below < above), -np.inf, 0.0)[rows],
        np.where(is_equal | (above <= below), np.inf, 0.0)[rows],
    )
    near = _NEAR * size
    at_lower, at_upper = point <= box[0] + near, point >= box[1] - near
    is_free = ~(at_lower | at_upper)
    weights = np.diag(room[rows] / (unit * size))
    found = np.zeros(len(rows))
    for _ in range(_ROUNDS):
        matrix = np.vstack([normalised[:, is_free].T, weights])
        found = _bounded(matrix, np.concatenate([-gradient[is_free], np.zeros(len(rows))]), sides)
        slope = gradient + found @ normalised
        # Entries at a bound that the slope pushes into the box count like free ones.
        wrong = ~is_free & ~((at_lower & (slope >= 0)) | (at_upper & (slope <= 0)))
        if not wrong.any():
            break
        is_free |= wrong
    multipliers[rows] = found / unit
    return multipliers


def _bounded(matrix: np.ndarray, goal: np.ndarray, sides: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The least-squares solution between two sides."""
    solution = np.linalg.lstsq(matrix, goal, rcond=None)[0]
    if ((solution >= sides[0]) & (solution <= sides[1])).all():
        return solution
    method = "bvls" if len(sides[0]) <= 200 else "trf"
    return scipy.optimize.lsq_linear(matrix, goal, sides, method=method, tol=1e-14).x
