"""Directions in which a component is asked, and who asks.

Here: unit directions and given ones, with a name for messages; how many there are. Not here: what is made of the
answers. The one idea: a direction is a name until it is used, so a list of thousands weighs nothing.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

# (function, probes) -> answers in the order of the probes. `map` is one, a thread pool's `map` another. Probes are
# independent of each other, and `str(probe)` names one in messages.
MapProbes: TypeAlias = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
Arrays: TypeAlias = Mapping[str, np.ndarray]


class AbstractDirection(abc.ABC):
    """A direction in the space of some arrays, by path; it has to know those it is not zero at."""

    @abc.abstractmethod
    def vector(self, arrays: Arrays) -> dict[str, np.ndarray]: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Unit(AbstractDirection):
    """One entry of one array, times a factor. Without an index it is zero, which only tells shapes.

    Attributes:
        side: `"input"` or `"output"`, for messages.
        factor: 1, or an imaginary unit for the other half of a complex entry.
    """

    side: str
    path: str
    index: tuple[int, ...] | None
    factor: complex = 1.0

    def __str__(self) -> str:
        where = f"{self.side} {self.path!r}"
        if self.index:
            where += " at [" + ", ".join(map(str, self.index)) + "]"
        return where if self.factor == 1.0 else f"{where}, imaginary part"

    def vector(self, arrays: Arrays) -> dict[str, np.ndarray]:
        array = arrays[self.path]
        e = np.zeros(array.shape, array.dtype)
        if self.index is not None:
            e[self.index] = self.factor if is_complex(array) else 1.0
        return {self.path: e}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Along(AbstractDirection):
    """A direction that is given as it is."""

    name: str
    given: Arrays

    def __str__(self) -> str:
        return self.name

    def vector(self, arrays: Arrays) -> dict[str, np.ndarray]:
        return dict(self.given)


def units(side: str, arrays: Arrays, imaginary: complex | None = None) -> Iterator[Unit]:
    """Each entry of each array. With `imaginary`, complex entries come a second time, along that factor."""
    for path, array in arrays.items():
        for index in np.ndindex(array.shape):
            yield Unit(side, path, index)
            if imaginary is not None and is_complex(array):
                yield Unit(side, path, index, imaginary)


def n_units(arrays: Mapping[str, Any], *, is_split: bool = False) -> int:
    """How many there are. Arrays need no more than `size` and `dtype`."""
    return sum(int(array.size) * (2 if is_split and is_complex(array) else 1) for array in arrays.values())


def is_complex(array: Any) -> bool:
    return array.dtype.kind == "c"
