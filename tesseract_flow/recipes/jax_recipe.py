"""All endpoints of a component from one JAX function of its inputs.

Here: which leaves JAX traces, the compiled forms of the function, residuals kept from `apply` to its pullbacks. Not
here: keys (`tesseract_flow.exact`), the store (`residuals`), paths. The one idea: whatever is constant in a compiled
program (leaves that are no arrays, requested paths) is a hashable argument of it, so JAX's own cache compiles once per
structure.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel

from tesseract_flow.derivatives import as_tree, exists_at, get_at, set_at
from tesseract_flow.exact import InputKey
from tesseract_flow.recipes.exact import Skeleton, Static, split
from tesseract_flow.recipes.residuals import ResidualCache
from tesseract_flow.recipes.trees import Pattern, as_abstract_tree, differentiable_patterns, matches


@dataclasses.dataclass(frozen=True)
class _Request:
    """Of which outputs and with respect to which inputs, by path. Sorted, as equal sets come in any order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, inputs: Iterable[str], outputs: Iterable[str]) -> _Request:
        return cls(tuple(sorted(set(inputs))), tuple(sorted(set(outputs))))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class _Backward:
    """The backward pass of one compiled forward pass, which gives the same object with each answer.

    Attributes:
        structure: of the pullback, a pytree with the residuals as its leaves.
        x, y: avals of the differentiated inputs and outputs, with None in all other places.
    """

    structure: Any
    x: Any
    y: Any


@functools.lru_cache(maxsize=256)
def _covers(backward: _Backward, request: _Request) -> bool:
    return all(_has_aval(backward.x, path) for path in request.inputs) and all(
        _has_aval(backward.y, path) for path in request.outputs
    )


@dataclasses.dataclass(frozen=True)
class _Residuals:
    """What a forward pass leaves for its pullbacks."""

    arrays: list[Any]  # and not the pullback itself, which JAX takes apart more slowly
    backward: _Backward

    @property
    def n_bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


class JaxRecipe:
    """The endpoints `apply`, `jacobian`, `jacobian_vector_product`, `vector_jacobian_product` and `abstract_eval`.

    Inputs are pydantic models or dicts. Arrays in them are traced by JAX; text, numbers, booleans, None and whatever
    else is hashable are constants, for each value of which the function is compiled anew. Only what is asked for is
    differentiated. Answers are NumPy arrays, read-only, in trees like those that `fn` returns.

    With residuals kept, `apply` runs the function together with what its derivative needs, and a later
    `vector_jacobian_product` at exactly the same inputs runs the backward pass alone, as often as it is asked. Without
    an `apply` before it, it keeps the residuals itself. Arrays that the input model does not mark `Differentiable`
    cost nothing then; without such a model, every floating-point array counts as differentiable.

    Args:
        fn: inputs -> outputs, dicts with arrays, plain values, dicts and lists. Pure, as JAX requires.
        residual_cache: True to keep residuals within default bounds, or a `ResidualCache` with others.
        outputs: the component's output model. With residuals kept, only what it marks `Differentiable` is
            differentiated; without it, every floating-point output is.
        trace_floats: whether Python floats are traced too. Then other values are no reason to compile again, but `fn`
            must not decide by them in Python.
        jacobian_mode: `"forward"` (one pushforward per input element), `"reverse"` (one pullback per output element),
            or `"auto"`, the cheaper one. A function with a `jax.custom_vjp` inside has no forward mode.

    All endpoints raise ValueError for paths that lead to no floating-point array, and for 64-bit arrays while JAX is
    in its 32-bit mode; TypeError for leaves that are neither arrays nor hashable.

    >>> recipe = JaxRecipe(lambda inputs: {"y": inputs["x"] ** inputs["power"]})
    >>> recipe.vector_jacobian_product({"x": np.float32(3.0), "power": 2}, {"x"}, {"y"}, {"y": np.float32(1.0)})
    {'x': array(6., dtype=float32)}
    """

    def __init__(
        self,
        fn: Callable[[dict[str, Any]], dict[str, Any]],
        *,
        residual_cache: ResidualCache | bool = False,
        outputs: type[BaseModel] | None = None,
        trace_floats: bool = False,
        jacobian_mode: Literal["auto", "forward", "reverse"] = "auto",
    ):
        if jacobian_mode not in ("auto", "forward", "reverse"):
            raise ValueError(f"jacobian_mode is {jacobian_mode!r}; expected 'auto', 'forward' or 'reverse'.")
        self.fn = fn
        if isinstance(residual_cache, bool):
            self.residual_cache = ResidualCache() if residual_cache else None
        else:
            self.residual_cache = residual_cache
        self._trace_floats = trace_floats
        self._jacobian_mode = jacobian_mode
        self._output_patterns = differentiable_patterns(outputs) if outputs is not None else None
        self._n_programs = 0
        self._lock = threading.Lock()
        # What is constant is part of the key of JAX's cache: as a leafless pytree (`Skeleton`), or by position here.
        self._run = jax.jit(self._traced_run)
        self._run_with_residuals = jax.jit(self._traced_run_with_residuals, static_argnums=2)
        self._pull_back = jax.jit(self._traced_pull_back, static_argnums=(2, 3))
        self._vjp = jax.jit(self._traced_vjp, static_argnums=3)
        self._jvp = jax.jit(self._traced_jvp, static_argnums=3)
        self._jacobian = jax.jit(self._traced_jacobian, static_argnums=2)

    def apply(self, inputs: Any) -> dict[str, Any]:
        """The outputs."""
        tree = self._received(inputs)
        if self.residual_cache is None:
            arrays, skeleton = self._run(*self._split(tree))
        else:
            arrays, skeleton, _ = self._keep(InputKey(tree, copy=True), _patterns_of(inputs))
        return skeleton.filled(map(np.asarray, arrays))

    def abstract_eval(self, abstract_inputs: Any) -> dict[str, Any]:
        """Shape and dtype of each array output, as `{"shape", "dtype"}`; plain outputs as they are. Nothing is run.

        Arrays in the inputs may be given by value, as tesseract-core's `ShapeDType`, or as a dict of that form.
        """
        tree = as_abstract_tree(abstract_inputs, jax.ShapeDtypeStruct)
        _check_precision(tree)
        avals, skeleton = self._run.eval_shape(*self._split(jax.tree_util.tree_map(_as_jax_sees_it, tree)))
        return skeleton.filled({"shape": aval.shape, "dtype": str(aval.dtype)} for aval in avals)

    def jacobian(self, inputs: Any, jac_inputs: Iterable[str], jac_outputs: Iterable[str]) -> dict[str, Any]:
        """`{output path: {input path: array}}`, of shape output shape + input shape each."""
        return _to_numpy(self._jacobian(*self._split(self._received(inputs)), _Request.of(jac_inputs, jac_outputs)))

    def jacobian_vector_product(
        self,
        inputs: Any,
        jvp_inputs: Iterable[str],
        jvp_outputs: Iterable[str],
        tangent_vector: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Tangents of the outputs, by path."""
        request = _Request.of(jvp_inputs, jvp_outputs)
        tangents = _vector(tangent_vector, request.inputs, "tangent_vector")
        return _to_numpy(self._jvp(*self._split(self._received(inputs)), tangents, request))

    def vector_jacobian_product(
        self,
        inputs: Any,
        vjp_inputs: Iterable[str],
        vjp_outputs: Iterable[str],
        cotangent_vector: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Cotangents of the inputs, by path."""
        request = _Request.of(vjp_inputs, vjp_outputs)
        cotangents = _vector(cotangent_vector, request.outputs, "cotangent_vector")
        tree = self._received(inputs)
        residuals = self._residuals(tree, inputs)
        if residuals is not None and _covers(residuals.backward, request):
            x_bars = self._pull_back(residuals.arrays, list(cotangents.values()), residuals.backward, request)
            return dict(zip(request.inputs, map(np.asarray, x_bars), strict=True))
        return _to_numpy(self._vjp(*self._split(tree), cotangents, request))

    def stats(self) -> dict[str, int]:
        """Counters: `programs` that JAX has made of the function, and those of the residual cache, zero without one."""
        kept = self.residual_cache.stats() if self.residual_cache is not None else dict.fromkeys(_NO_CACHE, 0)
        with self._lock:
            return {"programs": self._n_programs, **kept}

    # From inputs to what JAX gets

    def _received(self, inputs: Any) -> Any:
        tree = as_tree(inputs)
        _check_precision(tree)
        return tree

    def _split(self, tree: Any) -> tuple[list[Any], Skeleton]:
        return split(tree, self._is_traced)

    def _is_traced(self, leaf: Any) -> bool:
        # By exact type: an enumeration of floats is a choice and no number.
        kind = type(leaf)
        if kind is np.ndarray or kind in _PLAIN:  # nearly all leaves, and JAX's own checks take longer
            return kind is np.ndarray
        is_array = eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
        return is_array or (self._trace_floats and kind in (float, complex))

    # Residuals

    def _residuals(self, tree: Any, inputs: Any) -> _Residuals | None:
        if self.residual_cache is None:
            return None
        found = self.residual_cache.get((self, InputKey(tree)))
        return found if found is not None else self._keep(InputKey(tree, copy=True), _patterns_of(inputs))[2]

    def _keep(self, key: InputKey, patterns: frozenset[Pattern] | None) -> tuple[list[Any], Skeleton, _Residuals]:
        """Run the function at the key's input and keep what its pullback needs."""
        assert self.residual_cache is not None
        self.residual_cache.make_room((self, key))
        out, skeleton, *left = self._run_with_residuals(*self._split(key.tree), patterns)
        residuals = _Residuals(*left)
        # The recipe is part of the key, as a cache may be shared.
        self.residual_cache.put((self, key), residuals, residuals.n_bytes + key.n_bytes)
        return out, skeleton, residuals

    # What is compiled. JAX runs these bodies once per structure.

    def _count(self) -> None:
        with self._lock:
            self._n_programs += 1

    def _traced_run(self, arrays: list[Any], skeleton: Skeleton) -> tuple[list[Any], Skeleton]:
        self._count()
        return split(self.fn(skeleton.filled(arrays)), eqx.is_array)

    def _traced_run_with_residuals(
        self, arrays: list[Any], skeleton: Skeleton, patterns: frozenset[Pattern] | None
    ) -> tuple[list[Any], Skeleton, list[Any], _Backward]:
        self._count()
        inputs = skeleton.filled(arrays)
        x, rest = eqx.partition(inputs, _differentiable(inputs, patterns))

        def fn(x: Any) -> tuple[Any, tuple[Any, Static]]:
            arrays, plain = eqx.partition(self.fn(eqx.combine(x, rest)), eqx.is_array)
            y, others = eqx.partition(arrays, _differentiable(arrays, self._output_patterns))
            return y, (others, Static(plain))

        y, pullback, (others, plain) = jax.vjp(fn, x, has_aux=True)
        residuals, structure = jax.tree_util.tree_flatten(pullback)
        avals = jax.tree_util.tree_map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (x, y))
        return *split(eqx.combine(y, others, plain.tree), eqx.is_array), residuals, _Backward(structure, *avals)

    def _traced_pull_back(
        self, residuals: list[Any], cotangents: list[Any], backward: _Backward, request: _Request
    ) -> list[Any]:
        self._count()
        zeros = jax.tree_util.tree_map(lambda aval: jnp.zeros(aval.shape, aval.dtype), backward.y)
        given = {
            path: _like(cotangent, get_at(backward.y, path), path)
            for path, cotangent in zip(request.outputs, cotangents, strict=True)
        }
        (x_bar,) = backward.structure.unflatten(residuals)(set_at(zeros, given))
        return [get_at(x_bar, path) for path in request.inputs]

    def _traced_vjp(
        self, arrays: list[Any], skeleton: Skeleton, cotangents: dict[str, Any], request: _Request
    ) -> dict[str, Any]:
        self._count()
        fn, x = self._between(arrays, skeleton, request)
        y, pullback = jax.vjp(fn, x)
        return pullback({path: _like(cotangents[path], y[path], path) for path in request.outputs})[0]

    def _traced_jvp(
        self, arrays: list[Any], skeleton: Skeleton, tangents: dict[str, Any], request: _Request
    ) -> dict[str, Any]:
        self._count()
        fn, x = self._between(arrays, skeleton, request)
        return jax.jvp(fn, (x,), ({path: _like(tangents[path], x[path], path) for path in request.inputs},))[1]

    def _traced_jacobian(self, arrays: list[Any], skeleton: Skeleton, request: _Request) -> dict[str, Any]:
        self._count()
        fn, x = self._between(arrays, skeleton, request)
        y = jax.eval_shape(fn, x)
        # Where only one of both is complex, there is no Jacobian but from real inputs, forward.
        holomorphic = all(_is_complex(leaf) for leaf in [*x.values(), *y.values()])
        mode = self._jacobian_mode
        if mode == "auto":
            is_tall = sum(leaf.size for leaf in x.values()) < sum(leaf.size for leaf in y.values())
            must_be_forward = not holomorphic and any(_is_complex(leaf) for leaf in y.values())
            mode = "forward" if is_tall or must_be_forward else "reverse"
        return (jax.jacfwd if mode == "forward" else jax.jacrev)(fn, holomorphic=holomorphic)(x)

    def _between(
        self, arrays: list[Any], skeleton: Skeleton, request: _Request
    ) -> tuple[Callable[[dict[str, Any]], dict[str, Any]], dict[str, Any]]:
        """The function from the requested inputs to the requested outputs, both by path, and where to take it."""

        def fn(x: dict[str, Any]) -> dict[str, Any]:
            # Filled anew each time, so that a function may write into its own dict.
            out = self.fn(set_at(skeleton.filled(arrays), x))
            return {path: _inexact_at(out, path, "output") for path in request.outputs}

        inputs = skeleton.filled(arrays)
        return fn, {path: _inexact_at(inputs, path, "input") for path in request.inputs}


_PLAIN = frozenset({str, int, bool})
_NO_CACHE = tuple(ResidualCache().stats())


def _patterns_of(inputs: Any) -> frozenset[Pattern] | None:
    return differentiable_patterns(type(inputs)) if isinstance(inputs, BaseModel) else None


def _differentiable(tree: Any, patterns: frozenset[Pattern] | None) -> Any:
    """True at the leaves that residuals are kept for."""

    def one(path: tuple[Any, ...], leaf: Any) -> bool:
        return eqx.is_inexact_array(leaf) and matches([_key_of(entry) for entry in path], patterns)

    return jax.tree_util.tree_map_with_path(one, tree)


def _key_of(entry: Any) -> Any:
    """The key in one entry of JAX's paths, which are objects of several kinds."""
    return next(getattr(entry, name) for name in ("key", "idx", "name") if hasattr(entry, name))


def _has_aval(tree: Any, path: str) -> bool:
    return exists_at(tree, path) and isinstance(get_at(tree, path), jax.ShapeDtypeStruct)


def _inexact_at(tree: Any, path: str, role: str) -> Any:
    leaf = get_at(tree, path)
    if eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    found = f"an array of {leaf.dtype}" if eqx.is_array(leaf) else f"no array ({type(leaf).__name__})"
    raise ValueError(
        f"A derivative was requested for {role} {path!r}, which is {found}; expected a floating-point one."
    )


def _vector(vector: Mapping[str, Any], paths: tuple[str, ...], name: str) -> dict[str, Any]:
    if set(vector) != set(paths):
        raise ValueError(f"{name} has entries for {sorted(vector)}; expected {list(paths)}, those requested.")
    return {path: as_tree(vector[path]) for path in paths}


def _like(value: Any, reference: Any, path: str) -> Any:
    """A (co)tangent in the dtype of what it belongs to."""
    value = jnp.asarray(value)
    if value.shape != reference.shape or (_is_complex(value) and not _is_complex(reference)):
        raise ValueError(
            f"The tangent or cotangent of {path!r} is an array of shape {value.shape} and dtype {value.dtype}; "
            f"expected shape {reference.shape} and dtype {reference.dtype}."
        )
    return value.astype(reference.dtype)


def _is_complex(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.complexfloating))


def _check_precision(tree: Any) -> None:
    """JAX in its 32-bit mode would round inputs without a word."""
    if jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        return
    for leaf in jax.tree_util.tree_leaves(tree):
        if not hasattr(leaf, "dtype") or leaf.dtype.itemsize < 8 or _canonical(leaf.dtype) == leaf.dtype:
            continue
        is_exact = leaf.dtype.kind in "iu" and (
            isinstance(leaf, jax.ShapeDtypeStruct) or np.array_equal(leaf, leaf.astype(_canonical(leaf.dtype)))
        )
        if not is_exact:
            raise ValueError(
                f"An input is an array of {leaf.dtype}, and JAX is in its 32-bit mode. Put "
                'jax.config.update("jax_enable_x64", True) at the top of tesseract_api.py, or declare the field '
                f"as {_canonical(leaf.dtype)}."
            )


def _as_jax_sees_it(leaf: Any) -> Any:
    # Since JAX 0.11.1 a description with integers of 64 bits is a warning in the 32-bit mode.
    return jax.ShapeDtypeStruct(leaf.shape, _canonical(leaf.dtype)) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf


def _canonical(dtype: Any) -> np.dtype:
    return np.dtype(jax.dtypes.canonicalize_dtype(dtype))


def _to_numpy(tree: Any) -> Any:
    return jax.tree_util.tree_map(np.asarray, tree)
