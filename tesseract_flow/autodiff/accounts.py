"""Whose the requests of compiled code are.

XLA calls back on threads of its own, which know nothing of who called the compiled function. So a callback takes along,
when it is compiled, the number of the account on which that happens. Functions that several accounts use, such as one
that a module has jitted once, must then be compiled for each: `compiled_apart`. Numbers are small and used again, so
runs that follow each other share what is compiled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

from tesseract_flow.client import charged_to, current_account, open_account

P = ParamSpec("P")
T = TypeVar("T")

_compiled_for = jax.make_user_context(None)  # an account's number, as a part of JAX's keys


def compiled_apart() -> contextlib.AbstractContextManager[object]:
    """Inside, on this thread, what JAX compiles is the current account's alone."""
    account = current_account()
    return _compiled_for(account and account.number)


def compiled_for_all() -> contextlib.AbstractContextManager[object]:
    """The same, undone: for code in which no call is a callback."""
    return _compiled_for(None)


def on_its_account(fn: Callable[P, T]) -> Callable[P, T]:
    """`fn`, a callback that is compiled now: its requests are those of the account that it is compiled apart for.

    Otherwise they are left to the thread that it will run on. Where that is XLA's, nobody knows whose they are.
    """
    number = _compiled_for.value
    if number is None:
        return fn

    def charged(*args: P.args, **kwargs: P.kwargs) -> T:
        with charged_to(open_account(number)):
            return fn(*args, **kwargs)

    return charged
