"""Constraints that are promised to be linear: their derivatives are asked for once, and each later value is held
against them.

The value of such a constraint is `c + A (x - x0)` at every design, where c and A were found at x0. Once these are known
nobody is asked for a pullback of it, and a library may be told that the constraint is linear. A promise that does not
hold would make every later derivative wrong without a word, so it is looked at wherever the constraint has a value.

What counts as a difference is what moves a slope: as much as a millionth of what the entries of A make of the move,
each by itself, and never more than a ten-thousandth of the value, or of what it is measured in.
Next to x0 that is below what rounding leaves of a value, which is therefore forgiven. (In single precision: a
thousandth.) So a component may calculate with a millionth of noise if designs move by more than their own size, but not
if they stay nearby.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from tesseract_flow.errors import ProblemError
from tesseract_flow.optimize.problem import Evaluation, Problem

# Of the move's effect, and of the sizes of what is subtracted: as an evaluation that is repeated (`resuming`).
_RTOL, _ROUNDING = 1e-6, 1e-10
_RTOL_SINGLE, _ROUNDING_SINGLE = 1e-3, 1e-5
_VISIBLE = 100.0  # times the first: of the value itself, or of what it is measured in


def promised_names(problem: Problem) -> tuple[str, ...]:
    """The constraints that the problem says are linear."""
    return tuple(name for name, constraint in sorted((problem.constraints or {}).items()) if constraint.linear)


def precision(problem: Problem, template: Evaluation) -> float:
    """What rounding leaves of the values of these constraints, relative: by the least precise dtype among them, the
    design and the objective."""
    dtypes = [template.constraints[name].dtype for name in promised_names(problem)]
    return max(float(jnp.finfo(dtype).eps) for dtype in (problem.partition.dtype, template.objective.dtype, *dtypes))


@dataclasses.dataclass(frozen=True, eq=False)
class Promised:
    """What is known of the entries of constraints that are promised to be linear.

    Attributes:
        names: of the constraint that each entry of all constraints is of.
        is_linear: which entries are linear.
        eps: their `precision`.
        at: where their derivatives were asked for.
        values: of the constraints' entries there; those of others are not used.
        rows: of their Jacobian.
    """

    names: Sequence[str]
    is_linear: Bool[np.ndarray, " m"]
    eps: float
    at: Float[np.ndarray, " n"]
    values: Float[np.ndarray, " m"]
    rows: Float[np.ndarray, "m n"]

    def filled_in(self, jacobian: np.ndarray) -> np.ndarray:
        """A Jacobian with the rows that nobody was asked for."""
        return np.where(self.is_linear[:, None], self.rows, jacobian) if self.is_linear.any() else jacobian

    def require(self, x: np.ndarray, values: np.ndarray, sizes: np.ndarray) -> None:
        """Refuse values that no linear function has.

        Args:
            x, values: a design, and the entries of the constraints there.
            sizes: what entries are measured in.

        Raises:
            ProblemError: a promise does not hold; names the constraint, and says by how much.
        """
        rtol, rounding = (_RTOL, _ROUNDING) if self.eps < 1e-10 else (_RTOL_SINGLE, _ROUNDING_SINGLE)
        rows, move = self.rows[self.is_linear], x - self.at
        before, now = self.values[self.is_linear], values[self.is_linear]
        off = np.abs(now - (before + rows @ move))
        steepness = np.abs(rows)
        largest = np.maximum(np.abs(now), np.abs(before)) + steepness @ np.maximum(np.abs(x), np.abs(self.at))
        # Large terms that cancel, or an entry that went far, must not hide what the value itself would show.
        visible = _VISIBLE * rtol * np.maximum(np.abs(now), 1.0)
        allowed = np.minimum(rtol * (steepness @ np.abs(move)), visible) + rounding * np.maximum(largest, 1.0)
        if (off <= allowed).all():
            return
        worst = int(np.argmax(off / allowed))
        entry = np.flatnonzero(self.is_linear)[worst]
        value, missing = now[worst] * sizes[entry], off[worst] * sizes[entry]
        raise ProblemError(
            f"Constraint {self.names[entry]!r} is not linear, as linear=True promises: it came out as {value:.9g}, "
            f"which is off by {missing:.3g} from what its derivatives at the start predict, "
            f"{off[worst] / allowed[worst]:.2g} times what is forgiven; leave linear=True out."
        )
