"""Models become dicts, containers plain ones, and arrays stay arrays."""

from __future__ import annotations

import dataclasses
import enum
import warnings
from typing import Annotated, Any, Literal, NamedTuple, Optional

import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    RootModel,
    computed_field,
    field_serializer,
    model_serializer,
    model_validator,
)

from tesseract_flow.derivatives import as_tree

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pydantic's and tesseract-core's remarks about themselves
    from tesseract_core.runtime import Array, Differentiable, Float32, Float64


class Inner(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    x: np.ndarray


class Wrapped(RootModel[list[float]]):
    pass


class Pair(NamedTuple):
    left: Any
    right: Any


def test_containers_become_plain_and_arrays_stay() -> None:
    class Items(list):
        pass

    tree = as_tree({"models": Items([Inner(x=np.ones(2))]), "pair": Pair(Wrapped([3.0]), 1), "none": None})
    assert type(tree["models"]) is list
    assert type(tree["pair"]) is Pair
    assert tree["pair"] == ([3.0], 1)
    assert tree["models"][0]["x"].tolist() == [1.0, 1.0]
    assert tree["none"] is None


def test_what_offers_itself_as_an_array_becomes_one_and_what_jax_holds_stays() -> None:
    class Offers:
        shape = (2,)

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return np.ones(2)

    held = jnp.ones(2)
    tree = as_tree([Offers(), held, Inner])
    assert type(tree[0]) is np.ndarray
    assert tree[1] is held
    assert tree[2] is Inner


# Models are read by their fields only where `model_dump` would have said the same.


class Flow(BaseModel):
    u: Differentiable[Array[(None, 2), Float64]]  # pyright: ignore[reportInvalidTypeForm]
    fixed: Array[(2,), Float32]  # pyright: ignore[reportInvalidTypeForm]
    speed: Differentiable[Float64]  # pyright: ignore[reportInvalidTypeForm]
    n: int = 3
    name: str = "flow"
    scheme: Literal["upwind", 2] = "upwind"
    is_steady: bool = True
    factor: float | None = None
    maybe: Array[(None,), Float64] | None = None  # pyright: ignore[reportInvalidTypeForm]


class Faster(Flow):
    more: int = 1


class Nested(BaseModel):
    model_config = ConfigDict(validate_default=True)

    flow: Flow
    renamed: int = Field(default=4, serialization_alias="other")
    maybe: Optional[Faster] = None  # noqa: UP045 -- both spellings of a union

    @model_validator(mode="after")
    def nothing(self) -> Nested:
        return self


def flow(kind: type[Flow] = Flow, **others: Any) -> Any:
    values: dict[str, Any] = {"u": np.arange(4.0).reshape(2, 2), "fixed": np.ones(2, np.float32), "speed": 2.0}
    return kind(**values, **others)


def slowly(model: Any) -> Any:
    return as_tree(model.model_dump())


def assert_same(tree: Any, expected: Any) -> None:
    assert type(tree) is type(expected)
    if isinstance(tree, dict):
        assert tree.keys() == expected.keys()
        for key, value in tree.items():
            assert_same(value, expected[key])
    elif isinstance(tree, list | tuple):
        assert len(tree) == len(expected)
        for item, other in zip(tree, expected, strict=True):
            assert_same(item, other)
    elif isinstance(tree, np.ndarray):
        assert (tree.dtype, tree.shape, tree.tolist()) == (expected.dtype, expected.shape, expected.tolist())
    else:
        assert tree == expected


@pytest.mark.parametrize(
    "model",
    [flow(), flow(factor=0.5, maybe=np.ones(3), scheme=2), Nested(flow=flow(), maybe=flow(Faster, n=7))],
    ids=["plain", "filled in", "nested"],
)
def test_models_of_plain_fields_are_read_without_model_dump(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = slowly(model)
    monkeypatch.setattr(BaseModel, "model_dump", refuse)
    assert_same(as_tree(model), expected)


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("dumped")


refuse.__module__ = "pydantic.main"  # as that of the function that it stands for


class Upper(Flow):
    @field_serializer("name")
    def shout(self, name: str) -> str:
        return name.upper()


class Whole(Flow):
    @model_serializer
    def whole(self) -> dict[str, Any]:
        return {"everything": 1}


class Computed(Flow):
    @computed_field
    def twice(self) -> int:
        return 2 * self.n


class Secret(Flow):
    secret: int = Field(1, exclude=True)


class Open(Flow):
    model_config = ConfigDict(extra="allow")


class Aliased(Flow):
    model_config = ConfigDict(serialize_by_alias=True)
    renamed: int = Field(1, serialization_alias="other")


class Overridden(Flow):
    def model_dump(self, **options: Any) -> dict[str, Any]:
        return {**super().model_dump(**options), "n": 17}


class Written(Flow):
    text: Annotated[int, PlainSerializer(lambda value: str(value))] = 5


class Size(enum.IntEnum):
    SMALL = 1


class Twice(BaseModel):
    left: Flow
    right: Flow


class Tree(BaseModel):
    flow: Flow
    branches: list[Tree] = []
    stem: Tree | None = None


@dataclasses.dataclass
class Point:
    x: float


class Others(Flow):
    size: Size = Size.SMALL
    point: Point = Point(1.0)
    many: list[int] = [1, 2]
    pair: tuple[int, str] = (1, "a")
    anything: Any = Point(2.0)
    wrapped: Wrapped = Wrapped([3.0])
    any_shape: Array[..., Float64] = np.ones((1, 2))  # pyright: ignore[reportInvalidTypeForm, reportAssignmentType]


@pytest.mark.parametrize(
    "model",
    [
        *(flow(kind) for kind in (Upper, Whole, Computed, Secret, Open, Aliased, Overridden, Written, Others, Faster)),
        flow(Open, more=[1]),
        Twice(left=flow(), right=flow(n=4)),
        Tree(flow=flow(), branches=[Tree(flow=flow())], stem=Tree(flow=flow(n=4))),
    ],
    ids=lambda model: type(model).__name__,
)
def test_what_a_model_says_about_its_dump_is_heard(model: Any) -> None:
    assert_same(as_tree(model), slowly(model))
    assert_same(as_tree({"model": model}), {"model": slowly(model)})


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize(
    "name, value",
    [
        ("u", np.ones((3, 2), np.float32)),  # made what the schema says
        ("u", [[1, 2]]),
        ("u", jnp.ones((1, 2))),
        ("u", np.ones((4, 2))[::2]),
        ("fixed", np.ones(1, np.float32)),
        ("speed", 2),
        ("speed", np.float32(2.0)),
        ("speed", np.array(2.0)),
        ("n", True),
        ("n", np.int64(3)),
        ("name", 3),
        ("scheme", "central"),
        ("scheme", np.ones(2)),
        ("is_steady", 1),
        ("factor", 1),
        ("maybe", np.ones(2, np.float32)),
        ("unknown", 1),
    ],
)
def test_fields_that_were_overwritten_are_dumped(name: str, value: Any) -> None:
    """Nothing is validated on assignment, and dumping arrays makes up for it."""
    model = flow()
    model.__dict__[name] = value
    assert_same(as_tree(model), slowly(model))


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("part", [flow(Faster), {"n": 1}, None], ids=["subclass", "dict", "none"])
def test_parts_of_another_class_are_dumped_as_the_one_that_was_declared(part: Any) -> None:
    model = Nested(flow=flow())
    model.flow = part
    assert_same(as_tree(model), slowly(model))


def test_values_that_model_dump_warns_of_are_warned_of() -> None:
    model = flow()
    model.__dict__["n"] = "three"
    with pytest.warns(UserWarning, match="Pydantic serializer warnings"):
        assert as_tree(model)["n"] == "three"


def test_what_tesseract_core_refuses_to_dump_is_refused() -> None:
    model = flow()
    model.u = np.ones(3)
    with pytest.raises(Exception, match="wrong number of dimensions"):
        as_tree(model)


def test_incomplete_models_are_dumped() -> None:
    model = Flow.model_construct(n=3)
    assert as_tree(model) == model.model_dump()
