"""Pictures as SVG: boxes in columns, each to the right of what feeds it.

What is fed back runs below. Colours are those of the page around (`currentColor`).

Source: K. Sugiyama, S. Tagawa and M. Toda, Methods for visual understanding of hierarchical system structures (1981),
in short: layers by longest paths, order within a layer by the mean of what feeds a box.
"""

from __future__ import annotations

from html import escape

from tesseract_flow.pictures.graph import Arrow, Box, Picture

_CHARACTER, _LINE, _PAD, _GAP, _SPACE = 6.7, 16.0, 8.0, 26.0, 90.0
_RADIUS = {"input": 14, "output": 14, "function": 8, "tesseract": 1, "loop": 1}


def svg(picture: Picture) -> str:
    columns = _columns(picture)
    places: dict[str, tuple[float, float, float, float]] = {}  # x, y, width, height
    x, bottom = _GAP, 0.0
    for column in columns:
        width = max(_width(box) for box in column)
        y = _GAP
        for box in column:
            height = _LINE * (len(_lines(box)) + 0.5)
            places[box.name] = (x, y, width, height)
            y += height + _GAP
        bottom = max(bottom, y)
        x += width + _SPACE
    fed_back = picture.fed_back
    parts = [
        _arrow(arrow, places, bottom + 14.0 * fed_back.index(arrow) if arrow in fed_back else None)
        for arrow in picture.arrows
    ]
    parts += [_box(box, places[box.name]) for box in picture.boxes]
    width, height = x - _SPACE + _GAP, bottom + 14.0 * len(fed_back) + _GAP / 2
    head = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="system-ui, sans-serif" font-size="12" role="img" '
        f'aria-label="{escape(picture.title)}"><title>{escape(picture.title)}</title>{head}{"".join(parts)}</svg>'
    )


def _columns(picture: Picture) -> list[list[Box]]:
    back = set(map(id, picture.fed_back))
    before: dict[str, list[str]] = {box.name: [] for box in picture.boxes}
    for arrow in picture.arrows:
        if id(arrow) not in back:
            before[arrow.target].append(arrow.source)
    layer: dict[str, int] = {}
    for box in picture.boxes:  # in order, so what feeds it has its layer
        layer[box.name] = max((layer[name] + 1 for name in before[box.name]), default=0)
    last = max(layer.values(), default=0)
    layer.update({box.name: last for box in picture.boxes if box.kind == "output"})
    height: dict[str, float] = {}
    columns = []
    for k in range(last + 1):
        column = [box for box in picture.boxes if layer[box.name] == k]
        if k:
            column.sort(key=lambda box: _mean([height[name] for name in before[box.name] if name in height]))
        height |= {box.name: float(row) for row, box in enumerate(column)}
        columns.append(column)
    return [column for column in columns if column]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _lines(box: Box) -> list[str]:
    return [box.name, *([f"in {box.group}"] if box.group else []), *box.notes]


def _width(box: Box) -> float:
    return _CHARACTER * max(map(len, _lines(box))) + 2.0 * _PAD


def _box(box: Box, place: tuple[float, float, float, float]) -> str:
    x, y, width, height = place
    dashes = ' stroke-dasharray="5 3"' if box.group else ""
    shape = (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{_RADIUS[box.kind]}" '
        f'fill="none" stroke="currentColor"{dashes}/>'
    )
    texts = [
        f'<text x="{x + width / 2:.1f}" y="{y + _LINE * (k + 1):.1f}" text-anchor="middle" fill="currentColor"'
        f"{' font-weight=' + chr(34) + 'bold' + chr(34) if k == 0 else ''}>{escape(line)}</text>"
        for k, line in enumerate(_lines(box))
    ]
    return shape + "".join(texts)


def _arrow(arrow: Arrow, places: dict[str, tuple[float, float, float, float]], below: float | None) -> str:
    x0, y0, width, height = places[arrow.source]
    x1, y1, width1, height1 = places[arrow.target]
    if below is None:
        xa, ya, xb, yb = x0 + width, y0 + height / 2, x1, y1 + height1 / 2
        half = (xb - xa) / 2
        path = f"M{xa:.1f} {ya:.1f}C{xa + half:.1f} {ya:.1f} {xb - half:.1f} {yb:.1f} {xb:.1f} {yb:.1f}"
    else:
        xa, ya, xb, yb = x0 + width * 0.6, y0 + height, x1 + width1 * 0.4, y1 + height1
        path = f"M{xa:.1f} {ya:.1f}V{below:.1f}H{xb:.1f}V{yb:.1f}"
    dashes = ' stroke-dasharray="2 3"' if arrow.is_differentiable is False else ""
    what = f"{arrow.source} → {arrow.target}: {', '.join(arrow.labels)}"
    return (
        f'<path d="{path}" fill="none" stroke="currentColor" opacity="0.6" marker-end="url(#tip)"{dashes}>'
        f"<title>{escape(what)}</title></path>"
    )
