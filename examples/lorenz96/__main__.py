"""`python -m examples.lorenz96`: serve the model, find the initial state and the forcing, compare with the truth."""

from __future__ import annotations

import numpy as np

from examples.command import compare, optimised
from examples.lorenz96.problem import assimilation
from examples.lorenz96.twin import twin


def main() -> None:
    """Run the example; exits with 1 if the truth is missed."""
    answer = optimised("lorenz96/problem.py:assimilation", assimilation.__doc__)
    truth = twin(**{name: value for name, value in answer.settings.items() if name != "stepper"})
    # With errors in the observations the answer has errors, too: smaller ones than the forecast, on average.
    exact = not answer.settings.get("noise")
    error = answer.design["state"] - truth.state
    compare(
        answer,
        [
            (
                "initial state: " + ("largest error" if exact else "standard error"),
                np.abs(error).max() if exact else np.sqrt(np.mean(error**2)),
                1e-6 if exact else 0.5,
            ),
            ("forcing: error", abs(float(answer.design["forcing"]) - truth.forcing), 1e-6 if exact else 0.5),
        ],
    )


if __name__ == "__main__":
    main()
