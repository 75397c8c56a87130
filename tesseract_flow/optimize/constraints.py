"""Constraints by augmented Lagrangian, for drivers that only know how to minimise.

One idea carries all cases. A demand on a value is an interval: `equals=v` is `[v, v]`, `upper=v` is `(-inf, v]`. With a
slack `s` inside the interval, the constraint is `c = s`, whose augmented Lagrangian term is `λ(c - s) + ρ/2 (c - s)²`.
The
slack can be minimised out in closed form: it is `c + λ/ρ`, clipped to the interval. Hence, with `t = c - s`,

    term(c) = λ t + ρ/2 t²,    d term / dc = λ + ρ t,    and the next multiplier is λ + ρ t.

For an equality this is the textbook term; for an inequality the multiplier falls to zero where the constraint is slack.
Source: Nocedal & Wright, Numerical Optimization (2006), section 17.4, equations (17.62) to (17.65), there with one
bound.

Everything is scaled: values by the constraint's scale, the objective by its size at the start. Multipliers (`price`)
and penalties are arguments of the traced function, so changing them never traces again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tesseract_flow.errors import ProblemError
from tesseract_flow.schema import what_is_lost

# "No limit", as the tools that people come from write it: 1e20 is infinity to SNOPT, Knitro and the CUTEst problems.
NO_LIMIT = 1e20

# A value at the start below this says nothing about the size of a constraint: it may be what rounding left of a limit
# that is met exactly.
_SMALLEST_START = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Constraint:
    """A demand on one named value (a scalar, or elementwise on an array): `equals`, or `lower` and/or `upper`.

    A violation is relative to the limit that is violated: each side, and each entry of an array, has a measure of its
    own, the magnitude of its limit. `scale` replaces it. A limit of zero has no magnitude: it is measured in units of
    the value at the start, of an array entry by entry, or of 1 if that is zero as well; the result's notes say which.
    Limits from 1e20 on are no limits.
    `ref` and `ref0` are OpenMDAO's way to say a scale, |ref - ref0|, where ref stands for 1 and ref0 for 0 if only the
    other is given.
    `linear=True` promises that the value is A x + b, for the same A and b at every design. A driver that has
    constraints for itself then asks for its derivatives once, and holds each later value against them (`promised`).

    Raises:
        ProblemError: no demand or a contradictory one, or a scale that cannot be used.
    """

    equals: Any = None
    lower: Any = None
    upper: Any = None
    scale: Any = None
    ref: Any = None
    ref0: Any = None
    linear: bool = False

    def __post_init__(self):
        if not isinstance(self.linear, bool):
            raise ProblemError(f"A constraint's linear must be True or False, received {self.linear!r}.")
        given = {name: value for name in ("equals", "lower", "upper") if (value := getattr(self, name)) is not None}
        if not given or ("equals" in given and len(given) > 1):
            raise ProblemError(
                f"A constraint takes either equals=..., or lower=... and/or upper=...; received {given or 'nothing'}."
            )
        for name, value in given.items():
            array = _real(value, name)
            if np.isnan(array).any() or (name == "equals" and not (np.abs(array) < NO_LIMIT).all()):
                raise ProblemError(f"A constraint's {name} must be a number, received {value!r}.")
        if self.scale is not None and not (self.ref is None and self.ref0 is None):
            raise ProblemError(
                "A constraint takes either scale=..., or ref=... and/or ref0=...: each says what its unit is."
            )
        if self.size is not None and not ((self.size > 0) & (self.size < NO_LIMIT)).all():
            if self.scale is not None:
                raise ProblemError(
                    f"A constraint's scale must be positive and below {NO_LIMIT:.0e}, received {self.scale!r}."
                )
            raise ProblemError(
                f"A constraint's ref and ref0 must be different, and closer than {NO_LIMIT:.0e}; received "
                f"ref={self.ref!r} and ref0={self.ref0!r}."
            )
        lower, upper = self.interval
        try:
            np.broadcast_shapes(lower.shape, upper.shape)
        except ValueError:
            raise ProblemError(
                f"A constraint's lower has shape {lower.shape} and its upper {upper.shape}: they do not go together."
            ) from None
        if (lower > upper).any() or (lower >= NO_LIMIT).any() or (upper <= -NO_LIMIT).any():
            raise ProblemError(f"No value satisfies a constraint with lower={self.lower!r} and upper={self.upper!r}.")

    @property
    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """The two bounds of the value; infinite where there is none."""
        if self.equals is not None:
            return _real(self.equals, "equals"), _real(self.equals, "equals")
        lower = _real(-np.inf if self.lower is None else self.lower, "lower")
        upper = _real(np.inf if self.upper is None else self.upper, "upper")
        return np.where(lower <= -NO_LIMIT, -np.inf, lower), np.where(upper >= NO_LIMIT, np.inf, upper)

    def is_equal(self, dtype: np.dtype) -> np.ndarray:
        """Where it demands one value, however that was written: limits that are the same in this precision."""
        lower, upper = self.interval
        return lower.astype(dtype) == upper.astype(dtype)

    @property
    def size(self) -> np.ndarray | None:
        """What a violation is measured in, if the user says so."""
        if self.scale is not None:
            return _real(self.scale, "scale")
        if self.ref is None and self.ref0 is None:
            return None
        one = _real(1.0 if self.ref is None else self.ref, "ref")
        zero = _real(0.0 if self.ref0 is None else self.ref0, "ref0")
        try:
            return np.abs(one - zero)
        except ValueError:
            raise ProblemError(
                f"A constraint's ref has shape {one.shape} and its ref0 {zero.shape}: they do not go together."
            ) from None

    @property
    def measured_in_ones(self) -> Constraint:
        """The same demand, whose values stand for themselves."""
        return dataclasses.replace(self, scale=1.0, ref=None, ref0=None)

    @property
    def measures(self) -> tuple[np.ndarray, np.ndarray]:
        """What a violation of either bound is measured in; 0 where the bound is zero, and 1 where there is none."""
        if (size := self.size) is not None:
            return size, size
        lower, upper = (np.where(np.isfinite(bound), np.abs(bound), 1.0) for bound in self.interval)
        return lower, upper

    def check_against(self, name: str, value: jax.ShapeDtypeStruct) -> None:
        """Refuse bounds whose shape does not fit the value that `evaluate` returns."""
        for what, array in zip(("lower", "upper", "scale"), (*self.interval, self.measures[0]), strict=True):
            try:
                fits = np.broadcast_shapes(array.shape, value.shape) == value.shape
            except ValueError:
                fits = False
            if not fits:
                raise ProblemError(
                    f"Constraint {name!r}: its {what} has shape {array.shape}, but evaluate returns shape "
                    f"{value.shape}.\nGive a number, or an array that broadcasts to the value."
                )
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise ProblemError(
                f"Constraint {name!r}: evaluate returns dtype {value.dtype}, expected real floating point (its "
                "gradient is needed)."
            )


def _real(value: Any, what: str) -> np.ndarray:
    if (lost := what_is_lost(value)) is not None:
        raise ProblemError(f"A constraint's {what} cannot be used: {lost}.")
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ProblemError(f"A constraint's {what} must be a number or an array, received {value!r}.") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentedLagrangian:
    """When multipliers and penalties change, and by how much.

    Attributes:
        penalty: ρ at the start, for an objective and constraints that are both of size one.
        growth: factor on a penalty whose constraint did not get better by `decrease` since the last change.
        decrease: how much smaller a residual has to be than at the last change to leave its penalty alone.
        max_penalty: penalties stop growing here; larger ones only make the subproblem stiff.
        every: steps between changes, at most.
        inner_tolerance: change as soon as the projected gradient of the scaled Lagrangian is this small, ten times
            smaller after each change down to `gradient_floor`; `None` waits for `every` steps.
        target: residuals below this need no more price changes.
    """

    penalty: float
    growth: float
    decrease: float
    max_penalty: float
    every: int
    inner_tolerance: float | None
    gradient_floor: float = 1e-7
    target: float = 1e-9

    @classmethod
    def for_steps(cls) -> AugmentedLagrangian:
        """For drivers that take a step per evaluation (Adam, SGD, ...).

        They never solve a subproblem exactly, so prices move on after a fixed number of steps, by the mean residual
        over
        them: the oscillation of the iterates cancels, where the last residual alone would feed it back.
        """
        return cls(penalty=3.0, growth=1.5, decrease=0.5, max_penalty=1e4, every=15, inner_tolerance=None)

    @classmethod
    def for_searches(cls) -> AugmentedLagrangian:
        """For drivers with a line search (L-BFGS): they solve each subproblem, loosely at first."""
        return cls(penalty=10.0, growth=10.0, decrease=0.25, max_penalty=1e6, every=50, inner_tolerance=0.1)

    def inner_goal(self, n_changes: int) -> float:
        """How small the gradient must be before multipliers change for the (n+1)-th time."""
        if self.inner_tolerance is None:
            return 0.0
        return max(self.inner_tolerance * 0.1**n_changes, self.gradient_floor)


class Duals(eqx.Module):
    """Multipliers `λ` (one per entry) and penalties `ρ` (one per demand), by the demand's key.

    `unit` is what limits of zero are measured in (one per entry), once the start has been seen.
    """

    price: dict[str, Array]
    penalty: dict[str, Float[Array, ""]]
    unit: dict[str, Array]


class Tally(eqx.Module):
    """What happened since multipliers last changed."""

    residual_sum: dict[str, Array]
    previous: dict[str, Float[Array, ""]]  # size of the residual at the last change
    n_steps: Int[Array, ""]
    n_changes: Int[Array, ""]


class ConstraintSet(eqx.Module):
    """All demands of a problem, scaled and broadcast to the shapes that `evaluate` returns.

    A demand is one interval with one measure. A constraint with two limits of different magnitude is therefore two
    demands, `name.lower` and `name.upper`: measured by the larger one, `1 <= c <= 1e5` would hold at c = 0.
    """

    lower: dict[str, Array]
    upper: dict[str, Array]
    size: dict[str, Array]
    is_zero: dict[str, Array]  # where `size` is to be multiplied by `Duals.unit`
    whose: tuple[tuple[str, str], ...] = eqx.field(static=True)  # a demand, and the constraint that it belongs to

    @classmethod
    def build(cls, constraints: Mapping[str, Constraint], shapes: Mapping[str, Any], dtype: np.dtype) -> ConstraintSet:
        lower, upper, size, is_zero, names = {}, {}, {}, {}, {}
        for name, constraint in sorted(constraints.items()):
            shape = shapes[name].shape
            for key, low, high, measure in _demands(name, constraint):
                zero = np.broadcast_to(measure == 0, shape)
                measure = np.where(measure == 0, 1.0, measure)
                lower[key] = jnp.asarray(np.broadcast_to(low / measure, shape), dtype)
                upper[key] = jnp.asarray(np.broadcast_to(high / measure, shape), dtype)
                size[key] = jnp.asarray(np.broadcast_to(measure, shape), dtype)
                is_zero[key] = jnp.asarray(zero)
                names[key] = name
        return cls(lower, upper, size, is_zero, tuple(names.items()))

    @property
    def names(self) -> dict[str, str]:
        """Of each demand the constraint that it belongs to."""
        return dict(self.whose)

    def start(self, method: AugmentedLagrangian) -> tuple[Duals, Tally]:
        zeros = {key: jnp.zeros_like(size) for key, size in self.size.items()}
        scalars = {key: jnp.zeros((), size.dtype) for key, size in self.size.items()}
        penalty = {key: zero + jnp.asarray(method.penalty, zero.dtype) for key, zero in scalars.items()}
        previous = {key: zero + jnp.asarray(jnp.inf, zero.dtype) for key, zero in scalars.items()}
        count = jnp.asarray(0, jnp.int32)
        return Duals(zeros, penalty, self._ones()), Tally(zeros, previous, count, count)

    def silent(self) -> Duals:
        """Duals under which the augmentation and its gradient vanish: for looking at the objective alone."""
        zeros = {key: jnp.zeros_like(size) for key, size in self.size.items()}
        return Duals(zeros, {key: jnp.zeros((), size.dtype) for key, size in self.size.items()}, self._ones())

    def _ones(self) -> dict[str, Array]:
        return {key: jnp.ones_like(size) for key, size in self.size.items()}

    def units_from(self, values: Mapping[str, Array], spread: float = np.inf) -> dict[str, Array]:
        """What limits of zero are measured in, from the values at the start: each entry by its own.

        In units of the largest entry, small ones would hold whatever they are: an array may have forces and angles.

        Args:
            spread: by how much the units of one demand may differ at most; smaller ones are raised.
        """
        units = {}
        for key, size in self.size.items():
            magnitudes = np.abs(np.asarray(values[self.names[key]], np.float64))
            tells = np.asarray(self.is_zero[key]) & (magnitudes >= _SMALLEST_START)
            # An entry that tells nothing is no larger than the others, as far as anybody knows.
            unknown = magnitudes[tells].min(initial=1.0)
            least = magnitudes[tells].max(initial=0.0) / spread
            units[key] = jnp.asarray(np.maximum(np.where(tells, magnitudes, unknown), least), size.dtype)
        return units

    def sizes(self, duals: Duals) -> dict[str, Array]:
        """What each entry of each demand is measured in."""
        return {key: jnp.where(self.is_zero[key], size * duals.unit[key], size) for key, size in self.size.items()}

    def scaled(self, values: Mapping[str, Array], duals: Duals) -> dict[str, Array]:
        return {key: values[self.names[key]].astype(size.dtype) / size for key, size in self.sizes(duals).items()}

    def residuals(self, values: Mapping[str, Array], duals: Duals) -> dict[str, Array]:
        """`t = c - s`: how far each scaled value is from the best slack; zero everywhere at a solution."""
        return {key: self._residual(key, c, duals) for key, c in self.scaled(values, duals).items()}

    def _residual(self, key: str, c: Array, duals: Duals) -> Array:
        penalty, price = duals.penalty[key], duals.price[key]
        lower, upper = self.lower[key], self.upper[key]
        # The inner `where` keeps 0/0 out of the derivative of the branch not taken.
        safe = jnp.where(penalty > 0, penalty, jnp.ones_like(penalty))
        slack = jnp.clip(c + price / safe, lower, upper)
        # With a penalty of zero the best slack is at the limit that the price pushes away from, which is what the line
        # above tends to, and the term is that of the Lagrangian; where there is no price either there is no term.
        limit = jnp.where(price > 0, upper, jnp.where(price < 0, lower, c))
        limit = jnp.where(jnp.isfinite(limit), limit, c)
        # The slack minimises the term, so its own derivative contributes nothing (envelope theorem).
        return c - jax.lax.stop_gradient(jnp.where(penalty > 0, slack, limit))

    def augmentation(self, values: Mapping[str, Array], duals: Duals, dtype: np.dtype) -> Float[Array, ""]:
        """Σ λ t + ρ/2 t², what the Lagrangian adds to the scaled objective."""
        total = jnp.zeros((), dtype)
        for key, t in self.residuals(values, duals).items():
            half = jnp.asarray(0.5, t.dtype)
            total = total + (duals.price[key] * t + half * duals.penalty[key] * t * t).sum().astype(dtype)
        return total

    def charge(self, values: Mapping[str, Array], duals: Duals, dtype: np.dtype) -> Float[Array, ""]:
        """Σ |λ| times the violation: what a violation is worth where there is no penalty."""
        total = jnp.zeros((), dtype)
        for key, c in self.scaled(values, duals).items():
            violation = jnp.abs(c - jnp.clip(c, self.lower[key], self.upper[key]))
            total = total + (jnp.abs(duals.price[key]) * violation).sum().astype(dtype)
        return total

    def estimates(self, values: Mapping[str, Array], duals: Duals) -> dict[str, Array]:
        """The multipliers λ + ρ t with which the gradient of the augmented Lagrangian is that of the Lagrangian.

        Source: Nocedal & Wright (2006), equation (17.37).
        """
        return {key: duals.price[key] + duals.penalty[key] * t for key, t in self.residuals(values, duals).items()}

    def violations(self, values: Mapping[str, Array], duals: Duals) -> dict[str, Float[Array, ""]]:
        """The largest violation of each demand, in units of its measure; 0 where it holds."""
        return {
            key: jnp.abs(c - jnp.clip(c, self.lower[key], self.upper[key])).max(initial=0.0)
            for key, c in self.scaled(values, duals).items()
        }

    def violation(self, values: Mapping[str, Array], duals: Duals) -> Float[Array, ""]:
        """The largest violation of all; 0 when all demands hold."""
        return _largest(list(self.violations(values, duals).values()))

    def largest_residual(self, values: Mapping[str, Array], duals: Duals) -> Float[Array, ""]:
        return _largest(list(self.residuals(values, duals).values()))

    def multipliers(self, estimates: Mapping[str, Array], duals: Duals) -> dict[str, Array]:
        """Estimates by constraint, per unit of its value; those of two sides add up."""
        total: dict[str, Array] = {}
        for key, size in self.sizes(duals).items():
            total[self.names[key]] = total.get(self.names[key], jnp.zeros_like(size)) + estimates[key] / size
        return total


def _demands(name: str, constraint: Constraint) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Key, lower and upper bound, and measure, of each interval with one measure that a constraint consists of."""
    low, high = constraint.interval
    below, above = constraint.measures
    both = np.isfinite(low) & np.isfinite(high)
    if (both & (below != above)).any():
        endless = np.asarray(np.inf)
        return [(f"{name}.lower", low, endless, below), (f"{name}.upper", -endless, high, above)]
    return [(name, low, high, np.where(np.isfinite(low), below, above))]


def count_step(tally: Tally, residuals: Mapping[str, Array]) -> Tally:
    """The tally after one more step with these residuals."""
    sums = {name: tally.residual_sum[name] + t for name, t in residuals.items()}
    return Tally(sums, tally.previous, tally.n_steps + 1, tally.n_changes)


def change_duals(
    duals: Duals, tally: Tally, residuals: Mapping[str, Array], method: AugmentedLagrangian
) -> tuple[Duals, Tally]:
    """New multipliers λ + ρ t, and larger penalties where t did not shrink enough.

    Source: Nocedal & Wright (2006), Framework 17.3 and Algorithm 17.4.
    """
    price, penalty, previous, zeros = {}, {}, {}, {}
    for name, t in residuals.items():
        rho = duals.penalty[name]
        price[name] = duals.price[name] + rho * t
        size = _largest([t])
        stuck = (size > method.decrease * tally.previous[name]) & (size > method.target)
        grown = jnp.minimum(rho * method.growth, method.max_penalty).astype(rho.dtype)
        # A penalty that started above the ceiling stays where it is.
        penalty[name] = jnp.where(stuck, jnp.maximum(grown, rho), rho)
        previous[name] = size
        zeros[name] = jnp.zeros_like(t)
    count = jnp.zeros_like(tally.n_steps)
    return Duals(price, penalty, duals.unit), Tally(zeros, previous, count, tally.n_changes + 1)


def mean_residuals(tally: Tally) -> dict[str, Array]:
    """The mean residual over the steps since the last change."""
    return {name: total / tally.n_steps.astype(total.dtype) for name, total in tally.residual_sum.items()}


def _largest(arrays: list[Array]) -> Float[Array, ""]:
    if not arrays:
        return jnp.zeros(())
    sizes = [jnp.abs(array).max(initial=0.0) for array in arrays]
    return jnp.stack(sizes).max()
