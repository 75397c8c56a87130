"""`tesseract-flow init`: a folder to begin with, in which everything runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from tesseract_flow.cli.arguments import Commands
from tesseract_flow.errors import StorageError

_TEMPLATE = Path(__file__).parent / "template"
# A wheel is built without what .gitignore names, and a file of that name in here would be obeyed by git.
_RENAMED = {"gitignore": ".gitignore"}
_MOST_SHOWN = 5


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "init", help="make a folder to begin with: components, a problem, tests; all of it runs"
    )
    parser.add_argument("folder", type=Path, help="a new or an empty folder")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    made = write_template(arguments.folder)
    print(f"Made in {arguments.folder}: {', '.join(made)}")
    print(f"Next: cd {arguments.folder}, and what README.md says; begin with")
    print("  tesseract-flow check problem.py:problem")
    return 0


def write_template(folder: Path) -> list[str]:
    """Fill a new or an empty folder; returns what is at its top.

    Raises:
        StorageError: there is something in it, or it cannot be written.
    """
    try:
        there = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        if there:
            more = f" and {len(there) - _MOST_SHOWN} more" if len(there) > _MOST_SHOWN else ""
            raise StorageError(
                f"{folder} is not empty: there is {', '.join(there[:_MOST_SHOWN])}{more}. Nothing was written. Name a "
                "new folder, or an empty one."
            )
        for source in sorted(_TEMPLATE.rglob("*")):
            name = source.relative_to(_TEMPLATE)
            if source.is_dir() or "__pycache__" in name.parts:
                continue
            target = folder / name.with_name(_RENAMED.get(name.name, name.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{folder} cannot be made or written: {error}") from error
    return sorted(path.name for path in folder.iterdir())
