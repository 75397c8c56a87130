"""Trees without arrays that are equal if and only if a computation cannot tell them apart, as JAX's constants.

Here: `Static`, for leaves that JAX does not trace. Not here: keys of whole inputs and what makes two leaves equal,
which the client needs as well (`tesseract_flow.exact`).
"""

from __future__ import annotations

from typing import Any

import jax

from tesseract_flow.exact import exact


@jax.tree_util.register_static
class Static:
    """A tree without arrays that JAX compares and carries along: a constant to the functions that it compiles."""

    __slots__ = ("_hash", "_identity", "tree")

    def __init__(self, tree: Any):
        leaves, structure = jax.tree_util.tree_flatten(tree)
        self.tree = tree
        # As text: the hashes and, for keys such as 1 and True, the equality of tree structures are too coarse.
        self._identity = str(structure), tuple(exact(leaf) for leaf in leaves)
        self._hash = hash(self._identity)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self._identity == other._identity
