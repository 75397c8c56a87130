"""Models become dicts, containers plain ones, and arrays stay arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel, ConfigDict, RootModel

from tesseract_flow.derivatives import as_tree


class Inner(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    x: np.ndarray


class Wrapped(RootModel[list[float]]):
    pass


class Pair(NamedTuple):
    left: Any
    right: Any


def test_containers_become_plain_and_arrays_stay() -> None:
    class Items(list):
        pass

    tree = as_tree({"models": Items([Inner(x=np.ones(2))]), "pair": Pair(Wrapped([3.0]), 1), "none": None})
    assert type(tree["models"]) is list
    assert type(tree["pair"]) is Pair
    assert tree["pair"] == ([3.0], 1)
    assert tree["models"][0]["x"].tolist() == [1.0, 1.0]
    assert tree["none"] is None


def test_what_offers_itself_as_an_array_becomes_one_and_what_jax_holds_stays() -> None:
    class Offers:
        shape = (2,)

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return np.ones(2)

    held = jnp.ones(2)
    tree = as_tree([Offers(), held, Inner])
    assert type(tree[0]) is np.ndarray
    assert tree[1] is held
    assert tree[2] is Inner
