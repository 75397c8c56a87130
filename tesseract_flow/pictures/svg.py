"""Pictures as SVG: boxes in columns, each to the right of what feeds it, and arrows that keep clear of boxes.

What is fed back runs below. Colours are those of the page around (`currentColor`).

Source: K. Sugiyama, S. Tagawa and M. Toda, Methods for visual understanding of hierarchical system structures (1981):
layers by longest paths, a place in each layer that an arrow crosses, order by the mean of what comes from the left.
"""

from __future__ import annotations

import dataclasses
import itertools
from html import escape

from tesseract_flow.pictures.graph import Arrow, Box, Picture

_CHARACTER, _LINE, _PAD, _GAP, _SPACE, _LANE = 6.7, 16.0, 8.0, 22.0, 80.0, 14.0
_RADIUS = {"input": 14, "output": 14, "function": 8, "tesseract": 1, "loop": 1}
_MOST_VALUES = 4  # that a box lists


@dataclasses.dataclass
class _Place:
    """A box, or where an arrow crosses a column between others."""

    lines: tuple[str, ...]
    box: Box | None
    before: list[int]
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 4.0

    @property
    def left(self) -> tuple[float, float]:
        return self.x, self.y + self.height / 2

    @property
    def right(self) -> tuple[float, float]:
        return self.x + self.width, self.y + self.height / 2


def svg(picture: Picture) -> str:
    places, columns, ways = _layers(picture)
    x, bottom = _GAP, 0.0
    for column in columns:
        width = max(place.width for place in column)
        y = _GAP
        for place in column:
            place.x, place.y = x, y
            # Arrows that cross go straight through the whole column.
            place.width = width
            y += place.height + _GAP
        bottom = max(bottom, y)
        x += width + _SPACE
    fed_back = picture.fed_back
    parts = [_arrow(arrow, _forward(ways[k], places)) for k, arrow in enumerate(picture.arrows) if k in ways]
    names = {place.box.name: place for place in places if place.box is not None}
    for k, arrow in enumerate(fed_back):
        parts.append(_arrow(arrow, _back(names[arrow.source], names[arrow.target], bottom + _LANE * k, k)))
    parts += [_box(place) for place in places if place.box is not None]
    width, height = x - _SPACE + _GAP, bottom + _LANE * len(fed_back)
    head = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="system-ui, sans-serif" font-size="12" role="img" '
        f'aria-label="{escape(picture.title)}"><title>{escape(picture.title)}</title>{head}{"".join(parts)}</svg>'
    )


def _layers(picture: Picture) -> tuple[list[_Place], list[list[_Place]], dict[int, list[int]]]:
    """All places; those of each column from above; per arrow that is not fed back the places on its way."""
    back = set(map(id, picture.fed_back))
    ahead = {k: arrow for k, arrow in enumerate(picture.arrows) if id(arrow) not in back}
    number = {box.name: k for k, box in enumerate(picture.boxes)}
    layer = [0] * len(picture.boxes)
    for k, box in enumerate(picture.boxes):  # in order, so what feeds it has its layer
        feeding = [layer[number[arrow.source]] + 1 for arrow in ahead.values() if arrow.target == box.name]
        layer[k] = max(feeding, default=0)
    last = max(layer, default=0)
    layer = [last if box.kind == "output" else layer[k] for k, box in enumerate(picture.boxes)]
    places = []
    for box in picture.boxes:
        lines = _lines(box, picture)
        width, height = _CHARACTER * max(map(len, lines)) + 2.0 * _PAD, _LINE * (len(lines) + 0.5)
        places.append(_Place(lines, box, [], width=width, height=height))
    ways = {}
    for k, arrow in ahead.items():
        start, end = number[arrow.source], number[arrow.target]
        way = [start]
        for between in range(layer[start] + 1, layer[end]):
            places.append(_Place((), None, [way[-1]]))
            layer.append(between)
            way.append(len(places) - 1)
        places[end].before.append(way[-1])
        ways[k] = [*way, end]
    row: dict[int, float] = {}
    columns = []
    for n in range(last + 1):
        column = [k for k in range(len(places)) if layer[k] == n]
        if n:
            column.sort(key=lambda k: sum(row[j] for j in places[k].before) / max(1, len(places[k].before)))
        row |= {k: float(position) for position, k in enumerate(column)}
        if column:
            columns.append([places[k] for k in column])
    return places, columns, ways


def _lines(box: Box, picture: Picture) -> tuple[str, ...]:
    values = dict.fromkeys(label for arrow in picture.arrows if arrow.source == box.name for label in arrow.labels)
    given = [f"→ {label}" for label in list(values)[:_MOST_VALUES]] + (["→ ..."] if len(values) > _MOST_VALUES else [])
    return (box.name, *([f"in {box.group}"] if box.group else []), *box.notes, *given)


def _box(place: _Place) -> str:
    box = place.box
    assert box is not None
    width = _CHARACTER * max(map(len, place.lines)) + 2.0 * _PAD
    x = place.x + (place.width - width) / 2
    dashes = ' stroke-dasharray="5 3"' if box.group else ""
    shape = (
        f'<rect x="{x:.1f}" y="{place.y:.1f}" width="{width:.1f}" height="{place.height:.1f}" rx="{_RADIUS[box.kind]}" '
        f'fill="none" stroke="currentColor"{dashes}/>'
    )
    weight = ' font-weight="bold"'
    texts = [
        f'<text x="{x + width / 2:.1f}" y="{place.y + _LINE * (k + 1):.1f}" text-anchor="middle" fill="currentColor"'
        f"{weight if k == 0 else ''}>{escape(line)}</text>"
        for k, line in enumerate(place.lines)
    ]
    return shape + "".join(texts)


def _edges(place: _Place) -> tuple[float, float]:
    """Where a box begins and ends within its column."""
    if place.box is None:
        return place.x, place.x + place.width
    width = _CHARACTER * max(map(len, place.lines)) + 2.0 * _PAD
    return place.x + (place.width - width) / 2, place.x + (place.width + width) / 2


def _forward(way: list[int], places: list[_Place]) -> str:
    path = ""
    for a, b in itertools.pairwise(way):
        (xa, ya), (xb, yb) = (_edges(places[a])[1], places[a].right[1]), (_edges(places[b])[0], places[b].left[1])
        half = (xb - xa) / 2
        path += f"M{xa:.1f} {ya:.1f}" if not path else f"L{xa:.1f} {ya:.1f}"
        path += f"C{xa + half:.1f} {ya:.1f} {xb - half:.1f} {yb:.1f} {xb:.1f} {yb:.1f}"
    return path


def _back(source: _Place, target: _Place, below: float, k: int) -> str:
    xa, xb = _edges(source)[1] + 10.0 + 5.0 * k, _edges(target)[0] - 14.0 - 5.0 * k
    ya, yb = source.right[1] + 4.0, target.left[1] + 4.0
    return f"M{_edges(source)[1]:.1f} {ya:.1f}H{xa:.1f}V{below:.1f}H{xb:.1f}V{yb:.1f}H{_edges(target)[0]:.1f}"


def _arrow(arrow: Arrow, path: str) -> str:
    dashes = ' stroke-dasharray="2 3"' if arrow.is_differentiable is False else ""
    what = f"{arrow.source} → {arrow.target}: {', '.join(arrow.labels)}"
    return (
        f'<path d="{path}" fill="none" stroke="currentColor" opacity="0.6" marker-end="url(#tip)"{dashes}>'
        f"<title>{escape(what)}</title></path>"
    )
