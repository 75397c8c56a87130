"""The coupled state of a design by SciPy's `newton_krylov`, components called as Python functions: what must agree."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import newton_krylov

HERE = Path(__file__).resolve().parent


def component(folder: Path) -> Any:
    """The module of a component."""
    spec = importlib.util.spec_from_file_location(f"coldplate_{folder.name}_api", folder / "tesseract_api.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def coupled(
    share: np.ndarray, buoyancy: float, solid: float, metal: float, fluid: float
) -> tuple[np.ndarray, np.ndarray]:
    """Fluxes and temperature where the share of channel in each cell is `share`, averaged already.

    Args:
        buoyancy: over the whole height.
        solid: permeability where there is no channel.
        metal, fluid: conductivities.
    """
    flow, heat = component(HERE / "flow"), component(HERE / "heat")
    permeability, conductivity = solid ** (1.0 - share), metal + (fluid - metal) * share

    def fluxes(temperature: np.ndarray) -> np.ndarray:
        rise = buoyancy / share.shape[0]
        given = flow.InputSchema(permeability=permeability, temperature=temperature, buoyancy=rise)
        return flow.apply(given).flux

    def warmed(temperature: np.ndarray) -> np.ndarray:
        given = heat.InputSchema(flux=fluxes(temperature), conductivity=conductivity)
        return heat.apply(given).temperature

    temperature = newton_krylov(lambda t: warmed(t) - t, warmed(np.zeros(share.shape)), f_tol=1e-11, maxiter=200)
    return fluxes(temperature), temperature
