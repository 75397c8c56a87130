"""Every exception that tesseract-flow raises on purpose, in one tree.

Each message says what was asked and of whom, what was expected against what was received, and what to do next.
Our errors also derive from the built-in type that code written for `tesseract-core` and `tesseract-jax` catches
(`ValueError`, `RuntimeError`, `NotImplementedError`, ...). Foreign exceptions are translated once, at the seam where
they enter, `from` the original.

```text
TesseractFlowError
├── WireError (ValueError)                an array or tree that cannot be encoded or decoded
├── SchemaError (ValueError)              an OpenAPI document that does not describe a Tesseract
├── OptionError (ValueError)              a handle was given something that it cannot use
├── CallError                             a call to a Tesseract failed; has .tesseract and .endpoint
│   ├── InvalidInput (ValueError)         the inputs do not fit the schema; has .faults
│   │   └── InvalidType (TypeError)       ... and need another type rather than another value
│   ├── OverBudget (ValueError)           a derived endpoint would take more requests than it may send
│   ├── EndpointNotFound (NotImplementedError)
│   │   └── ShapesUnknown (ValueError)    a transformation needs abstract_eval, and there is none
│   ├── ComponentFailed (RuntimeError)    the component itself raised
│   ├── InvalidAnswer (ValueError)        the answer is not what the protocol or the schema says
│   │   └── NonFiniteAnswer (NonFiniteError)   a plain float that is NaN or inf, where JSON has neither
│   ├── AccessDenied (PermissionError)    401 or 403, 407 of a proxy
│   ├── NotServed (ConnectionError)       a tesseract_core.Tesseract that nobody has started
│   ├── CallTimeout (TimeoutError)        no answer in time: the solve may still be running there
│   │   └── CallReleased                  ... or somebody has asked not to wait for it any longer
│   ├── NotRecorded (LookupError)         a recording that is replayed has no answer to this; has .difference
│   │   └── StaleRecording                ... since the component is another one now
│   └── TransientError                    worth another attempt
│       ├── Unreachable (ConnectionError) no connection: nothing was started
│       ├── ConnectionLost (ConnectionError)  the solve may still be running there
│       └── Overloaded (RuntimeError)     429, 502, 503, 504; has .retry_after
├── NotDifferentiable (ValueError)        a derivative was asked for where the schema has none
├── SecondDerivative (NotImplementedError)
├── PlainValueUnknown (TypeError)         a plain output was looked at while JAX traces; has .place
├── PrecisionError (ValueError)           64-bit arrays while JAX's x64 mode is off
├── NonFiniteError (ArithmeticError)      NaN or inf appeared; names where
├── InvalidEvaluation (ArithmeticError)   an answer says of itself that it is not valid
│   ├── NotConverged                      coupled components that were not brought to agree; has .residuals
│   └── ProbeFailed (NonFiniteError)      a finite difference through a point where there is no number; has .inputs
├── NotAllowed (PermissionError)           code from outside of TESSERACT_FLOW_ROOTS
├── StorageError (OSError)                a folder or bucket that cannot be used, or is somebody else's
├── DeploymentError (RuntimeError)        a flow that cannot be deployed, or a worker without its folder
└── OptimizationError
    ├── ProblemError (ValueError)         a problem that cannot be loaded, or does not fit together
    │   └── PipelineError                 ... of which that is the wiring; has .faults
    ├── UnknownArgument (TypeError)       a keyword that belongs elsewhere, or nowhere
    ├── BoundsError (ValueError)          lower > upper, or the wrong shape
    ├── DriverError (ValueError)          an unknown optimiser, or settings it does not take
    ├── EvaluationFailed (RuntimeError)   a design could not be evaluated, and the policy is to go no further
    ├── SteeringError (ValueError)        a request to a run that cannot be met; it has no effect
    ├── RunStopped (RuntimeError)         stopped by hand before there was a design
    └── JournalError (RuntimeError)       a journal that cannot be used, is in use, or is damaged
        └── OtherRun                      ... or belongs to another run; has .changes
```
"""

from __future__ import annotations

import copy
import difflib
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

_Error = TypeVar("_Error", bound=Exception)


class TesseractFlowError(Exception):
    """Root of everything that tesseract-flow raises on purpose."""


class WireError(TesseractFlowError, ValueError):
    """An array or a tree could not be encoded, or its wire form could not be decoded."""


class SchemaError(TesseractFlowError, ValueError):
    """An OpenAPI document does not describe a Tesseract that we understand."""


class OptionError(TesseractFlowError, ValueError):
    """An option of a handle has a value that cannot be used; nothing was sent."""


class CallError(TesseractFlowError):
    """A call to a Tesseract failed.

    Attributes:
        tesseract: what was called, as its handle prints itself (never with credentials).
        endpoint: the operation, such as `"apply"`.
    """

    def __init__(self, message: str, *, tesseract: str = "?", endpoint: str = "?"):
        super().__init__(message)
        self.tesseract = tesseract
        self.endpoint = endpoint

    def __reduce__(self):
        # Exceptions cross process borders in Prefect; the default would lose the keyword arguments.
        return _rebuild, (type(self), str(self), dict(self.__dict__))


def _rebuild(cls: type[_Error], message: str, state: dict[str, object]) -> _Error:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with an input: where, and what."""

    path: str
    message: str
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.path or '(root)'}: {self.message}"


class InvalidInput(CallError, ValueError):
    """The inputs do not fit the Tesseract's schema. `faults` lists each one."""

    def __init__(
        self,
        message: str,
        *,
        faults: Sequence[Fault] = (),
        tesseract: str = "?",
        endpoint: str = "?",
    ):
        super().__init__(message, tesseract=tesseract, endpoint=endpoint)
        self.faults = tuple(faults)


class InvalidType(InvalidInput, TypeError):
    """An input needs another type: a list where an array is due, or a traced value where a plain one is."""


class OverBudget(CallError, ValueError):
    """A derived endpoint would take more requests than its budget allows; no probe was sent."""


class EndpointNotFound(CallError, NotImplementedError):
    """The Tesseract does not offer this endpoint."""


class ShapesUnknown(EndpointNotFound, ValueError):
    """JAX needs the outputs' shapes where there are no values, and the Tesseract has no `abstract_eval`."""


class ComponentFailed(CallError, RuntimeError):
    """The component's own code raised. Never repeated: the same inputs would fail again."""


class InvalidAnswer(CallError, ValueError):
    """The answer is not what the protocol or the component's own schema promises."""


class AccessDenied(CallError, PermissionError):
    """The server wants other credentials (401 or 403)."""


class NotServed(CallError, ConnectionError):
    """Nobody can be asked there: a `tesseract_core.Tesseract` that was not started, a component in another process.

    Waiting does not change that.
    """


class CallTimeout(CallError, TimeoutError):
    """No answer in the time that the caller allowed. Not repeated: the first solve may still be running there."""


class CallReleased(CallTimeout):
    """Somebody has asked that the run waits for this call no longer. The solve may still be running there."""


class NotRecorded(CallError, LookupError):
    """A recording is replayed and does not know the question, or not whom it is for; nothing was sent.

    Attributes:
        difference: from the nearest question that was recorded, a line each.
    """

    def __init__(self, message: str, *, difference: Sequence[str] = (), tesseract: str = "?", endpoint: str = "?"):
        super().__init__(message, tesseract=tesseract, endpoint=endpoint)
        self.difference = tuple(difference)


class StaleRecording(NotRecorded):
    """A component has changed since its answers were recorded."""


class TransientError(CallError):
    """The call may succeed when repeated; whether to repeat it is the task's policy."""


class Unreachable(TransientError, ConnectionError):
    """No connection could be made, so nothing was started."""


class ConnectionLost(TransientError, ConnectionError):
    """The connection broke after the request was sent: the solve may still be running there."""


class Overloaded(TransientError, RuntimeError):
    """The server, or a proxy before it, asked for patience (429, 502, 503, 504).

    Attributes:
        retry_after: seconds that the server asked to wait, if it said so.
        status: of HTTP, if it was said by that.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        status: int | None = None,
        tesseract: str = "?",
        endpoint: str = "?",
    ):
        super().__init__(message, tesseract=tesseract, endpoint=endpoint)
        self.retry_after = retry_after
        self.status = status


class NotDifferentiable(TesseractFlowError, ValueError):
    """A derivative was asked for with respect to, or of, something the schema does not mark differentiable."""


class SecondDerivative(TesseractFlowError, NotImplementedError):
    """A derivative endpoint was differentiated with respect to its primals."""


class PlainValueUnknown(TesseractFlowError, TypeError):
    """A traced function looks at a plain output (text, None, a list), whose value nobody knows while JAX traces.

    Attributes:
        place: for whoever traces and could ask beforehand: which call, and where in its answer.
    """

    def __init__(self, message: str, *, place: Any = None):
        super().__init__(message)
        self.place = place


class PrecisionError(TesseractFlowError, ValueError):
    """The Tesseract works in 64 bits, and JAX's x64 mode is off."""


class NonFiniteError(TesseractFlowError, ArithmeticError):
    """NaN or inf appeared; the message names where."""


class InvalidEvaluation(TesseractFlowError, ArithmeticError):
    """An evaluation said of itself that its answer is not valid, such as a solver that did not converge."""


class NotConverged(InvalidEvaluation):
    """Coupled components were not brought to agree, or the linear system behind their derivative was not solved.

    Attributes:
        name: which fixed point.
        part: `"solution"`, `"adjoint"` (of a pullback) or `"tangent"` (of a pushforward).
        residuals: what was left after each step, relative; the last one is where it ended.
        n_rounds: how often all components were asked.
    """

    def __init__(
        self,
        message: str,
        *,
        name: str = "?",
        part: str = "solution",
        residuals: Sequence[float] = (),
        n_rounds: int = 0,
    ):
        super().__init__(message)
        self.name = name
        self.part = part
        self.residuals = tuple(residuals)
        self.n_rounds = n_rounds

    def __reduce__(self):
        return _rebuild, (type(self), str(self), dict(self.__dict__))


class ProbeFailed(InvalidEvaluation, NonFiniteError):
    """A probe of a finite difference gave NaN or inf, so there is no derivative.

    Attributes:
        name: the function that was probed.
        probe: which probe it was, such as `"load[2], a step up"`.
        inputs: the arrays that were moved, by name, as they were in it.
    """

    def __init__(self, message: str, *, name: str = "?", probe: str = "?", inputs: Mapping[str, Any] | None = None):
        super().__init__(message)
        self.name = name
        self.probe = probe
        self.inputs = dict(inputs or {})

    def __reduce__(self):
        return _rebuild, (type(self), str(self), dict(self.__dict__))


class NotAllowed(TesseractFlowError, PermissionError):
    """A problem or a component outside of the folders from which code may be run (`TESSERACT_FLOW_ROOTS`)."""


class StorageError(TesseractFlowError, OSError):
    """A place for files (a folder, a bucket) cannot be used, or somebody else possesses it."""


class NonFiniteAnswer(InvalidAnswer, NonFiniteError):
    """A plain number of an answer is NaN or inf, and JSON does not tell which."""


class DeploymentError(TesseractFlowError, RuntimeError):
    """A flow cannot be deployed or served as asked, or a worker lacks the folder in which its runs start."""


class OptimizationError(TesseractFlowError):
    """Root of what the optimisation side raises."""


class ProblemError(OptimizationError, ValueError):
    """A problem cannot be loaded, or its parts do not fit together."""


class PipelineError(ProblemError):
    """A pipeline, or a file that describes one, is not what it should be. `faults` lists each thing that is wrong."""

    def __init__(self, message: str, *, faults: Sequence[Fault] = ()):
        super().__init__(message)
        self.faults = tuple(faults)

    def __reduce__(self):
        return _rebuild, (type(self), str(self), dict(self.__dict__))


class UnknownArgument(OptimizationError, TypeError):
    """A function does not take a keyword that it was given; the message says where that belongs."""


class BoundsError(OptimizationError, ValueError):
    """Bounds that no design can satisfy, or that do not fit the design."""


class DriverError(OptimizationError, ValueError):
    """An optimiser that we do not know, or settings that it does not take."""


class EvaluationFailed(OptimizationError, RuntimeError):
    """A design could not be evaluated, and there is nothing to go back to, or the policy is to go no further.

    Begins with the component's own text; what was raised is its cause.

    Attributes:
        step: in which step it was; 0 is the start.
        reason: the same in one sentence, for a result.
        events: what had happened in that step, failures before this one included.
    """

    def __init__(self, message: str, *, step: int = 0, reason: str = "", events: Sequence[str] = ()):
        super().__init__(message)
        self.step = step
        self.reason = reason or message.partition("\n")[0]
        self.events = tuple(events)

    def __reduce__(self):
        return _rebuild, (type(self), str(self), dict(self.__dict__))


class SteeringError(OptimizationError, ValueError):
    """A request to a run that cannot be met: it says why, and has no effect."""


class RunStopped(OptimizationError, RuntimeError):
    """A run was stopped by hand before there was a design to return."""


class JournalError(OptimizationError, RuntimeError):
    """A journal cannot be used, is in use by another run, or is damaged."""


class OtherRun(JournalError):
    """A journal belongs to another run.

    Attributes:
        changes: what is not the same, a line each.
    """

    def __init__(self, message: str, changes: Sequence[str] = ()):
        super().__init__(message)
        self.changes = tuple(changes)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" Did you mean 'adam'?"` for a near miss, else an empty string; made to be appended to a message."""
    close = closest(word, known)
    return f" Did you mean {close!r}?" if close is not None else ""


def closest(word: str, known: Iterable[str]) -> str | None:
    """The word that `word` is a near miss of, if there is one."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return close[0] if close else None


def in_brief(arrays: Mapping[str, Any], most: int = 6) -> str:
    """Named arrays for a message: `x = 2, thickness = 50 values from 0.01 to 0.2`."""
    shown = [f"{name} = {_value_in_brief(array)}" for name, array in list(arrays.items())[:most]]
    return ", ".join(shown) + (f" and {len(arrays) - most} more" if len(arrays) > most else "")


def _value_in_brief(array: Any) -> str:
    flat = array.reshape(-1)
    if array.dtype.kind not in "biuf":  # bfloat16, complex numbers and whatever else has no short form of its own
        return f"{array.dtype}{list(array.shape)}"
    if array.size == 1:
        return f"{flat[0].item():.6g}"
    if array.size <= 4:
        return f"[{', '.join(f'{value:.6g}' for value in flat.tolist())}]"
    return f"{array.size} values from {flat.min().item():.6g} to {flat.max().item():.6g}"


# --- ours behind somebody else's --------------------------------------------------------------------------------------

_N_RECENT = 32
_recent: deque[TesseractFlowError] = deque(maxlen=_N_RECENT)


def remember(error: TesseractFlowError) -> None:
    """Keep a copy of an error on its way through code that keeps its text alone; without what its frames hold."""
    _recent.append(copy.copy(error))


def cause(error: BaseException) -> TesseractFlowError | None:
    """Our own exception behind `error`, with its type and attributes; None if there is none.

    Itself, if it is one; else the first among those that it was raised from or while, and in exception groups.
    Compiled code (`jax.jit`) raises errors of JAX's own that have only the text: then the one whose text that is, out
    of the last few of this process, or, if it is not among them, one of the same type that is made of the text.

    >>> try:
    ...     jax.block_until_ready(jax.jit(loss)(x))
    ... except Exception as error:
    ...     if isinstance(tf.errors.cause(error), tf.errors.ComponentFailed):
    ...         ...
    """
    found = list(_behind(error))
    ours = next((one for one in found if isinstance(one, TesseractFlowError)), None)
    if ours is not None:
        return ours
    texts = [text for one in found if "\n" in (text := str(one)) or ": " in text]
    for text in texts:
        for known in reversed(_recent):
            if f"{type(known).__name__}: {known}" in text:
                return known
    return next((made for text in texts if (made := _made_of(text)) is not None), None)


def _behind(error: BaseException) -> Iterator[BaseException]:
    """The error and all that it carries, each once, the nearest first."""
    waiting, seen = deque([error]), set()
    while waiting:
        one = waiting.popleft()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting.extend(getattr(one, "exceptions", ()))
        waiting.extend(other for other in (one.__cause__, one.__context__) if other is not None)


def _made_of(text: str) -> TesseractFlowError | None:
    """The error that a printed traceback ends with, if it is one of ours."""
    kinds = {kind.__name__: kind for kind in _kinds(TesseractFlowError)}
    last = None
    for match in re.finditer(r"^(?:[\w.]+\.)?(?P<name>\w+): ", text, re.MULTILINE):
        last = match if match["name"] in kinds else last
    if last is None:
        return None
    message = text[last.end() :].rstrip()
    try:
        return kinds[last["name"]](message)
    except TypeError:  # it needs more than a message
        return TesseractFlowError(message)


def _kinds(root: type[TesseractFlowError]) -> Iterator[type[TesseractFlowError]]:
    yield root
    for kind in root.__subclasses__():
        yield from _kinds(kind)
