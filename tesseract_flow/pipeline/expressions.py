"""Arithmetic over named values, for objectives and constraints that are one line: `x**2 + y1.y1 + exp(-y2.y2)`.

A language and no Python: numbers, names of sources, `+ - * / **`, indices, and the functions below. The text is parsed
into Python's syntax tree, of which everything that is not on the list is refused; nothing is ever executed but what
stands here.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from tesseract_flow.errors import PipelineError, did_you_mean

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{name: getattr(jnp, name) for name in ("exp", "log", "sqrt", "sin", "cos", "tan", "tanh", "abs")},
    **{name: getattr(jnp, name) for name in ("sum", "mean", "max", "min", "maximum", "minimum", "dot")},
}


def _power(a: Any, b: Any) -> Any:
    """Of two whole numbers as floating point: exactly, 9**9**9 has 370 million digits."""
    try:
        return float(a) ** b if isinstance(a, int) and isinstance(b, int) else a**b
    except (OverflowError, ZeroDivisionError) as error:
        raise PipelineError(f"{a}**{b} in an expression is no number: {error}") from None


_N_ARGUMENTS = {"maximum": 2, "minimum": 2, "dot": 2}
_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: _power,
}
_LONGEST = 4000  # characters; the parser of a longer one could exhaust the stack


class Expression:
    """A parsed text.

    Attributes:
        names: the sources in it, in the order in which they come.

    Raises:
        PipelineError: it is no such arithmetic; the message says where.
    """

    def __init__(self, text: str):
        self.text = text
        self._names: dict[str, None] = {}
        if len(text) > _LONGEST:
            raise PipelineError(f"an expression has at most {_LONGEST} characters; write a function for this one")
        try:
            # Newlines in a folded text mean nothing.
            tree = ast.parse(" ".join(text.split()), mode="eval").body
            self._run = self._compiled(tree)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            if isinstance(error, PipelineError):
                raise
            said = getattr(error, "msg", None) or "it is nested too deeply"
            raise PipelineError(f"the expression {text!r} cannot be read: {said}") from None
        self.names = tuple(self._names)

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """Its value, with that of each source."""
        return self._run(values)

    def _compiled(self, node: ast.AST) -> Callable[[Mapping[str, Any]], Any]:
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                if isinstance(number, float) and not math.isfinite(number):
                    raise self._refused(node, "the number is beyond the range of floating point")
                return lambda values: number
            case ast.Name() | ast.Attribute():
                name = self._name(node)
                self._names[name] = None
                return lambda values: values[name]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                inner = self._compiled(operand)
                return lambda values: -inner(values)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self._compiled(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                apply, a, b = _BINARY[type(op)], self._compiled(left), self._compiled(right)
                return lambda values: apply(a(values), b(values))
            case ast.Subscript(value=value, slice=index):
                inner, at = self._compiled(value), self._index(index)
                return lambda values: _entry(inner(values), at, self.text)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
                function, n = FUNCTIONS[name], _N_ARGUMENTS.get(name, 1)
                if len(arguments) != n:
                    raise self._refused(node, f"{name} takes {n} argument{'' if n == 1 else 's'}")
                inners = [self._compiled(argument) for argument in arguments]
                return lambda values: function(*(inner(values) for inner in inners))
            case ast.Call(func=ast.Name(id=name)):
                hint = did_you_mean(name, FUNCTIONS)
                raise self._refused(node, f"{name} is no function here.{hint} There are {', '.join(FUNCTIONS)}")
        raise self._refused(node, "expressions have numbers, names, + - * / **, indices and a few functions")

    def _name(self, node: ast.AST) -> str:
        match node:
            case ast.Name(id=name):
                return name
            case ast.Attribute(value=value, attr=attribute):
                return f"{self._name(value)}.{attribute}"
        raise self._refused(node, "a source is a name, or names with dots between them")

    def _index(self, node: ast.AST) -> Any:
        match node:
            case ast.Constant(value=int() as k) if not isinstance(k, bool):
                return k
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as k)) if not isinstance(k, bool):
                return -k
            case ast.Slice(lower=lower, upper=upper, step=step):
                return slice(*(None if part is None else self._index(part) for part in (lower, upper, step)))
            case ast.Tuple(elts=parts):
                return tuple(self._index(part) for part in parts)
        raise self._refused(node, "an index is a number, a slice, or several of them")

    def _refused(self, node: ast.AST, why: str) -> PipelineError:
        return PipelineError(f"the expression {self.text!r} cannot be used: {ast.unparse(node)!r}: {why}")


def _entry(value: Any, index: Any, text: str) -> Any:
    from tesseract_flow.pipeline.conversions import selected

    return selected(jnp.asarray(value), index, f"in the expression {text!r}")
