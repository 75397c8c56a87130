"""`Call`: all of one Tesseract call except its arrays.

JAX's rules take operands (arrays) and parameters (everything else). A `Call` is the only parameter of our primitives,
and it is a value: JAX compares calls with `==`, which is what lets it merge equal ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import jax
import numpy as np

from tesseract_flow.autodiff.answers import CONTRADICTION, checked, read_outputs, require_finite
from tesseract_flow.autodiff.layout import InputLayout, OutputLayout
from tesseract_flow.autodiff.rehearsal import Rehearsal, current_rehearsal, rehearsal
from tesseract_flow.autodiff.zeros import are_zero
from tesseract_flow.client import AbstractTesseract, AtOnce, Endpoint
from tesseract_flow.errors import InvalidInput

T = TypeVar("T")
VmapMethod = Literal["auto", "concurrent", "sequential", "expand_dims", "broadcast_all", "auto_experimental"]
NanPolicy = Literal["propagate", "raise"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What `apply_tesseract` was told beside whom to ask and with what; explained there."""

    vmap_method: VmapMethod = "concurrent"
    materialize_jacobian: bool | None = None
    nan_policy: NanPolicy = "propagate"
    label: str | None = dataclasses.field(
        default=None, compare=False
    )  # what the call is called, if not as its component


@dataclasses.dataclass(frozen=True)
class Batch:
    """One call per element of a batch, as one equation.

    Attributes:
        size: the number of elements.
        mapped: per operand (primals, then tangents or cotangents), whether its first axis is the batch.
        is_concurrent: whether several elements may be in flight at once.
        names: of elements, for messages; of batches within batches those of the innermost. Numbers, if there are none.
    """

    size: int
    mapped: tuple[bool, ...]
    is_concurrent: bool
    names: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def name_of(self, k: int) -> str:
        """Which one it is, in words."""
        return self.names[k % len(self.names)] if self.names else f"element {k} of a batch of {self.size}"


@dataclasses.dataclass(frozen=True)
class Call:
    """All of one Tesseract call except its arrays.

    Attributes:
        tesseract: whom to ask.
        input, output: the trees on both sides.
        out_avals: shape and dtype per slot of the output, of one element.
        inputs: for derivatives: indices of the inputs that carry a tangent or want a gradient.
        outputs: for derivatives: indices of the outputs that are pushed forward or carry a cotangent.
        options: how to map and what to check.
        batch: if it stands for a call per element; all results then have the batch as their first axis.
    """

    tesseract: AbstractTesseract
    input: InputLayout
    output: OutputLayout
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
            batch = dataclasses.replace(batch, mapped=(*batch.mapped[: self.input.n_slots], *mapped))
        return dataclasses.replace(self, inputs=tuple(inputs), outputs=tuple(outputs), batch=batch)

    def split(self, operands: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
        """Operands of a derivative → (primals, tangents or cotangents)."""
        return operands[: self.input.n_slots], operands[self.input.n_slots :]

    @property
    def mapped(self) -> tuple[Sequence[bool], Sequence[bool]]:
        """Which primals, and which tangents or cotangents, have the batch as their first axis."""
        n_linear = len(self.inputs) + len(self.outputs)  # more than there are, which does no harm
        return self.split(self.batch.mapped if self.batch else (False,) * (self.input.n_slots + n_linear))

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

    # --- what happens on the host; a request per element, but none along zeros ---

    def is_along_zeros(self, operands: Sequence[np.ndarray]) -> bool:
        """Whether this is a derivative of one element along nothing but zeros: then it is zero, and nobody is asked."""
        return are_zero(self.split(operands)[1])

    def apply(self, operands: Sequence[np.ndarray], run_id: str | None = None) -> list[np.ndarray]:
        """The output arrays at these primals."""
        return self._for_each(Call._apply, self.apply_avals(operands), operands, run_id)

    def pushforward(self, operands: Sequence[np.ndarray], run_id: str | None = None) -> list[np.ndarray]:
        """J·t for the outputs in `outputs`; NaN, unasked, where the schema has no derivative and t is not zero."""
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
        if batch is None and not self.is_along_zeros(operands):
            return ask(self, operands, run_id)
        results = [np.zeros(aval.shape, aval.dtype) for aval in avals]
        if batch is None:
            return results
        asked = [k for k in range(batch.size) if not self.is_along_zeros(self.element(operands, k))]
        n_in_flight = self.tesseract.n_lanes if batch.is_concurrent else 1
        known = current_rehearsal()  # of this thread

        def one(k: int) -> list[np.ndarray]:
            if known is None:
                return ask(self.one, self.element(operands, k), requests.run_id)
            with rehearsal(known):
                return ask(self.one, self.element(operands, k), requests.run_id)

        with AtOnce(n_in_flight, run_id, lambda _, n, k: batch.name_of(k)) as requests:
            for k, answer in zip(asked, requests.map(one, asked), strict=True):
                for whole, part in zip(results, answer, strict=True):
                    whole[k] = part
        return results

    def question(
        self, endpoint: Endpoint, operands: Sequence[np.ndarray], outputs: Sequence[int] | None = None
    ) -> tuple[Any, ...]:
        """What an endpoint is asked: its arguments.

        Args:
            outputs: those to ask for, instead of all in `outputs`.

        Raises:
            InvalidInput: a value does not survive the conversion to the schema's dtype. Nothing was sent.
        """
        primals, vectors = self.split(operands)
        inputs = self.input.request(self.tesseract, primals)
        if endpoint == "apply":
            return (inputs,)
        of_inputs = [self.input.paths[i] for i in self.inputs]
        of_outputs = [self.output.paths[j] for j in (self.outputs if outputs is None else outputs)]
        if endpoint == "jacobian":
            return inputs, of_inputs, of_outputs
        if endpoint == "vector_jacobian_product":
            return inputs, of_inputs, of_outputs, dict(zip(of_outputs, vectors, strict=True))
        tangents = [
            self.input.cast(self.tesseract, i, t, f"the tangent of {self.input.paths[i]}")
            for i, t in zip(self.inputs, vectors, strict=True)
        ]
        return inputs, of_inputs, of_outputs, dict(zip(of_inputs, tangents, strict=True))

    def is_answered(self, known: Rehearsal, endpoint: Endpoint, operands: Sequence[np.ndarray]) -> bool:
        """Whether a rehearsal has the answer to this call of one element."""
        if self.batch is not None:
            return False
        outputs = None
        if endpoint == "jacobian_vector_product":
            outputs = [j for j in self.outputs if self.output.differentiable[j]]
        try:
            arguments = self.question(endpoint, operands, outputs)
        except InvalidInput:
            return False  # said by the call itself
        return known.has(self.tesseract, endpoint, arguments)

    def _ask(self, endpoint: Endpoint, arguments: tuple[Any, ...], run_id: str | None) -> Any:
        known = current_rehearsal()
        if known is not None:
            return known.ask(self.tesseract, endpoint, arguments, run_id)
        return getattr(self.tesseract, endpoint)(*arguments, run_id=run_id)

    def _apply(self, operands: Sequence[np.ndarray], run_id: str | None) -> list[np.ndarray]:
        answer = self._ask("apply", self.question("apply", operands), run_id)
        outputs = read_outputs(self.tesseract, self.output, self.out_avals, answer, self._suspicion)
        self._require_finite("apply", outputs, operands)
        return list(outputs.values())

    def _pushforward(self, operands: Sequence[np.ndarray], run_id: str | None) -> list[np.ndarray]:
        wanted = [j for j in self.outputs if self.output.differentiable[j]]
        answer: Mapping[str, Any] = {}
        if wanted:
            endpoint = "jacobian_vector_product"
            answer = self._ask(endpoint, self.question(endpoint, operands, wanted), run_id)
        y_dot, known = [], {}
        for j in self.outputs:
            path, aval = self.output.paths[j], self.out_avals[j]
            if self.output.differentiable[j]:
                known[path] = checked(self.tesseract, "jacobian_vector_product", path, answer[path], aval)
                y_dot.append(known[path])
            else:
                y_dot.append(np.full(aval.shape, np.nan, aval.dtype))
        self._require_finite("jacobian_vector_product", known, operands)
        return y_dot

    def _pullback(self, operands: Sequence[np.ndarray], run_id: str | None) -> list[np.ndarray]:
        endpoint = "vector_jacobian_product"
        primals, _ = self.split(operands)
        answer = self._ask(endpoint, self.question(endpoint, operands), run_id)
        paths = {i: self.input.paths[i] for i in self.inputs}
        x_bar = {path: checked(self.tesseract, endpoint, path, answer[path], primals[i]) for i, path in paths.items()}
        self._require_finite(endpoint, x_bar, operands)
        return list(x_bar.values())

    def _jacobian(self, operands: Sequence[np.ndarray], run_id: str | None) -> list[np.ndarray]:
        arguments = _, wanted, given = self.question("jacobian", operands)
        answer = self._ask("jacobian", arguments, run_id)
        pairs = [(y, x) for y in given for x in wanted]
        blocks = {
            f"{y}/{x}": checked(self.tesseract, "jacobian", f"{y}/{x}", answer[y][x], aval)
            for (y, x), aval in zip(pairs, self.jacobian_avals(operands), strict=True)
        }
        self._require_finite("jacobian", blocks, operands)
        return list(blocks.values())

    @property
    def _suspicion(self) -> str:
        if self.options.vmap_method in ("expand_dims", "broadcast_all"):
            return (
                f"Under vmap, vmap_method={self.options.vmap_method!r} is a promise that it takes a leading batch "
                "dimension in all arrays and gives it back; vmap_method='concurrent' needs none."
            )
        return CONTRADICTION

    def _require_finite(self, endpoint: str, answer: Mapping[str, np.ndarray], operands: Sequence[np.ndarray]) -> None:
        if self.options.nan_policy == "raise":
            primals, others = self.split(operands)
            kind = "cotangent of" if endpoint == "vector_jacobian_product" else "tangent of"
            of = self.outputs if endpoint == "vector_jacobian_product" else self.inputs
            paths = self.output.paths if endpoint == "vector_jacobian_product" else self.input.paths
            given = {repr(path): x for path, x in zip(self.input.paths, primals, strict=True)}
            given |= {f"the {kind} {paths[k]!r}": x for k, x in zip(of, others, strict=False)}
            require_finite(self.tesseract, endpoint, answer, given)
