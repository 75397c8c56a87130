"""Where a derivative endpoint is wrong: between which output and input, where in them, and in what way.

The one idea: derivatives are linear in their direction, so a direction that is zero but for one input, or half of its
entries, says whether the fault is there. Halving finds one wrong entry of a thousand in ten steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tesseract_flow.checks.budget import Spent
from tesseract_flow.checks.lines import Comparison, inner, product, size_of, stacked, stacked_weights
from tesseract_flow.checks.probe import Look, Probe
from tesseract_flow.checks.verdicts import Verdict, replacement
from tesseract_flow.client.deriving.routes import PULLBACK, PUSHFORWARD

_ALIKE = 1e-3  # between ratios that count as the same
_ARROWS = 6  # pairs of paths that are told of

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Pair:
    """One output path by one input path: what was said and found between them."""

    output: str
    input: str
    said: float
    found: float
    size: float

    @property
    def error(self) -> float:
        return abs(self.said - self.found) if np.isfinite(self.said) else float("inf")


class Blame:
    """Finds out about one endpoint of one component that is wrong."""

    def __init__(self, probe: Probe, endpoint: str, looks: Sequence[Look], *, is_brief: bool):
        self.probe, self.endpoint, self.looks, self.is_brief = probe, endpoint, looks, is_brief
        self._share = ""

    def verdicts(self, wrong: Sequence[tuple[Look, Comparison]], share: float = 1.0) -> list[Verdict]:
        """One verdict per pair of paths that is wrong, the worst first; as much as the budget allows.

        Args:
            wrong: where, and by how much. Looks at some entries alone say nothing about answers that were kept.
            share: of the derivative along all entries, where only some are looked at.
        """
        if share != 1.0:
            self._share = f"which adds {share:.0e} to the derivative along all entries; " if share else ""
        look, comparison = max(wrong, key=lambda item: item[1].error / (item[1].size or 1.0))
        verdict = Verdict(
            "wrong",
            self.probe.site.handle.name,
            self.endpoint,
            "differs",
            said=comparison.said,
            found=comparison.found,
            bound=comparison.bound,
            remedy=replacement(self.endpoint),
        )
        if len(self.probe.x) == 1:
            verdict = dataclasses.replace(verdict, input=next(iter(self.probe.x)))
        if len(self.probe.site.y_paths) == 1:
            verdict = dataclasses.replace(verdict, output=self.probe.site.y_paths[0])
        if share == 1.0 and (stale := self._stale(wrong, verdict)) is not None:
            return [stale]
        if self.is_brief:
            return [self._told(verdict, comparison)]
        try:
            pairs = self._pairs(look, comparison)
        except Spent:
            return [self._told(verdict, comparison)]
        if not pairs:
            return [self._told(verdict, comparison)]
        return [self._of_pair(look, comparison, pair, verdict, is_worst=k == 0) for k, pair in enumerate(pairs)]

    def _told(self, verdict: Verdict, comparison: Comparison, how: str = "") -> Verdict:
        times = comparison.confidence
        by = f"{times:.0f} times" if times < 1000 else "more than 1000 times"
        message = (
            f"{how}{self._share}along one direction it says {verdict.said:.6g}, and the values say {verdict.found:.6g} "
            f"(± {comparison.bound:.1g}: the error is {by} what they leave open)."
        )
        return dataclasses.replace(verdict, message=message)

    # --- an answer that was kept ---

    def is_repeated(self, look: Look) -> bool:
        """Whether the answer here is to the last bit that of the first point."""
        said, answer = self._answer(self.looks[0]), self._answer(look)
        if look is self.looks[0] or said is None or answer is None:
            return False
        return all((np.asarray(answer[path]) == said[path]).all() for path in said)

    def _stale(self, wrong: Sequence[tuple[Look, Comparison]], verdict: Verdict) -> Verdict | None:
        """Right at the first point, and to the last bit the same where it is wrong."""
        if any(look is self.looks[0] for look, _ in wrong):
            return None
        kept = next((comparison for look, comparison in wrong if self.is_repeated(look)), None)
        if kept is None:
            return None
        message = (
            "right at the first point, and the very same, to the last bit, at another one nearby where it should "
            f"differ (it says {kept.said:.8g}, the values say {kept.found:.8g}): the answer of an earlier question, "
            "kept by rounded inputs or not by all of them."
        )
        remedy = f"Key what is kept by the whole input. {replacement(self.endpoint)}"
        return dataclasses.replace(verdict, kind="stale", message=message, remedy=remedy)

    def _answer(self, look: Look) -> Arrays | None:
        if self.endpoint == PULLBACK:
            return look.pulled
        if self.endpoint == PUSHFORWARD:
            return look.pushed
        return None if look.blocks is None else {f"{y} {x}": b for y, of in look.blocks.items() for x, b in of.items()}

    # --- between which paths ---

    def _pairs(self, look: Look, comparison: Comparison) -> list[_Pair]:
        """The pairs of paths between which it is wrong, the worst first."""
        probe, y_paths = self.probe, [path for path in self.probe.site.y_paths if look.c[path].any()]
        paths = [path for path in probe.x if look.t[path].any()]
        found = {path: self._column(look, {path: look.t[path]}, comparison.step) for path in paths}
        said: dict[tuple[str, str], tuple[float, float]] = {}
        if self.endpoint == PULLBACK:
            alone = [{y: look.c[y]} for y in y_paths]
            answers = [look.pulled] if len(y_paths) == 1 else probe.pullbacks(look.x, alone)
            for y, pulled in zip(y_paths, answers, strict=True):
                assert pulled is not None
                for path in paths:
                    one = {path: pulled[path]}
                    said[y, path] = inner(one, look.t), size_of(one, look.t)
        else:
            for path, pushed in zip(paths, self._ahead(look, [{p: look.t[p]} for p in paths]), strict=True):
                for y in y_paths:
                    said[y, path] = inner({y: look.c[y]}, pushed), size_of({y: look.c[y]}, pushed)
        pairs = []
        for (y, path), (one, size) in said.items():
            column = found[path]
            if column is None:
                continue
            value = float((stacked_weights({y: look.c[y]}, look.y) * column).sum())
            pairs.append(_Pair(y, path, one, value, max(size, abs(value))))
        slack = max(comparison.bound, comparison.tolerance * comparison.size)
        bad = [
            pair
            for pair in pairs
            if not np.isfinite(pair.said)
            or (
                pair.error > max(0.5 * slack / max(len(pairs), 1), 1e-12)
                and pair.error > comparison.tolerance * pair.size
                and pair.error > 0.02 * comparison.error
            )
        ]
        return sorted(bad, key=lambda pair: -pair.error)[:_ARROWS]

    def _ahead(self, look: Look, tangents: Sequence[Arrays]) -> list[dict[str, np.ndarray]]:
        if self.endpoint == PUSHFORWARD:
            return self.probe.pushforwards(look.x, tangents)
        assert look.blocks is not None
        return [product(look.blocks, t) for t in tangents]

    def _column(self, look: Look, t: Arrays, step: float) -> np.ndarray | None:
        """J t by one difference, all outputs as a vector."""
        up, down = self.probe.values(
            [{**look.x, **{p: np.asarray(look.x[p] + s * step * t[p], look.x[p].dtype) for p in t}} for s in (1, -1)]
        )
        if up is None or down is None:
            return None
        return (stacked(up, self.probe.site.y_paths) - stacked(down, self.probe.site.y_paths)) / (2 * step)

    # --- in what way, and where ---

    def _of_pair(self, look: Look, comparison: Comparison, pair: _Pair, verdict: Verdict, *, is_worst: bool) -> Verdict:
        verdict = dataclasses.replace(verdict, output=pair.output, input=pair.input, said=pair.said, found=pair.found)
        kind, how = self._way(look, comparison, pair)
        index: tuple[int, ...] | None = None
        of_output: tuple[int, ...] | None = None
        if kind == "differs" and is_worst:
            try:
                index, how = self._worst_input(look, comparison, pair)
                if index is not None:
                    of_output = self._worst_output(look, comparison, pair, index)
            except Spent:
                how = "where in the array was not looked for, as the budget is spent; "
        verdict = dataclasses.replace(verdict, kind=kind, input_index=index, output_index=of_output)
        return self._told(verdict, comparison, how)

    def _way(self, look: Look, comparison: Comparison, pair: _Pair) -> tuple[str, str]:
        if not np.isfinite(pair.said):
            return "differs", "it is not finite; "
        if abs(pair.said) <= comparison.tolerance * abs(pair.found):
            return "missing", "this dependence is missing: "
        if abs(pair.found) <= max(comparison.bound, comparison.tolerance * abs(pair.said)):
            return "surplus", "this dependence is not there: "
        try:
            if self._is_transposed(look, comparison, pair):
                return "transposed", "it multiplies by the transpose of what it should: "
            ratio = self._common_ratio(look, comparison, pair)
        except Spent:
            ratio = None
        if ratio is None:
            return "differs", ""
        if abs(ratio + 1.0) <= _ALIKE:
            return "sign", "its sign is wrong: "
        return "factor", f"it is {ratio:.4g} times what it should be: "

    def _common_ratio(self, look: Look, comparison: Comparison, pair: _Pair) -> float | None:
        """Said to found, if it is the same along another direction."""
        rng = np.random.default_rng(1)
        mask = rng.uniform(0.3, 1.0, look.t[pair.input].shape) * rng.choice([-1.0, 1.0], look.t[pair.input].shape)
        t = {pair.input: np.asarray(look.t[pair.input] * mask, look.t[pair.input].dtype)}
        if look.t[pair.input].size == 1 and look.c[pair.output].size == 1:
            others = [one for one in self.looks if one is not look and self.endpoint in one.compared]
            if len(self.probe.x) > 1 or len(self.probe.site.y_paths) > 1 or not others:
                return pair.said / pair.found  # of a number by a number it is a factor in any case
            at = others[0].compared[self.endpoint]
            ratios = [pair.said / pair.found, at.said / at.found if at.found else np.inf]
        else:
            said, found = self._along(look, comparison, pair, t)
            if found is None or not found:
                return None
            ratios = [pair.said / pair.found, said / found]
        # Of the error, not of the values: with one wrong entry of a thousand they are nearly alike in any direction.
        return ratios[0] if abs(ratios[0] - ratios[1]) <= 0.01 * abs(ratios[0] - 1.0) else None

    def _along(self, look: Look, comparison: Comparison, pair: _Pair, t: Arrays) -> tuple[float, float | None]:
        """Said and found along another direction of the pair's input."""
        column = self._column(look, t, comparison.step)
        c = {pair.output: look.c[pair.output]}
        if self.endpoint == PULLBACK:
            pulled = self._pulled(look, pair)
            said = inner({pair.input: pulled}, t)
        else:
            (pushed,) = self._ahead(look, [t])
            said = inner(c, pushed)
        return said, None if column is None else float((stacked_weights(c, look.y) * column).sum())

    def _pulled(self, look: Look, pair: _Pair) -> np.ndarray:
        if len(self.probe.site.y_paths) == 1:
            assert look.pulled is not None
            return look.pulled[pair.input]
        (answer,) = self.probe.pullbacks(look.x, [{pair.output: look.c[pair.output]}])
        return answer[pair.input]

    def _is_transposed(self, look: Look, comparison: Comparison, pair: _Pair) -> bool:
        """Of a square block of a pullback: whether it is J c instead of J^T c; of the others the other way round."""
        x, y = look.x[pair.input], look.y[pair.output]
        if x.size != y.size or x.size < 2 or np.iscomplexobj(x) or self.endpoint != PULLBACK:
            return False
        # Entry by entry of c the size of an input's, so that the step is a small one.
        c = look.c[pair.output].reshape(x.shape)
        size = float(np.max(np.abs(look.t[pair.input]), initial=0.0)) / float(np.max(np.abs(c), initial=1e-300))
        column = self._column(look, {pair.input: np.asarray(c * size, x.dtype)}, comparison.step)
        if column is None:
            return False
        ahead = column[_slice_of(pair.output, self.probe.site.y_paths, look.y)].reshape(x.shape) / size
        pulled = self._pulled(look, pair)
        scale = float(np.max(np.abs(ahead), initial=0.0))
        return float(np.max(np.abs(pulled - ahead), initial=0.0)) <= 1e-3 * scale

    def _worst_input(self, look: Look, comparison: Comparison, pair: _Pair) -> tuple[tuple[int, ...] | None, str]:
        """By halves, the entry of the input at which it is worst."""
        shape = look.t[pair.input].shape
        t = look.t[pair.input].ravel()
        entries = np.flatnonzero(t)
        if t.size < 2 or not entries.size:
            return None, ""
        pulled = self._pulled(look, pair).ravel() if self.endpoint == PULLBACK else None
        n_both = n_levels = 0
        while entries.size > 1:
            errors = []
            halves = np.array_split(entries, 2)
            for half in halves:
                part = np.zeros_like(t)
                part[half] = t[half]
                one = {pair.input: part.reshape(shape)}
                if pulled is not None:
                    column = self._column(look, one, comparison.step)
                    c = {pair.output: look.c[pair.output]}
                    said = float(np.sum(pulled[half] * t[half]).real)
                    found = None if column is None else float((stacked_weights(c, look.y) * column).sum())
                else:
                    said, found = self._along(look, comparison, pair, one)
                errors.append(0.0 if found is None else abs(said - found))
            n_levels += 1
            n_both += min(errors) > 0.05 * max(errors)
            entries = halves[int(np.argmax(errors))]
        index = tuple(int(i) for i in np.unravel_index(int(entries[0]), shape))
        if n_both == 0:
            return index, "one entry is wrong: "
        spread = "in many entries, " if n_both > n_levels / 2 else "in some entries, "
        return index, f"{spread}worst at {list(index)}: "

    def _worst_output(
        self, look: Look, comparison: Comparison, pair: _Pair, index: tuple[int, ...]
    ) -> tuple[int, ...] | None:
        """By halves, the entry of the output at which the derivative by that entry of the input is worst."""
        y = look.y[pair.output]
        if y.size < 2:
            return None
        unit = np.zeros_like(look.t[pair.input])
        unit[index] = look.t[pair.input][index]
        column = self._column(look, {pair.input: unit}, comparison.step)
        if column is None:
            return None
        column = column[_slice_of(pair.output, self.probe.site.y_paths, look.y)][: y.size]
        if self.endpoint != PULLBACK:
            (pushed,) = self._ahead(look, [{pair.input: unit}])
            error = np.abs(np.real(pushed[pair.output].ravel()) - column)
            return tuple(int(i) for i in np.unravel_index(int(np.argmax(error)), y.shape))
        c, entries = look.c[pair.output].ravel(), np.flatnonzero(look.c[pair.output])
        while entries.size > 1:
            halves = np.array_split(entries, 2)
            cotangents = []
            for half in halves:
                part = np.zeros_like(c)
                part[half] = c[half]
                cotangents.append({pair.output: part.reshape(y.shape)})
            answers = self.probe.pullbacks(look.x, cotangents)
            errors = [
                abs(float((a[pair.input][index] * unit[index]).real) - float((np.real(c[half]) * column[half]).sum()))
                for a, half in zip(answers, halves, strict=True)
            ]
            entries = halves[int(np.argmax(errors))]
        return tuple(int(i) for i in np.unravel_index(int(entries[0]), y.shape))


def _slice_of(path: str, paths: Sequence[str], y: Mapping[str, Any]) -> slice:
    """Where an output is in the stacked vector."""
    start = 0
    for other in paths:
        n = np.asarray(y[other]).size * (2 if np.iscomplexobj(y[other]) else 1)
        if other == path:
            return slice(start, start + n)
        start += n
    raise KeyError(path)
