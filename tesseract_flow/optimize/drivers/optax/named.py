"""Optax: any of its gradient transformations, by object, or by name with plain settings from a form.

Such a driver either takes a step per evaluation (Adam, SGD, ...), or searches along a line by evaluating trial points
(L-BFGS). How an update runs is in `search`, and what comes of it in `engine`; here is only which driver it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from tesseract_flow.errors import DriverError, did_you_mean
from tesseract_flow.optimize.drivers.base import AbstractDriver, AbstractEngine, Setting
from tesseract_flow.optimize.drivers.settings import check_settings, takes
from tesseract_flow.optimize.problem import Evaluation, Problem

# Learning rates are in units of the problem's `scale`: a step of Adam moves a variable by about this fraction of it.
LEARNING_RATES: dict[str, float | None] = {
    "adabelief": 0.03,
    "adadelta": 1.0,
    "adagrad": 0.1,
    "adam": 0.03,
    "adamax": 0.03,
    "adamaxw": 0.03,
    "adamw": 0.03,
    "adan": 0.03,
    "amsgrad": 0.03,
    "lbfgs": None,
    "lion": 0.01,
    "nadam": 0.03,
    "nadamw": 0.03,
    "novograd": 0.03,
    "optimistic_gradient_descent": 0.1,
    "polyak_sgd": None,
    "radam": 0.03,
    "rmsprop": 0.01,
    "rprop": 0.03,
    "sgd": 0.1,
    "sign_sgd": 0.01,
    "signum": 0.01,
    "yogi": 0.03,
}
OBJECT = "optax object"  # the name of a driver that has none
# Parameters that no form can fill in: functions, masks, dtypes, random keys.
_NOT_SETTINGS = {"learning_rate", "mask", "weight_decay_mask", "mu_dtype", "linesearch"}
_SCHEDULE_SETTINGS: dict[str, Any] = {"schedule": "constant", "schedule_steps": 200, "schedule_end": 0.01}
_SEARCH_SETTINGS: dict[str, Any] = {"linesearch": "zoom", "max_linesearch_steps": 20}
_SCHEDULES = ("constant", "cosine", "linear", "exponential")
_SEARCHES = ("zoom", "backtracking", "none")


@dataclasses.dataclass(frozen=True, eq=False)
class OptaxDriver(AbstractDriver):
    """A gradient transformation, and a JSON description of it for the run's identity."""

    transformation: optax.GradientTransformationExtraArgs
    about: Mapping[str, Any]
    # Compiled updates, kept here by `search`: a named driver is built once, so many runs share what one compiled.
    compiled: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def description(self) -> Mapping[str, Any]:
        return self.about

    def identity(self, problem: Problem, template: Evaluation) -> dict[str, Any]:
        from tesseract_flow.optimize.drivers.optax.behaviour import identity_of_driver

        return identity_of_driver(self, problem, template)

    def engine(self, setting: Setting) -> AbstractEngine:
        from tesseract_flow.optimize.drivers.optax.engine import OptaxEngine

        return OptaxEngine(self, setting)


def settings_of(name: str) -> dict[str, Any]:
    """The settings that a driver of Optax takes by name, with their defaults; besides `learning_rate`."""
    parameters = inspect.signature(getattr(optax, name)).parameters
    own = {key: parameter.default for key, parameter in parameters.items() if key not in _NOT_SETTINGS}
    extra = _SEARCH_SETTINGS if name == "lbfgs" else {}
    return own | extra | (_SCHEDULE_SETTINGS if "learning_rate" in parameters else {})


def named_driver(name: str, learning_rate: float | None, settings: Mapping[str, Any]) -> OptaxDriver:
    """The optimiser of Optax that a name and settings stand for.

    Raises:
        DriverError: settings that it does not take.
    """
    try:
        return _named_once(name, learning_rate, json.dumps(dict(settings), sort_keys=True))
    except TypeError:
        return _named(name, learning_rate, dict(settings))  # which says what is wrong with them


def driver_of(driver: Any, learning_rate: float | None, settings: Mapping[str, Any] | None) -> OptaxDriver:
    """An Optax object as a driver.

    Raises:
        DriverError: it is nothing of the kind, or there are settings beside it.
    """
    transformation = _as_transformation(driver)
    if learning_rate is not None or settings:
        raise DriverError(
            "learning_rate and driver_settings go with a driver's name; this driver is an Optax object, which has "
            "its own.\nBuild them into the object, for example optax.adam(1e-2), or pass the name."
        )
    return OptaxDriver(transformation, {"name": OBJECT})


def _as_transformation(driver: Any) -> optax.GradientTransformationExtraArgs:
    """What is updated like `optax.GradientTransformation`, as one that takes the arguments of a line search.

    Raises:
        DriverError: it is nothing of the kind.
    """
    if not isinstance(driver, optax.GradientTransformation):
        if inspect.isclass(driver) or not all(callable(getattr(driver, name, None)) for name in ("init", "update")):
            name = getattr(driver, "__name__", None)
            is_optimiser = callable(driver) and getattr(optax, str(name), None) is driver
            raise DriverError(
                f"A driver is a name or an optax.GradientTransformation, received {type(driver).__name__}"
                + (f" {name}, which makes one: optax.{name}(...)" if is_optimiser else "")
                + ".\nKnown names are in tesseract_flow.optimize.driver_names()."
            )
        # optax.MultiSteps is an object with the same two functions.
        driver = optax.GradientTransformation(driver.init, driver.update)
    if _made_by(driver, "lookahead"):
        return optax.with_extra_args_support(_with_slow_design(driver))
    if isinstance(driver, optax.GradientTransformationExtraArgs) and not _takes_anything(driver.update):
        # It says so and does not, as optax.contrib.sam.
        return optax.with_extra_args_support(optax.GradientTransformation(driver.init, driver.update))
    return optax.with_extra_args_support(driver)


def _made_by(driver: optax.GradientTransformation, name: str) -> bool:
    made_by, _, _ = getattr(driver.init, "__qualname__", "").partition(".")
    return made_by == name and getattr(driver.init, "__module__", "").startswith("optax.")


def _takes_anything(update: Any) -> bool:
    parameters = inspect.signature(update).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _with_slow_design(lookahead: optax.GradientTransformation) -> optax.GradientTransformation:
    """Optax's lookahead for a design that is one tree: it wants a pair of them, of which the slow one becomes state."""

    def init(params: PyTree) -> Any:
        return lookahead.init(optax.LookaheadParams(params, params)), params

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        inner, slow = state
        moves: Any
        moves, inner = lookahead.update(updates, inner, optax.LookaheadParams(params, slow))  # type: ignore[arg-type]
        return moves.fast, (inner, optax.apply_updates(slow, moves.slow))

    return optax.GradientTransformation(init, update)


@functools.lru_cache(maxsize=64)
def _named_once(name: str, learning_rate: float | None, settings: str) -> OptaxDriver:
    return _named(name, learning_rate, json.loads(settings))


def _named(name: str, learning_rate: float | None, settings: dict[str, Any]) -> OptaxDriver:
    known = settings_of(name)
    check_settings(name, settings, known)
    build = getattr(optax, name)
    arguments = {key: value for key, value in settings.items() if key not in _SCHEDULE_SETTINGS | _SEARCH_SETTINGS}
    rate = LEARNING_RATES[name] if learning_rate is None else _positive(name, learning_rate)
    if "learning_rate" in inspect.signature(build).parameters:
        if rate is not None:
            arguments["learning_rate"] = _schedule(name, rate, _SCHEDULE_SETTINGS | settings)
        elif settings.get("schedule", "constant") != "constant":
            raise DriverError(f"Driver {name!r} has no learning rate to schedule unless learning_rate is given.")
    elif rate is not None:
        raise DriverError(f"Driver {name!r} does not take a learning_rate.\n{takes(name, known)}")
    if name == "lbfgs":
        arguments["linesearch"] = _line_search(_SEARCH_SETTINGS | settings)
    try:
        transformation = build(**arguments)
    except (TypeError, ValueError) as error:
        raise DriverError(f"Driver {name!r} refuses its settings: {error}.\n{takes(name, known)}") from error
    description = {"name": name, "learning_rate": rate, **{key: settings[key] for key in sorted(settings)}}
    return OptaxDriver(optax.with_extra_args_support(transformation), description)


def _positive(name: str, learning_rate: Any) -> float:
    if isinstance(learning_rate, int | float) and learning_rate > 0 and np.isfinite(learning_rate):
        return float(learning_rate)
    raise DriverError(
        f"learning_rate of driver {name!r} must be a positive number, received {learning_rate!r}.\n"
        "For a schedule use driver_settings={'schedule': 'cosine', 'schedule_steps': 200}, or pass an Optax object."
    )


def _schedule(name: str, rate: float, settings: Mapping[str, Any]) -> float | optax.Schedule:
    steps, end = int(settings["schedule_steps"]), float(settings["schedule_end"])
    match settings["schedule"]:
        case "constant":
            return rate
        case "cosine":
            return optax.cosine_decay_schedule(rate, steps, alpha=end)
        case "linear":
            return optax.linear_schedule(rate, rate * end, steps)
        case "exponential":
            return optax.exponential_decay(rate, steps, end, end_value=rate * end)
        case other:
            raise DriverError(
                f"Unknown schedule {other!r} for driver {name!r}.{did_you_mean(str(other), _SCHEDULES)} Known are: "
                f"{', '.join(_SCHEDULES)}."
            )


def _line_search(settings: Mapping[str, Any]) -> optax.GradientTransformation | None:
    steps = int(settings["max_linesearch_steps"])
    match settings["linesearch"]:
        case "zoom":
            return optax.scale_by_zoom_linesearch(max_linesearch_steps=steps, initial_guess_strategy="one")
        case "backtracking":
            # Starting each search at 1 is what quasi-Newton directions are made for (Nocedal & Wright, section 3.1);
            # the default of growing the last step would creep after one short step.
            return optax.scale_by_backtracking_linesearch(steps, decrease_factor=0.5, increase_factor=1e6)
        case "none":
            return None
        case other:
            raise DriverError(
                f"Unknown linesearch {other!r} for driver 'lbfgs'.{did_you_mean(str(other), _SEARCHES)} Known are: "
                f"{', '.join(_SEARCHES)}."
            )


def initial_state(driver: OptaxDriver, u: PyTree) -> PyTree:
    """The driver's state before its first update.

    Raises:
        DriverError: it cannot begin on this design.
    """
    try:
        with lenient_promotion():
            return strongly_typed(driver.transformation.init(u))
    except Exception as error:
        raise cannot_drive(driver, error) from error


_FOR_BATCHES = "optimisers for batches (dpsgd) take the first axis of a gradient for examples; a design has none"


def cannot_drive(driver: OptaxDriver, error: Exception) -> DriverError:
    """What is said of a driver that fails on a design, with what is known of such failures."""
    text = f"{type(error).__name__}: {error}"
    hints = {
        "'fast'": "lookahead moves pairs of designs, so it comes outermost: optax.lookahead(optax.chain(...), ...)",
        "grad_fn": "sam(opaque_mode=True) evaluates inside of its update; opaque_mode=False makes the same steps",
        "obj_fn": "sophia differentiates the objective twice, which calls to Tesseracts do not offer",
        "batch dimension": _FOR_BATCHES,
        "its update has shapes": _FOR_BATCHES,
    }
    hint = next((f"\n{hint[0].upper()}{hint[1:]}." for mark, hint in hints.items() if mark in text), "")
    return DriverError(
        f"Driver {driver.name!r} cannot drive this design: {text}{hint}\n"
        "It is called as update(gradient, state, design, value=..., grad=..., value_fn=...)."
    )


def lenient_promotion() -> contextlib.AbstractContextManager[None]:
    # Optax mixes int32 counters with floats, which JAX's strict promotion mode refuses; that mode is the user's choice
    # for the user's code.
    return jax.numpy_dtype_promotion("standard")


def strongly_typed(tree: PyTree) -> PyTree:
    """The tree with no weak types, as a journal would give it back: promotion must not depend on having been saved."""

    def leaf(x):
        x = jnp.asarray(x)
        return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jax.lax.convert_element_type(x, x.dtype)

    return jax.tree.map(leaf, tree)
