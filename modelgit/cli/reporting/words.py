"""How figures are written on the page."""

from modelgit.porcelain.reporting.values import Estimate

NONE = "–"


def percent(value: float | None) -> str:
    """Returns an accuracy in percent, a dash for none."""
    return NONE if value is None else f"{100 * value:.1f}"


def with_ends(found: Estimate | None) -> str:
    """Returns an accuracy in percent with its interval, where it has one."""
    if found is None:
        return NONE
    if found.low is None or found.high is None:
        return percent(found.value)
    return f"{percent(found.value)} ({percent(found.low)}–{percent(found.high)})"


def points(value: float, low: float | None = None, high: float | None = None) -> str:
    """Returns a difference of accuracies in points, signed, with its interval if there is one."""
    ends = "" if low is None or high is None else f" ({signed(low)} to {signed(high)})"
    return f"{signed(value)}{ends}"


def signed(value: float) -> str:
    """Returns a share in points with its sign; what rounds to nothing has none."""
    rounded = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if rounded in ("+0.0", "−0.0") else rounded


def decimals(value: float | None, digits: int = 2) -> str:
    """Returns a number with so many digits after the point, a dash for none."""
    return NONE if value is None else f"{value:.{digits}f}"
