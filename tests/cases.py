"""A dozen small Tesseracts in closed form, one per kind of tree that a schema can have.

A case is a map in plain JAX and an example of its inputs; the Tesseract is made from the two. Tests state a property,
and run it over all of them. Between the differentiable inputs and outputs a case is a smooth function
`case.call` (through the Tesseract) and `case.plain` (without it) of one tree `case.x`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from tesseract_flow.autodiff import PlainOutput, apply_tesseract
from tesseract_flow.schema import ArrayField, DictField, Field, LeafField, ListField, ModelField, UnionField
from tesseract_flow.testing import FunctionTesseract


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A Tesseract and what it is known to compute.

    Attributes:
        fn: inputs -> outputs, in plain JAX.
        inputs: an example.
        input_fields, output_fields: what the schema says where the example does not tell it.
        rtol: relative tolerance that its precision allows.
        source: whom to ask instead of the Tesseract made from `fn`.
    """

    name: str
    fn: Callable[[Any], Any]
    inputs: dict[str, Any]
    input_fields: Mapping[str, Field] = dataclasses.field(default_factory=dict)
    output_fields: Mapping[str, Field] = dataclasses.field(default_factory=dict)
    rtol: float = 1e-12
    source: Any = None

    @functools.cached_property
    def tesseract(self) -> Any:
        if self.source is not None:
            return self.source
        return FunctionTesseract(
            self.fn, self.inputs, name=self.name, inputs=self.input_fields, outputs=self.output_fields
        )

    @property
    def x(self) -> Any:
        """The differentiable inputs, with None in the other places."""
        return eqx.filter(self.inputs, is_inexact)

    def call(self, x: Any) -> Any:
        """x -> differentiable outputs, through the Tesseract."""
        outputs = apply_tesseract(self.tesseract, self.full(x))
        # What stands for a text in traced code is a leaf here, as a text is.
        return eqx.filter(outputs, is_inexact, is_leaf=lambda leaf: isinstance(leaf, PlainOutput))

    def plain(self, x: Any) -> Any:
        """The same map in plain JAX."""
        return eqx.filter(self.fn(self.full(x)), is_inexact)

    def through(self, source: Any) -> Case:
        """The same case, asked through another handle."""
        return dataclasses.replace(self, source=source)

    def full(self, x: Any) -> Any:
        return eqx.combine(x, eqx.filter(self.inputs, is_inexact, inverse=True))

    def tangent(self, seed: int) -> Any:
        """A direction in the space of x."""
        return random_like(self.x, seed)

    def cotangent(self, seed: int) -> Any:
        return random_like(jax.eval_shape(self.plain, self.x), seed)


def is_inexact(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def random_like(tree: Any, seed: int) -> Any:
    """Normal numbers in the shapes and dtypes of a tree."""
    rng = np.random.default_rng(seed)

    def one(leaf: Any) -> jax.Array:
        real, imaginary = rng.normal(size=(2, *leaf.shape))
        is_complex = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
        return jnp.asarray(real + 1j * imaginary if is_complex else real, leaf.dtype)

    return jax.tree_util.tree_map(one, tree)


def _array(*values: float, dtype: Any = np.float64) -> jax.Array:
    return jnp.asarray(values, dtype)


def _scalar(value: float) -> jax.Array:
    return jnp.asarray(value, np.float64)


def _rosenbrock(i: Any) -> Any:
    return {"result": (i["a"] - i["x"]) ** 2 + i["b"] * (i["y"] - i["x"] ** 2) ** 2}


def _vector_add(i: Any) -> Any:
    return {"sum": i["scale"] * i["a"] + i["b"], "distance": jnp.sum((i["a"] - i["b"]) ** 2)}


def _nested(i: Any) -> Any:
    area = jnp.prod(i["mesh"]["points"], axis=1)
    return {
        "wing": {"area": area, "load": {"lift": jnp.sum(area) * i["flow"]["speed"] ** 2}},
        "drag": jnp.sin(i["flow"]["speed"]) * i["mesh"]["scale"],
    }


def _dict_of_arrays(i: Any) -> Any:
    return {
        "squares": {key: value**2 for key, value in i["parts"].items()},
        "total": sum(jnp.sum(jnp.sin(value)) for _, value in sorted(i["parts"].items())),
    }


def _list_of_arrays(i: Any) -> Any:
    first, second = i["knots"]
    return {"products": [jnp.outer(first, second), first**3], "mean": jnp.mean(second)}


def _static_between(i: Any) -> Any:
    power = {"linear": 1, "cubic": 3}[i["method"]] * i["order"]
    return {"y": i["a"] ** power + (i["b"] if i["shift"] else 0.0 * i["b"])}


def _integers(i: Any) -> Any:
    picked = i["x"][i["index"]] * jnp.where(i["mask"], 2.0, -1.0)
    return {"picked": picked, "next": i["index"] + 1, "is_large": i["x"] > 1.0}


def _plain_outputs(i: Any) -> Any:
    return {"status": "converged", "y": jnp.cos(i["x"]), "n_steps": 7, "remark": None, "layers": [i["x"] ** 2, "top"]}


def _single(i: Any) -> Any:
    return {"y": jnp.sqrt(i["x"]) * i["w"], "norm": jnp.sum(i["w"] ** 2)}


def _holomorphic(i: Any) -> Any:
    return {"w": i["z"] ** 2 * (1.0 + 2.0j), "p": jnp.sum(i["z"] ** 3)}


def _any_rank(i: Any) -> Any:
    return {"y": jnp.exp(i["x"]), "total": jnp.sum(i["x"] ** 2)}


def _optional(i: Any) -> Any:
    load = 0.0 * i["x"] if i["load"] is None else i["load"]
    return {"y": i["x"] ** 3 + load, "reaction": None}


def _zero_size(i: Any) -> Any:
    return {"y": i["x"] * 2.0, "total": jnp.sum(i["empty"]) + jnp.sum(i["x"] ** 2), "empty": jnp.sin(i["empty"])}


def _records(i: Any) -> Any:
    power = {"linear": 1, "square": 2}[i["kind"]]
    reports = [
        {"name": layer["name"].upper(), "area": None if layer["thickness"] is None else layer["thickness"] ** power}
        for layer in i["layers"]
    ]
    totals = {
        key: jnp.sum(weight * layer["thickness"]) + jnp.sum(jnp.sin(offset))
        for layer, offset in zip(i["layers"], i["offsets"], strict=True)
        if offset is not None
        for key, weight in layer["weights"].items()
    }
    return {"reports": reports, "totals": totals}


_FLOATS = ArrayField("float64", None, True)
_VECTOR = ArrayField("float64", (None,), True)
_MAYBE = UnionField((_VECTOR, LeafField("null")))
_NAME = LeafField("str")

CASES = [
    Case("rosenbrock", _rosenbrock, {"x": _scalar(-1.2), "y": _scalar(1.0), "a": _scalar(1.0), "b": _scalar(100.0)}),
    Case("vector_add", _vector_add, {"scale": _scalar(2.0), "a": _array(1.0, 2.0, 3.0), "b": _array(-1.0, 0.5, 4.0)}),
    Case(
        "nested",
        _nested,
        {
            "mesh": {"points": jnp.arange(1.0, 9.0).reshape(4, 2), "scale": _scalar(0.7)},
            "flow": {"speed": _array(0.5, 1.5, -2.0)},
        },
    ),
    Case(
        "dict_of_arrays",
        _dict_of_arrays,
        {"parts": {"wing": _array(1.0, 2.0), "tail.{left}": _array(0.3), "fin": _array(-1.0, 0.0, 1.0)}},
        input_fields={"parts": DictField(_VECTOR)},
        output_fields={"squares": DictField(_VECTOR)},
    ),
    Case("list_of_arrays", _list_of_arrays, {"knots": [_array(1.0, -2.0), _array(0.5, 1.5, 2.5)]}),
    Case(
        "static_between",
        _static_between,
        {"a": _array(1.0, 2.0), "method": "cubic", "order": 1, "shift": True, "tol": None, "b": _array(3.0, 4.0)},
    ),
    Case(
        "integers",
        _integers,
        {"x": _array(0.5, 1.5, 2.5), "index": jnp.array([2, 0]), "mask": jnp.array([True, False])},
    ),
    Case("plain_outputs", _plain_outputs, {"x": _array(0.1, 0.2)}),
    Case(
        "float32",
        _single,
        {"x": _array(1.0, 4.0, dtype=np.float32), "w": _array(0.5, -2.0, dtype=np.float32)},
        rtol=1e-5,
    ),
    Case("complex", _holomorphic, {"z": jnp.asarray([1.0 + 2.0j, -0.5j, 3.0 + 0.0j])}),
    Case("any_rank", _any_rank, {"x": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)}, {"x": _FLOATS}, {"y": _FLOATS}),
    Case(
        "optional",
        _optional,
        {"x": _array(1.0, 2.0), "load": None},
        {"load": _MAYBE},
    ),
    Case("zero_size", _zero_size, {"x": _array(1.0, 2.0), "empty": jnp.zeros((0, 3))}),
    Case(
        "records",
        _records,
        {
            "kind": "square",
            "layers": [
                {"name": "air", "thickness": None, "weights": {}},
                {"name": "steel", "thickness": _array(1.0, 2.0), "weights": {"a.b": _scalar(0.5), "c": _scalar(2.0)}},
            ],
            "offsets": [None, _array(0.1, 0.2, 0.3)],
        },
        {
            "layers": ListField(
                ModelField(
                    {"name": _NAME, "thickness": _MAYBE, "weights": DictField(ArrayField("float64", (), True))},
                    frozenset({"name", "thickness", "weights"}),
                )
            ),
            "offsets": ListField(_MAYBE),
        },
        {
            "reports": ListField(ModelField({"name": _NAME, "area": _MAYBE}, frozenset({"name", "area"}))),
            "totals": DictField(ArrayField("float64", (), True)),
        },
    ),
]
