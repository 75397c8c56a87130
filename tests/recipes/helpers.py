"""Cases by path: what the tests of recipes need beyond the table of all tests."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np

from tesseract_flow.recipes import JaxRecipe
from tests.cases import Case, is_inexact


def as_numpy(tree: Any) -> Any:
    """The same tree as a server would hand it over."""
    return jax.tree_util.tree_map(lambda leaf: np.array(leaf) if hasattr(leaf, "dtype") else leaf, tree)


def by_path(tree: Any) -> dict[str, Any]:
    """Path -> leaf, of the floating-point arrays in a tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {".".join(map(_segment, keys)): leaf for keys, leaf in leaves if is_inexact(leaf)}


def _segment(entry: Any) -> str:
    if hasattr(entry, "idx"):
        return f"[{entry.idx}]"
    if entry.key.isidentifier():
        return entry.key
    return "{" + re.sub(r"([{}\\])", r"\\\1", entry.key) + "}"


@functools.cache
def recipe_of(case: Case, residual_cache: bool = False) -> JaxRecipe:
    """One recipe per case, so that tests share what is compiled."""
    return JaxRecipe(case.fn, residual_cache=residual_cache)


class Answers:
    """What plain JAX says about a case: outputs, one pushforward, one pullback. Compiled in one go.

    Attributes:
        inputs: as a server hands them over.
        x, t, c: differentiable inputs, a direction in and a direction out, by path.
        y, plain: the outputs that are arrays, and the others.
        y_dot, x_bar: J t and J^T c, by path.
    """

    def __init__(self, case: Case):
        def answer(x: Any, t: Any, c: Any) -> Any:
            arrays, self.plain = eqx.partition(case.fn(case.full(x)), eqx.is_array)
            return arrays, jax.jvp(case.plain, (x,), (t,))[1], jax.vjp(case.plain, x)[1](c)[0]

        vectors = case.x, case.tangent(1), case.cotangent(2)
        self.inputs = as_numpy(case.inputs)
        self.x, self.t, self.c = (as_numpy(by_path(vector)) for vector in vectors)
        y, y_dot, x_bar = as_numpy(jax.jit(answer)(*vectors))
        self.y, self.y_dot, self.x_bar = y, by_path(y_dot), by_path(x_bar)

    @property
    def n_inputs(self) -> int:
        return sum(x.size for x in self.x.values())

    @property
    def n_outputs(self) -> int:
        return sum(c.size for c in self.c.values())


@functools.cache
def answers_of(case: Case) -> Answers:
    return Answers(case)


@functools.cache
def jacobian_of(case: Case) -> dict[str, dict[str, np.ndarray]]:
    answers = answers_of(case)
    return recipe_of(case).jacobian(answers.inputs, set(answers.x), set(answers.c))


class Linear:
    """The endpoints of a linear map, given by its Jacobian: nothing to compile for every set of paths."""

    def __init__(self, case: Case):
        self.blocks = jacobian_of(case)
        self.y = as_numpy(by_path(answers_of(case).y))

    def jacobian(self, inputs: Any, jac_inputs: set[str], jac_outputs: set[str]) -> Any:
        return {output: {path: self.blocks[output][path] for path in jac_inputs} for output in jac_outputs}

    def jvp(self, inputs: Any, jvp_inputs: set[str], jvp_outputs: set[str], t: Any) -> dict[str, Any]:
        assert set(t) == set(jvp_inputs)
        assert type(jvp_inputs) is type(jvp_outputs) is set
        return {
            output: sum(np.tensordot(self.blocks[output][path], t[path], axes=t[path].ndim) for path in jvp_inputs)
            for output in jvp_outputs
        }

    def vjp(self, inputs: Any, vjp_inputs: set[str], vjp_outputs: set[str], c: Any) -> dict[str, Any]:
        assert set(c) == set(vjp_outputs)
        assert type(vjp_inputs) is type(vjp_outputs) is set
        return {
            path: sum(np.tensordot(c[output], self.blocks[output][path], axes=c[output].ndim) for output in vjp_outputs)
            for path in vjp_inputs
        }


class Counted:
    """A function that counts its calls."""

    def __init__(self, fn: Callable[..., Any]):
        self.fn = fn
        self.n_calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.n_calls += 1
        return self.fn(*args, **kwargs)
