"""Derivative endpoints from each other: contractions of a Jacobian, or one probe per element.

For components that can do one of them and should offer more. Endpoints are passed as functions with the arguments of
the protocol, in its order, and come back as one:

    def jacobian(inputs, jac_inputs, jac_outputs):
        return jacobian_from_jvp(jacobian_vector_product, inputs, jac_inputs, jac_outputs)

`map_probes` says how the probes of one call are made: `map`, the default, makes one after the other, and a thread
pool's `map` several at once.

Not here: derivatives from `apply` (`differences`). The one idea: J e_i is a column of J, and J^T e_j is a row.

Complex arrays follow JAX's conventions: products are not conjugated, and J^T c of a real input is the real part. A
Jacobian of complex inputs exists for holomorphic functions only; the products exist for every differentiable one, and
cost two probes for an element that is complex, along the real and along the imaginary axis.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from tesseract_flow.derivatives.paths import get_at
from tesseract_flow.derivatives.probes import MapProbes, Unit, is_complex, units
from tesseract_flow.derivatives.trees import as_tree

Vector: TypeAlias = Mapping[str, Any]
Jacobian: TypeAlias = Mapping[str, Mapping[str, Any]]
# Directions -> J times each of them, in their order.
PushForward: TypeAlias = Callable[[Sequence[Unit]], Iterable[Vector]]


def vjp_from_jacobian(
    jacobian: Callable[..., Jacobian],
    inputs: Any,
    vjp_inputs: Collection[str],
    vjp_outputs: Collection[str],
    cotangent_vector: Vector,
) -> dict[str, np.ndarray]:
    """J^T c, by input path. Cost: one call of `jacobian`."""
    blocks = jacobian(inputs, set(vjp_inputs), set(vjp_outputs))
    x_bar = _zeros_like(arrays_at(inputs, vjp_inputs))
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
    jvp: Callable[..., Vector],
    inputs: Any,
    jac_inputs: Collection[str],
    jac_outputs: Collection[str],
    *,
    map_probes: MapProbes = map,
) -> dict[str, dict[str, np.ndarray]]:
    """J, by output and input path, column by column. Cost: one call of `jvp` per input element.

    The outputs' shapes are those of the first probe's answer.

    Raises:
        ValueError: a real output of a complex input, which has no Jacobian.
    """
    x = arrays_at(inputs, jac_inputs)

    def column(unit: Unit) -> Vector:
        return jvp(inputs, {unit.path}, set(jac_outputs), unit.vector(x))

    return jacobian_by_columns(lambda probes: map_probes(column, probes), x, jac_outputs)


def jacobian_from_vjp(
    vjp: Callable[..., Vector],
    outputs_of: Callable[[Any], Any],
    inputs: Any,
    jac_inputs: Collection[str],
    jac_outputs: Collection[str],
    *,
    map_probes: MapProbes = map,
) -> dict[str, dict[str, np.ndarray]]:
    """J, by output and input path, row by row. Cost: one call of `vjp` per output element, one of `outputs_of`.

    Args:
        outputs_of: the component's `abstract_eval`, or else its `apply`: it has to tell the outputs' shapes.

    Raises:
        ValueError: a real output of a complex input, which has no Jacobian.
    """
    x, y = arrays_at(inputs, jac_inputs), zeros_of_outputs(outputs_of, inputs, jac_outputs)
    for output in y:
        for path in x:
            _require_jacobian(output, y[output], path, x[path])
    # A real input sees the real part of J^T c: the imaginary one takes a probe of its own.
    is_split = is_split_by_rows(x)
    probes = list(units("output", y, imaginary=-1j if is_split else None))
    rows = map_probes(lambda unit: vjp(inputs, set(x), {unit.path}, unit.vector(y)), probes)
    jacobian = {
        output: {path: np.zeros(leaf.shape + x[path].shape, np.result_type(leaf, x[path])) for path in x}
        for output, leaf in y.items()
    }
    for unit, row in zip(probes, rows, strict=True):
        assert unit.index is not None
        for path, block in jacobian[unit.path].items():
            if unit.factor == 1.0:
                block[unit.index] = row[path]
            elif not is_complex(x[path]):
                block[unit.index] += np.conj(unit.factor) * np.asarray(row[path])
    return jacobian


def vjp_from_jvp(
    jvp: Callable[..., Vector],
    inputs: Any,
    vjp_inputs: Collection[str],
    vjp_outputs: Collection[str],
    cotangent_vector: Vector,
    *,
    map_probes: MapProbes = map,
) -> dict[str, np.ndarray]:
    """J^T c, by input path: (J^T c)_i = c . J e_i. Cost: one call of `jvp` per input element."""
    x = arrays_at(inputs, vjp_inputs)

    def column(unit: Unit) -> Vector:
        return jvp(inputs, {unit.path}, set(vjp_outputs), unit.vector(x))

    return vjp_by_columns(lambda probes: map_probes(column, probes), x, vjp_outputs, cotangent_vector)


def jvp_from_vjp(
    vjp: Callable[..., Vector],
    outputs_of: Callable[[Any], Any],
    inputs: Any,
    jvp_inputs: Collection[str],
    jvp_outputs: Collection[str],
    tangent_vector: Vector,
    *,
    map_probes: MapProbes = map,
) -> dict[str, np.ndarray]:
    """J t, by output path: (J t)_j = t . J^T e_j. Cost: one call of `vjp` per output element, one of `outputs_of`.

    Args:
        outputs_of: the component's `abstract_eval`, or else its `apply`: it has to tell the outputs' shapes.
    """
    t = {path: np.asarray(tangent_vector[path]) for path in sorted(jvp_inputs)}
    y_dot = zeros_of_outputs(outputs_of, inputs, jvp_outputs)
    probes = list(units("output", y_dot, imaginary=-1j))
    rows = map_probes(lambda unit: vjp(inputs, set(t), {unit.path}, unit.vector(y_dot)), probes)
    for unit, row in zip(probes, rows, strict=True):
        # Of a complex output, the imaginary part is what the direction -i tells.
        _add(y_dot[unit.path], unit, _real_inner(t, row))
    return y_dot


# --- by columns, however these are made -------------------------------------------------------------------------------


def jacobian_by_columns(
    push_forward: PushForward, x: Mapping[str, np.ndarray], outputs: Collection[str]
) -> dict[str, dict[str, np.ndarray]]:
    probes: list[Unit] = []
    for path, leaf in x.items():
        # An array without elements is probed once, for the outputs' shapes.
        probes += units("input", {path: leaf}) if leaf.size else [Unit("input", path, None)]
    columns: dict[tuple[str, str], list[np.ndarray]] = {}
    for unit, column in zip(probes, push_forward(probes), strict=True):
        for output in outputs:
            columns.setdefault((output, unit.path), []).append(np.asarray(column[output]))
    jacobian: dict[str, dict[str, np.ndarray]] = {output: {} for output in sorted(outputs)}
    for path, leaf in x.items():
        for output, blocks in jacobian.items():
            stacked = np.stack(columns.pop((output, path)), axis=-1)
            _require_jacobian(output, stacked, path, leaf)
            blocks[path] = stacked[..., : leaf.size].reshape(stacked.shape[:-1] + leaf.shape)
    return jacobian


def vjp_by_columns(
    push_forward: PushForward, x: Mapping[str, np.ndarray], outputs: Collection[str], cotangent_vector: Vector
) -> dict[str, np.ndarray]:
    c = {output: np.asarray(cotangent_vector[output]) for output in sorted(outputs)}
    x_bar = _zeros_like(x)
    probes = list(units("input", x, imaginary=1j))
    for unit, column in zip(probes, push_forward(probes), strict=True):
        # JAX's cotangent of a complex number a + ib: d/da - i d/db.
        _add(x_bar[unit.path], unit, _real_inner(c, column))
    return x_bar


def _add(total: np.ndarray, unit: Unit, rate: float) -> None:
    assert unit.index is not None
    total[unit.index] += np.conj(unit.factor) * rate if is_complex(total) else rate


# --- arrays at paths --------------------------------------------------------------------------------------------------


def arrays_at(inputs: Any, paths: Collection[str]) -> dict[str, np.ndarray]:
    """The inputs at some paths; sorted, so that every run makes the same calls in the same order."""
    arrays = {path: np.asarray(get_at(inputs, path)) for path in sorted(paths)}
    for path, x in arrays.items():
        if not np.issubdtype(x.dtype, np.inexact):
            raise ValueError(f"A derivative was requested for input {path!r} of {x.dtype}; expected floating point.")
    return arrays


def zeros_of_outputs(outputs_of: Callable[[Any], Any], inputs: Any, paths: Collection[str]) -> dict[str, np.ndarray]:
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


def is_split_by_rows(x: Mapping[str, Any]) -> bool:
    """Whether complex outputs of these inputs take two rows of a Jacobian."""
    return not all(is_complex(leaf) for leaf in x.values())


def _zeros_like(x: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {path: np.zeros_like(leaf, order="C", subok=False) for path, leaf in x.items()}


def _real_inner(a: Mapping[str, np.ndarray], b: Vector) -> float:
    """Sum of products over all paths; of complex numbers the real part."""
    return float(sum(np.sum(a[path] * np.asarray(b[path])).real for path in a))


def _sum(total: np.ndarray, term: np.ndarray) -> np.ndarray:
    """In the dtype of the total, as the cotangent of an input has the input's; of a real one the real part."""
    term = term if is_complex(total) else np.real(term)
    return np.asarray(total + term, total.dtype)


def _require_jacobian(output: str, y: np.ndarray, path: str, x: np.ndarray) -> None:
    if is_complex(x) and not is_complex(y):
        raise ValueError(
            f"Output {output!r} is real and input {path!r} complex, so there is no Jacobian. Use a product instead."
        )
