"""What a check of gradients came to, as values: verdicts, and the report that holds them."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

Status = Literal["wrong", "unsure", "right"]
_RANK = {"wrong": 0, "unsure": 1, "right": 2}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is known of one endpoint of a component, or of the gradient as a whole.

    Attributes:
        status: `"wrong"`: contradicted by the values, beyond what their noise leaves open. `"unsure"`: neither shown to
            be wrong nor right. `"right"`: agrees with the values.
        component: its name; `"total"` for the gradient of the whole problem.
        endpoint: what was asked.
        kind: of a fault: `"sign"`, `"factor"`, `"missing"`, `"surplus"`, `"transposed"`, `"stale"`, `"float32"`,
            `"shapes"`, `"adjoint"`, `"error"` or `"differs"`.
        output, input: paths between which it is worst; of the total a leaf of the design.
        output_index, input_index: where in these arrays it is worst, as far as it was looked for.
        said, found: a derivative along one direction: what the endpoint says, and what the values say.
        bound: how far `found` may be off.
        message, remedy: in words.
    """

    status: Status
    component: str
    endpoint: str
    kind: str = ""
    output: str | None = None
    input: str | None = None
    output_index: tuple[int, ...] | None = None
    input_index: tuple[int, ...] | None = None
    said: float | None = None
    found: float | None = None
    bound: float | None = None
    message: str = ""
    remedy: str = ""

    @property
    def where(self) -> str:
        """`fem.vector_jacobian_product: displacement[3, 0] by inertia[7]`."""
        place = f"{self.component}.{self.endpoint}" if self.endpoint else self.component
        of = _place(self.output, self.output_index)
        by = _place(self.input, self.input_index)
        if of and by:
            return f"{place}: {of} by {by}"
        return f"{place}: {of or by}" if of or by else place

    def __str__(self) -> str:
        return f"{self.status}: {self.where}: {self.message}" + (f"\n  -> {self.remedy}" if self.remedy else "")


def _place(path: str | None, index: tuple[int, ...] | None) -> str:
    return "" if path is None else path + (str(list(index)) if index else "")


@dataclasses.dataclass(frozen=True)
class GradientReport:
    """What `check_gradients` found.

    Attributes:
        name: of the problem.
        verdicts: the worst first.
        planned: requests that were announced for the total, before the first: those inside of loops once, as only a run
            tells how often they go round. `most` is for everything; what a single run sends beyond it is sent.
        sent: requests that were sent, those included that tracing took. Questions for shapes are in none of them.
    """

    name: str
    verdicts: tuple[Verdict, ...]
    planned: int
    most: int
    sent: int

    @property
    def ok(self) -> bool:
        """Whether nothing was shown to be wrong."""
        return not self.faults

    @property
    def faults(self) -> tuple[Verdict, ...]:
        return tuple(verdict for verdict in self.verdicts if verdict.status == "wrong")

    @property
    def headline(self) -> str:
        """The outcome as a sentence."""
        cost = f"{self.sent} request{'' if self.sent == 1 else 's'}"
        if self.ok:
            unsure = any(verdict.status == "unsure" for verdict in self.verdicts)
            outcome = "not shown to be wrong, nor to be right" if unsure else "right"
            return f"The gradients of {self.name!r} are {outcome}, as far as was looked ({cost})."
        names = dict.fromkeys(verdict.component for verdict in self.faults if verdict.component != "total")
        whose = f": look at {', '.join(names)}" if names else ""
        return f"The gradients of {self.name!r} are wrong{whose} ({cost})."

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `json.dumps`."""
        return {"ok": self.ok, "headline": self.headline, **dataclasses.asdict(self)}

    def __str__(self) -> str:
        return "\n".join([self.headline, *map(str, self.verdicts)])


def in_order(verdicts: list[Verdict]) -> tuple[Verdict, ...]:
    return tuple(sorted(dict.fromkeys(verdicts), key=lambda verdict: _RANK[verdict.status]))


def replacement(endpoint: str) -> str:
    """How to do without an endpoint."""
    return (
        f"Mend {endpoint} in its tesseract_api.py. Until then: open_tesseract(..., derive=tf.Derive(tf.Differences(), "
        f'replace="{endpoint}")) makes it from the others, without touching the component.'
    )
