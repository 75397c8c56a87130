"""Trees less their arrays, equal if and only if a computation cannot tell them apart: JAX's constants.

Here: `Static`, for trees without arrays, and `Skeleton`, for what is left of a tree when JAX takes its arrays. Not
here: keys of whole inputs and what makes two leaves equal, which the client needs as well (`tesseract_flow.exact`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax

from tesseract_flow.exact import exact

_HOLE = object()


class _Identified:
    """Compared by one value, which says everything."""

    __slots__ = ("_hash", "_identity")

    def __init__(self, structure: Any, identities: tuple[Any, ...]):
        # As text: the hashes and, for keys such as 1 and True, the equality of tree structures are too coarse.
        self._identity = str(structure), identities
        self._hash = hash(self._identity)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (type(other) is type(self) and self._identity == other._identity)


@jax.tree_util.register_static
class Static(_Identified):
    """A tree without arrays that JAX compares and carries along: a constant to the functions that it compiles."""

    __slots__ = ("tree",)

    def __init__(self, tree: Any):
        leaves, structure = jax.tree_util.tree_flatten(tree)
        super().__init__(structure, tuple(exact(leaf) for leaf in leaves))
        self.tree = tree


@jax.tree_util.register_static
class Skeleton(_Identified):
    """A tree with holes in place of the leaves that JAX traces. To JAX it is a constant as well."""

    __slots__ = ("_leaves", "_structure")

    def __init__(self, structure: Any, leaves: list[Any]):
        super().__init__(structure, tuple([None if leaf is _HOLE else exact(leaf) for leaf in leaves]))
        self._leaves = leaves
        self._structure = structure

    def filled(self, values: Iterable[Any]) -> Any:
        """The tree with these in its holes. Dicts come with sorted keys, as JAX makes them."""
        given = iter(values)
        return self._structure.unflatten([next(given) if leaf is _HOLE else leaf for leaf in self._leaves])


def split(tree: Any, is_traced: Callable[[Any], bool]) -> tuple[list[Any], Skeleton]:
    """The leaves that JAX traces, and the rest."""
    leaves, structure = jax.tree_util.tree_flatten(tree)
    traced = []
    for i, leaf in enumerate(leaves):
        if is_traced(leaf):
            traced.append(leaf)
            leaves[i] = _HOLE
    return traced, Skeleton(structure, leaves)
