"""Derivative endpoints from each other: contractions of a Jacobian, or one probe per element.

For components that can do one of them and should offer more. NumPy only. Endpoints are passed as functions with the
arguments of the protocol, in its order, and come back as one:

    def jacobian(inputs, jac_inputs, jac_outputs):
        return jacobian_from_jvp(jacobian_vector_product, inputs, jac_inputs, jac_outputs)

Not here: derivatives from `apply` (`differences`). The one idea: J e_i is a column of J, and J^T e_j is a row.

Complex arrays follow JAX's conventions: products are not conjugated, and J^T c of a real input is the real part. A
Jacobian of complex inputs exists for holomorphic functions only; the products exist for every differentiable one, and
cost two probes for an element that is complex, along the real and along the imaginary axis.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from tesseract_flow.recipes.paths import get_at
from tesseract_flow.recipes.trees import as_tree

Vector: TypeAlias = Mapping[str, Any]
Jacobian: TypeAlias = Mapping[str, Mapping[str, Any]]


def vjp_from_jacobian(
    jacobian: Callable[..., Jacobian],
    inputs: Any,
    vjp_inputs: Collection[str],
    vjp_outputs: Collection[str],
    cotangent_vector: Vector,
) -> dict[str, np.ndarray]:
    """J^T c, by input path. Cost: one call of `jacobian`."""
    blocks = jacobian(inputs, set(vjp_inputs), set(vjp_outputs))
    x_bar = _zeros_like_inputs(inputs, vjp_inputs)
    for output in sorted(vjp_outputs):
        c = np.asarray(cotangent_vector[output])
        for path in x_bar:
            x_bar[path] = _sum(x_bar[path], np.tensordot(c, np.asarray(blocks[output][path]), axes=c.ndim))
    return x_bar


def jvp_from_jacobian(
    jacobian: Callable[..., Jacobian],
    inputs: Any,
    jvp_inputs: Collection[str],
    jvp_outputs: Collection[str],
    tangent_vector: Vector,
) -> dict[str, np.ndarray]:
    """J t, by output path. Cost: one call of `jacobian`."""
    blocks = jacobian(inputs, set(jvp_inputs), set(jvp_outputs))
    tangents = {path: np.asarray(tangent_vector[path]) for path in sorted(jvp_inputs)}
    return {
        output: np.asarray(
            sum(np.tensordot(np.asarray(blocks[output][path]), t, axes=t.ndim) for path, t in tangents.items())
        )
        for output in sorted(jvp_outputs)
    }


def jacobian_from_jvp(
    jvp: Callable[..., Vector], inputs: Any, jac_inputs: Collection[str], jac_outputs: Collection[str]
) -> dict[str, dict[str, np.ndarray]]:
    """J, by output and input path, column by column. Cost: one call of `jvp` per input element.

    The outputs' shapes are those of the first probe's answer.

    Raises:
        ValueError: a real output of a complex input, which has no Jacobian.
    """
    jacobian: dict[str, dict[str, np.ndarray]] = {output: {} for output in sorted(jac_outputs)}
    for path, x in _arrays(inputs, jac_inputs).items():
        # An array without elements is probed once, for the outputs' shapes.
        probes = [e for _, e in _units(x)] or [np.zeros_like(x)]
        columns = [jvp(inputs, {path}, set(jac_outputs), {path: e}) for e in probes]
        for output, blocks in jacobian.items():
            stacked = np.stack([np.asarray(column[output]) for column in columns], axis=-1)
            _require_jacobian(output, stacked, path, x)
            blocks[path] = stacked[..., : x.size].reshape(stacked.shape[:-1] + x.shape)
    return jacobian


def jacobian_from_vjp(
    vjp: Callable[..., Vector],
    outputs_of: Callable[[Any], Any],
    inputs: Any,
    jac_inputs: Collection[str],
    jac_outputs: Collection[str],
) -> dict[str, dict[str, np.ndarray]]:
    """J, by output and input path, row by row. Cost: one call of `vjp` per output element, one of `outputs_of`.

    Args:
        outputs_of: the component's `abstract_eval`, or else its `apply`: it has to tell the outputs' shapes.

    Raises:
        ValueError: a real output of a complex input, which has no Jacobian.
    """
    x = _arrays(inputs, jac_inputs)
    jacobian: dict[str, dict[str, np.ndarray]] = {}
    for output, y in _outputs(outputs_of, inputs, jac_outputs).items():
        for path in x:
            _require_jacobian(output, y, path, x[path])
        # A real input sees the real part of J^T c: the imaginary one takes a probe of its own.
        is_split = _is_complex(y) and not all(_is_complex(leaf) for leaf in x.values())
        rows: dict[str, list[np.ndarray]] = {path: [] for path in x}
        for _, e in _units(y):
            row = vjp(inputs, set(x), {output}, {output: e})
            imaginary = vjp(inputs, set(x), {output}, {output: -1j * e}) if is_split else row
            for path in x:
                full = np.asarray(row[path])
                if _is_complex(y) and not _is_complex(x[path]):
                    full = full + 1j * np.asarray(imaginary[path])
                rows[path].append(full)
        jacobian[output] = {
            path: np.stack(rows[path]).reshape(y.shape + x[path].shape)
            if rows[path]
            else np.zeros(y.shape + x[path].shape, np.result_type(y, x[path]))
            for path in x
        }
    return jacobian


def vjp_from_jvp(
    jvp: Callable[..., Vector],
    inputs: Any,
    vjp_inputs: Collection[str],
    vjp_outputs: Collection[str],
    cotangent_vector: Vector,
) -> dict[str, np.ndarray]:
    """J^T c, by input path: (J^T c)_i = c . J e_i. Cost: one call of `jvp` per input element."""
    c = {output: np.asarray(cotangent_vector[output]) for output in sorted(vjp_outputs)}
    x_bar = _zeros_like_inputs(inputs, vjp_inputs)

    def rate(path: str, t: np.ndarray) -> float:
        return _real_inner(c, jvp(inputs, {path}, set(c), {path: t}))

    for path, x in _arrays(inputs, vjp_inputs).items():
        for index, e in _units(x):
            # JAX's cotangent of a complex number a + ib: d/da - i d/db.
            x_bar[path][index] = rate(path, e) - 1j * rate(path, 1j * e) if _is_complex(x) else rate(path, e)
    return x_bar


def jvp_from_vjp(
    vjp: Callable[..., Vector],
    outputs_of: Callable[[Any], Any],
    inputs: Any,
    jvp_inputs: Collection[str],
    jvp_outputs: Collection[str],
    tangent_vector: Vector,
) -> dict[str, np.ndarray]:
    """J t, by output path: (J t)_j = t . J^T e_j. Cost: one call of `vjp` per output element, one of `outputs_of`.

    Args:
        outputs_of: the component's `abstract_eval`, or else its `apply`: it has to tell the outputs' shapes.
    """
    t = {path: np.asarray(tangent_vector[path]) for path in sorted(jvp_inputs)}
    y_dot = _outputs(outputs_of, inputs, jvp_outputs)

    def rate(output: str, c: np.ndarray) -> float:
        return _real_inner(t, vjp(inputs, set(t), {output}, {output: c}))

    for output, y in y_dot.items():
        for index, e in _units(y):
            y[index] = rate(output, e) + 1j * rate(output, -1j * e) if _is_complex(y) else rate(output, e)
    return y_dot


def _arrays(inputs: Any, paths: Collection[str]) -> dict[str, np.ndarray]:
    """The inputs at some paths; sorted, so that every run makes the same calls in the same order."""
    arrays = {path: np.asarray(get_at(inputs, path)) for path in sorted(paths)}
    for path, x in arrays.items():
        if not np.issubdtype(x.dtype, np.inexact):
            raise ValueError(f"A derivative was requested for input {path!r} of {x.dtype}; expected floating point.")
    return arrays


def _zeros_like_inputs(inputs: Any, paths: Collection[str]) -> dict[str, np.ndarray]:
    return {path: np.zeros_like(x, order="C", subok=False) for path, x in _arrays(inputs, paths).items()}


def _outputs(outputs_of: Callable[[Any], Any], inputs: Any, paths: Collection[str]) -> dict[str, np.ndarray]:
    """Zeros in the form of some outputs, whether these come as arrays or as descriptions of arrays."""
    tree = as_tree(outputs_of(inputs))
    zeros = {}
    for path in sorted(paths):
        leaf = get_at(tree, path)
        if isinstance(leaf, Mapping):
            zeros[path] = np.zeros(leaf["shape"], leaf["dtype"])
        else:
            zeros[path] = np.zeros(np.shape(leaf), getattr(leaf, "dtype", type(leaf)))
    return zeros


def _units(array: np.ndarray) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Each index of an array, and the array that is one there and zero elsewhere."""
    for index in np.ndindex(array.shape):
        e = np.zeros(array.shape, array.dtype)
        e[index] = 1.0
        yield index, e


def _real_inner(a: Mapping[str, np.ndarray], b: Vector) -> float:
    """Sum of products over all paths; of complex numbers the real part."""
    return float(sum(np.sum(a[path] * np.asarray(b[path])).real for path in a))


def _sum(total: np.ndarray, term: np.ndarray) -> np.ndarray:
    """In the dtype of the total, as the cotangent of an input has the input's; of a real one the real part."""
    term = term if _is_complex(total) else np.real(term)
    return np.asarray(total + term, total.dtype)


def _is_complex(array: np.ndarray) -> bool:
    return array.dtype.kind == "c"


def _require_jacobian(output: str, y: np.ndarray, path: str, x: np.ndarray) -> None:
    if _is_complex(x) and not _is_complex(y):
        raise ValueError(
            f"Output {output!r} is real and input {path!r} complex, so there is no Jacobian. Use a product instead."
        )
