"""Paths lead to what they name, whatever characters a key has, and replacing leaves the old tree alone."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, RootModel

from tesseract_flow.derivatives import get_at, set_at

TREE: dict[str, Any] = {"mesh": {"knots": [1.0, (2.0, 3.0)]}, "parts": {"a.b": 4.0, "{}": {"\\": 5.0}}, "n": {7: 6.0}}
PATHS = {
    "mesh.knots.[0]": 1.0,
    "mesh.knots.[1].[1]": 3.0,
    "parts.{a.b}": 4.0,
    r"parts.{\{\}}.{\\}": 5.0,
    "n.{7}": 6.0,
    "{mesh}.{knots}.[0]": 1.0,
}


@pytest.mark.parametrize("path, value", PATHS.items())
def test_path_reads_and_replaces(path: str, value: float) -> None:
    before = copy.deepcopy(TREE)
    assert get_at(TREE, path) == value
    changed = set_at(TREE, {path: "new"})
    assert get_at(changed, path) == "new"
    assert before == TREE
    assert set_at(changed, {path: value}) == TREE


def test_untouched_branches_are_shared() -> None:
    changed = set_at(TREE, {"mesh.knots.[0]": 0.0})
    assert changed["parts"] is TREE["parts"]
    assert type(changed["mesh"]["knots"][1]) is tuple


@given(st.lists(st.text(max_size=4), min_size=1, max_size=3))
def test_any_text_is_a_key(keys: list[str]) -> None:
    tree: Any = 1.0
    for key in reversed(keys):
        tree = {key: tree, key + "'": 2.0}
    path = ".".join("{" + re.sub(r"([{}\\])", r"\\\1", key) + "}" for key in keys)
    assert get_at(tree, path) == 1.0
    assert get_at(set_at(tree, {path: 3.0}), path) == 3.0


class Load(RootModel[dict[str, float]]):
    pass


class Wing(BaseModel):
    load: Load
    items: list[float]


def test_path_reads_models_and_what_they_are_dumped_to() -> None:
    """A root model has a segment of its own in paths, and none in the dump. `items` is no method here."""
    wing = Wing(load=Load({"tip": 2.0}), items=[3.0])
    for tree in (wing, wing.model_dump()):
        assert get_at(tree, "load.root.{tip}") == 2.0
        assert get_at(tree, "items.[0]") == 3.0
    assert set_at(wing.model_dump(), {"load.root.{tip}": 5.0}) == {"load": {"tip": 5.0}, "items": [3.0]}


@pytest.mark.parametrize("path", ["a..b", "a.", ".a", "a.[x]", "a.{b", "a}", "a.[]", "a[0]", "[-1]"])
def test_other_text_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="is not a path"):
        get_at({"a": [1.0]}, path)


@pytest.mark.parametrize("path, known", [("mesh.nodes", "knots"), ("mesh.knots.[2]", r"\[0\], \[1\]"), ("n.{8}", "7")])
def test_dead_end_names_what_is_there(path: str, known: str) -> None:
    with pytest.raises(ValueError, match=rf"leads nowhere.*there are {known}"):
        get_at(TREE, path)
    with pytest.raises(ValueError, match="leads nowhere"):
        set_at(TREE, {path: 0.0})


def test_dead_end_at_a_leaf() -> None:
    with pytest.raises(ValueError, match="there is only a float"):
        get_at(TREE, "mesh.knots.[0].x")
