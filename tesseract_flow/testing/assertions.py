"""What a test claims of a pipeline: its gradients are right, it asks for no more than it should."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tesseract_flow.checks import check_gradients
from tesseract_flow.client import count_requests
from tesseract_flow.client.meter import RequestCounts
from tesseract_flow.errors import OptionError, did_you_mean

_NAMES = {
    "apply": "apply",
    "pullback": "vector_jacobian_product",
    "pushforward": "jacobian_vector_product",
    "jacobian": "jacobian",
    "shapes": "abstract_eval",
}


def assert_gradients(target: Any, at: Any = None, **options: Any) -> None:
    """Derivatives agree with the values, or the message says whose are wrong and where.

    Args:
        target: a `tf.Problem`, or a function of a design (any tree of arrays) to a number.
        at: the design to look at; a problem has one, its start.
        options: of `tf.check_gradients`, such as `seed`, `max_requests`, `components`.

    Raises:
        AssertionError: they do not.
    """
    if callable(target):
        if at is None:
            raise OptionError("assert_gradients: a function needs a design to look at: at=...")
        report = check_gradients((target, at), **options)
    else:
        report = check_gradients(target, at=at, **options)
    if not report.ok:
        raise AssertionError(str(report))


@contextlib.contextmanager
def assert_requests(_by_name: dict[str, int] | None = None, /, **expected: int) -> Iterator[RequestCounts]:
    """So many requests are sent in the block, and no others; attempts count, and what a replay answers.

    >>> with assert_requests(apply=3, pullback=3):
    ...     jax.value_and_grad(loss)(design)
    >>> with assert_requests({"fem.apply": 1}):
    ...     solve()

    Args:
        _by_name: the same for one Tesseract each, as `"name.endpoint"`; others may be asked for anything then.
        expected: over all Tesseracts, for `apply`, `pullback`, `pushforward`, `jacobian`; one that is not named is not
            asked for. `shapes` count only where they are named, as they are asked for once in a process.

    Raises:
        AssertionError: it was another number; not where the block itself raises.
        OptionError: there is no such endpoint.
    """
    for name in expected:
        if name not in _NAMES:
            raise OptionError(f"assert_requests: there is no {name!r}.{did_you_mean(name, _NAMES)}")
    by_name = {_long(name): n for name, n in (_by_name or {}).items()}
    with count_requests() as counts:
        yield counts
    wanted = {name: expected.get(name, 0) for name in _NAMES if name in expected or (name != "shapes" and not by_name)}
    wrong = [
        f"{name}: {counts.n_of(_NAMES[name])} where {n} was expected"
        for name, n in wanted.items()
        if counts.n_of(_NAMES[name]) != n
    ]
    wrong += [f"{name}: {counts[name]} where {n} was expected" for name, n in by_name.items() if counts[name] != n]
    if wrong:
        sent = ", ".join(f"{name} {n}" for name, n in sorted(counts.items())) or "nothing"
        raise AssertionError(f"Requests: {'; '.join(wrong)}.\nSent was: {sent}.")


def _long(name: str) -> str:
    tesseract, _, endpoint = name.rpartition(".")
    return f"{tesseract}.{_NAMES.get(endpoint, endpoint)}"
