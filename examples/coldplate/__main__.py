"""`python -m examples.coldplate`: serve the components, cool the plate, compare with the state found by hand."""

from __future__ import annotations

import numpy as np

from examples.coldplate import by_hand
from examples.coldplate.problem import FLUID, METAL, SOLID, coldplate
from examples.command import compare, optimised
from examples.mbb.reference import averaged


def main() -> None:
    """Run the example; exits with 1 if the state is another one, or heat is lost."""
    answer = optimised("coldplate/problem.py:coldplate", coldplate.__doc__, "--pictures=4")
    share = averaged(answer.design["share"], 1.5)
    n_rows, n_columns = share.shape
    flux, heat = by_hand.coupled(share, answer.settings.get("buoyancy", 3.0), SOLID, METAL, FLUID)
    across = flux[: n_rows * (n_columns + 1)].reshape(n_rows, n_columns + 1)
    out = np.maximum(across[:, -1], 0.0) @ heat[:, -1] - np.minimum(across[:, 0], 0.0) @ heat[:, 0]
    start = by_hand.coupled(np.full(share.shape, share.mean()), 0.0, SOLID, METAL, FLUID)[1].mean()
    print(f"\n  mean temperature {heat.mean():.5f}; of a uniform plate without buoyancy {start:.3f}")
    compare(
        answer,
        [
            ("mean temperature: difference from that by hand", abs(answer.result["value"] / heat.mean() - 1.0), 1e-7),
            ("heat: difference of what goes out from what comes in", abs(float(out) - 1.0), 1e-8),
            ("channels: above what there may be", float(share.mean()) - answer.settings.get("channels", 0.5), 1e-6),
        ],
    )


if __name__ == "__main__":
    main()
