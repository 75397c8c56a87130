"""A Tesseract's OpenAPI document as one typed, hashable value; paths into trees; checks of trees against it."""

from tesseract_flow.schema.answers import answer_faults
from tesseract_flow.schema.casting import ValueLost, cast, cast_number, is_same_kind, lossless
from tesseract_flow.schema.fields import (
    ANY,
    DTYPES,
    ArrayField,
    DictField,
    Field,
    LeafField,
    ListField,
    ModelField,
    UnionField,
    describe,
    describe_shape,
)
from tesseract_flow.schema.meaning import what_is_lost
from tesseract_flow.schema.model import TesseractSchema
from tesseract_flow.schema.paths import Keys, array_templates, field_at, follow, format_path, parse_path, template_of
from tesseract_flow.schema.plain import plain_tree
from tesseract_flow.schema.validate import array_leaves, check_inputs, is_arraylike, is_castable, resolve
from tesseract_flow.schema.writing import openapi_of, schema_from_json, schema_to_json

__all__ = [
    "ANY",
    "DTYPES",
    "ArrayField",
    "DictField",
    "Field",
    "Keys",
    "LeafField",
    "ListField",
    "ModelField",
    "TesseractSchema",
    "UnionField",
    "ValueLost",
    "answer_faults",
    "array_leaves",
    "array_templates",
    "cast",
    "cast_number",
    "check_inputs",
    "describe",
    "describe_shape",
    "field_at",
    "follow",
    "format_path",
    "is_arraylike",
    "is_castable",
    "is_same_kind",
    "lossless",
    "openapi_of",
    "parse_path",
    "plain_tree",
    "resolve",
    "schema_from_json",
    "schema_to_json",
    "template_of",
    "what_is_lost",
]
