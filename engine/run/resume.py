"""Going on with a run: whether there is one, and whether it is still the same run."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common.errors import UserError
from engine.run.checkpointing import is_there
from engine.run.config import RunConfig
from engine.run.folder import CONFIG_FILE, LAST, run_config

FREE = (
    "out", "resume", "overwrite", "allow_change", "wandb", "data.root", "data.workers", "data.eval_batch_size",
    "model.weights", "model.stage_1_weights", "model.init_from", "optim.zero", "train.device", "train.threads",
    "train.sheet_every", "train.save_every_steps", "train.keep_every", "train.log_test",
)  # fmt: skip
"""Keys, or groups of them, that may change when a run is resumed: no weight and no choice depends on them."""
ALLOW = "--resume.allow-change"


def resolve_resume(config: RunConfig) -> RunConfig:
    """The config with `resume` settled: True where a run goes on. `auto` stays where there is nothing to go on from.

    Raises UserError naming the keys that differ from those the run was trained with, unless that is allowed.
    """
    run = Path(config.out)
    if config.resume == "auto" and is_there(run / LAST):
        config = replace(config, resume=True)
    if config.resume is not True or config.allow_change or not (run / CONFIG_FILE).is_file():
        return config
    if changed := changes(run_config(run), config):
        listed = ", ".join(f"{key}={old}, now {new}" for key, (old, new) in list(changed.items())[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"--resume: {run} was trained with {listed}{more}; give the old values, or pass {ALLOW} to go on anyway"
        )
    return config


def changes(stored: RunConfig, now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (stored value, value now) of every key that differs and decides what is trained."""
    first, second = (dict(_flat(asdict(config))) for config in (stored, now))
    return {
        key: (value, second[key])
        for key, value in first.items()
        if value != second[key] and not any(key == free or key.startswith(f"{free}.") for free in FREE)
    }


def check_processes(then: int, now: int, allowed: bool) -> None:
    """Raise UserError where a run that `then` processes trained is resumed by another number without leave."""
    if then != now and not allowed:
        raise UserError(
            f"--resume: the run was trained by {then} process{'es' * (then > 1)}, this is {now}; start {then}, or pass "
            f"{ALLOW} (with data.batch_size times {then}/{now} a step sees the same images)"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
