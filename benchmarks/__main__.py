"""Run the measurements and leave a table: `python -m benchmarks`, or `make bench`.

The peers are installed from the package index into an environment of their own, once. Without it (`--no-peers`) the
rows that need them are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import jax

from benchmarks import rows as measure

PEERS = ("tesseract-jax", "tesseract-core[runtime]>=1.12")
SHOWN = ("tesseract-flow", "tesseract-core", "jax", "httpx", "numpy", "prefect")


def main() -> None:
    """Measure, print, and write `results.md` and `results.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="where to leave the table")
    parser.add_argument("--no-peers", action="store_true", help="leave out what needs tesseract-jax")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    peer_python = None if arguments.no_peers else _peers(arguments.out / "peers")
    with ThreadPoolExecutor(4) as pool:
        urls = list(pool.map(lambda tesseract: tesseract.url, measure.serve(4)))
    table = [
        *measure.gradient_rows(urls, peer_python),
        measure.request_row(urls[0]),
        *measure.call_rows(urls[0]),
        measure.layer_row(urls[0]),
        measure.import_row(),
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = _markdown(table)
    (arguments.out / "results.md").write_text(text)
    (arguments.out / "results.json").write_text(
        json.dumps([{**dataclasses.asdict(row), "ratio": row.ratio} for row in table], indent=1)
    )
    print(text)


def _peers(folder: Path) -> Path | None:
    """The interpreter of an environment with the peers; None, and said so, if it cannot be made."""
    python = folder / "bin" / "python"
    if python.exists():
        return python
    uv = Path(sys.executable).with_name("uv")
    try:
        subprocess.run([str(uv), "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
        subprocess.run([str(uv), "pip", "install", "--quiet", "--python", str(python), *PEERS], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"The peers could not be installed ({error}); their rows are left out.", file=sys.stderr)
        return None
    return python


def _markdown(table: list[measure.Row]) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in SHOWN)
    lines = [
        f"Python {platform.python_version()}, {platform.machine()}, {versions}. Medians; each row in one run.",
        "",
        "| work | ours | peer | | ratio | goal | met |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table:
        met = "yes" if row.ratio <= row.goal else "no"
        lines.append(
            f"| {row.work} | {row.ours:.3g} {row.unit} | {row.peer:.3g} {row.unit} | {row.peer_name} | {row.ratio:.2f} "
            f"| ≤ {row.goal:.2f} | {met} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
