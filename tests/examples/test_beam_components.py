"""The three components of the beam, against the closed form, textbook matrices, differences and adjoint identities.

Properties of the functions are checked on the modules themselves; what a client sees (schemas, validation, errors) is
checked through `tesseract_core`, in process.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from tesseract_core import Tesseract
from tesseract_core.sdk.api_parse import TesseractConfig

from examples.beam import closed_form

BEAM = Path(closed_form.__file__).parent
NAMES = ("section", "fem", "compliance")

# problems.md: n -> least compliance, with the lower bound active in the last elements from n = 1000 on.
OPTIMA = {50: 23762.153678, 1000: 23710.856198, 10_000: 23710.731392, 200_000: 23710.730150}


def load(name: str) -> ModuleType:
    """A component's module under a name of its own (the three files are all called `tesseract_api.py`)."""
    spec = importlib.util.spec_from_file_location(f"beam_{name}_api", BEAM / name / "tesseract_api.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODULES = {name: load(name) for name in NAMES}
section, fem, compliance = (MODULES[name] for name in NAMES)


@pytest.fixture(scope="module")
def served() -> dict[str, Tesseract]:
    return {name: Tesseract.from_tesseract_api(module) for name, module in MODULES.items()}


def displacement(inertia: np.ndarray, **settings: float) -> np.ndarray:
    return fem.apply(fem.InputSchema(inertia=inertia, **settings)).displacement


def fem_pullback(inertia: np.ndarray, d_bar: np.ndarray, **settings: float) -> np.ndarray:
    inputs = fem.InputSchema(inertia=inertia, **settings)
    return fem.vector_jacobian_product(inputs, {"inertia"}, {"displacement"}, {"displacement": d_bar})["inertia"]


def total(h: np.ndarray, *, width: float = 0.1, length: float = 1.0, tip_load: float = -1.0, **fem_settings: float):
    """Compliance and its gradient by chaining the three components by hand, without any of our machinery."""
    s_in = section.InputSchema(thickness=h, width=width, length=length)
    f_in = fem.InputSchema(inertia=section.apply(s_in).inertia, length=length, tip_load=tip_load, **fem_settings)
    c_in = compliance.InputSchema(displacement=fem.apply(f_in).displacement, tip_load=tip_load)
    value = compliance.apply(c_in).compliance

    bar: dict[str, Any] = {"compliance": np.float64(1.0)}
    bar = compliance.vector_jacobian_product(c_in, {"displacement"}, {"compliance"}, bar)
    bar = fem.vector_jacobian_product(f_in, {"inertia"}, {"displacement"}, bar)
    bar = section.vector_jacobian_product(s_in, {"thickness"}, {"inertia"}, bar)
    return float(value), bar["thickness"]


def random_thickness(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.02, 0.5, n)


SETTINGS = dict(width=0.3, length=2.5, tip_load=7.0, youngs_modulus=210.0)


# ------------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("n", OPTIMA)
def test_published_optimum_at_every_size(n):
    h = closed_form.optimal_thickness(n)
    assert closed_form.volume(h) == pytest.approx(0.01, rel=1e-13)
    assert h.min() >= 1e-2
    assert (h.min() == 1e-2) == (n > 50)
    assert closed_form.compliance(h) == pytest.approx(OPTIMA[n], rel=1e-10)
    value, gradient = total(h)
    assert value == pytest.approx(OPTIMA[n], rel=1e-10)
    np.testing.assert_allclose(gradient, closed_form.gradient(h), rtol=1e-10)


def test_published_optimal_thickness():
    h = closed_form.optimal_thickness()
    np.testing.assert_allclose(h[[0, 24, 47, 49]], [0.1491575, 0.1070589, 0.0336316, 0.0161086], atol=1e-7)


def test_uniform_beam_has_the_textbook_compliance():
    h = np.full(50, 0.1)
    assert closed_form.compliance(h) == pytest.approx(40_000.0, rel=1e-13)
    assert total(h)[0] == pytest.approx(40_000.0, rel=1e-13)


@pytest.mark.parametrize("n", [1, 2, 37])
@pytest.mark.parametrize("seed", [0, 1])
def test_chain_agrees_with_closed_form_in_other_units(n, seed):
    h = random_thickness(n, seed)
    value, gradient = total(h, **SETTINGS)
    assert value == pytest.approx(closed_form.compliance(h, **SETTINGS), rel=1e-12)
    np.testing.assert_allclose(gradient, closed_form.gradient(h, **SETTINGS), rtol=1e-10)


# -------------------------------------------------------------------------------------------------- closed form


def test_closed_form_gradient_is_the_slope_of_its_compliance():
    h, eps = random_thickness(6, 3), 1e-6
    steps = eps * np.eye(6)
    slope = [(closed_form.compliance(h + e) - closed_form.compliance(h - e)) / (2 * eps) for e in steps]
    np.testing.assert_allclose(slope, closed_form.gradient(h), rtol=1e-7)


@pytest.mark.parametrize(("lower", "upper"), [(1e-2, 10.0), (0.06, 10.0), (1e-2, 0.12), (0.06, 0.12)])
def test_optimum_satisfies_the_optimality_conditions(lower, upper):
    """One price of volume for every element between its bounds; cheaper at the lower, dearer at the upper bound."""
    h = closed_form.optimal_thickness(80, lower=lower, upper=upper)
    assert closed_form.volume(h) == pytest.approx(0.01, rel=1e-13)
    price = -closed_form.gradient(h)
    is_free = (h > lower) & (h < upper)
    assert is_free.sum() > 1
    np.testing.assert_allclose(price[is_free], price[is_free][0], rtol=1e-12)
    assert np.all(price[h == lower] <= price[is_free][0] * (1 + 1e-12))
    assert np.all(price[h == upper] >= price[is_free][0] * (1 - 1e-12))


def test_bounds_that_leave_one_design():
    np.testing.assert_allclose(closed_form.optimal_thickness(7, lower=0.1), 0.1, rtol=1e-15)
    np.testing.assert_allclose(closed_form.optimal_thickness(7, upper=0.1), 0.1, rtol=1e-15)


@pytest.mark.parametrize("kwargs", [{"lower": 0.2}, {"upper": 0.05}, {"lower": 0.0}, {"n": 0}])
def test_impossible_requests_are_refused(kwargs):
    with pytest.raises(ValueError, match=r"mean thickness|at least one element"):
        closed_form.optimal_thickness(**kwargs)


# ---------------------------------------------------------------------------------------------------------- fem


def test_uniform_cantilever_follows_the_elastic_curve():
    n, settings = 9, dict(youngs_modulus=3.0, length=2.0, tip_load=5.0)
    stiffness = 3.0 * 0.7
    s = np.linspace(0.0, 2.0, n + 1)
    d = displacement(np.full(n, 0.7), **settings)
    np.testing.assert_allclose(d[:, 0], 5.0 * s**2 * (6.0 - s) / (6.0 * stiffness), rtol=1e-13)
    np.testing.assert_allclose(d[:, 1], 5.0 * s * (4.0 - s) / (2.0 * stiffness), rtol=1e-13)


def test_equals_the_assembled_textbook_stiffness():
    n, inertia = 8, random_thickness(8, 5)
    e, size, load = 3.0, 2.0 / 8, 5.0
    element = np.array(
        [
            [12.0, 6 * size, -12.0, 6 * size],
            [6 * size, 4 * size**2, -6 * size, 2 * size**2],
            [-12.0, -6 * size, 12.0, -6 * size],
            [6 * size, 2 * size**2, -6 * size, 4 * size**2],
        ]
    )
    stiffness, f = np.zeros((2 * n + 2, 2 * n + 2)), np.zeros(2 * n + 2)
    for i in range(n):
        stiffness[2 * i : 2 * i + 4, 2 * i : 2 * i + 4] += e * inertia[i] / size**3 * element
    f[-2] = load
    expected = np.zeros_like(f)
    expected[2:] = np.linalg.solve(stiffness[2:, 2:], f[2:])
    d = displacement(inertia, youngs_modulus=e, length=2.0, tip_load=load)
    np.testing.assert_allclose(d.ravel(), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("settings", [{}, dict(youngs_modulus=3.0, length=2.0, tip_load=5.0)])
def test_fem_adjoint_against_central_differences_entry_by_entry(settings):
    inertia = random_thickness(6, 1)
    d_bar = np.random.default_rng(2).normal(size=(7, 2))
    eps = 1e-6
    slope = [
        np.vdot(d_bar, displacement(inertia + e, **settings) - displacement(inertia - e, **settings)) / (2 * eps)
        for e in eps * np.eye(6)
    ]
    np.testing.assert_allclose(fem_pullback(inertia, d_bar, **settings), slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [1, 50, 1000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fem_adjoint_identity(n, seed):
    """<w, D d(I) t> = <D d(I)^T w, t>, with D d(I) t as a central difference along t."""
    rng = np.random.default_rng(seed)
    inertia, t = rng.uniform(0.5, 2.0, n), rng.normal(size=n)
    w = rng.normal(size=(n + 1, 2))
    eps = 1e-4 / np.abs(t).max()
    d_dot = (displacement(inertia + eps * t) - displacement(inertia - eps * t)) / (2 * eps)
    scale = np.linalg.norm(w) * np.linalg.norm(d_dot)
    assert np.vdot(w, d_dot) == pytest.approx(np.vdot(fem_pullback(inertia, w), t), abs=float(1e-6 * scale))


def test_clamped_node_carries_no_sensitivity():
    inertia, d_bar = random_thickness(4, 0), np.zeros((5, 2))
    d_bar[0] = 1e9
    assert np.array_equal(displacement(inertia)[0], [0.0, 0.0])
    assert np.array_equal(fem_pullback(inertia, d_bar), np.zeros(4))


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("endpoint", ["apply", "vector_jacobian_product"])
def test_fem_refuses_elements_without_stiffness(served, bad, endpoint):
    inputs = {"inertia": np.array([1.0, 2.0, bad, 4.0])}
    extra = () if endpoint == "apply" else (["inertia"], ["displacement"], {"displacement": np.ones((5, 2))})
    with pytest.raises(RuntimeError, match=r"positive and finite, but 1 of 4 elements are not: \[2\] = "):
        getattr(served["fem"], endpoint)(inputs, *extra)


def test_negative_thickness_is_refused_where_it_does_harm():
    h = np.array([0.1, -0.1, 0.1])
    inertia = section.apply(section.InputSchema(thickness=h)).inertia
    with pytest.raises(ValueError, match=r"\[1\] = .*keep the thickness above a positive bound"):
        displacement(inertia)


def test_long_lists_of_bad_elements_are_cut():
    with pytest.raises(ValueError, match=r"1000 of 1000 elements .*\[4\] = 0, \.\.\.") as caught:
        displacement(np.zeros(1000))
    assert len(str(caught.value)) < 400


def test_fem_offers_reverse_mode_only(served):
    assert "vector_jacobian_product" in served["fem"].available_endpoints
    assert not {"jacobian", "jacobian_vector_product"} & set(served["fem"].available_endpoints)


# ---------------------------------------------------------------------------- derivatives of the other two


def test_section_derivatives():
    h = random_thickness(5, 8)
    rng = np.random.default_rng(9)
    t, w, v = rng.normal(size=5), rng.normal(size=5), rng.normal()
    inputs = section.InputSchema(thickness=h, width=0.3, length=2.0)
    both = {"inertia", "volume"}
    out_dot = section.jacobian_vector_product(inputs, {"thickness"}, both, {"thickness": t})
    h_bar = section.vector_jacobian_product(inputs, {"thickness"}, both, {"inertia": w, "volume": v})["thickness"]
    assert np.vdot(w, out_dot["inertia"]) + v * out_dot["volume"] == pytest.approx(np.vdot(h_bar, t), rel=1e-13)

    eps = 1e-6
    high, low = (section.apply(inputs.model_copy(update={"thickness": h + s * eps * t})) for s in (1, -1))
    np.testing.assert_allclose((high.inertia - low.inertia) / (2 * eps), out_dot["inertia"], rtol=1e-7)
    assert (high.volume - low.volume) / (2 * eps) == pytest.approx(out_dot["volume"], rel=1e-7)


@pytest.mark.parametrize("wanted", ["inertia", "volume"])
def test_section_outputs_are_independent(wanted):
    inputs = section.InputSchema(thickness=random_thickness(4, 0))
    out_dot = section.jacobian_vector_product(inputs, {"thickness"}, {wanted}, {"thickness": np.ones(4)})
    assert set(out_dot) == {wanted}
    w = np.ones_like(out_dot[wanted])
    h_bar = section.vector_jacobian_product(inputs, {"thickness"}, {wanted}, {wanted: w})["thickness"]
    assert np.vdot(w, out_dot[wanted]) == pytest.approx(h_bar.sum(), rel=1e-13)


def test_compliance_derivatives():
    rng = np.random.default_rng(4)
    d, t = rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
    inputs = compliance.InputSchema(displacement=d, tip_load=3.0)
    slope = compliance.jacobian_vector_product(inputs, {"displacement"}, {"compliance"}, {"displacement": t})
    d_bar = compliance.vector_jacobian_product(
        inputs, {"displacement"}, {"compliance"}, {"compliance": np.float64(2.0)}
    )["displacement"]
    assert slope["compliance"] == pytest.approx(3.0 * t[-1, 0], rel=1e-15)
    assert 2.0 * slope["compliance"] == pytest.approx(np.vdot(d_bar, t), rel=1e-15)
    moved = compliance.apply(compliance.InputSchema(displacement=d + t, tip_load=3.0)).compliance
    assert moved - compliance.apply(inputs).compliance == pytest.approx(slope["compliance"], rel=1e-13)


# ------------------------------------------------------------------------------------------ what a client sees


INPUTS = {
    "section": {"thickness": np.linspace(0.1, 0.2, 5), "width": 0.2},
    "fem": {"inertia": np.linspace(1.0, 2.0, 5), "tip_load": -2.0},
    "compliance": {"displacement": np.ones((6, 2))},
}


@pytest.mark.parametrize("name", NAMES)
def test_abstract_eval_tells_what_apply_returns(served, name):
    inputs = INPUTS[name]
    abstract = {
        key: {"shape": list(x.shape), "dtype": str(x.dtype)} if isinstance(x, np.ndarray) else x
        for key, x in inputs.items()
    }
    promised = served[name].abstract_eval(abstract)
    outputs = served[name].apply(inputs)
    assert {k: (tuple(p["shape"]), p["dtype"]) for k, p in promised.items()} == {
        k: (x.shape, str(x.dtype)) for k, x in outputs.items()
    }


@pytest.mark.parametrize(
    ("name", "field"), [("section", "thickness"), ("fem", "inertia"), ("compliance", "displacement")]
)
def test_empty_arrays_are_refused(served, name, field):
    shape = (0, 2) if name == "compliance" else (0,)
    with pytest.raises(RuntimeError, match="is empty"):
        served[name].apply({field: np.zeros(shape)})


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("section", {"width": 0.0}),
        ("section", {"length": -1.0}),
        ("fem", {"youngs_modulus": 0.0}),
        ("fem", {"inertia": np.ones((2, 2))}),
        ("compliance", {"displacement": np.ones((3, 3))}),
    ],
)
def test_schema_refuses_what_makes_no_beam(served, name, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        served[name].apply({**INPUTS[name], **wrong})


@pytest.mark.parametrize("name", NAMES)
def test_build_configuration(name):
    config = TesseractConfig(**yaml.safe_load((BEAM / name / "tesseract_config.yaml").read_text()))
    assert config.name == name
    assert config.description
    requirements = (BEAM / name / "tesseract_requirements.txt").read_text()
    assert "numpy" in requirements
    assert ("scipy" in requirements) == ("scipy" in (BEAM / name / "tesseract_api.py").read_text())
