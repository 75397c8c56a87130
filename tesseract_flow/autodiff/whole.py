"""`differences`: a function of arrays with derivatives by finite differences of the whole, whatever is inside.

Between the components of a pipeline lie fields of thousands of values, in front of it a few numbers. Derivatives of the
components by differences would probe every value of the fields; those of the whole probe the few numbers. The one idea:
the derivative is a linear map that is told in both directions (`linear`), and each direction is a list of probes of the
function (`probing`), which are calls like any other: they overlap, are counted, and nobody asks a component for a
derivative.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from tesseract_flow.autodiff.arguments import (
    bounds_of,
    halves,
    is_array,
    is_complex,
    is_inexact,
    names_of,
    typical_of,
)
from tesseract_flow.autodiff.calls import bodies_of, calls_of, has_calls
from tesseract_flow.autodiff.linear import linear_map
from tesseract_flow.autodiff.plain import revealed
from tesseract_flow.autodiff.prefixes import path_name
from tesseract_flow.autodiff.primitives import is_staging
from tesseract_flow.autodiff.probing import Places, Probing, is_any
from tesseract_flow.autodiff.rehearsal import informed, rehearsal
from tesseract_flow.client import AtOnce
from tesseract_flow.derivatives import estimate_noise
from tesseract_flow.errors import BoundsError, OptionError, OverBudget, did_you_mean

_log = logging.getLogger("tesseract_flow")

Method = Literal["central", "forward"]


def differences(
    fn: Callable[..., Any],
    *,
    method: Method = "central",
    noise: float | None = None,
    typical: Any = None,
    bounds: tuple[Any, Any] | None = None,
    max_runs: int | None = 1000,
    name: str | None = None,
) -> Differenced:
    """`fn` with derivatives by finite differences of the whole: by probes of its inputs, not of what is inside.

    For pipelines whose inputs are few and whose components exchange large fields, or have no derivatives. No component
    is asked for anything but `apply`. Works under `grad`, `jacrev`, `jacfwd`, `jvp`, `vjp`, `vmap`, `jit`, `concurrent`
    and in a problem's `evaluate`. Probes are independent: as many are in flight as the handles have lanes.

    Costs, in runs of `fn` for n entries of the arrays that are differentiated: one for the value; for a gradient, or
    any number of rows of a Jacobian, 2n more (`"central"`) or n (`"forward"`); for a pushforward 2 or 1. Along a zero
    (co)tangent none. `differences(fn).n_runs(*args)` tells the price of a gradient.

    The step of an entry x_i is `noise**p * s_i` with s_i = max(|x_i|, typical), p = 1/3 for central differences and 1/2
    for forward ones. The error is about noise**(2/3), or noise**(1/2), of the derivative's size where the function
    varies on the scale of s_i.

    Args:
        fn: of trees; floating-point arrays in them have derivatives, everything else passes. What it closes over is an
            input like those that are listed.
        method: `"central"` or `"forward"`.
        noise: relative error of the outputs; default the rounding error of the coarsest among the input that moves, the
            outputs, and the arrays that go through components. Iterative solvers have a larger one, say their
            tolerance; `differences(fn).measure_noise(*args)` measures it.
        typical: magnitudes that count as usual: a number, or a tree with which the argument begins (with several
            arguments, a tuple of them). Default, per array: its largest magnitude, and at most 1.
        bounds: `(lower, upper)`, each a number, None, or a tree with which the argument begins. No probe leaves them:
            at a bound both probes lie on the open side.
        max_runs: the most that one gradient may take; dearer ones are refused. None: any.
        name: for messages.

    Raises:
        OptionError: a setting that cannot be used.
        BoundsError: bounds that do not fit, or between which nothing can move; at run time, a point outside of them.
        OverBudget: a gradient that takes more than `max_runs`.
        ProbeFailed: at run time, a probe that gave NaN or inf, with its inputs. An error of a component comes as it is,
            with a note on which probe it was.
        SecondDerivative: a derivative of the derivative. `differences(jax.grad(f))` is the way to second derivatives
            of a function that has first ones; `hvp` to products.

    >>> import jax.numpy as jnp
    >>> g = differences(lambda x: jnp.sum(x**2))
    >>> jax.grad(g)(jnp.array([1.0, 2.0]))
    Array([2., 4.], ...)
    """
    return Differenced(fn, Settings(method, noise, typical, bounds, max_runs, name))


@dataclasses.dataclass(frozen=True, eq=False)
class Settings:
    """How to difference; explained at `differences`."""

    method: str
    noise: float | None
    typical: Any
    bounds: tuple[Any, Any] | None
    max_runs: int | None
    name: str | None

    def __post_init__(self) -> None:
        if self.method == "broyden":
            raise OptionError(
                "differences: method='broyden' keeps a Jacobian from one design to the next, so its derivatives would "
                "depend on where the run has been before; a function of its inputs alone cannot offer it.\n"
                "Use 'central' or 'forward'; 'forward' costs one run per entry."
            )
        if self.method not in get_args(Method):
            known = get_args(Method)
            raise OptionError(
                f"differences: method={self.method!r}; expected 'central' or 'forward'."
                f"{did_you_mean(str(self.method), known)}"
            )
        is_number = isinstance(self.noise, int | float) and not isinstance(self.noise, bool)
        if self.noise is not None and not (is_number and 0.0 < self.noise < 1.0):
            raise OptionError(f"differences: noise={self.noise!r}; expected a relative error between 0 and 1, or None.")
        if self.max_runs is not None and (
            isinstance(self.max_runs, bool) or not isinstance(self.max_runs, int) or self.max_runs < 1
        ):
            raise OptionError(
                f"differences: max_runs={self.max_runs!r}; expected a whole number of at least 1, or None."
            )
        is_pair = isinstance(self.bounds, tuple | list) and len(self.bounds) == 2
        if self.bounds is not None and not is_pair:
            raise BoundsError(
                f"differences: bounds must be a pair (lower, upper), received {self.bounds!r}.\n"
                "Use None for a missing side: bounds=(0.0, None)."
            )

    @property
    def is_forward(self) -> bool:
        return self.method == "forward"

    def price(self, n: int) -> int:
        """Runs for a gradient beside the value."""
        return n if self.is_forward else 2 * n


class Differenced:
    """What `differences` returns: the function, which can also say what a gradient costs."""

    def __init__(self, fn: Callable[..., Any], settings: Settings):
        if not callable(fn):
            raise TypeError(f"differences: expected a function, got {type(fn).__name__}.")
        self.fn = fn
        self.settings = settings
        self.name = settings.name or getattr(fn, "__name__", type(fn).__name__)
        self.__name__ = self.name
        self.__doc__ = getattr(fn, "__doc__", None)
        self._told: set[int] = set()

    def n_runs(self, *args: Any, **kwargs: Any) -> int:
        """Runs of the function for its value and a gradient with respect to all floating-point arrays."""
        leaves = jtu.tree_leaves((args, kwargs))
        parts = [np.size(x) * (2 if is_complex(x) else 1) for x in leaves if is_array(x) and is_inexact(x)]
        return 1 + self.settings.price(sum(parts))

    def measure_noise(self, *args: Any, **kwargs: Any) -> float:
        """The relative noise of the outputs near these arguments, for `differences(..., noise=...)`.

        Right to within a factor of some 4. Costs 9 runs, rarely up to 49. Not measured anew with each gradient, so that
        the derivative stays a function of its inputs.

        Raises:
            OptionError: no floating-point array among the arguments or the outputs, or the noise cannot be told.
        """
        leaves, treedef = jtu.tree_flatten((args, kwargs))
        moving = {f"x{k}": np.asarray(x) for k, x in enumerate(leaves) if is_array(x) and is_inexact(x)}

        def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            moved = [jnp.asarray(inputs[f"x{k}"]) if f"x{k}" in inputs else x for k, x in enumerate(leaves)]
            given, named = treedef.unflatten(moved)
            found = [x for x in jtu.tree_leaves(self.fn(*given, **named)) if is_array(x) and is_inexact(x)]
            return {f"y{k}": np.asarray(x) for k, x in enumerate(found)}

        outputs = sorted(run(moving)) if moving else []
        if not outputs:
            raise OptionError(
                f"The noise of {self.name!r} is measured by moving floating-point arrays among its arguments, and "
                f"looking at those among its outputs; there are none among its {'outputs' if moving else 'arguments'}."
            )
        try:
            with AtOnce(_AT_ONCE) as flight:
                noise = estimate_noise(run, moving, sorted(moving), outputs, map_probes=flight.map)
        except ValueError as error:
            raise OptionError(f"The noise of {self.name!r} cannot be told here: {error}") from error
        return max(noise.values())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # What tracing has to ask, of a component that tells no shapes, is not asked again by this call.
        with contextlib.nullcontext() if is_staging() else rehearsal():
            return self._traced(args, kwargs).value()

    def _traced(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Trace:
        with_paths, treedef = jtu.tree_flatten_with_path((args, kwargs))
        leaves = [leaf for _, leaf in with_paths]
        arrays = [jnp.asarray(leaf) for leaf in leaves if is_array(leaf)]
        form: tuple[Any, list[Any], list[str]] | None = None

        def flat(*arrays: Any) -> list[Any]:
            nonlocal form
            remaining = iter(arrays)
            given = treedef.unflatten([next(remaining) if is_array(leaf) else leaf for leaf in leaves])
            results, out_tree = jtu.tree_flatten_with_path(self.fn(*given[0], **given[1]))
            form = (
                out_tree,
                [_TRACED if is_array(leaf) else leaf for _, leaf in results],
                [f"output {path_name(path)!r}" if path else "its output" for path, leaf in results if is_array(leaf)],
            )
            return [leaf for _, leaf in results if is_array(leaf)]

        def trace() -> ClosedJaxpr:
            return jax.make_jaxpr(flat)(*arrays)

        closed = trace() if is_staging() else informed(trace, lambda: flat(*jax.lax.stop_gradient(arrays)))
        assert form is not None
        names = names_of(self.fn, args, kwargs)
        inputs = _Inputs.of(
            [*arrays, *closed.consts],
            [*names, *["a value that it closes over"] * len(closed.consts)],
            [*typical_of(self.settings.typical, args, kwargs), *[None] * len(closed.consts)],
            [*bounds_of(self.settings.bounds, args, kwargs), *[(None, None)] * len(closed.consts)],
        )
        return _Trace(self, closed, inputs, len(arrays), *form)

    def tell(self, n: int) -> None:
        """Say once what a gradient costs, and refuse one that costs too much.

        Raises:
            OverBudget: it does.
        """
        runs, most = self.settings.price(n), self.settings.max_runs
        if most is not None and runs > most:
            others = "" if self.settings.is_forward else "; method='forward' takes about half"
            raise OverBudget(
                f"A gradient of {self.name!r} by {self.settings.method} differences of the whole would take {runs} "
                f"runs for {n} entries; the budget is {most}. No probe was made.\n"
                f"Differentiate with respect to less, or allow it: differences(..., max_runs={runs}){others}.",
                tesseract=self.name,
                endpoint="differences",
            )
        if n not in self._told:
            self._told.add(n)
            _log.info(
                "Derivatives of %r are made by %s differences of the whole, an approximation, at %d run%s per gradient "
                "(%d entr%s). This is said once.",
                self.name,
                self.settings.method,
                runs,
                "" if runs == 1 else "s",
                n,
                "y" if n == 1 else "ies",
            )


_TRACED = object()
_AT_ONCE = 8  # runs of a measurement of noise


@dataclasses.dataclass(frozen=True, eq=False)
class _Inputs:
    """What a traced function depends on: arrays, of which those of floating point vary, as real parts.

    Attributes:
        owners: of each part, the number of its array.
        names, typical, lower, upper: by part.
    """

    arrays: list[Any]
    owners: list[int]
    names: list[str]
    typical: list[Any]
    lower: list[Any]
    upper: list[Any]

    @classmethod
    def of(cls, arrays: list[Any], names: list[str], typical: list[Any], bounds: list[tuple[Any, Any]]) -> _Inputs:
        arrays = [jnp.asarray(x) for x in arrays]
        found = cls(arrays, [], [], [], [], [])
        for k, (x, name, size, (lower, upper)) in enumerate(zip(arrays, names, typical, bounds, strict=True)):
            if not is_inexact(x):
                continue
            for part in [f"the real part of {name}", f"the imaginary part of {name}"] if is_complex(x) else [name]:
                found.owners.append(k)
                found.names.append(part)
                found.typical.append(size)
                found.lower.append(lower)
                found.upper.append(upper)
        return found

    @property
    def parts(self) -> list[Any]:
        return [part for k in dict.fromkeys(self.owners) for part in halves(self.arrays[k])]

    @property
    def others(self) -> list[Any]:
        return [x for k, x in enumerate(self.arrays) if k not in self.owners]

    def joined(self, parts: Sequence[Any], others: Sequence[Any]) -> list[Any]:
        """The arrays again."""
        varying, rest = iter(parts), iter(others)
        known = set(self.owners)
        return [
            next(rest)
            if k not in known
            else jax.lax.complex(next(varying), next(varying))
            if is_complex(x)
            else next(varying)
            for k, x in enumerate(self.arrays)
        ]

    def places(self, active: Sequence[int], parts: Sequence[Any], noise: float | None, coarsest: float) -> Places:
        is_bounded = any(side[k] is not None for side in (self.lower, self.upper) for k in active)

        def filled(side: Sequence[Any], default: float) -> tuple[Any, ...]:
            return tuple(np.full(parts[k].shape, default) if side[k] is None else side[k] for k in active)

        return Places(
            tuple(self.names[k] for k in active),
            tuple(parts[k].shape for k in active),
            tuple(max(float(jnp.finfo(parts[k].dtype).eps), coarsest) if noise is None else noise for k in active),
            tuple(self.typical[k] for k in active),
            filled(self.lower, -np.inf) if is_bounded else None,
            filled(self.upper, np.inf) if is_bounded else None,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Trace:
    """A function as traced, with its arguments."""

    owner: Differenced
    closed: ClosedJaxpr
    inputs: _Inputs
    n_arguments: int
    out_tree: Any
    out_leaves: list[Any]
    out_names: list[str]

    def value(self) -> Any:
        """What the function gives, with derivatives."""

        @jax.custom_jvp
        def probed(parts: list[Any], others: list[Any]) -> tuple[list[Any], list[Any]]:
            return self._run(parts, others)

        def rule(primals: Any, tangents: Any) -> Any:
            parts, others = primals
            y, rest = probed(parts, others)
            active = [k for k, dot in enumerate(tangents[0]) if not isinstance(dot, SymbolicZero)]
            if active and y:
                y_dot = self._tangent(active, parts, others, y, [tangents[0][k] for k in active])
            else:
                y_dot = [jnp.zeros_like(part) for part in y]
            return (y, rest), (y_dot, [np.zeros(np.shape(x), jax.dtypes.float0) for x in rest])

        probed.defjvp(rule, symbolic_zeros=True)
        y, rest = probed(self.inputs.parts, self.inputs.others)
        floats, others = iter(y), iter(rest)
        avals = iter(self.closed.out_avals)

        def leaf(known: Any) -> Any:
            if known is not _TRACED:
                return known
            aval = next(avals)
            if not is_inexact(aval):
                return next(others)
            return jax.lax.complex(next(floats), next(floats)) if is_complex(aval) else next(floats)

        return revealed(self.out_tree.unflatten([leaf(known) for known in self.out_leaves]))

    def _run(self, parts: Sequence[Any], others: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The real parts of the floating-point outputs, and the other outputs."""
        arrays = self.inputs.joined(parts, others)
        closed = ClosedJaxpr(self.closed.jaxpr, arrays[self.n_arguments :])
        results = jaxpr_as_fun(closed)(*arrays[: self.n_arguments])
        y = [half for x in results if is_inexact(x) for half in halves(x)]
        return y, [x for x in results if not is_inexact(x)]

    def _tangent(
        self, active: list[int], parts: list[Any], others: list[Any], y: list[Any], dots: list[Any]
    ) -> list[Any]:
        settings, owner = self.owner.settings, self.owner
        places = self.inputs.places(active, parts, settings.noise, self._coarsest)
        n, n_parts = len(active), len(parts)
        needs_value = settings.is_forward or places.is_bounded
        is_mapped = _has_branches(self.closed.jaxpr)
        names = [
            name
            for name, aval in zip(self.out_names, self.closed.out_avals, strict=True)
            if is_inexact(aval)
            for _ in range(2 if is_complex(aval) else 1)
        ]

        def at_work(at: list[Any]) -> tuple[Probing, list[Any], list[Any]]:
            given, rest, value = at[:n_parts], at[n_parts : n_parts + len(others)], at[n_parts + len(others) :]

            def fn(moved: list[Any]) -> list[Any]:
                full = list(given)
                for k, x in zip(active, moved, strict=True):
                    full[k] = x
                return self._run(full, rest)[0]

            found = Probing(owner.name, fn, places, tuple(names), settings.is_forward, is_mapped)
            return found, [given[k] for k in active], value

        # Nobody is asked along zeros.
        def forward(at: list[Any], dots: list[Any]) -> list[Any]:
            probing, x, value = at_work(at)
            nothing = [jnp.zeros(part.shape, part.dtype) for part in y]
            return jax.lax.cond(is_any(dots), lambda: probing.push(x, value, dots), lambda: nothing)

        def transpose(at: list[Any], cotangents: list[Any]) -> list[Any]:
            owner.tell(places.n)
            probing, x, value = at_work(at)
            nothing = [jnp.zeros_like(part) for part in x]
            if not places.n:
                return nothing
            return jax.lax.cond(is_any(cotangents), lambda: probing.pull(x, value, cotangents), lambda: nothing)

        at = [*parts, *others, *(y if needs_value else [])]
        assert len(dots) == n
        return linear_map(forward, transpose, at, dots, f"{owner.name!r} by differences")

    @property
    def _coarsest(self) -> float:
        """The rounding error of the least precise numbers that the function gives, or that go through a component."""
        avals = [*self.closed.out_avals]
        for eqn in calls_of(self.closed.jaxpr.eqns):
            avals += [atom.aval for atom in (*eqn.invars, *eqn.outvars)]
        return max((float(jnp.finfo(aval.dtype).eps) for aval in avals if is_inexact(aval)), default=0.0)


def _has_branches(jaxpr: Jaxpr) -> bool:
    """Whether a component is called in one branch of a `cond` only: under `vmap` it would be in all."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "cond" and has_calls(eqn):
            return True
        if any(_has_branches(body) for body in bodies_of(eqn.params)):
            return True
    return False
