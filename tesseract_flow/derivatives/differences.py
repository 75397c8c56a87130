"""Derivatives from nothing but `apply`, by finite differences.

For components that have no derivative at all, as in

    def vector_jacobian_product(inputs, vjp_inputs, vjp_outputs, cotangent_vector):
        return vjp_from_apply(apply, inputs, vjp_inputs, vjp_outputs, cotangent_vector)

The one idea: a difference along a direction is a Jacobian-vector product, and `derive` makes the rest of it. How long
the step is, is decided in one place, by `Differences`.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tesseract_flow.derivatives.derive import Vector, jacobian_by_columns, vjp_by_columns
from tesseract_flow.derivatives.paths import get_at, set_at
from tesseract_flow.derivatives.probes import AbstractDirection, Along, MapProbes
from tesseract_flow.derivatives.trees import as_tree, is_model


@dataclasses.dataclass(frozen=True)
class Differences:
    """How to difference.

    The step of an entry x_i is `noise**p * s_i` with s_i = max(|x_i|, typical): p = 1/3 for central differences, where
    it balances a truncation error of h^2 with a rounding error of noise / h, and p = 1/2 for forward ones (h against
    noise / h). `typical` keeps the step of a zero from vanishing. Its default is the largest magnitude in the array,
    and at most 1.

    Attributes:
        method: `"central"` (two calls per direction, error ~ noise^(2/3)), `"forward"` (one, and one at the point
            itself; error ~ noise^(1/2)), or `"spsa"`: simultaneous perturbation, which estimates a gradient from
            central differences along a few random directions. Without bias, but for n entries and k directions its
            error is of the order of sqrt(n / k) times the gradient's norm: for descent, not for a gradient check.
        noise: relative error of the outputs; default the rounding error of the requested inputs' dtype. Iterative
            solvers have a larger one, say their tolerance; `estimate_noise` measures it.
        typical: path -> a magnitude that counts as usual there, a number or one per entry.
        n_samples: directions of SPSA. With as many as there are entries, central differences along each entry cost no
            more and are exact up to their own error, so these are taken.
        seed: of SPSA's directions, which besides depend on the inputs: the same call gives the same answer, and the
            next step of an optimisation looks along others.

    Sources: J. E. Dennis and R. B. Schnabel, Numerical Methods for Unconstrained Optimization (1983), sections 5.4 and
    5.6; J. Nocedal and S. J. Wright, Numerical Optimization (2006), section 8.1; J. C. Spall, IEEE Transactions on
    Automatic Control 37 (1992), 332-341.
    """

    method: Literal["central", "forward", "spsa"] = "central"
    noise: float | None = None
    typical: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    n_samples: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("central", "forward", "spsa"):
            raise ValueError(f"method is {self.method!r}; expected 'central', 'forward' or 'spsa'.")
        if self.noise is not None and not 0.0 < self.noise < 1.0:
            raise ValueError(f"noise is {self.noise}; expected a relative error between 0 and 1.")
        if self.n_samples < 1:
            raise ValueError(f"n_samples is {self.n_samples}; expected at least 1.")
        # As plain numbers, so that settings are values: arrays have neither an equality nor a hash.
        typical = {path: _as_numbers(np.asarray(value, np.float64).tolist()) for path, value in self.typical.items()}
        object.__setattr__(self, "typical", typical)

    def is_sampled(self, n_entries: int) -> bool:
        """Whether a gradient of so many entries is estimated from random directions."""
        return self.method == "spsa" and self.n_samples < n_entries


def jvp_from_apply(
    apply: Callable[[Any], Any],
    inputs: Any,
    jvp_inputs: Collection[str],
    jvp_outputs: Collection[str],
    tangent_vector: Vector,
    differences: Differences | None = None,
    *,
    map_probes: MapProbes = map,
) -> dict[str, np.ndarray]:
    """J t, by output path, as one difference along t. Cost: two calls of `apply`, whatever the method.

    The step along t moves no entry by more than its own step.
    """
    near = Neighbourhood(apply, inputs, jvp_inputs, differences or Differences())
    t = Along("the tangent", {path: np.asarray(tangent_vector[path]) for path in sorted(jvp_inputs)})
    (y_dot,) = near.push_forward([t], jvp_outputs, map_probes)
    return y_dot


def jacobian_from_apply(
    apply: Callable[[Any], Any],
    inputs: Any,
    jac_inputs: Collection[str],
    jac_outputs: Collection[str],
    differences: Differences | None = None,
    *,
    map_probes: MapProbes = map,
) -> dict[str, dict[str, np.ndarray]]:
    """J, by output and input path. Cost in calls of `apply`: 2n for n input elements, n + 1 forward, 2k by SPSA."""
    differences = differences or Differences()
    near = Neighbourhood(apply, inputs, jac_inputs, differences)
    if not near.is_sampled:
        push_forward = functools.partial(near.push_forward, outputs=jac_outputs, map_probes=map_probes)
        return jacobian_by_columns(push_forward, near.x, jac_outputs)
    jacobian: dict[str, dict[str, Any]] = {output: dict.fromkeys(near.x, 0.0) for output in sorted(jac_outputs)}
    directions = near.directions()
    for t, y_dot in zip(directions, near.push_forward(directions, jac_outputs, map_probes), strict=True):
        for output, y in y_dot.items():
            for path, direction in t.given.items():
                estimate = np.multiply.outer(y, (1.0 / direction / differences.n_samples).astype(y.dtype))
                jacobian[output][path] = jacobian[output][path] + estimate
    return jacobian


def vjp_from_apply(
    apply: Callable[[Any], Any],
    inputs: Any,
    vjp_inputs: Collection[str],
    vjp_outputs: Collection[str],
    cotangent_vector: Vector,
    differences: Differences | None = None,
    *,
    map_probes: MapProbes = map,
) -> dict[str, np.ndarray]:
    """J^T c, by input path. Cost in calls of `apply`: 2n for n input elements, n + 1 forward, 2k by SPSA."""
    differences = differences or Differences()
    near = Neighbourhood(apply, inputs, vjp_inputs, differences)
    if not near.is_sampled:
        push_forward = functools.partial(near.push_forward, outputs=vjp_outputs, map_probes=map_probes)
        return vjp_by_columns(push_forward, near.x, vjp_outputs, cotangent_vector)
    x_bar: dict[str, np.ndarray] = {path: np.zeros(x.shape) for path, x in near.x.items()}
    directions = near.directions()
    for t, y_dot in zip(directions, near.push_forward(directions, vjp_outputs, map_probes), strict=True):
        rate = sum(float(np.sum(np.asarray(cotangent_vector[path]) * y_dot[path]).real) for path in y_dot)
        for path, direction in t.given.items():
            x_bar[path] += rate / direction / differences.n_samples
    return {path: total.astype(near.x[path].dtype) for path, total in x_bar.items()}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Point:
    """A place to call `apply` at: some steps along a direction, or the point itself."""

    direction: AbstractDirection | None
    step: float

    def __str__(self) -> str:
        if self.direction is None:
            return "the point itself"
        return f"{self.direction}, a step {'up' if self.step > 0.0 else 'down'}"


class Neighbourhood:
    """`apply` near one point.

    Attributes:
        x: the inputs that vary, by path.
        scale: the magnitude of each entry.
    """

    def __init__(self, apply: Callable[[Any], Any], inputs: Any, paths: Collection[str], differences: Differences):
        self.apply = apply
        self.inputs = inputs
        self.differences = differences
        self.tree = as_tree(inputs)
        self.x = {path: np.asarray(get_at(self.tree, path)) for path in sorted(paths)}
        for path, x in self.x.items():
            if x.dtype.kind not in "fc" or (differences.method == "spsa" and x.dtype.kind == "c"):
                expected = "real numbers" if differences.method == "spsa" else "floating point"
                raise ValueError(f"Input {path!r} has dtype {x.dtype}; differences need {expected}.")
        if unknown := sorted(set(differences.typical) - set(self.x)):
            raise ValueError(f"Differences.typical names {unknown}; the inputs to differentiate are {sorted(self.x)}.")
        self.scale = {path: _scale(x, differences.typical.get(path)) for path, x in self.x.items()}
        # Without inputs no step is made, whatever its length.
        self.noise = differences.noise or max((float(np.finfo(x.dtype).eps) for x in self.x.values()), default=1e-16)

    @property
    def is_sampled(self) -> bool:
        return self.differences.is_sampled(sum(x.size for x in self.x.values()))

    def directions(self) -> list[Along]:
        """SPSA's: each entry by its own scale, up or down."""
        content = functools.reduce(lambda crc, x: zlib.crc32(x.tobytes(), crc), self.x.values(), 0)
        rng = np.random.default_rng([self.differences.seed, content])
        return [Along(f"random direction {k + 1}", self._signs(rng)) for k in range(self.differences.n_samples)]

    def _signs(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {path: scale * rng.choice([-1.0, 1.0], scale.shape) for path, scale in self.scale.items()}

    def push_forward(
        self, directions: Sequence[AbstractDirection], outputs: Collection[str], map_probes: MapProbes
    ) -> Iterator[dict[str, np.ndarray]]:
        """A difference along each direction, in their order."""
        is_forward = self.differences.method == "forward"
        steps = [self._step(direction.vector(self.x)) for direction in directions]
        moves = [(direction, step) for direction, step in zip(directions, steps, strict=True) if step]
        points = [Point(None, 0.0)] if len(moves) < len(steps) or (is_forward and moves) else []
        for direction, step in moves:
            points.append(Point(direction, step))
            if not is_forward:
                points.append(Point(direction, -step))
        answers = iter(map_probes(lambda point: self._read(self.answer_at(point), outputs), points))
        base = next(answers) if points and points[0].direction is None else {}
        for direction, step in zip(directions, steps, strict=True):
            if not step:
                yield {path: np.zeros_like(y) for path, y in base.items()}
                continue
            t = direction.vector(self.x)
            # What the entries have really moved by, after rounding, in units of t.
            lower = {path: self.x[path] for path in t} if is_forward else self.moved(t, -step)
            length = self._length(t, self.moved(t, step), lower)
            above = next(answers)
            below = base if is_forward else next(answers)
            yield {path: ((above[path] - below[path]) / length).astype(above[path].dtype) for path in above}

    def _step(self, t: Mapping[str, np.ndarray]) -> float:
        """How far to go along t; 0 if that leads nowhere."""
        rate = max((float(np.max(np.abs(t[path]) / self.scale[path], initial=0.0)) for path in t), default=0.0)
        if rate == 0.0:
            return 0.0
        return self.noise ** (1 / 2 if self.differences.method == "forward" else 1 / 3) / rate

    def moved(self, t: Mapping[str, np.ndarray], step: float) -> dict[str, np.ndarray]:
        """The inputs that vary, a step along t away."""
        return {path: (self.x[path] + step * t[path]).astype(self.x[path].dtype) for path in t}

    def _length(self, t: Mapping[str, np.ndarray], upper: Vector, lower: Vector) -> float:
        along = sum(
            np.vdot(t[path] / self.scale[path], (upper[path] - lower[path]) / self.scale[path]).real for path in t
        )
        return float(along / sum(np.vdot(t[path] / self.scale[path], t[path] / self.scale[path]).real for path in t))

    def answer_at(self, point: Point) -> Any:
        """All outputs there."""
        if point.direction is None:
            return as_tree(self.apply(self.inputs))
        tree = set_at(self.tree, self.moved(point.direction.vector(self.x), point.step))
        return as_tree(self.apply(type(self.inputs).model_validate(tree) if is_model(self.inputs) else tree))

    def _read(self, outputs: Any, paths: Collection[str]) -> dict[str, np.ndarray]:
        y = {path: np.asarray(get_at(outputs, path)) for path in sorted(paths)}
        for path, value in y.items():
            if value.dtype.kind not in "fc":
                raise ValueError(f"Output {path!r} has dtype {value.dtype}; differences need floating point.")
            if self.differences.noise is None and np.finfo(value.dtype).eps > self.noise:
                raise ValueError(
                    f"Output {path!r} is of {value.dtype}, coarser than the inputs, so their rounding error is no "
                    f"guide to the step. Say how exact it is: Differences(noise={np.finfo(value.dtype).eps:.1g})."
                )
        return y


def _as_numbers(value: Any) -> Any:
    return tuple(_as_numbers(item) for item in value) if isinstance(value, list) else value


def _scale(x: np.ndarray, typical: Any) -> np.ndarray:
    magnitude = np.abs(x).astype(np.float64)
    if typical is None:
        typical = min(1.0, float(np.max(magnitude, initial=0.0))) or 1.0
    scale = np.maximum(magnitude, typical)
    if not np.all((scale > 0) & np.isfinite(scale)):
        raise ValueError("Differences need finite inputs, and typical magnitudes that are finite and positive.")
    return scale
