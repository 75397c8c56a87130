"""`python -m examples.sellar`: serve both disciplines as processes, and solve the problem with each form of coupling.

Ends with 1 if the known optimum is missed.
"""

from __future__ import annotations

from pathlib import Path

import tesseract_flow as tf
from tesseract_flow.client import ServedTesseract
from tesseract_flow.optimize import load_problem

HERE = Path(__file__).resolve().parent
OPTIMUM = 3.18339395


def main() -> None:
    served = {name: ServedTesseract(HERE / name / "tesseract_api.py", label=name) for name in ("y1", "y2")}
    try:
        for coupling in ("mdf", "idf"):
            solve(coupling, served)
    finally:
        for tesseract in served.values():
            tesseract.stop()


def solve(coupling: str, served: dict[str, ServedTesseract]) -> tf.Result:
    """Print what one form of coupling finds, and what it takes."""
    problem = load_problem(str(HERE / "problem.yaml"), {"coupling": coupling, **served})
    if coupling == "mdf":
        print(tf.picture(problem.evaluate.pipeline), end="\n\n")  # type: ignore[attr-defined]
    with tf.count_requests() as requests:
        result = tf.optimize(problem)
    n_runs, n_pullbacks = requests.n_of("apply"), requests.n_of("vector_jacobian_product")
    print(
        f"{coupling}: {result.value:.8f} (known optimum {OPTIMUM}), z = {result.design['z']}, x = {result.design['x']}"
    )
    print(f"  {result.steps} steps, {n_runs} solver runs and {n_pullbacks} pullbacks: {result.reason}")
    if not abs(result.value - OPTIMUM) < 1e-7:
        raise SystemExit("The known optimum was missed by more than 1e-7.")
    return result


if __name__ == "__main__":
    main()
