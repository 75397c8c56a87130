"""What a form asks for besides the problem: the optimiser, when to stop, what to do on failure, how the run goes.

No `from __future__ import annotations` here: Prefect builds the form from live annotations, and a served run fails on
postponed ones. Unknown fields are refused, so that a form that is filled in by a script says so when it is submitted.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tesseract_flow.optimize import FailureAction, WhichDesign
from tesseract_flow.tasks.observe import ObserveLevel

# Where the runs of a study are made; `many` knows how.
Each = Literal["thread", "task", "flow-run"]

# The drivers worth offering in a form; the settings of each are those of its library.
_OfOptax = Literal[
    "adam", "lbfgs", "adamw", "nadam", "amsgrad", "adabelief", "radam", "rmsprop", "yogi", "lion", "sgd", "polyak_sgd"
]
_ForMisfits = Literal["levenberg-marquardt", "gauss-newton", "dogleg"]
OptimizerName = Literal[
    "auto", _OfOptax, "slsqp", "l-bfgs-b", "trust-constr", "mma", "ccsaq", "ld_slsqp", _ForMisfits, "cma-es"
]


class Optimizer(BaseModel):
    """Which optimiser, of Optax, SciPy, NLopt or Optimistix, and its settings."""

    model_config = ConfigDict(extra="forbid")

    name: OptimizerName = Field(
        default="auto",
        description="auto: slsqp with constraints, unless there are many unknowns or constraints, else adam. Or an "
        "Optax optimiser (lbfgs searches along a line); or one of SciPy's: slsqp, l-bfgs-b (bounds only), "
        "trust-constr; or of NLopt's, if it is installed: mma, ccsaq (inequalities only), ld_slsqp; for least squares "
        "levenberg-marquardt, gauss-newton or dogleg; or cma-es, which asks for no gradients",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="Of an Optax optimiser, in units of the problem's scale; empty for the optimiser's default",
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description='Further settings, such as {"schedule": "cosine", "schedule_steps": 300}'
    )


class Stop(BaseModel):
    """When to stop; whichever comes first. Of what is left as it is here the problem's own settings hold."""

    model_config = ConfigDict(extra="forbid")

    max_steps: int = Field(default=200, ge=0, description="Steps, over all runs with this run key")
    gradient_tolerance: float | None = Field(
        default=1e-6,
        ge=0,
        description="Of first-order optimality: stationarity and complementarity; constraints must be met as well. "
        "0 switches it off",
    )
    patience: int | None = Field(default=None, ge=1, description="Steps without improvement of the best design")
    stagnation_tolerance: float = Field(default=1e-6, ge=0, description="Relative improvement that counts as one")
    wall_time: float | None = Field(default=None, gt=0, description="Seconds, over all runs with this run key")
    max_requests: int | None = Field(default=None, ge=1, description="Requests of this run to Tesseracts")


def said(stop: Stop) -> dict[str, Any] | None:
    """What the form says of when to stop: the fields that somebody has filled in; None where there are none."""
    return stop.model_dump(exclude_unset=True, exclude_none=True) or None


class Failures(BaseModel):
    """What to do when an evaluation fails: NaN, a component's own error, a time-out, an answer that is not valid."""

    model_config = ConfigDict(extra="forbid")

    action: FailureAction = Field(
        default="shrink",
        description="shrink: back along the step until it can be evaluated; skip: drop the update; stop: end with the "
        "best so far; raise: fail",
    )
    retries: int = Field(default=0, ge=0, description="Evaluate the same design again first, for what may pass")
    shrinks: int = Field(default=10, ge=0, description="How often a step is shortened before it is given up")
    factor: float = Field(default=0.5, gt=0, lt=1, description="By which it is shortened each time")
    memory: Literal["keep", "reset"] = Field(default="keep", description="Of the optimiser, after a dropped update")
    in_a_row: int = Field(default=30, ge=1, description="Failed evaluations in a row after which the run ends")
    patience: float = Field(default=300.0, ge=0, description="Seconds to wait for a component that is away")


class Many(BaseModel):
    """How the runs of a study are made, and where they are kept."""

    model_config = ConfigDict(extra="forbid")

    each: Each = Field(
        default="thread",
        description="thread: all in this flow run; flow-run: each a flow run of its own, on any worker of the pool, "
        "with room for more than one run at once (serve-flow --limit 4); task: each a task of this flow run's task "
        "runner, such as Dask's",
    )
    deployment: str | None = Field(
        default=None,
        description="Of each flow-run, such as optimize-design/wing; empty: the one that is called like this one",
    )
    max_workers: int | None = Field(
        default=None, ge=1, description="Runs at once; empty: 8 threads, or as many flow runs and tasks as there are"
    )
    wall_time: float | None = Field(
        default=None,
        gt=0,
        description="Seconds from the beginning of this flow run: runs stop in time, and the same run key goes on",
    )
    folder: str = Field(
        default="runs", description="Where the study's folder is made: a folder, or a URL such as s3://bucket/runs"
    )
    check: bool = Field(
        default=True,
        description="Look for all that is wrong before the first solve, and refuse to start with an error",
    )
    accept_changes: bool = Field(
        default=False, description="Go on with the study of this key although its problem is another one now"
    )


class Starts(BaseModel):
    """Where the runs begin: points between the bounds."""

    model_config = ConfigDict(extra="forbid")

    n: int = Field(default=16, ge=1, description="How many runs")
    method: Literal["latin-hypercube", "sobol", "grid"] = Field(default="latin-hypercube", description="How to choose")
    seed: int = Field(default=0, ge=0, description="Other starts for another seed")
    spread: float | None = Field(
        default=None,
        gt=0,
        description="No farther from the problem's own start than this; needed where there are no bounds",
    )


class Running(BaseModel):
    """Where the run is kept, what of it is seen, and how it begins."""

    model_config = ConfigDict(extra="forbid")

    observe: ObserveLevel = Field(
        default="auto",
        description="What becomes a task run: every call, every step, nothing, or as much as the pace allows (auto)",
    )
    folder: str = Field(
        default="runs", description="Where the run's folder is made: a folder, or a URL such as s3://bucket/runs"
    )
    check: bool = Field(
        default=True,
        description="Look for all that is wrong before the first solve, and refuse to start with an error",
    )
    verify_gradients: Literal["start"] | int | None = Field(
        default="start",
        description="Whether gradients fit the values: at the start, or at the start and every so many steps",
    )
    schedule: dict[str, Any] = Field(
        default_factory=dict,
        title="Scheduled numbers",  # beside the schedule of a learning rate
        description='Other values for numbers that the problem schedules: {"beta": [1, 4, 16]}, one for each phase; '
        '{"beta": {"values": [1, 4, 16], "every": 40}}, for 40 steps each; or a number that stays',
    )
    start_from: str | None = Field(
        default=None, description="Folder or URL of another run, from whose design this one starts, under a new run key"
    )
    start_design: WhichDesign = Field(default="best", description="Which design of that run")
    accept_changes: bool = Field(
        default=False, description="Go on with the run of this key although its problem is another one now"
    )
