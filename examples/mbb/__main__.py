"""`python -m examples.mbb`: serve filter and finite elements, find the beam, compare with optimality criteria."""

from __future__ import annotations

from examples.command import compare, optimised
from examples.mbb.problem import mbb
from examples.mbb.reference import greyness, optimality_criteria, work

SHARPNESS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def main() -> None:
    """Run the example; exits with 1 if the beam is worse than the reference's."""
    answer = optimised("mbb/problem.py:mbb", mbb.__doc__, "--pictures=6")
    settings, field = answer.settings, answer.design["field"]
    radius, volume = settings.get("radius", 2.4), settings.get("volume", 0.5)
    sharpness = settings.get("sharpness", SHARPNESS)
    density, compliance = work(field, radius, sharpness[-1])
    n_rows, n_columns = field.shape
    reference = optimality_criteria(n_rows, n_columns, volume, radius, sharpness, n_solves=100)
    print(f"\n  compliance {compliance:.3f}, by optimality criteria {reference.compliance:.3f} in 100 solves")
    print(f"  {answer.result['evaluations']} evaluations; pictures in {answer.folder / 'pictures'}")
    compare(
        answer,
        [
            ("compliance: above that by optimality criteria", compliance / reference.compliance - 1.0, 1e-2),
            ("compliance: difference from components called by hand", abs(answer.result["value"] - compliance), 1e-6),
            ("volume: above what there is", density.mean() - volume, 1e-6),
            ("grey that is left", greyness(density), 1e-2),
        ],
    )


if __name__ == "__main__":
    main()
