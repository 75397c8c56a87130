"""`multi_start` and `sweep`: many runs of `optimize`, at once and resumable as a whole.

What a run is, how it goes on and when it is refused is decided where a single run decides it. Here: which runs there
are, and what they are together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import optax
from jaxtyping import PyTree

from tesseract_flow.errors import ProblemError, UnknownArgument
from tesseract_flow.optimize import AbstractDriver, Problem
from tesseract_flow.optimize.shared import Shared
from tesseract_flow.study.elsewhere import AbstractElsewhere
from tesseract_flow.study.outcome import AbstractStudy, MultiStart, Sweep
from tesseract_flow.study.place import Place
from tesseract_flow.study.running import (
    OF_THE_PROBLEM,
    OF_THE_STUDY,
    Task,
    Terms,
    checked_options,
    checked_workers,
    run_all,
)
from tesseract_flow.study.settings import Factory, all_settings, check_factory, factory_name, keyed, make_problem
from tesseract_flow.study.starts import starts_of
from tesseract_flow.study.watching import AbstractStudyObserver

_Study = TypeVar("_Study", bound=AbstractStudy)
Driver = str | AbstractDriver | optax.GradientTransformation


def multi_start(
    problem: Problem,
    n: int | None = None,
    driver: Driver | None = None,
    *,
    starts: str | Sequence[PyTree] = "latin-hypercube",
    seed: int = 0,
    spread: PyTree = None,
    include_start: bool | None = None,
    journal: str | os.PathLike[str] | None = None,
    max_workers: int | None = None,
    recheck: bool | None = None,
    observers: Sequence[AbstractStudyObserver] = (),
    elsewhere: AbstractElsewhere | None = None,
    until: float | None = None,
    **options: Any,
) -> MultiStart:
    """The best of several runs of one problem, each from another start.

    Each run is one of `optimize`, and ends with the bits that it would have alone. A run that fails is a row with the
    error, and ends nothing else.

    Args:
        problem: what to optimise.
        n: how many runs, 16 by default; with a list of starts their number.
        driver: as for `optimize`, and so is its default.
        starts: where to begin: `"latin-hypercube"`, `"sobol"` (more of them later are these and others), `"grid"` (the
            largest regular one with at most `n` points, ends included), or a list of designs. Only what varies is
            chosen, each entry between its bounds.
        seed: other starts for another seed, the same for the same one.
        spread: how far from the problem's own start the others may be, in the design's units: a number, an array, or a
            prefix of the varying part. Within the bounds, and needed where there are none.
        include_start: whether the problem's own start is the first of the `n`. Default: yes with a Latin hypercube and
            Sobol, no with a grid and a list.
        journal: a folder or URL, with a journal for each run in it. Started again, finished runs are not repeated,
            those that were interrupted go on, those that failed are tried again, and other starts (another `n`, `seed`
            or method) join them. A changed problem is refused.
        max_workers: runs at once, 8 by default. Components set their own limits: runs share handles, lanes and caches.
        recheck: evaluate the last point of each run in the journal again, those that are finished included. Default:
            where it cannot be told otherwise that the problem is the same, as for a run alone. False: those that are
            finished are then taken as they are, and the notes say so.
        observers: told of steps and runs.
        elsewhere: who makes the runs, if not this process (`tesseract_flow.flows.many` has flow runs and tasks of
            Prefect); needs a journal, which is seen from there as well. Observers are told of runs then, and not of
            steps, and `max_workers` is by default all.
        until: seconds since the epoch (`time.time() + 3600`): runs stop in time before that moment (`Until`; those that
            are made elsewhere are called off), no other one begins, and the same study, started again, goes on.
        options: what else `optimize` takes, for all runs: `stop`, `learning_rate`, `driver_settings`, `on_failure`,
            ... With `on_failure="raise"` the first failure ends the study.

    Raises:
        UnknownArgument, ProblemError, BoundsError, DriverError: something does not fit; no run could begin.
        OtherRun: the journal is about another problem; the message shows the difference.
        JournalError: the journal is in use, or cannot be written.
    """
    if not isinstance(problem, Problem):
        raise ProblemError(
            f"multi_start takes a Problem, received {type(problem).__name__}.\n"
            "A problem by name is tesseract_flow.optimize.load_problem('folder/problem.py:factory')."
        )
    options = checked_options("multi_start", driver, options)
    chosen = starts_of(problem, n, starts, seed, spread, include_start)
    tasks = [Task(key, functools.partial(_itself, one)) for key, one in chosen.problems.items()]
    about = {"kind": MultiStart.kind, "problem": problem.name}
    place = _place(journal, about, options, shares_problem=True)
    terms = _terms(options, place, max_workers, recheck, OF_THE_PROBLEM, observers, len(tasks), elsewhere, until)
    terms = dataclasses.replace(terms, shared=Shared())
    return _study(MultiStart, problem.name, tasks, terms, chosen.notes)


def sweep(
    factory: Factory,
    settings: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    driver: Driver | None = None,
    *,
    journal: str | os.PathLike[str] | None = None,
    max_workers: int | None = None,
    recheck: bool | None = None,
    observers: Sequence[AbstractStudyObserver] = (),
    elsewhere: AbstractElsewhere | None = None,
    until: float | None = None,
    **options: Any,
) -> Sweep:
    """One run for each of several settings of a factory, each of a problem of its own.

    Args:
        factory: makes a problem of settings: a function, or its name as `folder/problem.py:factory`,
            or a `folder/problem.yaml`.
        settings: lists of values by name, of which all combinations are run, the last name fastest; or a list of
            settings.
        driver, journal, max_workers, recheck, observers, elsewhere, until, options: as for `multi_start`. A run belongs
            to its settings: more of them later join those that are there.

    Raises:
        UnknownArgument: a keyword that belongs elsewhere.
        ProblemError: settings that the factory does not take, or the same ones twice. What a factory raises of some
            settings is the row of these.
        OtherRun: a run in the journal is about another problem; the message shows the difference.
        JournalError: the journal is in use, or cannot be written.
    """
    options = checked_options("sweep", driver, options)
    wanted = all_settings(settings)
    check_factory(factory, wanted)
    name = factory_name(factory)
    making = threading.Lock()  # a factory is somebody's own code, and need not know of threads

    def make(one: Mapping[str, Any]) -> Problem:
        with making:
            return make_problem(factory, one)

    tasks = [Task(key, functools.partial(make, one), one) for key, one in keyed(wanted).items()]
    place = _place(journal, {"kind": Sweep.kind}, options, shares_problem=False)
    terms = _terms(options, place, max_workers, recheck, OF_THE_STUDY, observers, len(tasks), elsewhere, until)
    return _study(Sweep, name, tasks, terms, ())


def _itself(problem: Problem) -> Problem:
    return problem


def _place(
    journal: str | os.PathLike[str] | None,
    about: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    shares_problem: bool,
) -> Place | None:
    if journal is None:
        return None
    if not isinstance(journal, str | os.PathLike):
        raise ProblemError(
            f"journal of a study is a folder or a URL, with a journal for each run in it, received "
            f"{type(journal).__name__}."
        )
    accept = bool(options.get("accept_changes", False))
    return Place(journal, about, shares_problem=shares_problem, accept_changes=accept)


def _terms(
    options: Mapping[str, Any],
    place: Place | None,
    max_workers: int | None,
    recheck: bool | None,
    fatal: tuple[type[Exception], ...],
    observers: Sequence[AbstractStudyObserver],
    n: int,
    elsewhere: AbstractElsewhere | None,
    until: float | None,
) -> Terms:
    if elsewhere is not None and place is None:
        raise ProblemError("Runs that are made elsewhere need a journal=, a folder or URL that is seen from there.")
    if elsewhere is not None and max_workers is None:
        max_workers = n
    options = {**options, "recheck": bool(recheck)}
    return Terms(
        options,
        place,
        checked_workers(max_workers, n),
        recheck,
        fatal,
        tuple(observers),
        elsewhere=elsewhere,
        until=until,
    )


def _study(kind: type[_Study], name: str, tasks: Sequence[Task], terms: Terms, notes: Sequence[str]) -> _Study:
    for observer in terms.observers:
        if not isinstance(observer, AbstractStudyObserver):
            raise UnknownArgument(
                f"observers of a study are StudyObserver(...) of tesseract_flow.study, received "
                f"{type(observer).__name__}.\nThey are told of all runs, where those of optimize are told of one."
            )
    for observer in terms.observers:
        observer.on_start(name, len(tasks))
    place = terms.place
    with contextlib.nullcontext() if place is None else place.opened():
        runs, more = run_all(tasks, terms)
        n_others = 0 if place is None else place.n_others(task.key for task in tasks)
    if place is not None and n_others:
        was = "run is" if n_others == 1 else "runs are"
        more.append(f"{n_others} other {was} in {place.address}, asked for on another occasion, and not in this study")
    study = kind(name, runs, (*notes, *more), None if place is None else place.address)
    for observer in terms.observers:
        observer.on_finish(study)
    return study
