"""What a user allows to be derived: `Derive`, the value behind `open_tesseract(..., derive=...)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from tesseract_flow.client.deriving.routes import EXACT
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
        replace: derivative endpoints that the component has and that are not to be believed: they are never asked, and
            made like missing ones. `Derive(Differences(), replace="vector_jacobian_product")` puts differences in the
            place of a wrong pullback, if there is no pushforward and no Jacobian to make it from.
    """

    differences: Differences | None = None
    max_requests: int | None = 1000
    n_in_flight: int | None = None
    measure_noise: bool = False
    replace: Collection[str] = ()

    def __post_init__(self) -> None:
        replaced = (self.replace,) if isinstance(self.replace, str) else tuple(self.replace)
        object.__setattr__(self, "replace", tuple(sorted(set(replaced))))
        for endpoint in self.replace:
            if endpoint not in EXACT:
                raise OptionError(
                    f"Derive.replace names {endpoint!r}; expected derivative endpoints, out of "
                    f"{', '.join(map(repr, EXACT))}.{did_you_mean(str(endpoint), EXACT)}"
                )
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

    def believed(self, endpoints: Collection[str]) -> frozenset[str]:
        """Those of a component's endpoints that may be asked."""
        return frozenset(endpoints) - frozenset(self.replace)

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
