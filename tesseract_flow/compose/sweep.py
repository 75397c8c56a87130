"""Coupled components by name, as one map of their common state: who goes first, and what has to be iterated at all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval as pe

from tesseract_flow.errors import OptionError, did_you_mean
from tesseract_flow.named import line_of

_MOST_ORDERS = 7  # components of which every order is looked at


def sweep_of(
    components: Mapping[str, Callable[..., Any]],
    start: Any,
    parameters: Sequence[Any],
    order: Sequence[str] | None,
    is_at_once: bool,
    who: str,
) -> Callable[..., Any]:
    """One round through components that each give their own part of the state, a dictionary by their names.

    One after the other, each sees what those before it have given; at once, all see the state before.

    Raises:
        OptionError: names do not match.
    """
    _check_names(components, start, order, who)
    if is_at_once:
        names: Sequence[str] = list(components)
    else:
        names = list(order) if order is not None else found_order(components, start, parameters)

    def sweep(state: Any, *parameters: Any) -> Any:
        new = dict(state)
        for name in names:
            new[name] = components[name](dict(state) if is_at_once else dict(new), *parameters)
        return new

    return sweep


def telling(fn: Callable[..., Any], start: Any, whose: str) -> Callable[..., Any]:
    """`fn`, which says in our words that it looks for a part of the state that is not there."""

    def told(state: Any, *parameters: Any) -> Any:
        try:
            return fn(state, *parameters)
        except KeyError as error:
            name = error.args[0] if error.args else ""
            parts = list(map(str, start)) if isinstance(start, Mapping) else []
            has = f" The state has {', '.join(map(repr, parts))}." if parts else ""
            raise OptionError(
                f"{whose} asks for {name!r}{line_of(error)}, and there is no such key."
                f"{did_you_mean(str(name), parts)}{has}"
            ) from error

    return told


def _check_names(components: Mapping[str, Any], start: Any, order: Sequence[str] | None, who: str) -> None:
    if not isinstance(start, Mapping):
        raise OptionError(
            f"{who}: with components by name the state is a dictionary with the part of each, such as "
            f"{{{', '.join(f'{name!r}: ...' for name in components)}}}; T0 is {type(start).__name__}."
        )
    for name in start:
        if name not in components:
            raise OptionError(
                f"{who}: T0 has a part {name!r}, and no component gives it.{did_you_mean(str(name), components)}\n"
                f"Components are: {', '.join(map(repr, components))}."
            )
    if missing := [name for name in components if name not in start]:
        raise OptionError(f"{who}: T0 has no part for {', '.join(map(repr, missing))}; each component needs a start.")
    if order is not None and sorted(order) != sorted(components):
        raise OptionError(
            f"{who}: order={list(order)!r} must name each component once; they are {', '.join(map(repr, components))}."
        )


def found_order(components: Mapping[str, Callable[..., Any]], start: Any, parameters: Sequence[Any]) -> list[str]:
    """The order in which the least has to be guessed: a component reads parts that others before it have given.

    What a component reads is seen in its trace. Of many components the one that waits for the least goes next.
    """
    sizes = {name: sum(np.size(leaf) for leaf in jax.tree_util.tree_leaves(part)) for name, part in start.items()}
    reads = {name: _read_by(fn, start, parameters) for name, fn in components.items()}

    def guessed(names: Sequence[str]) -> int:
        read_early = {other for k, name in enumerate(names) for other in reads[name] & set(names[k:])}
        return sum(sizes[name] for name in read_early)

    names = list(components)
    if len(names) <= _MOST_ORDERS:
        return list(min(itertools.permutations(names), key=guessed))  # the first of several, so the user's own
    found: list[str] = []
    while len(found) < len(names):
        left = [name for name in names if name not in found]
        found.append(min(left, key=lambda name: sum(sizes[other] for other in reads[name] - set(found))))
    return found


def _read_by(fn: Callable[..., Any], start: Any, parameters: Sequence[Any]) -> set[str]:
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(dict(start))
    used = used_leaves(
        lambda leaves: fn(treedef.unflatten(leaves), *parameters), [jnp.asarray(leaf) for _, leaf in with_paths]
    )
    return {path[0].key for (path, _), is_used in zip(with_paths, used, strict=True) if is_used}


def used_leaves(fn: Callable[[list[Any]], Any], leaves: list[Any]) -> list[bool]:
    """Which of the arrays a function looks at, by its trace."""
    closed = jax.make_jaxpr(fn)(leaves)
    return list(pe.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))[1])
