"""Problems of the CUTEst collection with up to ten variables: our drivers by name beside SciPy by hand.

`sif2jax` has them as JAX functions, with published optima. A problem counts as *solved* by a design that holds the
constraints to 1e-6 of their gradients' size or better and whose objective is within 1e-4 of the published one (of its
size). A claim of convergence is judged apart from that, as there are several local optima: it is *false* if the design
is infeasible, or if a feasible design nearby is better, as a search by linear programming finds. Evaluations are
different points at which objective and constraints were asked for; derivatives come on top, and for none of the
contestants are they asked for anywhere else.

By hand SLSQP is given the `ftol` with which its designs are optimal to first order about as exactly as ours, 1e-9: with
its default, 1e-6, a quarter of what it solves is off by more than 1e-5 of the objective. L-BFGS-B gets 1e-12, and 1e-6
for its gradient; trust-constr has tolerances of 1e-8 by default, and keeps them.

`python -m benchmarks.cutest` prints tables and writes `cutest.json`, problem by problem.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.metadata
import json
import math
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax.flatten_util import ravel_pytree

import tesseract_flow as tf
from benchmarks.measuring import Bench, Row

# Those with up to ten variables and a published optimum.
_BOUNDED = """
AIRCRFTB BIGGS3 BIGGS5 BOX2 BRANIN CAMEL6 DEVGLA1B DEVGLA2B DIAGIQB EGGCRATEB ELATVIDUB DGOSPEC EXP2B FBRAINLS HART6
HATFLDA HATFLDB HS1 HS2 HS3 HS3MOD HS4 HS5 HS25 HS38 HS45 HS110 JUDGEB KOEBHELB LEVYMONT5 LEVYMONT6 LEVYMONT7 LEVYMONT8
LEVYMONT9 LEVYMONT10 LOGROS PALMER1 PALMER1A PALMER2 PALMER2A PALMER2B PALMER2E PALMER3 PALMER3A PALMER3B PALMER3E
PALMER4 PALMER4B PALMER4E PALMER5B PALMER6A PALMER6E PALMER7E PALMER8A PALMER8E PFIT1LS PFIT2LS PFIT3LS PFIT4LS PRICE4B
QINGB S368 TRIGON1B BQP1VAR
"""
_CONSTRAINED = """
ALSOTAME AVGASA AVGASB BIGGSC4 BURKEHAN BYRDSPHR CANTILVR CB2 CB3 CHACONN1 CHACONN2 CSFI1 CSFI2 DEGENQP DEMYMALO DIPIGRI
ELATTAR FLETCHER FLT GIGOMEZ1 GIGOMEZ2 GIGOMEZ3 HS6 HS7 HS8 HS9 HS10 HS11 HS12 HS13 HS14 HS15 HS16 HS17 HS18 HS19 HS20
HS21 HS21MOD HS22 HS23 HS24 HS26 HS27 HS28 HS29 HS30 HS31 HS32 HS33 HS34 HS35 HS35MOD HS35I HS36 HS37 HS39 HS40 HS41
HS42 HS43 HS44 HS46 HS47 HS48 HS49 HS50 HS51 HS52 HS53 HS54 HS55 HS56 HS57 HS60 HS61 HS62 HS63 HS64 HS65 HS66 HS68 HS69
HS71 HS72 HS73 HS76 HS76I HS77 HS78 HS79 HS80 HS81 HS83 HS86 HS87 HS93 HS95 HS96 HS97 HS98 HS100 HS101 HS102 HS103 HS104
HS105 HS106 HS107 HS108 HS111 HS111LNP HS112 HS113 HS114 HS268 LOOTSMA HIMMELBC HIMMELBD HIMMELBE LSNNODOC LSQFIT
MARATOS MINMAXBD MINMAXRB ODFITS OET1 OET2 OET3 OET4 OET5 OET6 OET7 PENTAGON POLAK1 POLAK4 POLAK5 POLAK6 SIMPLLPA
SIMPLLPB SIPOW1 SIPOW2 S316-322 S365 S365MOD MADSEN MAKELA1 MAKELA2 MATRIX2 ZECEVIC2 ZECEVIC3 ZECEVIC4 BT1 BT2 BT3 BT4
BT5 BT6 BT7 BT8 BT9 BT10 BT11 BT12 BT13 DUALC1 DUALC2 DUALC5 DUALC8 HATFLDH HS44NEW HS88 HS89 HS90 HS91 HS92 TAME
"""
BOUNDED, CONSTRAINED = _BOUNDED.split(), _CONSTRAINED.split()

_FOLDERS = ("_constrained_minimisation", "_quadratic_problems", "_bounded_minimisation")

OURS = ("auto", "trust-constr", "l-bfgs-b", "lbfgs")
BY_HAND, BY_HAND_TRUST, BY_HAND_LBFGSB = (f"SciPy's {name} by hand" for name in ("SLSQP", "trust-constr", "L-BFGS-B"))
_BY_HAND: dict[str, tuple[str, dict[str, Any]]] = {
    BY_HAND: ("SLSQP", {"maxiter": 300, "ftol": 1e-9}),
    BY_HAND_TRUST: ("trust-constr", {"maxiter": 1000}),
    BY_HAND_LBFGSB: ("L-BFGS-B", {"maxiter": 1000, "maxfun": 1000, "ftol": 1e-12, "gtol": 1e-6}),
}
_BOUNDS_ALONE = ("l-bfgs-b", BY_HAND_LBFGSB)
FEASIBLE = 1e-6  # a violation, in units of 1 or of its limit's size
SOLVED = 1e-4  # of the published objective's size, at least 1
MOST_EVALUATIONS = 1000
# Half of the bounded problems have several local optima, or a published value that is another problem's, and which of
# them is reached decides a few of the figures.
_LUCK = 1.1


@dataclasses.dataclass(frozen=True)
class Standard:
    """One problem as functions of one vector. `constraints` are equalities, then inequalities that are >= 0."""

    name: str
    start: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    objective: Callable[[Any], Any]
    equalities: Callable[[Any], Any] | None
    inequalities: Callable[[Any], Any] | None
    optimum: float

    @property
    def has_constraints(self) -> bool:
        return self.equalities is not None or self.inequalities is not None

    def problem(self) -> tf.Problem:
        """As a user of ours describes it."""

        def evaluate(x: jax.Array) -> tf.Evaluation:
            values = {}
            if self.equalities is not None:
                values["equal"] = self.equalities(x)
            if self.inequalities is not None:
                values["at least"] = self.inequalities(x)
            return tf.Evaluation(self.objective(x), values)

        demands = {}
        if self.equalities is not None:
            demands["equal"] = tf.Constraint(equals=0.0)
        if self.inequalities is not None:
            demands["at least"] = tf.Constraint(lower=0.0)
        bounds = (self.lower, self.upper)
        return tf.Problem(jnp.asarray(self.start), evaluate, bounds=bounds, constraints=demands, name=self.name)

    def violation(self, x: np.ndarray) -> float:
        """Of constraints and bounds, in units of the Jacobian's row times the design where that is larger than 1."""
        worst = max(float(np.maximum(self.lower - x, x - self.upper).max(initial=0.0)), 0.0)
        for values, is_equal in ((self.equalities, True), (self.inequalities, False)):
            if values is not None:
                c, rows = np.asarray(values(x)), np.asarray(jax.jacfwd(values)(x))
                size = np.maximum(1.0, np.abs(rows * np.maximum(np.abs(x), 1.0)).max(axis=1, initial=0.0))
                worst = max(worst, float(((np.abs(c) if is_equal else np.maximum(-c, 0.0)) / size).max(initial=0.0)))
        return worst


def standards(names: Iterable[str] = (*CONSTRAINED, *BOUNDED)) -> Iterator[Standard]:
    """The problems of these names that have a published optimum."""
    for name in names:
        problem = _named(name)
        if (optimum := problem.expected_objective_value) is not None and math.isfinite(float(optimum)):
            yield _standard(problem, float(optimum))


def _named(name: str) -> Any:
    """A problem of the collection, from its own module.

    `import sif2jax` takes minutes, as it makes every problem that there is, up to one of half a gigabyte. So its
    packages stand here without what their `__init__` would do.
    """
    root = Path(str(importlib.metadata.distribution("sif2jax").locate_file("sif2jax")))
    for package in ("sif2jax", "sif2jax.cutest", *(f"sif2jax.cutest.{folder}" for folder in _FOLDERS)):
        if package not in sys.modules:
            sys.modules[package] = bare = types.ModuleType(package)
            bare.__path__ = [str(root.joinpath(*package.split(".")[1:]))]
    for folder in _FOLDERS:
        stem = name.lower().replace("-", "_")
        if (root / "cutest" / folder / f"{stem}.py").exists():
            module = importlib.import_module(f"sif2jax.cutest.{folder}.{stem}")
            return getattr(module, name.replace("-", "_"))()
    raise KeyError(f"sif2jax has no problem {name!r} in {', '.join(_FOLDERS)}")


def _standard(problem: Any, optimum: float) -> Standard:
    start, unravel = ravel_pytree(problem.y0)
    dtype = np.result_type(float)
    start = np.asarray(start, dtype)
    sides = [np.full(start.shape, -np.inf), np.full(start.shape, np.inf)]
    if (bounds := getattr(problem, "bounds", None)) is not None:
        sides = [np.asarray(ravel_pytree(side)[0], dtype) for side in bounds]

    def values(which: int) -> Callable[[Any], Any] | None:
        if not hasattr(problem, "constraint") or problem.constraint(problem.y0)[which] is None:
            return None
        return lambda x: ravel_pytree(problem.constraint(unravel(x))[which])[0]

    return Standard(
        problem.name,
        start,
        *sides,
        objective=lambda x: jnp.asarray(problem.objective(unravel(x), problem.args)).reshape(()),
        equalities=values(0),
        inequalities=values(1),
        optimum=optimum,
    )


@dataclasses.dataclass(frozen=True)
class Found:
    """What a contestant found: where it ended, how many points it looked at, and whether it claims convergence."""

    problem: str
    driver: str
    value: float
    violation: float
    evaluations: int
    claims: bool
    reason: str
    is_solved: bool
    is_false: bool
    seconds: float


def by_driver(standard: Standard, driver: str) -> Found:
    """One of our drivers, with everything else as it comes."""
    began = time.monotonic()
    stop = [tf.optimize.FirstOrder(1e-6), tf.optimize.MaxEvaluations(MOST_EVALUATIONS)]
    try:
        result = tf.optimize(standard.problem(), driver, stop=stop, transform=jax.jit)
    except tf.errors.TesseractFlowError as error:
        return judged(standard, driver, standard.start, 0, False, str(error).partition("\n")[0], began)
    design = np.asarray(result.design)
    return judged(standard, driver, design, result.evaluations, result.converged, result.reason, began)


def by_hand(standard: Standard, name: str = BY_HAND) -> Found:
    """A method of SciPy as its documentation shows it, with derivatives by JAX and as many iterations as it needs."""
    began = time.monotonic()
    method, options = _BY_HAND[name]
    points: set[bytes] = set()

    def counted(fn: Callable[[Any], Any]) -> Callable[[np.ndarray], np.ndarray]:
        compiled = jax.jit(fn)

        def call(x: np.ndarray) -> np.ndarray:
            points.add(np.asarray(x).tobytes())
            return np.asarray(compiled(x))

        return call

    constraints: list[Any] = []
    for kind, most, values in (("eq", 0.0, standard.equalities), ("ineq", np.inf, standard.inequalities)):
        if values is not None:
            fun, jac = counted(values), counted(jax.jacrev(values))
            if method == "SLSQP":
                constraints.append({"type": kind, "fun": fun, "jac": jac})
            else:
                constraints.append(scipy.optimize.NonlinearConstraint(fun, 0.0, most, jac=jac))  # type: ignore[arg-type]
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a quasi-Newton matrix, for each function that is linear
        try:
            found = scipy.optimize.minimize(
                counted(standard.objective),
                standard.start,
                jac=counted(jax.grad(standard.objective)),
                bounds=scipy.optimize.Bounds(standard.lower, standard.upper),  # type: ignore[arg-type]
                constraints=constraints,
                method=method,
                options=options,
            )
        except (ValueError, np.linalg.LinAlgError) as error:  # it ran into NaN
            return judged(standard, name, standard.start, len(points), False, str(error), began)
    return judged(standard, name, found.x, len(points), bool(found.success), found.message, began)


def judged(
    standard: Standard, driver: str, x: np.ndarray, evaluations: int, claims: bool, reason: str, began: float
) -> Found:
    value, violation = float(standard.objective(x)), standard.violation(x)
    allowed = SOLVED * max(1.0, abs(standard.optimum))
    is_solved = bool(violation <= FEASIBLE and abs(value - standard.optimum) <= allowed)
    is_false = claims and not is_solved and (violation > FEASIBLE or _is_improvable(standard, x, value))
    seconds = time.monotonic() - began
    return Found(standard.name, driver, value, violation, evaluations, claims, reason, is_solved, is_false, seconds)


def _is_improvable(standard: Standard, x: np.ndarray, value: float) -> bool:
    """Whether there is a better feasible design within a hundredth of the design's size.

    Looked for along the step of steepest descent that linearised constraints and bounds allow.
    """
    reach = 1e-2 * np.maximum(1.0, np.abs(x))
    gradient = np.asarray(jax.grad(standard.objective)(x))
    sides: dict[str, Any] = {}
    if standard.equalities is not None:
        sides["A_eq"] = np.asarray(jax.jacfwd(standard.equalities)(x))
        sides["b_eq"] = -np.asarray(standard.equalities(x))
    if standard.inequalities is not None:
        sides["A_ub"] = -np.asarray(jax.jacfwd(standard.inequalities)(x))
        sides["b_ub"] = np.asarray(standard.inequalities(x))
    box = list(zip(np.maximum(-reach, standard.lower - x), np.minimum(reach, standard.upper - x), strict=True))
    found = scipy.optimize.linprog(gradient, bounds=box, **sides)
    if not found.success:
        return False
    enough = 1e-2 * SOLVED * max(1.0, abs(value))
    # What uses up the tolerance is no better: an objective that is a constraint's value too would seem to gain by it.
    allowed = max(standard.violation(x), 1e-2 * FEASIBLE)
    for part in (1.0, 0.3, 0.1, 0.03, 0.01):
        there = x + part * found.x
        if float(standard.objective(there)) < value - enough and standard.violation(there) <= allowed:
            return True
    return False


def measure(names: Sequence[str], drivers: Sequence[str], say: Callable[[Found], None]) -> list[Found]:
    """All contestants on all problems that they can be given."""
    found = []
    for k, standard in enumerate(standards(names)):
        for driver in drivers:
            if standard.has_constraints and driver in _BOUNDS_ALONE:
                continue
            found.append(by_hand(standard, driver) if driver in _BY_HAND else by_driver(standard, driver))
            say(found[-1])
        if k % 20 == 19:
            jax.clear_caches()  # each problem compiles a dozen functions, which no other one needs
    return found


def cutest_rows(bench: Bench) -> list[Row]:
    """On constrained problems their default and trust-constr, and on bounded ones what is made for these, each beside
    SciPy's own by hand."""
    constrained = ("HS13", "HS35", "HS71") if bench.is_quick else CONSTRAINED
    bounded = ("HS1", "HS4", "HS5") if bench.is_quick else BOUNDED
    found = measure(constrained, ("auto", BY_HAND, "trust-constr", BY_HAND_TRUST), lambda _: None)
    of_bounded = measure(bounded, ("l-bfgs-b", "lbfgs", BY_HAND_LBFGSB), lambda _: None)
    bench.folder.mkdir(parents=True, exist_ok=True)
    kept = [dataclasses.asdict(one) for one in (*found, *of_bounded)]
    (bench.folder / "cutest.json").write_text(json.dumps(kept, indent=1) + "\n")
    return [
        *rows_of(found, "auto"),
        *rows_of(found, "trust-constr", BY_HAND_TRUST, "cutest-trust-constr"),
        *rows_of(of_bounded, "l-bfgs-b", BY_HAND_LBFGSB, "cutest-bounded", "bounded", _LUCK),
        *rows_of(of_bounded, "lbfgs", BY_HAND_LBFGSB, "cutest-lbfgs", "bounded", _LUCK),
    ]


def rows_of(
    found: Sequence[Found],
    ours: str,
    peer: str = BY_HAND,
    key: str = "cutest",
    kind: str = "constrained",
    goal: float = 1.0,
) -> list[Row]:
    """What is compared: problems left unsolved, evaluations on those that both solve, claims that are false."""
    by_name = {name: {one.problem: one for one in found if one.driver == name} for name in (ours, peer)}
    # One that solves a problem and does not know it goes on to the end of its budget, which says nothing of the other.
    known = [{name for name, one in by_name[who].items() if one.is_solved and one.claims} for who in (ours, peer)]
    both = sorted(set.intersection(*known))
    work = f"{len(by_name[ours])} {kind} problems of CUTEst up to 10 variables, `{ours}`"

    def count(which: Callable[[Found], int], name: str, among: Iterable[str]) -> float:
        return float(sum(which(by_name[name][problem]) for problem in among))

    def compared(key: str, what: str, which: Callable[[Found], int], among: Iterable[str]) -> Row:
        names = list(among)
        return Row(key, f"{work}: {what}", "", count(which, ours, names), count(which, peer, names), peer, goal)

    n_false, theirs = (count(lambda one: one.is_false, name, by_name[ours]) for name in (ours, peer))
    return [
        compared(f"{key}-solved", "not solved", lambda one: not one.is_solved, by_name[ours]),
        compared(key, f"evaluations where both solve it and say so ({len(both)})", lambda one: one.evaluations, both),
        Row(f"{key}-claims", f"{work}: false claims", "", n_false, 0.0, f"none (by hand {theirs:.0f})", 1.0),
    ]


def table(found: Sequence[Found]) -> str:
    """Solved, evaluations on what all solve, and false claims, of each contestant."""
    drivers = list(dict.fromkeys(one.driver for one in found))
    solved = {driver: {one.problem for one in found if one.driver == driver and one.is_solved} for driver in drivers}
    by_all = set.intersection(*solved.values()) if solved else set()
    lines = [
        f"| driver | problems | solved | evaluations on the {len(by_all)} that all solve | claims | false claims |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for driver in drivers:
        own = [one for one in found if one.driver == driver]
        evaluations = sum(one.evaluations for one in own if one.problem in by_all)
        claims, false = sum(one.claims for one in own), sum(one.is_false for one in own)
        lines.append(f"| {driver} | {len(own)} | {len(solved[driver])} | {evaluations} | {claims} | {false} |")
    return "\n".join(lines)


def main() -> None:
    """Print who solved what."""
    parser = argparse.ArgumentParser(prog="benchmarks.cutest", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/cutest.json"))
    parser.add_argument("--only", nargs="*", help="names of problems")
    parser.add_argument("--drivers", nargs="*", default=[*OURS, *_BY_HAND])
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)

    def say(found: Found) -> None:
        verdict = "solved" if found.is_solved else "FALSE" if found.is_false else "-"
        print(
            f"{found.problem:10} {found.driver:22} {verdict:6} {found.evaluations:5} {found.value:.8g} "
            f"{found.violation:.1e} {found.claims} {found.seconds:.1f}s {found.reason[:90]}",
            file=sys.stderr,
            flush=True,
        )

    found = measure(arguments.only or [*CONSTRAINED, *BOUNDED], arguments.drivers, say)
    for kind, names in (("Constrained", CONSTRAINED), ("Bounded", BOUNDED)):
        if of_kind := [one for one in found if one.problem in names]:
            print(f"{kind} problems\n\n{table(of_kind)}\n")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps([dataclasses.asdict(one) for one in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
