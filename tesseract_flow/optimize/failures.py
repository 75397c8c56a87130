"""When an evaluation fails: what counts as one, and what is done about it.

A failed evaluation says something about a design: the mesh folds, the solver diverges, NaN comes out. It is caught
here, where a point is looked at, and becomes a `Failure`: a value, which the searches and steps of `moves` go back
from. Nothing else of it reaches anybody, so optimiser state, best design and multipliers are made of good points alone.

What is wrong with the question (a missing endpoint, a refused token, a mistake in `evaluate`) would be wrong at every
design, and is raised at once. A component that cannot be reached says nothing about the design: it is waited for.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeVar, get_args

import jax
import numpy as np
from jaxtyping import PyTree

from tesseract_flow.client.caches.probation import on_probation
from tesseract_flow.errors import (
    CallReleased,
    CallTimeout,
    ComponentFailed,
    EvaluationFailed,
    InvalidEvaluation,
    InvalidInput,
    InvalidType,
    NonFiniteError,
    NotConverged,
    Overloaded,
    ProblemError,
    TesseractFlowError,
    TransientError,
    cause,
    did_you_mean,
    in_brief,
)
from tesseract_flow.optimize.evaluator import Evaluator, Sample, Scheduled, Weights
from tesseract_flow.optimize.partition import named_leaves

T = TypeVar("T")

_log = logging.getLogger("tesseract_flow")


class _ToldByUs(logging.Filter):
    """While evaluations are under way, JAX does not log what their callbacks raise.

    It raises that as well, and the event says it in the author's words; a search that steps back from a wall would
    print a traceback at each trial. Callbacks run in threads of XLA's, so that the evaluations are counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock, self._n_under_way = threading.Lock(), 0
        logging.getLogger("jax._src.callback").addFilter(self)

    def __enter__(self) -> None:
        with self._lock:
            self._n_under_way += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_under_way -= 1

    def filter(self, record: logging.LogRecord) -> bool:
        return self._n_under_way == 0


_told_by_us = _ToldByUs()

FailureAction = Literal["shrink", "skip", "stop", "raise"]
_LONGEST_PAUSE = 60.0  # seconds between two questions to a component that is away
_LONGEST_TEXT = 400  # characters of a component's own text in an event

# An input that a component refuses is a wall like any other: what does not depend on the design would have been refused
# at the start.
_OF_THE_DESIGN = (ComponentFailed, CallTimeout, InvalidInput, NonFiniteError, InvalidEvaluation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailurePolicy:
    """What to do when an evaluation fails: NaN or inf in the objective, a constraint or the gradient, an error that the
    component raised, inputs that it refuses, a time-out, or an answer that is not valid (`Problem.valid`).

    Attributes:
        action: `"shrink"`: back along the step towards the last good design, until an evaluation succeeds. `"skip"`:
            drop the update and go on from the last good design; for drivers that will try something else then, such as
            those with noise or a schedule. Line searches step back by themselves with either. `"stop"`: end with the
            best design so far. `"raise"`: end with an error. All end like that where the start itself fails.
        retries: how often the same point is evaluated again before it counts as failed; for failures that may pass.
        shrinks: how often a step is shortened before it is given up; then once more with the driver's memory cleared.
        factor: by which it is shortened each time.
        memory: of the driver, after a dropped update: `"keep"`, or `"reset"`.
        in_a_row: after so many failed evaluations without a good one between them, the run ends with the best so far.
        patience: seconds to go on asking for a component that cannot be reached, once the retries of its calls are used
            up; not at the start, where it was never there.

    Raises:
        ProblemError: a value that cannot be used.
    """

    action: FailureAction = "shrink"
    retries: int = 0
    shrinks: int = 10
    factor: float = 0.5
    memory: Literal["keep", "reset"] = "keep"
    in_a_row: int = 30
    patience: float = 300.0

    def __post_init__(self):
        for name, allowed in (("action", get_args(FailureAction)), ("memory", ("keep", "reset"))):
            if (value := getattr(self, name)) not in allowed:
                raise ProblemError(
                    f"FailurePolicy: {name} must be one of {', '.join(map(repr, allowed))}, received {value!r}."
                    f"{did_you_mean(str(value), allowed)}"
                )
        for name, least in (("retries", 0), ("shrinks", 0), ("in_a_row", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ProblemError(f"FailurePolicy: {name} must be {least} or more, received {value!r}.")
        if not 0 < self.factor < 1:
            raise ProblemError(f"FailurePolicy: factor must lie between 0 and 1, received {self.factor!r}.")
        if not self.patience >= 0:
            raise ProblemError(f"FailurePolicy: patience must be 0 seconds or more, received {self.patience!r}.")


def as_policy(on_failure: FailurePolicy | str | Mapping[str, Any]) -> FailurePolicy:
    """What `optimize(on_failure=...)` takes, as a policy: one, the name of an action, or settings from a form.

    Raises:
        ProblemError: nothing of the kind.
    """
    match on_failure:
        case FailurePolicy():
            return on_failure
        case str():
            return FailurePolicy(action=on_failure)  # type: ignore[arg-type]
        case Mapping():
            known = [field.name for field in dataclasses.fields(FailurePolicy)]
            for key in on_failure:
                if key not in known:
                    raise ProblemError(
                        f"Unknown failure setting {key!r}.{did_you_mean(str(key), known)}\n"
                        f"Known are: {', '.join(known)}."
                    )
            return FailurePolicy(**on_failure)
    raise ProblemError(
        f"on_failure takes one of {', '.join(map(repr, get_args(FailureAction)))}, or a FailurePolicy; received "
        f"{on_failure!r}."
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Failure:
    """An evaluation that failed: at which design, and what was said."""

    at: str
    text: str
    error: Exception


class Listener(Protocol):
    """Who knows what a run was asked for while a step is made; see `steering`."""

    def before_evaluation(self, step: int, number: int) -> None: ...
    def is_asked_again(self, step: int, number: int) -> bool: ...


class Attempts:
    """Looks at points as the policy says, and keeps the books of the step under way.

    Attributes:
        n_failed: evaluations that failed since construction.
        n_in_a_row: of these, how many since the last good one.
    """

    def __init__(self, evaluator: Evaluator, policy: FailurePolicy, sleep: Callable[[float], object] = time.sleep):
        self.policy = policy
        self.n_failed = 0
        self.n_in_a_row = 0
        self._evaluator = evaluator
        self._sleep = sleep
        self._step = self._n_asked = 0
        self._steering: Listener | None = None
        self._decisive = ""
        self._known: dict[tuple[bytes, ...], Failure] = {}
        self._failures: list[Failure] = []
        self._notes: list[str] = []

    def listen(self, steering: Listener) -> None:
        """Look before each evaluation whether somebody has asked for something."""
        self._steering = steering

    def begin(self, step: int, n_in_a_row: int = 0, *, decisive: str = "") -> None:
        """Start a step. Trial points of the last one will not come back.

        Args:
            step: its number.
            n_in_a_row: evaluations that have failed since the last good one.
            decisive: what is evaluated, such as "the start", if there is nothing to go back to from there.
        """
        self._evaluator.forget()
        self._step, self.n_in_a_row, self._decisive = step, n_in_a_row, decisive
        self._n_asked = 0
        self._known.clear()
        self._failures.clear()
        self._notes.clear()

    def __call__(self, varying: PyTree, weights: Weights, scheduled: Scheduled) -> Sample | Failure:
        """The sample at a point, or how it failed.

        Raises:
            EvaluationFailed: it failed, and the policy is to go no further.
            TransientError: a component is away for longer than the policy's patience.
        """
        return self.attempt(varying, weights, lambda: self._evaluator(varying, weights, scheduled))

    def attempt(self, varying: PyTree, about: Any, evaluate: Callable[[], T]) -> T | Failure:
        """What an evaluation at a point finds, or how it failed.

        Args:
            varying: the point.
            about: what else is asked there; a question that failed in this step is not asked again.
            evaluate: asks it.

        Raises:
            EvaluationFailed: it failed, and the policy is to go no further.
            TransientError: a component is away for longer than the policy's patience.
        """
        key = tuple(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((varying, about)))
        if key in self._known:
            return self._known[key]
        try:
            found = self._repeatedly(varying, evaluate)
        except Exception as error:
            if not is_of_the_design(error):
                raise
            failure = Failure(in_brief(_named(varying)), own_words(error), error)
        else:
            self.n_in_a_row = 0
            return found
        self.n_failed += 1
        self.n_in_a_row += 1
        self._known[key] = failure
        self._failures.append(failure)
        if self._decisive or self.policy.action in ("stop", "raise") or self.n_in_a_row >= self.policy.in_a_row:
            raise self.given_up() from failure.error
        _log.warning("Step %d: the evaluation at %s failed. %s", self._step, failure.at, failure.text)
        return failure

    def _repeatedly(self, varying: PyTree, evaluate: Callable[[], T]) -> T:
        for k in range(self.policy.retries):
            try:
                return self._patiently(evaluate)
            except Exception as error:
                if not is_of_the_design(error) or isinstance(error, InvalidInput):
                    raise
                self._note(
                    f"an evaluation failed at {in_brief(_named(varying))} and was repeated "
                    f"({k + 1} of {self.policy.retries}): {own_words(error)}"
                )
        return self._patiently(evaluate)

    def _patiently(self, evaluate: Callable[[], T]) -> T:
        waited, pause = 0.0, 1.0
        while True:
            try:
                return self._steered(evaluate)
            except TransientError as error:
                if self._step == 0 or waited >= self.policy.patience:
                    if waited:
                        error.add_note(f"It was waited for, {waited:.0f} s in all (FailurePolicy.patience).")
                    raise
                asked = error.retry_after if isinstance(error, Overloaded) and error.retry_after else 0.0
                wait = min(max(pause, asked), self.policy.patience - waited)
                self._note(f"waited {wait:.3g} s for a component: {_first_line(error)}")
                self._sleep(wait)
                waited, pause = waited + wait, min(2 * pause, _LONGEST_PAUSE)

    def _steered(self, evaluate: Callable[[], T]) -> T:
        if self._steering is None:
            return evaluated(evaluate)
        while True:
            self._n_asked += 1
            self._steering.before_evaluation(self._step, self._n_asked)
            try:
                return evaluated(evaluate)
            except CallReleased as error:
                if not self._steering.is_asked_again(self._step, self._n_asked):
                    raise
                self._note(f"an evaluation was made once more: {_first_line(error)}")

    def note(self, what: str) -> None:
        """Put down what was done about the failures of this step."""
        self._notes.append(what)

    def _note(self, what: str) -> None:
        _log.warning("Step %d: %s", self._step, what)
        self._notes.append(what)

    def given_up(self) -> EvaluationFailed:
        """The error that ends the step because of its last failure."""
        last = self._failures[-1]
        if self._decisive:
            return EvaluationFailed(
                f"{last.text}\nThis was the evaluation of {self._decisive}, at {last.at}. There is no good design to "
                "go back to.\nStart from a design that can be evaluated, or widen what evaluate can do there.",
                step=self._step,
            )
        n = self.n_in_a_row
        many = "" if n == 1 else f"{n} evaluations failed in a row, the last one "
        return EvaluationFailed(
            f"{last.text}\nThis was {many or 'an evaluation '}in step {self._step}, at {last.at}.\n"
            "A journal holds the steps before this one. Bounds that keep the design where evaluate is defined usually "
            "help; what is done about failures is on_failure=....",
            step=self._step,
            reason=f"{'an evaluation failed' if n == 1 else f'{n} evaluations failed in a row'} in step {self._step}, "
            f"at {last.at}: {last.text}",
            events=self.events(),
        )

    def events(self) -> tuple[str, ...]:
        """What went wrong in this step and what was done, as sentences for its record."""
        by_text: dict[str, list[Failure]] = {}
        for failure in self._failures:
            by_text.setdefault(failure.text, []).append(failure)
        sentences = [
            f"an evaluation failed at {found[0].at}: {text}"
            if len(found) == 1
            else f"{len(found)} evaluations failed, the first at {found[0].at}: {text}"
            for text, found in by_text.items()
        ]
        return (*sentences, *dict.fromkeys(self._notes))


def evaluated(evaluate: Callable[[], T]) -> T:
    """What an evaluation finds. Where it fails, the error is ours, told by us alone, and its answers are nobody's."""
    with on_probation() as answers, _told_by_us:
        try:
            return evaluate()
        except Exception as error:
            # A result cache would give the same again: to whoever evaluates this point once more, and to other runs,
            # for which an answer that is not valid is no answer either.
            answers.forget()
            if (ours := _inside_of(error)) is not None:
                raise ours from error
            raise


def _inside_of(error: Exception) -> TesseractFlowError | None:
    """Our own error, if a program that was compiled as a whole (`transform=jax.jit`) made it one of the runtime's."""
    is_of_the_runtime = isinstance(error, jax.errors.JaxRuntimeError) or (
        type(error) is ValueError and "callback" in str(error)[:200].lower()
    )
    return cause(error) if is_of_the_runtime and not isinstance(error, TesseractFlowError) else None


def is_of_the_design(error: Exception) -> bool:
    """Whether an evaluation failed because of the design, rather than at all."""
    if isinstance(error, _OF_THE_DESIGN):
        return not isinstance(error, InvalidType)
    return authors_sentence(error) is not None


# `equinox.error_if` raises on the host, and what arrives is the runtime's error, with the whole traceback as its text:
# a ValueError or another, as JAX's versions go.
_AUTHORS = re.compile(r"^(?:\w+\.)*_?EquinoxRuntimeError: (.*?)(?=\n\s*\n|\n-{5,}|\Z)", re.MULTILINE | re.DOTALL)


def authors_sentence(error: BaseException) -> str | None:
    """What the author of `evaluate` wrote into `equinox.error_if`, if that is where this error comes from."""
    if found := _AUTHORS.search(str(error)):
        return found[1].strip()
    if type(error).__name__ == "EquinoxRuntimeError":
        # Equinox puts the sentence below a stack that it has tidied up.
        paragraphs = [text for text in re.split(r"\n\s*\n|\n-{5,}\n?", str(error)) if text.strip()]
        own = [text for text in paragraphs if not text.lstrip().startswith(("Above is the stack", "File "))]
        return (own or paragraphs)[0].strip()
    return None


def own_words(error: Exception) -> str:
    """What went wrong, as a sentence: the author's own, or the first line and what the component said last; of a fixed
    point, where it is worst and what to do, too."""
    if (sentence := authors_sentence(error)) is not None:
        return sentence
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, NotConverged):
        return " ".join(line for line in lines if not line.startswith("Residuals: "))
    text = lines[0] if len(lines) == 1 or not isinstance(error, ComponentFailed) else f"{lines[0]} {lines[-1]}"
    if isinstance(error, InvalidInput) and error.faults:
        text = f"{lines[0]} {'; '.join(map(str, error.faults))}"
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 3]}..."


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _named(varying: PyTree) -> dict[str, np.ndarray]:
    return {"design" if name == "(root)" else name: np.asarray(leaf) for name, leaf in named_leaves(varying)}
