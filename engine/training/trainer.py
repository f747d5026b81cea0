"""The trainer: epochs, validation, the best model, checkpoints, and exact resume, on one or several processes.

The random numbers of a step depend on (seed, epoch, batch) alone, so resuming needs no generator state.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from timm.utils import ModelEmaV3
from torch import nn

from common.processes import processes, totals
from datasets import Batch, Split
from datasets.loader import BatchLoader, BatchSampler
from engine.evaluation.loop import Observer, evaluate, split_loader
from engine.run import checkpointing
from engine.run.atomic_files import link_or_copy
from engine.run.best_weights import restore_best
from engine.run.config import RunConfig
from engine.run.folder import BEST, CONFIG_FILE, LAST, METRICS_FILE, run_config
from engine.run.machine import machine_errors, precision_of
from engine.run.stopping import RunStopped, StopRequest
from engine.run.tracking import MetricsRow, Tracker, read_rows
from engine.training.best_metric import candidate, judged_by
from engine.training.consistency import Agreement
from engine.training.epoch_means import EpochMeans
from engine.training.expected_time import ExpectedTime
from engine.training.objectives import Objective
from engine.training.optim import ParamGroupRule, build_optimizer, learning_rates, normalised_weight_decay
from engine.training.parallel import broadcast_buffers, sync_batchnorm
from engine.training.schedule import added_lr, lr_factor
from engine.training.state import Progress, RunState
from engine.training.step import TrainStep
from metrics.registry import build_metrics, default_metrics
from models.interface import ImageClassifier, gives_mask
from models.token_cache import TokenCache
from models.two_stage import StageOne


class Trainer:
    """Trains a model with an objective, and saves everything needed to resume in the run folder."""

    def __init__(
        self, config: RunConfig, model: ImageClassifier, objective: Objective, rules: list[ParamGroupRule],
        splits: dict[str, Split], device: torch.device, sampler: BatchSampler | None = None,
    ) -> None:  # fmt: skip
        """`rules`: parameter groups. `splits`: "train", "val" and, for `train.log_test`, "test".

        `sampler`: the images of each step; None: the training split once per epoch. Every process builds the same
        trainer.
        """
        self.config, self.splits, self.device = config, splits, device
        self.out = Path(config.out)
        self.log: Callable[[str], None] = lambda message: None
        self.model = model = sync_batchnorm(model.to(device), device)
        self.sampler = sampler or BatchSampler(
            splits["train"], config.data.batch_size, config.train.seed,
            multiple_of=config.optim.grad_accum_steps if config.data.global_batch else 1,
        )  # fmt: skip
        self.steps = self.sampler.steps
        """Micro-batches per epoch."""
        # Published: micro-batches. Of a global batch their number depends on the machine, that of steps does not.
        counted = self.steps // config.optim.grad_accum_steps if config.data.global_batch else self.steps
        decay = normalised_weight_decay(config.optim, counted, config.train.epochs)
        train = config.train
        ema = ModelEmaV3(model, train.ema_decay, use_warmup=train.ema_warmup) if train.ema_decay else None
        self.precision = precision_of(config.train.precision, device)
        self.state = RunState(
            model=model,
            optimizer=build_optimizer(model, rules, config.optim, decay),
            scaler=torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16),
            ema=ema,
            progress=Progress(),
            means=EpochMeans(device, {}),
        )
        self._loaders: dict[str, BatchLoader] = {}
        self._lap_started = time.perf_counter()
        info = splits["train"].info
        sample = splits["val"][0] if model.finds_parts else None
        # Agreement comes with confidence intervals; so should the metrics it is compared with.
        explained = Agreement(model, config.loss.consistency).wanted
        intervals = ("multilabel_intervals" if info.multi_label else "f1",) if explained else ()
        self.metrics = build_metrics((*default_metrics(info, gives_mask(model), sample), *intervals), info)
        if config.train.compile:
            for each in [model, ema.module] if ema else [model]:
                for module in each.stages or (each,):  # in place: names of weights do not change
                    module.compile()
        if config.train.token_cache and isinstance(stage_1 := getattr(model, "stage_1", None), StageOne):
            folder = Path(config.train.token_cache).expanduser()
            stage_1.token_cache = TokenCache(folder, config.train.token_cache_gb * 1e9)
        self.step = TrainStep(config, self.state, objective, self.precision)

    @property
    def progress(self) -> Progress:
        """Progress of the run."""
        return self.state.progress

    # --- the run -------------------------------------------------------------------------------------------------

    def run(self, tracker: Tracker, after_epoch: Callable[[MetricsRow], None] = lambda row: None) -> None:
        """Train to the last epoch. After a stop signal, save everything and raise RunStopped.

        `after_epoch` is called with the row of every epoch.
        """
        self.expected = ExpectedTime(tracker.message)
        self.log = tracker.message
        with StopRequest() as stop, machine_errors(self._smaller_steps(), self.device):
            self._lap_started = time.perf_counter()
            self._keep_copy()  # in case the run was killed between checkpoint and copy
            while self.progress.epoch < self.config.train.epochs:
                self._train_epoch(tracker, stop)
                row = self._finish_epoch()
                self._lap()
                row["wall_seconds"] = self.progress.wall_seconds
                tracker.log(row)
                after_epoch(row)
                self.save(tracker)
                self._keep_copy()
                if number := stop.agreed():
                    raise RunStopped(number)

    def evaluated_model(self) -> nn.Module:
        """The model that is evaluated and saved as best: the moving average if there is one."""
        return self.state.ema.module if self.state.ema else self.model

    def evaluate(self, split: str, observers: Sequence[Observer] = ()) -> MetricsRow:
        """Metrics of one split, with keys prefixed by its name; `observers` get its batches with their predictions."""
        model = self.evaluated_model()
        if split not in self._loaders:  # kept, so that their workers are started once
            self._loaders[split] = split_loader(self.splits[split], self.config.data, self.device)
        loader = self._loaders[split]
        broadcast_buffers(model)
        agreement = Agreement(model, self.config.loss.consistency)
        observers = [*observers, agreement] if agreement.wanted else observers
        results = evaluate(model, loader, self.metrics, self.device, self.precision, observers) | agreement.results()
        return {f"{split}/{key}": value for key, value in results.items()}

    # --- one epoch -----------------------------------------------------------------------------------------------

    def _train_epoch(self, tracker: Tracker, stop: StopRequest) -> None:
        config, progress = self.config, self.progress
        loader = self.sampler.loader(progress.epoch, progress.batch, config.data.loading_processes, self.device)
        self.model.train()
        self.state.means = EpochMeans(self.device, self.state.own_sums())
        started = time.perf_counter()
        with tracker.bar(f"epoch {progress.epoch + 1}/{config.train.epochs}", self.steps, progress.batch) as advance:
            for batch in loader:
                ends_step = self._train_batch(batch)
                advance(len(batch))
                self.expected.after_batch((config.train.epochs - progress.epoch) * self.steps - progress.batch)
                if ends_step and self._due(config.train.eval_every_steps) and progress.batch < self.steps:
                    self._clock(started)
                    tracker.log(self._measured({"epoch": self.position, "step": progress.step}))
                    started = time.perf_counter()
                # Saves and stops wait for the end of a step: accumulated gradients are not saved.
                number = stop.agreed() if ends_step else None
                if ends_step and (number or self._due(config.train.save_every_steps)) and progress.batch < self.steps:
                    self._clock(started)
                    started = time.perf_counter()
                    self.save(tracker)
                    if number:
                        raise RunStopped(number)
        self._clock(started)

    @property
    def position(self) -> float:
        """Epochs done, as a fraction."""
        return self.progress.epoch + self.progress.batch / self.steps

    def _lap(self) -> None:
        now = time.perf_counter()
        self.progress.wall_seconds += now - self._lap_started
        self._lap_started = now

    def _clock(self, started: float) -> None:
        elapsed = time.perf_counter() - started
        self.progress.train_seconds += elapsed
        self.progress.epoch_seconds += elapsed

    def _due(self, every: int) -> bool:
        return bool(every) and self.progress.step % every == 0

    def _train_batch(self, batch: Batch) -> bool:
        """Train on one micro-batch; True if an optimiser step followed."""
        config, progress = self.config.optim, self.progress
        # The last step of an epoch may have fewer micro-batches.
        ends_step = (progress.batch + 1) % config.grad_accum_steps == 0 or progress.batch + 1 == self.steps
        factor = lr_factor(config, self.config.train.epochs, self.position) if ends_step else None
        added = added_lr(config, self.config.train.epochs, self.position)
        # DDP averages over processes with equal weights; `_count` corrects for unequal numbers of images.
        weight = self._count(batch) / config.grad_accum_steps
        batch = batch.to(self.device)
        output = self.step(batch, weight, factor, added)
        self.state.means.add(output, batch)
        progress.batch += 1
        return ends_step

    def _count(self, batch: Batch) -> float:
        """Count the images of all processes; returns this process's number of images relative to their mean."""
        images, skipped = totals(len(batch), len(batch.skipped))
        self.progress.images += images
        self.progress.skipped += skipped
        return len(batch) * processes().world_size / images

    def _finish_epoch(self) -> MetricsRow:
        """Close the epoch and return its row of metrics, with validation metrics if due."""
        self.step.check.finish()
        config, progress = self.config, self.progress
        images, seconds = max(1, progress.images), progress.epoch_seconds
        row: MetricsRow = {"epoch": progress.epoch + 1, "step": progress.step}
        row |= {f"train/{name}": value for name, value in self.state.means.means().items()}
        row |= {"train/skipped": progress.skipped, "train/seconds": seconds, "train_seconds": progress.train_seconds}
        row |= {"train/images_per_second": images / seconds if seconds else math.nan}
        row |= learning_rates(self.state.optimizer)
        row["lr_factor"] = lr_factor(config.optim, config.train.epochs, float(progress.epoch))
        progress.epoch += 1
        progress.batch = progress.images = 0
        progress.epoch_seconds = 0.0
        progress.sums, self.state.means = [], EpochMeans(self.device, {})
        last = progress.epoch == config.train.epochs
        return self._measured(row) if progress.epoch % config.train.eval_every == 0 or last else row

    def _measured(self, row: MetricsRow) -> MetricsRow:
        """The row with current validation metrics; saves the model if it is the best so far."""
        self.step.check.finish()
        row |= self.evaluate("val")
        if self.config.train.log_test and "test" in self.splits:
            row |= self.evaluate("test")
        self._keep_if_best(row)
        return row

    def _keep_if_best(self, row: MetricsRow) -> None:
        if row["epoch"] <= self.config.optim.stage_1_epochs:
            return  # stage 2 is not trained yet
        wanted, best = self.config.train.best_metric, self.progress.selected
        found = candidate(row, wanted)
        if best is None or best.is_beaten_by(found, wanted):
            if found.metric != wanted and (best is None or best.metric != found.metric):
                self.log(f"train.best_metric={wanted} is not a number yet; the best model is chosen by {found.metric}")
            self.progress.selected = found
            if processes().is_main:
                state = {name: t.cpu().contiguous() for name, t in self.evaluated_model().state_dict().items()}
                about = {"epoch": found.epoch, f"val/{found.metric}": found.value}
                checkpointing.write_safetensors(self.out / BEST / "model.safetensors", state, about)

    # --- checkpoints ---------------------------------------------------------------------------------------------

    @property
    def last(self) -> Path:
        """Path of the checkpoint that a run resumes from."""
        return self.out / LAST

    def save(self, tracker: Tracker) -> None:
        """Write a checkpoint with the whole state of the run."""
        self.step.check.finish()
        self._lap()
        self.progress.wandb_id = tracker.run_id
        self.progress.batch_images = self._batch_images()
        self.state.save(self.last)

    def load(self, log: Callable[[str], None] = print) -> None:
        """Continue from the last checkpoint. Raises UserError if there is none or it does not fit."""
        self.state.load(self.last, log, self.config.allow_change)
        before, now = self.progress.batch_images, self._batch_images()
        if before and before != now:  # the same number of images into the epoch, in batches of another size
            self.progress.batch = self.progress.batch * before // now
        best = self.progress.selected
        if best is not None and not best.metric and (self.out / CONFIG_FILE).is_file():  # of an earlier version
            best = replace(best, metric=run_config(self.out).train.best_metric)
        if best is not None:
            rows = read_rows(self.out / METRICS_FILE)
            self.progress.selected = judged_by(self.config.train.best_metric, best, rows, log)
            part = "ema" if self.state.ema else "model"
            if not restore_best(self.out, best.epoch, self.steps, part, log, self.config.allow_change):
                self.progress.selected = None

    def _batch_images(self) -> int:
        return self.config.data.batch_size * processes().world_size

    def _keep_copy(self) -> None:
        every, epoch = self.config.train.keep_every, self.progress.epoch
        at_end = self.progress.batch == 0 and self.last.exists()
        if every and epoch % every == 0 and at_end and processes().is_main:
            link_or_copy(self.last, self.last.with_name(f"epoch_{epoch:03d}.safetensors"))

    def _smaller_steps(self) -> str:
        """Advice for a step that does not fit into memory."""
        data, accumulation = self.config.data, self.config.optim.grad_accum_steps
        height, width = data.size_hw
        half = max(1, data.batch_size // 2)
        halves = f"data.batch_size={half} with optim.grad_accum_steps={2 * accumulation}"
        halves = f"data.max_batch_per_device={half}" if data.global_batch else halves
        return (
            f"a step holds {data.batch_size} images of {height} x {width} in {self.config.train.precision}: try "
            f"{halves}, train.precision=bf16, or a smaller data.image_size; the last checkpoint is intact"
        )
