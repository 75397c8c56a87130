"""Drivers as a form offers them: one group of fields each, with the settings that it takes and their defaults.

The settings are read off the libraries (`driver_settings`), so that a form cannot offer what a driver refuses. Those of
one family that take the same share a group, and choose by name.

No `from __future__ import annotations` here: Prefect builds the form from live annotations.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, create_model
from pydantic.json_schema import JsonSchemaValue

from tesseract_flow.flows.forms import Optimizer
from tesseract_flow.optimize.drivers.optax.named import LEARNING_RATES
from tesseract_flow.optimize.drivers.registry import driver_settings

# Group -> its drivers, the first of which is the default, and what it is for. A group whose fields another one has as
# well comes before it: the first version of Prefect's UI tells groups by the names of the fields that are filled in,
# and takes the first that has them all.
_GROUPS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "Optax": (
        ("adamw", "nadam", "amsgrad", "adabelief", "radam", "rmsprop", "yogi", "lion", "sgd"),
        "Another optimiser of Optax that takes a step per evaluation.",
    ),
    "Adam": (("adam",), "Adam, of Optax: a step per evaluation, for whatever is rough or large."),
    "LBFGS": (("lbfgs",), "L-BFGS, of Optax: searches along a line; for what is smooth and has no constraints."),
    "SLSQP": (
        ("slsqp",),
        "Sequential quadratic programming, of SciPy: for constraints, and up to some hundred unknowns.",
    ),
    "LBFGSB": (("l-bfgs-b",), "L-BFGS-B, of SciPy: for bounds alone."),
    "TrustConstr": (("trust-constr",), "A trust region with a barrier, of SciPy: for constraints."),
    "MMA": (("mma", "ccsaq"), "Moving asymptotes, of NLopt, if that is installed: many unknowns, inequalities alone."),
    "LDSLSQP": (("ld_slsqp",), "Sequential quadratic programming, of NLopt, if that is installed."),
    "GaussNewton": (("gauss-newton", "dogleg"), "Least squares without damping: for problems with a misfit."),
    "LevenbergMarquardt": (("levenberg-marquardt",), "Least squares: for problems with a misfit."),
    "CMAES": (("cma-es",), "Evolution, without gradients, if cmaes is installed: a generation at once."),
}
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "schedule": ("constant", "cosine", "linear", "exponential"),
    "linesearch": ("zoom", "backtracking", "none"),
    "jacobian": ("auto", "rows", "columns", "products"),
}
_NOT_IN_FORMS = {"accumulator_dtype"}


def _ask_for_the_name(schema: dict[str, Any]) -> None:
    """It tells one group from another, so that it is asked for although each group knows its own.

    Prefect's server does not look at `required`, as defaults may come from elsewhere. The other two say the same.
    """
    others = [key for key in schema["properties"] if key != "name"]
    schema |= {"required": ["name"], "minProperties": 1, "dependentRequired": {key: ["name"] for key in others}}


class AbstractDriverForm(BaseModel):
    """Fields of a driver."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_ask_for_the_name)

    def as_optimizer(self) -> Optimizer:
        """The same by name, rate and settings. Those that are at their defaults are not said, as where nobody asks."""
        fields = self.model_dump(exclude_defaults=True)
        name, rate = self.model_dump()["name"], fields.pop("learning_rate", None)
        fields.pop("name", None)
        return Optimizer(name=name, learning_rate=rate, settings=fields)


class Auto(AbstractDriverForm):
    """What suits the problem: SLSQP with constraints, unless there are many unknowns or constraints; else Adam."""

    name: Literal["auto"] = "auto"


def _form(title: str, names: tuple[str, ...], says: str) -> type[AbstractDriverForm]:
    each = [driver_settings(name) for name in names]
    shared = {key: value for key, value in each[0].items() if all(settings.get(key, ...) == value for settings in each)}
    fields: dict[str, Any] = {"name": (Literal[names], names[0])}
    has_rate = any(LEARNING_RATES.get(name) is not None for name in names)
    if has_rate:
        says_of_rate = "In units of the problem's scale; empty for the optimiser's own"
        fields["learning_rate"] = (float | None, Field(default=None, gt=0, description=says_of_rate))
    for key, default in shared.items():
        if key not in _NOT_IN_FORMS and (has_rate or not key.startswith("schedule")):
            fields[key] = (_type_of(key, default), default)
    return create_model(title, __base__=AbstractDriverForm, __doc__=says, __module__=__name__, **fields)


def _type_of(key: str, default: Any) -> Any:
    if key in _CHOICES:
        return Literal[_CHOICES[key]]
    return float | None if default is None else type(default)


_FORMS = {title: _form(title, names, says) for title, (names, says) in _GROUPS.items()}
globals().update(_FORMS)  # by name, as pickling and Prefect want them


class _AnyOf:
    """A choice that both of Prefect's UIs show as one: the first shows `oneOf` as JSON to be typed."""

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        schema.pop("discriminator")
        schema["anyOf"] = schema.pop("oneOf")
        return schema


Driver = Annotated[Union[(Auto, *_FORMS.values())], Field(discriminator="name"), _AnyOf()]
