"""What `evaluate` returns, looked at before anything runs: shapes and dtypes, by tracing; each fault with its remedy.

Not here: what a problem says of itself, which `problem` looks at where it is written down.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from tesseract_flow.autodiff import informed
from tesseract_flow.autodiff.carried import Left, searches_of
from tesseract_flow.errors import ProblemError, closest, did_you_mean
from tesseract_flow.optimize.partition import named_leaves, names_twice
from tesseract_flow.optimize.problem import Evaluation, Problem, as_evaluation
from tesseract_flow.optimize.traced import tracing


def misfit_fault(answer: Evaluation) -> tuple[str, str] | None:
    """What is wrong with an evaluation's misfit, and the remedy, as sentences; None if it has none, or a good one."""
    if answer.misfit is None:
        return None
    if answer.objective is not None:
        return (
            "it returns an objective and a misfit, and the objective is half the sum of squares of the misfit.",
            "Return the misfit alone. A term that is added to it, such as a regularisation, is a part of the misfit: "
            "misfit={'data': ..., 'prior': sqrt(weight) * (x - x0)}.",
        )
    leaves = named_leaves(answer.misfit)
    for name, leaf in leaves:
        what = "its misfit" if name == "(root)" else f"its misfit has a leaf {name!r} that"
        if not eqx.is_array_like(leaf):
            return f"{what} is {type(leaf).__name__} {leaf!r}, expected an array.", "Leave it out, or put it into aux."
        dtype = jnp.asarray(leaf).dtype
        if jnp.issubdtype(dtype, jnp.complexfloating):
            return f"{what} is complex ({dtype}), expected real numbers.", "Give its real and its imaginary part."
        if not jnp.issubdtype(dtype, jnp.floating):
            return (
                f"{what} is of dtype {dtype}, expected real floating point.",
                "Convert it inside evaluate; of a flag or a count there is no slope to follow.",
            )
    if not sum(jnp.size(leaf) for _, leaf in leaves):
        return "its misfit has no entries.", "Return the arrays that should be zero."
    return None


def constraint_fault(name: str, value: Any) -> tuple[str, str] | None:
    """What is wrong with the value of a constraint, and the remedy, as sentences; None if nothing is."""
    if isinstance(value, bool | int) or eqx.is_array_like(value):
        return None
    return (
        f"it returns the constraint {name!r} as {type(value).__name__}, expected an array.",
        "Give each part of it a name of its own, or make one array of them (jax.flatten_util.ravel_pytree(...)[0]).",
    )


def check_evaluation(problem: Problem) -> Evaluation:
    """The `Evaluation` that the problem's function will give, with `jax.ShapeDtypeStruct` in place of arrays.

    Traces `evaluate` once, and runs nothing; unless only answers tell what it needs (the shapes of a component without
    `abstract_eval`, a text at which it looks): then it is run once at the start.

    Raises:
        ProblemError: `evaluate` wants the value of what is traced; the objective is not a real scalar, or a constraint
            is named that `evaluate` does not return.
    """

    def evaluate(varying, scheduled):
        return as_evaluation(_call(problem, problem.partition.combine(varying), scheduled))

    # As arguments, as they are in a run: what looks at their values fails here, and not at the first step.
    scheduled = problem.scheduled()
    with tracing(problem.name, list(problem.design) if isinstance(problem.design, Mapping) else [], list(scheduled)):
        closed, shapes, others = informed(
            lambda: eqx.filter_make_jaxpr(evaluate)(problem.partition.varying, scheduled),
            lambda: evaluate(problem.start, scheduled),
        )
    template = eqx.combine(shapes, others, is_leaf=lambda leaf: leaf is None)
    template = dataclasses.replace(template, coupled=_coupled(closed.jaxpr))
    _check_objective(problem.name, template.objective)
    returned = sorted(template.constraints)
    for name, constraint in (problem.constraints or {}).items():
        if name not in template.constraints:
            came, remedy = other_names(name, returned)
            raise ProblemError(f"Problem {problem.name!r} constrains {name!r}, but evaluate returns {came}\n{remedy}")
        constraint.check_against(name, template.constraints[name])
    _check_flags(problem, named_leaves(template.aux))
    return template


def _coupled(jaxpr: Any) -> dict[str, Left]:
    """What fixed points leave for the next evaluation, by name; those that share one are numbered."""
    found: dict[str, Left] = {}
    for title, left in searches_of(jaxpr):
        # Numbered so that they stay in order when sorted, as JAX sorts the keys of dictionaries.
        n = sum(key.partition(" #")[0] == title for key in found)
        found[f"{title} #{n + 1:03d}" if n else title] = left
    return found


def other_names(name: str, returned: Collection[str]) -> tuple[str, str]:
    """Of a constraint that is demanded and not returned: what is, and what to do, in words."""
    came = f"the constraints {sorted(returned)}" if returned else "no constraints"
    if (meant := closest(name, returned)) is not None:
        remedy = f"Call it {meant!r} in constraints= as well, or {name!r} in what evaluate returns."
    else:
        remedy = f"Return Evaluation(objective, constraints={{{name!r}: ...}}), or correct the name in constraints=."
    return f"{came}.{did_you_mean(name, returned)}", remedy


def _call(problem: Problem, design: PyTree, scheduled: Mapping[str, Any]) -> Any:
    answer = problem.answer(design, scheduled)
    has_misfit = isinstance(answer, Evaluation) and answer.misfit is not None
    if has_misfit and (fault := misfit_fault(answer)):
        raise ProblemError(f"evaluate of problem {problem.name!r}: {fault[0]}\n{fault[1]}")
    value = answer.objective if isinstance(answer, Evaluation) else answer
    if not has_misfit and not eqx.is_array_like(value):
        raise ProblemError(
            f"evaluate of problem {problem.name!r} returned {type(value).__name__} as its objective, expected a "
            "scalar.\nReturn the objective, or tesseract_flow.Evaluation(objective, constraints={...}, aux=...), or a "
            "misfit in its place."
        )
    if isinstance(answer, Evaluation) and not isinstance(answer.constraints or {}, Mapping):
        raise ProblemError(
            f"evaluate of problem {problem.name!r} returned constraints as {type(answer.constraints).__name__}, "
            "expected a dictionary {name: value}."
        )
    for name, value in (answer.constraints or {}).items() if isinstance(answer, Evaluation) else ():
        if fault := constraint_fault(name, value):
            raise ProblemError(f"evaluate of problem {problem.name!r}: {fault[0]}\n{fault[1]}")
    return answer


def _check_flags(problem: Problem, leaves: Sequence[tuple[str, Any]]) -> None:
    for name in problem.valid_names:
        if fault := flag_fault(name, leaves):
            raise ProblemError(f"Problem {problem.name!r}: {fault}")


def flag_fault(name: str, leaves: Sequence[tuple[str, Any]]) -> str | None:
    """What is wrong with a flag that `valid` names, and the remedy on a line of its own.

    Args:
        leaves: those of aux, by name; what evaluate computes has a shape and a dtype.
    """
    aux = dict(leaves)
    if name not in aux:
        return (
            f"it looks for the flag {name!r}, but evaluate returns "
            f"{'aux with ' + ', '.join(map(repr, aux)) if aux else 'no aux'}.{did_you_mean(name, aux)}\n"
            f"Return Evaluation(objective, aux={{{name!r}: ...}}), or correct the name."
        )
    if name in names_twice([other for other, _ in leaves]):
        return (
            f"the flag {name!r} is the name of more than one leaf of aux, as a dot joins the names along a path.\n"
            "Give keys that differ, without dots."
        )
    flag = aux[name]
    if not isinstance(flag, jax.ShapeDtypeStruct):
        return (
            f"the flag {name!r} is the constant {flag!r}, the same at each design.\n"
            "It has to be a value that evaluate computes: an array of booleans."
        )
    if flag.dtype != bool:
        return (
            f"the flag {name!r} has dtype {flag.dtype}, expected bool.\n"
            "Compare it with something inside evaluate, for example residual < 1e-8."
        )
    return None


def _check_objective(name: str, objective: jax.ShapeDtypeStruct) -> None:
    if objective.shape != ():
        raise ProblemError(
            f"The objective of problem {name!r} must be a scalar, received an array of shape {objective.shape}.\n"
            "Reduce it inside evaluate, for example with jax.numpy.sum, or index the entry that you mean."
        )
    if not jnp.issubdtype(objective.dtype, jnp.floating):
        raise ProblemError(
            f"The objective of problem {name!r} must be a real floating-point number, received dtype "
            f"{objective.dtype}.\nConvert it inside evaluate; of a complex number take the real part or the modulus."
        )
