"""The validation figure that chooses the best model (`train.best_metric`)."""

from collections.abc import Callable, Container

from common.errors import UserError
from engine.run.tracking import MetricsRow


def best_value(row: MetricsRow, name: str) -> float:
    """The validation figure `name` of a row. Raises UserError listing those there are."""
    if f"val/{name}" not in row:
        known = ", ".join(sorted(key.removeprefix("val/") for key in row if key.startswith("val/")))
        raise UserError(f"train.best_metric: validation has no {name!r}; it has {known}")
    return float(row[f"val/{name}"])


def check_best_metric(name: str, certain: Container[str], validate: Callable[[], MetricsRow]) -> None:
    """Raise UserError, before anything is trained, where there will be no validation figure `name`.

    `certain`: metrics that there are of any model and images (`MetricSet.certain`). Only where `name` is another one,
    as overlap with masks is, or none at all, one validation is spent on it.
    """
    if name not in certain:
        best_value(validate(), name)
