"""What a pipeline is, as data: the same from Python and from YAML.

Here: the models, which say what may be written where. Not here: whether names lead somewhere (`wiring`), what comes out
of a YAML file (`document`), and how it runs (`pipeline`). The one idea: whoever receives a value says where it comes
from, so what belongs to a node stands with the node.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

NAME = r"[A-Za-z_][A-Za-z0-9_-]*"
Name = Annotated[str, Field(pattern=f"^{NAME}$")]
Coupling = Literal["mdf", "idf"]


class Part(BaseModel):
    """What the models have in common: nothing is accepted that nobody reads."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, populate_by_name=True)


class Connection(Part):
    """Where a value comes from, and what is done with it on the way: in the order of the attributes.

    Exactly one of `from`, `value` and `expression` is given. A text alone is short for `from`, a number or a list for
    `value`.

    Attributes:
        source: a pipeline's input by its name, or `node.path`: an output of a node, as the protocol writes paths
            (`fem.displacement`, `mesh.parts.{wing}.[0]`). Written `from` in files and dictionaries.
        value: a constant.
        expression: arithmetic over such sources, such as `x**2 + y1.y1 + exp(-y2.y2)`; see `expressions`.
        select: which entries of an array: an index, or indices and slices as NumPy writes them (`":, 0"`, `"1:3"`).
        rename: of a group of values (a dictionary) old keys → new keys.
        reshape: the new shape; -1 once for what is left. Also makes an array of a scalar: `[1]`.
        from_units: the unit in which it comes, where the source does not say its own.
        units: the unit in which it arrives. Converted from that in which it comes.
        scale, offset: arrives as value · scale + offset: a number, or an array that broadcasts to the value.
    """

    source: str | None = Field(default=None, alias="from")
    value: Any = None
    expression: str | None = None
    select: int | str | list[int] | None = None
    rename: dict[str, str] | None = None
    reshape: list[int] | None = None
    from_units: str | None = None
    units: str | None = None
    scale: Any = None
    offset: Any = None

    @model_validator(mode="after")
    def _one_origin(self) -> Connection:
        given = [name for name in ("source", "value", "expression") if getattr(self, name) is not None]
        if len(given) != 1:
            names = ", ".join("from" if name == "source" else name for name in given) or "none of them"
            raise ValueError(f"takes exactly one of from, value and expression; received {names}")
        return self


def _as_connection(value: Any) -> Any:
    if isinstance(value, str):
        return {"from": value}
    return value if isinstance(value, Mapping | Connection) or value is None else {"value": value}


Feed = Annotated[Connection, BeforeValidator(_as_connection)]


class Filled(Part):
    """An array with one value everywhere.

    Attributes:
        fill: the value.
        shape: of the array.
    """

    fill: float
    shape: list[Annotated[int, Field(ge=0)]]


def _as_start(value: Any) -> Any:
    """What a search may begin at, with arrays where the description has words for them."""
    if isinstance(value, Mapping):
        try:
            filled = Filled.model_validate(value)
        except ValidationError:
            raise _no_start(value) from None
        return np.full(filled.shape, filled.fill)
    if isinstance(value, list | tuple):
        try:
            array = np.asarray(value)
        except ValueError:
            raise _no_start(value) from None
        if array.dtype.kind not in "biufc":
            raise _no_start(value)
        return array
    if not isinstance(value, str | int | float | complex) and not hasattr(value, "dtype"):
        raise _no_start(value)
    return value


def _no_start(value: Any) -> ValueError:
    return ValueError(
        "expected a number, (nested) lists of numbers, {fill: 1.0, shape: [3]}, or the name of an input or an output "
        f"outside of the group; received {value!r}"
    )


Start = Annotated[Any, BeforeValidator(_as_start)]


class Input(Part):
    """An input of the pipeline.

    Attributes:
        shape, dtype: what it has to be given with; None, or no word: not known. For `check` and pictures they stand in
            for values, numbers of 64 bits where no dtype is said. Under `vmap` they are those of one element.
        units: the unit in which it is given.
    """

    shape: list[Annotated[int, Field(ge=0)]] | None = None
    dtype: str = "float64"
    units: str | None = None

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, dtype: str) -> str:
        try:
            jnp.dtype(dtype)
        except TypeError:
            raise ValueError(f"{dtype!r} is no dtype; float64, int32 and bool are some") from None
        return dtype


class Node(Part):
    """One step: a Tesseract or a JAX function.

    Attributes:
        tesseract: a handle, a URL, a list of URLs, or a path to a component (in a file: from the file's folder).
        function: a JAX function, or `file.py:function` or `package.module:function`. It is called with its inputs by
            keyword; what it returns, an array or a tree of them, are its outputs.
        inputs: path of an input → where its value comes from.
        units: path of an output → the unit in which it is given.
        options: for `open_tesseract`, where the Tesseract is given as text: `derive`, `cache`, `encoding`, ...
        vmap_method, materialize_jacobian, nan_policy: as in `apply_tesseract`.
    """

    tesseract: Any = None
    function: Callable[..., Any] | str | None = None
    inputs: dict[str, Feed] = Field(default_factory=dict)
    units: dict[str, str] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    vmap_method: str | None = None
    materialize_jacobian: bool | None = None
    nan_policy: str | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Node:
        if (self.tesseract is None) == (self.function is None):
            raise ValueError("takes either tesseract or function")
        if self.function is not None and (found := [name for name in _OF_TESSERACTS if getattr(self, name)]):
            raise ValueError(f"{', '.join(found)} is for a tesseract, and this is a function")
        if self.options and not isinstance(self.tesseract, str | list | os.PathLike):
            raise ValueError("options are for a Tesseract given as text; this one is open already")
        return self


_OF_TESSERACTS = ("options", "vmap_method", "materialize_jacobian", "nan_policy")


class Group(Part):
    """Nodes that need each other's outputs, brought to agree by `tf.fixed_point`.

    Attributes:
        nodes: those that belong to it, at least one.
        start: where the search begins, `node.path` → a number, an array or lists, `{fill: 0.1, shape: [50]}`, or the
            name of a pipeline's input or an output outside of the group. 1 where nothing is said.
        solver, rtol, atol, max_steps, order, warm_start: as in `tf.fixed_point`.
        solver_settings: such as `{depth: 3}` for `anderson`.
    """

    nodes: Annotated[list[str], Field(min_length=1)]
    start: dict[str, Start] = Field(default_factory=dict)
    solver: Any = "newton-krylov"
    solver_settings: dict[str, Any] = Field(default_factory=dict)
    rtol: float | None = None
    warm_start: bool = True
    atol: float = 0.0
    max_steps: int = 50
    order: list[str] | None = None


def _as_inputs(value: Any) -> Any:
    """A list of names is short for inputs of which nothing is said."""
    if isinstance(value, list | tuple):
        return {name: {} for name in value} if all(isinstance(name, str) for name in value) else value
    if isinstance(value, Mapping):
        return {name: {} if one is None else one for name, one in value.items()}
    return value


class Description(Part):
    """A pipeline.

    Attributes:
        inputs: by name, or a list of names.
        nodes: by name.
        groups: coupled nodes, by name.
        outputs: by name, as a connection each.
        coupling: what is done with groups. `"mdf"` (multidisciplinary feasible): they are solved at each evaluation.
            `"idf"` (individual discipline feasible): what is fed back becomes a further input, its *target*, and how
            far the answer is from it a further output, which a problem demands to be zero.
    """

    inputs: Annotated[dict[Name, Input], BeforeValidator(_as_inputs)] = Field(default_factory=dict)
    nodes: Annotated[dict[Name, Node], Field(min_length=1)]
    groups: dict[Name, Group] = Field(default_factory=dict)
    outputs: Annotated[dict[Name, Feed], Field(min_length=1)]
    coupling: Coupling = "mdf"
