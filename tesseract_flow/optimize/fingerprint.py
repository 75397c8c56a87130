"""What makes two runs the same run: a description of problem, driver and method as plain JSON, and how two of them
differ.

Stop rules are not part of it: more steps continue a run. Neither is the source code of `evaluate`, which has no value
to compare; say what it depends on in `Problem.settings`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from tesseract_flow.optimize.bounds import Box
from tesseract_flow.optimize.constraints import AugmentedLagrangian
from tesseract_flow.optimize.drivers import Driver, initial_state
from tesseract_flow.optimize.partition import path_name
from tesseract_flow.optimize.problem import Problem
from tesseract_flow.optimize.search import Updater

_ABSENT = "(absent)"


def fingerprint_of(
    problem: Problem, driver: Driver, method: AugmentedLagrangian, feasibility_tol: float
) -> dict[str, Any]:
    """A JSON description of everything that decides where a run goes, except the code of `evaluate`."""
    partition = problem.partition
    description = {
        "problem": problem.name,
        "settings": _plain(problem.settings or {}),
        "varying": _leaves(partition.varying),
        "fixed": _leaves(partition.fixed),
        "lower": _leaves(problem.box.lower),
        "upper": _leaves(problem.box.upper),
        "scale": _leaves(partition.scale),
        "constraints": {name: _constraint(constraint) for name, constraint in (problem.constraints or {}).items()},
        "driver": _plain(driver.description),
    }
    if driver.name == "optax object":
        description["driver"]["behaviour"] = _behaviour(driver, partition.varying)
    if problem.constraints:
        description["constraint_method"] = {
            **{key: str(value) for key, value in dataclasses.asdict(method).items()},
            "feasibility_tol": str(feasibility_tol),
        }
    return description


def differences(old: Any, new: Any) -> list[str]:
    """Readable lines such as `driver.learning_rate: 0.01 -> 0.02`; empty when nothing differs."""
    before, after = _flatten(old), _flatten(new)
    names = [*before, *(name for name in after if name not in before)]
    return [
        f"{name}: {_show(before, name)} -> {_show(after, name)}"
        for name in names
        if before.get(name, _ABSENT) != after.get(name, _ABSENT)
    ]


def _show(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name]) if name in values else _ABSENT


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        parts = [_flatten(child, f"{name}.{key}" if name else str(key)) for key, child in value.items()]
        return {key: child for part in parts for key, child in part.items()}
    return {name: value}


def _leaves(tree: PyTree) -> dict[str, str]:
    return {path_name(path): _leaf(leaf) for path, leaf in jtu.tree_flatten_with_path(tree)[0]}


def _leaf(leaf: Any) -> str:
    """One line that is equal for equal leaves, with the value where it is short and a digest where it is not."""
    if eqx.is_array(leaf) or isinstance(leaf, np.ndarray | np.generic):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return f"key {np.asarray(jax.random.key_data(leaf)).tolist()}"
        array = np.asarray(leaf, order="C")
        values = array.astype(np.float64) if array.dtype.kind == "V" else array  # bfloat16 and its kin
        if array.size and (values == values.flat[0]).all():
            return f"{array.dtype}{list(array.shape)} = {values.flat[0]!s}"
        if array.size <= 4:
            return f"{array.dtype}{list(array.shape)} = {values.ravel().tolist()}"
        return f"{array.dtype}{list(array.shape)} sha256 {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
    if isinstance(leaf, functools.partial):
        return f"partial {_leaf(leaf.func)} {_leaves((leaf.args, leaf.keywords))}"
    if callable(leaf):
        # Its name: a repr would hold an address, and a module is called __main__ when it is run directly.
        return f"callable {getattr(leaf, '__qualname__', type(leaf).__qualname__)}"
    if leaf is None or isinstance(leaf, str | int | float | complex | bytes):
        return f"{type(leaf).__name__} {leaf!r}"
    return f"{type(leaf).__module__}.{type(leaf).__qualname__}"


def _constraint(constraint: Any) -> dict[str, str]:
    fields = {field.name: getattr(constraint, field.name) for field in dataclasses.fields(constraint)}
    return {name: _leaf(np.asarray(value, np.float64)) for name, value in fields.items() if value is not None}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(dict(value)))


def _behaviour(driver: Driver, varying: PyTree) -> list[str]:
    """How an Optax object behaves on a fixed problem: its fingerprint, since it has no name or settings to compare.

    Three updates on ½|x|² from a fixed pattern, each summed up by its norm and by a weighted sum; five digits, so that
    another compiler gives the same answer and a changed setting does not.
    """
    leaves, treedef = jax.tree.flatten(varying)
    pattern = [np.cos(1.0 + np.arange(leaf.size, dtype=np.float64)).reshape(leaf.shape) for leaf in leaves]
    point = treedef.unflatten([jnp.asarray(array, leaf.dtype) for array, leaf in zip(pattern, leaves, strict=True)])
    everywhere = Box(
        jax.tree.map(lambda x: jnp.full_like(x, -jnp.inf), point),
        jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), point),
    )

    def sample(x: PyTree):
        return jnp.asarray(sum(0.5 * float((_double(leaf) ** 2).sum()) for leaf in jax.tree.leaves(x))), x

    state = initial_state(driver, point)
    update = Updater(driver, everywhere, np.dtype(jnp.asarray(0.0).dtype))
    # Addresses of functions inside a state would differ from process to process.
    structure = re.sub(r"0x[0-9a-f]+", "", str(jax.tree.structure(state)))
    summary = [f"state {hashlib.sha256(structure.encode()).hexdigest()[:12]}"]
    for _ in range(3):
        new, state = update(point, state, point, sample(point)[0], sample)
        moves = [_double(a) - _double(b) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(point), strict=True)]
        norm = np.sqrt(sum((move**2).sum() for move in moves))
        weighted = sum((move * weight).sum() for move, weight in zip(moves, pattern, strict=True))
        summary.append(f"{norm:.5g} {weighted:.5g}")
        point = new
    return summary


def _double(leaf: Any) -> np.ndarray:
    return np.asarray(leaf, np.float64)
