"""Names of places in a tree: key tuples, protocol texts, and templates.

Here: `("parts", "wing", 0)` <-> `parts.{wing}.[0]` -> `parts.{}.[]`. Not here: reading values at a place.
The one idea: a key tuple says how to index a tree, but not whether `"wing"` is the name of a model's field (`wing`) or
a key of a dict (`{wing}`). The schema knows, so every function that writes a path walks the schema along the keys.

Braces and backslashes in dict keys are escaped with a backslash, as tesseract-core does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeAlias

from tesseract_flow.errors import SchemaError
from tesseract_flow.schema.fields import ArrayField, DictField, Field, LeafField, ListField, ModelField, UnionField

Keys: TypeAlias = tuple[str | int, ...]
_Segments: TypeAlias = tuple[str, ...]

_SEGMENT = re.compile(
    r"\[(?P<index>\d+)\]|\{(?P<key>(?:[^{}\\]|\\.)*)\}|(?P<name>[^.{}\[\]]+)",
    re.DOTALL,
)


def format_path(root: Field, keys: Keys) -> str:
    """The protocol's text for a place, such as `parts.{wing}.[0]`.

    Never raises: keys that the schema does not know are written like fields (text) and list items (numbers), so that
    messages about wrong trees can name them.
    """
    return ".".join(_read(root, keys)[0])


def template_of(root: Field, keys: Keys) -> str:
    """The template that a place belongs to, such as `parts.{}.[]`: how schemas list their differentiable arrays."""
    return ".".join(_read(root, keys)[1])


def field_at(root: Field, keys: Keys) -> Field | None:
    """What the schema has at a place, or None if there can be nothing. In a union the keys decide the option."""
    return next((field for _, _, field in _readings(root, keys)), None)


def follow(tree: Any, keys: Keys) -> Any:
    """The value that `keys` lead to, or None where the tree ends before."""
    for key in keys:
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):
            return None
    return tree


def parse_path(text: str, root: Field | None = None) -> Keys:
    """The key tuple of a path: the inverse of `format_path`.

    The schema `root` is needed only where it has root models, whose `root` segment has no counterpart in the tree.

    Raises:
        SchemaError: the text is not a concrete path. `a.[]` is not; `a.{}` is, with an empty key.
    """
    keys: list[str | int] = []
    position = 0
    while position < len(text):
        match = _SEGMENT.match(text, position)
        if match is None or text[match.end() : match.end() + 1] not in ("", ".") or text.endswith("."):
            raise SchemaError(
                f"{text!r} is not a path: cannot read {text[position:]!r}. "
                "Paths look like 'mesh.points' (fields), 'parts.{wing}' (dict entries), 'layers.[3]' (list items)."
            )
        keys.append(_key(match))
        position = match.end() + 1
    return tuple(keys) if root is None else next(_without_roots(root, tuple(keys)), tuple(keys))


def array_templates(root: Field) -> Iterator[tuple[str, ArrayField]]:
    """Every array of a schema with its template, in order of declaration. A union may give a template several times."""
    for segments, field in _arrays(root):
        yield ".".join(segments), field


def segment(field: Field, key: object) -> str:
    """How a path through `field` spells one key."""
    if isinstance(field, DictField):
        return "{" + re.sub(r"([{}\\])", r"\\\1", str(key)) + "}"
    return f"[{key}]" if isinstance(key, int) else str(key)


def _readings(field: Field, keys: Keys) -> Iterator[tuple[_Segments, _Segments, Field]]:
    """Every way to follow the keys: (text segments, template segments, the field reached)."""
    match field:
        case ModelField(is_root=True):
            for texts, templates, reached in _readings(field.fields["root"], keys):
                yield ("root", *texts), ("root", *templates), reached
        case UnionField(options=options) if keys or _wrapped_array(field):
            for option in options if keys else _wrapped_array(field):
                yield from _readings(option, keys)
        case _ if not keys:
            yield (), (), field
        case LeafField(kind="any"):
            texts = tuple(segment(field, key) for key in keys)
            yield texts, texts, field
        case ModelField() | DictField() | ListField():
            key, *rest = keys
            child = _child(field, key)
            if child is None:
                return
            text = segment(field, key)
            template = {DictField: "{}", ListField: "[]"}.get(type(field), text)
            for texts, templates, reached in _readings(child, tuple(rest)):
                yield (text, *texts), (template, *templates), reached


def _wrapped_array(union: UnionField) -> tuple[Field, ...]:
    """The root models of an array in a union that has no other array: there, a path to an array ends in `root`."""
    if any(isinstance(option, ArrayField) for option in union.options):
        return ()
    roots = (option for option in union.options if isinstance(option, ModelField) and option.is_root)
    return tuple(option for option in roots if isinstance(option.fields["root"], ArrayField))


def _read(root: Field, keys: Keys) -> tuple[_Segments, _Segments]:
    """The first reading of the keys; what follows the longest prefix that the schema knows is spelled by type."""
    for n_known in range(len(keys), -1, -1):
        for texts, templates, _ in _readings(root, keys[:n_known]):
            rest = tuple(f"[{key}]" if isinstance(key, int) else str(key) for key in keys[n_known:])
            return (*texts, *rest), (*templates, *rest)
    raise AssertionError("the empty key tuple has a reading in every schema")


def _child(field: ModelField | DictField | ListField, key: str | int) -> Field | None:
    return field.value if isinstance(field, DictField) else field.get(key)


def _arrays(field: Field) -> Iterator[tuple[_Segments, ArrayField]]:
    """Template segments and field of each array below `field`."""
    match field:
        case ArrayField():
            yield (), field
        case UnionField(options=options):
            for option in options:
                yield from _arrays(option)
        case ModelField(fields=fields):
            for name, child in fields.items():
                yield from (((name, *segments), array) for segments, array in _arrays(child))
        case DictField(value=value):
            yield from ((("{}", *segments), array) for segments, array in _arrays(value))
        case ListField(item=item):
            yield from ((("[]", *segments), array) for segments, array in _arrays(item))


def _key(match: re.Match[str]) -> str | int:
    if match["index"] is not None:
        return int(match["index"])
    if match["key"] is not None:
        return re.sub(r"\\(.)", r"\1", match["key"], flags=re.DOTALL)
    return match["name"]


def _without_roots(field: Field, keys: Keys) -> Iterator[Keys]:
    """The keys without those that stand for the `root` of a root model."""
    match field:
        case UnionField(options=options):
            for option in options:
                yield from _without_roots(option, keys)
        case _ if not keys or (isinstance(field, LeafField) and field.kind == "any"):
            yield keys
        case ModelField(is_root=True):
            if keys[0] == "root":
                yield from _without_roots(field.fields["root"], keys[1:])
        case ModelField() | DictField() | ListField():
            child = _child(field, keys[0])
            if child is not None:
                yield from ((keys[0], *rest) for rest in _without_roots(child, keys[1:]))
