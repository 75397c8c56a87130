"""The components that a gradient goes through, at the inputs and with the cotangents that they get in it.

Here: which of them are looked at, and where. Not here: what is found there (`identities`, `component`).
"""

from __future__ import annotations

import contextvars
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tesseract_flow.checks.budget import Budget
from tesseract_flow.checks.component import check_component
from tesseract_flow.checks.identities import verdicts_of_identities
from tesseract_flow.checks.lines import pulled_through
from tesseract_flow.checks.probe import Pulled, Site
from tesseract_flow.checks.recording import Seen
from tesseract_flow.checks.verdicts import Verdict
from tesseract_flow.client import AbstractTesseract
from tesseract_flow.client.deriving.routes import JACOBIAN, PULLBACK, PUSHFORWARD
from tesseract_flow.derivatives import get_at
from tesseract_flow.exact import InputKey

_N_SITES = 3  # different inputs of one component that are looked at
_PREFIXES = {PULLBACK: "vjp", PUSHFORWARD: "jvp", JACOBIAN: "jac"}


def of_components(
    seen: Sequence[Seen], growth: float, budget: Budget, seed: int, *, each_alone: bool = False
) -> list[Verdict]:
    """Verdicts on each component by itself.

    Args:
        growth: how many times as large cotangents are in a run.
        each_alone: also where one input is moved and all others stay.
    """
    return _by_itself(_sites(seen, growth), budget, seed, each_alone=each_alone)


def of_endpoints(
    seen: Sequence[Seen], beside: Sequence[Seen] | None, growth: float, budget: Budget, seed: int
) -> list[Verdict]:
    """Verdicts on each component's endpoints, of which those that the gradient asked for are right there; by itself is
    looked at only what they do not fit.

    Args:
        beside: what passed at another design since.
    """
    # Where the most is pulled back, whatever the order in which answers came.
    largest: dict[AbstractTesseract, Site] = {}
    for site in _pulled(seen, growth):
        known = largest.get(site.handle)
        if known is None or _size(known) < _size(site):
            largest[site.handle] = site
    elsewhere: dict[AbstractTesseract, Site] = {}
    for site in _pulled(beside or (), growth):
        known = elsewhere.get(site.handle)
        is_like = site.handle in largest and _is_moved(site, largest[site.handle])
        if is_like and (known is None or _size(known) < _size(site)):
            elsewhere[site.handle] = site

    def look(site: Site) -> list[Verdict]:
        return verdicts_of_identities(site, elsewhere.get(site.handle), budget, seed)

    verdicts: list[Verdict] = []
    for site, found in zip(largest.values(), _at_once(list(largest.values()), look), strict=True):
        closer = _by_itself([site], budget, seed) if any(verdict.kind for verdict in found) else []
        # It says more, and of whom; but one question with two answers is a fault, whatever else is right.
        verdicts += closer if any(verdict.status == "wrong" for verdict in closer) else found
    return verdicts


def _pulled(seen: Sequence[Seen], growth: float) -> list[Site]:
    sites = [_site(one, growth) for one in seen]
    return [site for site in sites if site is not None and site.pulled is not None]


def _size(site: Site) -> float:
    return site.pulled.size if site.pulled is not None else 0.0


def _is_moved(a: Site, b: Site) -> bool:
    """Whether two questions are of one form, and about different numbers that carry derivatives."""
    if a.pulled is None or b.pulled is None or a.pulled.answer.keys() != b.pulled.answer.keys():
        return False
    if a.pulled.cotangents.keys() != b.pulled.cotangents.keys():
        return False
    pairs = [(np.asarray(get_at(a.inputs, p)), np.asarray(get_at(b.inputs, p))) for p in a.pulled.answer]
    is_like = all(x.shape == y.shape and x.dtype == y.dtype for x, y in pairs)
    return is_like and any(not np.array_equal(x, y) for x, y in pairs)


def _by_itself(sites: Sequence[Site], budget: Budget, seed: int, *, each_alone: bool = False) -> list[Verdict]:
    found = _at_once(sites, lambda site: check_component(site, budget, seed, each_alone=each_alone))
    return _once([verdict for verdicts in found for verdict in verdicts])


def _at_once(sites: Sequence[Site], look: Callable[[Site], list[Verdict]]) -> list[list[Verdict]]:
    if not sites:
        return []
    with ThreadPoolExecutor(min(len(sites), 8)) as pool:
        # In a copy of the context each, which knows whose requests they are.
        found = [pool.submit(contextvars.copy_context().run, look, site) for site in sites]
    return [one.result() for one in found]


def _once(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Of several inputs of one component the worst verdict on each endpoint and pair of paths."""
    rank = {"wrong": 0, "unsure": 1, "right": 2}
    kept: dict[Any, Verdict] = {}
    for verdict in verdicts:
        key = verdict.component, verdict.endpoint, verdict.output, verdict.input
        if key not in kept or rank[verdict.status] < rank[kept[key].status]:
            kept[key] = verdict
    return list(kept.values())


def _sites(seen: Sequence[Seen], growth: float) -> list[Site]:
    """What derivatives were asked of whom and where; a few different inputs of each."""
    sites: dict[Any, Site] = {}
    n_of: dict[AbstractTesseract, int] = {}
    for one in seen:
        site = _site(one, growth)
        if site is None:
            continue
        key = one.handle, InputKey(one.payload["inputs"])
        known = sites.get(key)
        if known is not None:
            sites[key] = dataclasses.replace(
                known,
                x_paths=tuple(dict.fromkeys((*known.x_paths, *site.x_paths))),
                y_paths=tuple(dict.fromkeys((*known.y_paths, *site.y_paths))),
                pulled=known.pulled or site.pulled,
            )
        elif n_of.get(one.handle, 0) < _N_SITES:
            n_of[one.handle] = n_of.get(one.handle, 0) + 1
            sites[key] = site
    return list(sites.values())


def _site(one: Seen, growth: float) -> Site | None:
    prefix = _PREFIXES.get(one.endpoint)
    if prefix is None:
        return None
    x_paths, y_paths = (tuple(one.payload[f"{prefix}_{kind}"]) for kind in ("inputs", "outputs"))
    pulled = None
    if one.endpoint == PULLBACK:
        pulled = Pulled(_arrays(one.payload["cotangent_vector"]), _arrays(one.answer), growth)
    elif one.endpoint == JACOBIAN:  # which is pulled back through on this side
        blocks = {y: _arrays(of_y) for y, of_y in one.answer.items()}
        rng = np.random.default_rng(len(x_paths))
        c = {}
        for y, of_y in blocks.items():
            path, block = next(iter(of_y.items()))
            shape = block.shape[: block.ndim - np.ndim(get_at(one.payload["inputs"], path))]
            c[y] = np.asarray(rng.choice([-1.0, 1.0], shape), block.dtype)
        pulled = Pulled(c, pulled_through(blocks, c, x_paths), 1.0)
    return Site(one.handle, one.payload["inputs"], x_paths, y_paths, pulled)


def _arrays(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {path: np.asarray(value) for path, value in tree.items()}
