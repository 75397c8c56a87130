"""Mixed trees both ways: what users have in their hands goes in, and every kind of leaf comes through JAX unharmed."""

from __future__ import annotations

import dataclasses
import enum
import types
from collections import OrderedDict, UserDict, namedtuple
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import pydantic
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.errors import InvalidInput, PlainValueUnknown
from tesseract_flow.schema import ArrayField, DictField, LeafField, ListField, ModelField, UnionField
from tesseract_flow.testing import FunctionTesseract
from tests.cases import CASES
from tests.helpers import Watched, assert_close, maybe_jit

eager_and_jit = pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
MIXED = [case for case in CASES if any(not eqx.is_array(leaf) for leaf in jax.tree_util.tree_leaves(case.inputs))]
MIXED += [case for case in CASES if case.name in ("integers", "plain_outputs", "optional")]

X = jnp.array([1.0, 2.0, 3.0])
VECTOR = ArrayField("float64", (None,), True)
MAYBE = UnionField((VECTOR, LeafField("null")))


class Mode(enum.Enum):
    SOFT = "soft"
    HARD = "hard"


class Order(enum.IntEnum):
    FIRST = 1
    SECOND = 2


MODE = LeafField("enum", ("soft", "hard"))
ORDER = LeafField("enum", (1, 2))


@pytest.fixture
def beam() -> Watched:
    """One field of every kind, and the sum over what is an array."""

    def fn(i: Any) -> Any:
        load = 0.0 if i["load"] is None else jnp.sum(i["load"] ** 2)
        factor = {"soft": 1.0, "hard": 2.0}[i["mode"]] * i["order"]
        parts = {name: jnp.sin(value) for name, value in i["parts"].items()}
        knots = [None if knot is None else knot**3 for knot in i["knots"]]
        total = factor * jnp.sum(i["mesh"]["points"]) + load
        return {"total": total, "parts": parts, "knots": knots, "mode": i["mode"], "tag": i["mesh"]["tag"]}

    mesh = ModelField({"points": VECTOR, "tag": LeafField("str")}, frozenset({"points", "tag"}))
    inputs = {
        "mesh": mesh,
        "mode": MODE,
        "order": ORDER,
        "load": MAYBE,
        "parts": DictField(VECTOR),
        "knots": ListField(MAYBE),
    }
    outputs = {"parts": DictField(VECTOR), "knots": ListField(MAYBE), "mode": MODE, "tag": LeafField("str")}
    return Watched(FunctionTesseract(fn, tree(X), name="beam", inputs=inputs, outputs=outputs))


def tree(x: Any, **changes: Any) -> dict[str, Any]:
    return {
        "mesh": {"points": x, "tag": "a"},
        "mode": "soft",
        "order": 1,
        "load": x,
        "parts": {"wing.{left}": x},
        "knots": [None, 2.0 * x],
    } | changes


def expected(x: Any) -> Any:
    return jnp.sum(x) + jnp.sum(x**2) + jnp.sum(jnp.sin(x)) + jnp.sum((2.0 * x) ** 3)


def loss(out: Any) -> Any:
    return out["total"] + jnp.sum(out["parts"]["wing.{left}"]) + jnp.sum(out["knots"][1])


# -------------------------------------------------------------------------------------------- containers and enums


class MeshModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    points: Any
    tag: str = "a"


class BeamModel(pydantic.BaseModel):
    mesh: MeshModel
    mode: Mode = Mode.SOFT
    order: Order = Order.FIRST
    load: Any
    parts: dict[str, Any]
    knots: tuple[Any, ...]
    hint: str = pydantic.Field("not sent", exclude=True)


@dataclasses.dataclass
class MeshData:
    points: Any
    tag: str = "a"


class MeshModule(eqx.Module):
    points: Any
    tag: str = eqx.field(static=True, default="a")


class MeshTuple(NamedTuple):
    points: Any
    tag: str = "a"


Pair = namedtuple("Pair", ["a", "b"])

FORMS = {
    "model": lambda x: BeamModel(
        mesh=MeshModel(points=x), load=x, parts={"wing.{left}": x}, knots=(None, 2.0 * x), hint="x"
    ),
    "model in a dict": lambda x: tree(x, mesh=MeshModel(points=x)),
    "dataclass": lambda x: tree(x, mesh=MeshData(x)),
    "equinox module": lambda x: tree(x, mesh=MeshModule(x)),
    "named tuple": lambda x: tree(x, mesh=MeshTuple(x), knots=Pair(None, 2.0 * x)),
    "proxy": lambda x: tree(x, mesh=types.MappingProxyType({"tag": "a", "points": x})),
    "user dict": lambda x: UserDict(tree(x, parts=OrderedDict({"wing.{left}": x}))),
    "tuple": lambda x: tree(x, knots=(None, 2.0 * x)),
    "enum members": lambda x: tree(x, mode=Mode.SOFT, order=Order.FIRST),
}


@pytest.mark.parametrize("form", FORMS)
@eager_and_jit
def test_containers_of_other_libraries(beam: Watched, form: str, jit: bool):
    got = maybe_jit(jax.value_and_grad(lambda x: loss(apply_tesseract(beam, FORMS[form](x)))), jit)(X)
    assert_close(got, jax.value_and_grad(expected)(X))
    (payload,) = beam.payloads("apply")
    sent = payload["inputs"]
    assert (type(sent["mesh"]), type(sent["knots"]), type(sent["mode"])) == (dict, list, str)
    assert sent.keys() == tree(X).keys() and sent["order"] == 1 and not isinstance(sent["order"], enum.Enum)


def test_calls_in_different_clothes_are_one_call(beam: Watched):
    def total(x: Any) -> Any:
        return sum(loss(apply_tesseract(beam, form(x))) for form in FORMS.values())

    assert_close(jax.jit(total)(X), len(FORMS) * expected(X), 1e-11)
    assert len(beam.payloads("apply")) == 1


def test_wrong_enum_members_and_tuples_for_arrays_are_refused(beam: Watched):
    class Other(enum.Enum):
        LIQUID = "liquid"

    with pytest.raises(InvalidInput, match=r"mode: expected 'soft' \| 'hard', got 'liquid'"):
        apply_tesseract(beam, tree(X, mode=Other.LIQUID))
    with pytest.raises(TypeError, match=r"mesh\.points: .*got a tuple.*jnp\.asarray"):
        apply_tesseract(beam, tree(X, mesh=MeshTuple((1.0, 2.0))))
    with pytest.raises(TypeError, match=r"parts\.\{a\}: .*got a list.*jnp\.asarray"):
        apply_tesseract(beam, tree(X, parts={"a": [1.0]}))
    assert not beam.requests


# ------------------------------------------------------------------------------------------- paths that survive


@pytest.mark.parametrize("first", [None, X], ids=["none", "constant"])
@eager_and_jit
def test_items_keep_their_index_when_others_are_not_differentiated(beam: Watched, first: Any, jit: bool):
    """Neither an empty item nor a closed-over one shifts those that follow."""

    def through(x: Any) -> Any:
        inputs = tree(X, knots=[first, x, first, x**2], parts={"a": X, "b.c": x})
        return jnp.sum(apply_tesseract(beam, inputs)["knots"][3])

    assert_close(maybe_jit(jax.grad(through), jit)(X), 6.0 * X**5)
    (payload,) = beam.payloads("vector_jacobian_product")
    assert payload["vjp_inputs"] == ["knots.[1]", "knots.[3]", "parts.{b.c}"]
    assert payload["vjp_outputs"] == ["knots.[3]"]
    assert [knot is None for knot in payload["inputs"]["knots"]] == [first is None, False, first is None, False]


def test_dict_keys_are_escaped_in_paths(beam: Watched):
    key = r"a.{b}\c"
    slope = jax.grad(lambda x: jnp.sum(apply_tesseract(beam, tree(X, parts={key: x}))["parts"][key]))(X)
    assert_close(slope, jnp.cos(X))
    (payload,) = beam.payloads("vector_jacobian_product")
    assert payload["vjp_inputs"] == payload["vjp_outputs"] == [r"parts.{a.\{b\}\\c}"]


@eager_and_jit
def test_lists_and_dicts_of_other_lengths_are_other_calls(beam: Watched, jit: bool):
    def total(knots: Any, parts: Any) -> Any:
        out = apply_tesseract(beam, tree(X, knots=knots, parts=parts))
        return sum(jnp.sum(leaf) for leaf in jax.tree_util.tree_leaves((out["knots"], out["parts"])))

    run = maybe_jit(total, jit)
    for knots, parts in ([X], {}), ([], {"a": X}), ([X, None, X], {"a": X, "b": X}):
        arrays = [knot for knot in knots if knot is not None]
        want = sum((jnp.sum(k**3) for k in arrays), 0.0) + sum((jnp.sum(jnp.sin(p)) for p in parts.values()), 0.0)
        assert_close(run(knots, parts), jnp.asarray(want))


def shape_of(kind: str, field: str) -> ModelField:
    kinds = LeafField("enum", (kind,))
    return ModelField({"kind": kinds, field: VECTOR}, frozenset({"kind", field}))


@eager_and_jit
def test_unions_are_decided_by_the_value(jit: bool):
    """The same name of a field leads to other arrays, and a number beside an array stays a number."""
    shapes = UnionField((shape_of("sphere", "radius"), shape_of("box", "sides")))
    number = UnionField((LeafField("float"), VECTOR))

    def fn(i: Any) -> Any:
        array = i["shape"]["radius"] if i["shape"]["kind"] == "sphere" else 2.0 * i["shape"]["sides"]
        return {"y": array**2 * i["factor"]}

    sphere = {"shape": {"kind": "sphere", "radius": X}, "factor": 3.0}
    handle = Watched(FunctionTesseract(fn, sphere, inputs={"shape": shapes, "factor": number}))

    def total(inputs: Any) -> Any:
        return jnp.sum(apply_tesseract(handle, inputs)["y"])

    for make, slope, paths in (
        (lambda x: sphere | {"shape": {"kind": "sphere", "radius": x}}, 6.0 * X, ["shape.radius"]),
        (lambda x: {"shape": {"kind": "box", "sides": x}, "factor": 3}, 24.0 * X, ["shape.sides"]),
        (lambda x: {"shape": {"kind": "box", "sides": X}, "factor": x}, 4.0 * X**2, ["factor"]),
    ):
        assert_close(maybe_jit(jax.grad(lambda x, make=make: total(make(x))), jit)(X), slope)
        assert handle.payloads("vector_jacobian_product")[-1]["vjp_inputs"] == paths
    with pytest.raises(TypeError, match=r"'factor'.*traced by JAX(?s:.*)Differentiable\[Float64\]"):
        maybe_jit(jax.grad(lambda f: total(sphere | {"factor": f})), jit)(2.0)


# --------------------------------------------------------------------------------------------- equinox, whole trees


@pytest.mark.parametrize("case", MIXED, ids=lambda case: case.name)
def test_filtered_transformations_over_whole_input_trees(case: Any):
    """Text, None, flags and integers stay in the tree; equinox parts it."""

    def squares(fn: Any) -> Any:
        def run(inputs: Any) -> Any:
            leaves = jax.tree_util.tree_leaves(eqx.filter(fn(inputs), eqx.is_inexact_array))
            return sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in leaves)

        return run

    got = eqx.filter_jit(eqx.filter_value_and_grad(squares(lambda i: apply_tesseract(case.tesseract, i))))(case.inputs)
    assert_close(got, eqx.filter_value_and_grad(squares(case.fn))(case.inputs), 10 * case.rtol)


class Design(eqx.Module):
    inputs: dict[str, Any]
    solver: Any


def test_modules_that_hold_trees_and_handles(beam: Watched):
    solver = beam.tesseract

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def run(design: Design) -> Any:
        return loss(apply_tesseract(design.solver, design.inputs))

    value, slope = run(Design(tree(X, mode=Mode.HARD, order=Order.SECOND), solver))
    assert_close(value, expected(X) + 3.0 * jnp.sum(X))
    assert slope.solver is solver
    assert slope.inputs["mode"] is None
    assert_close(slope.inputs["mesh"]["points"], jnp.full(3, 4.0))
    assert slope.inputs["knots"][0] is None


# ------------------------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.grad, jax.vmap], ids=["eager", "jit", "grad", "vmap"])
def test_plain_outputs_pass_through(beam: Watched, transform: Any):
    seen: list[Any] = []

    def run(x: Any) -> Any:
        seen.append(apply_tesseract(beam, tree(x)))
        return loss(seen[-1])

    transform(run)(jnp.stack([X, X]) if transform is jax.vmap else X)
    if transform is jax.jit or transform is jax.vmap:  # a text is not known while JAX traces, and no guess
        with pytest.raises(PlainValueUnknown, match="'mode'"):
            bool(seen[0]["mode"] == "soft")
        return
    assert (seen[0]["mode"], seen[0]["tag"], seen[0]["knots"][0]) == ("soft", "a", None)


# ------------------------------------------------------------------------------------------------- foreign arrays


class Wrapped:
    """An array by JAX's protocol for foreign types, and a pytree that JAX would take apart."""

    def __init__(self, value: Any):
        self.value = value

    def __jax_array__(self) -> Any:
        return self.value


jax.tree_util.register_pytree_node(Wrapped, lambda w: ((w.value,), None), lambda _, leaves: Wrapped(*leaves))


@eager_and_jit
def test_objects_that_offer_themselves_to_jax(beam: Watched, jit: bool):
    wrapped = lambda x: tree(x, load=Wrapped(x), mesh={"points": Wrapped(x), "tag": "a"})  # noqa: E731
    got = maybe_jit(jax.value_and_grad(lambda x: loss(apply_tesseract(beam, wrapped(x)))), jit)(X)
    assert_close(got, jax.value_and_grad(expected)(X))
