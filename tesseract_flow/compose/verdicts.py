"""What did not converge is an error with a name, from wherever it is found out: also in code that is compiled.

A `verdict` stands between a solver and whoever uses its result (`autodiff.judging`).
"""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

import numpy as np

from tesseract_flow.autodiff import AbstractCase, judged
from tesseract_flow.errors import NotConverged

# How a solver ended.
RUNNING, NO_DESCENT, GROWS, FAR = 0, 1, 2, 3


@dataclasses.dataclass(frozen=True)
class Case(AbstractCase):
    """What is judged.

    Attributes:
        name: of the fixed point.
        part: `"solution"`, `"adjoint"` or `"tangent"`.
        solver: by what.
        leaves: names of the leaves of the state.
        tolerance: for residuals, relative.
    """

    name: str
    part: str
    solver: str
    leaves: tuple[str, ...]
    tolerance: float

    def fault(self, where: tuple[int, ...], converged: np.ndarray, *facts: np.ndarray) -> NotConverged:
        status, history, n_rounds, errors = facts
        batch = converged.shape
        residuals = history[where]
        known = residuals[: int(np.max(np.flatnonzero(~np.isnan(residuals)), initial=-1)) + 1]
        if not np.isfinite(errors[where]).all():
            known = np.append(known, np.nan)
        element = f", in element {list(where)} of {list(batch)}" if batch else ""
        return NotConverged(
            self._sentence(element, int(status[where]), known, int(n_rounds[where]), errors[where]),
            name=self.name,
            part=self.part,
            residuals=[float(r) for r in known],
            n_rounds=int(n_rounds[where]),
        )

    def _sentence(self, element: str, status: int, residuals: np.ndarray, n_rounds: int, errors: np.ndarray) -> str:
        last = residuals[-1] if len(residuals) else np.nan
        what = {
            "solution": f"Fixed point {self.name!r} was not reached by {self.solver}",
            "adjoint": f"The adjoint of fixed point {self.name!r} was not solved by {self.solver} (pullbacks)",
            "tangent": f"The tangent of fixed point {self.name!r} was not solved by {self.solver}",
        }[self.part]
        n_steps = max(len(residuals) - 1, 0)
        steps = "step" if self.part == "solution" else "cycle"
        shown = [f"{r:.3g}" for r in residuals]
        shown = shown if len(shown) <= 8 else [*shown[:3], "...", *shown[-4:]]
        lines = [
            f"{what}{element}: after {n_steps} {steps}{'' if n_steps == 1 else 's'} ({n_rounds} rounds through the "
            f"components) the relative residual is {last:.3g}, demanded is {self.tolerance:.3g}.",
            f"Residuals: {', '.join(shown)}." if len(shown) > 1 else "",
            self._worst(errors),
            textwrap.fill(self._advice(status, bool(np.isfinite(errors).all())), 118),
        ]
        return "\n".join(line for line in lines if line)

    def _worst(self, errors: np.ndarray) -> str:
        bad = [name for name, error in zip(self.leaves, errors, strict=True) if not np.isfinite(error)]
        if bad:
            return f"Not finite: {', '.join(map(repr, bad[:4]))}."
        if len(errors) < 2:
            return ""
        return f"It is largest in {self.leaves[int(np.argmax(errors))]!r}."

    def _advice(self, status: int, is_finite: bool) -> str:
        if self.part != "solution":
            return (
                "The linear system of the coupling is nearly singular here (loop gain 1), its derivatives are not "
                "exact enough for this tolerance, or it takes more directions: "
                "linear=Gmres(size=..., cycles=..., rtol=...)."
            )
        if not is_finite:
            return "Start closer to the solution (T0), or keep the state where the components are defined."
        if status == NO_DESCENT:
            return (
                "No step along Newton's direction makes the residual smaller: the start is too far away, the "
                "derivatives are not those of the components, or the residual has reached their noise "
                "(rtol=..., atol=..., NewtonKrylov(noise=...))."
            )
        if status == GROWS:
            return (
                "The loop amplifies what is left (its gain is above 1), which newton-krylov, broyden and anderson can "
                "solve all the same."
            )
        if status == FAR:
            return (
                "That would do, but the last step changed the state by far more than the residual: the gain of the "
                "loop is 1 there, or almost, and the solution is anywhere, or nowhere. Look at the components."
            )
        return "Allow more steps (max_steps=...), start closer (T0), or choose another solver= (newton-krylov)."


def verdict(case: Case, converged: Any, status: Any, history: Any, n_rounds: Any, errors: Any) -> Any:
    """`converged`, which is true where this has returned.

    Raises:
        NotConverged: at run time.
    """
    return judged(case, converged, status, history, n_rounds, errors)
