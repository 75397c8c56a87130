"""What a run that is under way may be asked to do, as a value and as a file beside its journal.

A request is a file of its own, `steer-....json`, written whole and for its owner alone, so that many may ask at once
and nobody has to be listening. The run looks at them (`steering`), writes down what it does in its journal, and removes
them. Here is what a request may say; whether it fits the run is for `asking` and `steering` to tell.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from tesseract_flow.errors import ProblemError, SteeringError, did_you_mean
from tesseract_flow.optimize.schedule import as_schedule
from tesseract_flow.optimize.stopping import STOP_SETTINGS, stop_rules_from

Do = Literal["pause", "go-on", "stop", "release"]
COMMAND = re.compile(r"steer-\d{20}-[0-9a-f]{8}\.json")
LONGEST = 2**20  # bytes of a request
CHANGES = ("learning_rate", "stop", "bounds", "schedule")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A request.

    Attributes:
        do: `"pause"`, before the next evaluation; `"go-on"`, also past a phase that waits for approval; `"stop"`, with
            the best so far, calls under way given up; `"release"`, give up the calls under way. None: only `changes`.
        changes: `learning_rate`, a number; `stop`, settings as in `stop_rules_from`, of which one that is None takes
            the rule away; `bounds`, by leaf `[lower, upper]`; `schedule`, by name the number that holds from now on.
        again: of a release: ask again, instead of counting the evaluation as failed.
        by: from where it was asked.
        at: when, as a time of day in UTC.
        id: a name that no other request has.
    """

    do: Do | None = None
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    again: bool = False
    by: str = "Python"
    at: str = dataclasses.field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    )
    id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self):
        if self.do not in (None, *get_args(Do)):
            raise SteeringError(
                f"A run can be asked to {', '.join(get_args(Do))}; received {self.do!r}."
                f"{did_you_mean(str(self.do), get_args(Do))}"
            )
        if self.do is None and not self.changes:
            raise SteeringError(
                f"Nothing is asked for: say {', '.join(get_args(Do))}, or what is to change ({', '.join(CHANGES)})."
            )
        if self.do is not None and self.changes:
            raise SteeringError(f"Ask for one thing at a time: the changes first, and then {self.do}.")
        if self.again and self.do != "release":
            raise SteeringError("again=True goes with 'release': the calls that are given up are then made once more.")
        object.__setattr__(self, "changes", _checked(self.changes))

    @property
    def name(self) -> str:
        """Of the file: in the order in which they were made."""
        return f"steer-{time.time_ns():020d}-{self.id[:8]}.json"

    def encoded(self) -> bytes:
        data = json.dumps(dataclasses.asdict(self), allow_nan=False).encode()
        if len(data) > LONGEST:
            raise SteeringError(f"A request has at most {LONGEST} bytes, and this one {len(data)}.")
        return data

    @classmethod
    def decoded(cls, data: bytes) -> Command:
        """The request in a file, which anybody may have written who may write there.

        Raises:
            SteeringError: it is none.
        """
        try:
            if len(data) > LONGEST:
                raise ValueError(f"it has more than {LONGEST} bytes")
            fields = json.loads(data)
            known = {field.name: fields[field.name] for field in dataclasses.fields(cls)}
            texts = (known["by"], known["at"], known["id"])
            if len(known) != len(fields) or not isinstance(known["again"], bool):
                raise ValueError("it has other fields")
            if not all(isinstance(text, str) and len(text) <= 200 for text in texts):
                raise ValueError("a text in it is none")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SteeringError(f"this is no request: {error}") from error
        return cls(**known)

    def __str__(self) -> str:
        said = [f"{name} {_shown(value)}" for name, value in self.changes.items()]
        if self.do is not None:
            said.append(f"{self.do}, and ask again" if self.again else self.do)
        return "; ".join(said)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {_shown(one)}" for name, one in value.items())
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _checked(changes: Any) -> dict[str, Any]:
    """Changes that may fit some run, as plain JSON.

    Raises:
        SteeringError: no run can make them.
    """
    if not isinstance(changes, Mapping):
        raise SteeringError(f"changes are by name ({', '.join(CHANGES)}); received {changes!r}.")
    for name in changes:
        if name not in CHANGES:
            raise SteeringError(
                f"{name!r} of a run cannot be changed.{did_you_mean(str(name), CHANGES)}\n"
                f"What can be changed: {', '.join(CHANGES)}."
            )
    found = {name: value for name, value in changes.items() if value is not None}
    for name in ("stop", "bounds", "schedule"):
        if name in found and not (isinstance(found[name], Mapping) and found[name]):
            raise SteeringError(f"{name}: expected values by name, received {found[name]!r}.")
    if "learning_rate" in found:
        rate = found["learning_rate"]
        is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
        if not is_number or not 0 < rate < math.inf:
            raise SteeringError(f"learning_rate must be a positive number, received {rate!r}.")
        found["learning_rate"] = float(rate)
    try:
        if "stop" in found:
            found["stop"] = dict(found["stop"])
            for name in found["stop"]:
                if name not in STOP_SETTINGS:
                    stop_rules_from({str(name): 0})  # which says what there is
            stop_rules_from(found["stop"])
        if "schedule" in found:
            numbers = {name: as_schedule(value, f"schedule of {name!r}") for name, value in found["schedule"].items()}
            for name, one in numbers.items():
                if len(one.values) != 1:
                    raise ProblemError(f"schedule of {name!r}: expected the one number that holds from now on.")
            found["schedule"] = {str(name): one.values[0] for name, one in numbers.items()}
    except ProblemError as error:
        raise SteeringError(str(error)) from error
    if "bounds" in found:
        found["bounds"] = {str(name): _pair(str(name), pair) for name, pair in found["bounds"].items()}
    return found


def _pair(name: str, pair: Any) -> list[Any]:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise SteeringError(f"bounds of {name!r}: expected [lower, upper], received {pair!r}.")
    sides = []
    for side in pair:
        side = side.tolist() if hasattr(side, "tolist") else side
        if not _is_numbers(side):
            raise SteeringError(
                f"bounds of {name!r}: expected numbers, lists of numbers, or None for no bound; received {side!r}."
            )
        sides.append(side)
    return sides


def _is_numbers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_is_numbers, value))
    # An infinite bound is None: JSON has no word for it.
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


def sides_of(name: str, pair: Any, leaves: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The two sides of new bounds, as arrays of the shape of the leaf that they are for.

    Raises:
        SteeringError: there is no such leaf, or they do not fit it.
    """
    if name not in leaves:
        raise SteeringError(
            f"Nothing called {name!r} varies in this run.{did_you_mean(name, list(leaves))} "
            f"What varies: {', '.join(leaves)}."
        )
    leaf = np.asarray(leaves[name])
    sides = []
    for side, absent in zip(pair, (-np.inf, np.inf), strict=True):
        try:
            array = np.asarray(side, np.float64)  # None becomes NaN
            sides.append(np.broadcast_to(np.where(np.isnan(array), absent, array), leaf.shape).astype(leaf.dtype))
        except ValueError as error:
            raise SteeringError(f"bounds of {name!r} do not fit its shape {leaf.shape}: {error}.") from error
    if not (sides[0] <= sides[1]).all():
        raise SteeringError(f"bounds of {name!r}: a lower one is above its upper one.")
    return sides[0], sides[1]


def require_inside(name: str, pair: Any, design: Mapping[str, Any]) -> None:
    """Refuse bounds that exclude a design.

    Raises:
        SteeringError: they do, or they do not fit.
    """
    lower, upper = sides_of(name, pair, design)
    leaf = np.asarray(design[name])
    outside = np.argwhere(~((lower <= leaf) & (leaf <= upper)))
    if len(outside):
        index = tuple(outside[0])
        where = f"{name}{[int(k) for k in index]}" if index else name
        more = f", and so do {len(outside) - 1} more entries" if len(outside) > 1 else ""
        raise SteeringError(
            f"The present design lies outside of these bounds: {where} is {float(leaf[index]):.6g}, and would have to "
            f"lie between {float(lower[index]):.6g} and {float(upper[index]):.6g}{more}.\n"
            "Give bounds that it satisfies; or start another run within others (start_from)."
        )
