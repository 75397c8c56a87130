"""Build the sdist, build the wheel from the sdist, look inside both, and use the wheel in a fresh environment.

The wheel is where a checkout can mislead: tasks/ and flows/ are importable there through links, and everything at the
top of the folder is on the path. Here nothing of the checkout is: what fails would fail for a user.

Run from anywhere, with the Python of the development environment (it needs `build`, `hatchling` and `uv`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

# Folder of the checkout -> where its files are in the wheel.
INSTALLED = {"tesseract_flow": "tesseract_flow", "tasks": "tesseract_flow/tasks", "flows": "tesseract_flow/flows"}
# Import names that a wheel of ours must never claim: users have folders called so.
NOT_OURS = ("tasks", "flows", "tests", "examples", "benchmarks", "deployments", "tools")

SMOKE_TEST = f"""
import importlib.util
import tesseract_flow
import tesseract_flow.blocks
import tesseract_flow.flows
import tesseract_flow.tasks

for name in tesseract_flow.__all__:
    getattr(tesseract_flow, name)
assert tesseract_flow.__version__ == {VERSION!r}, tesseract_flow.__version__
for name in {NOT_OURS!r}:
    assert importlib.util.find_spec(name) is None, f"a top-level package {{name!r}} is installed"
"""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="tesseract-flow-wheel-") as scratch:
        folder = Path(scratch)
        sdist, wheel = build(folder / "dist")
        faults = [*faults_in_sdist(sdist), *faults_in_wheel(wheel)]
        # A wheel that is wrong is not worth installing; the list says more than the traceback would.
        faults = faults or faults_in_use(wheel, folder)
    for fault in faults:
        print(f"wheel: {fault}", file=sys.stderr)
    if not faults:
        print(f"wheel: {wheel.name}, built from the sdist, is complete and works in a fresh environment")
    return 1 if faults else 0


def build(folder: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel made from it (`build` does the two in this order unless told otherwise)."""
    # Without isolation: the backend is a pinned development dependency, so nothing has to be downloaded.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def faults_in_sdist(sdist: Path) -> list[str]:
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    expected = {f"{folder}/{file}" for folder in INSTALLED for file in files_of(folder)}
    expected |= {"LICENSE", "README.md", "constraints.txt", "tests/conftest.py"}
    faults = [f"missing in the sdist: {name}" for name in sorted(expected - members.keys())]
    faults += [f"a link in the sdist: {name}" for name, member in members.items() if member.islnk() or member.issym()]
    twice = tuple(f"{path}/" for path in INSTALLED.values() if "/" in path)
    faults += [f"stored twice in the sdist: {name}" for name in members if name.startswith(twice)]
    return faults


def faults_in_wheel(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    metadata = {name for name in names if name.partition("/")[0].endswith(".dist-info")}
    expected = {f"{target}/{file}" for folder, target in INSTALLED.items() for file in files_of(folder)}
    faults = [f"missing in the wheel: {name}" for name in sorted(expected - names)]
    faults += [f"unexpected in the wheel: {name}" for name in sorted(names - metadata - expected)]
    if "tesseract_flow/py.typed" not in names:
        faults.append("py.typed is missing, so type checkers would ignore our annotations")
    if not any(name.endswith("licenses/LICENSE") for name in metadata):
        faults.append("the licence is missing in the wheel")
    faults += [
        f"entry point missing in the wheel: {line}"
        for line in ("tesseract-flow = tesseract_flow.cli:main", "tesseract_flow = tesseract_flow.blocks")
        if line not in entry_points
    ]
    return faults


def files_of(folder: str) -> set[str]:
    """Every file under `folder`, relative to it, apart from what Python wrote there; links are not followed."""
    paths = [Path(top, file) for top, _, files in os.walk(ROOT / folder) for file in files]
    return {path.relative_to(ROOT / folder).as_posix() for path in paths if "__pycache__" not in path.parts}


def faults_in_use(wheel: Path, folder: Path) -> list[str]:
    """Install into an environment that has never seen the checkout, and do what a user does first."""
    home = folder / "home"
    venv.create(home / "venv", with_pip=False)
    bin_folder = home / "venv" / ("Scripts" if os.name == "nt" else "bin")
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", str(bin_folder / "python")]
    run(*install, "--constraint", str(ROOT / "constraints.txt"), str(wheel))

    ours = {"PYTHONPATH", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {"PREFECT_HOME": str(home / "prefect"), "DO_NOT_TRACK": "1"}
    faults = []
    for command in (
        [str(bin_folder / "python"), "-c", SMOKE_TEST],
        [str(bin_folder / "tesseract-flow"), "--help"],
    ):
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            faults.append(f"{' '.join(command[1:])} failed with the installed wheel:\n{done.stdout}{done.stderr}")
    return faults


def run(*command: str) -> None:
    """Run a tool whose output only matters when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
