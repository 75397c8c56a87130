"""Pictures as text: an N2 matrix for terminals, Mermaid for whatever draws it."""

from __future__ import annotations

from tesseract_flow.pictures.graph import Arrow, Box, Picture

_MARKS = {True: "●", False: "○", None: "•"}


def n2(picture: Picture) -> str:
    boxes, order = picture.boxes, {box.name: k for k, box in enumerate(picture.boxes)}
    cells = {(order[arrow.source], order[arrow.target]): _MARKS[arrow.is_differentiable] for arrow in picture.arrows}
    wide, long = len(str(len(boxes))), max((len(box.name) for box in boxes), default=0)
    lines = [picture.title, " " * (wide + long + 2) + " ".join(f"{k + 1:>{wide}}" for k in range(len(boxes)))]
    for i, box in enumerate(boxes):
        marks = [cells.get((i, j), "■" if i == j else "·") for j in range(len(boxes))]
        row = " ".join(f"{mark:>{wide}}" for mark in marks)
        notes = ", ".join([box.kind, *([f"in {box.group}"] if box.group else []), *box.notes])
        lines.append(f"{i + 1:>{wide}} {box.name:<{long}} {row}   {notes}")
    lines.append(_legend(picture))
    for arrow in picture.arrows:
        if arrow.labels:
            back = " (fed back)" if arrow in picture.fed_back else ""
            lines.append(f"  {arrow.source} -> {arrow.target}{back}: {', '.join(arrow.labels)}")
    return "\n".join(lines)


def _legend(picture: Picture) -> str:
    words = {True: "differentiable", False: "not differentiable", None: "feeds"}
    seen = {arrow.is_differentiable for arrow in picture.arrows}
    marks = ", ".join(f"{_MARKS[known]} {words[known]}" for known in words if known in seen)
    back = "; below ■: fed back" if picture.fed_back else ""
    return f"a row feeds the columns with a mark: {marks}{back}" if seen else "nothing feeds anything"


_SHAPES = {
    "input": ("([", "])"),
    "output": ("([", "])"),
    "tesseract": ("[", "]"),
    "function": ("(", ")"),
    "loop": ("[[", "]]"),
}


def mermaid(picture: Picture) -> str:
    number = {box.name: f"n{k}" for k, box in enumerate(picture.boxes)}
    lines = ["flowchart LR"]
    groups = dict.fromkeys(box.group for box in picture.boxes)
    for k, group in enumerate(groups):
        inner = [_mermaid_box(number[box.name], box) for box in picture.boxes if box.group == group]
        if group is not None:
            inner = [f'subgraph g{k}["{_quoted(group)}"]', *(f"  {line}" for line in inner), "end"]
        lines += [f"  {line}" for line in inner]
    for arrow in picture.arrows:
        lines.append(f"  {number[arrow.source]} {_mermaid_arrow(arrow)} {number[arrow.target]}")
    return "\n".join(lines)


def _mermaid_box(number: str, box: Box) -> str:
    left, right = _SHAPES[box.kind]
    return f'{number}{left}"{"<br/>".join(_quoted(text) for text in (box.name, *box.notes))}"{right}'


def _mermaid_arrow(arrow: Arrow) -> str:
    label = f'|"{"<br/>".join(map(_quoted, arrow.labels))}"|' if arrow.labels else ""
    return ("-.->" if arrow.is_differentiable is False else "-->") + label


def _quoted(text: str) -> str:
    """Mermaid's own way to write what has a meaning to it, or to HTML."""
    codes = {"&": "#amp;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "#": "#35;", "`": "#96;"}
    return "".join(codes.get(c, " " if c < " " else c) for c in text)
