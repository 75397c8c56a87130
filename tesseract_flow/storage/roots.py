"""From where code may be run that somebody names in a form: the folders of `TESSERACT_FLOW_ROOTS`.

Whoever may fill in a form may name a file, and a file that is named is executed. On a machine that serves others the
variable says which folders that is meant for. It is looked at before anything is imported, after links are followed.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
from pathlib import Path

from tesseract_flow.errors import NotAllowed

VARIABLE = "TESSERACT_FLOW_ROOTS"


def allowed_roots() -> tuple[Path, ...] | None:
    """The folders; None where everything is allowed, as the variable is not set. Set and empty, it allows nothing."""
    text = os.environ.get(VARIABLE)
    return None if text is None else tuple(Path(part).resolve() for part in text.split(os.pathsep) if part.strip())


def require_allowed(path: str | os.PathLike[str]) -> None:
    """Refuse a file, or a folder, outside of the allowed folders.

    Raises:
        NotAllowed: it lies outside.
    """
    roots = allowed_roots()
    if roots is None:
        return
    real = Path(path).resolve()
    if not any(real.is_relative_to(root) for root in roots):
        there = "" if str(real) == os.fspath(path) else f" ({real})"
        raise NotAllowed(
            f"{os.fspath(path)}{there} lies outside of the folders from which problems and components may be run here, "
            f"and was not read: {', '.join(map(str, roots)) or 'there are none'}.\n"
            f"Put it into one of them, or have whoever runs this service add its folder to {VARIABLE}."
        )


def require_allowed_module(name: str) -> None:
    """Refuse a module that would be imported from elsewhere. Imports nothing: its outermost package decides.

    Raises:
        NotAllowed: it lies outside of the allowed folders, or belongs to Python itself.
    """
    if allowed_roots() is None:
        return
    top = name.partition(".")[0]
    spec = None if top in sys.builtin_module_names else importlib.machinery.PathFinder.find_spec(top)
    if spec is None:
        if top in sys.builtin_module_names or top in sys.stdlib_module_names:
            require_allowed(sys.prefix)
        return  # there is no such module, which others have words for
    for place in [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.has_location else [])]:
        require_allowed(str(place))
