"""A Tesseract made from a function, for tests without a server: same handles, same semantics, milliseconds."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tesseract_flow.client import AbstractTesseract, Endpoint, Tree, record_request
from tesseract_flow.errors import ComponentFailed, OptionError
from tesseract_flow.exact import copied
from tesseract_flow.schema import (
    ArrayField,
    Field,
    LeafField,
    ListField,
    ModelField,
    TesseractSchema,
    UnionField,
    array_leaves,
    parse_path,
)

ALL_ENDPOINTS = ("apply", "abstract_eval", "jacobian", "jacobian_vector_product", "vector_jacobian_product")


class _Made:
    """What copies under other labels have in common."""


class FunctionTesseract(AbstractTesseract):
    """A Tesseract whose endpoints are a JAX function and its derivatives, in this process; or one of NumPy, with
    derivatives by hand.

    Its schema is read off an example: floating-point arrays are differentiable and keep their rank, with any length;
    nested dicts become models. It works in the precision of its example, whatever the caller's, as a served component
    does: arrays are cast to the example's dtypes, and with a 64-bit one there, JAX's x64 mode is on inside. Two of them
    are equal if they are the same object, under the same label.

    Args:
        fn: inputs (a dict) → outputs (a dict), in JAX. It may return plain values beside arrays.
        example: inputs that `fn` accepts.
        name: what it is called.
        endpoints: those that it offers; default all.
        delay: seconds that each endpoint takes, to see what overlaps. `abstract_eval` takes none.
        before: called with (endpoint, inputs) before each endpoint: raise there to inject a fault.
        inputs, outputs: fields to use instead of those of the same name that the example gives: fixed lengths, any
            rank, arrays that are not differentiable.
        derivatives: derivatives by hand, by the names of their endpoints and with the signatures that they have in a
            `tesseract_api.py`, so that those can be passed as they are. `fn` is then not looked into: it gets NumPy
            arrays and may be any Python, and the component has `apply`, `abstract_eval` (at ones, of whatever shape is
            asked for) and these. An empty dict makes a component without derivatives.
        version: your word that name and version tell `fn` from other functions, for caches that outlive this process.

    >>> square = FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(3)})
    >>> square.apply({"x": np.array([1.0, 2.0, 3.0])})["y"]
    array([1., 4., 9.])
    >>> cube = FunctionTesseract(
    ...     lambda i: {"y": i["x"] ** 3, "solver": "direct"},
    ...     {"x": np.ones(3)},
    ...     derivatives={
    ...         "vector_jacobian_product": lambda inputs, vjp_inputs, vjp_outputs, cotangent_vector: {
    ...             "x": 3 * inputs["x"] ** 2 * cotangent_vector["y"]
    ...         }
    ...     },
    ... )
    """

    def __init__(
        self,
        fn: Callable[[Any], Any],
        example: Mapping[str, Any],
        *,
        name: str = "function",
        endpoints: Collection[str] = ALL_ENDPOINTS,
        delay: float = 0.0,
        before: Callable[[str, Any], object] | None = None,
        inputs: Mapping[str, Field] | None = None,
        outputs: Mapping[str, Field] | None = None,
        derivatives: Mapping[str, Callable[..., Any]] | None = None,
        version: str | None = None,
    ):
        self.fn = fn
        self.derivatives = derivatives
        if derivatives is not None:
            if unknown := set(derivatives) - set(ALL_ENDPOINTS[2:]):
                raise OptionError(
                    f"FunctionTesseract: {sorted(unknown)} are no derivative endpoints; expected some of "
                    f"{', '.join(ALL_ENDPOINTS[2:])}."
                )
            endpoints = set(endpoints) & {"apply", "abstract_eval", *derivatives}
        self.delay = delay
        self.before = before
        self._name = name
        self._label: str | None = None
        self._made = _Made()
        self.build = None if version is None else ""
        self._is_64_bit = any(_is_64_bit(leaf) for leaf in jax.tree_util.tree_leaves(example))
        with self._own_jax():
            # Outputs that are no arrays cannot pass through eval_shape; one evaluation of the example shows them.
            answer = fn(_arrays(example) if derivatives is None else _own_arrays(example))
        self._schema = TesseractSchema(
            name=name,
            version="test" if version is None else version,
            endpoints=frozenset(endpoints),
            inputs=_model_of(example, inputs or {}),
            outputs=_model_of(answer, outputs or {}),
            encodings=None,
            compressions=None,
            digest=f"function-{name}",
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FunctionTesseract) and (self._made, self._label) == (other._made, other._label)

    def __hash__(self) -> int:
        return hash((self._made, self._label))

    def __repr__(self) -> str:
        return f"FunctionTesseract({self.name})"

    def labelled(self, label: str | None) -> FunctionTesseract:
        other = copy.copy(self)
        other._label = label
        return other

    @property
    def anchor(self) -> object:
        return self._made

    @property
    def name(self) -> str:
        return self._name if self._label is None else self._label

    @property
    def schema(self) -> TesseractSchema:
        return self._schema

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        record_request(self.name, endpoint)
        payload = copied(payload, lambda leaf: leaf.copy())
        inputs = payload["inputs"]
        if self.before is not None:
            self.before(endpoint, inputs)
        if self.delay and endpoint != "abstract_eval":
            time.sleep(self.delay)
        try:
            with self._own_jax():
                if self.derivatives is not None and endpoint in self.derivatives:
                    inputs = self._received(payload["inputs"])
                    return _as_answered(self.derivatives[endpoint](**{**payload, "inputs": inputs}))
                return _as_answered(getattr(self, f"_{endpoint}")(**payload))
        except Exception as error:
            raise ComponentFailed(
                f"{endpoint!r} of Tesseract {self.name!r}: the component raised an error.\n{error}",
                tesseract=repr(self),
                endpoint=endpoint,
            ) from error

    @contextlib.contextmanager
    def _own_jax(self) -> Iterator[None]:
        """JAX as in a process of its own: in our precision, and not a part of what the caller may be tracing."""
        with jax.enable_x64(True) if self._is_64_bit else contextlib.nullcontext(), jax.ensure_compile_time_eval():
            yield

    def _abstract_eval(self, inputs: Tree) -> Tree:
        # What is no JAX function divides by what it gets, or takes its logarithm.
        fill = np.zeros if self.derivatives is None else np.ones
        zeros = jax.tree_util.tree_map(
            lambda leaf: fill(leaf["shape"], leaf["dtype"]) if _is_abstract(leaf) else leaf,
            inputs,
            is_leaf=_is_abstract,
        )
        return jax.tree_util.tree_map(
            lambda leaf: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} if hasattr(leaf, "dtype") else leaf,
            self._apply(zeros),
        )

    def _apply(self, inputs: Tree) -> Tree:
        return self.fn(self._received(inputs))

    def _received(self, inputs: Tree) -> Tree:
        """The inputs as JAX arrays (of NumPy, if the derivatives are by hand), in the dtypes of the schema."""
        is_jax = self.derivatives is None
        received = _arrays(inputs) if is_jax else inputs
        for keys, field in array_leaves(self._schema.inputs, inputs):
            value = _at(inputs, keys)
            received = _replaced(received, keys, _array(value, field.dtype) if is_jax else np.array(value, field.dtype))
        return received

    def _jacobian_vector_product(self, inputs, jvp_inputs, jvp_outputs, tangent_vector):
        fn, x = self._between(inputs, jvp_inputs, jvp_outputs)
        tangents = {path: _array(tangent_vector[path], x[path].dtype) for path in jvp_inputs}
        return jax.jvp(fn, (x,), (tangents,))[1]

    def _vector_jacobian_product(self, inputs, vjp_inputs, vjp_outputs, cotangent_vector):
        fn, x = self._between(inputs, vjp_inputs, vjp_outputs)
        y, pullback = jax.vjp(fn, x)
        return pullback({path: _array(cotangent_vector[path], y[path].dtype) for path in vjp_outputs})[0]

    def _jacobian(self, inputs, jac_inputs, jac_outputs):
        fn, x = self._between(inputs, jac_inputs, jac_outputs)
        return jax.jacrev(fn)(x)

    def _between(self, inputs: Tree, in_paths: Any, out_paths: Any) -> tuple[Callable[[Any], Any], dict[str, Any]]:
        """The function from some inputs to some outputs, both by path."""
        received = self._received(inputs)

        def fn(x: dict[str, Any]) -> dict[str, Any]:
            full = received
            for path, value in x.items():
                full = _replaced(full, parse_path(path), value)
            out = self.fn(full)
            return {path: _at(out, parse_path(path)) for path in out_paths}

        return fn, {path: _at(received, parse_path(path)) for path in in_paths}


jax.tree_util.register_static(FunctionTesseract)


def _model_of(example: Mapping[str, Any], fields: Mapping[str, Field]) -> ModelField:
    return ModelField({key: fields.get(key) or _field_of(item) for key, item in example.items()}, frozenset(example))


def _field_of(value: Any) -> Field:
    if isinstance(value, Mapping):
        return _model_of(value, {})
    if isinstance(value, list | tuple):
        items = [_field_of(item) for item in value] or [LeafField("any")]
        if len(set(items)) == 1:
            return ListField(items[0])
        return ListField(UnionField(tuple(dict.fromkeys(items))), tuple(items), len(items), len(items))
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        differentiable = bool(jnp.issubdtype(value.dtype, jnp.inexact))
        return ArrayField(str(value.dtype), (None,) * len(value.shape), differentiable)
    return LeafField("any")


def _arrays(tree: Any) -> Any:
    return jax.tree_util.tree_map(lambda leaf: _array(leaf) if hasattr(leaf, "dtype") else leaf, tree)


def _own_arrays(tree: Any) -> Any:
    return jax.tree_util.tree_map(lambda leaf: np.array(leaf) if hasattr(leaf, "dtype") else leaf, tree)


def _array(value: Any, dtype: Any = None) -> jax.Array:
    # Not jnp.asarray, which copies on XLA's thread pool: inside host callbacks of jitted code, when each thread of the
    # pool is in a callback that waits for such a copy, large arrays would wait for ever.
    return jax.device_put(np.asarray(value, dtype))


def _as_answered(tree: Any) -> Any:
    """What arrives at a client: NumPy arrays in dicts and lists."""
    if isinstance(tree, Mapping):
        return {key: _as_answered(item) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return [_as_answered(item) for item in tree]
    return _own(tree) if hasattr(tree, "dtype") else tree


def _own(array: Any) -> np.ndarray:
    """The numbers where nobody else can write into them. JAX's own arrays are read-only, unless JAX is given away one
    of NumPy's: which is why there are copies of those on their way in."""
    return np.asarray(array) if isinstance(array, jax.Array) else np.array(array)


def _is_64_bit(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and str(leaf.dtype) in ("int64", "uint64", "float64", "complex128")


def _is_abstract(node: Any) -> bool:
    return isinstance(node, Mapping) and set(node) == {"shape", "dtype"}


def _at(tree: Any, keys: tuple[Any, ...]) -> Any:
    for key in keys:
        tree = tree[key]
    return tree


def _replaced(tree: Any, keys: tuple[Any, ...], value: Any) -> Any:
    if not keys:
        return value
    copy = dict(tree) if isinstance(tree, Mapping) else list(tree)
    copy[keys[0]] = _replaced(tree[keys[0]], keys[1:], value)  # type: ignore[index]
    return copy
