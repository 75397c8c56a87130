"""YAML files as plain data that remembers where each thing stands.

Safe by construction: of the file's syntax tree only mappings, lists, texts, numbers, true, false and null are taken, by
the rules of YAML 1.2, where `1e-6` is a number and `no` a text. Tags are refused, and nothing is ever built but dicts,
lists and scalars. `$name` and `${name}` stand for settings that the file declares.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from tesseract_flow.errors import Fault, PipelineError, did_you_mean

Place = tuple[str | int, ...]

_MOST_NODES = 100_000  # of a tree: an alias is short and may stand for much
_DEEPEST = 100
_TAG = "tag:yaml.org,2002:"
_WHOLE = re.compile(r"\$(?:\{(?P<braced>\w+)\}|(?P<bare>[A-Za-z_]\w*))")
_INSIDE = re.compile(r"\$\{(\w+)\}")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: how a scalar without quotes is read."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {}


for _name, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"^(?:{_pattern})$"), list(_first))


class Document:
    """A YAML file.

    Attributes:
        file: where it is.
        data: what it says.
    """

    def __init__(self, file: str | os.PathLike[str]):
        self.file = Path(file)
        self._marks: dict[Place, tuple[int, int]] = {}
        self._n_nodes = 0
        root = self._parsed()
        if not isinstance(root, yaml.MappingNode):
            raise self.error([((), "expected keys and values, such as nodes: ...")])
        self._faults: list[tuple[Place, str]] = []
        self.data: dict[str, Any] = self._built(root, ())
        if self._faults:
            raise self.error(self._faults)

    def error(self, faults: Sequence[tuple[Place, str]]) -> PipelineError:
        """One error with all that is wrong, each with line, column and path."""
        found = []
        for place, message in sorted(faults, key=lambda fault: self.mark(fault[0])):
            line, column = self.mark(place)
            path = ".".join(map(str, place))
            found.append(Fault(f"{self.file.name}:{line}:{column}: {path}".rstrip(": "), message))
        count = "" if len(found) == 1 else f" ({len(found)} faults)"
        lines = "\n".join(f"  {fault}" for fault in found)
        return PipelineError(f"{self.file} is not what it should be{count}:\n{lines}", faults=found)

    def mark(self, place: Place) -> tuple[int, int]:
        """Line and column, from 1 on, of the nearest thing in the file."""
        while place and place not in self._marks:
            place = place[:-1]
        return self._marks.get(place, (1, 1))

    def filled(self, settings: Mapping[str, Any], keep: Sequence[str] = ()) -> dict[str, Any]:
        """The data with settings in the places of their names.

        Args:
            keep: keys at the top that are left as they are.

        Raises:
            PipelineError: a name is none of the settings, or has no value; or a setting stands nowhere, so that another
                value of it would change nothing.
        """
        faults: list[tuple[Place, str]] = []
        unused = dict.fromkeys(settings)

        def value_of(name: str, place: Place) -> Any:
            unused.pop(name, None)
            if name not in settings:
                known = ", ".join(settings) or "none"
                hint = did_you_mean(name, settings)
                faults.append((place, f"there is no setting {name!r}.{hint} Declared are: {known}"))
                return None
            if settings[name] is None:
                faults.append((place, f"setting {name!r} has no default and was not given: --set {name}=..."))
            return settings[name]

        def inside(text: str, place: Place) -> str:
            def one(found: re.Match[str]) -> str:
                value = value_of(found[1], place)
                if value is not None and not isinstance(value, str | int | float):
                    faults.append((place, f"setting {found[1]!r} is no text and no number, and stands within a text"))
                return str(value)

            return _INSIDE.sub(one, text)

        def fill(value: Any, place: Place) -> Any:
            if isinstance(value, dict):
                return {key: fill(item, (*place, key)) for key, item in value.items()}
            if isinstance(value, list):
                return [fill(item, (*place, k)) for k, item in enumerate(value)]
            if not isinstance(value, str):
                return value
            whole = _WHOLE.fullmatch(value)
            return value_of(whole["braced"] or whole["bare"], place) if whole else inside(value, place)

        found = {key: value if key in keep else fill(value, (key,)) for key, value in self.data.items()}
        for name in unused:
            what = f"nothing refers to this setting: write ${name} where its value belongs, or leave it out"
            faults.append((("settings", name), what))
        if faults:
            raise self.error(faults)
        return found

    # --- reading ------------------------------------------------------------------------------------------------------

    def _parsed(self) -> Any:
        try:
            text = self.file.read_text(encoding="utf-8")
        except FileNotFoundError:
            folder = self.file.parent
            near = sorted(p.name for p in folder.glob("*.y*ml")) if folder.is_dir() else []
            there = f" In {folder} there is: {', '.join(near)}.{did_you_mean(self.file.name, near)}" if near else ""
            raise PipelineError(f"There is no file {self.file} (working directory: {Path.cwd()}).{there}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise PipelineError(f"{self.file} cannot be read: {error}") from error
        try:
            return yaml.compose(text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
            context = f" ({error.context})" if error.context else ""
            raise PipelineError(f"{self.file}{where}: this is no YAML: {error.problem}{context}") from None
        except (yaml.YAMLError, RecursionError) as error:
            raise PipelineError(f"{self.file} is no YAML: {str(error) or 'it is nested too deeply'}") from None

    def _built(self, node: Any, place: Place) -> Any:
        self._n_nodes += 1
        if self._n_nodes > _MOST_NODES or len(place) > _DEEPEST:
            raise self.error([(place[:3], f"there is more than {_MOST_NODES} values, or {_DEEPEST} levels, in it")])
        self._marks.setdefault(place, (node.start_mark.line + 1, node.start_mark.column + 1))
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self._built(item, (*place, k)) for k, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            try:
                return _SCALARS[node.tag](node.value)
            except ValueError:
                self._faults.append((place, f"{node.value!r} is not what its tag says"))
                return None
        self._faults.append((place, f"tags such as {node.tag.replace(_TAG, '!!')} have no meaning here"))
        return None

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            at = (key.start_mark.line + 1, key.start_mark.column + 1)
            if not isinstance(key, yaml.ScalarNode) or key.tag != f"{_TAG}str":
                text = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list or a mapping"
                self._marks.setdefault((*place, str(text)), at)
                self._faults.append(((*place, str(text)), "keys are texts; put it into quotes"))
                continue
            inner = (*place, key.value)
            if key.value in found:
                first = ":".join(map(str, self.mark(inner)))
                self._marks[inner] = at
                self._faults.append((inner, f"this key is there already, at {first}"))
                continue
            self._marks[inner] = at
            found[key.value] = self._built(value, inner)
        return found


_SCALARS = {
    f"{_TAG}str": str,
    f"{_TAG}null": lambda text: None,
    f"{_TAG}bool": lambda text: text.lower() == "true",
    f"{_TAG}int": lambda text: int(text, 0) if text[:2] in ("0o", "0x") else int(text),
    f"{_TAG}float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
}


def declared_settings(document: Document, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a file declares, with the values that are given.

    Raises:
        PipelineError: one is not declared, or what is declared is no mapping of names to defaults.
    """
    declared = document.data.get("settings") or {}
    if not isinstance(declared, dict):
        raise document.error([(("settings",), "expected names with their defaults, such as load: 1.0")])
    if wrong := [name for name in declared if not name.isidentifier()]:
        raise document.error([(("settings", name), "a setting is named by letters, digits and _") for name in wrong])
    for name in given:
        if name not in declared:
            known = ", ".join(declared) or "none"
            raise PipelineError(
                f"{document.file} declares no setting {name!r}.{did_you_mean(name, declared)} It has: {known}."
            )
    return {**declared, **given}
