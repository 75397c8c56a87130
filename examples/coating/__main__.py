"""`python -m examples.coating`: serve the optics, find two films that reflect nothing, compare with the closed form."""

from __future__ import annotations

import numpy as np

from examples.coating import closed_form
from examples.coating.problem import coating
from examples.command import compare, optimised


def main() -> None:
    """Run the example; exits with 1 if a known answer is missed."""
    answer = optimised("coating/problem.py:coating", coating.__doc__)
    settings = answer.settings
    index, substrate = settings.get("index", (1.38, 2.1)), settings.get("substrate", 1.52)
    shortest, longest = settings.get("band", (550.0, 550.0))
    (thickness,) = (leaf for name, leaf in answer.design.items() if name.endswith("thickness"))
    # Whatever was asked for, another way of computing it agrees on what the films reflect.
    wavelengths = np.linspace(shortest, longest, settings.get("n_wavelengths", 1))
    reflected = closed_form.reflectance(thickness, index, wavelengths, substrate=substrate)
    said = answer.result["value"]
    said = said / 100.0 if settings.get("worst") else 2.0 * said
    again = reflected.max() if settings.get("worst") else reflected.sum()
    facts = [("reflectance: difference from that by another formula", abs(said - again), 1e-9)]
    if len(wavelengths) == 1 and len(index) == 2:
        best = closed_form.v_coat(index[0], index[1], wavelengths[0], substrate=substrate)
        facts.append(("thickness: largest difference from the closed form [nm]", np.abs(thickness - best).max(), 1e-6))
        facts.append(("reflectance: closed form is zero", reflected[0], 1e-15))
    if len(wavelengths) == 1 and len(index) == 1:
        best = closed_form.quarter_wave(index[0], substrate=substrate)
        facts.append(("reflectance: difference from a quarter-wave film's", abs(reflected[0] - best), 1e-12))
    compare(answer, facts)


if __name__ == "__main__":
    main()
