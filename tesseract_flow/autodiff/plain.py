"""Outputs that are neither arrays nor numbers (text, None, lists of numbers), on their way through JAX.

JAX carries arrays alone, so such a value travels as its bytes in one, and `PlainOutput` stands for it. While JAX
traces, nobody knows the value: whoever looks at it is told so, by name. Where there are numbers again it is the real
one.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tesseract_flow.errors import PlainValueUnknown
from tesseract_flow.exact import pack, unpack
from tesseract_flow.schema import Keys

N_BYTES = 2**14  # room for one value: JAX wants to know sizes beforehand
SHAPE = (N_BYTES // 8, 2)  # of 32-bit words, as many as there are in keys of `_OPAQUE`
# Nobody must compute with the bytes of a text. Arrays of random keys are the ones with which JAX does not.
_OPAQUE = "threefry2x32"
_HEADER = 4  # bytes that tell the length
_TOO_LONG = 2**32 - 1


def to_words(value: Any) -> np.ndarray:
    """A plain value as an array of `SHAPE`."""
    array = np.zeros(N_BYTES, np.uint8)
    try:
        content = pack(value)
    except TypeError:  # an object that only a component in this process could return
        content = None
    is_short = content is not None and len(content) <= N_BYTES - _HEADER
    length = len(content) if content is not None and is_short else _TOO_LONG
    array[:_HEADER] = np.frombuffer(length.to_bytes(_HEADER, "little"), np.uint8)
    if content is not None and is_short:
        array[_HEADER : _HEADER + length] = np.frombuffer(content, np.uint8)
    return array.view(np.uint32).reshape(SHAPE)


def is_plain(aval: Any) -> bool:
    """Whether something of this shape and dtype stands for a plain value, or for several of them."""
    if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return tuple(aval.shape[-1:]) == SHAPE[:1]
    return aval.dtype == np.uint32 and tuple(aval.shape[-2:]) == SHAPE


@dataclasses.dataclass(frozen=True)
class About:
    """Which output it is.

    Attributes:
        tesseract, path: whose, and which.
        place: the number of the call in a rehearsed trace, and the keys within the answer.
    """

    tesseract: str
    path: str
    place: tuple[int, Keys] | None = dataclasses.field(default=None, compare=False)


class PlainOutput:
    """A plain output of a Tesseract in the hands of JAX.

    It can be passed on and returned, also from `jit` and `vmap`. While JAX traces, anything else raises
    `PlainValueUnknown`. Afterwards it behaves as the value, which is `.value`; mapped, a list of them.
    """

    __slots__ = ("_about", "_content")

    def __init__(self, content: Any, about: About):
        self._content = content
        self._about = about

    @property
    def is_known(self) -> bool:
        return isinstance(self._content, np.ndarray | jax.Array) and not isinstance(self._content, Tracer)

    @classmethod
    def of(cls, words: Any, about: About) -> PlainOutput:
        """From an array of `SHAPE`."""
        if isinstance(words, Tracer):
            words = jax.random.wrap_key_data(words, impl=_OPAQUE)
        return cls(words, about)

    @property
    def words(self) -> Any:
        """The array of `SHAPE`, or with that as its last dimensions."""
        is_opaque = jnp.issubdtype(self._content.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(self._content) if is_opaque else self._content

    @property
    def value(self) -> Any:
        """The value itself.

        Raises:
            PlainValueUnknown: JAX is tracing, or it is longer than what JAX can carry.
        """
        if not self.is_known:
            raise PlainValueUnknown(
                f"Output {self._about.path!r} of Tesseract {self._about.tesseract!r} is neither an array nor a number, "
                "and the traced function looks at its value, which nobody knows while JAX traces.\n"
                "Look at it after the call: return it (as auxiliary data, from tf.concurrent, jit or vmap), where it "
                "is the real one. Functions under tf.concurrent and tf.optimize can look at it, outside of vmap and "
                "lax control flow. To compute with it, declare it a number, a bool or an array in the Tesseract's "
                "OutputSchema.",
                place=self._about.place,
            )
        return self._decoded(np.asarray(self.words))

    def _decoded(self, array: np.ndarray) -> Any:
        if array.ndim > len(SHAPE):
            return [self._decoded(part) for part in array]
        array = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        length = int.from_bytes(array[:_HEADER].tobytes(), "little")
        if length == _TOO_LONG:
            raise PlainValueUnknown(
                f"Output {self._about.path!r} of Tesseract {self._about.tesseract!r} came through JAX, which has room "
                f"for {N_BYTES} bytes, and is longer or has no plain form.\n"
                "Call apply_tesseract outside of transformations to see it, or declare it an array in the Tesseract's "
                "OutputSchema."
            )
        return unpack(bytearray(array[_HEADER : _HEADER + length]))

    def __repr__(self) -> str:
        if not self.is_known:
            return f"<output {self._about.path!r} of {self._about.tesseract!r}, unknown while JAX traces>"
        return repr(self.value)

    def __getattr__(self, name: str) -> Any:
        if name not in _METHODS:  # such as what libraries look for, to find out whether it is an array
            raise AttributeError(name)
        return getattr(self.value, name)


# Of what such a value may be.
_METHODS = frozenset(name for kind in (str, list, tuple, dict, float) for name in dir(kind) if not name.startswith("_"))


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, PlainOutput) else value


def _forwarded(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *others: fn(self.value, *map(_plain, others))


def _reflected(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: fn(_plain(other), self.value)


_ARITHMETIC = (
    *(operator.add, operator.sub, operator.mul, operator.truediv),
    *(operator.floordiv, operator.mod, operator.pow),
)
_OTHERS = (
    *(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
    *(operator.getitem, operator.contains, operator.neg, operator.index, abs, bool, len, iter),
    *(str, float, int, hash, format),
)
for _fn in (*_ARITHMETIC, *_OTHERS):
    setattr(PlainOutput, f"__{_fn.__name__}__", _forwarded(_fn))
for _fn in _ARITHMETIC:
    setattr(PlainOutput, f"__r{_fn.__name__}__", _reflected(_fn))


jax.tree_util.register_pytree_node(
    PlainOutput,
    lambda output: ((output._content,), output._about),
    lambda about, children: PlainOutput(children[0], about),
)


def revealed(tree: Any) -> Any:
    """The tree with the values themselves in place of `PlainOutput`s whose value is known."""

    def reveal(leaf: Any) -> Any:
        return leaf.value if isinstance(leaf, PlainOutput) and leaf.is_known else leaf

    return _each(reveal, tree)


def as_words(tree: Any) -> Any:
    """The tree with `PlainOutput`s of which NumPy can make arrays, for whoever writes down all that is in it."""

    def bare(leaf: Any) -> Any:
        return PlainOutput(leaf.words, leaf._about) if isinstance(leaf, PlainOutput) else leaf

    return _each(bare, tree)


def without_plain_outputs(tree: Any) -> Any:
    """The tree with None in their place, for derivatives."""
    return _each(lambda leaf: None if isinstance(leaf, PlainOutput) else leaf, tree)


def has_plain_outputs(tree: Any) -> bool:
    leaves = jax.tree_util.tree_leaves(tree, is_leaf=lambda leaf: isinstance(leaf, PlainOutput))
    return any(isinstance(leaf, PlainOutput) for leaf in leaves)


def _each(fn: Callable[[Any], Any], tree: Any) -> Any:
    return jax.tree_util.tree_map(fn, tree, is_leaf=lambda leaf: isinstance(leaf, PlainOutput))
