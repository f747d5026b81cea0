"""Checks of a config that relate several keys; the range of a single key is its type (common/ranges.py)."""

from collections.abc import Iterator
from dataclasses import asdict

from datasets.config import DataConfig, TimmConfig
from engine.run.config import OptimConfig, RunConfig
from losses.config import LossConfig

_DEFAULT_BATCHES = (DataConfig().batch_size, OptimConfig().grad_accum_steps)


def problems(config: RunConfig) -> Iterator[str]:
    """One line for each problem, naming the key."""
    checks = {**_model_and_data(config), **_training(config), **_semi_supervised(config)}
    yield from (problem for problem, passes in checks.items() if not passes)


def _model_and_data(config: RunConfig) -> dict[str, bool]:
    """Message -> whether the config passes the check."""
    model, parts, data = config.model, config.model.selector == "parts", config.data
    own_batches = (data.batch_size, config.optim.grad_accum_steps) != _DEFAULT_BATCHES
    return {
        "--out must name a folder": bool(config.out.strip()),
        # As a type it would be a union, whose message does not name the range.
        "data.image_size must be positive": min(config.data.size_hw) >= 1,
        f"data.global_batch={data.global_batch} determines data.batch_size and optim.grad_accum_steps: leave them out "
        "(for less memory lower data.max_batch_per_device), or set data.global_batch to 0": not data.global_batch
        or not own_batches,
        f"data.timm: data.augmentation={data.augmentation} has no such settings; set it to timm": (
            data.timm == TimmConfig() or data.augmentation == "timm"
        ),
        # Images are divided by it in float32.
        "data.std must be at least 1e-6 for every channel": min(config.data.normalisation[1]) >= 1e-6,
        f"model.selector={model.selector} has no stage 1 to train: optim.stage_1_epochs must be 0": parts
        or not config.optim.stage_1_epochs,
        f"model.stage_1_image_size: model.name={model.name} with model.selector={model.selector} has no stage 1 before "
        "another one; set data.image_size": not model.stage_1_image_size or (model.name == "two_stage" and parts),
        "loss.weights: every term is off, there is nothing to train": any(asdict(config.loss.weights).values()),
    }


def _training(config: RunConfig) -> dict[str, bool]:
    """Message -> whether the config passes the check."""
    optim, train = config.optim, config.train
    stage_1_terms = any(weight for name, weight in asdict(config.loss.weights).items() if name != "stage_2")
    return {
        "optim.stage_1_epochs must be less than train.epochs": optim.stage_1_epochs < train.epochs,
        "optim.stage_1_epochs: every stage-1 term of loss.weights is off": not optim.stage_1_epochs or stage_1_terms,
        "train.token_cache needs a fixed stage 1: set optim.freeze_stage_1 and optim.freeze_stage_1_tokens to true and "
        "model.stage_1_drop_path to 0": not train.token_cache
        or (optim.freeze_stage_1 and optim.freeze_stage_1_tokens and not config.model.stage_1_drop_path),
        "train.token_cache reads files, which compiled code cannot; set train.compile to false": not train.token_cache
        or not train.compile,
        f"optim.restarts: optim.schedule={optim.schedule} has none; set it to cosine": not optim.restarts
        or optim.schedule == "cosine",
        "loss.equivariance.max_shear must be below 90 degrees": max(config.loss.equivariance.max_shear) < 90,
        f"loss.presence_beta is for loss.presence=soft_constraint, not {config.loss.presence}": (
            config.loss.presence_beta == LossConfig().presence_beta or config.loss.presence == "soft_constraint"
        ),
        "train.trackers names wandb, but wandb.mode=off; leave one of them out": "wandb" not in train.trackers
        or config.wandb.mode != "off",
        "--resume and --overwrite contradict each other": not (config.resume and config.overwrite),
    }


def _semi_supervised(config: RunConfig) -> dict[str, bool]:
    """Message -> whether the config passes the check."""
    semi, weight = config.data.semi, config.loss.consistency.weight
    supervised = semi.mode == "supervised"
    return {
        f"data.semi.mode={semi.mode} learns from consistency; set loss.consistency.weight, for example to 1": supervised
        or weight > 0,
        f"data.semi.mode={semi.mode} has two kinds of batches: set data.batch_size, not data.global_batch": supervised
        or not config.data.global_batch,
        f"data.semi.mode={semi.mode}: optim.stage_1_epochs must be 0": supervised or not config.optim.stage_1_epochs,
        "loss.consistency: compiled code has no second derivative; set train.compile to false": not weight
        or not config.train.compile,
    }
