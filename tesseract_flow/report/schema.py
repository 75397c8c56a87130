"""A Tesseract's schema as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from tesseract_flow.schema import ArrayField, DictField, Field, ListField, ModelField, TesseractSchema, describe


def schema_tables(schema: TesseractSchema) -> Iterator[RenderableType]:
    """What a Tesseract takes, gives and offers."""
    yield f"[bold]{schema.name}[/] {schema.version}"
    yield f"endpoints: {', '.join(sorted(schema.endpoints - {'health'}))}"
    yield _fields_table("inputs", schema.inputs)
    yield _fields_table("outputs", schema.outputs)


def _fields_table(title: str, root: ModelField) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False)
    for column in ("path", "what", "differentiable", "required"):
        table.add_column(column)
    for path, field, required in _walk(root, ""):
        differentiable = ("yes" if field.differentiable else "no") if isinstance(field, ArrayField) else ""
        table.add_row(escape(path), escape(describe(field)), differentiable, "yes" if required else "")
    return table


def _walk(field: Field, path: str, required: bool = True) -> Iterator[tuple[str, Field, bool]]:
    """Each place of a schema by its path template, in declaration order; containers give way to their parts."""
    prefix = f"{path}." if path else ""
    match field:
        case ModelField(fields=fields):
            for name, part in fields.items():
                yield from _walk(part, f"{prefix}{name}", required and name in field.required)
        case DictField(value=value):
            yield from _walk(value, f"{prefix}{{}}", required)
        case ListField(item=item):
            yield from _walk(item, f"{prefix}[]", required)
        case _:
            yield path, field, required
