"""The learning-rate schedule, a pure function of the number of epochs done: there is no state to save."""

import math

from engine.run.config import OptimConfig


def lr_factor(config: OptimConfig, epochs: int, progress: float) -> float:
    """The factor of all learning rates after `progress` epochs (fractional within an epoch).

    Epochs of stage 1 alone and joint epochs are two phases, each with its own warm-up and schedule.
    """
    alone = config.stage_1_epochs
    if progress < alone:
        return config.stage_1_lr_mult * _phase_factor(config, alone, progress)
    return _phase_factor(config, epochs - alone, progress - alone)


def _phase_factor(config: OptimConfig, epochs: int, progress: float) -> float:
    # 1e-9: sums of fractional epochs may end just below a whole number.
    position = math.floor(progress + 1e-9) if config.schedule_unit == "epoch" else progress
    warmup = min(config.warmup_epochs, epochs)
    if progress < warmup:
        # The schedule itself also counts from epoch 0: after the warm-up, the factor jumps to its value there. The
        # published code does so for the cosine only (docs/compat.md).
        return max(progress, 1e-3 * warmup) / warmup
    done = min(position / epochs, 1.0)
    if config.schedule == "cosine":
        return config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "linear":
        return 1 - 0.99 * done
    if config.schedule == "step":
        return config.step_decay ** math.floor(position / config.step_epochs)
    return 1.0
