"""What a user allows to be derived: `Derive`, the value behind `open_tesseract(..., derive=...)`."""

from __future__ import annotations

import dataclasses
from typing import Any

from tesseract_flow.derivatives import Differences
from tesseract_flow.errors import OptionError, did_you_mean

_METHODS = ("central", "forward", "spsa")


@dataclasses.dataclass(frozen=True)
class Derive:
    """How missing derivative endpoints are made, for `open_tesseract(..., derive=...)`.

    Attributes:
        differences: how to difference `apply` when no derivative endpoint is there; None: not at all.
        max_requests: the most that one derived call may send; dearer ones are refused before the first. None: any.
        n_in_flight: requests at once; default as many as the handle has lanes.
        measure_noise: whether the step is chosen by the component's own noise. It is measured, by `estimate_noise`,
            before the first difference and remembered per structure of the inputs: 8 more requests, rarely up to 48.
    """

    differences: Differences | None = None
    max_requests: int | None = 1000
    n_in_flight: int | None = None
    measure_noise: bool = False

    def __post_init__(self) -> None:
        if self.differences is not None and not isinstance(self.differences, Differences):
            raise OptionError(
                f"Derive.differences is {self.differences!r}; expected a Differences(...), such as "
                "Differences('central'), or None for exact routes only."
            )
        for name in ("max_requests", "n_in_flight"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise OptionError(f"Derive.{name} is {value!r}; expected a whole number of at least 1, or None.")
        if self.measure_noise and (self.differences is None or self.differences.noise is not None):
            raise OptionError(
                "Derive.measure_noise chooses the step of finite differences: it takes differences=Differences(...), "
                "and these without a noise of their own."
            )

    @classmethod
    def from_option(cls, value: Any) -> Derive | None:
        """What `derive=` means: None, False, True, "exact", a method of `Differences`, or settings in full."""
        if value is None or value is False:
            return None
        if value is True or value == "exact":
            return cls()
        if isinstance(value, Derive):
            return value
        if isinstance(value, Differences):
            return cls(value)
        if isinstance(value, str) and value in _METHODS:
            return cls(Differences(value))  # type: ignore[arg-type]
        known = ("exact", *_METHODS)
        hint = did_you_mean(value, known) if isinstance(value, str) else ""
        raise OptionError(
            f"derive is {value!r}; expected True or 'exact' (only from derivatives that the component has), one of "
            f"{', '.join(map(repr, _METHODS))} (else finite differences of its apply), or a Derive(...).{hint}"
        )
