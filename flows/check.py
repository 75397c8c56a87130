"""The flows that look at a problem: before anybody pays for a solve, and whether its derivatives are right.

No `from __future__ import annotations` here: Prefect builds the form from live annotations.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from prefect import flow

from tesseract_flow.blocks import TesseractEndpoint
from tesseract_flow.checks import GradientReport, Report, check, check_gradients
from tesseract_flow.checks.views import as_markdown, gradient_markdown
from tesseract_flow.errors import ProblemError, TesseractFlowError
from tesseract_flow.optimize import Problem, Result, load_problem
from tesseract_flow.optimize.loading import check_named_settings
from tesseract_flow.storage import without_secrets
from tesseract_flow.tasks.cards import Cards
from tesseract_flow.tasks.log import own_log, run_logger
from tesseract_flow.tasks.run import ended, label_of_run, name_run

_MOST_REQUESTS = 500  # to find out whose gradients are wrong


@flow(name="check-design")
def check_design(
    problem: str,
    settings: dict[str, Any] = {},  # noqa: B006 (a form shows the default; nobody changes it)
) -> dict[str, Any]:
    """Report all that is wrong with a problem, without a solve.

    Args:
        problem: what is to be optimised, as folder/problem.py:factory, package.module:factory or
            folder/problem.yaml.
        settings: arguments of the factory. "block:NAME" stands for the Tesseract of the endpoint block NAME.

    Returns:
        ok, and findings with kind, where, message, remedy and severity. The run fails if one of them is an error.
    """
    with own_log():
        loaded = load_problem(problem, settings_of_form(problem, settings))
        return looked_at(loaded, flow=check_design.fn)


@flow(name="check-gradients")
def check_gradients_of_design(
    problem: str,
    settings: dict[str, Any] = {},  # noqa: B006
    at: str | None = None,
    at_design: Literal["best", "last"] = "best",
    components: bool = False,
    max_requests: int = 2000,
) -> dict[str, Any]:
    """Compare the gradients of a problem with its values, and find out whose are wrong.

    Args:
        problem: what is to be optimised, as folder/problem.py:factory, package.module:factory or
            folder/problem.yaml.
        settings: arguments of the factory. "block:NAME" stands for the Tesseract of the endpoint block NAME.
        at: folder or URL of a run, at whose design to look; empty: at the problem's start.
        at_design: which design of that run, its best or its last one.
        components: look at each component even if the gradient as a whole is right.
        max_requests: the most that is sent to components.

    Returns:
        ok, and verdicts with status, component, endpoint, output, input, message and remedy. The run fails if a
        derivative is wrong.
    """
    with own_log():
        loaded = load_problem(problem, settings_of_form(problem, settings))
        where = None if at is None else (at, at_design)
        return compared(loaded, where, components, max_requests, flow=check_gradients_of_design.fn)


def looked_at(problem: Problem, *, flow: Callable[..., Any]) -> Any:
    """Check a problem inside of the run of a flow, or without one; what the function of that flow returns."""
    name_run(f"{problem.name} check")
    report = require_soundness(problem, Cards(problem.name, label_of_run(None)))
    return ended(report.to_json(), converged=True, message=report.headline, flow=flow)


def compared(problem: Problem, at: Any, components: bool, max_requests: int, *, flow: Callable[..., Any]) -> Any:
    """Check the gradients of a problem, likewise."""
    name_run(f"{problem.name} gradients")
    report = check_gradients(problem, at=at, components=components or None, max_requests=max_requests)
    logger = run_logger()
    for verdict in report.verdicts:
        say = {"wrong": logger.error, "unsure": logger.warning, "right": logger.info}[verdict.status]
        say("%s", verdict)
    _show_gradients(Cards(problem.name, label_of_run(None)), report)
    if not report.ok:
        raise ProblemError("\n".join([report.headline, *map(str, report.faults)]))
    logger.info("%s", report.headline)
    return ended(report.to_json(), converged=True, message=report.headline, flow=flow)


def require_soundness(problem: Problem, cards: Cards) -> Report:
    """Check a problem, leave the report as a card and in the log, and refuse to go on with an error in it."""
    logger = run_logger()
    report = check(problem)
    for finding in report.findings:
        say = {"error": logger.error, "warning": logger.warning, "note": logger.info}[finding.severity]
        say("%s", finding)
    cards.markdown("check", as_markdown(report), report.headline)
    if not report.ok:
        lines = "\n".join(str(finding) for finding in report.errors)
        raise ProblemError(f"{report.headline} Nothing was solved.\n{lines}")
    logger.info("%s", report.headline)
    return report


def blamed(problem: Problem, result: Result, cards: Cards) -> None:
    """Find out whose derivatives are wrong where a run stopped because of them, for its log and as a card."""
    logger = run_logger()
    try:
        report = check_gradients(problem, at=result, components=True, max_requests=_MOST_REQUESTS)
    except TesseractFlowError as error:
        logger.warning("Whose gradients are wrong could not be found out: %s", error)
        return
    logger.warning("%s", report)
    _show_gradients(cards, report)


def _show_gradients(cards: Cards, report: GradientReport) -> None:
    cards.markdown("gradients", gradient_markdown(report), report.headline)


def settings_of_form(problem: str, settings: Mapping[str, Any], others: Iterable[str] = ()) -> dict[str, Any]:
    """Settings as a form has them, for the factory of a problem. Nothing of the problem is run for it.

    Args:
        others: names of settings that it gets besides.

    Raises:
        ProblemError: the factory takes others, or one of them holds a credential.
        NotAllowed: the problem lies outside of `TESSERACT_FLOW_ROOTS`.
    """
    check_named_settings(problem, [*settings, *others])
    return {name: resolved(value, name) for name, value in settings.items()}


def resolved(value: Any, name: str = "") -> Any:
    """What a setting of a form stands for: "block:NAME" is the Tesseract of that endpoint block.

    Raises:
        ProblemError: it holds a credential. Parameters of a run are kept in clear, for everybody to read.
    """
    is_block = isinstance(value, str) and value.startswith("block:")
    if not is_block and without_secrets(_texts(value), name) != _texts(value):
        raise ProblemError(
            f"Setting {name!r} holds what looks like a credential, and the parameters of a run are kept in clear.\n"
            "Keep it in an endpoint block, and give 'block:NAME' (or choose the block in the form). Renew the "
            "credential: whoever sees this run's parameters has it."
        )
    if is_block:
        block = TesseractEndpoint.load(value.removeprefix("block:"))
        assert isinstance(block, TesseractEndpoint)
        return block.open()
    return value


def _texts(value: Any) -> Any:
    """All but numbers, which are settings, whatever they are called: `pin` may well be an input."""
    if isinstance(value, Mapping):
        return {key: _texts(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_texts(item) for item in value]
    return value if isinstance(value, str) and value else None
