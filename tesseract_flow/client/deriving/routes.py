"""Which endpoint a missing derivative endpoint can be made from, and at what price.

Prices are requests per derived call, for given inputs and outputs. Not here: making them (`derived`), the mathematics
(`tesseract_flow.derivatives`). The one idea: exact before differences, then the fewest requests.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tesseract_flow.derivatives import Differences
from tesseract_flow.derivatives.derive import is_split_by_rows
from tesseract_flow.derivatives.probes import n_units

JACOBIAN, PUSHFORWARD, PULLBACK = "jacobian", "jacobian_vector_product", "vector_jacobian_product"

# Wanted -> what it follows from exactly, the cheapest first.
EXACT: Mapping[str, tuple[str, ...]] = {
    JACOBIAN: (PUSHFORWARD, PULLBACK),
    PUSHFORWARD: (JACOBIAN, PULLBACK),
    PULLBACK: (JACOBIAN, PUSHFORWARD),
}
_PER_CALL = {
    JACOBIAN: "1 request per call",
    PUSHFORWARD: "one request per input element",
    PULLBACK: "one request per output element",
}


def derivable(have: Collection[str], differences: Differences | None) -> frozenset[str]:
    """The endpoints that can be derived for a component that has some."""
    has_source = "apply" in have and (differences is not None or any(source in have for source in EXACT))
    return frozenset(EXACT) - frozenset(have) if has_source else frozenset()


def sources(endpoint: str, have: Collection[str]) -> list[str]:
    """What `endpoint` can be made from: exact routes if there are any, else `apply`."""
    return [source for source in EXACT[endpoint] if source in have] or ["apply"]


def price(
    endpoint: str, source: str, x: Mapping[str, Any], y: Mapping[str, Any], differences: Differences | None
) -> int:
    """Requests for one call. Of the inputs `x` and outputs `y` only sizes and dtypes are looked at.

    The question for the outputs' shapes is not in it: it is asked once per structure of the inputs.
    """
    if source == "apply":
        return _price_of_differences(endpoint, x, differences or Differences())
    if source == JACOBIAN:
        return 1
    if source == PUSHFORWARD:
        # Of a Jacobian, an input without elements takes one probe, for shapes.
        return n_units(x, is_split=True) if endpoint == PULLBACK else n_units(x) + _n_empty(x)
    return n_units(y, is_split=endpoint == PUSHFORWARD or is_split_by_rows(x))


def _price_of_differences(endpoint: str, x: Mapping[str, Any], differences: Differences) -> int:
    if endpoint == PUSHFORWARD:
        return 2
    if differences.is_sampled(n_units(x)):
        return 2 * differences.n_samples
    n = n_units(x, is_split=endpoint == PULLBACK)
    has_base = endpoint == JACOBIAN and _n_empty(x) > 0
    if differences.method == "forward":
        return n + 1 if n or has_base else 0
    return 2 * n + has_base


def _n_empty(x: Mapping[str, Any]) -> int:
    return sum(array.size == 0 for array in x.values())


def advice(endpoint: str, have: Collection[str]) -> str | None:
    """Which `derive=` makes a missing endpoint, and its price class; None if none does."""
    if endpoint not in EXACT or "apply" not in have:
        return None
    source = sources(endpoint, have)[0]
    if source != "apply":
        return f"open_tesseract(..., derive=True) makes it from {source!r}, at {_PER_CALL[source]}"
    unit = "call" if endpoint == PUSHFORWARD else "input element"
    return f"open_tesseract(..., derive='central') makes it by finite differences of 'apply', at 2 requests per {unit}"


def description(source: str, differences: Differences | None) -> str:
    """The route in words: `from 'jacobian'`."""
    if source != "apply":
        return f"from {source!r}"
    method = {"central": "central", "forward": "forward", "spsa": "randomly sampled (SPSA)"}
    return f"by {method[(differences or Differences()).method]} finite differences of 'apply'"
