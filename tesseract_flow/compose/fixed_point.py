"""`fixed_point`: components that need each other's answers, brought to agree, and differentiated where they do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from tesseract_flow.autodiff import informed, rehearsal, sow
from tesseract_flow.autodiff.carried import Left, begins, ends, measured
from tesseract_flow.autodiff.primitives import is_staging
from tesseract_flow.compose.accelerations import AbstractAcceleration, Aitken, Anderson, Broyden, GaussSeidel, Picard
from tesseract_flow.compose.implicit import Root
from tesseract_flow.compose.krylov import Gmres
from tesseract_flow.compose.layout import Layout
from tesseract_flow.compose.newton import NewtonKrylov
from tesseract_flow.compose.sweep import sweep_of, telling, used_leaves
from tesseract_flow.compose.system import System
from tesseract_flow.compose.verdicts import Case, verdict
from tesseract_flow.errors import OptionError, did_you_mean

Solver = NewtonKrylov | AbstractAcceleration
SOLVERS: dict[str, Callable[[], Solver]] = {
    "newton-krylov": NewtonKrylov,
    "picard": Picard,
    "gauss-seidel": GaussSeidel,
    "aitken": Aitken,
    "anderson": Anderson,
    "broyden": Broyden,
}


class Convergence(NamedTuple):
    """How a fixed point was reached.

    Attributes:
        residuals: relative, at the start and after each step; NaN beyond.
        n_steps: how many steps.
        n_rounds: how often all components were asked.
    """

    residuals: Any
    n_steps: Any
    n_rounds: Any


def fixed_point(
    phi: Callable[..., Any] | Mapping[str, Callable[..., Any]],
    T0: Any,
    *parameters: Any,
    solver: str | Solver = "newton-krylov",
    form: Literal["map", "residual"] = "map",
    rtol: float | None = None,
    atol: Any = 0.0,
    max_steps: int = 50,
    order: Sequence[str] | None = None,
    linear: Gmres | None = None,
    name: str | None = None,
    warm_start: bool = True,
    with_convergence: bool = False,
) -> Any:
    """T with T = phi(T, *parameters), and its derivatives with respect to the parameters.

    The derivative is that of the solution, by the implicit function theorem: reverse mode needs pullbacks of the
    components and nothing else, forward mode pushforwards (or differences, where there are none). Goes with `jit`,
    `vmap`, `grad`, `jvp` and `concurrent` around it, and with one fixed point within another. What phi closes over is
    a parameter like those that are listed; T0 is none: the solution does not depend on where the search began.

    Args:
        phi: state, parameters -> the next state. Or several components by name, each state, parameters -> its own
            part of it; the state is then a dictionary of these parts.
        T0: where to begin: a tree of floating-point arrays.
        parameters: trees of anything; arrays in them have derivatives.
        solver: by name or with settings (`tesseract_flow.compose.Anderson(depth=3)`).

            - `"newton-krylov"` converges for any loop gain but 1.
            - `"picard"` (components all at once), `"gauss-seidel"` (one after the other): for gains well below 1.
            - `"aitken"`, `"anderson"`, `"broyden"`: one round per step; the last two mostly converge beyond 1.

            All but `"picard"` take components by name one after the other, and iterate only what is fed back.
        form: `"map"`; or `"residual"` for a phi that gives what is left, R(T, *parameters) = 0, in the form of T.
        rtol: what may be left of T - phi(T) in each leaf of T, relative to the leaf (root mean squares); default the
            rounding error to the power 2/3. Of a residual: relative to what it is at T0.
        atol: the same in the leaf's own unit, added to it: a number, or a tree of numbers that T0 begins with. For
            leaves that become zero. The error of T itself is larger, by a factor of 1 / |1 - gain|.
        max_steps: of the solver.
        order: of components by name; default the one in which the least is fed back.
        linear: how the linear system of the derivative is solved.
        name: for messages, and for `save_intermediates`, which then sees the `Convergence` as `"<name>"`.
        warm_start: within `optimize`, begin where the fixed point of the step before lies, and at T0 only in the first
            one; False: always at T0. Elsewhere there is no step before.
        with_convergence: return (T, `Convergence`).

    Raises:
        NotConverged: in the solution, the adjoint or the tangent, with the residuals; never a value or a gradient in
            its place. Under `jax.jit` it is behind JAX's own error: `tesseract_flow.errors.cause`.
        OptionError: settings or trees that do not fit.

    >>> import jax
    >>> gain = lambda k: fixed_point(lambda T, k: 1.0 + k * T, 0.0, k)
    >>> jax.value_and_grad(gain)(3.0)  # 1 / (1 - k), where sweeps would run away
    (Array(-0.5, ...), Array(0.25, ...))
    """
    who = f"fixed_point {name!r}" if name else "fixed_point"
    chosen = _chosen(solver, who)
    _check_settings(who, form, rtol, max_steps, isinstance(phi, Mapping))
    T0 = dict(T0) if isinstance(T0, Mapping) else T0
    layout = Layout.of(T0, who)
    T0 = jax.tree_util.tree_map(jnp.asarray, T0)
    tolerance = float(jnp.finfo(layout.dtype).eps) ** (2 / 3) if rtol is None else rtol
    arrays, static = eqx.partition(parameters, eqx.is_array)
    values, treedef = jax.tree_util.tree_flatten(arrays)
    title = name or _title(phi)
    if isinstance(phi, Mapping):
        phi = {part: telling(fn, T0, f"{who}: component {part!r}") for part, fn in phi.items()}
    else:
        phi = telling(phi, T0, f"{who}: phi")
    is_at_once = isinstance(chosen, Picard) and chosen.is_sweep_at_once

    def trace() -> tuple[ClosedJaxpr, list[bool]]:
        step = phi
        if isinstance(phi, Mapping):
            step = sweep_of(phi, T0, parameters, order, is_at_once, who)

        def flat(leaves: list[Any], values: list[Any]) -> list[Any]:
            given = eqx.combine(treedef.unflatten(values), static)
            answer = step(layout.treedef.unflatten(leaves), *given)  # type: ignore[operator]
            return _checked(answer, layout, form, who)

        leaves = layout.leaves(layout.vector(jax.tree_util.tree_leaves(T0)))
        closed = jax.make_jaxpr(flat)(leaves, values)
        return closed, used_leaves(lambda leaves: jaxpr_as_fun(closed)(*leaves, *values), leaves)

    def run() -> Any:
        if isinstance(phi, Mapping):
            return {part: fn(T0, *parameters) for part, fn in phi.items()}
        return phi(T0, *parameters)

    is_known = not is_staging() and not any(isinstance(x, Tracer) for x in jax.tree_util.tree_leaves((T0, values)))
    if is_known:
        with rehearsal():
            closed, used = informed(trace, run)
    else:
        closed, used = trace()
    n_leaves = len(layout.shapes)

    # What phi closes over comes as constants of its trace, and becomes one more group of arrays.
    def once(x: Any, arrays: Sequence[Any]) -> Any:
        given, consts = arrays[: len(values)], arrays[len(values) :]
        answer = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, list(consts)))(*layout.leaves(x), *given)
        return layout.vector(answer[:n_leaves])

    everything = [*values, *closed.consts]
    x0 = layout.vector(jax.tree_util.tree_leaves(T0))
    root = Root(
        lambda x, arrays: once(x, arrays) - x if form == "map" else -once(x, arrays),
        layout,
        title,
        linear or Gmres(),
        chosen.directions if isinstance(chosen, NewtonKrylov) else "auto",
        chosen.noise if isinstance(chosen, NewtonKrylov) else None,
    )
    if x0.size == 0:
        x, convergence = x0, Convergence(jnp.zeros(max_steps + 1), jnp.asarray(0), jnp.asarray(0))
    elif form == "map" and not any(used):  # nothing is fed back
        x, convergence = once(x0, everything), Convergence(jnp.zeros(max_steps + 1), jnp.asarray(0), jnp.asarray(1))
    else:
        problem = _Problem(
            once,
            layout,
            np.array(used, bool),
            form == "map",
            tolerance,
            _per_leaf(atol, T0, who),
            max_steps,
            warm_start,
        )
        # The way there has no derivative; where it ends has.
        x, convergence = problem.solved(chosen, *jax.lax.stop_gradient((x0, everything)), title)
        x = root.differentiable(x, everything)
    T = layout.tree(x)
    if name is not None:
        convergence = sow(convergence, name)
    return (T, convergence) if with_convergence else T


class _Problem(NamedTuple):
    once: Callable[[Any, Sequence[Any]], Any]
    layout: Layout
    used: np.ndarray  # leaves that phi looks at
    is_map: bool
    rtol: float
    atol: tuple[float, ...]
    max_steps: int
    warm_start: bool

    def solved(self, solver: Solver, x0: Any, arrays: Sequence[Any], title: str) -> tuple[Any, Convergence]:
        """The state, and how it was reached. Only what phi looks at is iterated; the rest follows from it."""
        used = self.used if self.is_map else np.ones_like(self.used)
        fed = self.layout.only(used)
        part = self.layout.part(used)

        def residual(x: Any) -> tuple[Any, Any]:
            answer = self.once(x0.at[fed].set(x), arrays)
            return (answer[fed] - x, answer) if self.is_map else (-answer, x0.at[fed].set(x))

        atol = tuple(a for a, is_used in zip(self.atol, used, strict=True) if is_used)
        yardsticks = [jnp.zeros(0, self.layout.dtype)]

        def yardstick(at_start: Any) -> Any:
            yardsticks.append(measured(at_start))
            return yardsticks[-1]

        x0, follows = begins(x0, arrays, title, self.warm_start)
        system = System(residual, part, self.rtol, atol, self.is_map, self.max_steps, yardstick, follows)
        found = solver.solve(system, x0[fed])
        case = Case(title, "solution", str(solver), part.names, self.rtol)
        is_good = verdict(case, found.is_there, found.status, found.history, found.n_rounds, found.errors)
        x = jnp.where(is_good, found.beside.at[fed].set(found.x), jnp.nan)
        relative = jnp.max(found.errors, initial=0.0) * self.rtol
        left = ends(Left(x, yardsticks[-1], relative, found.n_steps, found.n_rounds))
        return left.x, Convergence(found.history, left.n_steps, left.n_rounds)


def _chosen(solver: str | Solver, who: str) -> Solver:
    if isinstance(solver, NewtonKrylov | AbstractAcceleration):
        return solver
    if isinstance(solver, str) and solver in SOLVERS:
        return SOLVERS[solver]()
    raise OptionError(
        f"{who}: solver={solver!r}; expected one of {', '.join(map(repr, SOLVERS))}, or one with settings, such as "
        f"tesseract_flow.compose.Anderson(depth=3).{did_you_mean(str(solver), SOLVERS)}"
    )


def _check_settings(who: str, form: str, rtol: float | None, max_steps: int, is_by_name: bool) -> None:
    if form not in ("map", "residual"):
        raise OptionError(f"{who}: form={form!r}; expected 'map' (T = phi(T)) or 'residual' (R(T) = 0).")
    if form == "residual" and is_by_name:
        raise OptionError(
            f"{who}: components by name give their part of the state, so form='residual' has no meaning for them.\n"
            "Give one function that returns the residuals of all, in the form of T0."
        )
    if rtol is not None and not 0.0 < rtol < 1.0:
        raise OptionError(f"{who}: rtol={rtol!r}; expected a relative tolerance between 0 and 1.")
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise OptionError(f"{who}: max_steps={max_steps!r}; expected 1 or more.")


def _checked(answer: Any, layout: Layout, form: str, who: str) -> list[Any]:
    """The leaves of what phi gave, which is a state like T0."""
    leaves, treedef = jax.tree_util.tree_flatten(dict(answer) if isinstance(answer, Mapping) else answer)
    what = "the state" if form == "map" else "the residual"
    if treedef != layout.treedef:
        raise OptionError(f"{who}: phi must give {what} in the form of T0.\nT0 is {layout.treedef}, it gave {treedef}.")
    for leaf, name, shape, dtype in zip(leaves, layout.names, layout.shapes, layout.dtypes, strict=True):
        found = jnp.asarray(leaf)
        if found.shape != shape or found.dtype != dtype:
            raise OptionError(
                f"{who}: phi gave {name!r} as {found.dtype}{list(found.shape)}, and T0 has it as {dtype}{list(shape)}."
                "\nA step from one state to the next keeps shapes and dtypes: give T0 in those of phi's answer."
            )
    return [jnp.asarray(leaf) for leaf in leaves]


def _per_leaf(atol: Any, T0: Any, who: str) -> tuple[float, ...]:
    try:
        spread = jax.tree_util.tree_map(
            lambda value, part: [float(value)] * len(jax.tree_util.tree_leaves(part)), atol, T0
        )
    except (TypeError, ValueError):
        raise OptionError(
            f"{who}: atol={atol!r}; expected a number, or a tree of numbers with which T0 begins."
        ) from None
    values = tuple(jax.tree_util.tree_leaves(spread))
    if any(not 0.0 <= value < math.inf for value in values):
        raise OptionError(f"{who}: atol={atol!r}; expected nothing below 0, and nothing infinite.")
    return values


def _title(phi: Any) -> str:
    if isinstance(phi, Mapping):
        return " + ".join(map(str, phi))
    return getattr(phi, "__name__", type(phi).__name__)
