"""Modules of a problem's own folder, for that problem alone.

Two folders may each have a `helpers.py`, and an edited one should be seen. Python knows one module of each name, and
reads it once. Here a load gets a package of its own, under a name that nobody else uses, whose modules are those of the
folder; and `import helpers`, written in one of them, means the folder's, whenever it runs. `sys.path` and what other
code has imported stay as they are. Modules are read from their source as it is now, never from a cache of bytecode.

For modules that are imported by name (`package.module:factory`) Python's own rules hold: each is read once.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import sys
import threading
import types
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PREFIX = "tesseract_flow_problem_"
_counter = itertools.count(1)
_lock = threading.Lock()
_scopes: OrderedDict[str, _Scope] = OrderedDict()
_MOST_SCOPES = 64  # loads whose modules stay importable; a problem in use holds its own anyway
# They are what a problem is made with, also in a checkout that has them beside the problem.
_NEVER = frozenset({"tesseract_flow", "jax", "jaxlib", "numpy", "equinox", "optax", "prefect"})


def load_file(file: Path) -> types.ModuleType:
    """A file as a module, executed now, with what it imports from beside it.

    `__init__.py` files say where a package begins: with them, `import package.other` and relative imports work as well.
    """
    root, name = _package_of(file)
    scope = _Scope(root)
    with _lock:
        _scopes[scope.package] = scope
        while len(_scopes) > _MOST_SCOPES:
            _, oldest = _scopes.popitem(last=False)
            oldest.forget()
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    importlib.invalidate_caches()  # a file that was just written is there
    try:
        return importlib.import_module(f"{scope.package}.{name}")
    except BaseException:
        with _lock:
            _scopes.pop(scope.package, None)
        scope.forget()
        raise


def _package_of(file: Path) -> tuple[Path, str]:
    """The folder to import from, and the dotted name."""
    root, parts = file.parent, [file.stem]
    while (root / "__init__.py").is_file():
        parts.append(root.name)
        root = root.parent
    return root, ".".join(reversed(parts))


class _Scope:
    """One load: a package whose modules are those of a folder."""

    def __init__(self, root: Path):
        self.root = root
        self.package = f"{_PREFIX}{next(_counter)}"
        module = types.ModuleType(self.package)
        module.__path__ = [str(root)]
        sys.modules[self.package] = module
        self._has: dict[str, bool] = {}
        self.builtins: dict[str, Any] = {**vars(builtins), "__import__": self._import}

    def has(self, top: str) -> bool:
        """Whether a top-level name is one of the folder's modules."""
        if top not in self._has:  # asked by each import, those inside of functions included
            self._has[top] = self._look_for(top)
        return self._has[top]

    def _look_for(self, top: str) -> bool:
        if top in sys.builtin_module_names or top in _NEVER or top.startswith(_PREFIX):
            return False
        spec = importlib.machinery.PathFinder.find_spec(top, [str(self.root)])
        # A folder without __init__.py counts only where nothing else has the name: data lies in folders, too.
        return spec is not None and (spec.loader is not None or not _is_elsewhere(top))

    def forget(self) -> None:
        for name in [name for name in sys.modules if name == self.package or name.startswith(f"{self.package}.")]:
            del sys.modules[name]

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        top = name.partition(".")[0]
        if level or not self.has(top):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        # `import a.b` gives a, `from a.b import c` gives a.b.
        module = importlib.import_module(f"{self.package}.{name}")
        if not fromlist:
            return sys.modules[f"{self.package}.{top}"]
        return builtins.__import__(module.__name__, globals, locals, fromlist, 0)


def _is_elsewhere(top: str) -> bool:
    try:
        return top in sys.modules or importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):
        return False


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of scopes, as Python does in a package's folder, and loads them in its own way."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        scope = _scopes.get(fullname.partition(".")[0])
        if scope is None or path is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        # Of any kind: beartype, which comes with Prefect's server, puts a loader of its own into every path.
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path, scope)
            spec.cached = None
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    """Reads the source, and gives the module builtins in which `import` knows its folder."""

    def __init__(self, name: str, path: str, scope: _Scope):
        super().__init__(name, path)
        self._scope = scope

    def get_code(self, fullname: str) -> types.CodeType:
        # Not from bytecode, which is told from a newer source by its length and the second in which it was written.
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def exec_module(self, module: types.ModuleType) -> None:
        vars(module)["__builtins__"] = self._scope.builtins
        super().exec_module(module)


_finder = _Finder()
