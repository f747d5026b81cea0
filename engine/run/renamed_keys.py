"""Config keys, values and metric names that earlier versions spelled differently.

A config that a user writes must use today's names: an old one is refused with the new name in the message. What an
earlier version saved in a run folder is converted when it is read.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from common.errors import UserError

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
"""By their last component, which is all that `--optim FILE` or `--optim '{...}'` gives; none of these is used today."""


def refuse_old_names(values: Mapping[str, Any]) -> None:
    """Raise UserError for the first old key or value in the nested `values` of a YAML file."""
    for key, value in _flat(values):
        _refuse(key, value)


def refuse_old_flags(arguments: Sequence[str]) -> None:
    """Raise UserError for the first flag (`--key=value` or `--key value`) with an old key or value."""
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if argument.startswith("--"):
            key, equals, value = argument.removeprefix("--").partition("=")
            _refuse(key, value if equals else following)


def converted_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config, nested, with today's keys and values; the order of keys stays."""
    result: dict[str, Any] = {}
    for key, value in _flat(values):
        *groups, name = KEYS.get(key, key).split(".")
        group = result
        for each in groups:
            group = group.setdefault(each, {})
        group[name] = converted_value(key, value)
    return result


def converted_value(key: str, value: Any) -> Any:
    """The value of a config key under its name of today."""
    return _renamed(value, VALUES[key]) if key in VALUES and isinstance(value, str) else value


def converted_metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of saved metrics ("val/kept_share": ...) with today's names."""
    return {_renamed(key, METRICS): value for key, value in row.items()}


def _renamed(name: str, new_names: Mapping[str, str]) -> str:
    """Each component of "val/stage_1/NAME" replaced where there is a new name for it."""
    return "/".join(new_names.get(component, component) for component in name.split("/"))


def _refuse(key: str, value: Any) -> None:
    key = _OLD_KEYS.get(key.rpartition(".")[2], key)
    if key in KEYS:
        raise UserError(f"{key}: now {KEYS[key]}")
    if (new := converted_value(key, value)) != value:
        raise UserError(f"{key}={value}: now {new}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
