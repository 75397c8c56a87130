"""Reading and replacing values in trees by the protocol's paths: `mesh.points`, `parts.{wing}`, `knots.[3]`.

Not here: what a schema says about a path. The one idea: a path is written for the component's models, while functions
see the dicts that those models were dumped to, so a name is a key wherever there is a mapping. Braces and backslashes
in dict keys are escaped with a backslash.
"""

# `tesseract_flow.schema.paths` reads the same grammar with a schema at hand. This module stays apart from it, because
# recipes, which stand on it, are used where nothing else of tesseract-flow is installed.

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_SEGMENT = re.compile(
    r"\[(?P<index>\d+)\]|\{(?P<key>(?:[^{}\\]|\\.)*)\}|(?P<name>[^.{}\[\]\\]+)",
    re.DOTALL,
)


class _Step(NamedTuple):
    text: str
    key: str | int
    is_name: bool


def get_at(tree: Any, path: str) -> Any:
    """The value at a path of a tree of dicts, lists, tuples and pydantic models.

    Raises:
        ValueError: the text is not a path, or the tree has nothing there.

    >>> get_at({"parts": {"a.b": [1.0, 2.0]}}, "parts.{a.b}.[1]")
    2.0
    """
    for step in _steps(path):
        tree = _child(tree, step, path)[1]
    return tree


def set_at(tree: Any, values: Mapping[str, Any]) -> Any:
    """A tree of dicts, lists and tuples with other values at some paths, all of which exist already.

    Containers along the paths are new, everything else is shared with the old tree.

    Raises:
        ValueError: the text is not a path, or the tree has nothing there.

    >>> set_at({"knots": [1.0, 2.0]}, {"knots.[0]": 3.0})
    {'knots': [3.0, 2.0]}
    """
    for path, value in values.items():
        tree = _replaced(tree, _steps(path), value, path)
    return tree


def exists_at(tree: Any, path: str) -> bool:
    """Whether `get_at` would find something."""
    try:
        get_at(tree, path)
    except ValueError:
        return False
    return True


@functools.lru_cache(maxsize=4096)
def _steps(path: str) -> tuple[_Step, ...]:
    steps: list[_Step] = []
    position = 0
    while position < len(path):
        match = _SEGMENT.match(path, position)
        if match is None or path[match.end() : match.end() + 1] not in ("", ".") or path.endswith("."):
            raise ValueError(
                f"{path!r} is not a path: cannot read {path[position:]!r}. "
                "Paths look like 'mesh.points' (fields), 'parts.{wing}' (dict entries), 'knots.[3]' (list items)."
            )
        if match["index"] is not None:
            key: str | int = int(match["index"])
        elif match["key"] is not None:
            key = re.sub(r"\\(.)", r"\1", match["key"], flags=re.DOTALL)
        else:
            key = match["name"]
        steps.append(_Step(match[0], key, match["name"] is not None))
        position = match.end() + 1
    return tuple(steps)


def _child(node: Any, step: _Step, path: str) -> tuple[Any, Any]:
    """Key and value of what one step of a path leads to. The key is None where the step stays in its place."""
    if isinstance(node, Mapping):
        if step.key in node:
            return step.key, node[step.key]
        for key, value in node.items():  # the wire has text where the schema may have numbers
            if not isinstance(key, str) and not step.is_name and str(key) == step.key:
                return key, value
        known = [str(key) for key in node]
    elif isinstance(node, Sequence) and not isinstance(node, str | bytes):
        if isinstance(step.key, int) and step.key < len(node):
            return step.key, node[step.key]
        known = [f"[{index}]" for index in range(len(node))]
    elif step.is_name and hasattr(node, str(step.key)):
        return step.key, getattr(node, str(step.key))
    else:
        known = []
    if step.text == "root":  # a root model, which is dumped to what it wraps
        return None, node
    here = f"there are {', '.join(known)}" if known else f"there is only a {type(node).__name__}"
    raise ValueError(f"Path {path!r} leads nowhere: no {step.text!r} here; {here}.")


def _replaced(node: Any, steps: Sequence[_Step], value: Any, path: str) -> Any:
    if not steps:
        return value
    key, child = _child(node, steps[0], path)
    changed = _replaced(child, steps[1:], value, path)
    if key is None:
        return changed
    if isinstance(node, Mapping):
        return {k: changed if k == key else item for k, item in node.items()}
    if isinstance(node, list | tuple):
        items = [changed if index == key else item for index, item in enumerate(node)]
        return type(node)(*items) if hasattr(node, "_fields") else type(node)(items)
    raise ValueError(f"Path {path!r}: cannot replace an item of a {type(node).__name__}.")
