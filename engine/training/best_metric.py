"""The validation metric that selects the best model (`train.best_metric`)."""

from collections.abc import Callable, Container

from common.errors import UserError
from engine.run.tracking import MetricsRow


def best_value(row: MetricsRow, name: str) -> float:
    """The value of validation metric `name` in `row`. Raises UserError listing the known metrics."""
    if f"val/{name}" not in row:
        known = ", ".join(sorted(key.removeprefix("val/") for key in row if key.startswith("val/")))
        raise UserError(f"train.best_metric: validation has no metric {name!r}; it has {known}")
    return float(row[f"val/{name}"])


def check_best_metric(name: str, certain: Container[str], validate: Callable[[], MetricsRow]) -> None:
    """Raise UserError before training if validation will not give the metric `name`.

    `certain`: metrics that every model and data set has (`MetricSet.certain`). For any other name, such as mask IoU or
    a typo, `validate` is run once.
    """
    if name not in certain:
        best_value(validate(), name)
