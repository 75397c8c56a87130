"""Orders and cycles of a directed graph, given as node → nodes that it waits for."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence

Loop = tuple[str, ...]  # each feeds the next, the last one the first

_MOST_ORDERS = 7  # members of which every order is looked at


def in_order(needs: Mapping[str, Collection[str]]) -> tuple[str, ...] | list[Loop]:
    """An order in which each comes after what it needs, if possible as given; or the shortest cycle of each tangle."""
    done: list[str] = []
    left = list(needs)
    while left:
        ready = next((name for name in left if all(other in done for other in needs[name])), None)
        if ready is None:
            return _loops(needs, left)
        done.append(ready)
        left.remove(ready)
    return tuple(done)


def _loops(needs: Mapping[str, Collection[str]], names: Sequence[str]) -> list[Loop]:
    found: list[Loop] = []
    cycles = [loop for name in names if (loop := _shortest_through(needs, name)) is not None]
    for loop in sorted(cycles, key=len):
        if not any(set(loop) & set(other) for other in found):
            found.append(loop)
    return found


def _shortest_through(needs: Mapping[str, Collection[str]], start: str) -> Loop | None:
    """By breadth first, along the direction in which values flow."""
    gives: dict[str, list[str]] = {name: [] for name in needs}
    for name, others in needs.items():
        for other in others:
            gives[other].append(name)
    before: dict[str, str | None] = {start: None}
    queue = deque([start])
    while queue:
        name = queue.popleft()
        for other in gives[name]:
            if other == start:
                path = [name]
                while (earlier := before[path[-1]]) is not None:
                    path.append(earlier)
                return tuple(reversed(path))
            if other not in before:
                before[other] = name
                queue.append(other)
    return None


def best_order(names: Sequence[str], cost: Callable[[Sequence[str]], float]) -> tuple[str, ...]:
    """The order of least cost, the given one among equals. Of many names the one that costs the least next."""
    if len(names) <= _MOST_ORDERS:
        return tuple(min(itertools.permutations(names), key=cost))
    found: list[str] = []
    while len(found) < len(names):
        left = [name for name in names if name not in found]
        found.append(min(left, key=lambda name: cost([*found, name])))
    return tuple(found)
