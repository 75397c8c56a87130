"""A flow made of a problem's factory: its form has the factory's own parameters, then how to optimise.

Prefect's server keeps a form as a JSON schema and holds what is submitted against it; it never imports the problem. The
flow is made where it runs: a deployment's entrypoint is `tesseract_flow.flows.of_problem:named.` and the problem, as
`folder/problem.py#factory`, `package.module#factory` or `folder/problem.yaml#`; with `/check` or `/gradients` behind
it, a flow that looks at the problem, and with `/multi-start` or `/sweep`, one that makes many runs.

No `from __future__ import annotations` here: Prefect builds the form from live annotations.
"""

import enum
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Optional, Union, get_args, get_origin

import pydantic
from prefect import Flow
from prefect.utilities.callables import ParameterSchema, parameter_docstrings, parameter_schema
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from tesseract_flow.blocks import TesseractEndpoint
from tesseract_flow.client import AbstractTesseract
from tesseract_flow.client.handles.offers import end_with_lender
from tesseract_flow.errors import ProblemError, did_you_mean
from tesseract_flow.flows.check import compared, looked_at, resolved
from tesseract_flow.flows.drivers import Auto, Driver
from tesseract_flow.flows.forms import Failures, Many, Running, Starts, Stop
from tesseract_flow.flows.multi_start import many_starts
from tesseract_flow.flows.optimize import optimise
from tesseract_flow.flows.sweep import many_settings
from tesseract_flow.optimize import Problem, WhichDesign, load_problem
from tesseract_flow.optimize.loading import load_factory
from tesseract_flow.optimize.problem_file import is_problem_file
from tesseract_flow.tasks.log import own_log

Kind = Literal["optimize", "check", "gradients", "multi-start", "sweep"]
_SEPARATOR = "#"


def flow_of(factory: str | Callable[..., Problem], *, kind: Kind = "optimize") -> Flow[..., Any]:
    """The flow that optimises what a factory makes, once or many times, checks it, or checks its gradients.

    Its parameters are the factory's own, with their types (annotations, `Literal`, `Optional`, enums, pydantic
    models), defaults, limits and units (`Annotated[float, Field(ge=0, json_schema_extra={"units": "mm"})]`) and
    descriptions (the docstring's Args, or a `Field`'s). A Tesseract (`TesseractLike`) is an endpoint block, an address
    or nothing. Then come `driver`, `stop`, `on_failure`, `run_key` and `run`; before them `starts` of a multi-start,
    and `over` of a sweep.

    What has a default and no form (a function, an array) is left out, and stays at its default.

    >>> flow = flow_of("wing/problem.py:problem")  # doctest: +SKIP
    >>> flow(span=12.0, run_key="long")  # doctest: +SKIP

    Args:
        factory: folder/problem.py:factory, package.module:factory, folder/problem.yaml, or the function itself.
        kind: what a run does.

    Raises:
        ProblemError: there is no such factory, a parameter without a default has no form, or one is called as one of
            ours.
    """
    made_by = load_factory(factory) if isinstance(factory, str) else factory
    own = _parameters(made_by, str(factory) if isinstance(factory, str) else made_by.__name__)
    rest = _KINDS[kind]
    if both := [name for name in own if name in rest.options]:
        raise ProblemError(
            f"{_called(factory)} has a parameter {both[0]!r}, which is a field of the form as well. Rename it: the "
            f"form has {', '.join(rest.options)}."
        )

    signature = inspect.Signature(
        [parameter.as_parameter() for parameter in own.values()]
        + [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default, _) in rest.options.items()
        ]
    )

    def body(**arguments: Any) -> Any:
        ours = {name: arguments.pop(name, default) for name, (_, default, _) in rest.options.items()}
        settings = {name: own[name].value(given) for name, given in signature.bind(**arguments).arguments.items()}
        with own_log():
            return rest.run(_Given(factory, settings, own), body, **ours)

    body.__name__ = body.__qualname__ = rest.name.replace("-", "_")
    body.__doc__ = _docstring(made_by, own, rest)
    body.__signature__ = signature  # type: ignore[attr-defined]
    return Flow(body, name=rest.name)


class Form(ParameterSchema):
    """The form of a flow as the server keeps it. Names that are no parameters are refused when a run is submitted."""

    additionalProperties: bool = False


def form_of(flow: Flow[..., Any]) -> Form:
    """The form of a flow."""
    # Said, as Prefect leaves out what is at its default.
    return Form(**parameter_schema(flow.fn).model_dump(), additionalProperties=False)


def entrypoint_of(problem: str, kind: Kind = "optimize") -> str:
    """Where a worker finds the flow of a problem that is named as `load_problem` takes it."""
    where, _, name = problem.strip().rpartition(":")
    if is_problem_file(problem):  # which needs no function
        where, name = problem.strip(), ""
    return f"{__name__}:named.{where}{_SEPARATOR}{name}" + ("" if kind == "optimize" else f"/{kind}")


# --- the parameters of a factory --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Parameter:
    name: str
    annotation: Any
    default: Any  # inspect.Parameter.empty where there is none
    description: str
    is_tuple: bool = False

    def as_parameter(self) -> inspect.Parameter:
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=self.default, annotation=self.annotation
        )

    def value(self, given: Any) -> Any:
        """What the factory gets for what the form has."""
        if isinstance(given, TesseractEndpoint):
            return given.open()
        return tuple(given) if self.is_tuple and isinstance(given, list) else resolved(given, self.name)


def _parameters(factory: Callable[..., Any], called: str) -> dict[str, _Parameter]:
    described = _descriptions(factory)
    hints = _hints(factory)
    found = {}
    for parameter in inspect.signature(factory).parameters.values():
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise ProblemError(f"{called} takes {parameter.name!r} by position alone, and a form has names.")
        default = parameter.default
        if isinstance(default, FieldInfo):
            raise ProblemError(
                f"{called}: the default of {parameter.name!r} is a Field, which a call of the factory would get as it "
                "is. Write it as Annotated[type, Field(...)] = default."
            )
        annotation = _in_form(hints.get(parameter.name, parameter.annotation), default)
        if annotation is None:
            if default is inspect.Parameter.empty:
                raise ProblemError(
                    f"{called} needs {parameter.name!r}, whose type a form cannot have: "
                    f"{hints.get(parameter.name, parameter.annotation)!r}. Annotate it as a number, text, Literal, a "
                    "list, a pydantic model or TesseractLike, or give it a default."
                )
            continue
        words = _described(annotation, described.get(parameter.name, ""))
        found[parameter.name] = _Parameter(
            parameter.name, annotation, default, " ".join(words.split()), isinstance(default, tuple)
        )
    return found


def _hints(factory: Callable[..., Any]) -> Mapping[str, Any]:
    """Annotations as types, each for itself: one that cannot be resolved says nothing about the others."""
    function = inspect.unwrap(factory)
    names = getattr(function, "__globals__", {})
    found = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        try:
            one = types.SimpleNamespace(__annotations__={name: annotation})
            found[name] = typing.get_type_hints(one, globalns=names, include_extras=True)[name]
        except Exception:  # a name for type checkers only, perhaps in one member of a union
            found[name] = _evaluated(annotation, names)
    return found


def _evaluated(annotation: Any, names: Mapping[str, Any]) -> Any:
    """The author's own code, where the author's module would evaluate it."""
    try:
        return eval(annotation, dict(names)) if isinstance(annotation, str) else annotation
    except Exception:
        return inspect.Parameter.empty


def _in_form(annotation: Any, default: Any) -> Any:
    """The type of a field: as annotated, or else like the default; None if there can be no field."""
    if annotation is inspect.Parameter.empty:
        return _like(default)
    if _names_a_tesseract(annotation):
        has_none = default is None or type(None) in _options(annotation)
        return Optional[Union[TesseractEndpoint, str]] if has_none else Union[TesseractEndpoint, str]  # noqa: UP007, UP045
    return annotation if _has_form(annotation) else None if default is inspect.Parameter.empty else _like(default)


def _like(default: Any) -> Any:
    if default is inspect.Parameter.empty or default is None:
        return Any
    if isinstance(default, bool | str | enum.Enum | BaseModel):
        return type(default)
    if isinstance(default, int | float):
        return float | int  # a default of 3 says nothing against 2.5
    if isinstance(default, list | tuple) and _has_json(default):
        return list[Any]
    if isinstance(default, dict) and _has_json(default):
        return dict[str, Any]
    return None


def _has_json(value: Any) -> bool:
    try:
        pydantic.RootModel[pydantic.JsonValue](value if not isinstance(value, tuple) else list(value))
    except pydantic.ValidationError:
        return False
    return True


def _has_form(annotation: Any) -> bool:
    try:
        TypeAdapter(annotation).json_schema()
    except Exception:  # pydantic has several for what it cannot do
        return False
    return True


def _options(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, of nested ones and of what is annotated as well."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(option for member in get_args(annotation) for option in _options(member))
    return (annotation,)


def _names_a_tesseract(annotation: Any) -> bool:
    return any(
        isinstance(option, type) and issubclass(option, AbstractTesseract | TesseractEndpoint)
        for option in _options(annotation)
    )


def _described(annotation: Any, in_docstring: str) -> str:
    """What is said of a parameter: in the metadata of its annotation, or else in the docstring; and its units."""
    fields = [extra for extra in get_args(annotation)[1:] if isinstance(extra, FieldInfo)]
    if get_origin(annotation) is not Annotated or not fields:
        return in_docstring
    words = next((field.description for field in fields if field.description), in_docstring)
    extras = [field.json_schema_extra for field in fields if isinstance(field.json_schema_extra, dict)]
    units = next((extra[key] for extra in extras for key in ("units", "unit") if key in extra), None)
    return f"{words} [{units}]".strip() if units else words


def _descriptions(factory: Callable[..., Any]) -> dict[str, str]:
    """The docstring's Args; an entry may speak of several, as in `width, height: in mm`."""
    return {
        name.strip().lstrip("*"): words
        for names, words in parameter_docstrings(inspect.getdoc(factory)).items()
        for name in names.split(",")
    }


def _docstring(factory: Callable[..., Any], own: Mapping[str, _Parameter], rest: "_Rest") -> str:
    about = (inspect.getdoc(factory) or "").partition("\n\n")[0].replace("\n", " ")
    described = {name: parameter.description for name, parameter in own.items()}
    described |= {name: says for name, (_, _, says) in rest.options.items()}
    lines = [f"    {name}: {says}" for name, says in described.items() if says]
    return "\n".join([f"{rest.says} {about}".strip(), "", "Args:", *lines])


def _called(factory: str | Callable[..., Any]) -> str:
    return factory if isinstance(factory, str) else factory.__name__


# --- what a run does --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Given:
    """What the factory's part of a form was filled in with."""

    factory: str | Callable[..., Problem]
    settings: Mapping[str, Any]
    own: Mapping[str, _Parameter]

    @property
    def problem(self) -> Problem:
        return load_problem(self.factory, self.settings)

    def values(self, over: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Values to sweep over, each as the form would have it.

        Raises:
            ProblemError: there is no such parameter, or it does not take one of them.
        """
        found = {}
        for name, values in over.items():
            if name not in self.own:
                there_are = f"It takes: {', '.join(self.own) or 'none'}."
                raise ProblemError(
                    f"{_called(self.factory)} has no parameter {name!r} to sweep over.{did_you_mean(name, self.own)} "
                    f"{there_are}"
                )
            try:
                taken = [TypeAdapter(self.own[name].annotation).validate_python(value) for value in values]
            except pydantic.ValidationError as error:
                why = error.errors()[0]["msg"]
                raise ProblemError(f"over.{name}: {_called(self.factory)} does not take {values!r}: {why}.") from error
            found[name] = [self.own[name].value(value) for value in taken]
        return found


@dataclass(frozen=True)
class _Rest:
    """The fields that follow those of the factory, and what is done with what was filled in."""

    name: str
    says: str
    options: Mapping[str, tuple[Any, Any, str]]  # name -> annotation, default, description
    run: Callable[..., Any]


def _optimise(given: _Given, flow: Callable[..., Any], *, driver: Any, stop: Any, on_failure: Any, **rest: Any):
    optimizer = driver.as_optimizer()
    return optimise(given.problem, optimizer, stop, on_failure, rest["run"], run_key=rest["run_key"], flow=flow)


def _many_starts(given: _Given, flow: Callable[..., Any], *, starts: Any, driver: Any, **rest: Any):
    return many_starts(
        given.problem,
        starts,
        driver.as_optimizer(),
        rest["stop"],
        rest["on_failure"],
        rest["run"],
        made_by=(given.factory, given.settings),
        run_key=rest["run_key"],
        flow=flow,
    )


def _many_settings(given: _Given, flow: Callable[..., Any], *, over: Any, driver: Any, **rest: Any):
    return many_settings(
        given.factory,
        {name: value for name, value in given.settings.items() if name not in over},
        given.values(over),
        over,
        driver.as_optimizer(),
        rest["stop"],
        rest["on_failure"],
        rest["run"],
        run_key=rest["run_key"],
        flow=flow,
    )


def _check(given: _Given, flow: Callable[..., Any]):
    return looked_at(given.problem, flow=flow)


def _gradients(
    given: _Given, flow: Callable[..., Any], *, at: str | None, at_design: str, components: bool, max_requests: int
):
    return compared(given.problem, None if at is None else (at, at_design), components, max_requests, flow=flow)


_HOW = {
    "driver": (Driver, Auto(), "Which optimiser, with its settings."),
    "stop": (Stop, Stop(), "When to stop."),
    "on_failure": (Failures, Failures(), "What to do when an evaluation fails."),
}
_OF_MANY = {
    "run_key": (
        str | None,
        None,
        "Name of the study's folder; the same key goes on with the same study. Empty: this flow run's own.",
    ),
    "run": (Many, Many(), "How the runs are made, and where they are kept."),
}


_KINDS: Mapping[Kind, _Rest] = {
    "optimize": _Rest(
        "optimize-design",
        "Optimise a design.",
        {
            **_HOW,
            "run_key": (
                str | None,
                None,
                "Name of the run's folder; the same key goes on with the same run. Empty: this flow run's own.",
            ),
            "run": (Running, Running(), "Where the run is kept, what of it is seen, and how it begins."),
        },
        _optimise,
    ),
    "multi-start": _Rest(
        "multi-start",
        "Optimise a design from several starts.",
        {"starts": (Starts, Starts(), "Where the runs begin."), **_HOW, **_OF_MANY},
        _many_starts,
    ),
    "sweep": _Rest(
        "sweep",
        "Optimise a design for several settings.",
        {
            "over": (
                dict[str, list[Any]],
                {},
                'Values of parameters above, such as {"load": [1, 2, 5]}; all combinations are run.',
            ),
            **_HOW,
            **_OF_MANY,
        },
        _many_settings,
    ),
    "check": _Rest("check-design", "Look for all that is wrong with a problem, without a solve.", {}, _check),
    "gradients": _Rest(
        "check-gradients",
        "Compare the gradients of a problem with its values.",
        {
            "at": (str | None, None, "Folder or URL of a run, at whose design to look; empty: at the problem's start."),
            "at_design": (WhichDesign, "best", "Which design of that run."),
            "components": (bool, False, "Look at each component even if the gradient as a whole is right."),
            "max_requests": (int, 2000, "The most that is sent to components."),
        },
        _gradients,
    ),
}


# --- flows by name ----------------------------------------------------------------------------------------------------


class _Name:
    """The beginning of a problem's name. Prefect splits what follows the colon of an entrypoint at its dots."""

    def __init__(self, text: str | None = None):
        self._text = text

    def __getattr__(self, part: str) -> Any:
        text = part if self._text is None else f"{self._text}.{part}"
        where, hash_sign, rest = text.partition(_SEPARATOR)
        if not hash_sign:
            return _Name(text)
        name, _, kind = rest.partition("/")
        if kind not in ("", *get_args(Kind)):
            raise AttributeError(f"{text!r} names no flow of a problem")
        end_with_lender()  # where a run begins
        return flow_of(f"{where}:{name}" if name else where, kind=kind or "optimize")  # type: ignore[arg-type]


named = _Name()  # where entrypoints begin
