"""Serve the beam from this machine: `python deployments/serve.py`, then press "Run" in the Prefect UI.

The same as `tesseract-flow serve-flow examples/beam/problem.py:cantilever --name beam`, for those who want to do more
in their script. It needs a Prefect API, which `PREFECT_API_URL` names. For workers elsewhere see `prefect.yaml`, or
`tesseract-flow deploy`.
"""

import sys

from tesseract_flow.errors import DeploymentError
from tesseract_flow.flows.deploying import serve_problem

if __name__ == "__main__":
    try:
        serve_problem("examples/beam/problem.py:cantilever", name="beam")
    except DeploymentError as error:
        sys.exit(str(error))
