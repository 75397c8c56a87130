"""Answers that were asked before their time, and are not asked again.

Where JAX traces there are no values, and some questions need them: the shapes of a component without `abstract_eval`,
a text at which a function looks. They are then asked with the values that are at hand. What came of it serves the first
run: a `rehearsal` is the stretch of a program in which such answers are kept, each for one use.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

from jax.experimental.xla_metadata import set_xla_metadata

from tesseract_flow.autodiff.accounts import compiled_apart
from tesseract_flow.autodiff.layout import OutputLayout
from tesseract_flow.client import AbstractTesseract, Endpoint
from tesseract_flow.errors import PlainValueUnknown, ShapesUnknown
from tesseract_flow.exact import InputKey, copied, pack
from tesseract_flow.schema import Keys, follow

T = TypeVar("T")


class Rehearsal:
    """Answers by the whole question.

    Attributes:
        is_on: whether what is asked now is kept; otherwise what was kept is handed out, once.
        n_asked: how often something had to be asked before its time.
    """

    def __init__(self) -> None:
        self.is_on = False
        self.n_asked = 0
        self._answers: dict[Any, Any] = {}

    def ask(self, tesseract: AbstractTesseract, endpoint: Endpoint, arguments: tuple[Any, ...], run_id: Any) -> Any:
        """The answer of `tesseract.<endpoint>(*arguments)`."""
        send = getattr(tesseract, endpoint)
        if not self._answers and not self.is_on:
            return send(*arguments, run_id=run_id)
        key = self._key(tesseract, endpoint, arguments)
        if key in self._answers:
            return copied(self._answers[key]) if self.is_on else self._answers.pop(key)
        answer = send(*arguments, run_id=run_id)
        if self.is_on:
            self.keep(tesseract, endpoint, arguments, answer)
        return answer

    def keep(self, tesseract: AbstractTesseract, endpoint: Endpoint, arguments: tuple[Any, ...], answer: Any) -> None:
        # A copy, as those who asked have the answer in their hands, and may write into it.
        self._answers[self._key(tesseract, endpoint, arguments, copy=True)] = copied(answer)

    @property
    def has_answers(self) -> bool:
        return bool(self._answers)

    def has(self, tesseract: AbstractTesseract, endpoint: Endpoint, arguments: tuple[Any, ...]) -> bool:
        """Whether asking this is no request."""
        return self._key(tesseract, endpoint, arguments) in self._answers

    @staticmethod
    def _key(tesseract: AbstractTesseract, endpoint: str, arguments: tuple[Any, ...], copy: bool = False) -> Any:
        try:
            return tesseract, endpoint, InputKey(list(arguments), copy=copy)
        except TypeError:  # something in it has no value that could be compared
            return object()


_current: ContextVar[Rehearsal | None] = ContextVar("rehearsal", default=None)


@contextlib.contextmanager
def rehearsal(current: Rehearsal | None = None) -> Iterator[Rehearsal]:
    """The rehearsal that is under way, else a new one, which ends here."""
    current = current or _current.get() or Rehearsal()
    token = _current.set(current)
    try:
        yield current
    finally:
        _current.reset(token)


def current_rehearsal() -> Rehearsal | None:
    return _current.get()


@contextlib.contextmanager
def _asking() -> Iterator[None]:
    with rehearsal() as current:
        before, current.is_on = current.is_on, True
        current.n_asked += 1
        try:
            yield
        finally:
            current.is_on = before


# --- plain values that a traced function looks at ---------------------------------------------------------------------


class Script:
    """The calls that a function makes while it runs, by number: what was answered, and what is looked at.

    Attributes:
        looked_at: places (number of the call, keys within its answer) at which the function looks.
        plain: per call of a run with values, its answer; None if it had no values.
    """

    def __init__(self, looked_at: set[tuple[int, Keys]], answers: list[Any] | None = None):
        self.looked_at = looked_at
        self.answers: list[Any] = [] if answers is None else answers
        self._is_read = answers is not None
        self._number = -1

    def next_call(self) -> int:
        self._number += 1
        return self._number

    def note(self, answer: Any) -> None:
        """What the current call has answered, if it has."""
        if not self._is_read:
            self.answers += [None] * (self._number + 1 - len(self.answers))
            self.answers[self._number] = copied(answer)  # the function may take its answer apart

    def values(self, output: OutputLayout) -> dict[Keys, Any]:
        """The values, for the current call, of those outputs at which the function looks."""
        return {
            keys: follow(self.answers[self._number], keys)
            for keys in output.keys
            if (self._number, keys) in self.looked_at
        }


_script: ContextVar[Script | None] = ContextVar("script", default=None)
_n_scripts = itertools.count()


def current_script() -> Script | None:
    return _script.get()


@contextlib.contextmanager
def _following(script: Script, is_fresh: bool) -> Iterator[None]:
    token = _script.set(script)
    # JAX remembers the traces of functions inside, and would not call them again. Metadata are part of its key.
    fresh = set_xla_metadata(tesseract_flow_script=str(next(_n_scripts))) if is_fresh else contextlib.nullcontext()
    try:
        with fresh:
            yield
    finally:
        _script.reset(token)


def informed(trace: Callable[[], T], run: Callable[[], Any]) -> T:
    """What `trace()` gives. Where it needs what only answers can tell, `run()` comes before, the same with values.

    Call it in a `rehearsal`: what `run` asks is then not asked again.

    Raises:
        ShapesUnknown: a call inside of which there are no values in `run` either, such as in a compiled function.
        PlainValueUnknown: the same, of a plain output.
    """
    looked_at: set[tuple[int, Keys]] = set()
    answers: list[Any] | None = None
    has_run = False
    while True:
        try:
            with _following(Script(looked_at, answers), is_fresh=answers is not None):
                return trace()
        except ShapesUnknown:
            if has_run:
                raise
            has_run = True
            with _asking(), compiled_apart():
                run()
        except PlainValueUnknown as error:
            if answers is None:
                script = Script(set())
                with _asking(), compiled_apart(), _following(script, is_fresh=True):
                    run()
                answers, has_run = script.answers, True
                continue
            if error.place is None or error.place in looked_at or not _is_known(error.place, answers):
                raise
            looked_at.add(error.place)


def _is_known(place: tuple[int, Keys], answers: Sequence[Any]) -> bool:
    number, keys = place
    if number >= len(answers) or answers[number] is None:
        return False
    try:
        pack(follow(answers[number], keys))  # which also what JAX holds, under vmap, cannot be
    except TypeError:
        return False
    return True
