"""Gates: bars that scores must clear, written `accuracy>=0.75`. Pure: no model, no data."""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from modelgit.errors import GateFailed, UsageError

COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
FORM = re.compile(r"\s*([A-Za-z_][\w./-]*)\s*(>=|<=|>|<)\s*(\S+)\s*")


@dataclass(frozen=True, slots=True)
class Bar:
    """A bound on one metric."""

    metric: str
    comparison: str
    value: float

    def __str__(self) -> str:
        """The bar as it is written."""
        return f"{self.metric}{self.comparison}{self.value:g}"

    def cleared_by(self, score: float) -> bool:
        """Tells whether the score is good enough; what is not a number never is."""
        return COMPARISONS[self.comparison](score, self.value)


def parse_bar(text: str) -> Bar:
    """Returns the bar that `text` says.

    Raises:
        UsageError: it is of another form, or its bound is no finite number.
    """
    match = FORM.fullmatch(text)
    try:
        value = float(match[3]) if match else math.nan
    except ValueError:
        value = math.nan
    if match is None or not math.isfinite(value):
        raise UsageError(f"gate '{text}': expected METRIC, a comparison, a number", hint="for example 'accuracy>=0.75'")
    return Bar(match[1], match[2], value)


def check_bars(bars: Sequence[Bar], scores: Mapping[str, float], what: str) -> None:
    """Refuses scores that do not clear every bar; `what` names the model.

    Raises:
        UsageError: a bar names a metric that was not measured.
        GateFailed: naming every bar that was missed, and by how much.
    """
    for bar in bars:
        if bar.metric not in scores:
            raise UsageError(
                f"gate '{bar}': no such metric", hint=f"measured: {', '.join(sorted(scores)) or 'nothing'}"
            )
    missed = [bar for bar in bars if not bar.cleared_by(scores[bar.metric])]
    if missed:
        told = "; ".join(
            f"{bar.metric} is {scores[bar.metric]:.4g}, expected {bar.comparison} {bar.value:g}" for bar in missed
        )
        raise GateFailed(f"gate failed for {what}: {told}", hint="nothing was changed")
