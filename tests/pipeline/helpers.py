"""Components of pipelines, and Sellar's two disciplines, in this process."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from tesseract_flow.testing import FunctionTesseract

PULLBACKS_ALONE = ("apply", "abstract_eval", "vector_jacobian_product")
Y1 = FunctionTesseract(
    lambda i: {"y1": i["z"][0] ** 2 + i["z"][1] + i["x"] - 0.2 * i["y2"]},
    {"z": np.ones(2), "x": np.array(1.0), "y2": np.array(1.0)},
    name="first",
    endpoints=PULLBACKS_ALONE,
)
Y2 = FunctionTesseract(
    lambda i: {"y2": jnp.sqrt(i["y1"]) + i["z"][0] + i["z"][1]},
    {"z": np.ones(2), "y1": np.array(1.0)},
    name="second",
    endpoints=PULLBACKS_ALONE,
)
SELLAR: dict[str, Any] = {
    "inputs": ["z", "x"],
    "nodes": {
        "y1": {"tesseract": Y1, "inputs": {"z": "z", "x": "x", "y2": "y2.y2"}},
        "y2": {"tesseract": Y2, "inputs": {"z": "z", "y1": "y1.y1"}},
    },
    "groups": {"coupled": {"nodes": ["y1", "y2"], "start": {"y2.y2": 0.0}, "solver": "broyden"}},
    "outputs": {"f": {"expression": "x**2 + z[1] + y1.y1 + exp(-y2.y2)"}, "y1": "y1.y1", "y2": "y2.y2"},
}
SECTION = FunctionTesseract(
    lambda i: {"inertia": i["thickness"] ** 3, "volume": jnp.sum(i["thickness"])},
    {"thickness": np.ones(3)},
    name="section",
)
FRAME = FunctionTesseract(
    lambda i: {"parts": {"left": {"d": jnp.stack([i["load"] / i["inertia"], i["inertia"]], 1)}}, "text": "fine"},
    {"load": np.array(1.0), "inertia": np.ones(3)},
    name="frame",
)
