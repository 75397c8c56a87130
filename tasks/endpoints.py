"""Tasks for flows of one's own: one endpoint of one Tesseract each, with NumPy arrays in and out.

What goes in is held against the schema before anything is sent, as `apply_tesseract` does, and what comes out is what
was asked for. Derivatives are named by paths, as in the component's own protocol. `.fn` of each is the same without
Prefect: no server, no run, no retries by the task.

For a whole pipeline and its gradient write JAX instead, and let `concurrent(..., submitter=PrefectSubmitter())` make
the tasks.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from prefect import task

from tesseract_flow.autodiff.apply import split_inputs
from tesseract_flow.autodiff.layout import InputLayout
from tesseract_flow.autodiff.shapes import has_shapes, output_arrays, output_layout
from tesseract_flow.client import AbstractTesseract, TesseractLike, opened
from tesseract_flow.client.retry import somebody_else
from tesseract_flow.errors import Fault, InvalidInput, InvalidType, NotDifferentiable, Overloaded, did_you_mean
from tesseract_flow.schema import cast, is_same_kind, parse_path, template_of
from tesseract_flow.tasks.call import REPEATED, wait_as_asked

Arrays = Mapping[str, Any]  # path, such as `mesh.knots.[0]` -> array


def _named(endpoint: str) -> Any:
    def name(parameters: dict[str, Any]) -> str:
        tesseract = parameters["tesseract"]
        try:
            with somebody_else():
                return f"{opened(tesseract).name}.{endpoint}"
        except Exception:  # the task itself says what is wrong
            return endpoint

    return name


@task(name="tesseract-apply", task_run_name=_named("apply"), **REPEATED)
def apply_task(tesseract: TesseractLike, inputs: Mapping[str, Any]) -> Any:
    """Outputs of a Tesseract at `inputs`: one request.

    Args:
        tesseract: a handle from `open_tesseract`, a URL, a path, or a `tesseract_core.Tesseract`.
        inputs: a tree that fits its `InputSchema`.

    Returns:
        The tree of its `OutputSchema`, with NumPy arrays.

    Raises:
        InvalidInput, InvalidType: the inputs do not fit; nothing was sent.
        CallError: the request failed. What a lost connection or a busy server caused is repeated by the task.
    """
    at = _At(tesseract, inputs)
    answer = at.ask(lambda handle, given: handle.apply(given))
    output_arrays(at.handle, "apply", answer)  # refuses what is no answer
    return answer


@task(name="tesseract-pullback", task_run_name=_named("pullback"), **REPEATED)
def pullback_task(
    tesseract: TesseractLike, inputs: Mapping[str, Any], cotangents: Arrays, wrt: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """The pullback Jᵀ·c at `inputs`: one request to `vector_jacobian_product`, and no solve if the component has none.

    Args:
        tesseract, inputs: as for `apply_task`.
        cotangents: c by path of the output, each in the shape of that output. Outputs that are not named count as zero.
        wrt: paths of the inputs to go back to; all differentiable ones, if none are named.

    Returns:
        By path of the input, in the shape of that input.

    Raises:
        NotDifferentiable: a path that is none, or that the schema does not mark differentiable.
        InvalidInput: a cotangent of another shape than its output, where `abstract_eval` tells the shapes.
    """
    at = _At(tesseract, inputs)
    sent = at.outputs(cotangents, "cotangent")
    back = at.inputs(wrt)
    return at.ask(lambda handle, given: handle.vector_jacobian_product(given, back, list(sent), sent))


@task(name="tesseract-pushforward", task_run_name=_named("pushforward"), **REPEATED)
def pushforward_task(
    tesseract: TesseractLike, inputs: Mapping[str, Any], tangents: Arrays, outputs: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """The pushforward J·t at `inputs`: one request to `jacobian_vector_product`.

    Args:
        tesseract, inputs: as for `apply_task`.
        tangents: t by path of the input, each in the shape of that input. Inputs that are not named do not move.
        outputs: paths of the outputs to go to; all differentiable ones, if none are named.

    Returns:
        By path of the output, in the shape of that output.

    Raises:
        NotDifferentiable: a path that is none, or that the schema does not mark differentiable.
        InvalidInput: a tangent of another shape than its input.
    """
    at = _At(tesseract, inputs)
    sent = at.tangents(tangents)
    forward = at.output_paths(outputs)
    return at.ask(lambda handle, given: handle.jacobian_vector_product(given, list(sent), forward, sent))


@task(name="tesseract-jacobian", task_run_name=_named("jacobian"), **REPEATED)
def jacobian_task(
    tesseract: TesseractLike,
    inputs: Mapping[str, Any],
    wrt: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """The Jacobian at `inputs`: one request to `jacobian`.

    Args:
        tesseract, inputs: as for `apply_task`.
        wrt, outputs: paths; all differentiable ones, if none are named.

    Returns:
        By path of the output, then of the input: an array of the output's shape followed by the input's.

    Raises:
        NotDifferentiable: a path that is none, or that the schema does not mark differentiable.
    """
    at = _At(tesseract, inputs)
    columns, rows = at.inputs(wrt), at.output_paths(outputs)
    return at.ask(lambda handle, given: handle.jacobian(given, columns, rows))


class _At:
    """A Tesseract at certain inputs, which fit its schema."""

    def __init__(self, tesseract: TesseractLike, inputs: Mapping[str, Any]):
        for path, leaf in jax.tree_util.tree_flatten_with_path(inputs)[0]:
            if isinstance(leaf, Tracer):
                raise InvalidType(
                    f"Tasks take values, and {jax.tree_util.keystr(path)} is traced by JAX ({leaf.aval}): the task "
                    "would run while the function is traced, and never again.\nIn traced code write apply_tesseract, "
                    "and let concurrent(fn, submitter=PrefectSubmitter()) make the tasks."
                )
        self.handle: AbstractTesseract = opened(tesseract)
        operands, self._layout = split_inputs(self.handle, inputs)
        self._primals = [np.asarray(x) for x in operands]

    def ask(self, question: Any) -> Any:
        given = self._layout.request(self.handle, self._primals)
        try:
            with somebody_else():  # the task repeats it
                return question(self.handle, given)
        except Overloaded as error:
            wait_as_asked(error, time.sleep)
            raise

    def inputs(self, wanted: Sequence[str] | None) -> list[str]:
        """Paths of inputs with derivatives."""
        layout: InputLayout = self._layout
        have = [path for path, has in zip(layout.paths, layout.differentiable, strict=True) if has]
        if wanted is None and not have:
            raise NotDifferentiable(f"Tesseract {self.handle.name!r} has no differentiable input.")
        return have if wanted is None else self._known(wanted, have, "input")

    def output_paths(self, wanted: Sequence[str] | None) -> list[str]:
        """Paths of outputs with derivatives."""
        templates = list(self.handle.schema.differentiable_outputs)
        if wanted is None:
            if not templates:
                raise NotDifferentiable(f"Tesseract {self.handle.name!r} has no differentiable output.")
            if any("{}" in path or "[]" in path for path in templates):
                raise NotDifferentiable(
                    f"Which outputs of Tesseract {self.handle.name!r}? It has {', '.join(templates)}, and how many "
                    "these are is not in its schema. Name them: outputs=[...]."
                )
            return templates
        root = self.handle.schema.outputs
        if isinstance(wanted, str) or not wanted:
            return self._known(wanted, templates, "output")
        for path in wanted:
            if template_of(root, parse_path(path, root)) not in templates:
                self._known([path], templates, "output")
        return list(wanted)

    def tangents(self, given: Arrays) -> dict[str, np.ndarray]:
        paths = self.inputs(list(given))
        primals = dict(zip(self._layout.paths, self._primals, strict=True))
        return {
            path: self._like(given[path], f"the tangent of {path}", primals[path].shape, primals[path].dtype)
            for path in paths
        }

    def outputs(self, given: Arrays, what: str) -> dict[str, np.ndarray]:
        paths = self.output_paths(list(given))
        fields = self.handle.schema.differentiable_outputs
        root = self.handle.schema.outputs
        shapes = self._output_shapes()
        sent = {}
        for path in paths:
            dtype = fields[template_of(root, parse_path(path, root))].dtype
            sent[path] = self._like(given[path], f"the {what} of {path}", shapes.get(path), dtype)
        return sent

    def _output_shapes(self) -> dict[str, tuple[int, ...]]:
        if not has_shapes(self.handle):
            return {}
        # Shapes are the same in any precision, which is the caller's affair here: nothing of this reaches JAX.
        with jax.enable_x64(True):
            output, avals = output_layout(self.handle, self._layout, self._primals)
        return {path: aval.shape for path, aval in zip(output.paths, avals, strict=True)}

    def _like(self, value: Any, what: str, shape: tuple[int, ...] | None, dtype: Any) -> np.ndarray:
        array = np.asarray(value)
        faults = []
        if shape is not None and array.shape != shape:
            faults.append(Fault(what, f"expected shape {shape}, got {array.shape}", "wrong_shape"))
        if dtype is not None and array.dtype != dtype:
            if is_same_kind(array.dtype, dtype) or array.dtype.kind in "iub":
                array = cast(array, dtype)
            else:
                faults.append(Fault(what, f"expected {np.dtype(dtype)}, got {array.dtype}", "wrong_dtype"))
        if faults:
            raise InvalidInput(
                f"Tesseract {self.handle.name!r} cannot take " + "; ".join(map(str, faults)) + ".\nNothing was sent.",
                faults=faults,
                tesseract=repr(self.handle),
            )
        return array

    def _known(self, wanted: Sequence[str], have: Collection[str], what: str) -> list[str]:
        if isinstance(wanted, str):
            raise InvalidType(f"Paths come as a list: [{wanted!r}].")
        if not wanted:
            raise NotDifferentiable(
                f"No {what} of Tesseract {self.handle.name!r} is named. Differentiable are: "
                f"{', '.join(have) or 'none'}."
            )
        for path in wanted:
            if path not in have:
                raise NotDifferentiable(
                    f"{path!r} is no differentiable {what} of Tesseract {self.handle.name!r}."
                    f"{did_you_mean(path, list(have))}\nDifferentiable are: {', '.join(have) or 'none'}."
                )
        return list(wanted)
