"""What tests of the examples share: a component as a module, in this process, and an example as its user runs it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def component(path: str) -> ModuleType:
    """`examples/<path>/tesseract_api.py` under a name of its own, as all of them have the same."""
    spec = importlib.util.spec_from_file_location(path.replace("/", "_") + "_api", EXAMPLES / path / "tesseract_api.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_example(name: str, folder: Path, *options: str) -> str:
    """What `python -m examples.NAME` prints; it ends with an error where the known answer is missed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "JAX"))}
    finished = subprocess.run(
        [sys.executable, "-m", f"examples.{name}", *options],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout
