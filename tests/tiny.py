"""Runs small enough for tests: one-block ViTs on a few 32-pixel birds, drawn in memory."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer

from common.processes import processes
from datasets import Split, load_split
from engine.run.checkpointing import Checkpoint, read_checkpoint
from engine.run.command_line import parse_config
from engine.run.config import RunConfig
from engine.run.folder import BEST, LAST, open_run
from engine.run.tracking import MetricsRow, Tracker
from engine.training.objectives import OBJECTIVES, Objective
from engine.training.optim import PARAM_GROUP_RULES
from engine.training.trainer import Trainer
from models import build_model
from models.interface import ImageClassifier
from models.two_stage import TwoStageModel

CPU = torch.device("cpu")
KEYS: dict[str, Any] = {
    "model.backbone": "vit_test_reg4",
    "model.weights": "none",
    "model.parts.num_parts": 3,
    "data.name": "synthetic",
    "data.image_size": 32,
    "data.augmentation": "none",
    "data.global_batch": 0,
    "data.batch_size": 8,
    "data.eval_batch_size": 16,
    "data.workers": 0,
    "data.synthetic.train_images": 34,
    "data.synthetic.val_images": 16,
    "data.synthetic.test_images": 16,
    "optim.lr": 1e-3,
    "optim.head_lr_mult": 1.0,
    "optim.modulation_lr_mult": 1.0,
    "optim.prototype_lr_mult": 1.0,
    "optim.freeze_stage_1": False,
    "train.epochs": 2,
    "train.seed": 0,
    "train.threads": 1,
    "train.device": "cpu",
}
"""Four steps an epoch: 34 images, the last two of which no batch takes."""
CLOCKS = ("seconds", "images_per_second")
"""A key that holds one of these tells the time and differs from run to run."""


def flags(keys: Mapping[str, Any]) -> list[str]:
    """Overrides by dotted key as command-line flags."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in keys.items()]


def tiny_config(out: Path, keys: Mapping[str, Any] | None = None) -> RunConfig:
    """The tiny run, with `keys` on top."""
    return parse_config(flags({**KEYS, "out": str(out), **(keys or {})}))


def tiny_splits(config: RunConfig) -> dict[str, Split]:
    return {
        name: load_split(config.data, name, train=name == "train", seed=config.train.seed)
        for name in ("train", "val", "test")
    }


def tiny_model(config: RunConfig, num_classes: int = 2) -> ImageClassifier:
    return build_model(config.model, num_classes, config.data.size_hw, config.train.seed)


def tiny_trainer(
    config: RunConfig, objective: Objective | None = None, splits: dict[str, Split] | None = None
) -> Trainer:
    """A fresh trainer without a run folder."""
    model = tiny_model(config)
    objective = objective or OBJECTIVES[model.objective](config.loss, 2, [17, 17])
    rules = PARAM_GROUP_RULES[model.parameter_rules](config.optim)
    return Trainer(config, model, objective, rules, splits or tiny_splits(config), CPU)


@dataclass
class Session:
    """One process's part of a run: opened, resumed where the config says so, and trained by `go`."""

    config: RunConfig
    splits: dict[str, Split] | None = None
    before_batch: Callable[[int], None] = lambda count: None
    """Called before each micro-batch with the number of micro-batches this session has done."""
    trainer: Trainer = field(init=False)
    tracker: Tracker = field(init=False)
    batches: int = 0

    def __post_init__(self) -> None:
        self.trainer = tiny_trainer(self.config, splits=self.splits)
        if processes().is_main:
            open_run(self.config, self.trainer.model)
        if self.config.resume:
            self.trainer.load()
        self.tracker = Tracker(Path(self.config.out), self.config)
        self.tracker.truncate(self.trainer.position)
        objective = self.trainer.step.objective

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.before_batch(self.batches)
            self.batches += 1
            return objective(*args, **kwargs)

        self.trainer.step.objective = counted

    def go(self) -> "Session":
        self.trainer.run(self.tracker)
        return self


def resumed(config: RunConfig) -> RunConfig:
    return replace(config, resume=True, overwrite=False)


@dataclass(frozen=True)
class Remains:
    """What a run left on disk, without what tells the time."""

    last: Checkpoint
    best: Checkpoint
    rows: list[MetricsRow]

    @classmethod
    def of(cls, out: Path) -> "Remains":
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return cls(
            read_checkpoint(out / LAST), read_checkpoint(out / BEST / "model.safetensors"), [timeless(r) for r in rows]
        )


def timeless(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not any(clock in key for clock in CLOCKS)}


def assert_same_run(first: Path, second: Path) -> None:
    """Two run folders hold the same run to the last bit: weights, averages, optimiser, progress, metrics."""
    a, b = Remains.of(first), Remains.of(second)
    assert_same_tensors(a.last.tensors, b.last.tensors)
    assert_same_tensors(a.best.tensors, b.best.tensors)
    assert timeless(a.last.progress) == timeless(b.last.progress)
    assert repr(a.rows) == repr(b.rows)  # as text: nan equals nan


def assert_same_tensors(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as they are now, whatever a step does to them later."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@register_model
def vit_test_reg4(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """One block of width 32 with everything a DINOv2 has: registers, LayerScale, positions of patches alone."""
    wanted = {name: kwargs[name] for name in ("img_size", "drop_path_rate", "num_classes")}
    return VisionTransformer(
        patch_size=8, embed_dim=32, depth=1, num_heads=1, reg_tokens=4, init_values=1e-5, no_embed_class=True, **wanted
    )


def untrained_run(folder: Path, keys: Mapping[str, Any] | None = None) -> Path:
    """A run folder as training leaves it, with random weights; the prototypes of parts are patches of an image."""
    config = tiny_config(folder, keys)
    model, split = tiny_model(config), load_split(config.data, "test", train=False, seed=0)
    open_run(config, model, split.info)
    if isinstance(model, TwoStageModel):
        with torch.no_grad():
            tokens = model.stage_1.tokens(split[1].image[None])[0]
            some = torch.linspace(0, len(tokens) - 1, len(model.stage_1.parts.prototypes)).long()
            model.stage_1.parts.prototypes.copy_(tokens[some])
    save_file(model.state_dict(), folder / BEST / "model.safetensors")
    return folder
