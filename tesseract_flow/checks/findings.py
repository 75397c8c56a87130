"""What a check found, as values: findings, and the report that holds them. No terminal, no files, no JAX.

The one idea: a finding says what is wrong, where, and what to do about it, and every view (table, JSON, artifact, page)
shows the same findings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tesseract_flow.pictures import Picture
from tesseract_flow.report.tables import duration

Severity = Literal["error", "warning", "note"]
Counts = Literal["exact", "at most", "once per loop"]
_RANK: Mapping[str, int] = {"error": 0, "warning": 1, "note": 2}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that one should know before the first solve.

    Attributes:
        kind: a short name for its kind, such as `"unreachable"` or `"no-gradient"`; stable, for programs.
        where: a component, an input or output of it, a leaf of the design, a constraint.
        message: what is wrong: expected against found.
        remedy: what to do about it.
        severity: `"error"`: the run fails, or its result is wrong. `"warning"`: it may be, or may take much longer.
            `"note"`: nothing is wrong, but one may have meant something else.
    """

    kind: str
    where: str
    message: str
    remedy: str = ""
    severity: Severity = "error"

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.message}" + (f"\n  -> {self.remedy}" if self.remedy else "")


def in_order(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The worst first, each once; among equals the order in which they were found."""
    return tuple(sorted(dict.fromkeys(findings), key=lambda finding: _RANK[finding.severity]))


@dataclasses.dataclass(frozen=True)
class ComponentSummary:
    """What one component is, and what one gradient asks of it.

    Attributes:
        name, version: as it says itself; empty where it could not be asked.
        place: where it is: its handle as it prints itself.
        endpoints: the protocol's operations that can be asked of it, derived ones among them.
        calls: calls per gradient, by endpoint, as the plan has them.
        requests: what these calls cost in requests; more than calls where an endpoint is derived. None: not known.
        seconds: of one call of each endpoint lately in this process; only those that are known.
        counts: whether calls and requests are what one gradient makes: `"exact"`, `"at most"`, or `"once per loop"`,
            where those in loops and fixed points count once, as only a run tells how often they go round.
        derived: those of its endpoints that `derive=` makes of others, or of differences.
        by_differences: those of them that are made of differences, and known to some digits only.
    """

    name: str
    version: str
    place: str
    endpoints: tuple[str, ...]
    calls: Mapping[str, int] = dataclasses.field(default_factory=dict)
    requests: int | None = None
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    counts: Counts = "exact"
    derived: tuple[str, ...] = ()
    by_differences: tuple[str, ...] = ()

    @property
    def price(self) -> str:
        """Its requests per gradient, in words."""
        if self.requests is None:
            return "not known"
        return {
            "exact": f"{self.requests}",
            "at most": f"at most {self.requests}",
            "once per loop": f"{self.requests}, once round its loops",
        }[self.counts]


@dataclasses.dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        problem: its name.
        findings: the worst first. Empty for a problem with which nothing is wrong.
        components: those that the problem calls, or could.
        seconds_per_gradient: how long one is expected to take: the critical path, by how long calls took lately. None
            where a call has not been made before.
        unknown: the calls whose duration is not known.
        wiring: what feeds what, if the evaluation could be followed.
    """

    problem: str
    findings: tuple[Finding, ...]
    components: tuple[ComponentSummary, ...] = ()
    seconds_per_gradient: float | None = None
    unknown: tuple[str, ...] = ()
    wiring: Picture | None = None

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def ok(self) -> bool:
        """Whether the run can start: no finding is an error."""
        return not self.errors

    @property
    def headline(self) -> str:
        """The outcome as a sentence."""
        if not self.findings:
            return f"Nothing is wrong with {self.problem!r} as far as can be seen without a solve."
        counts = {severity: sum(f.severity == severity for f in self.findings) for severity in _RANK}
        parts = [f"{n} {severity}{'' if n == 1 else 's'}" for severity, n in counts.items() if n]
        return f"{self.problem!r}: {', '.join(parts)}."

    @property
    def cost(self) -> list[str]:
        """What is known of it, as sentences."""
        if self.seconds_per_gradient is not None:
            return [f"A gradient is expected to take {duration(self.seconds_per_gradient)}, by the latest calls."]
        if self.unknown:
            return [f"How long a gradient takes is not known: {', '.join(self.unknown)} was not called here yet."]
        return []

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `json.dumps`."""
        return {"ok": self.ok, "headline": self.headline, **dataclasses.asdict(self)}

    def __str__(self) -> str:
        return "\n".join([self.headline, *map(str, self.findings), *self.cost])
