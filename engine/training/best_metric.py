"""The validation metric that selects the best model (`train.best_metric`)."""

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from common.errors import UserError
from common.metric_info import metric_info
from engine.run.tracking import MetricsRow

FALLBACKS = ("accuracy", "mean_average_precision")
"""Used where `train.best_metric` is not a number; if these are none either, the last validation is the best."""


@dataclass(frozen=True)
class Best:
    """What selected a model: a metric of its validation."""

    metric: str
    value: float
    epoch: float

    def is_beaten_by(self, other: "Best", wanted: str) -> bool:
        """Whether `other`, of a later epoch, is better; on a tie it is. A value of `wanted` beats any of a fallback.

        Whether higher or lower values are better is declared with the metric (`MetricInfo.better`).
        """
        order = (wanted, *FALLBACKS, "epoch")
        if other.metric != self.metric:
            return order.index(other.metric) < order.index(self.metric)
        return other.value <= self.value if direction(self.metric) == "lower" else other.value >= self.value


def direction(name: str) -> str | None:
    """Whether "higher" or "lower" values of validation metric `name` are better; None: neither, or not declared."""
    # A standard deviation is looked up as the metric that it is of.
    return None if name.endswith("_std") else metric_info(f"val/{name}").better


def best_value(row: MetricsRow, name: str) -> float:
    """The value of validation metric `name` in `row`. Raises UserError listing the known metrics."""
    if f"val/{name}" not in row:
        names = sorted(key.removeprefix("val/") for key in row if key.startswith("val/"))
        known = ", ".join(each for each in names if direction(each))
        raise UserError(f"train.best_metric: validation has no metric {name!r}; it has {known}")
    return float(row[f"val/{name}"])


def candidate(row: MetricsRow, wanted: str) -> Best:
    """What may select the model of a validation: the metric `wanted`, or if that is nan the first usable fallback.

    Raises UserError if validation has no metric `wanted`.
    """
    best_value(row, wanted)
    for name in (wanted, *FALLBACKS):
        if not math.isnan(value := float(row.get(f"val/{name}", math.nan))):
            return Best(name, value, row["epoch"])
    return Best("epoch", row["epoch"], row["epoch"])


def judged_by(wanted: str, best: Best, rows: Sequence[MetricsRow], log: Callable[[str], None]) -> Best | None:
    """`best` of a resumed run by the metric `wanted`, read from the row of its epoch, if another one selected it.

    Without a value there, a fallback stays; for any other metric None: nothing can be compared with it.
    """
    if best.metric == wanted:
        return best
    row = next((row for row in rows if row["epoch"] == best.epoch), {})
    value, epoch = float(row.get(f"val/{wanted}", math.nan)), f"the best model so far, of epoch {best.epoch:g},"
    if not math.isnan(value):
        log(f"train.best_metric was {best.metric}; {epoch} has {wanted} {value:.6g}")
        return Best(wanted, value, best.epoch)
    if best.metric in (*FALLBACKS, "epoch"):
        return best
    log(f"train.best_metric was {best.metric}; {epoch} has no {wanted}: the next validation is the best")
    return None


def check_best_metric(name: str, certain: Container[str], validate: Callable[[], MetricsRow]) -> None:
    """Raise UserError before training if validation will not give the metric `name`.

    `certain`: metrics that every model and data set has (`MetricSet.certain`). For any other name, such as mask IoU or
    a typo, `validate` is run once.
    """
    if name not in certain:
        best_value(validate(), name)


def check_direction(name: str) -> None:
    """Raise UserError unless it is known whether higher or lower values of the metric are better."""
    if direction(name) is None:
        raise UserError(
            f"train.best_metric={name}: whether higher or lower values are better is not declared; choose another "
            "metric, or declare it in your metric's `shown`: MetricInfo(better=...)"
        )
