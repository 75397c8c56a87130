"""Several components as one: fixed points of components that need each other, derivatives of a whole.

Everything here is ordinary JAX over `apply_tesseract`. Control flow is dataflow in `execute`, so what a solver asks in
its loops are calls like any other.
"""

from tesseract_flow.compose.accelerations import Aitken, Anderson, Broyden, GaussSeidel, Picard
from tesseract_flow.compose.fixed_point import Convergence, fixed_point
from tesseract_flow.compose.krylov import Gmres
from tesseract_flow.compose.newton import NewtonKrylov

__all__ = [
    "Aitken",
    "Anderson",
    "Broyden",
    "Convergence",
    "GaussSeidel",
    "Gmres",
    "NewtonKrylov",
    "Picard",
    "fixed_point",
]
