"""`Call`: all of one Tesseract call except its arrays.

JAX's rules take operands (arrays) and parameters (everything else). A `Call` is the only parameter of our primitives,
and it is a value: JAX compares calls with `==`, which is what lets it merge equal ones.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import jax
import numpy as np

from tesseract_flow.client import AbstractTesseract, AtOnce
from tesseract_flow.errors import InvalidAnswer, NonFiniteError
from tesseract_flow.schema import Keys, follow

T = TypeVar("T")
VmapMethod = Literal["auto", "concurrent", "sequential", "expand_dims", "broadcast_all", "auto_experimental"]
NanPolicy = Literal["propagate", "raise"]


class _ArraySlot(enum.Enum):
    ARRAY = enum.auto()


ARRAY = _ArraySlot.ARRAY  # stands where a tree has an array


class Static:
    """A leaf that JAX does not trace, compared by type and exact value: 1, 1.0 and True differ, NaN equals itself.

    What cannot be hashed is compared by identity: two such objects are never taken for one another.
    """

    __slots__ = ("_key", "value")

    def __init__(self, value: Any):
        self.value = value
        self._key = (type(value), _exact(value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return repr(self.value)


def _exact(value: Any) -> Any:
    if isinstance(value, float):
        return struct.pack("<d", value)  # tells 0.0 from -0.0, and equals itself for NaN
    if isinstance(value, complex):
        return struct.pack("<dd", value.real, value.imag)
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        return (value.dtype.str, value.shape, value.tobytes())
    try:
        hash(value)
    except TypeError:
        # Not its repr, which may leave things out (long arrays do). The id stays taken for as long as the Static lives.
        return id(value)
    return value


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shape of a tree of inputs or outputs: where its arrays are, and everything in it that is no array.

    Attributes:
        treedef: the nesting, with arrays and static leaves alike as leaves.
        leaves: per leaf `ARRAY` or a `Static`, in JAX's order.
        keys: per array, the keys that lead to it.
        paths: per array, the same as the protocol writes it, such as `mesh.knots.[0]`.
        differentiable: per array, whether the schema marks it so.
        any_rank: per array, whether the schema leaves its rank open (`...`), so that a batch dimension has room.
    """

    treedef: Any  # a PyTreeDef, which is no type to type checkers
    leaves: tuple[Static | _ArraySlot, ...]
    keys: tuple[Keys, ...]
    paths: tuple[str, ...]
    differentiable: tuple[bool, ...]
    any_rank: tuple[bool, ...]

    @property
    def n_arrays(self) -> int:
        return len(self.paths)

    def fill(self, arrays: Sequence[Any]) -> Any:
        """The tree with `arrays` at its array leaves."""
        remaining = iter(arrays)
        leaves = [next(remaining) if leaf is ARRAY else leaf.value for leaf in self.leaves]
        return jax.tree_util.tree_unflatten(self.treedef, leaves)


@dataclasses.dataclass(frozen=True)
class Options:
    """What `apply_tesseract` was told beside whom to ask and with what; explained there."""

    vmap_method: VmapMethod = "auto"
    materialize_jacobian: bool | None = None
    nan_policy: NanPolicy = "propagate"


@dataclasses.dataclass(frozen=True)
class Batch:
    """One call per element of a batch, as one equation.

    Attributes:
        size: the number of elements.
        mapped: per operand (primals, then tangents or cotangents), whether its first axis is the batch.
        is_concurrent: whether several elements may be in flight at once.
    """

    size: int
    mapped: tuple[bool, ...]
    is_concurrent: bool


@dataclasses.dataclass(frozen=True)
class Call:
    """All of one Tesseract call except its arrays.

    Attributes:
        tesseract: whom to ask.
        input, output: the trees on both sides.
        out_avals: shape and dtype per output array, of one element.
        inputs: for derivatives: indices of the inputs that carry a tangent or want a gradient.
        outputs: for derivatives: indices of the outputs that are pushed forward or carry a cotangent.
        options: how to map and what to check.
        batch: if it stands for a call per element; all results then have the batch as their first axis.
    """

    tesseract: AbstractTesseract
    input: Layout
    output: Layout
    out_avals: tuple[jax.ShapeDtypeStruct, ...]
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    options: Options = Options()
    batch: Batch | None = None

    def linear(self, inputs: Sequence[int], outputs: Sequence[int], mapped: Sequence[bool] = ()) -> Call:
        """The same call, for derivatives between these inputs and outputs.

        Args:
            mapped: in a batch, per tangent or cotangent, whether it has the batch as its first axis.
        """
        batch = self.batch
        if batch is not None:
            batch = dataclasses.replace(batch, mapped=(*batch.mapped[: self.input.n_arrays], *mapped))
        return dataclasses.replace(self, inputs=tuple(inputs), outputs=tuple(outputs), batch=batch)

    def split(self, operands: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
        """Operands of a derivative → (primals, tangents or cotangents)."""
        return operands[: self.input.n_arrays], operands[self.input.n_arrays :]

    @property
    def mapped(self) -> tuple[Sequence[bool], Sequence[bool]]:
        """Which primals, and which tangents or cotangents, have the batch as their first axis."""
        n_linear = len(self.inputs) + len(self.outputs)  # more than there are, which does no harm
        return self.split(self.batch.mapped if self.batch else (False,) * (self.input.n_arrays + n_linear))

    @property
    def one(self) -> Call:
        """The call for an element of the batch."""
        return dataclasses.replace(self, batch=None)

    def element(self, operands: Sequence[T], k: int) -> list[T]:
        """What element `k` of the batch is asked with."""
        assert self.batch is not None
        return [
            x[k] if is_mapped else x  # type: ignore[index]
            for x, is_mapped in zip(operands, self.batch.mapped, strict=True)
        ]

    # --- shapes of the results, with the batch ---

    def apply_avals(self, operands: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
        return self._batched(self.out_avals)

    def pushforward_avals(self, operands: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
        return self._batched([self.out_avals[j] for j in self.outputs])

    def pullback_avals(self, operands: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
        elements = self._element_avals(operands)
        return self._batched([elements[i] for i in self.inputs])

    def jacobian_avals(self, operands: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
        """Output by output, one block per input; in the dtype that holds both."""
        elements = self._element_avals(operands)
        blocks = []
        for y in (self.out_avals[j] for j in self.outputs):
            for x in (elements[i] for i in self.inputs):
                blocks.append(jax.ShapeDtypeStruct((*y.shape, *x.shape), np.promote_types(y.dtype, x.dtype)))
        return self._batched(blocks)

    def _element_avals(self, operands: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
        """Shape and dtype of each primal in one element."""
        primals, (mapped, _) = self.split(operands)[0], self.mapped
        return [
            jax.ShapeDtypeStruct(x.shape[1:] if is_mapped else x.shape, x.dtype)
            for x, is_mapped in zip(primals, mapped, strict=False)
        ]

    def _batched(self, avals: Sequence[jax.ShapeDtypeStruct]) -> list[jax.ShapeDtypeStruct]:
        if self.batch is None:
            return list(avals)
        return [jax.ShapeDtypeStruct((self.batch.size, *aval.shape), aval.dtype) for aval in avals]

    # --- what happens on the host; a request per element ---

    def apply(self, operands: Sequence[np.ndarray], run_id: str | None = None) -> list[np.ndarray]:
        """The output arrays at these primals."""
        return self._for_each(Call._apply, self.apply_avals(operands), operands, run_id)

    def pushforward(self, operands: Sequence[np.ndarray], run_id: str | None = None) -> list[np.ndarray]:
        """J·t for the outputs in `outputs`; NaN, without a request, where the schema has no derivative."""
        return self._for_each(Call._pushforward, self.pushforward_avals(operands), operands, run_id)

    def pullback(self, operands: Sequence[np.ndarray], run_id: str | None = None) -> list[np.ndarray]:
        """Jᵀ·c for the inputs in `inputs`, from cotangents of the outputs in `outputs`."""
        return self._for_each(Call._pullback, self.pullback_avals(operands), operands, run_id)

    def jacobian(self, operands: Sequence[np.ndarray], run_id: str | None = None) -> list[np.ndarray]:
        """Output by output, the blocks of J for the inputs in `inputs`."""
        return self._for_each(Call._jacobian, self.jacobian_avals(operands), operands, run_id)

    def _for_each(
        self,
        ask: Callable[[Call, Sequence[np.ndarray], str | None], list[np.ndarray]],
        avals: Sequence[jax.ShapeDtypeStruct],
        operands: Sequence[np.ndarray],
        run_id: str | None,
    ) -> list[np.ndarray]:
        batch = self.batch
        if batch is None:
            return ask(self, operands, run_id)
        results = [np.empty(aval.shape, aval.dtype) for aval in avals]
        n_in_flight = self.tesseract.n_lanes if batch.is_concurrent else 1
        with AtOnce(n_in_flight, run_id, lambda k, n, _: f"element {k} of a batch of {n}") as requests:
            answers = requests.map(
                lambda k: ask(self.one, self.element(operands, k), requests.run_id), range(batch.size)
            )
            for k, answer in enumerate(answers):
                for whole, part in zip(results, answer, strict=True):
                    whole[k] = part
        return results

    def _apply(self, operands: Sequence[np.ndarray], run_id: str | None) -> list[np.ndarray]:
        answer = self.tesseract.apply(self.input.fill(operands), run_id=run_id)
        outputs = {
            path: self._checked("apply", path, follow(answer, keys), aval)
            for keys, path, aval in zip(self.output.keys, self.output.paths, self.out_avals, strict=True)
        }
        self._require_finite("apply", outputs, operands)
        return list(outputs.values())

    def _pushforward(self, operands: Sequence[np.ndarray], run_id: str | None) -> list[np.ndarray]:
        primals, tangents = self.split(operands)
        wanted = [self.output.paths[j] for j in self.outputs if self.output.differentiable[j]]
        answer: Mapping[str, Any] = {}
        if wanted:
            x_dot = {self.input.paths[i]: t for i, t in zip(self.inputs, tangents, strict=True)}
            answer = self.tesseract.jacobian_vector_product(
                self.input.fill(primals), list(x_dot), wanted, x_dot, run_id=run_id
            )
        y_dot, known = [], {}
        for j in self.outputs:
            path, aval = self.output.paths[j], self.out_avals[j]
            if self.output.differentiable[j]:
                known[path] = self._checked("jacobian_vector_product", path, answer[path], aval)
                y_dot.append(known[path])
            else:
                y_dot.append(np.full(aval.shape, np.nan, aval.dtype))
        self._require_finite("jacobian_vector_product", known, operands)
        return y_dot

    def _pullback(self, operands: Sequence[np.ndarray], run_id: str | None) -> list[np.ndarray]:
        primals, cotangents = self.split(operands)
        wanted = [self.input.paths[i] for i in self.inputs]
        y_bar = {self.output.paths[j]: c for j, c in zip(self.outputs, cotangents, strict=True)}
        answer = self.tesseract.vector_jacobian_product(
            self.input.fill(primals), wanted, list(y_bar), y_bar, run_id=run_id
        )
        x_bar = {
            self.input.paths[i]: self._checked(
                "vector_jacobian_product", self.input.paths[i], answer[self.input.paths[i]], primals[i]
            )
            for i in self.inputs
        }
        self._require_finite("vector_jacobian_product", x_bar, operands)
        return list(x_bar.values())

    def _jacobian(self, operands: Sequence[np.ndarray], run_id: str | None) -> list[np.ndarray]:
        wanted = [self.input.paths[i] for i in self.inputs]
        given = [self.output.paths[j] for j in self.outputs]
        answer = self.tesseract.jacobian(self.input.fill(operands), wanted, given, run_id=run_id)
        pairs = [(y, x) for y in given for x in wanted]
        blocks = {
            f"{y}/{x}": self._checked("jacobian", f"{y}/{x}", answer[y][x], aval)
            for (y, x), aval in zip(pairs, self.jacobian_avals(operands), strict=True)
        }
        self._require_finite("jacobian", blocks, operands)
        return list(blocks.values())

    def _checked(self, endpoint: str, path: str, value: Any, expected: Any) -> np.ndarray:
        """`value` as an array of the expected shape and dtype; a server's word is not trusted."""
        array = np.asarray(value)
        kind_fits = np.can_cast(array.dtype, expected.dtype, "same_kind")
        if array.shape != tuple(expected.shape) or not kind_fits:
            raise InvalidAnswer(
                f"Tesseract {self.tesseract.name!r} answered {endpoint!r} with {path!r} of shape {array.shape} and "
                f"dtype {array.dtype}; expected shape {tuple(expected.shape)} and dtype {expected.dtype}.\n"
                f"{self._suspicion}",
                tesseract=repr(self.tesseract),
                endpoint=endpoint,
            )
        return array.astype(expected.dtype, copy=False)

    @property
    def _suspicion(self) -> str:
        if self.options.vmap_method in ("expand_dims", "broadcast_all"):
            return (
                f"Under vmap, vmap_method={self.options.vmap_method!r} is a promise that it takes a leading batch "
                "dimension in all arrays and gives it back; vmap_method='concurrent' needs none."
            )
        return "Either its abstract_eval does not agree with its other endpoints, or the endpoint has a fault."

    def _require_finite(self, endpoint: str, answer: Mapping[str, np.ndarray], operands: Sequence[np.ndarray]) -> None:
        if self.options.nan_policy == "raise":
            primals, others = self.split(operands)
            kind = "cotangent of" if endpoint == "vector_jacobian_product" else "tangent of"
            of = self.outputs if endpoint == "vector_jacobian_product" else self.inputs
            paths = self.output.paths if endpoint == "vector_jacobian_product" else self.input.paths
            given = {repr(path): x for path, x in zip(self.input.paths, primals, strict=True)}
            given |= {f"the {kind} {paths[k]!r}": x for k, x in zip(of, others, strict=False)}
            require_finite(self.tesseract, endpoint, answer, given)


def require_finite(
    tesseract: AbstractTesseract,
    endpoint: str,
    answer: Mapping[str, np.ndarray],
    given: Mapping[str, np.ndarray],
) -> None:
    """Raise `NonFiniteError` if an answer has NaN or inf, and tell whether what it was made from had some already."""
    for path, array in answer.items():
        if not (n_bad := _n_not_finite(array)):
            continue
        first = tuple(int(k) for k in np.argwhere(~np.isfinite(array))[0])
        known = [name for name, x in given.items() if _n_not_finite(x)]
        origin = (
            f"It was given some already: {', '.join(known)}." if known else "Everything that it was given is finite."
        )
        raise NonFiniteError(
            f"Tesseract {tesseract.name!r} answered {endpoint!r} with {path!r} not finite: {n_bad} of {array.size} "
            f"entries are NaN or inf, the first at {list(first)}.\n{origin}"
        )


def _n_not_finite(array: np.ndarray) -> int:
    return int(np.count_nonzero(~np.isfinite(array))) if array.dtype.kind in "fc" else 0
