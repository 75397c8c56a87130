"""What an Optax object is, which has no name and no settings to compare: its text, and what it does.

The text is that of its first state and of its update, constants included, so every threshold and every later value of
a schedule counts. Another version of JAX or Optax may write the same update another way; what it does in three steps
on a fixed problem is the same then.
"""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from tesseract_flow.optimize.bounds import Box
from tesseract_flow.optimize.canonical import Text, as_json, text_of
from tesseract_flow.optimize.drivers.optax.named import OBJECT, OptaxDriver, initial_state
from tesseract_flow.optimize.drivers.optax.search import Updater
from tesseract_flow.optimize.partition import path_name
from tesseract_flow.optimize.problem import Evaluation, Problem

# How a driver with a line search or L-BFGS treats active bounds (`search`, `holding`). To be changed with it.
_AT_BOUNDS = "held"


def identity_of_driver(driver: OptaxDriver, problem: Problem, template: Evaluation) -> dict[str, Any]:
    """What the identity of a run says of its driver."""
    about: dict[str, Any] = {"driver": as_json(driver.description)}
    start = problem.partition.to_scaled(problem.start)
    update = Updater(driver, problem.box.scaled(problem.partition), template.objective.dtype)
    if update.is_holding(start, initial_state(driver, start)):
        about["driver"]["at_bounds"] = _AT_BOUNDS
    if driver.name == OBJECT:
        text = driver_text(driver, problem.partition.varying)
        about["driver"]["behaviour"] = behaviour(driver, problem.partition.varying)
        about["driver_text"] = {"digest": text.digest, "lines": text.kept_lines}
        about["doubts"] = [f"{doubt}, in the driver" for doubt in text.doubts]
    return about


def driver_text(driver: OptaxDriver, varying: PyTree) -> Text:
    """The first state and the update on a design of this structure, whatever its values and bounds are."""
    u = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), varying)
    state = initial_state(driver, u)
    leaves, treedef = jax.tree.flatten(u)
    start = jax.make_jaxpr(lambda *leaves: jax.tree.leaves(initial_state(driver, treedef.unflatten(leaves))))(*leaves)
    update = _updater(driver, u).traced(u, state)
    texts = [
        text_of(closed, [f"in{k}" for k in range(len(closed.jaxpr.invars))], slice(None), _no_component)
        for closed in (start, update)
    ]
    return Text(
        tuple(line for text in texts for line in text.lines),
        tuple(dict.fromkeys(doubt for text in texts for doubt in text.doubts)),
    )


def behaviour(driver: OptaxDriver, varying: PyTree) -> list[str]:
    """Three updates on ½|x|² from a fixed pattern, each summed up by its norm and by a weighted sum.

    Five digits, so that another compiler gives the same answer and a changed setting, mostly, does not.
    """
    leaves, treedef = jax.tree.flatten(varying)
    pattern = [np.cos(1.0 + np.arange(leaf.size, dtype=np.float64)).reshape(leaf.shape) for leaf in leaves]
    point = treedef.unflatten([jnp.asarray(array, leaf.dtype) for array, leaf in zip(pattern, leaves, strict=True)])

    def sample(x: PyTree):
        return jnp.asarray(sum(0.5 * float((_double(leaf) ** 2).sum()) for leaf in jax.tree.leaves(x))), x

    state = initial_state(driver, point)
    update = _updater(driver, point)
    # By its leaves: what else a state holds may print itself another way in each process.
    structure = str({path_name(path): (leaf.shape, str(leaf.dtype)) for path, leaf in jtu.tree_leaves_with_path(state)})
    summary = [f"state {hashlib.sha256(structure.encode()).hexdigest()[:12]}"]
    for _ in range(3):
        new, state = update(point, state, point, sample(point)[0], sample)
        moves = [_double(a) - _double(b) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(point), strict=True)]
        norm = np.sqrt(sum((move**2).sum() for move in moves))
        weighted = sum((move * weight).sum() for move, weight in zip(moves, pattern, strict=True))
        summary.append(f"{norm:.5g} {weighted:.5g}")
        point = new
    return summary


def _updater(driver: OptaxDriver, u: PyTree) -> Updater:
    everywhere = Box(
        *(jax.tree.map(lambda x, limit=limit: jnp.full_like(x, limit), u) for limit in (-jnp.inf, jnp.inf))
    )
    return Updater(driver, everywhere, np.dtype(jnp.asarray(0.0).dtype))


def _double(leaf: Any) -> np.ndarray:
    return np.asarray(leaf, np.float64)


def _no_component(handle: Any) -> str:
    raise AssertionError(f"an update that calls {handle!r}")
