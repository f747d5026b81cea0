"""Where a run's metrics go beside metrics.jsonl (`train.trackers`): Weights & Biases, TensorBoard."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from common.errors import UserError
from engine.run.config import RunConfig

MetricsRow = dict[str, Any]


class Mirror(Protocol):
    """A further destination of every row and image of a run."""

    def log(self, row: MetricsRow) -> None: ...

    def image(self, name: str, path: Path, step: int) -> None: ...

    def finish(self, summary: MetricsRow) -> None: ...


class WandbMirror:
    """A Weights & Biases run; one that cannot be reached is logged offline."""

    def __init__(self, out: Path, config: RunConfig, mode: str, run_id: str | None, say: Callable[[str], None]) -> None:
        """`run_id` continues a run; `say` prints a line for the user. Raises UserError if wandb is not installed."""
        try:
            import wandb
        except ImportError:
            raise UserError(_not_installed("wandb")) from None
        self.wandb = wandb
        how = {**asdict(config.wandb), "tags": list(config.wandb.tags), "dir": str(out), "config": asdict(config)}
        how |= {"id": run_id, "resume": "allow"}
        try:
            self.run = wandb.init(**{**how, "mode": mode})
        except (wandb.errors.Error, OSError) as error:  # no API key, no network, no such entity
            reason = " ".join(str(error).split())[:200]
            say(
                f"wandb.mode={mode}: {reason}; the run is logged offline to {out / 'wandb'}, and `wandb sync` "
                "uploads it"
            )
            self.run = wandb.init(**{**how, "mode": "offline"})
        self.run.define_metric("*", step_metric="epoch")  # the x axis of charts; `step` counts optimiser steps

    def log(self, row: MetricsRow) -> None:
        """Log one row at its optimiser step."""
        self.run.log(row, step=row["step"])

    def image(self, name: str, path: Path, step: int) -> None:
        """Log an image file."""
        self.run.log({name: self.wandb.Image(str(path))}, step=step)

    def finish(self, summary: MetricsRow) -> None:
        """Log the summary and close the run."""
        self.run.summary.update(summary)
        self.run.finish()


class TensorboardMirror:
    """TensorBoard's event files in OUT/tensorboard, over optimiser steps."""

    def __init__(self, out: Path, last_step: int) -> None:
        """Values after `last_step`, which an interrupted run wrote, are hidden. Raises UserError if not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(_not_installed("tensorboard")) from None
        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=last_step + 1)
        self.step = last_step

    def log(self, row: MetricsRow) -> None:
        """Log the numbers of one row at its optimiser step."""
        self.step = row["step"]
        for name, value in _numbers(row):
            self.writer.add_scalar(name, value, self.step)
        self.writer.flush()

    def image(self, name: str, path: Path, step: int) -> None:
        """Log an image file."""
        self.writer.add_image(name, np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")

    def finish(self, summary: MetricsRow) -> None:
        """Log the results of the best checkpoint as best/..., and close the files."""
        for name, value in _numbers(summary):
            self.writer.add_scalar(f"best/{name}", value, self.step)
        self.writer.close()


def wandb_mode(config: RunConfig) -> str:
    """online, offline or off: wandb.mode, where auto is online if train.trackers names wandb, and else off."""
    if config.wandb.mode == "auto":
        return "online" if "wandb" in config.train.trackers else "off"
    return config.wandb.mode


def _numbers(row: MetricsRow) -> Iterator[tuple[str, float]]:
    return ((name, value) for name, value in row.items() if isinstance(value, int | float))


def _not_installed(package: str) -> str:
    return f"train.trackers: {package} is not installed; pip install '.[{package}]', or leave it out"
