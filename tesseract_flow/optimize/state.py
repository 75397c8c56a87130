"""The state of a run: everything that the next step depends on, as one pytree of arrays, and its form in a journal.

Restoring a state and going on gives the bits that going on without a stop would have given; hence the evaluation at the
current point is part of it, and is not made again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from tesseract_flow.errors import JournalError
from tesseract_flow.optimize.constraints import Duals, Tally
from tesseract_flow.optimize.evaluator import Sample, Weights
from tesseract_flow.optimize.partition import path_name

# What `evaluate` returned is kept as it was; only its own code knows what shapes it has.
_EVALUATIONS = ("here.leaves", "best.leaves")
# Of a driver's state, what it knows of constraints that are promised to be linear. Where that is promised now and was
# not, or the other way round, the state is made anew, and need not have it.
PROMISED = "promised"


class Best(eqx.Module):
    """The best design so far: its varying part, the arrays of its `Evaluation`, and the step that found it."""

    varying: PyTree
    leaves: list[Array]
    step: Int[Array, ""]


class State(eqx.Module):
    """What the next step starts from. `here` is the sample at `u`, under the current duals; its gradient is raw."""

    u: PyTree
    driver: PyTree
    objective_scale: Float[Array, ""]
    duals: Duals
    tally: Tally
    here: Sample
    best: Best

    @property
    def weights(self) -> Weights:
        return Weights(self.objective_scale, self.duals)


def name_leaves(tree: PyTree) -> dict[str, np.ndarray]:
    """The arrays of a tree by name."""
    return {path_name(path): np.asarray(leaf) for path, leaf in jtu.tree_flatten_with_path(tree)[0]}


def pack(state: State) -> dict[str, np.ndarray]:
    """The state as named arrays, for a journal."""
    named, _ = jtu.tree_flatten_with_path(state)
    return {path_name(path): np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf) for path, leaf in named}


def unpack(arrays: Mapping[str, np.ndarray], like: State) -> State:
    """The state that `pack` took apart. Of `like` only the structure counts.

    Raises:
        JournalError: the arrays belong to a state of another structure.
    """
    named, treedef = jtu.tree_flatten_with_path(like)
    names = [path_name(path) for path, _ in named]
    units = {path_name(path): np.asarray(leaf) for path, leaf in named if path_name(path).startswith("duals.unit.")}
    arrays = _with_units(arrays, names, units)
    promised = {path_name(path): np.asarray(leaf) for path, leaf in named if _is_of_promises(path_name(path))}
    arrays = _with_promises(arrays, names, promised)
    if names != list(arrays):
        odd = sorted(set(names) ^ set(arrays)) or names
        raise JournalError(
            f"A checkpoint does not fit this run: they differ in {', '.join(odd[:6])}.\n"
            "What evaluate returns, or the driver's state, has another structure now; use another folder (another key)."
        )
    leaves = []
    for name, (_, leaf), array in zip(names, named, arrays.values(), strict=True):
        expected = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        if not name.startswith(_EVALUATIONS) and array.shape != np.shape(expected):
            raise JournalError(
                f"A checkpoint does not fit this run: {name} has shape {array.shape} there, and {np.shape(expected)} "
                "now.\nA design of another size is another run; use another folder (another key)."
            )
        restored = jnp.array(array)
        leaves.append(jax.random.wrap_key_data(restored, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else restored)
    return treedef.unflatten(leaves)


@dataclasses.dataclass(frozen=True, eq=False)
class Adapted:
    """A state of another problem, as a run can go on from it.

    Attributes:
        state: with an evaluation that is none, and has to be made.
        new: the demands that begin anew.
        has_memory: of its driver.
    """

    state: State
    new: frozenset[str] = frozenset()
    has_memory: bool = True


def adapted(arrays: Mapping[str, np.ndarray], like: State) -> Adapted:
    """As much of the state of another problem, or of another driver, as fits; the rest is that of `like`.

    The design stays. Multipliers stay with their demand. Penalties and the tally belong to the driver: they begin anew
    with it, and with a demand that is new.

    Raises:
        JournalError: what varies has another structure or shape.
    """
    ours = pack(like)

    def fits(names: Iterable[str]) -> bool:
        return all(name in arrays and arrays[name].shape == ours[name].shape for name in names)

    design = [name for name in ours if name == "u" or name.startswith(("u.", "best.varying", "best.step"))]
    if not fits([*design, "objective_scale"]):
        unpack(arrays, like)  # which says what does not fit
    memory = {name for name in ours if name.partition(".")[0] == "driver"}
    goes_on = memory == {name for name in arrays if name.partition(".")[0] == "driver"} and fits(memory)
    known = {key for key in like.duals.price if fits([f"duals.price.{key}", f"duals.unit.{key}"])}
    is_same = known == set(like.duals.price) and goes_on
    taken = {*design, "objective_scale", *(f"duals.{part}.{key}" for part in ("price", "unit") for key in known)}
    if goes_on:
        taken |= {*memory, *(f"duals.penalty.{key}" for key in known)}
    elif "driver.leg" in memory and fits(["driver.leg"]):
        taken.add("driver.leg")  # by which a library's answers are told apart
    if is_same:
        taken |= {name for name in ours if name.startswith("tally.")}
    chosen = {name: arrays[name] if name in taken else own for name, own in ours.items()}
    return Adapted(unpack(chosen, like), frozenset(set(like.duals.price) - known), goes_on)


def _with_units(
    arrays: Mapping[str, np.ndarray], names: Sequence[str], ones: Mapping[str, np.ndarray]
) -> Mapping[str, np.ndarray]:
    """With what limits of zero are measured in as it is now, one unit for each entry.

    There was one for all of a demand once, and before that none, which is a unit of one.
    """
    if ones and not ones.keys() & arrays.keys() and set(names) == {*ones, *arrays}:
        return {name: {**ones, **arrays}[name] for name in names}
    spread = {
        name: np.broadcast_to(arrays[name], one.shape)
        for name, one in ones.items()
        if name in arrays and arrays[name].shape == () != one.shape
    }
    return {**arrays, **spread}


def _with_promises(
    arrays: Mapping[str, np.ndarray], names: Sequence[str], fresh: dict[str, np.ndarray]
) -> Mapping[str, np.ndarray]:
    """With what is known of promises, or without, as it is now."""
    if fresh.keys() == set(filter(_is_of_promises, arrays)):
        return arrays
    others = {name: array for name, array in arrays.items() if not _is_of_promises(name)} | fresh
    return {name: others[name] for name in names} if set(names) == set(others) else others


def _is_of_promises(name: str) -> bool:
    return name.startswith(f"driver.{PROMISED}.")


def _is_key(leaf: Array) -> bool:
    return isinstance(leaf, jax.Array) and bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))
