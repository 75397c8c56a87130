"""Serve the flow from this machine: `python deployments/serve.py`, then press "Run" in the Prefect UI.

For a laptop or one server. It needs a Prefect API (`prefect server start`, or `PREFECT_API_URL` of yours) and runs each
flow run as a process of its own. For a work pool with workers elsewhere see `prefect.yaml`.
"""

import argparse
import json

from tesseract_flow.flows.optimize import optimize_design


def main() -> None:
    """Make the deployment known and run what is triggered, until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="beam", help="name of the deployment (default beam)")
    parser.add_argument("--problem", default="examples/beam/problem.py:cantilever", help="the form's default problem")
    parser.add_argument("--settings", type=json.loads, default={}, help="the form's default settings, as JSON")
    parser.add_argument("--limit", type=int, default=1, help="runs at once (default 1)")
    arguments = parser.parse_args()
    optimize_design.serve(
        name=arguments.name,
        description="Optimise a design through Tesseracts.",
        tags=["tesseract-flow"],
        parameters={"problem": arguments.problem, "settings": arguments.settings},
        limit=arguments.limit,
    )


if __name__ == "__main__":
    main()
