"""The fault matrix: fault × endpoint × way of calling, and what is said of each cell.

A cell is one small differentiated program against a server that goes wrong at one endpoint. It runs once while the
fault stays, and, where that should be got over, once while it passes after the first attempt. Each time what comes must
be what the fault's entry in the table says, in time and in true words; and the next call, on the same handle and with
other inputs, must be right. One handle and one compiled program serve all cells of a way and an endpoint, as in a long
run; only questions, which are asked once, get new ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow import errors
from tesseract_flow.autodiff import memory
from tesseract_flow.client import HttpTesseract, RetryPolicy
from tesseract_flow.execute import AbstractSubmitter, ThreadSubmitter
from tesseract_flow.testing.faults import FaultyServer, at
from tests.faults.component.tesseract_api import answer, derivatives
from tests.faults.faults import EVERYWHERE, FAULTS, MAX_BYTES, QUESTIONS, Comes, Fault

LIMIT = 8.0  # seconds for a call, in which several attempts and time-outs have room
PATIENCE = 0.8  # seconds that the handle waits for an answer
SETTLED = 0.2  # seconds in which a server has sent what it sends too much
RETRY = RetryPolicy(n_retries=3, first_delay=0.02, longest_delay=0.05)
WAYS = ("eager", "jitted", "concurrent", "flow")

Inputs = tuple[np.ndarray, np.ndarray, np.ndarray]
W_Y, W_Z, W_E = np.array([0.5, -2.0]), np.array([[1.0, 0.0, -1.0], [2.0, 0.5, 3.0]]), np.array(0.25)
X_DOT, W_DOT, S_DOT = np.array([1.0, -1.0, 0.5]), np.array([[0.5, 1.0, 0.0], [0.0, -1.0, 2.0]]), np.array(3.0)


def inputs(k: int) -> Inputs:
    """Other numbers for each k, all of the same shapes, and exact in 32 bits."""
    x = np.array([1.0, 0.5, -0.25]) + k
    return x, np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 4.0]]) * (1 + k), np.array(2.0 - k / 4)


# --- what is calculated, with what in NumPy alone ---------------------------------------------------------------------


def outputs(handle: Any, x: Any, w: Any, s: Any) -> dict[str, Any]:
    return tf.apply_tesseract(handle, {"x": x, "w": w, "s": s, "mode": "plain"})


def value(handle: Any, *primals: Any) -> Any:
    out = outputs(handle, *primals)
    return out["y"], out["z"], out["e"], out["rows"]


def gradient(handle: Any, *primals: Any) -> Any:
    def loss(*primals: Any) -> Any:
        out = outputs(handle, *primals)
        return (W_Y * out["y"]).sum() + (W_Z * out["z"]).sum() + W_E * out["e"]

    return jax.value_and_grad(loss, argnums=(0, 1, 2))(*primals)


def pushed(handle: Any, *primals: Any) -> Any:
    tangents = tuple(jnp.asarray(t) for t in (X_DOT, W_DOT, S_DOT))
    fn = lambda *primals: value(handle, *primals)[:3]  # noqa: E731
    return jax.jvp(fn, tuple(map(jnp.asarray, primals)), tangents)


def jacobian(handle: Any, *primals: Any) -> Any:
    return jax.jacrev(lambda x: outputs(handle, x, *primals[1:])["y"])(primals[0])


def expected(endpoint: str, primals: Inputs) -> Any:
    x, w, s = primals
    y, z, e, rows, _ = answer("apply", {"inputs": {"x": x, "w": w, "s": s}}).values()
    blocks = derivatives(x, w, s)
    if endpoint in ("apply", "openapi.json"):
        return y, z, e, rows
    if endpoint == "jacobian":
        return blocks["y", "x"]
    if endpoint == "jacobian_vector_product":
        tangents = {"x": X_DOT, "w": W_DOT, "s": S_DOT}
        dots = [
            sum(np.tensordot(blocks[out, name], t, t.ndim) for name, t in tangents.items()) for out in ("y", "z", "e")
        ]
        return (y, z, e), tuple(dots)
    cotangents = {"y": W_Y, "z": W_Z, "e": W_E}
    bars = [
        sum(np.tensordot(c, blocks[out, name], c.ndim) for out, c in cotangents.items()) for name in ("x", "w", "s")
    ]
    return (W_Y * y).sum() + (W_Z * z).sum() + W_E * e, tuple(bars)


PROGRAMS: dict[str, Callable[..., Any]] = {
    "openapi.json": value,
    "apply": value,
    "abstract_eval": gradient,
    "jacobian": jacobian,
    "jacobian_vector_product": pushed,
    "vector_jacobian_product": gradient,
}


# --- cells ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cell:
    fault: Fault
    endpoint: str
    way: str

    def __str__(self) -> str:
        return f"{self.fault.name} · {self.endpoint} · {self.way}"


@dataclasses.dataclass(frozen=True)
class Failing:
    """A cell, and what is wrong with what came of it."""

    cell: Cell
    kind: str  # WRONG NUMBER, HANG, NEXT CALL, NOT RECOVERED, NOT REFUSED, UNTYPED, UNTRUE
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.cell}: {self.what}"


def cells(way: str, endpoints: Iterable[str] = EVERYWHERE) -> Iterator[Cell]:
    return (Cell(fault, endpoint, way) for fault in FAULTS for endpoint in endpoints if endpoint in fault.at)


_numbers = itertools.count()


class Bench:
    """Runs cells against one server.

    Args:
        submitter: where the calls of the ways `concurrent` and `flow` go.
    """

    def __init__(self, server: FaultyServer, submitter: AbstractSubmitter | None = None):
        self.server = server
        self.submitter = submitter or ThreadSubmitter(retry=RETRY)
        self._calls: dict[tuple[str, str], Callable[[Inputs], Any]] = {}

    def run(self, cell: Cell) -> list[Failing]:
        modes = (False, True) if cell.fault.comes in (Comes.RECOVERED, Comes.RIGHT) else (False,)
        found: list[Failing] = []
        for passes in modes:
            once = self._one(cell, passes)
            if any("CallTimeout" in one.what for one in once):  # a machine that is busy is not a fault
                once = self._one(cell, passes)
            found += once
        return found

    def _one(self, cell: Cell, passes: bool) -> list[Failing]:
        server, mode = self.server, "passing" if passes else "staying"
        server.clear()
        server.asked.clear()
        call = self._call(cell)
        server.plant(at(cell.endpoint, cell.fault.act, first=1 if passes else None))
        with watched(server, LIMIT) as barked:
            got, error = _outcome(call, inputs(0))
        n_attempts = server.n_faulty
        if barked.is_set():
            found = [Failing(cell, "HANG", f"{mode}: nothing after {LIMIT:g} s")]
        elif n_attempts == 0 and error is None:
            found = [Failing(cell, "NOT ASKED", f"{mode}: the program does not call this endpoint")]
        else:
            found = self._judge(cell, passes, got, error, n_attempts, mode)
        server.clear()
        server.wait_until_idle(SETTLED)
        later = 0.0
        if cell.fault.comes is Comes.CONTRADICTED and not (error is None or _is_ours(error)):
            # The program failed on the shape while it was traced, before the component could contradict itself: nobody
            # knows whose fault that is, so the shape is believed for a while.
            later = memory._CREDIT + 1.0
        with watched(server, LIMIT) as barked, by_the_clock(later):
            got, error = _outcome(call, inputs(1))
        if barked.is_set():
            found.append(Failing(cell, "HANG", f"{mode}: in the next call"))
        elif error is not None:
            found.append(Failing(cell, "NEXT CALL", f"{mode}: {_said(error)}"))
        elif not _equal(got, expected(cell.endpoint, inputs(1))):
            found.append(Failing(cell, "WRONG NUMBER", f"{mode}: in the next call"))
        if not found and cell.endpoint not in QUESTIONS:
            self._calls[cell.endpoint, cell.way] = call
        return found

    def _call(self, cell: Cell) -> Callable[[Inputs], Any]:
        """The program of a cell: that of the cell before, unless that one went wrong."""
        known = self._calls.pop((cell.endpoint, cell.way), None)
        if known is not None:
            return known
        handle = HttpTesseract(
            self.server.url,
            label=f"cell-{next(_numbers)}",
            read_timeout=PATIENCE,
            question_timeout=PATIENCE,
            connect_timeout=2.0,
            retry=RETRY,
            max_bytes=MAX_BYTES,
        )
        fn = functools.partial(PROGRAMS[cell.endpoint], handle)
        if cell.way == "jitted":
            fn = jax.jit(fn)
        elif cell.way in ("concurrent", "flow"):
            fn = tf.concurrent(fn, submitter=self.submitter)
        return lambda primals: jax.tree_util.tree_map(np.asarray, fn(*map(jnp.asarray, primals)))

    def _judge(
        self, cell: Cell, passes: bool, got: Any, error: Exception | None, n_attempts: int, mode: str
    ) -> list[Failing]:
        failing = functools.partial(Failing, cell)
        comes = cell.fault.comes
        if error is None:
            if comes is Comes.ASKED_FOR or (cell.endpoint in cell.fault.free and cell.way == "eager"):
                return []
            if not _equal(got, expected(cell.endpoint, inputs(0))):
                return [
                    failing("WRONG NUMBER", f"{mode}: {_first_difference(got, expected(cell.endpoint, inputs(0)))}")
                ]
            if comes in (Comes.REFUSED, Comes.CONTRADICTED) or (comes is Comes.RECOVERED and not passes):
                return [failing("NOT REFUSED", f"{mode}: the right value, from an answer that is none")]
            return []
        if comes is Comes.RIGHT or (comes is Comes.RECOVERED and passes):
            return [failing("NOT RECOVERED", f"{mode}: after {n_attempts} attempts: {_said(error)}")]
        return [failing(kind, f"{mode}: {what}") for kind, what in complaints(cell, error, self.server, n_attempts)]


@contextlib.contextmanager
def watched(server: FaultyServer, seconds: float) -> Iterator[threading.Event]:
    """Let go of everything that still hangs after so many seconds; the event says that it came to that."""
    barked = threading.Event()

    def bark() -> None:
        barked.set()
        server.release()

    timer = threading.Timer(seconds, bark)
    timer.start()
    try:
        yield barked
    finally:
        timer.cancel()
        timer.join()


@contextlib.contextmanager
def by_the_clock(later: float) -> Iterator[None]:
    """As if so many seconds had passed for what was said of shapes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_now", lambda: time.monotonic() + later)
        yield


def _outcome(call: Callable[[Inputs], Any], primals: Inputs) -> tuple[Any, Exception | None]:
    try:
        return call(primals), None
    except Exception as error:
        return None, error


def _equal(got: Any, wanted: Any) -> bool:
    return _first_difference(got, wanted) == ""


def _first_difference(got: Any, wanted: Any) -> str:
    pairs = zip(jax.tree_util.tree_leaves(got), jax.tree_util.tree_leaves(wanted), strict=True)
    for a, b in pairs:
        if a.shape != np.shape(b) or not np.allclose(a, b, rtol=1e-12, atol=1e-12):
            return f"{np.asarray(a).tolist()} where {np.asarray(b).tolist()} is right"
    return ""


def _is_ours(error: Exception) -> bool:
    return in_ours(error) is not None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:300]!r}"


# --- what an error says -----------------------------------------------------------------------------------------------


def complaints(cell: Cell, error: Exception, server: FaultyServer, n_attempts: int) -> Iterator[tuple[str, str]]:
    """What is wrong with an error: its type, or its words."""
    if cell.fault.comes is Comes.CONTRADICTED and not _is_ours(error):
        return
    ours = in_ours(error) if cell.way == "jitted" else (type(error), str(error))
    if ours is None or not issubclass(ours[0], errors.TesseractFlowError):
        yield "UNTYPED", _said(error)
        return
    if cell.fault.comes is Comes.ASKED_FOR:
        return
    kind, text = ours
    accepted = (*cell.fault.errors, "SchemaError") if cell.endpoint == "openapi.json" else cell.fault.errors
    if not any(issubclass(kind, getattr(errors, name)) for name in accepted):
        yield "UNTRUE", f"a {kind.__name__}, where one of {', '.join(accepted)} is true: {text[:300]!r}"
    if cell.fault.says and cell.fault.says not in text:
        yield "UNTRUE", f"does not say {cell.fault.says!r}: {text[:300]!r}"
    if "cell-" not in text and server.url not in text:
        yield "UNTRUE", f"does not say whom: {text[:300]!r}"
    if len(text.strip().splitlines()) < 2:
        yield "UNTRUE", f"does not say what to do: {text[:300]!r}"
    # One of several calls that run at once may fail of the same cause, and then speaks for itself alone.
    whose = re.search(r"'(\w+)' of Tesseract", text)
    asked = [asked for asked in server.asked if asked.is_faulty]
    was_whole = any(one.is_whole for one in asked if whose is None or one.endpoint == whose[1])
    # In a flow each attempt has a state and a log of its own, and the last one speaks for itself.
    is_all = cell.way != "flow" and cell.endpoint not in QUESTIONS and "may still be running" not in text
    if re.search(r"Nothing was (started|sent)", text) and was_whole and is_all:
        yield "UNTRUE", f"something may have started: {text[:300]!r}"
    if "may still be running" in text and cell.endpoint in QUESTIONS:
        yield "UNTRUE", f"no solve is running for this question: {text[:300]!r}"
    if "is tried again" in text and n_attempts <= 1:
        yield "UNTRUE", f"it was not tried again: {text[:300]!r}"
    if "not tried again" in text and n_attempts > 1:
        yield "UNTRUE", f"it was tried {n_attempts} times: {text[:300]!r}"


_OURS = "|".join(name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception))
_RAISED = re.compile(rf"^(?:tesseract_flow\.errors\.)?({_OURS}): (.*)", re.MULTILINE | re.DOTALL)


def in_ours(error: Exception) -> tuple[type, str] | None:
    """Our error inside of that which JAX makes of it, by the end of its text."""
    if isinstance(error, errors.TesseractFlowError):  # while it was traced
        return type(error), str(error)
    found = _RAISED.search(str(error))
    return None if found is None else (getattr(errors, found[1]), found[2])
