"""What a flow run says of itself: its name, and how it ended.

Outside of a flow run (`optimize_design.fn(...)`) there is nobody to say it to, and nothing here asks for a server.
"""

import contextlib
import re
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import prefect
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.states import Completed

from tesseract_flow.storage import without_secrets
from tesseract_flow.tasks.log import run_logger

NOT_CONVERGED = "NotConverged"  # the name of a completed state
_LONGEST_NAME = 120
# How the form of Prefect's V2 pages fills in a name: one of these adjectives and an animal, all with capitals.
_OF_V2 = re.compile(
    r"(Awesome|Rustic|Small|Gorgeous|Fantastic|Sleek|Intelligent|Unbranded|Refined|Licensed|Generic|Practical|Ergonomic|"
    r"Handcrafted|Tasty|Handmade|Incredible)-[A-Z]\w*"
)
# How the form of the first version does it: a Greek letter with or without a number, a star or planet, and more often
# than not one more word.
_OF_V1 = re.compile(
    r"(alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho|sigma|tau|upsilon|phi|chi|"
    r"psi|omega)\d*-([a-z-]+)"
)
_STARS = re.compile(r"""[`'"](andromedae(?:\.[a-z-]*)+)[`'"]""")  # in the script of its pages


def in_flow_run() -> bool:
    """Whether the caller runs inside of a flow run, where tasks may be called."""
    context = FlowRunContext.get()
    return context is not None and context.flow_run is not None


def key_of_run(run_key: str | None) -> str:
    """The key that was given, or a new one: the id of the flow run, which stays the same when it is tried again."""
    context = FlowRunContext.get()
    if run_key or (context is not None and context.flow_run is not None):
        return run_key or str(context.flow_run.id)  # type: ignore[union-attr]
    return f"local-{uuid.uuid4().hex[:8]}"


def label_of_run(run_key: str | None) -> str:
    """A short name for this run: its key, or the beginning of a new one."""
    return run_key or key_of_run(None)[:8]


def name_run(name: str) -> None:
    """Call the flow run so, unless somebody has chosen a name for it.

    Prefect's own way, a template at the flow, knows the parameters and not the problem, and overrules whoever typed a
    name into the form.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or not _is_made_up(context.flow_run.name):
        return
    name = name[:_LONGEST_NAME]
    try:
        with get_client(sync_client=True) as client:
            client.set_flow_run_name(context.flow_run.id, name)
    except Exception as error:  # a name is a service, not the work
        run_logger().warning("The run could not be renamed to %r, and goes on: %s", name, error)
        return
    context.flow_run.name = name


def ended(summary: dict[str, Any], *, converged: bool, message: str, flow: Callable[..., Any]) -> Any:
    """What the function of a flow returns: `summary`, in a state of the run that says why it ended.

    A run that has not converged is completed, as there is a result, under a name of its own. Where `flow` is called as
    a plain function, the summary alone.
    """
    context = FlowRunContext.get()
    if context is None or context.flow is None or context.flow.fn is not flow:
        return summary
    message = str(without_secrets(message))
    return Completed(data=summary, message=message, name=None if converged else NOT_CONVERGED)


def _is_made_up(name: str) -> bool:
    """Whether Prefect has chosen the name: its server, from two words of a dictionary, or one of its forms."""
    words = name.split("-")
    if _OF_V2.fullmatch(name) or (len(words) == 2 and all(word in _dictionary() for word in words)):
        return True
    of_v1 = _OF_V1.fullmatch(name)
    return of_v1 is not None and not {of_v1[2], of_v1[2].rpartition("-")[0]}.isdisjoint(_stars())


@cache
def _dictionary() -> frozenset[str]:
    with contextlib.suppress(ImportError):
        from coolname.data import config

        return frozenset(
            word for entry in config.values() for key in ("words", "phrases") for word in _flat(entry.get(key, ()))
        )
    return frozenset()


@cache
def _stars() -> frozenset[str]:
    """The stars and planets of V1, which only its own pages know. Without them, what looks like one is a name."""
    for script in Path(prefect.__ui_static_path__).glob("assets/index-*.js"):
        with contextlib.suppress(OSError):
            if (found := _STARS.search(script.read_text(encoding="utf-8"))) is not None:
                return frozenset(found[1].split(".")) - {""}
    return frozenset()


def _flat(entry: Any) -> list[str]:
    return [entry] if isinstance(entry, str) else [word for part in entry for word in _flat(part)]
