"""Run the measurements and leave a table: `python -m benchmarks`, or `make bench`.

The peers are installed from the package index into an environment of their own, once. Without it (`--no-peers`) the
rows that need them are left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax

from benchmarks import calls, curves, cutest, flows, gradients, loops, plots, residuals, results, solver_runs, studies
from benchmarks.measuring import Bench, Row

PEERS = ("tesseract-jax", "tesseract-core[runtime]>=1.12")
GROUPS: dict[str, Callable[[Bench], list[Row]]] = {
    "gradient": gradients.gradient_rows,
    "vmap": gradients.vmap_rows,
    "loops": loops.loop_rows,
    "coupled": loops.coupled_rows,
    "cut": gradients.cut_rows,
    "flow": flows.flow_rows,
    "recipe": residuals.recipe_rows,
    "http": calls.call_rows,
    "shared-memory": calls.shared_memory_rows,
    "layer": calls.layer_rows,
    "studies": studies.study_rows,
    "replay": studies.replay_rows,
    "sellar": solver_runs.sellar_rows,
    "cutest": cutest.cutest_rows,
    "import": calls.import_rows,
}
CHARTS = {chart.__name__: chart for chart in curves.ALL}


def main() -> None:
    """Measure, print, and write Markdown, JSON and plots."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="for results and the peers' environment")
    parser.add_argument("--results", type=Path, help="where to write the Markdown; default results.md in --out")
    parser.add_argument(
        "--only", action="append", choices=[*GROUPS, *CHARTS], metavar="NAME", help=", ".join([*GROUPS, *CHARTS])
    )
    parser.add_argument("--quick", action="store_true", help="everything once and small, to see that it works")
    parser.add_argument("--no-peers", action="store_true", help="leave out what needs tesseract-jax")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)

    chosen = arguments.only or [*GROUPS, *CHARTS]
    peer_python = None if arguments.no_peers else _peers(arguments.out / "peers")
    bench = Bench(arguments.out, peer_python, arguments.quick)
    path = arguments.results or arguments.out / "results.md"
    load = results.load_now()
    rows, charts = [], []
    for name in chosen:
        start = time.monotonic()
        if name in GROUPS:
            rows += GROUPS[name](bench)
        else:
            charts.append(CHARTS[name](bench))
            plots.draw(charts[-1], path.parent / "plots")
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    machine = results.Machine.here(load, _versions(peer_python))
    print(results.write(path, rows, charts, machine, is_quick=arguments.quick))


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


def _versions(peer_python: Path | None) -> dict[str, str]:
    """Those of the peers in their own environment."""
    if peer_python is None:
        return {}
    code = (
        "import json; from importlib.metadata import version; "
        "print(json.dumps({name: version(name) for name in ('tesseract-jax', 'tesseract-core', 'jax')}))"
    )
    return json.loads(subprocess.run([str(peer_python), "-c", code], check=True, stdout=subprocess.PIPE).stdout)


if __name__ == "__main__":
    main()
