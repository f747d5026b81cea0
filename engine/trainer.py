"""The one trainer: epochs, steps, precision, averaging, guards, checkpoints, exact resume.

All randomness of a step follows from (seed, epoch, batch), so a resumed run needs no generator state.
"""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from common.errors import UserError
from datasets import Batch, Split, eval_loader
from datasets.loader import Feed
from datasets.seeds import stable_seed
from engine import checkpointing
from engine.config import RunConfig
from engine.consistency import Agreement
from engine.evaluation import evaluate
from engine.given_masks import hands_out_mask
from engine.objectives import Objective, Outcome
from engine.optim import Rule, build_optimizer, normalised_weight_decay
from engine.runs import BEST, LAST
from engine.schedule import lr_factor
from engine.stopping import RunStopped, StopRequest
from engine.sums import EpochMeans
from engine.tracking import Row, Tracker
from metrics.registry import build_metrics, default_metrics

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Progress:
    """Where a run is; everything here goes into checkpoints as JSON."""

    epoch: int = 0
    """Finished epochs."""
    batch: int = 0
    """Finished batches of the running epoch."""
    step: int = 0
    """Optimiser steps taken."""
    best: float | None = None
    best_epoch: float = 0
    train_seconds: float = 0.0
    """Spent in training steps, over all sessions of the run."""
    wall_seconds: float = 0.0
    """The same with validation, pictures and checkpoints."""
    epoch_seconds: float = 0.0
    sums: dict[str, list[float]] = field(default_factory=dict)
    """Of the running epoch: of the loss, each term, ... a sum and over how many images it is."""
    images: int = 0
    skipped: int = 0
    """Unreadable pictures left out so far."""
    scaler: dict[str, Any] = field(default_factory=dict)
    wandb_id: str | None = None


class Trainer:
    """Trains one model by one objective, and leaves everything needed to go on in the run folder."""

    def __init__(
        self, config: RunConfig, model: nn.Module, objective: Objective, rules: list[Rule],
        splits: dict[str, Split], device: torch.device, feed: Feed | None = None,
    ) -> None:  # fmt: skip
        """`splits`: "train", "val" and, where watched, "test". `rules`: the optimiser's groups. `feed`: what every step
        reads; None: the whole training split once an epoch."""
        self.config, self.objective, self.splits, self.device = config, objective, splits, device
        self.out = Path(config.out)
        self.model = model.to(device)
        self.feed = feed or Feed(splits["train"], config.data.batch_size, config.train.seed)
        self.steps = self.feed.steps
        decay = normalised_weight_decay(config.optim, self.steps, config.train.epochs)
        self.optimizer = build_optimizer(model, rules, config.optim, decay)
        self.ema = ModelEmaV3(model, decay=config.train.ema_decay, use_warmup=True) if config.train.ema_decay else None
        self.precision = PRECISIONS[config.train.precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)
        self.progress = Progress()
        self.means = EpochMeans(device, {})
        self._lap_started = time.perf_counter()
        info = splits["train"].info
        sample = splits["val"][0] if hasattr(model, "select") else None
        explained = Agreement(model, config.loss.consistency).wanted
        intervals = ("multilabel_intervals" if info.multi_label else "f1",) if explained else ()
        self.metrics = build_metrics((*default_metrics(info, hands_out_mask(model), sample), *intervals), info)
        if config.train.compile:
            _compile(model)

    # --- the run -------------------------------------------------------------------------------------------------

    def run(self, tracker: Tracker, after_epoch: Callable[[Row], None] = lambda row: None) -> None:
        """Train to the last epoch. Raises RunStopped, with everything saved, when a signal asked for it."""
        with StopRequest() as stop:
            self._lap_started = time.perf_counter()
            while self.progress.epoch < self.config.train.epochs:
                self._train_epoch(tracker, stop)
                row = self._finish_epoch()
                self._lap()
                row["wall_seconds"] = self.progress.wall_seconds
                tracker.log(row)
                after_epoch(row)
                self.save(tracker)
                if self.config.train.keep_every and self.progress.epoch % self.config.train.keep_every == 0:
                    shutil.copyfile(self.last, self.last.with_name(f"epoch_{self.progress.epoch:03d}.safetensors"))
                if stop.signal and self.progress.epoch < self.config.train.epochs:
                    raise RunStopped(stop.signal)

    def evaluated_model(self) -> nn.Module:
        """The model that is measured and kept as best: the moving average where there is one."""
        return self.ema.module if self.ema else self.model

    def evaluate(self, split: str) -> Row:
        """Figures of one split, keys prefixed by its name."""
        data = self.config.data
        loader = eval_loader(self.splits[split], batch_size=data.eval_batch_size, workers=data.workers)
        model = self.evaluated_model()
        watch = Agreement(model, self.config.loss.consistency)
        observers = [watch] if watch.wanted else []
        figures = evaluate(model, loader, self.metrics, self.device, self.precision, observers) | watch.figures()
        return {f"{split}/{key}": value for key, value in figures.items()}

    # --- one epoch -----------------------------------------------------------------------------------------------

    def _train_epoch(self, tracker: Tracker, stop: StopRequest) -> None:
        config, progress = self.config, self.progress
        loader = self.feed.loader(progress.epoch, progress.batch, config.data.workers)
        self.model.train()
        self.means = EpochMeans(self.device, progress.sums)
        started = time.perf_counter()
        with tracker.bar(f"epoch {progress.epoch + 1}/{config.train.epochs}", self.steps, progress.batch) as advance:
            for batch in loader:
                whole_step = self._micro_step(batch)
                advance(len(batch))
                if whole_step and self._measures_now():
                    self._clock(started)
                    tracker.log(self._measured({"epoch": self.position, "step": progress.step}))
                    started = time.perf_counter()
                if whole_step and (stop.signal or self._due()) and progress.batch < self.steps:
                    self._clock(started)
                    started = time.perf_counter()
                    self.save(tracker)
                    if stop.signal:
                        raise RunStopped(stop.signal)
        self._clock(started)

    @property
    def position(self) -> float:
        """Epochs done, the running one in part."""
        return self.progress.epoch + self.progress.batch / self.steps

    def _measures_now(self) -> bool:
        every, within = self.config.train.eval_every_steps, self.progress.batch < self.steps
        return bool(every) and within and self.progress.step % every == 0

    def _lap(self) -> None:
        now = time.perf_counter()
        self.progress.wall_seconds += now - self._lap_started
        self._lap_started = now

    def _clock(self, started: float) -> None:
        elapsed = time.perf_counter() - started
        self.progress.train_seconds += elapsed
        self.progress.epoch_seconds += elapsed

    def _due(self) -> bool:
        every = self.config.train.save_every_steps
        return bool(every) and self.progress.step % every == 0

    def _micro_step(self, batch: Batch) -> bool:
        """One forward and backward; True when it ended with an optimiser step."""
        config, progress = self.config.optim, self.progress
        torch.manual_seed(stable_seed("step", self.config.train.seed, progress.epoch, progress.batch))
        batch = batch.to(self.device)
        with torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision != torch.float32):
            outcome = self.objective(self.model, batch, stage_1_only=progress.epoch < config.stage_1_epochs)
        self._guard(outcome, batch)
        self.scaler.scale(outcome.loss / config.accumulation).backward()
        self.means.add(outcome, batch)
        progress.images += len(batch)
        progress.skipped += len(batch.skipped)
        whole_step = (progress.batch + 1) % config.accumulation == 0 or progress.batch + 1 == self.steps
        if whole_step:
            self._optimizer_step()
        progress.batch += 1
        return whole_step

    def _optimizer_step(self) -> None:
        config, progress = self.config, self.progress
        factor = lr_factor(config.optim, config.train.epochs, self.position)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        if config.optim.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        if self.ema:
            self.ema.update(self.model, step=progress.step)

    def _guard(self, outcome: Outcome, batch: Batch) -> None:
        """Stop before the step when the loss is not a number. Costs the one host sync of a step besides pruning's."""
        if math.isfinite(outcome.loss.item()):
            return
        terms = ", ".join(f"{name}={value.item():g}" for name, value in outcome.terms.items())
        files = ", ".join(batch.paths)
        raise UserError(
            f"loss is not finite at epoch {self.progress.epoch + 1}, batch {self.progress.batch + 1}; "
            "no step was taken, the last checkpoint is untouched; lower optim.lr or use train.precision=fp32; "
            f"terms: {terms}; files: {files}"
        )

    def _finish_epoch(self) -> Row:
        """Close the epoch: its row of figures, validated where due."""
        config, progress = self.config, self.progress
        images, seconds = max(1, progress.images), progress.epoch_seconds
        row: Row = {"epoch": progress.epoch + 1, "step": progress.step}
        row |= {f"train/{name}": value for name, value in self.means.means().items()}
        row |= {"train/skipped": progress.skipped, "train/seconds": seconds, "train_seconds": progress.train_seconds}
        row |= {"train/images_per_second": images / seconds if seconds else math.nan}
        row["lr_factor"] = lr_factor(config.optim, config.train.epochs, float(progress.epoch))
        progress.epoch += 1
        progress.batch = progress.images = 0
        progress.epoch_seconds = 0.0
        progress.sums, self.means = {}, EpochMeans(self.device, {})
        last = progress.epoch == config.train.epochs
        return self._measured(row) if progress.epoch % config.train.eval_every == 0 or last else row

    def _measured(self, row: Row) -> Row:
        """The row with the figures of now; the model is kept where it is the best so far."""
        row |= self.evaluate("val")
        if self.config.train.watch_test and "test" in self.splits:
            row |= self.evaluate("test")
        self._keep_if_best(row)
        return row

    def _keep_if_best(self, row: Row) -> None:
        key = f"val/{self.config.train.best_metric}"
        if key not in row:
            known = ", ".join(sorted(name.removeprefix("val/") for name in row if name.startswith("val/")))
            raise UserError(f"train.best_metric: validation has no {self.config.train.best_metric!r}; it has {known}")
        if row["epoch"] <= self.config.optim.stage_1_epochs:
            return  # stage 2 has learnt nothing yet
        value = row[key]
        best = self.progress.best
        if best is None or math.isnan(best) or value >= best:
            self.progress.best, self.progress.best_epoch = value, row["epoch"]
            state = {name: t.detach().cpu().contiguous() for name, t in self.evaluated_model().state_dict().items()}
            path = self.out / BEST / "model.safetensors"
            checkpointing.write_safetensors(path, state, {"epoch": row["epoch"], key: value})

    # --- checkpoints ---------------------------------------------------------------------------------------------

    @property
    def last(self) -> Path:
        """The checkpoint a run resumes from."""
        return self.out / LAST

    def save(self, tracker: Tracker) -> None:
        """Write the whole state of the run."""
        self._lap()
        self.progress.sums = self.means.state()
        self.progress.scaler = self.scaler.state_dict()
        self.progress.wandb_id = tracker.run_id
        tensors = checkpointing.prefixed("model", self.model.state_dict())
        tensors |= checkpointing.prefixed("optimizer", checkpointing.optimizer_tensors(self.optimizer))
        if self.ema:
            tensors |= checkpointing.prefixed("ema", self.ema.module.state_dict())
        checkpointing.write_safetensors(self.last, tensors, asdict(self.progress))

    def load(self) -> None:
        """Continue from the last checkpoint. Raises UserError when there is none or it does not fit."""
        if not self.last.exists():
            raise UserError(f"--resume: no checkpoint at {self.last}; leave --resume out to start")
        checkpoint = checkpointing.read_checkpoint(self.last)
        checkpointing.load_weights(self.model, checkpoint.part("model"), self.last)
        checkpointing.load_optimizer(self.optimizer, checkpoint.part("optimizer"))
        if self.ema:
            checkpointing.load_weights(self.ema.module, checkpoint.part("ema"), self.last)
        try:
            self.progress = Progress(**checkpoint.progress)
        except TypeError:
            raise UserError(f"{self.last} was written by another version of this code; start the run afresh") from None
        if self.progress.scaler:
            self.scaler.load_state_dict(self.progress.scaler)


def _compile(model: nn.Module) -> None:
    """Compile the heavy parts in place; names of weights stay as they are."""
    stages = [getattr(model, name) for name in ("stage_1", "stage_2") if hasattr(model, name)]
    for part in stages or [model]:
        part.compile()
