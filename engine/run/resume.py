"""Decide whether to resume a run, and check that its config has not changed."""

from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common.errors import UserError
from engine.run.checkpointing import checkpoint_exists
from engine.run.config import RunConfig, flat
from engine.run.folder import CONFIG_FILE, LAST, run_config

MAY_CHANGE = (
    "out", "resume", "overwrite", "allow_change", "wandb", "data.root", "data.workers", "data.eval_batch_size",
    "data.max_unreadable", "data.check_images", "data.image_cache", "data.image_cache_gb", "model.weights",
    "model.stage_1_weights", "model.selector_weights", "model.init_from", "optim.zero", "train.device",
    "train.threads", "train.sheet_every", "train.save_every_steps", "train.keep_every", "train.log_test",
    "train.token_cache", "train.token_cache_gb", "train.trackers",
)  # fmt: skip
"""Keys and groups of keys that may change when a run is resumed: neither weights nor the best epoch depend on them."""
ALLOW = "--resume.allow-change"


def resolve_resume(config: RunConfig) -> RunConfig:
    """Replace `resume=auto` by True if `out` holds a checkpoint, and check that the run's config is the same.

    Raises UserError naming the keys that differ from the saved config, unless `allow_change` is set.
    """
    run = Path(config.out)
    if config.resume == "auto" and checkpoint_exists(run / LAST):
        config = replace(config, resume=True)
    if config.resume is not True or config.allow_change or not (run / CONFIG_FILE).is_file():
        return config
    if changed := changes(run_config(run), config):
        listed = ", ".join(f"{key}={old}, now {new}" for key, (old, new) in list(changed.items())[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"--resume: {run} was trained with {listed}{more}; give the old values, or pass {ALLOW} to resume anyway"
        )
    return config


def changes(stored: RunConfig, now: RunConfig, free_keys: Collection[str] = MAY_CHANGE) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (saved value, value now) for every key that differs and is not in `free_keys`."""
    first, second = (dict(flat(asdict(config))) for config in (stored, now))
    return {
        key: (value, second[key])
        for key, value in first.items()
        if value != second[key] and not is_one_of(key, free_keys)
    }


def is_one_of(key: str, keys: Collection[str]) -> bool:
    """Whether a dotted key is, or belongs to, one of the keys and groups of keys."""
    return any(key == free or key.startswith(f"{free}.") for free in keys)


def check_processes(then: int, now: int, allowed: bool) -> None:
    """Raise UserError if the number of processes has changed from `then` to `now`, unless that is `allowed`."""
    if then != now and not allowed:
        raise UserError(
            f"--resume: the run was trained by {then} process{'es' * (then > 1)}, now {now}; start {then}, or pass "
            f"{ALLOW} (with data.global_batch, or data.batch_size times {then}/{now}, steps have the same images)"
        )
