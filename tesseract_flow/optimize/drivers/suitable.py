"""What a library cannot do, told before a run begins."""

from __future__ import annotations

from tesseract_flow.errors import DriverError
from tesseract_flow.optimize.drivers.base import Setting
from tesseract_flow.optimize.drivers.task import Flat


def require_suitable(
    name: str, setting: Setting, flat: Flat, *, takes_constraints: bool, takes_equalities: bool
) -> None:
    """Refuse what a library cannot do, before anything is evaluated.

    Args:
        name: of the driver.

    Raises:
        DriverError: the message says what can.
    """
    kind = setting.policy.action
    if kind == "skip":
        raise DriverError(
            f"Driver {name!r} owns its loop, and would make the same update again that on_failure='skip' has dropped.\n"
            "Use on_failure='shrink' (back along the step) or 'stop'; or a driver of Optax that steps, such as 'adam'."
        )
    if not flat.is_free.any():
        raise DriverError(f"Driver {name!r}: nothing is left to vary, as all lower bounds equal the upper ones.")
    if flat.n_constraints and not takes_constraints:
        raise DriverError(
            f"Driver {name!r} takes bounds, and no constraints; problem {setting.problem.name!r} has "
            f"{', '.join(map(repr, setting.constraints.names))}.\n"
            "Use 'slsqp', or an Optax driver such as 'lbfgs', which gets them by augmented Lagrangian."
        )
    demands = setting.problem.constraints or {}
    if takes_equalities:
        return
    # Limits may become equal only where they are divided by what they are measured in.
    met = {one for one, is_equal in zip(flat.names, flat.limits[0] == flat.limits[1], strict=True) if is_equal}
    met |= {one for one, demand in demands.items() if demand.is_equal(setting.evaluator.dtype).any()}
    given = sorted(one for one in met if demands[one].equals is not None)
    meant = sorted(met - set(given))
    if given or meant:
        said = [f"equals=... of {', '.join(map(repr, given))}"] if given else []
        if meant:
            said.append(f"lower and upper limits that are equal of {', '.join(map(repr, meant))}")
        raise DriverError(
            f"Driver {name!r} takes inequalities only; problem {setting.problem.name!r} demands "
            f"{' and '.join(said)}.\n"
            "Demand the side that the optimum pushes against (upper=... or lower=...), or use 'slsqp', 'ld_slsqp' or "
            "'trust-constr'."
        )
