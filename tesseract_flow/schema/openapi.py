"""Reads the OpenAPI document of a Tesseract: JSON schema in, fields out.

Here: `$ref`s, the recognition of arrays, models and containers, and the canonical form behind the digest. Not here:
anything that depends on values. The one idea: what we do not recognise becomes `LeafField("any")`, which accepts
everything, because the server checks its inputs in any case; only a document without a readable `apply` is refused.

A model that contains itself is cut at its second appearance, which becomes "any". (tesseract-core refuses recursive
pydantic models, but recursive typed dicts and dataclasses do reach its documents.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import unquote

from tesseract_flow.errors import SchemaError
from tesseract_flow.schema.fields import (
    ANY,
    DTYPES,
    NULL,
    ArrayField,
    DictField,
    Field,
    LeafField,
    ListField,
    ModelField,
    union_of,
)

#: The operations of the protocol. Servers have further paths (`test` in debug mode), which are not the component's.
ENDPOINTS = frozenset(
    {"apply", "jacobian", "jacobian_vector_product", "vector_jacobian_product", "abstract_eval", "health"}
)

Node: TypeAlias = Mapping[str, Any]
Template: TypeAlias = tuple[str, ...]

_UNREADABLE: Node = {}
_LEAF_KINDS = {"integer": "int", "number": "float", "boolean": "bool"}
_PATH_FORMATS = frozenset({"path", "file-path", "directory-path"})
# Widest first: among dtypes that cast to each other, the widest is the one that loses nothing.
_WIDEST_FIRST = ("float64", "float32", "float16", "int64", "int32", "int16", "int8")
# Words that explain a schema and names that depend on the server's version, but no influence on results.
_COMMENTARY = frozenset(
    {"title", "description", "examples", "deprecated", "field_order", "differentiable_arrays", "$comment"}
)


@dataclass(frozen=True)
class Side:
    """The inputs or the outputs of `apply` in a document.

    Attributes:
        document: the whole document, for `$ref`s.
        node: the schema of the tree.
        refs: the references that led to `node`.
        arrays: template -> `{shape, dtype}` of the differentiable arrays; None if the document does not list them.
        order: template of a model -> names of its fields in order of declaration.
    """

    document: Node
    node: Node
    refs: frozenset[str]
    arrays: Mapping[str, Node] | None
    order: Mapping[str, Sequence[str]]

    def root(self) -> ModelField | None:
        """The field tree, or None if the root is not a model."""
        field = self._field(self.node, (), frozenset(), self.refs)
        return field if isinstance(field, ModelField) else None

    def canonical(self) -> Any:
        """What can influence results, in a form that does not depend on names, key order or wording."""
        arrays = {
            template: [_list(entry.get("shape")), entry.get("dtype")] for template, entry in (self.arrays or {}).items()
        }
        return {"tree": _canonical(self.document, self.node, tuple(self.refs)), "differentiable": arrays}

    def _field(self, node: Any, at: Template, seen: frozenset[str], refs: frozenset[str] = frozenset()) -> Field:
        """The field for a node at a template. `seen` are the references above it, `refs` those that led to it."""
        node, more = follow(self.document, node)
        refs |= more
        if refs & seen:
            return ANY
        seen |= refs
        if self._is_root_model(node, at, refs):
            inner = self._described(node, (*at, "root"), seen)
            return ModelField({"root": inner}, frozenset({"root"}), is_root=True)
        field = self._described(node, at, seen)
        return union_of(field, NULL) if node.get("nullable") is True else field

    def _described(self, node: Node, at: Template, seen: frozenset[str]) -> Field:
        """The field for a node whose references are resolved."""
        if _is_array(node):
            return self._array(node, at)
        if "const" in node:
            return _enum([node["const"]])
        if "enum" in node:
            return _enum(_list(node["enum"]))
        for word in ("anyOf", "oneOf"):
            if word in node:
                return self._union(node, _list(node[word]), at, seen)
        kind = node.get("type")
        if isinstance(kind, list) and kind:
            return union_of(*(self._described({**node, "type": one}, at, seen) for one in kind))
        if kind == "object" or (kind is None and _mapping(node.get("properties"))):
            return self._object(node, at, seen)
        if kind == "array":
            return self._list(node, at, seen)
        return _leaf(node)

    def _union(self, node: Node, options: Sequence[Any], at: Template, seen: frozenset[str]) -> Field:
        fields = [self._field(option, at, seen) for option in options]
        tag = _mapping(node.get("discriminator")).get("propertyName")
        tag = tag if isinstance(tag, str) else None
        # pydantic picks the option by its tag, so the tag must be given even where it has a default.
        fields = [
            dataclasses.replace(field, required=field.required | {tag})
            if isinstance(field, ModelField) and tag is not None and tag in field.fields
            else field
            for field in fields
        ]
        return union_of(*fields) if fields else ANY

    def _object(self, node: Node, at: Template, seen: frozenset[str]) -> Field:
        properties, extra = _mapping(node.get("properties")), node.get("additionalProperties")
        if not properties and (extra is not False or node.get("patternProperties")):
            patterns = list(_mapping(node.get("patternProperties")).values())
            value = extra if isinstance(extra, Mapping) else patterns[0] if len(patterns) == 1 else True
            names = _list(_mapping(node.get("propertyNames")).get("enum"))
            keys = tuple(name for name in names if isinstance(name, str))
            return DictField(self._field(value, (*at, "{}"), seen), keys)
        names = self._in_order(list(properties), at)
        fields = {name: self._field(properties[name], (*at, name), seen) for name in names}
        required = frozenset(
            name
            for name in names
            if name in _list(node.get("required")) and "default" not in follow(self.document, properties[name])[0]
        )
        return ModelField(fields, required, None if extra is False else self._field(extra, (*at, "{}"), seen))

    def _in_order(self, names: list[str], at: Template) -> list[str]:
        """Names in order of declaration, which not every road that a document travels keeps.

        The separate list leaves out fields that have no leaves, so it is used only where the two disagree.
        """
        listed = [name for name in self.order.get(".".join(at), ()) if name in names]
        if listed == [name for name in names if name in listed]:
            return names
        return listed + [name for name in names if name not in listed]

    def _list(self, node: Node, at: Template, seen: frozenset[str]) -> ListField:
        items, prefix_items = node.get("items"), _list(node.get("prefixItems"))
        if isinstance(items, list):  # JSON schema before 2020-12
            items, prefix_items = node.get("additionalItems"), items
        prefix = tuple(self._field(item, (*at, "[]"), seen) for item in prefix_items)
        n_min, n_max = _count(node.get("minItems")) or 0, _count(node.get("maxItems"))
        if prefix and (items is False or n_max == len(prefix)):
            return ListField(union_of(*prefix), prefix, n_min, len(prefix))
        return ListField(self._field(items, (*at, "[]"), seen), prefix, n_min, n_max)

    def _is_root_model(self, node: Node, at: Template, refs: frozenset[str]) -> bool:
        """Whether a node is a pydantic RootModel.

        Its JSON schema is just that of its value, but the templates below it go through `root`.
        """
        is_record = bool(_mapping(node.get("properties"))) and not _is_array(node)
        if is_record or "enum" in node or "const" in node:
            return False
        # In a union the siblings share the template; only models are behind a reference.
        alone = (
            list(self.order.get(".".join(at), ())) == ["root"] and "anyOf" not in node and node.get("type") != "null"
        )
        return (bool(refs) or alone) and self._has_below(at, "root")

    def _has_below(self, at: Template, name: str) -> bool:
        if name in self.order.get(".".join(at), ()):
            return True
        below = ".".join((*at, name))
        return any(template == below or template.startswith(below + ".") for template in self.arrays or ())

    def _array(self, node: Node, at: Template) -> ArrayField:
        entry = None if self.arrays is None else self.arrays.get(".".join(at))
        flags = node.get("array_flags")
        flagged = flags is None or "DIFFERENTIABLE" in _list(flags)
        # The list has the last word: the server refuses other paths, such as those into typed dicts.
        differentiable = flagged and (entry is not None or (self.arrays is None and flags is not None))
        # The node comes first, because two arrays in a union share one entry of the list.
        dtype, dtype_is_sure = _dtype(node)
        shape, shape_is_sure = _shape(node)
        if entry is not None and not dtype_is_sure:
            dtype = entry["dtype"] if entry.get("dtype") in DTYPES else None
        if entry is not None and not shape_is_sure:
            shape = _lengths(entry.get("shape"))
        return ArrayField(dtype, shape, differentiable)


def sides(document: Node) -> tuple[Side, Side]:
    """Inputs and outputs of `apply`.

    Raises:
        SchemaError: the document has no readable `apply`.
    """
    if not isinstance(document, Mapping):
        raise _not_a_tesseract(document, [f"a JSON object (got {type(document).__name__})"])
    post = _mapping(_at(document, "paths", "/apply", "post"))
    request = _at(post, "requestBody", "content", "application/json", "schema")
    answer = _at(post, "responses", "200", "content", "application/json", "schema")
    # By reference where there is one; names are what tesseract-core happens to use.
    named = _mapping(_at(document, "components", "schemas"))
    body, _ = follow(document, request or named.get("ApplyInputSchema"))
    output, output_refs = follow(document, answer or named.get("ApplyOutputSchema"))
    inputs = _mapping(body.get("properties")).get("inputs")
    tree, input_refs = follow(document, inputs)
    missing = []
    if not post:
        missing.append("path POST /apply")
    if not tree:
        missing.append("the request schema of /apply with its property 'inputs'")
    if not output:
        missing.append("the response schema of /apply")
    if missing:
        raise _not_a_tesseract(document, missing)
    return (
        Side(document, tree, input_refs, *_annotations(body)),
        Side(document, output, output_refs, *_annotations(output)),
    )


def roots(inputs: Side, outputs: Side) -> tuple[ModelField, ModelField]:
    """The field trees of both sides.

    Raises:
        SchemaError: one of them is not a model.
    """
    pair = inputs.root(), outputs.root()
    if pair[0] is None or pair[1] is None:
        which = "inputs" if pair[0] is None else "outputs"
        raise _not_a_tesseract(inputs.document, [f"a model with named fields as the {which} of /apply"])
    return pair[0], pair[1]


def endpoints(document: Node) -> frozenset[str]:
    """The operations of the protocol that the component offers."""
    return frozenset(str(path).strip("/") for path in _mapping(document.get("paths"))) & ENDPOINTS


def advertised(document: Node, key: str) -> frozenset[str] | None:
    """The names in one of the `x-supported-...` lists, None if the server does not give it."""
    names = document.get(key)
    if not isinstance(names, list | tuple):
        return None
    return frozenset(str(name).removeprefix("json+") for name in names) - {"none"}


def digest(inputs: Side, outputs: Side, operations: Iterable[str]) -> str:
    """sha256 of all that can influence results: both schemas with defaults and constraints, and the endpoints."""
    form = {"inputs": inputs.canonical(), "outputs": outputs.canonical(), "endpoints": sorted(operations)}
    text = json.dumps(form, sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def follow(document: Node, node: Any) -> tuple[Node, frozenset[str]]:
    """The node behind `$ref`s and one-element `allOf`s, and the references on the way.

    Words beside a `$ref` (defaults, for example) win over those behind it. What cannot be read is an empty node.
    """
    refs: set[str] = set()
    node = _mapping(node)
    while True:
        inner = _list(node.get("allOf"))
        if "$ref" in node:
            ref = str(node["$ref"])
            if ref in refs:  # a reference that leads to itself
                return _UNREADABLE, frozenset(refs)
            refs.add(ref)
            node = {**_pointed(document, ref), **{word: value for word, value in node.items() if word != "$ref"}}
        elif len(inner) == 1:
            node = {**_mapping(inner[0]), **{word: value for word, value in node.items() if word != "allOf"}}
        else:
            return node, frozenset(refs)


def _pointed(document: Node, ref: str) -> Node:
    """The node that a local JSON pointer (RFC 6901) names."""
    if not ref.startswith("#/"):
        return _UNREADABLE
    names = (unquote(name).replace("~1", "/").replace("~0", "~") for name in ref[2:].split("/"))
    return _mapping(_at(document, *names))


def _canonical(document: Node, node: Any, above: tuple[str, ...]) -> Any:
    """A schema without names and commentary, references replaced by what they point to."""
    if not isinstance(node, Mapping):
        return node
    node, refs = follow(document, node)
    if refs & set(above):
        return {"recursion": True}
    above = (*above, *refs)

    def inner(value: Any) -> Any:
        return _canonical(document, value, above)

    if _is_array(node):
        # Not word by word: the list of encodings and of castable dtypes belongs to the server's version.
        form: dict[str, Any] = {"array": [_dtype(node)[0], _list(_shape(node)[0])]}
        return {**form, "default": node["default"]} if "default" in node else form
    form = {}
    for word, value in node.items():
        if word in _COMMENTARY:
            continue
        if word in ("properties", "patternProperties"):
            form[word] = {name: inner(child) for name, child in _mapping(value).items()}
        elif word in ("anyOf", "oneOf", "allOf", "prefixItems"):
            form[word] = [inner(child) for child in _list(value)]
        elif word == "required":
            form[word] = sorted(map(str, _list(value)))
        elif word == "discriminator":
            form[word] = _mapping(value).get("propertyName")
        elif word in ("items", "additionalProperties", "additionalItems", "propertyNames"):
            form[word] = inner(value)
        else:
            form[word] = value
    return form


def _is_array(node: Node) -> bool:
    properties = _mapping(node.get("properties"))
    marker = _mapping(properties.get("object_type"))
    marked = marker.get("const") == "array" or marker.get("enum") == ["array"]
    return "array_flags" in node or (marked and "shape" in properties and "dtype" in properties)


def _dtype(node: Node) -> tuple[str | None, bool]:
    """The dtype that an array's schema expects, and whether that is certain.

    The schema lists every dtype that can be cast, with the expected one as an example. For an array of any dtype the
    list is complete and the example says float64; the list is complete for complex arrays too, but float64 takes no
    complex values, so the two together are unambiguous.
    """
    words = _mapping(_mapping(node.get("properties")).get("dtype"))
    names = {name for name in _list(words.get("enum")) or [words.get("const")] if isinstance(name, str)} & set(DTYPES)
    examples = _list(words.get("examples"))
    example = examples[0] if examples and isinstance(examples[0], str) and examples[0] in names else None
    if example is not None:
        return (example, True) if len(names) < len(DTYPES) or example.startswith("complex") else (None, True)
    if len(names) == 1:
        return names.pop(), False
    if not names or len(names) == len(DTYPES):
        return None, False
    return next((name for name in _WIDEST_FIRST if name in names), None), False


def _shape(node: Node) -> tuple[tuple[int | None, ...] | None, bool]:
    """The shape that an array's schema expects, and whether that is certain."""
    words = _mapping(_mapping(node.get("properties")).get("shape"))
    if words.get("maxItems") == 0:
        return (), True
    if "prefixItems" in words:
        return tuple(_length(_mapping(item)) for item in _list(words["prefixItems"])), True
    return None, "items" in words


def _length(words: Node) -> int | None:
    """One dimension: `{"minimum": 0}` is any length, const 1 is 1, and enum [1, n] is n, because 1 broadcasts to n."""
    lengths = [n for n in map(_count, [*_list(words.get("enum")), words.get("const")]) if n is not None]
    return next((n for n in lengths if n != 1), 1) if lengths else None


def _lengths(shape: Any) -> tuple[int | None, ...] | None:
    return tuple(_count(n) for n in shape) if isinstance(shape, list | tuple) else None


def _leaf(node: Node) -> LeafField:
    kind = node.get("type")
    if kind == "null":
        return NULL
    if kind == "string":
        if node.get("format") in _PATH_FORMATS:
            return LeafField("path")
        # Dates, bytes, identifiers: Python objects that become text on the way.
        return ANY if "format" in node or "contentMediaType" in node else LeafField("str")
    return LeafField(_LEAF_KINDS[kind]) if isinstance(kind, str) and kind in _LEAF_KINDS else ANY


def _enum(choices: Sequence[Any]) -> LeafField:
    plain = all(isinstance(choice, str | int | float | bool | None) for choice in choices)
    return LeafField("enum", tuple(choices)) if plain and choices else ANY


def _annotations(node: Node) -> tuple[Mapping[str, Node] | None, Mapping[str, Sequence[str]]]:
    """What tesseract-core adds to the schemas of `apply`: the differentiable arrays and the order of fields."""
    arrays = node.get("differentiable_arrays")
    order = {str(at): [str(name) for name in _list(names)] for at, names in _mapping(node.get("field_order")).items()}
    if not isinstance(arrays, Mapping):
        return None, order
    return {str(template): _mapping(entry) for template, entry in arrays.items()}, order


def _not_a_tesseract(document: Any, missing: Sequence[str]) -> SchemaError:
    title = _mapping(_mapping(document).get("info")).get("title")
    of = f" of {title!r}" if title else ""
    return SchemaError(
        f"The OpenAPI document{of} does not describe a Tesseract; missing: {'; '.join(missing)}. "
        "Is this URL a Tesseract? Its /openapi.json has a path /apply, and GET /health answers {'status': 'ok'}."
    )


def _at(node: Any, *names: str) -> Any:
    for name in names:
        node = _mapping(node).get(name)
    return node


def _mapping(value: Any) -> Node:
    return value if isinstance(value, Mapping) else _UNREADABLE


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _count(value: Any) -> int | None:
    # Some JSON tools write 3 as 3.0.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and 0 <= value < 2**63 and value == value // 1 else None
