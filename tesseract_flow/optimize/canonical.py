"""A traced function as text that is equal for equal functions: in another process, on another day.

What a jaxpr prints depends on hash seeds, memory addresses, names of functions and where `jit` stands; the text here
does not. It is written from the results backwards, so that order of execution and what nobody uses leave no trace.
Constants stand in it by type, shape and value, or a digest of their bytes; a Tesseract by the key of its component and
what it is asked. What has no text, such as a Python function behind a callback, is named as a doubt.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from tesseract_flow.autodiff import ENDPOINTS, Call
from tesseract_flow.autodiff.carried import MARKS
from tesseract_flow.autodiff.sow import sow_p
from tesseract_flow.client import AbstractTesseract
from tesseract_flow.storage import told_apart

# Primitives that only wrap a body, and the parameters that may hold it, in several versions of JAX.
_WRAPPERS = {
    *("jit", "pjit", "closed_call", "core_call", "eval_jaxpr"),
    *("checkpoint", "remat", "remat2"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
    "linear_map",
}
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")
# They tell somebody about values, and have none.
_SILENT = {"debug_callback", "debug_print"}
# How something is compiled, and what it is called; no part of what it computes.
_NO_MATTER = {
    *("name", "debug_info", "linear", "unroll", "_split_transpose", "sharding", "out_sharding", "mesh", "ctx_mesh"),
    *("in_shardings", "out_shardings", "in_layouts", "out_layouts", "donated_invars", "keep_unused", "inline"),
    *("compiler_options_kvs", "cudnn_version", "vmap_method"),
}
_ADDRESS = re.compile(r"( at )?0x[0-9a-fA-F]{4,}")
_SHORT = 6  # entries of an array that are written out
_MOST_LINES = 20_000  # of a text that are kept to show what changed


@dataclasses.dataclass(frozen=True)
class Text:
    """A function as text.

    Attributes:
        lines: what it computes.
        doubts: parts whose text does not tell them apart from others, each once.
    """

    lines: tuple[str, ...]
    doubts: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()

    @property
    def kept_lines(self) -> list[str]:
        """The lines, to show what changed; none where there are very many."""
        return list(self.lines) if len(self.lines) <= _MOST_LINES else []


def as_json(value: Any) -> Any:
    """As it comes back from a file; what JSON does not know (NaN) as text."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except ValueError:
        return repr(value)


def text_of(
    closed: ClosedJaxpr, inputs: Sequence[str], results: slice, key_of: Callable[[AbstractTesseract], str]
) -> Text:
    """The text of some results of a traced function.

    Args:
        inputs: what to call its arguments.
        results: which results.
        key_of: what to call a component.
    """
    writer = _Writer(key_of)
    writer.body(closed.jaxpr, closed.consts, list(inputs), "", results)
    return Text(tuple(writer.lines), tuple(dict.fromkeys(writer.doubts)))


def handles_of(jaxpr: Jaxpr) -> Iterator[AbstractTesseract]:
    """The handles of all calls in a jaxpr, bodies of control flow included, in order of appearance."""
    for eqn in jaxpr.eqns:
        for value in eqn.params.values():
            if isinstance(value, Call):
                yield value.tesseract
            for item in value if isinstance(value, tuple | list) else (value,):
                if isinstance(item, ClosedJaxpr):
                    yield from handles_of(item.jaxpr)
                elif isinstance(item, Jaxpr):
                    yield from handles_of(item)


def array_text(value: Any) -> str:
    """An array or number by type, shape and values, with a digest in place of more than a few of them."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return f"key {jax.random.key_impl(value)} {np.asarray(jax.random.key_data(value)).tolist()}"
    array = np.asarray(value, order="C")
    values = array.astype(np.float64) if array.dtype.kind == "V" else array  # bfloat16 and its kin
    what = f"{array.dtype.name}{list(array.shape)}"
    if array.dtype.hasobject:
        return f"{what} = {array.ravel().tolist()!r}"  # text, mostly
    data, first = array.tobytes(), array.ravel()[:1].tobytes()
    if array.size and data == first * array.size:  # by bytes: 0.0 == -0.0, and NaN is not NaN
        return f"{what} = {values.flat[0]!s}"
    if array.size <= _SHORT:
        return f"{what} = {values.ravel().tolist()}"
    return f"{what} sha256 {hashlib.sha256(data).hexdigest()[:32]}"


class Plain:
    """Values that are no arrays, as text; what has none is a doubt."""

    def __init__(self) -> None:
        self.doubts: list[str] = []

    def text(self, value: Any, name: str = "") -> str:
        """`value` as text that another process writes alike, without secrets, but with a tag for each."""
        if eqx.is_array(value) or isinstance(value, np.ndarray | np.generic):
            return array_text(value)
        if isinstance(value, enum.Enum):
            return f"{type(value).__name__.strip('_')}.{value.name}"
        if value is None or isinstance(value, bool | int | float | complex):
            return str(told_apart(value, name))
        if isinstance(value, bytes):
            return str(told_apart(repr(value), name))
        if isinstance(value, str):
            return repr(told_apart(value, name))
        if isinstance(value, Mapping):
            items = (f"{self.text(key)}: {self.text(item, str(key))}" for key, item in value.items())
            return "{" + ", ".join(sorted(items)) + "}"
        if isinstance(value, set | frozenset):
            return "{" + ", ".join(sorted(self.text(item) for item in value)) + "}"
        if type(value).__name__ == "PRNGImpl":  # a tuple of functions with a name
            return str(value.name)
        if isinstance(value, list | tuple):
            fields = getattr(value, "_fields", None)
            inner = [self.text(item, name) for item in value]
            if fields:
                return f"{type(value).__name__}({', '.join(f'{k}={v}' for k, v in zip(fields, inner, strict=True))})"
            return (
                f"{'[' if isinstance(value, list) else '('}{', '.join(inner)}{']' if isinstance(value, list) else ')'}"
            )
        if isinstance(value, functools.partial):
            return f"partial {self.text(value.func)} {self.text(value.args)} {self.text(value.keywords)}"
        if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
            return np.dtype(value).name
        if isinstance(value, type):
            return value.__qualname__
        if dataclasses.is_dataclass(value):
            parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.repr}
            return (
                f"{type(value).__name__}({', '.join(f'{key}={self.text(item, key)}' for key, item in parts.items())})"
            )
        if callable(value):
            return self._function(value)
        return self._object(value)

    def _function(self, value: Any) -> str:
        name = function_name(value)
        self.doubts.append(f"the code of {name}")
        return f"function {name}"

    def _object(self, value: Any) -> str:
        text = str(value)
        clean = _ADDRESS.sub("", text)
        if clean != text:
            self.doubts.append(f"an object of type {type(value).__name__}")
        return str(told_apart(clean))


def function_name(value: Any) -> str:
    """A function's name: a repr would hold an address, and a module is called __main__ when it is run directly."""
    while (inner := getattr(value, "callback_func", None) or getattr(value, "func", None)) is not None:
        value = inner
    return getattr(value, "__qualname__", None) or type(value).__qualname__


class _Writer:
    def __init__(self, key_of: Callable[[AbstractTesseract], str]):
        self.lines: list[str] = []
        self.doubts: list[str] = []
        self._key_of = key_of
        self._plain = Plain()
        self._plain.doubts = self.doubts
        self._n_names = 0

    def body(
        self, jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[str], indent: str, results: slice = slice(None)
    ) -> None:
        """Write the equations behind the results, and `return` with them."""
        flat = _Flat()
        outputs = flat.add(jaxpr, consts, [_Named(name) for name in inputs])[results]
        names = self._write(flat, outputs, indent)
        self.lines.append(f"{indent}return {', '.join(names)}")

    def _write(self, flat: _Flat, outputs: Sequence[Any], indent: str) -> list[str]:
        written: dict[int, list[str]] = {}  # id of an equation -> names of its results

        def name(ref: Any) -> str:
            if isinstance(ref, _Named):
                return ref.name
            if isinstance(ref, _Result):
                return written[id(ref.eqn)][ref.index]
            return f"({self._plain.text(ref)})"

        def visit(eqn: _Eqn) -> None:
            # By a stack of our own: chains of operations are longer than Python's.
            stack = [eqn]
            while stack:
                here = stack[-1]
                if id(here) in written:
                    stack.pop()
                    continue
                # Pushed in reverse, so that the first operand is written first.
                missing = [r.eqn for r in reversed(here.inputs) if isinstance(r, _Result) and id(r.eqn) not in written]
                if missing:
                    stack.extend(missing)
                    continue
                stack.pop()
                written[id(here)] = self._equation(here, [name(ref) for ref in here.inputs], indent)

        for eqn in flat.effectful:
            visit(eqn)
        for ref in outputs:
            if isinstance(ref, _Result):
                visit(ref.eqn)
        return [name(ref) for ref in outputs]

    def _equation(self, eqn: _Eqn, operands: Sequence[str], indent: str) -> list[str]:
        names = [f"v{self._n_names + k}" for k in range(len(eqn.outvars))]
        self._n_names += len(names)
        params, bodies = self._params(eqn)
        shapes = " ".join(f"{name}:{var.aval.str_short()}" for name, var in zip(names, eqn.outvars, strict=True))
        self.lines.append(f"{indent}{shapes} = {eqn.primitive}{params} {' '.join(operands)}".rstrip())
        for label, body, consts in bodies:
            inputs = [f"x{k}" for k in range(len(body.invars))]
            shapes = " ".join(f"{x}:{var.aval.str_short()}" for x, var in zip(inputs, body.invars, strict=True))
            self.lines.append(f"{indent}  {label} of {shapes}".rstrip())
            self.body(body, consts, inputs, indent + "    ")
        return names

    def _params(self, eqn: _Eqn) -> tuple[str, list[tuple[str, Jaxpr, Sequence[Any]]]]:
        texts, bodies = [], []
        for name in sorted(eqn.params):
            value = eqn.params[name]
            items = value if isinstance(value, tuple | list) else (value,)
            inner = [item for item in items if isinstance(item, ClosedJaxpr | Jaxpr)]
            if isinstance(value, Call):
                texts.append(self._call(value, ENDPOINTS.get(eqn.raw)))
            elif inner:
                for k, item in enumerate(inner):
                    label = name if len(inner) == 1 else f"{name}[{k}]"
                    closed = isinstance(item, ClosedJaxpr)
                    bodies.append((label, item.jaxpr if closed else item, item.consts if closed else ()))
            elif name == "callback":
                callee = function_name(value)
                self.doubts.append(f"the host callback {callee}")
                texts.append(f"callback={callee}")
            elif name not in _NO_MATTER and value is not None:
                texts.append(f"{name}={self._plain.text(value, name)}")
        return (f"[{', '.join(texts)}]" if texts else ""), bodies

    def _call(self, call: Call, endpoint: str | None) -> str:
        inputs = self._layout(call.input)
        wanted = f" d({self._paths(call.output, call.outputs)})/d({self._paths(call.input, call.inputs)})"
        batch = f" x {call.batch.size} {call.batch.mapped}" if call.batch is not None else ""
        derivative = wanted if call.inputs or call.outputs else ""
        return f"{self._key_of(call.tesseract)}.{endpoint}{derivative}{batch} {inputs} -> {self._layout(call.output)}"

    def _layout(self, layout: Any) -> str:
        return self._plain.text(layout.fill([_Leaf.ARRAY] * layout.n_slots))

    def _paths(self, layout: Any, indices: Iterable[int]) -> str:
        return ", ".join(layout.paths[k] for k in indices)


class _Leaf(enum.Enum):
    """What stands where a tree of inputs or outputs has an array."""

    ARRAY = enum.auto()


@dataclasses.dataclass(frozen=True)
class _Named:
    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Eqn:
    raw: Any
    primitive: str
    params: Mapping[str, Any]
    inputs: tuple[Any, ...]
    outvars: Sequence[Any]


@dataclasses.dataclass(frozen=True, eq=False)
class _Result:
    eqn: _Eqn
    index: int


class _Flat:
    """Equations with wrappers inlined, and what their operands come from: arguments, results, or constants."""

    def __init__(self) -> None:
        self.effectful: list[_Eqn] = []

    def add(self, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        env: dict[Any, Any] = dict(zip(jaxpr.invars, arguments, strict=True))
        env.update(zip(jaxpr.constvars, consts, strict=True))

        def read(atom: Any) -> Any:
            if isinstance(atom, Literal):
                # A literal may be a Python number, and only its aval knows the dtype.
                dtype = getattr(atom.aval, "dtype", None)
                is_number = dtype is not None and not jnp.issubdtype(dtype, jax.dtypes.extended)
                return np.asarray(atom.val, dtype) if is_number else atom.val
            return env[atom]

        for eqn in jaxpr.eqns:
            if eqn.primitive.name in _SILENT:
                continue
            inputs = tuple(read(atom) for atom in eqn.invars)
            body = self._wrapped(eqn)
            if eqn.primitive is sow_p or eqn.primitive in MARKS:
                outputs: Sequence[Any] = inputs[: len(eqn.outvars)]
            elif body is not None:
                outputs = self.add(body.jaxpr, body.consts, inputs)
            else:
                made = _Eqn(eqn.primitive, eqn.primitive.name, eqn.params, inputs, eqn.outvars)
                if eqn.effects and not _only_tells(eqn):
                    self.effectful.append(made)
                outputs = [_Result(made, k) for k in range(len(eqn.outvars))]
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _wrapped(self, eqn: Any) -> ClosedJaxpr | None:
        if eqn.primitive.name not in _WRAPPERS:
            return None
        body = next((eqn.params[name] for name in _BODIES if name in eqn.params), None)
        return ClosedJaxpr(body, ()) if isinstance(body, Jaxpr) else body


def _only_tells(eqn: Any) -> bool:
    """Whether all effects of an equation are messages, such as those of a `jax.debug.print` in a loop."""
    return all("Debug" in type(effect).__name__ for effect in eqn.effects)
