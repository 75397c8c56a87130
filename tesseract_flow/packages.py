"""Packages that can be called: `tf.optimize(problem)` is a function, `tesseract_flow.optimize` the package it is in.

Importing a package makes it an attribute of its parent, so a function of the same name there would depend on who
imports what first. The one idea: the package stands for the function, in calls, signature and help.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import textwrap
import types
from collections.abc import Callable
from typing import Any


def make_callable(package: str, home: str) -> None:
    """Let `package`, which is being imported, be called as the function of its name that the module `home` defines.

    Neither is imported before it is asked for.
    """
    module = sys.modules[package]
    module.__class__ = _CallablePackage
    # In the class's words, not the instance's, so that help() finds what is made when it is asked for.
    module.__dict__["_about_package"] = module.__dict__.pop("__doc__") or ""
    module.__dict__["_home"] = home


class _CallablePackage(types.ModuleType):
    _home: str
    _about_package: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function()(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function())

    @property
    def __doc__(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        function = self._function()
        summary, _, rest = inspect.cleandoc(function.__doc__ or "").partition("\n")
        called = f"{function.__name__}{inspect.signature(function)}"
        about = textwrap.indent(inspect.cleandoc(self._about_package), "    ")
        return f"{summary}\n\n{called}\n{rest}\n\nIt is also the package in which the function is:\n\n{about}\n"

    def _function(self) -> Callable[..., Any]:
        return getattr(importlib.import_module(self._home), self.__name__.rpartition(".")[2])
