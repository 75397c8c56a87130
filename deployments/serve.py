"""Serve the flow from this machine: `python deployments/serve.py`, then press "Run" in the Prefect UI.

For a laptop or one server. It needs a Prefect API, which `PREFECT_API_URL` names. Each flow run is a process of its
own. For a work pool with workers elsewhere see `prefect.yaml`.
"""

import argparse
import json

from prefect.settings import get_current_settings

from tesseract_flow.flows.optimize import optimize_design


def main() -> None:
    """Make the deployment known and run what is triggered, until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="beam", help="name of the deployment (default beam)")
    parser.add_argument("--problem", default="examples/beam/problem.py:cantilever", help="the form's default problem")
    parser.add_argument("--settings", type=json.loads, default={}, help="the form's default settings, as JSON")
    parser.add_argument("--limit", type=int, default=1, help="runs at once (default 1)")
    arguments = parser.parse_args()
    if get_current_settings().api.url is None:
        # Prefect would start a temporary server, on another port than the one whose pages are open.
        parser.exit(
            1,
            "No Prefect API is configured. Start one with `prefect server start`, and set\n"
            "PREFECT_API_URL=http://127.0.0.1:4200/api, or the address of yours.\n",
        )
    optimize_design.serve(
        name=arguments.name,
        description="Optimise a design through Tesseracts.",
        tags=["tesseract-flow"],
        parameters={"problem": arguments.problem, "settings": arguments.settings},
        limit=arguments.limit,
    )


if __name__ == "__main__":
    main()
