"""Learning-rate factors as pure functions of how far a run has come: nothing to save, nothing to resume."""

import math

from engine.run.config import OptimConfig


def lr_factor(config: OptimConfig, epochs: int, progress: float) -> float:
    """What every group's own rate is multiplied by after `progress` epochs (fractional within an epoch).

    Epochs of stage 1 alone and joint epochs are two phases, each with its own warm-up and schedule.
    """
    alone = config.stage_1_epochs
    if progress < alone:
        return config.stage_1_lr_mult * _phase_factor(config, alone, progress)
    return _phase_factor(config, epochs - alone, progress - alone)


def _phase_factor(config: OptimConfig, epochs: int, progress: float) -> float:
    position = math.floor(progress + 1e-9) if config.schedule_unit == "epoch" else progress
    warmup = min(config.warmup_epochs, epochs)
    if progress < warmup:
        # The cosine is not shifted: it takes over at its own value when the warm-up ends.
        return max(progress, 1e-3 * warmup) / warmup
    share = min(position / epochs, 1.0)
    if config.schedule == "cosine":
        return config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * share))
    if config.schedule == "linear":
        return 1 - 0.99 * share
    if config.schedule == "step":
        return config.step_decay ** math.floor(position / config.step_epochs)
    return 1.0
