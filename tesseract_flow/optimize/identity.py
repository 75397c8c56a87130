"""What a run is, as plain JSON: two runs with equal identities are one run, and nothing else may continue it.

Here: how an identity is made of a problem and a driver, and how two of them differ. What counts: the factory and its
settings; the design, bounds, scale and constraints; the driver; the traced objective with its constants; and of each
component that it calls name, version and schema. What does not count: stop rules and other limits, addresses, labels,
caches, how many workers there are, and what is shown. The one idea: a difference is either *told* (a change, refused
unless it is accepted), or it *cannot be told* from the text (a doubt, such as another version of JAX, or a component
that does not say its version), and then the last finished point is evaluated again and compared (`resuming`).

Secrets do not get in: a password would be there for as long as the journal is. What is hidden, though it may be no
secret, has a tag (`told_apart`): another number is a change, and another text is a doubt, as tokens are renewed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from tesseract_flow.autodiff import informed
from tesseract_flow.client import AbstractTesseract
from tesseract_flow.optimize.canonical import Plain, array_text, as_json, handles_of, text_of
from tesseract_flow.optimize.constraints import AugmentedLagrangian
from tesseract_flow.optimize.drivers.base import AbstractDriver
from tesseract_flow.optimize.partition import leaf_names, named_leaves, path_name
from tesseract_flow.optimize.problem import Evaluation, Problem, as_evaluation
from tesseract_flow.optimize.shared import Shared
from tesseract_flow.storage import is_secret, told_apart, without_tags

_ABSENT = "(absent)"
# They write the texts; another version of one may write the same objective or update another way.
_WRITERS = ("jax", "jaxlib", "equinox", "optax", "tesseract-flow")
# Settings of JAX that decide about numbers, and do not show in a traced function.
_NUMBERS = ("jax_threefry_partitionable", "jax_default_matmul_precision")
# What a component says that was built without saying anything.
_NO_VERSION = frozenset({"", "unknown", "0.0.0+unknown", "0+unknown"})
# Settings of a factory that say where or how something runs; what it computes is seen in the objective.
_NO_MATTER = frozenset(
    {
        *("url", "urls", "address", "addresses", "host", "hosts", "port", "ports", "endpoint", "label", "labels"),
        *("workers", "n_workers", "num_workers", "max_in_flight", "n_lanes", "cache", "retries", "observe"),
        *("limit_folder", "timeout", "read_timeout", "startup_timeout"),
    }
)
# Compared in their own way, or not at all.
_APART = ("objective", "components", "driver_text", "valid_text", "versions", "numbers", "doubts")
# The name of an intermediate value; what is quoted is a value.
_NAME_OR_QUOTED = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|\bv\d+\b""")
_UNTAGGED = re.compile(r"\*\*\*(?![#=])")


# --- what a run is ----------------------------------------------------------------------------------------------------


def identity_of(
    problem: Problem,
    driver: AbstractDriver,
    method: AugmentedLagrangian,
    feasibility_tol: float,
    template: Evaluation,
    objective_scale: str | float | None = None,
    shared: Shared | None = None,
) -> dict[str, Any]:
    """Everything that decides where a run goes.

    Traces the evaluation and its gradient once, and runs nothing.

    Args:
        template: what `evaluate` returns, with shapes in place of arrays.
        shared: what runs of the same problem from other starts have traced.
    """
    partition = problem.partition
    about_driver = driver.identity(problem, template)
    doubts_about_driver = about_driver.pop("doubts", [])
    description: dict[str, Any] = {
        "problem": problem.name,
        "settings": {
            name: as_json(told_apart(value, name))
            for name, value in (problem.settings or {}).items()
            if not (_is_address(value) and name.lower() in _NO_MATTER)
        },
        "varying": leaf_texts(partition.varying),
        "fixed": leaf_texts(partition.fixed),
        "lower": leaf_texts(problem.box.lower),
        "upper": leaf_texts(problem.box.upper),
        "scale": leaf_texts(partition.scale),
        "constraints": {name: constraint_text(constraint) for name, constraint in (problem.constraints or {}).items()},
        **about_driver,
    }
    if partition.origin is not None:
        description["origin"] = leaf_texts(partition.origin)
    if problem.origin is not None:
        description["factory"] = {
            "name": problem.origin.factory,
            "settings": _setting("", problem.origin.settings),
        }
    if problem.valid_names:
        description["valid"] = list(problem.valid_names)
    if objective_scale is not None:
        description["objective_scale"] = objective_scale
    if problem.constraints:
        description["constraint_method"] = {
            **{key: str(value) for key, value in dataclasses.asdict(method).items()},
            "feasibility_tol": str(feasibility_tol),
        }
    description |= _objective(problem, template, shared or Shared())
    description["doubts"] += doubts_about_driver
    return description


def digest_of(identity: Mapping[str, Any]) -> str:
    """A short name for an identity; what checkpoints carry."""
    text = json.dumps(identity, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _objective(problem: Problem, template: Evaluation, shared: Shared) -> dict[str, Any]:
    """The traced objective, the components that it calls, and what made the text."""
    partition = problem.partition
    leaves, treedef = jax.tree.flatten(partition.varying)
    demanded = sorted(problem.constraints or {})

    numbers = problem.scheduled()

    def values(scheduled: Sequence[Any], *leaves: Any) -> list[Any]:
        received = dict(zip(numbers, scheduled, strict=True))
        found = as_evaluation(problem.answer(partition.combine(treedef.unflatten(leaves)), received))
        flags = dict(named_leaves(found.aux)) if problem.valid_names else {}
        return [
            found.objective,
            *(jnp.asarray(found.constraints[name]) for name in demanded),
            *(jnp.asarray(flags[name]) for name in problem.valid_names),
        ]

    flags = dict(named_leaves(template.aux)) if problem.valid_names else {}
    shapes = [
        template.objective,
        *(template.constraints[name] for name in demanded),
        *(flags[name] for name in problem.valid_names),
    ]
    weights = [shape for shape in shapes if jnp.issubdtype(shape.dtype, jnp.inexact)]

    def with_gradient(leaves: Sequence[Any], weights: Sequence[Any], scheduled: Sequence[Any]) -> list[Any]:
        found, pull = jax.vjp(functools.partial(values, scheduled), *leaves)
        given = iter(weights)
        cotangents = [
            next(given) if jnp.issubdtype(y.dtype, jnp.inexact) else np.zeros(y.shape, jax.dtypes.float0) for y in found
        ]
        return [*found, *pull(cotangents)]

    closed = shared.once(
        "objective",
        lambda: informed(
            lambda: jax.make_jaxpr(with_gradient)(leaves, weights, list(numbers.values())),
            lambda: values(list(numbers.values()), *jax.tree.leaves(problem.start)),
        ),
    )
    # Asked anew for each run: a component may be another one by now.
    handles = list(dict.fromkeys(handles_of(closed.jaxpr)))
    components, key_of = _components(handles)
    names = [f"design.{name}" for name in leaf_names(partition.varying)]
    names += [*(f"weight{k}" for k in range(len(weights))), *(f"scheduled.{name}" for name in numbers)]
    n_values = 1 + len(demanded)
    parts = slice(0, n_values), slice(n_values, len(shapes)), slice(len(shapes), None)
    value, valid, gradient = shared.once(
        ("texts", *map(key_of, handles)),
        lambda: [text_of(closed, names, part, key_of) for part in parts],
    )
    return {
        "components": components,
        "objective": {
            "digest": value.digest,
            "gradient": gradient.digest,
            "lines": value.kept_lines,
        },
        "valid_text": {"digest": valid.digest, "lines": valid.kept_lines},
        "doubts": list(dict.fromkeys([*_doubts_about(components), *value.doubts, *valid.doubts, *gradient.doubts])),
        "numbers": {name: str(getattr(jax.config, name)) for name in _NUMBERS if hasattr(jax.config, name)},
        "versions": dict(_versions()),
    }


def _components(handles: Sequence[AbstractTesseract]) -> tuple[dict[str, Any], Any]:
    """What the identity says of each component, and the key that a handle has there.

    The key is the name that the component itself says, as a label is the user's. Two that are different and say the
    same name are told apart by a number.
    """
    described = {handle: _component(handle) for handle in handles}
    different = {json.dumps(about, sort_keys=True): about for about in described.values()}
    components, keys = {}, {}
    for text in sorted(different):
        name = different[text]["name"] or "Tesseract"
        key, k = name, 1
        while key in components:
            k += 1
            key = f"{name} ({k})"
        components[key], keys[text] = different[text], key
    key_of = {handle: keys[json.dumps(about, sort_keys=True)] for handle, about in described.items()}
    return components, key_of.__getitem__


def _component(handle: AbstractTesseract) -> dict[str, Any]:
    handle.refresh()
    schema = handle.schema
    return {"name": schema.name, "version": schema.version, "schema": schema.digest[:32], "build": handle.build}


def _doubts_about(components: Mapping[str, Any]) -> list[str]:
    return [
        f"component {key!r}, which says no version (version {about['version']!r})"
        for key, about in components.items()
        if about["build"] is None or (not about["build"] and about["version"] in _NO_VERSION)
    ]


@functools.cache
def _versions() -> dict[str, str]:
    found = {}
    for name in _WRITERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


# --- how two of them differ -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How what is asked now compares with what a journal knows.

    Attributes:
        changes: differences that are sure, as lines such as `driver.learning_rate: 0.01 -> 0.02`.
        doubts: what the text cannot decide; the last finished point can.
    """

    changes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def compare(known: Mapping[str, Any], now: Mapping[str, Any]) -> Comparison:
    """How an identity differs from the one that a journal has."""
    doubts: list[str] = []
    known, now = dict(known), dict(now)
    if "at_bounds" in now.get("driver", {}) and "at_bounds" not in known.get("driver", {}):
        # Before, entries at bounds were not held. The state means the same, so the run need not end there.
        now["driver"] = {key: value for key, value in now["driver"].items() if key != "at_bounds"}
        doubts.append("how this driver treats active bounds, which this version does in another way")
    if "factory" not in known or "factory" not in now:
        # One of the two was made by hand, from Python. What settings do is seen in the objective.
        known, now = ({key: one[key] for key in one if key != "factory"} for one in (known, now))
    before, after = ({key: value for key, value in one.items() if key not in _APART} for one in (known, now))
    changes, unsure = _changes_and_doubts(before, after)
    doubts += unsure
    if "objective" in now and "objective" not in known:
        # Written by a version that recorded less.
        doubts.append("the objective and its components, which this journal did not record when it was written")
    elif "objective" in now:
        doubts += now.get("doubts", ())
        doubts += [
            f"how JAX calculates ({line})" for line in differences(known.get("numbers", now["numbers"]), now["numbers"])
        ]
        changes += _component_changes(known.get("components", {}), now["components"], doubts)
        _compare_objectives(known, now, changes, doubts)
        _compare_texts("driver_text", "driver", known, now, changes, doubts)
        _compare_texts("valid_text", "validity", known, now, changes, doubts)
    return Comparison(tuple(changes), tuple(dict.fromkeys(doubts)))


def _component_changes(old: Mapping[str, Any], new: Mapping[str, Any], doubts: list[str]) -> list[str]:
    changes = []
    for key in [*old, *(key for key in new if key not in old)]:
        if key not in old or key not in new:
            before, after = (_ABSENT if about is None else _said(about) for about in (old.get(key), new.get(key)))
            changes.append(f"component {key!r}: {before} -> {after}")
            continue
        before, after = old[key], new[key]
        if before["version"] != after["version"]:
            changes.append(f"version of component {key!r}: {before['version']!r} -> {after['version']!r}")
        if before["schema"] != after["schema"]:
            changes.append(
                f"schema of component {key!r} (its inputs, outputs and endpoints, with those that are derived): "
                f"{before['schema'][:12]} -> {after['schema'][:12]}"
            )
        elif before["build"] != after["build"]:
            doubts.append(f"component {key!r}, whose files are not those of before")
    return changes


def _said(about: Mapping[str, Any]) -> str:
    return f"version {about['version']!r}"


def _compare_objectives(
    known: Mapping[str, Any], now: Mapping[str, Any], changes: list[str], doubts: list[str]
) -> None:
    old, new = known["objective"], now["objective"]
    if (old["digest"], old["gradient"]) == (new["digest"], new["gradient"]):
        return
    writers = _other_writers(known, now)
    if writers:
        doubts.append(f"the objective's text, which another version writes another way ({writers})")
    elif old["digest"] != new["digest"] and _is_same_but_hidden(old["lines"], new["lines"]):
        doubts.append("a text in the objective that is not shown, as its name says that it may be a secret")
    elif old["digest"] != new["digest"]:
        changes += _line_changes("objective", old["lines"], new["lines"])
    else:
        changes.append("the objective's derivative: a custom rule of it changed, its values did not")


def _is_same_but_hidden(old: Sequence[str], new: Sequence[str]) -> bool:
    """Whether texts differ in nothing but what they hide: other texts, and numbers where an older journal tags none."""
    has_all = not any(_UNTAGGED.search(line) for line in (*old, *new))
    bare = [[without_tags(line, numbers_too=not has_all) for line in lines] for lines in (old, new)]
    return bool(old) and bare[0] == bare[1]


def _compare_texts(
    key: str, what: str, known: Mapping[str, Any], now: Mapping[str, Any], changes: list[str], doubts: list[str]
) -> None:
    """Other texts than the objective's: of an Optax object (what it does is compared besides), and of what is valid."""
    if key not in known or key not in now:
        return
    old, new = known[key], now[key]
    if old["digest"] == new["digest"]:
        return
    writers = _other_writers(known, now)
    if writers:
        doubts.append(f"the {what}'s text, which another version writes another way ({writers})")
    elif _is_same_but_hidden(old["lines"], new["lines"]):
        doubts.append(f"a text in the {what} that is not shown, as its name says that it may be a secret")
    else:
        changes += _line_changes(what, old["lines"], new["lines"])


def _other_writers(known: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return "; ".join(differences(known.get("versions", {}), now.get("versions", {})))


def _line_changes(what: str, old: Sequence[str], new: Sequence[str], limit: int = 6) -> list[str]:
    """The lines of a text that are not the same; names of intermediate values shift and do not count."""
    if not old or not new:
        return [f"the {what}: it is another one (and too long to show where)"]

    def stripped(lines: Sequence[str]) -> list[str]:
        return [_NAME_OR_QUOTED.sub(lambda found: found[1] or "v", line).strip() for line in lines]

    before, after = stripped(old), stripped(new)
    changes = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag != "equal":
            for k in range(max(b - a, d - c)):
                was = before[a + k] if a + k < b else _ABSENT
                is_now = after[c + k] if c + k < d else _ABSENT
                changes.append(f"{what}: {_cut(was)} -> {_cut(is_now)}")
    if not changes:
        return [f"the {what}: the same operations, wired another way"]
    more = [f"{what}: {len(changes) - limit} more lines"] if len(changes) > limit else []
    return changes[:limit] + more


def _cut(line: str, length: int = 160) -> str:
    return line if len(line) <= length else line[: length - 3] + "..."


def differences(old: Any, new: Any) -> list[str]:
    """Readable lines such as `driver.learning_rate: 0.01 -> 0.02`; empty when nothing differs."""
    before, after = _flatten(old), _flatten(new)
    names = [*before, *(name for name in after if name not in before)]
    return [
        f"{name}: {_show(before, name)} -> {_show(after, name)}"
        for name in names
        if before.get(name, _ABSENT) != after.get(name, _ABSENT) and not _is_address_for_component(name, before, after)
    ]


def _changes_and_doubts(old: Any, new: Any) -> tuple[list[str], list[str]]:
    """Differences that are sure, and those of texts that are hidden, or are addresses of whatever it may be."""
    before, after = _flatten(old), _flatten(new)
    changes, doubts = [], []
    for line in differences(old, new):
        name = line.partition(": ")[0]
        a, b = before.get(name), after.get(name)
        is_address = name.startswith("settings.") and all(value is None or _is_address(value) for value in (a, b))
        if is_address or (isinstance(a, str) and isinstance(b, str) and _is_same_but_hidden([a], [b])):
            doubts.append(line)
        else:
            changes.append(line)
    return changes, doubts


def _is_address_for_component(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a setting was a component and is an address now, or the other way round: the objective knows which."""
    found = re.fullmatch(r"(factory\.settings\..+)\.component\.\w+", name)
    return found is not None and not (name in before and name in after)


def _show(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name], ensure_ascii=False) if name in values else _ABSENT


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        parts = [_flatten(child, f"{name}.{key}" if name else str(key)) for key, child in value.items()]
        return {key: child for part in parts for key, child in part.items()}
    return {} if isinstance(value, Mapping) else {name: value}


# --- parts ------------------------------------------------------------------------------------------------------------


def _setting(name: str, value: Any) -> Any:
    """An argument of the factory: `None` where it says nothing that counts."""
    if name.lower() in _NO_MATTER or (name and is_secret(name)) or _is_address(value):
        return None
    if isinstance(value, AbstractTesseract):
        about = _component(value)
        return {"component": {key: about[key] for key in ("name", "version", "schema")}}
    if type(value).__module__.startswith("tesseract_core"):
        return None  # a handle of the SDK's; what it is for is seen in the objective
    if value is None or isinstance(value, bool | int | float | str):
        return as_json(told_apart(value, name))
    if isinstance(value, Mapping):
        inner = {str(key): _setting(str(key), item) for key, item in value.items()}
        return {key: item for key, item in inner.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_setting("", item) for item in value]
    return Plain().text(value, name)


def setting_text(value: Any, name: str) -> str:
    """A setting as text that every process writes alike, without secrets, but with a tag for each."""
    return Plain().text(value, name)


def is_about_where(name: str, value: Any) -> bool:
    """Whether a setting of a factory says where or how something runs, and not what."""
    return name.lower() in _NO_MATTER or _is_address(value) or isinstance(value, AbstractTesseract)


def _is_address(value: Any) -> bool:
    """The URL of a server or the path of a component, or several of them."""
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_is_address, value))
    if isinstance(value, str) and re.match(r"https?://", value):
        return True
    if not isinstance(value, str | Path) or len(str(value)) > 1000:
        return False
    try:
        return Path(value).name == "tesseract_api.py" or (Path(value) / "tesseract_api.py").is_file()
    except (OSError, ValueError):
        return False


def leaf_texts(tree: PyTree) -> dict[str, str]:
    return {path_name(path): _leaf(leaf, path_name(path)) for path, leaf in jtu.tree_flatten_with_path(tree)[0]}


def _leaf(leaf: Any, name: str = "") -> str:
    """One line that is equal for equal leaves, with the value where it is short and a digest where it is not."""
    if eqx.is_array(leaf) or isinstance(leaf, np.ndarray | np.generic):
        return array_text(leaf)
    if isinstance(leaf, functools.partial):
        return f"partial {_leaf(leaf.func)} {leaf_texts((leaf.args, leaf.keywords))}"
    if callable(leaf):
        # Its name: a repr would hold an address, and a module is called __main__ when it is run directly.
        return f"callable {getattr(leaf, '__qualname__', type(leaf).__qualname__)}"
    if leaf is None or isinstance(leaf, str | int | float | complex | bytes):
        return f"{type(leaf).__name__} {told_apart(leaf, name)!r}"
    return f"{type(leaf).__module__}.{type(leaf).__qualname__}"


def constraint_text(constraint: Any) -> dict[str, str]:
    # Whether it is linear decides nothing but for drivers that make use of it, which say so themselves.
    names = [field.name for field in dataclasses.fields(constraint) if field.name != "linear"]
    fields = {name: getattr(constraint, name) for name in names}
    return {name: _leaf(np.asarray(value, np.float64)) for name, value in fields.items() if value is not None}
