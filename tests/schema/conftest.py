"""Components to read schemas from, and the real servers' own opinion about inputs."""

import base64
import enum
import functools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import strategies as st

from tesseract_flow.schema import (
    DTYPES,
    ArrayField,
    DictField,
    Field,
    LeafField,
    ListField,
    ModelField,
    TesseractSchema,
    is_castable,
)

COMPONENTS = Path(__file__).parent / "components"


@dataclass(frozen=True)
class Component:
    """A real component, run in this process."""

    name: str
    document: dict[str, Any]
    schema: TesseractSchema
    apply_inputs: type[pydantic.BaseModel]

    def refusals(self, tree: Any) -> list[tuple[Any, ...]]:
        """Where the component's own pydantic models refuse a tree as HTTP would carry it; empty if they accept it."""
        try:
            self.apply_inputs.model_validate({"inputs": on_the_wire(tree)})
        except pydantic.ValidationError as error:
            return [fault["loc"][1:] for fault in error.errors()]
        return []

    def validated(self, tree: Any) -> Any:
        """The component's input model for a tree."""
        return self.apply_inputs.model_validate({"inputs": on_the_wire(tree)}).inputs


def on_the_wire(tree: Any) -> Any:
    """What a client sends for a tree: arrays in base64, scalars as numbers, keys as text."""
    if isinstance(tree, dict):
        return {str(key): on_the_wire(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [on_the_wire(item) for item in tree]
    if isinstance(tree, enum.Enum):
        return tree.value
    if isinstance(tree, np.ndarray | np.generic):
        if tree.ndim == 0:
            return tree.item()
        buffer = base64.b64encode(tree.tobytes()).decode()
        data = {"encoding": "base64", "buffer": buffer}
        return {"object_type": "array", "shape": list(tree.shape), "dtype": tree.dtype.name, "data": data}
    return tree


@functools.cache
def load(name: str) -> Component:
    from tesseract_core import Tesseract
    from tesseract_core.runtime.core import load_module_from_path
    from tesseract_core.runtime.schema_generation import create_apply_schema

    path = COMPONENTS / name / "tesseract_api.py"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic's remarks about the components, tesseract-core's about itself
        document = Tesseract.from_tesseract_api(path).openapi_schema
        module = load_module_from_path(path)
        inputs, _ = create_apply_schema(module.InputSchema, module.OutputSchema)
    return Component(name, document, TesseractSchema.from_openapi(document), inputs)


@pytest.fixture(scope="session")
def component():
    """name -> Component, each loaded once."""
    return load


@pytest.fixture(scope="session")
def valid_trees():
    """field -> hypothesis strategy for values that fit it."""
    return trees


def trees(field: Field) -> st.SearchStrategy[Any]:
    match field:
        case ArrayField():
            return arrays(field)
        case ModelField(is_root=True):
            return trees(field.fields["root"])
        case ModelField(fields=fields, required=required):
            return st.fixed_dictionaries(
                {name: trees(child) for name, child in fields.items() if name in required},
                optional={name: trees(child) for name, child in fields.items() if name not in required},
            )
        case DictField(value=value, keys=keys):
            # Digits, because dict[int, ...] looks the same in a schema.
            names = st.sampled_from(keys) if keys else st.text("0123456789", min_size=1, max_size=3)
            return st.dictionaries(names, trees(value), max_size=2)
        case ListField(prefix=prefix) if prefix:
            return st.tuples(*map(trees, prefix))
        case ListField(item=item):
            return st.lists(trees(item), min_size=field.min_items, max_size=2)
        case LeafField():
            return leaves(field)
        case _:
            return st.one_of(*map(trees, field.options))


@st.composite
def arrays(draw: st.DrawFn, field: ArrayField) -> Any:
    """Arrays of any dtype that can be cast, sometimes with a length of 1 in place of the full one."""
    shape = draw(st.lists(st.integers(0, 2), max_size=3)) if field.shape is None else field.shape
    lengths = [draw(st.integers(0, 2)) if n is None else draw(st.sampled_from([n, n, 1])) for n in shape]
    dtype = draw(st.sampled_from([name for name in DTYPES if is_castable(name, field.dtype)]))
    made = np.ones(lengths, dtype)
    return made.item() if made.ndim == 0 and draw(st.booleans()) else made


def leaves(field: LeafField) -> st.SearchStrategy[Any]:
    kinds = {
        "str": st.text("abc", max_size=3),
        "int": st.integers(0, 5),
        "float": st.floats(0, 5) | st.integers(0, 5),
        "bool": st.booleans(),
        "null": st.none(),
        "path": st.just("a/b"),
        "any": st.just("2020-01-01T00:00:00"),  # text, time, bytes, anything
    }
    return st.sampled_from(field.choices) if field.kind == "enum" else kinds[field.kind]
