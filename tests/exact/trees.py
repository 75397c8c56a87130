"""Trees that are easily mistaken for each other, and what they are, by other means than the keys use."""

from __future__ import annotations

import enum
import math
from typing import Any

import numpy as np
from hypothesis import strategies as st


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


NAN_WITH_PAYLOAD = float(np.array([0x7FF8000000000001], np.uint64).view(np.float64)[0])

# Few and treacherous, so that random trees are often equal, or almost.
PLAIN = [
    0,
    1,
    -1,
    -2,
    True,
    False,
    None,
    0.0,
    -0.0,
    1.0,
    -1.0,
    math.nan,
    NAN_WITH_PAYLOAD,
    math.inf,
    "",
    "1",
    "a",
    1j,
    0j,
    Size.SMALL,
    b"",
]
ARRAYS = [
    np.array([1.0, 2.0]),
    np.array([2.0, 1.0]),
    np.array([[1.0, 2.0]]),
    np.array([1.0, 2.0], np.float32),
    np.array([1, 2]),
    np.array([1.0, 2.0]).view(np.int64),
    np.array([0.0, np.nan]),
    np.array([-0.0, np.nan]),
    np.array([0.0, NAN_WITH_PAYLOAD]),
    np.array(1.0),
    np.float64(1.0),
    np.array(True),
    np.array([], np.float32),
    np.array([], np.float64),
    np.arange(3, dtype=np.int8),
    np.array([1.0 + 2.0j]),
]
LEAVES = st.sampled_from([*PLAIN, *ARRAYS])
TREES = st.recursive(
    LEAVES,
    lambda trees: st.one_of(
        st.dictionaries(st.sampled_from(["a", "b"]), trees, max_size=2),
        st.lists(trees, max_size=2),
        st.lists(trees, max_size=2).map(tuple),
    ),
    max_leaves=4,
)


def written_out(tree: Any) -> Any:
    """Everything about a tree as text, by other means than the keys use."""
    if isinstance(tree, dict):
        return {"dict": [[repr(key), written_out(tree[key])] for key in sorted(tree)]}
    if isinstance(tree, list | tuple):
        return {type(tree).__name__: [written_out(item) for item in tree]}
    if isinstance(tree, np.ndarray | np.generic):
        return ["array", tree.dtype.str, str(tree.shape), np.asarray(tree).tobytes().hex()]
    if isinstance(tree, float) and not isinstance(tree, enum.Enum):
        return [type(tree).__qualname__, np.float64(tree).tobytes().hex()]
    return [type(tree).__qualname__, repr(tree)]
