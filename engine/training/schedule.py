"""The learning-rate schedule, a pure function of the number of epochs done: there is no state to save."""

import math

from engine.run.config import OptimConfig


def lr_factor(config: OptimConfig, epochs: int, progress: float) -> float:
    """The factor of all learning rates after `progress` epochs (fractional within an epoch).

    Epochs of stage 1 alone and joint epochs are two phases, each with its own warm-up and schedule.
    """
    length, done, alone = _phase(config, epochs, progress)
    return (config.stage_1_lr_mult if alone else 1.0) * _phase_factor(config, length, done)


def added_lr(config: OptimConfig, epochs: int, progress: float) -> float:
    """What is added to every group's learning rate: `warmup_lr`, falling to 0 over the warm-up of each phase."""
    length, done, _ = _phase(config, epochs, progress)
    warmup = min(config.warmup_epochs, length)
    return (config.warmup_lr or 0.0) * (1 - done / warmup) if done < warmup else 0.0


def _phase(config: OptimConfig, epochs: int, progress: float) -> tuple[int, float, bool]:
    """Epochs of the current phase, how many of them are done, and whether it trains stage 1 alone."""
    alone = config.stage_1_epochs
    return (alone, progress, True) if progress < alone else (epochs - alone, progress - alone, False)


def _phase_factor(config: OptimConfig, epochs: int, progress: float) -> float:
    # 1e-9: sums of fractional epochs may end just below a whole number.
    position = math.floor(progress + 1e-9) if config.schedule_unit == "epoch" else progress
    warmup = min(config.warmup_epochs, epochs)
    if progress < warmup:
        # The schedule itself also counts from epoch 0: after the warm-up, the factor jumps to its value there. The
        # published code does so for the cosine only (docs/compat.md).
        return (max(progress, 1e-3 * warmup) if config.warmup_lr is None else progress) / warmup
    done = min(position / epochs, 1.0)
    if config.schedule == "cosine":
        cycles = config.restarts + 1
        cycle = min(math.floor(done * cycles + 1e-9), config.restarts)
        top, within = config.restart_decay**cycle, done * cycles - cycle
        return config.min_lr_ratio + (top - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * within))
    if config.schedule == "linear":
        return 1 - 0.99 * done
    if config.schedule == "step":
        return config.step_decay ** math.floor(position / config.step_epochs)
    return 1.0
