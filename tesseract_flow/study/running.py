"""One run of a study, and all of them at once: `optimize` as it is, told where its journal is and when to stop."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tesseract_flow.client import own_requests
from tesseract_flow.errors import (
    BoundsError,
    DriverError,
    OptimizationError,
    OtherRun,
    ProblemError,
    RunStopped,
    UnknownArgument,
)
from tesseract_flow.execute import concurrent, default_submitter
from tesseract_flow.optimize import AbstractJournal, FileJournal, Observer, Problem, Result, Resumption, StepRecord
from tesseract_flow.optimize.checkpoint import Checkpoint
from tesseract_flow.optimize.evaluator import Transform
from tesseract_flow.optimize.failures import as_policy
from tesseract_flow.optimize.keywords import remedy_of
from tesseract_flow.optimize.loop import optimize
from tesseract_flow.optimize.shared import Shared
from tesseract_flow.storage import without_secrets
from tesseract_flow.study.crew import Stop, StoppableSubmitter, at_once
from tesseract_flow.study.elsewhere import (
    AbstractElsewhere,
    Errand,
    identity_here,
    in_time,
    is_over,
    requests_of,
    result_of,
)
from tesseract_flow.study.orders import Orders
from tesseract_flow.study.outcome import StudyRun
from tesseract_flow.study.place import Place
from tesseract_flow.study.watching import AbstractStudyObserver

DEFAULT_WORKERS = 8
# What `optimize` takes and a study decides itself, with what to say instead.
_OWN = {
    "problem": "",
    "count": "Each run counts its own requests.",
    "run_step": "A study has no steps of its own.",
    "start_from": "Where runs begin is starts=..., a list of designs.",
    "shared": "Its runs share what they trace.",
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A run to be done.

    Attributes:
        make: the problem; a factory may take its time, and may fail.
    """

    key: str
    make: Callable[[], Problem]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Terms:
    """How the runs of a study go.

    Attributes:
        options: for `optimize`, the same for all of them.
        place: of their journals.
        recheck: compare each run in the journal; None: where it cannot be told otherwise; False: then only those that
            go on.
        fatal: errors that are those of the question, and not of one run.
        shared: what runs that differ in their start alone have in common.
        elsewhere: who makes the runs that are not over; None: they are made here.
        until: seconds since the epoch, before which they stop in time.
        raises: whether the first failure ends the study.
    """

    options: Mapping[str, Any]
    place: Place | None
    max_workers: int
    recheck: bool | None
    fatal: tuple[type[Exception], ...]
    observers: Sequence[AbstractStudyObserver]
    shared: Shared | None = None
    elsewhere: AbstractElsewhere | None = None
    until: float | None = None

    def of(self, problem: Problem) -> Mapping[str, Any]:
        """The options of a run of this problem that is made here."""
        return in_time(problem, self.options, self.until)

    @property
    def raises(self) -> bool:
        return as_policy(self.options.get("on_failure", "shrink")).action == "raise"


def checked_options(name: str, driver: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """What is handed on to `optimize`.

    Raises:
        UnknownArgument: it does not take that, or a study decides it; the message says where it belongs.
    """
    known = inspect.signature(optimize).parameters
    for option, value in options.items():
        if option in _OWN:
            raise UnknownArgument(f"{name} does not take {option!r}. {_OWN[option]}")
        if option not in known:
            shown = known["driver"].default if driver is None else driver
            raise UnknownArgument(
                f"{name} does not take {option!r}.{remedy_of(option, value, shown, [*known, *_MORE])}"
            )
    return {**({} if driver is None else {"driver": driver}), **options}


_MORE = ("starts", "seed", "spread", "include_start", "max_workers")


def checked_workers(max_workers: int | None, n: int) -> int:
    """
    Raises:
        ProblemError: not a number of threads.
    """
    if max_workers is None:
        return min(n, DEFAULT_WORKERS)
    if isinstance(max_workers, bool) or not isinstance(max_workers, int) or max_workers < 1:
        raise ProblemError(f"max_workers must be a whole number of runs at once, at least 1, received {max_workers!r}.")
    return max_workers


# Of many runs of one problem, all would fail alike.
OF_THE_PROBLEM = (ProblemError, BoundsError, DriverError, UnknownArgument, OtherRun)
# What one of many problems may do without the others.
OF_THE_STUDY = (UnknownArgument, OtherRun)


def run_all(tasks: Sequence[Task], terms: Terms) -> tuple[list[StudyRun], list[str]]:
    """Every task's run, in their order, with notes.

    Raises:
        BaseException: an error that is not one run's, or an interrupt; the other runs have stopped, and what they have
            finished is in their journals.
    """
    stop = Stop()
    events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    runs: dict[int, StudyRun] = {}
    taken: list[str] = []

    def done(k: int, outcome: tuple[StudyRun, tuple[str, ...]]) -> None:
        runs[k], doubts = outcome
        taken.extend(doubts[:1])
        for observer in terms.observers:
            observer.on_run(runs[k])

    def step(k: int, record: StepRecord) -> None:
        for observer in terms.observers:
            observer.on_step(k, record)

    def wait(why: str | None) -> None:
        for observer in terms.observers:
            observer.on_wait(why)

    orders = Orders(terms.place, terms.until, lambda why: events.put(functools.partial(wait, why)))
    jobs = [
        functools.partial(
            _run, k, task, terms, stop, orders, lambda record, k=k: events.put(functools.partial(step, k, record))
        )
        for k, task in enumerate(tasks)
    ]
    try:
        with orders:
            at_once(jobs, terms.max_workers, stop, events, done)
    except KeyboardInterrupt as interrupt:
        kept = "" if terms.place is None else f", all finished steps are in {terms.place.address}: run again to go on"
        interrupt.add_note(f"{len(runs)} of {len(tasks)} runs were over{kept}.")
        raise
    notes = []
    if taken:
        notes.append(
            f"{len(taken)} finished runs were taken from the journal as they are, though it cannot be told from its "
            f"text that nothing changed ({taken[0]}), as recheck=False asks for"
        )
    return [runs[k] for k in range(len(tasks))], notes


def _run(
    k: int, task: Task, terms: Terms, stop: Stop, orders: Orders, on_step: Callable[[StepRecord], None]
) -> tuple[StudyRun, tuple[str, ...]]:
    began, problem, start, result, error, waits = time.monotonic(), None, None, None, None, None
    journal, before = None, None
    address = None if terms.place is None else terms.place.journal_of(task.key)
    with own_requests() as requests:
        try:
            problem = task.make()
            start = problem.partition.combine(problem.start)
            is_done = terms.place is not None and is_over(str(address), problem, terms.options.get("stop"))
            waits = None if is_done else orders.why_not(stop.sleep) or None
            if waits is None:
                with orders.reaching(None if is_done else address):
                    if terms.elsewhere is not None and not is_done:
                        before = requests_of(str(address))
                        result = _made_elsewhere(k, task, problem, terms, stop, orders)
                    else:
                        journal = None if terms.place is None else _Journal(str(address), problem, terms)
                        options = _options(terms.of(problem), stop, journal, on_step)
                        result = optimize(problem, shared=terms.shared, **options)
        except RunStopped as stopped:
            waits = str(stopped)
        except Exception as failure:
            if terms.raises or isinstance(failure, terms.fatal):
                failure.add_note(f"This was run {k} of the study ({task.key}).")
                raise
            error = _text_of(failure)
    run = StudyRun(
        index=k,
        key=task.key,
        settings=task.settings,
        start=start,
        result=result,
        error=error,
        waits=waits,
        requests=requests.n_solves if result is None else result.requests,
        # What is made elsewhere counts there, in this process or not.
        sent=requests.n_solves if before is None else requests_of(str(address)) - before,
        seconds=time.monotonic() - began if result is None else result.seconds,
        journal=address,
        problem=problem,
    )
    return run, () if journal is None else journal.unsettled


def _made_elsewhere(k: int, task: Task, problem: Problem, terms: Terms, stop: Stop, orders: Orders) -> Result:
    """What a run finds that somebody else makes.

    Raises:
        RunStopped: the time of the study is up.
        OtherRun: it is, or would be, about something else than it is here.
        Exception: it failed.
    """
    assert terms.place is not None and terms.elsewhere is not None
    options = _options(terms.options, stop, None, lambda record: None)
    identity = identity_here(problem, {**options, "shared": terms.shared})
    terms.place.admit(identity)

    def sleep(seconds: float) -> None:
        if why := orders.time_is_up():
            raise RunStopped(why)
        stop.sleep(seconds)

    terms.elsewhere.run(Errand(k, task.key, problem, task.settings, terms.place.folder, terms.until), sleep)
    return result_of(terms.place.journal_of(task.key), problem, identity)


def _text_of(failure: Exception) -> str:
    text = str(failure) if isinstance(failure, OptimizationError) else f"{type(failure).__name__}: {failure}"
    return str(without_secrets(text.strip() or type(failure).__name__))


def _options(
    given: Mapping[str, Any], stop: Stop, journal: AbstractJournal | None, on_step: Callable[[StepRecord], None]
) -> dict[str, Any]:
    inner: Transform = given.get("transform") or functools.partial(
        concurrent, submitter=StoppableSubmitter(default_submitter(), stop)
    )

    def transform(fn: Callable[..., Any]) -> Callable[..., Any]:
        call = inner(fn)

        def checked(*args: Any) -> Any:
            stop.check()
            return call(*args)

        return checked

    return {
        "sleep": stop.sleep,
        **given,
        "transform": transform,
        "journal": journal,
        "observers": [Observer(on_step=lambda record, design, evaluation: on_step(record))],
    }


class _Journal(AbstractJournal):
    """The journal of a run in a study: admitted by it first; and where it is asked for (`recheck=False`), a run that is
    over is not compared at its last point, though its text cannot tell that nothing changed.
    """

    def __init__(self, address: str, problem: Problem, terms: Terms):
        self._inner = FileJournal(address)
        self.glance = self._inner.glance
        self._problem, self._terms = problem, terms
        self.unsettled: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        return self._inner.address

    def open(self, identity: Mapping[str, Any], *, accept_changes: bool = False) -> Resumption | None:
        assert self._terms.place is not None
        self._terms.place.admit(identity)
        resumed = self._inner.open(identity, accept_changes=accept_changes)
        if resumed is None or resumed.changes or self._terms.recheck is not False or not resumed.doubts:
            return resumed
        if not is_over(self.address, self._problem, self._terms.options.get("stop")):
            return resumed
        self.unsettled = resumed.doubts
        return dataclasses.replace(resumed, doubts=())

    def confirm(self, changes: Sequence[str] = ()) -> None:
        if not self.unsettled:  # or it would be written down that something was compared
            self._inner.confirm(changes)

    def save(self, checkpoint: Checkpoint, record: Mapping[str, Any]) -> None:
        self._inner.save(checkpoint, record)

    def attach(self, name: str, data: bytes) -> None:
        self._inner.attach(name, data)

    def close(self) -> None:
        self._inner.close()

    def inbox(self) -> dict[str, bytes]:
        return self._inner.inbox()

    def act(self, action: Mapping[str, Any]) -> None:
        self._inner.act(action)

    def dismiss(self, name: str, *, is_bad: bool = False) -> None:
        self._inner.dismiss(name, is_bad=is_bad)
