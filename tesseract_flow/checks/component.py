"""One component's derivative endpoints at a point that it really sees, against its own values.

Asked at the point itself and at two others nearby, in an order in which an answer that was kept would show. First along
one random direction over all inputs; only where that fails is it found out between which output and input, and where
in them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tesseract_flow.checks.blame import Blame
from tesseract_flow.checks.budget import Budget, Spent
from tesseract_flow.checks.identities import factor_of, unlike
from tesseract_flow.checks.lines import (
    Comparison,
    Line,
    by_own_size,
    direction,
    inner,
    own_share,
    product,
    pulled_through,
    size_of,
    sizes,
    stacked_weights,
)
from tesseract_flow.checks.probe import Look, Probe, Site, largest
from tesseract_flow.checks.shares import Closer, Part
from tesseract_flow.checks.verdicts import Verdict, replacement
from tesseract_flow.client.deriving.memory import described_inputs
from tesseract_flow.client.deriving.routes import JACOBIAN, PULLBACK, PUSHFORWARD
from tesseract_flow.derivatives import get_at
from tesseract_flow.errors import CallError

_DECIMALS = (4, 2)  # other points that a cache that rounds to so many, or to fewer, takes for the same
_FAR = 1e-2  # relative distance of one that it does not
_MOST_ALONE = 8  # inputs that are moved while all others stay
_EXACT = 1e-8  # relative: beyond, pushforward and pullback contradict each other
_PURE = 1e-3  # relative: beyond, one question has two answers


def check_component(site: Site, budget: Budget, seed: int = 0, *, each_alone: bool = False) -> list[Verdict]:
    """The verdicts on one component. Ends early, with what is known, when the budget is spent.

    Args:
        each_alone: also where one input is moved and all others stay: an answer that is kept by some of the inputs only
            is right wherever all of them move.
    """
    probe = Probe(site, budget, np.random.default_rng(seed))
    name = site.handle.name
    if not probe.x or not site.y_paths:
        return []
    verdicts: list[Verdict] = []
    looks: list[Look] = []
    everywhere: list[Look] = []  # where all inputs are others
    try:
        verdicts += _of_shapes(probe)
        far = {p: probe.x[p] + _FAR * own_share(probe.x[p]) * t for p, t in direction(probe.x, probe.rng).items()}
        near = [{p: alike(v, n) for p, v in probe.x.items()} for n in _DECIMALS]
        alone = [{**probe.x, p: far[p]} for p in probe.x] if each_alone and len(probe.x) > 1 else []
        for x in (probe.x, *alone[:_MOST_ALONE], *near, far):
            # The last one in directions of its own: what one of them cannot see by chance, another one does.
            look = _look(probe, x, looks[0] if looks and x is not far else None, is_first=x is probe.x)
            if look is not None:
                looks.append(look)
                everywhere += [look] if not any(x is one for one in alone) else []
        if not looks:
            return [*verdicts, Verdict("unsure", name, "apply", message="it does not answer with finite numbers here.")]
        verdicts += _of_precision(probe, everywhere)
        # What is wrong there in any case is told of below, and how.
        if PULLBACK in looks[0].compared and not looks[0].compared[PULLBACK].is_wrong:
            verdicts += _of_linearity(probe, looks[0]) or _of_purity(probe, looks[0])
        verdicts += _of_endpoints(probe, looks, verdicts)
    except Spent as spent:
        verdicts.append(Verdict("unsure", name, "", message=f"{spent} What was seen so far counts."))
        verdicts += _of_endpoints(probe, looks, verdicts, is_brief=True)
    except CallError as error:
        endpoint = error.endpoint if error.endpoint != "?" else ""
        verdicts.append(Verdict("wrong", name, endpoint, "error", message=str(error)))
    return verdicts


def alike(x: np.ndarray, decimals: int) -> np.ndarray:
    """Another number in place of each, that rounds to the same ones: to so many decimals and to fewer."""
    if np.iscomplexobj(x):
        return x
    low, high = np.full(x.shape, -np.inf), np.full(x.shape, np.inf)
    for n in range(decimals + 1):
        low = np.maximum(low, np.round(x, n) - 0.49 * 10.0**-n)
        high = np.minimum(high, np.round(x, n) + 0.49 * 10.0**-n)
    longest = _FAR * sizes(x)
    far = np.where(high - x > x - low, np.minimum(high, x + longest), np.maximum(low, x - longest))
    return np.asarray(far, x.dtype)


def _look(probe: Probe, x: Mapping[str, np.ndarray], first: Look | None, *, is_first: bool) -> Look | None:
    """All endpoints at a point, in the directions of the first look, or in new ones."""
    rng = probe.rng
    x = {path: np.asarray(x[path], probe.x[path].dtype) for path in probe.x}
    (y,) = probe.values([x])
    if y is None:
        return None
    t = first.t if first is not None else {p: np.asarray(v, probe.x[p].dtype) for p, v in direction(x, rng).items()}
    c = first.c if first is not None else _cotangents(y, rng)
    look = Look(x, y, t, c, probe.line(x, t, y))
    if PULLBACK in probe.endpoints:
        factors = _factors(probe, c) if is_first else []
        # All at once, before anybody is asked elsewhere.
        look.pulled, *multiples = probe.pullbacks(x, [c, *(_multiple(c, factor) for factor in factors)])
        look.multiples = dict(zip(factors, multiples, strict=True))
    look = _compared(probe, look)
    is_wrong = any(one.is_wrong for one in look.compared.values())
    own = by_own_size(x, t, is_coarse=probe.is_coarse) if is_wrong else None
    if own is None:
        return look
    return _compared(probe, dataclasses.replace(look, t=own, line=probe.line(x, own, y), compared={}))


def _compared(probe: Probe, look: Look) -> Look:
    """With what each endpoint says along the direction, against the values there."""
    w, c, t = stacked_weights(look.c, look.y), look.c, look.t
    if look.pulled is not None:
        look.compared[PULLBACK] = look.line.compare(inner(look.pulled, t), size_of(look.pulled, t), w)
    if PUSHFORWARD in probe.endpoints:
        (look.pushed,) = probe.pushforwards(look.x, [t])
        look.compared[PUSHFORWARD] = look.line.compare(inner(c, look.pushed), size_of(c, look.pushed), w)
    if JACOBIAN in probe.endpoints:
        look.blocks = look.blocks or probe.jacobian(look.x)
        ahead = product(look.blocks, t)
        look.compared[JACOBIAN] = look.line.compare(inner(c, ahead), size_of(c, ahead), w)
    return look


def _factors(probe: Probe, c: Mapping[str, np.ndarray]) -> list[float]:
    """Times which cotangents are as large as those in the pipeline, and as those in a run."""
    size, pulled = largest(c), probe.site.pulled
    targets = [2.0 * size] if pulled is None else [pulled.size, pulled.size * pulled.growth, pulled.size * pulled.reach]
    return list(dict.fromkeys(factor_of(size, target, is_coarse=probe.is_coarse) for target in targets))


def _cotangents(y: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random, and such that each output counts as much as any other, whatever its size."""
    cotangents = {}
    for path, value in y.items():
        size = float(np.sqrt(np.mean(np.abs(value) ** 2))) if value.size else 1.0
        c = rng.choice([-1.0, 1.0], value.shape) * rng.uniform(0.5, 1.0, value.shape) / (size or 1.0)
        cotangents[path] = np.asarray(c, value.dtype)
    return cotangents


# --- verdicts ---------------------------------------------------------------------------------------------------------


def _of_shapes(probe: Probe) -> list[Verdict]:
    """Whether abstract_eval tells the shapes and dtypes that apply gives."""
    schema, name = probe.handle.schema, probe.site.handle.name
    if "abstract_eval" not in schema.endpoints:
        return []
    asked = described_inputs(schema, probe.site.inputs)
    (told,) = probe._ask("abstract_eval", [lambda: probe.handle.abstract_eval(asked)])
    (y,) = probe.values([probe.x])
    verdicts = []
    for path, value in (y or {}).items():
        said = get_at(told, path)
        shape, dtype = tuple(said["shape"]), np.dtype(said["dtype"])
        if shape != value.shape or dtype != value.dtype:
            message = f"it says shape {shape} and {dtype}, and apply gives shape {value.shape} and {value.dtype}."
            verdicts.append(
                Verdict("wrong", name, "abstract_eval", "shapes", path, message=message, remedy="Mend abstract_eval.")
            )
    return verdicts


def _of_precision(probe: Probe, looks: Sequence[Look]) -> list[Verdict]:
    """Numbers said to have 64 bits that all have 32: seen at random points, where half of the digits are not zeros."""
    name, verdicts = probe.site.handle.name, []
    nearby = looks[1:]
    if not nearby:
        return []

    def narrowed(arrays: Sequence[np.ndarray]) -> bool:
        """Whether these vary, and fit into 32 bits all the same."""
        if any(a.dtype not in (np.float64, np.complex128) or not a.size for a in arrays):
            return False
        narrow = np.complex64 if np.iscomplexobj(arrays[0]) else np.float32
        with np.errstate(over="ignore"):
            fits = all((a.astype(narrow).astype(a.dtype) == a).all() for a in arrays)
        return fits and all((a != looks_first).any() for a, looks_first in zip(arrays[1:], arrays, strict=False))

    remedy = "Compute in float64 throughout (in JAX: jax_enable_x64), or say Float32 in the schema."
    for path in probe.site.y_paths:
        if narrowed([look.y[path] for look in nearby]):
            message = (
                "it says float64, and its numbers have no more digits than float32: gradients and differences are "
            )
            message += "exact to seven digits at most."
            verdicts.append(Verdict("wrong", name, "apply", "float32", path, message=message, remedy=remedy))
    for endpoint, of_look in ((PULLBACK, lambda look: look.pulled), (PUSHFORWARD, lambda look: look.pushed)):
        answers = [of_look(look) for look in nearby]
        if any(answer is None for answer in answers):
            continue
        for path in answers[0]:
            if narrowed([answer[path] for answer in answers]):
                of = {"output": path} if endpoint == PUSHFORWARD else {"input": path}
                message = "it says float64, and its numbers have no more digits than float32."
                verdicts.append(Verdict("wrong", name, endpoint, "float32", message=message, remedy=remedy, **of))
    return verdicts


def _of_linearity(probe: Probe, look: Look) -> list[Verdict]:
    """Pullbacks along multiples of the same cotangents: what is not linear is right for some and wrong for others."""
    for factor, answer in look.multiples.items():
        assert look.pulled is not None
        error, at = unlike(_multiple(answer, 1.0 / factor), look.pulled, look.x)
        if error > _PURE:
            size = largest(look.c)
            message = (
                f"it is not linear in its cotangent: for {factor:.4g} times as much it says something else than so "
                f"many times its answer, by {error:.1g} of that. Something is clipped, or cut off, between "
                f"cotangents of {size:.1g} and of {size * abs(factor):.1g}."
            )
            name, remedy = probe.site.handle.name, replacement(PULLBACK)
            return [Verdict("wrong", name, PULLBACK, "nonlinear", input=at, message=message, remedy=remedy)]
    return []


def _of_purity(probe: Probe, first: Look) -> list[Verdict]:
    """The first question once more, after others: an answer that depends on what was asked before is another one. For
    twice the cotangent, as the same one may be answered from a cache."""
    assert first.pulled is not None
    (again,) = probe.pullbacks(first.x, [_multiple(first.c, 2.0)])
    error, at = unlike(_multiple(again, 0.5), first.pulled, first.x)
    if error <= _PURE:
        return []
    return [
        Verdict(
            "wrong",
            probe.site.handle.name,
            PULLBACK,
            "stale",
            input=at,
            message=f"the same question, asked again after others, has another answer (by {error:.1g} of its size): it "
            "keeps something from one call to the next.",
            remedy=replacement(PULLBACK),
        )
    ]


def _multiple(arrays: Mapping[str, np.ndarray], factor: float) -> dict[str, np.ndarray]:
    return {path: np.asarray(factor * value, value.dtype) for path, value in arrays.items()}


def _of_endpoints(
    probe: Probe, looks: Sequence[Look], known: Sequence[Verdict], *, is_brief: bool = False
) -> list[Verdict]:
    name, verdicts = probe.site.handle.name, list[Verdict]()
    is_told = any(v.kind in ("stale", "nonlinear") for v in known)
    for endpoint in probe.endpoints:
        compared = [(look, _judged(look, endpoint)) for look in looks if endpoint in look.compared]
        blame = Blame(probe, endpoint, looks, is_brief=is_brief)
        # The very same answer at another point need not be far off to be that of another question.
        wrong = [(look, one) for look, one in compared if one.is_wrong or (blame.is_repeated(look) and one.is_off)]
        if wrong:
            if not (is_told and endpoint == PULLBACK):
                verdicts += blame.verdicts(wrong)
        elif flat := next((look for look, one in compared if _is_flat(look, one)), None):
            verdicts.append(_flat(name, flat, endpoint))
        elif compared and not (is_told and endpoint == PULLBACK):
            sure = all(comparison.is_sure for _, comparison in compared)
            worst = max((one for _, one in compared), key=lambda one: (not one.is_sure, one.bound))
            message = worst.agreement if sure else worst.doubt
            closer = _closer(probe, looks[-1], endpoint) if sure and not is_brief else None
            if closer is not None and closer.wrong:
                parts = [(_part_of(looks[-1], part, endpoint), part.comparison) for part in closer.wrong]
                verdicts += blame.verdicts(parts, share=max(part.share for part in closer.wrong))
                continue
            if closer is not None and closer.unseen:
                sure = False
                message += f" What it says by {', '.join(closer.unseen[:6])} is too small beside the rest to show."
            verdicts.append(
                Verdict(
                    "right" if sure else "unsure",
                    name,
                    endpoint,
                    said=worst.said,
                    found=worst.found,
                    bound=worst.bound,
                    message=message,
                )
            )
    verdicts += _of_adjoints(name, looks, [*known, *verdicts])
    return verdicts


def _closer(probe: Probe, look: Look, endpoint: str) -> Closer | None:
    """What one comparison does not show; None where no gradient tells how large each term is."""
    of = {PULLBACK: look.pulled, JACOBIAN: look.blocks}.get(endpoint)
    if endpoint not in look.compared or of is None or any(map(np.iscomplexobj, look.y.values())):
        return None
    w, paths = stacked_weights(look.c, look.y), probe.site.y_paths

    def line_of(t: Mapping[str, np.ndarray]) -> Line:
        return probe.line(look.x, t, look.y)

    def pull(weights: np.ndarray) -> Mapping[str, np.ndarray]:
        c = _unstacked(weights, look, paths)
        if look.blocks is not None and endpoint == JACOBIAN:
            return pulled_through(look.blocks, c, probe.x)
        (pulled,) = probe.pullbacks(look.x, [{path: value for path, value in c.items() if value.any()}])
        return pulled

    gradient = look.pulled if endpoint == PULLBACK else pulled_through(look.blocks or {}, look.c, probe.x)
    assert gradient is not None
    closer = Closer(look.x, line_of, pull, [path for path in paths for _ in range(look.y[path].size)])
    try:
        closer.look(Part(look.t, w, gradient, look.line, look.compared[endpoint]))
    except Spent as spent:
        closer.unseen.append(f"what is small ({str(spent).rstrip('.')})")
    return closer


def _part_of(look: Look, part: Part, endpoint: str) -> Look:
    """A look at these entries and results alone, as far as `Blame` is concerned."""
    t = {path: part.t.get(path, np.zeros_like(step)) for path, step in look.t.items()}
    c = _unstacked(part.weights, look, list(look.y))
    pulled = dict(part.gradient) if endpoint == PULLBACK else None
    return Look(look.x, look.y, t, c, part.line, pulled, blocks=look.blocks, compared={endpoint: part.comparison})


def _unstacked(weights: np.ndarray, look: Look, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Cotangents of what weighs something; zero for the rest."""
    c, start = {}, 0
    for path in paths:
        size = look.y[path].size
        c[path] = np.asarray(weights[start : start + size].reshape(look.y[path].shape), look.y[path].dtype)
        start += size
    return c


def _judged(look: Look, endpoint: str) -> Comparison:
    """The comparison, which needs a second endpoint that says the same to leave a slope open that no step shows."""
    one = look.compared[endpoint]
    others = (other for name, other in look.compared.items() if name != endpoint)
    is_backed = any(abs(other.said - one.said) <= _PURE * max(other.size, one.size) for other in others)
    return one if is_backed or not one.finest else dataclasses.replace(one, finest=0.0)


def _is_flat(look: Look, comparison: Comparison) -> bool:
    return look.line.is_flat(comparison.step, comparison.said, stacked_weights(look.c, look.y))


def _flat(name: str, look: Look, endpoint: str) -> Verdict:
    return Verdict(
        "wrong",
        name,
        "apply",
        "stale",
        said=look.compared[endpoint].said,
        found=0.0,
        message="it gives the very same outputs, to the last bit, at different inputs: it rounds them, or keeps "
        "answers by rounded inputs.",
        remedy="Key what is kept by the whole input.",
    )


def _of_adjoints(name: str, looks: Sequence[Look], known: Sequence[Verdict]) -> list[Verdict]:
    """<c, J t> = <J^T c, t>: exact, so it also sees what noise hides from differences."""
    if any(v.status == "wrong" and v.endpoint in (PULLBACK, PUSHFORWARD) for v in known):
        return []
    for look in looks:
        if look.pulled is None or look.pushed is None:
            continue
        pulled, pushed = inner(look.pulled, look.t), inner(look.c, look.pushed)
        size = size_of(look.pulled, look.t)
        exact = 1e-3 if look.line.tolerance > 1e-3 else max(_EXACT, look.line.tolerance)
        if abs(pulled - pushed) > exact * max(size, abs(pushed)):
            return [
                Verdict(
                    "wrong",
                    name,
                    f"{PULLBACK}, {PUSHFORWARD}",
                    "adjoint",
                    said=pulled,
                    found=pushed,
                    bound=exact * size,
                    message=f"they are not each other's transposes: <J^T c, t> = {pulled:.6g}, "
                    f"<c, J t> = {pushed:.6g}. One of them is wrong; the values are too rough to tell which.",
                    remedy="Compare both with the formula; either can be replaced with derive=tf.Derive(replace=...).",
                )
            ]
    return []
