"""Problems of Hock & Schittkowski, Test Examples for Nonlinear Programming Codes (1981), written down from there.

Numbers are theirs: the starts, infeasible ones included, and the optima to the digits printed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tesseract_flow.optimize import Constraint, Evaluation, Problem


@dataclasses.dataclass(frozen=True)
class Standard:
    """`inequalities(x) >= 0` and `equalities(x) == 0`; bounds per variable, or numbers for all.

    `local` are the values at other local minima, which are first-order points with the same right.
    """

    name: str
    start: list[float]
    objective: Callable[[Any], Any]
    optimum: float
    inequalities: Callable[[Any], list[Any]] | None = None
    equalities: Callable[[Any], list[Any]] | None = None
    lower: Any = None
    upper: Any = None
    local: tuple[float, ...] = ()

    def problem(self, factor: float = 1.0) -> Problem:
        def evaluate(x: jax.Array) -> Evaluation:
            values = {}
            if self.inequalities:
                values["at least"] = jnp.stack([jnp.asarray(c) for c in self.inequalities(x)])
            if self.equalities:
                values["equal"] = jnp.stack([jnp.asarray(c) for c in self.equalities(x)])
            return Evaluation(factor * self.objective(x), values)

        demands = {}
        if self.inequalities:
            demands["at least"] = Constraint(lower=0.0)
        if self.equalities:
            demands["equal"] = Constraint(equals=0.0)
        bounds = None if self.lower is None and self.upper is None else (self.lower, self.upper)
        return Problem(jnp.asarray(self.start), evaluate, bounds=bounds, constraints=demands, name=self.name)


def _hs102(x):
    return (
        10 * x[0] * x[3] ** 2 * x[6] ** 0.125 / (x[1] * x[5] ** 3)
        + 15 * x[2] * x[3] / (x[0] * x[1] ** 2 * x[4] * x[6] ** 0.5)
        + 20 * x[1] * x[5] / (x[0] ** 2 * x[3] * x[4] ** 2)
        + 25 * x[0] ** 2 * x[1] ** 2 * x[4] ** 0.5 * x[6] / (x[2] * x[5] ** 2)
    )


def _hs102_constraints(x):
    return [
        1
        - 0.5 * x[0] ** 0.5 * x[6] / (x[2] * x[5] ** 2)
        - 0.7 * x[0] ** 3 * x[1] * x[5] * x[6] ** 0.5 / x[2] ** 2
        - 0.2 * x[2] * x[5] ** (2 / 3) * x[6] ** 0.25 / (x[1] * x[3] ** 0.5),
        1
        - 1.3 * x[1] * x[5] / (x[0] ** 0.5 * x[2] * x[4])
        - 0.8 * x[2] * x[5] ** 2 / (x[3] * x[4])
        - 3.1 * x[1] ** 0.5 * x[5] ** (1 / 3) / (x[0] * x[3] ** 2 * x[4]),
        1
        - 2 * x[0] * x[4] * x[6] ** (1 / 3) / (x[2] ** 1.5 * x[5])
        - 0.1 * x[1] * x[4] / (x[2] ** 0.5 * x[5] * x[6] ** 0.5)
        - x[1] * x[2] ** 0.5 * x[4] / x[0]
        - 0.65 * x[2] * x[4] * x[6] / (x[1] ** 2 * x[5]),
        1
        - 0.2 * x[1] * x[4] ** 0.5 * x[6] ** (1 / 3) / (x[0] ** 2 * x[3])
        - 0.3 * x[0] ** 0.5 * x[1] ** 2 * x[2] * x[3] ** (1 / 3) * x[6] ** 0.25 / x[4] ** (2 / 3)
        - 0.4 * x[2] * x[4] * x[6] ** 0.75 / (x[0] ** 3 * x[1] ** 2)
        - 0.5 * x[3] * x[6] ** 0.5 / x[2] ** 2,
        _hs102(x) - 100,
        3000 - _hs102(x),
    ]


def _hs97_constraints(x):
    return [
        17.1 * x[0]
        + 38.2 * x[1]
        + 204.2 * x[2]
        + 212.3 * x[3]
        + 623.4 * x[4]
        + 1495.5 * x[5]
        - 169 * x[0] * x[2]
        - 3580 * x[2] * x[4]
        - 3810 * x[3] * x[4]
        - 18500 * x[3] * x[5]
        - 24300 * x[4] * x[5]
        - 32.97,
        17.9 * x[0]
        + 36.8 * x[1]
        + 113.9 * x[2]
        + 169.7 * x[3]
        + 337.8 * x[4]
        + 1385.2 * x[5]
        - 139 * x[0] * x[2]
        - 2450 * x[3] * x[4]
        - 16600 * x[3] * x[5]
        - 17200 * x[4] * x[5]
        - 25.12,
        -273 * x[1] - 70 * x[3] - 819 * x[4] + 26000 * x[3] * x[4] + 29.08,
        159.9 * x[0] - 311 * x[1] + 587 * x[3] + 391 * x[4] + 2198 * x[5] - 14000 * x[0] * x[5] + 78.02,
    ]


def _hs113(x):
    return (
        x[0] ** 2
        + x[1] ** 2
        + x[0] * x[1]
        - 14 * x[0]
        - 16 * x[1]
        + (x[2] - 10) ** 2
        + 4 * (x[3] - 5) ** 2
        + (x[4] - 3) ** 2
        + 2 * (x[5] - 1) ** 2
        + 5 * x[6] ** 2
        + 7 * (x[7] - 11) ** 2
        + 2 * (x[8] - 10) ** 2
        + (x[9] - 7) ** 2
        + 45
    )


def _hs113_constraints(x):
    return [
        105 - 4 * x[0] - 5 * x[1] + 3 * x[6] - 9 * x[7],
        -10 * x[0] + 8 * x[1] + 17 * x[6] - 2 * x[7],
        8 * x[0] - 2 * x[1] - 5 * x[8] + 2 * x[9] + 12,
        -3 * (x[0] - 2) ** 2 - 4 * (x[1] - 3) ** 2 - 2 * x[2] ** 2 + 7 * x[3] + 120,
        -5 * x[0] ** 2 - 8 * x[1] - (x[2] - 6) ** 2 + 2 * x[3] + 40,
        -0.5 * (x[0] - 8) ** 2 - 2 * (x[1] - 4) ** 2 - 3 * x[4] ** 2 + x[5] + 30,
        -(x[0] ** 2) - 2 * (x[1] - 2) ** 2 + 2 * x[0] * x[1] - 14 * x[4] + 6 * x[5],
        3 * x[0] - 6 * x[1] - 12 * (x[8] - 8) ** 2 + 7 * x[9],
    ]


def _hs100(x):
    return (
        (x[0] - 10) ** 2
        + 5 * (x[1] - 12) ** 2
        + x[2] ** 4
        + 3 * (x[3] - 11) ** 2
        + 10 * x[4] ** 6
        + 7 * x[5] ** 2
        + x[6] ** 4
        - 4 * x[5] * x[6]
        - 10 * x[5]
        - 8 * x[6]
    )


def _hs100_constraints(x):
    return [
        127 - 2 * x[0] ** 2 - 3 * x[1] ** 4 - x[2] - 4 * x[3] ** 2 - 5 * x[4],
        282 - 7 * x[0] - 3 * x[1] - 10 * x[2] ** 2 - x[3] + x[4],
        196 - 23 * x[0] - x[1] ** 2 - 6 * x[5] ** 2 + 8 * x[6],
        -4 * x[0] ** 2 - x[1] ** 2 + 3 * x[0] * x[1] - 2 * x[2] ** 2 - 5 * x[5] + 11 * x[6],
    ]


def _hs38(x):
    return (
        100 * (x[1] - x[0] ** 2) ** 2
        + (1 - x[0]) ** 2
        + 90 * (x[3] - x[2] ** 2) ** 2
        + (1 - x[2]) ** 2
        + 10.1 * ((x[1] - 1) ** 2 + (x[3] - 1) ** 2)
        + 19.8 * (x[1] - 1) * (x[3] - 1)
    )


def _powell_badly_scaled(x):
    return (1e4 * x[0] * x[1] - 1) ** 2 + (jnp.exp(-x[0]) + jnp.exp(-x[1]) - 1.0001) ** 2


_inf = np.inf
HS106 = Standard(
    "hs106",
    [5000.0, 5000.0, 5000.0, 200.0, 350.0, 150.0, 225.0, 425.0],
    lambda x: x[0] + x[1] + x[2],
    7049.330923,
    inequalities=lambda x: [
        1 - 0.0025 * (x[3] + x[5]),
        1 - 0.0025 * (x[4] + x[6] - x[3]),
        1 - 0.01 * (x[7] - x[4]),
        x[0] * x[5] - 833.33252 * x[3] - 100 * x[0] + 83333.333,
        x[1] * x[6] - 1250 * x[4] - x[1] * x[3] + 1250 * x[3],
        x[2] * x[7] - 1250000 - x[2] * x[4] + 2500 * x[4],
    ],
    lower=np.array([100.0, 1000, 1000, 10, 10, 10, 10, 10]),
    upper=np.array([10000.0, 10000, 10000, 1000, 1000, 1000, 1000, 1000]),
)
HS102 = Standard(
    "hs102",
    [6.0] * 7,
    _hs102,
    911.880571,
    inequalities=_hs102_constraints,
    lower=np.array([0.1] * 6 + [0.01]),
    upper=10.0,
)
HS97 = Standard(
    "hs97",
    [0.0] * 6,
    lambda x: 4.3 * x[0] + 31.8 * x[1] + 63.3 * x[2] + 15.8 * x[3] + 68.5 * x[4] + 4.7 * x[5],
    3.1358091,
    inequalities=_hs97_constraints,
    lower=0.0,
    upper=np.array([0.31, 0.046, 0.068, 0.042, 0.028, 0.0134]),
    local=(4.0712463563,),
)

STANDARD = [
    HS106,
    HS102,
    HS97,
    Standard("hs1", [-2.0, 1.0], lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2, 0.0, lower=[-_inf, -1.5]),
    Standard(
        "hs5",
        [0.0, 0.0],
        lambda x: jnp.sin(x[0] + x[1]) + (x[0] - x[1]) ** 2 - 1.5 * x[0] + 2.5 * x[1] + 1,
        -np.sqrt(3) / 2 - np.pi / 3,
        lower=[-1.5, -3.0],
        upper=[4.0, 3.0],
    ),
    Standard("hs6", [-1.2, 1.0], lambda x: (1 - x[0]) ** 2, 0.0, equalities=lambda x: [10 * (x[1] - x[0] ** 2)]),
    Standard(
        "hs7",
        [2.0, 2.0],
        lambda x: jnp.log(1 + x[0] ** 2) - x[1],
        -np.sqrt(3),
        equalities=lambda x: [(1 + x[0] ** 2) ** 2 + x[1] ** 2 - 4],
    ),
    Standard(
        "hs10",
        [-10.0, 10.0],
        lambda x: x[0] - x[1],
        -1.0,
        inequalities=lambda x: [-3 * x[0] ** 2 + 2 * x[0] * x[1] - x[1] ** 2 + 1],
    ),
    Standard(
        "hs12",
        [0.0, 0.0],
        lambda x: 0.5 * x[0] ** 2 + x[1] ** 2 - x[0] * x[1] - 7 * x[0] - 7 * x[1],
        -30.0,
        inequalities=lambda x: [25 - 4 * x[0] ** 2 - x[1] ** 2],
    ),
    Standard(
        "hs21",
        [-1.0, -1.0],
        lambda x: 0.01 * x[0] ** 2 + x[1] ** 2 - 100,
        -99.96,
        inequalities=lambda x: [10 * x[0] - x[1] - 10],
        lower=[2.0, -50.0],
        upper=50.0,
    ),
    Standard(
        "hs26",
        [-2.6, 2.0, 2.0],
        lambda x: (x[0] - x[1]) ** 2 + (x[1] - x[2]) ** 4,
        0.0,
        equalities=lambda x: [(1 + x[1] ** 2) * x[0] + x[2] ** 4 - 3],
    ),
    Standard(
        "hs28",
        [-4.0, 1.0, 1.0],
        lambda x: (x[0] + x[1]) ** 2 + (x[1] + x[2]) ** 2,
        0.0,
        equalities=lambda x: [x[0] + 2 * x[1] + 3 * x[2] - 1],
    ),
    Standard(
        "hs35",
        [0.5, 0.5, 0.5],
        lambda x: (
            9
            - 8 * x[0]
            - 6 * x[1]
            - 4 * x[2]
            + 2 * x[0] ** 2
            + 2 * x[1] ** 2
            + x[2] ** 2
            + 2 * x[0] * x[1]
            + 2 * x[0] * x[2]
        ),
        1 / 9,
        inequalities=lambda x: [3 - x[0] - x[1] - 2 * x[2]],
        lower=0.0,
    ),
    Standard("hs38", [-3.0, -1.0, -3.0, -1.0], _hs38, 0.0, lower=-10.0, upper=10.0),
    Standard(
        "hs39",
        [2.0] * 4,
        lambda x: -x[0],
        -1.0,
        equalities=lambda x: [x[1] - x[0] ** 3 - x[2] ** 2, x[0] ** 2 - x[1] - x[3] ** 2],
    ),
    Standard(
        "hs43",
        [0.0] * 4,
        lambda x: x[0] ** 2 + x[1] ** 2 + 2 * x[2] ** 2 + x[3] ** 2 - 5 * x[0] - 5 * x[1] - 21 * x[2] + 7 * x[3],
        -44.0,
        inequalities=lambda x: [
            8 - x[0] ** 2 - x[1] ** 2 - x[2] ** 2 - x[3] ** 2 - x[0] + x[1] - x[2] + x[3],
            10 - x[0] ** 2 - 2 * x[1] ** 2 - x[2] ** 2 - 2 * x[3] ** 2 + x[0] + x[3],
            5 - 2 * x[0] ** 2 - x[1] ** 2 - x[2] ** 2 - 2 * x[0] + x[1] + x[3],
        ],
    ),
    Standard(
        "hs65",
        [-5.0, 5.0, 0.0],
        lambda x: (x[0] - x[1]) ** 2 + (x[0] + x[1] - 10) ** 2 / 9 + (x[2] - 5) ** 2,
        0.9535288567,
        inequalities=lambda x: [48 - x[0] ** 2 - x[1] ** 2 - x[2] ** 2],
        lower=[-4.5, -4.5, -5.0],
        upper=[4.5, 4.5, 5.0],
    ),
    Standard("hs100", [1.0, 2, 0, 4, 0, 1, 1], _hs100, 680.6300573, inequalities=_hs100_constraints),
    Standard("hs113", [2.0, 3, 5, 5, 1, 2, 7, 3, 6, 10], _hs113, 24.3062091, inequalities=_hs113_constraints),
    Standard("powell", [0.0, 1.0], _powell_badly_scaled, 0.0),
]
