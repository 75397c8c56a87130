"""`make demo`: serve the beam's three Tesseracts, optimise through them in a Prefect flow, compare with the optimum.

Everything happens on this machine and below `runs/demo`: the components as three processes, Prefect's embedded server
with its SQLite database, the journal, the result and the report. Kill it at any moment and start it again: it goes on
from the last finished step. Once finished, the next start begins anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

OPTIMUM = 23762.153678  # closed form, see closed_form.py


def main() -> None:
    """Run the demo; exits with 1 if the optimum is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where to leave results (default runs)")
    parser.add_argument("--optimizer", default="adam", help="an Optax optimiser (default adam)")
    parser.add_argument("--max-steps", type=int, default=300)
    parser.add_argument("--observe", default="auto", help="auto, calls, steps or run")
    arguments = parser.parse_args()

    run = arguments.folder.resolve() / "demo"
    if (run / "result.json").exists():
        shutil.rmtree(run)
    _keep_prefect_here(run / "prefect")
    # Prefect reads its settings when it is imported, so only now.
    from tesseract_flow.client import ServedTesseract
    from tesseract_flow.flows.optimize import Optimizer, Stop, optimize_design

    here = Path(__file__).resolve().parent
    names = ("section", "fem", "compliance")
    print("Serving three Tesseracts ...", flush=True)
    with ThreadPoolExecutor(len(names)) as pool:  # each takes seconds to start, so together
        served = [ServedTesseract(here / name / "tesseract_api.py") for name in names]
        urls: dict[str, Any] = dict(zip(names, pool.map(lambda tesseract: tesseract.url, served), strict=True))
    for name, url in urls.items():
        print(f"  {name:<11} {url}")

    start = time.monotonic()
    summary = optimize_design(
        problem=str(here / "problem.py") + ":cantilever",
        settings=urls,
        optimizer=Optimizer(name=arguments.optimizer),
        stop=Stop(max_steps=arguments.max_steps),
        run_key="demo",
        observe=arguments.observe,
        folder=str(arguments.folder),
    )
    _report(summary, time.monotonic() - start)


def _keep_prefect_here(home: Path) -> None:
    """Nobody's Prefect profile or database is touched, and nothing reaches outside."""
    home.mkdir(parents=True, exist_ok=True)
    os.environ["PREFECT_HOME"] = str(home)
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE"):
        os.environ.pop(name, None)


def _report(summary: dict, seconds: float) -> None:
    value, volume = summary["value"], summary["constraints"]["volume"]
    gap = value / OPTIMUM - 1.0
    print(f"\n  compliance   {value:.6f}   known optimum {OPTIMUM:.6f}   relative difference {gap:+.2e}")
    print(f"  volume       {volume:.8f}   demanded 0.01   relative difference {volume / 0.01 - 1.0:+.2e}")
    print(f"  {summary['steps']} steps, {summary['requests']} requests, {seconds:.0f} s: {summary['reason']}")
    print(f"  {Path(summary['folder']) / 'report.html'}")
    result = json.loads((Path(summary["folder"]) / "result.json").read_text())
    if abs(gap) > 1e-3 or abs(result["value"] - value) > 1e-9 * abs(value):
        raise SystemExit("The known optimum was missed by more than 1e-3.")


if __name__ == "__main__":
    main()
