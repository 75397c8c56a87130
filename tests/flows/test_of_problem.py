"""The form of a problem: what it offers, what it refuses, and that a run gets what was filled in."""

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.exceptions import ParameterTypeError
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.schema_tools.validation import ValidationError, validate
from pydantic import TypeAdapter

from tesseract_flow.errors import ProblemError
from tesseract_flow.flows.drivers import _CHOICES, AbstractDriverForm, Auto, Driver
from tesseract_flow.flows.of_problem import entrypoint_of, flow_of, form_of
from tesseract_flow.optimize import driver_names
from tesseract_flow.optimize.drivers.optax.named import LEARNING_RATES
from tesseract_flow.optimize.drivers.registry import build_driver

PROBLEM = """
from __future__ import annotations

import enum
import pathlib
from typing import TYPE_CHECKING, Annotated, Literal

import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel, Field

import tesseract_flow as tf
from tesseract_flow.client import TesseractLike

if TYPE_CHECKING:
    from elsewhere import Nowhere


class Kind(enum.Enum):
    ROUND = "round"
    SQUARE = "square"


class Mesh(BaseModel):
    "How fine."
    n: int = Field(default=8, ge=2, description="Elements")


def rod(
    load: Annotated[float, Field(ge=0, le=100, json_schema_extra={"units": "N"})] = 5.0,
    shape: Literal["round", "square"] = "round",
    kind: Kind = Kind.ROUND,
    mesh: Mesh = Mesh(),
    span: float | None = None,
    center=3,
    start=(1.0, 2.0),
    weights: np.ndarray = np.ones(2),
    other: Nowhere = None,
    solver: TesseractLike | None = None,
    *more,
    **rest,
):
    '''A rod under a load.

    Args:
        load: at the tip.
        span, center: of the rod
            [m].
    '''
    place = pathlib.Path(__file__).parent / "own"
    place.mkdir(exist_ok=True)
    (place / "got.txt").write_text(f"{load} {kind} {mesh!r} {start} {solver}")
    return tf.Problem({"x": jnp.asarray(start)}, lambda d: jnp.sum((d["x"] - center) ** 2), name="rod")


def clash(stop=1):
    return None


def needs(weights: np.ndarray):
    return None
"""


@pytest.fixture
def rod(tmp_path: Path) -> str:
    (tmp_path / "rod.py").write_text(PROBLEM)
    return f"{tmp_path}/rod.py:rod"


def test_the_form_is_the_factorys_own(rod):
    form = form_of(flow_of(rod)).model_dump(exclude_unset=True)
    fields = form["properties"]
    own = ["load", "shape", "kind", "mesh", "span", "center", "start", "other", "solver"]  # an array has no field
    assert list(fields) == [*own, "driver", "stop", "on_failure", "run_key", "run"]
    assert form["required"] == [] and form["additionalProperties"] is False
    assert {key: fields["load"][key] for key in ("type", "minimum", "maximum", "default", "description")} == {
        "type": "number",
        "minimum": 0,
        "maximum": 100,
        "default": 5.0,
        "description": "at the tip. [N]",
    }
    assert fields["shape"]["enum"] == ["round", "square"]
    assert form["definitions"]["Mesh"]["properties"]["n"] == {
        "default": 8,
        "description": "Elements",
        "minimum": 2,
        "title": "N",
        "type": "integer",
    }
    assert fields["span"]["description"] == fields["center"]["description"] == "of the rod [m]."
    assert [option.get("$ref", option.get("type")) for option in fields["solver"]["anyOf"]] == [
        "#/definitions/TesseractEndpoint",
        "string",
        "null",
    ]
    assert form["definitions"]["TesseractEndpoint"]["block_type_slug"] == "tesseract-endpoint"
    assert fields["driver"]["default"] == {"name": "auto"}


def test_choice_of_a_driver_is_one_that_the_first_version_of_prefects_ui_can_show(rod):
    """It shows `oneOf` as JSON, and takes the first group that has the fields which are filled in."""
    form = form_of(flow_of(rod)).model_dump(exclude_unset=True)
    driver = form["properties"]["driver"]
    assert "oneOf" not in driver and "discriminator" not in driver
    groups = [form["definitions"][option["$ref"].rpartition("/")[2]] for option in driver["anyOf"]]
    for k, group in enumerate(groups):
        assert group["required"] == ["name"]
        if len(group["properties"]) > 1:
            assert [it["title"] for it in groups[:k] if set(group["properties"]) <= set(it["properties"])] == []


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"laod": 1.0}, "'laod' was unexpected"),
        ({"load": 101.0}, "'load'.*maximum"),
        ({"load": "much"}, "'load'.*not of type 'number'"),
        ({"shape": "oval"}, "'shape'.*not one of"),
        ({"mesh": {"n": 1}}, "mesh.n.*minimum"),
        ({"stop": {"max_step": 3}}, "'stop'.*'max_step' was unexpected"),
        ({"driver": {"name": "adam", "b1": "x"}}, "driver.b1.*number"),
        ({"driver": {"name": "adam", "b3": 1.0}}, "'driver'"),
        ({"driver": {"b1": 0.8}}, "'driver'"),  # whose it is, is not said
        ({"driver": {}}, "'driver'"),
        ({"driver": {"name": "slsqp", "learning_rate": 1.0}}, "'driver'"),
        ({"run": {"observe": "all"}}, "run.observe.*not one of"),
    ],
)
def test_what_cannot_be_right_is_refused_by_the_schema_alone(rod, parameters, says):
    """As the server does it, which knows no more than this."""
    schema = form_of(flow_of(rod)).model_dump(exclude_unset=True)
    with pytest.raises(ValidationError, match=says):
        validate(parameters, schema, raise_on_error=True, ignore_required=True)
    if "laod" not in parameters:
        with pytest.raises(ParameterTypeError):
            flow_of(rod).validate_parameters(parameters)


@pytest.mark.slow
def test_the_factory_gets_what_was_filled_in_and_the_run_is_the_same_as_elsewhere(rod, tmp_path):
    flow = flow_of(rod)
    given = {"load": 7, "kind": "square", "mesh": {"n": 3}, "start": [0.0, 1.0], "solver": "http://solver:8000"}
    given |= {"driver": {"name": "slsqp"}, "stop": {"max_steps": 3}, "run": {"folder": str(tmp_path)}, "run_key": "own"}
    told = flow.fn(**flow.validate_parameters(given))
    assert told["value"] < 1e-10
    with np.load(tmp_path / "own" / "design.npz") as design:
        np.testing.assert_allclose(design["x"], [3.0, 3.0])
    report = (tmp_path / "own" / "got.txt").read_text()
    assert report == "7.0 Kind.SQUARE Mesh(n=3) (0.0, 1.0) http://solver:8000"
    # Asked for in another way it is the same run, as what is at its default need not be said.
    again = flow.fn(**flow.validate_parameters({**given, "center": 3, "driver": {"name": "slsqp", "ftol": 1e-30}}))
    assert again == told


def test_workers_find_the_flow_by_its_entrypoint(rod, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: Any = {"optimize": "optimize-design", "multi-start": "multi-start", "sweep": "sweep"}
    for kind, name in (names | {"check": "check-design", "gradients": "check-gradients"}).items():
        found = load_flow_from_entrypoint(entrypoint_of("./rod.py:rod", kind), use_placeholder_flow=False)
        assert found.name == name
        assert "load" in inspect.signature(found.fn).parameters
    assert found.fn(center=1.5)["ok"]


@pytest.mark.parametrize(
    ("name", "says"),
    [("clash", "'stop', which is a field of the form"), ("needs", "whose type a form cannot have"), ("rood", "rod")],
)
def test_factories_that_make_no_form(rod, name, says):
    with pytest.raises(ProblemError, match=says):
        flow_of(f"{rod.rpartition(':')[0]}:{name}")


def test_every_setting_that_a_driver_offers_is_one_that_it_takes():
    offered = set()
    forms = set(TypeAdapter(Driver).json_schema()["$defs"])
    for form in AbstractDriverForm.__subclasses__():
        assert form.__name__ in forms
        if form is Auto:
            continue
        for name in form.model_json_schema()["properties"]["name"].get("enum") or [form().name]:  # type: ignore[attr-defined]
            offered.add(name)
            choices = [{key: value} for key in _CHOICES if key in form.model_fields for value in _CHOICES[key]]
            for choice in [{}, *choices]:
                made = form(name=name, **choice).as_optimizer()
                build_driver(made.name, made.learning_rate, made.settings)
    assert set(driver_names()) - set(LEARNING_RATES) <= offered


def test_drivers_on_the_page_are_what_a_run_is_submitted_with():
    page = (Path(__file__).parents[2] / "docs" / "prefect.md").read_text(encoding="utf-8")
    shown = re.findall(r"-p 'driver=(\{.*?\})'", page) + re.findall(r"`(\{\"name\": .*?\})`", page)
    names = [TypeAdapter(Driver).validate_json(text).as_optimizer().name for text in shown]
    assert set(names) == {"lbfgs", "adam", "slsqp", "trust-constr", "auto"}


def test_of_a_function_as_well_as_of_its_name():
    import jax.numpy as jnp

    import tesseract_flow as tf

    def bowl(center: float = 2.0):
        return tf.Problem({"x": jnp.zeros(1)}, lambda d: jnp.sum((d["x"] - center) ** 2), name="bowl")

    flow = flow_of(bowl, kind="check")
    assert flow.fn(center=1.0)["ok"]
