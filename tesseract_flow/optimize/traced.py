"""What an author's function may not do while it is traced, in the words of its author."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import jax

from tesseract_flow.autodiff.prefixes import SORTED
from tesseract_flow.errors import ProblemError, did_you_mean
from tesseract_flow.named import line_of

# What JAX raises where Python wants the value of something that is traced.
NEEDS_A_VALUE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
)
UNSORTED = "sorting pytree dictionary keys"  # in what JAX says of keys that it cannot sort
REMEDY = (
    "evaluate is traced, so no value is known while it runs: in place of `if` on a value use jnp.where or "
    "jax.lax.cond; in place of float(...), np.asarray(...) or .item() keep the array."
)


@contextlib.contextmanager
def tracing(problem: str, design: Iterable[str] = (), scheduled: Iterable[str] = ()) -> Iterator[None]:
    """Trace an author's `evaluate`.

    Args:
        design, scheduled: names that it can ask for.

    Raises:
        ProblemError: it wants the value of something that is traced, looks for a name that is not there, or makes a
            dictionary whose keys JAX cannot sort.
    """
    try:
        yield
    except KeyError as error:
        name, known = error.args[0] if error.args else "", [*design, *scheduled]
        there = [
            f"{kind} {', '.join(map(repr, names))}"
            for kind, names in (("The design has", design), ("scheduled are", scheduled))
            if names
        ]
        raise ProblemError(
            f"evaluate of problem {problem!r} asks for {name!r}{line_of(error)}, and there is no such key."
            f"{did_you_mean(str(name), known)} {'; '.join(there)}."
        ) from error
    except NEEDS_A_VALUE as error:
        text = str(error).partition("\n")[0]
        raise ProblemError(
            f"evaluate of problem {problem!r} needs the value of what is traced{line_of(error)}: {text}\n{REMEDY}"
        ) from error
    except ValueError as error:
        if UNSORTED not in str(error):
            raise
        raise ProblemError(
            f"evaluate of problem {problem!r} makes a dictionary whose keys have no order{line_of(error)}, such as "
            f"texts beside numbers, and JAX sorts them.\n{SORTED}"
        ) from error
