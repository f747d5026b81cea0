"""Config keys, values and metrics that have been renamed.

In flags and config files an old name is refused with a message that gives the new one. Run folders that earlier
versions saved are converted when they are read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import UserError
from datasets.config import earlier_view
from engine.run.config import flat

KEYS = {
    "optim.scratch_factor": "optim.head_lr_mult",
    "optim.modulation_factor": "optim.modulation_lr_mult",
    "optim.prototype_factor": "optim.prototype_lr_mult",
    "optim.stage_2_factor": "optim.stage_2_lr_mult",
    "optim.stage_1_lr_factor": "optim.stage_1_lr_mult",
    "optim.min_lr_share": "optim.min_lr_ratio",
    "optim.accumulation": "optim.grad_accum_steps",
    "train.watch_test": "train.log_test",
    "loss.consistency.report_share": "loss.consistency.report_fraction",
}
METRICS = {
    "kept_share": "keep_ratio",
    "empty_share": "empty_ratio",
    "accuracy_training_shares": "adjusted_accuracy",
    "share_of_answers_changed": "changed_predictions_ratio",
}
VALUES = {
    "data.evaluation": {"cover": "center_crop", "warp": "squash"},
    "train.best_metric": METRICS,
}
_OLD_KEYS = {key.rpartition(".")[2]: key for key in (*KEYS, *VALUES)}
"""Last component -> key with an old name or value. `--optim FILE` and `--optim '{...}'` give this component only."""


def refuse_old_names(values: Mapping[str, Any]) -> None:
    """Raise UserError for the first old key or value in the nested `values` of a YAML file."""
    for key, value in flat(values):
        _refuse(key, value)


def refuse_old_flags(arguments: Sequence[str]) -> None:
    """Raise UserError for the first flag (`--key=value` or `--key value`) with an old key or value."""
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if argument.startswith("--"):
            key, equals, value = argument.removeprefix("--").partition("=")
            _refuse(key, value if equals else following)


def converted_config(values: Mapping[Any, Any], prefix: str = "") -> dict[Any, Any]:
    """A saved config, nested, with today's keys and values in the same order. `prefix`: of the group `values`."""
    result: dict[Any, Any] = {}
    for key, value in values.items():
        old = f"{prefix}{key}"
        new = KEYS[old].removeprefix(prefix) if old in KEYS else key  # no key has moved to another group
        result[new] = converted_config(value, f"{old}.") if isinstance(value, Mapping) else converted_value(old, value)
    return result


def with_earlier_input(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """A saved config of an earlier version, which had no data.interpolation and data.crop, with their values then."""
    data = values.get("data")
    return {**values, "data": {**earlier_view(data), **data}} if isinstance(data, Mapping) else dict(values)


def converted_value(key: str, value: Any) -> Any:
    """The current name of a config key's value."""
    return _renamed(value, VALUES[key]) if key in VALUES and isinstance(value, str) else value


def converted_metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of saved metrics ("val/kept_share": ...) with the current names."""
    return {_renamed(key, METRICS): value for key, value in row.items()}


def _renamed(name: str, new_names: Mapping[str, str]) -> str:
    """Replace each component of a name such as "val/stage_1/kept_share" that has been renamed."""
    return "/".join(new_names.get(component, component) for component in name.split("/"))


def _refuse(key: str, value: Any) -> None:
    key = _OLD_KEYS.get(key.rpartition(".")[2], key)
    if key in KEYS:
        raise UserError(f"{key}: now {KEYS[key]}")
    if isinstance(value, str) and (new := converted_value(key, value)) != value:
        raise UserError(f"{key}={value}: now {new}")
