"""The order of the house, read from the source: who may import whom, and what may be imported where.

Every import counts: those inside functions, those for type checkers only, and `import_module` with a literal name.
The checker is tested on planted violations first, so that silence means order.
"""

from __future__ import annotations

import ast
import graphlib
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import tesseract_flow

ROOT = Path(__file__).resolve().parents[1]

# From the ground up. Neighbours in one row may import each other, as long as no circle comes of it.
# "tesseract_flow" is the package's own __init__, the public names: what is under it must not import through it.
ORDER = [
    {"errors", "packages", "derivatives", "exact"},
    {"wire", "schema", "storage", "named"},
    {"client"},
    {"autodiff", "torch", "recipes"},
    {"execute"},
    {"compose", "pipeline", "pictures", "optimize", "report"},
    {"checks", "study"},
    {"tesseract_flow"},
    {"blocks"},
    {"tasks"},
    {"flows"},
    {"testing"},
    {"cli", "__main__"},
    {"deployments"},
]
RANK = {layer: rank for rank, layers in enumerate(ORDER) for layer in layers}

# Layers that may see less than what is under them.
ONLY = {
    # Copied into a component's image, where nothing else of ours need be.
    "derivatives": {"derivatives"},
    "exact": {"exact"},
    "recipes": {"recipes", "derivatives", "exact"},
}
# They run inside JAX's callbacks and in small processes.
WITHOUT_JAX = {"errors", "derivatives", "exact", "wire", "schema", "storage", "named", "client"}
JAX = {"jax", "jaxlib", "equinox", "optax"}
# What may be needed in a component's image.
NEEDS = {"derivatives": {"numpy"}, "exact": {"numpy"}, "recipes": {"jax", "equinox", "numpy", "pydantic"}}

# What `tesseract-flow init` copies is its user's code, of which nothing is imported here.
TEMPLATE = "tesseract_flow/cli/template"

# Folders at the top of the checkout. Under these names they exist nowhere else.
CHECKOUT_ONLY = {"tasks", "flows", "tests", "examples", "benchmarks", "tools"}


@dataclass(frozen=True)
class Source:
    """One module: its dotted name as it is imported, and its text."""

    name: str
    text: str
    is_package: bool = False

    @property
    def layer(self) -> str:
        return layer_of(self.name)

    @property
    def package(self) -> str:
        return self.name if self.is_package else self.name.rpartition(".")[0]


def layer_of(module: str) -> str:
    """`tesseract_flow.client.http` -> `client`; outside of the package the first part of the name."""
    parts = module.split(".")
    return parts[1] if parts[0] == "tesseract_flow" and len(parts) > 1 else parts[0]


def sources() -> Iterator[Source]:
    folders = {"tesseract_flow": "tesseract_flow", "tasks": "tesseract_flow.tasks", "flows": "tesseract_flow.flows"}
    for folder, prefix in {**folders, "deployments": "deployments"}.items():
        # Links are not followed: tasks and flows are read where they stand.
        for path in (Path(top, file) for top, _, files in os.walk(ROOT / folder) for file in sorted(files)):
            if path.suffix == ".py" and ROOT / TEMPLATE not in path.parents:
                parts = path.relative_to(ROOT / folder).with_suffix("").parts
                is_package = parts[-1] == "__init__"
                name = ".".join([prefix, *(parts[:-1] if is_package else parts)])
                yield Source(name, path.read_text(encoding="utf-8"), is_package)


def imports(source: Source) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that `source` imports."""
    for node in ast.walk(ast.parse(source.text, filename=source.name)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = absolute(source, "." * node.level + (node.module or ""))
            yield from ((node.lineno, member(module, alias.name)) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            literals = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
            yield from ((node.lineno, absolute(source, str(name))) for name in literals)


def absolute(source: Source, module: str) -> str:
    name = module.lstrip(".")
    level = len(module) - len(name)
    if level == 0:
        return name
    parents = source.package.split(".")
    return ".".join([*parents[: len(parents) - level + 1], *([name] if name else [])])


def member(module: str, name: str) -> str:
    """What `from module import name` reaches: `from tesseract_flow import x` is an import of the layer behind x."""
    if module != "tesseract_flow":
        return module
    if name in RANK:
        return f"{module}.{name}"
    return tesseract_flow._EXPORTS.get(name, module)


def violations(modules: Iterable[Source]) -> list[str]:
    """Each broken rule as `module:line: what is wrong`."""
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    for source in modules:
        layer = source.layer
        if layer not in RANK:
            found.append(f"{source.name}:1: '{layer}' has no place in the order; add it to ORDER")
            continue
        for line, target in imports(source):
            fault = fault_of_import(layer, target)
            if fault:
                found.append(f"{source.name}:{line}: {fault}")
            elif is_ours(target) and layer_of(target) != layer:
                graph.setdefault(layer, set()).add(layer_of(target))
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append("circle: " + " -> ".join(error.args[1]))
    return found


def is_ours(module: str) -> bool:
    return module.split(".")[0] in {"tesseract_flow", "deployments"}


def fault_of_import(layer: str, target: str) -> str | None:
    top = target.split(".")[0]
    if top in CHECKOUT_ONLY:
        return f"imports '{top}', a folder that is not installed under this name"
    if is_ours(target):
        below = layer_of(target)
        if layer in ONLY:
            return None if below in ONLY[layer] else f"{layer} imports {below}, and may only see {sorted(ONLY[layer])}"
        # A layer without a place is reported where it stands, once.
        return f"{layer} imports {below}, which is above it" if RANK.get(below, -1) > RANK[layer] else None
    if layer in NEEDS and top not in NEEDS[layer] and top not in sys.stdlib_module_names:
        return f"{layer} imports {top}, and may only need {sorted(NEEDS[layer])}"
    if top in JAX and layer in WITHOUT_JAX:
        return f"{layer} imports {top}, and has to work without JAX"
    if top == "prefect" and RANK[layer] < RANK["blocks"]:
        return f"{layer} imports prefect, which belongs to blocks and above"
    if top == "torch" and layer != "torch":
        return f"{layer} imports torch, which belongs to tesseract_flow.torch"
    return None


PLANTED: Mapping[str, tuple[Source, str]] = {
    "upward": (Source("tesseract_flow.wire.x", "from tesseract_flow.client import Http"), "wire imports client"),
    "upward, in a function": (
        Source("tesseract_flow.autodiff.x", "def f():\n    import tesseract_flow.execute.plan"),
        "x:2: autodiff imports execute",
    ),
    "upward, for types": (
        Source("tesseract_flow.schema", "if TYPE_CHECKING:\n    from tesseract_flow.optimize import Problem", True),
        "schema imports optimize",
    ),
    "upward, relative": (Source("tesseract_flow.client.x", "from ..compose import pipeline"), "client imports compose"),
    "upward, relative from a package": (
        Source("tesseract_flow.wire", "from .. import blocks", True),
        "wire imports blocks",
    ),
    "upward, by public name": (
        Source("tesseract_flow.client.x", "from tesseract_flow import apply_tesseract"),
        "client imports autodiff",
    ),
    "through the public names": (Source("tesseract_flow.report.x", "import tesseract_flow as tf"), "which is above it"),
    "upward, by string": (
        Source("tesseract_flow.compose.x", "import importlib\nimportlib.import_module('tesseract_flow.blocks')"),
        "x:2: compose imports blocks",
    ),
    "tasks import flows": (Source("tesseract_flow.tasks.x", "from ..flows import optimize"), "tasks imports flows"),
    "flows import deployments": (Source("tesseract_flow.flows.x", "import deployments.serve"), "flows imports deploy"),
    "jax by way of recipes": (Source("tesseract_flow.client.x", "import tesseract_flow.recipes"), "imports recipes"),
    "jax in the client": (Source("tesseract_flow.client.x", "import jax.numpy as jnp"), "client imports jax"),
    "equinox in the wire": (Source("tesseract_flow.wire.x", "import equinox as eqx"), "wire imports equinox"),
    "prefect too low": (Source("tesseract_flow.optimize.x", "from prefect import task"), "optimize imports prefect"),
    "torch elsewhere": (Source("tesseract_flow.execute.x", "import torch"), "execute imports torch"),
    "testing is leaned on": (Source("tesseract_flow.tasks.x", "import tesseract_flow.testing"), "tasks imports test"),
    "recipes lean on us": (Source("tesseract_flow.recipes.x", "import tesseract_flow.wire"), "recipes imports wire"),
    "recipes lean on others": (Source("tesseract_flow.recipes.x", "import optax"), "recipes imports optax"),
    "derivatives lean on us": (
        Source("tesseract_flow.derivatives.x", "from ..errors import WireError"),
        "derivatives imports errors",
    ),
    "derivatives lean on others": (
        Source("tesseract_flow.derivatives.x", "from pydantic import BaseModel"),
        "derivatives imports pydantic",
    ),
    "exact leans on us": (Source("tesseract_flow.exact.x", "import tesseract_flow.errors"), "exact imports errors"),
    "exact leans on others": (Source("tesseract_flow.exact.x", "import jax"), "exact imports jax"),
    "bare tasks": (Source("tesseract_flow.flows.x", "from tasks.call import call"), "imports 'tasks'"),
    "unknown layer": (Source("tesseract_flow.helpers", ""), "'helpers' has no place"),
}


@pytest.mark.parametrize("source, message", PLANTED.values(), ids=PLANTED)
def test_planted_violation_is_found(source: Source, message: str) -> None:
    found = violations([source])
    assert len(found) == 1
    assert message in found[0]


def test_planted_circle_is_found() -> None:
    there = Source("tesseract_flow.report.x", "from tesseract_flow.optimize import Result")
    back = Source("tesseract_flow.optimize.x", "def f():\n    from tesseract_flow.report import table")
    assert violations([there]) == violations([back]) == []
    (circle,) = violations([there, back])
    assert "report" in circle
    assert "optimize" in circle


def test_downward_imports_are_no_violation() -> None:
    text = """
import numpy as np
from tesseract_flow import errors
from tesseract_flow.client import open_tesseract
from ..wire import encode
from . import loop
"""
    assert violations([Source("tesseract_flow.optimize.x", text)]) == []


def test_imports_point_down() -> None:
    assert violations(sources()) == []


def test_all_folders_are_read() -> None:
    layers = {source.layer for source in sources()}
    assert {"errors", "tesseract_flow", "tasks", "flows"} <= layers
    names = [source.name for source in sources()]
    assert len(names) == len(set(names))


def postpones_annotations(text: str) -> bool:
    return any(
        isinstance(node, ast.ImportFrom) and node.module == "__future__" and node.names[0].name == "annotations"
        for node in ast.parse(text).body
    )


def test_annotations_are_evaluated_where_they_are_read_at_run_time() -> None:
    """Postpone them, and the form of a flow still looks right while the served run fails ("not fully defined")."""
    assert postpones_annotations('"""Doc."""\nfrom __future__ import annotations\n')
    read = [source.name for source in sources() if source.layer in {"tasks", "flows", "deployments"}]
    texts = {source.name: source.text for source in sources() if source.name in read}
    for folder in ("examples", "tests", "benchmarks"):
        components = (ROOT / folder).rglob("tesseract_api.py")
        texts |= {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in components}
    assert [name for name, text in texts.items() if postpones_annotations(text)] == []


def test_what_is_imported_is_declared() -> None:
    """A package that comes only with another package goes when that one changes its mind."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = dict(project["optional-dependencies"])
    development = distributions(extras.pop("dev"))
    declared = distributions([*project["dependencies"], *(line for lines in extras.values() for line in lines)])
    providers = packages_distributions()
    missing = set()
    for source in sources():
        allowed = declared | development if source.layer == "testing" else declared
        for line, target in imports(source):
            top = target.split(".")[0]
            provided_by = {normalised(name) for name in providers.get(top, [top])}
            if not is_ours(target) and top not in sys.stdlib_module_names and not provided_by & allowed:
                missing.add(f"{source.name}:{line}: {top}")
    assert sorted(missing) == []


def distributions(requirements: Iterable[str]) -> set[str]:
    return {normalised(re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0]) for line in requirements}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
