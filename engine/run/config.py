"""One resolved config per job: frozen dataclasses are the only schema, jsonargparse makes the command line of them."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from common.ranges import (
    ClosedUnitInterval,
    HalfOpenUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from datasets.config import DataConfig
from losses.config import LossConfig
from models.config import ModelConfig


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser, its groups and the schedule. Rates are per group: `lr` times the group's factor."""

    name: str = "adamw"
    """Any optimiser name of timm: adamw, adam, sgd, nadam, lamb, ..."""
    lr: PositiveFloat = 2.828e-6
    betas: tuple[float, float] = (0.9, 0.999)
    eps: NonNegativeFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.05
    normalise_weight_decay: bool = True
    """Multiply the weight decay by sqrt(1 / (steps per epoch * epochs))."""
    head_lr_mult: NonNegativeFloat = 1e4
    """Stage-1 classifier, stage-2 head and its norm; a plain ViT's head and pooling."""
    modulation_lr_mult: NonNegativeFloat = 1e4
    prototype_lr_mult: NonNegativeFloat = 1e3
    stage_2_lr_mult: NonNegativeFloat = 1.0
    freeze_stage_1: bool = True
    """Stage-1 backbone, except its class token, registers and positions."""
    freeze_stage_1_tokens: bool = False
    freeze_stage_2: bool = False
    """Stage-2 backbone, except its class token, registers and positions. A plain ViT: the whole backbone."""
    freeze_stage_2_tokens: bool = False
    clip: NonNegativeFloat = 2.0
    """Largest global gradient norm; 0 = off."""
    grad_accum_steps: PositiveInt = 1
    """Micro-batches per optimiser step."""
    zero: bool = False
    """Of several processes each keeps a part of the optimiser's state (ZeRO, stage 1): for large backbones."""
    schedule: Literal["cosine", "step", "linear", "constant"] = "cosine"
    schedule_unit: Literal["epoch", "step"] = "epoch"
    """When the rate moves: after every epoch (as published) or after every step."""
    min_lr_ratio: ClosedUnitInterval = 0.0
    """The cosine's last rate, as a share of the first."""
    warmup_epochs: NonNegativeFloat = 0.0
    step_epochs: PositiveInt = 10
    step_decay: PositiveFloat = 0.1
    stage_1_epochs: NonNegativeInt = 0
    """First so many of the epochs train stage 1 alone (two-stage model), with a schedule of their own."""
    stage_1_lr_mult: NonNegativeFloat = 1.0
    """Rates in those epochs are multiplied by this."""


@dataclass(frozen=True)
class TrainConfig:
    """How a run goes."""

    epochs: PositiveInt = 90
    seed: int = 42
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: str = "auto"
    """auto (CUDA where there is one) | cpu | cuda | cuda:N"""
    threads: NonNegativeInt = 0
    """CPU threads; 0 = torch's choice."""
    ema_decay: HalfOpenUnitInterval = 0.0
    """Exponential moving average of the weights, used for evaluation; 0 = off. The published value is 0.9999."""
    compile: bool = False
    deterministic: bool = False
    """Only deterministic kernels (slower on CUDA; an operation without one is an error)."""
    best_metric: str = "accuracy"
    """The validation figure that picks the best checkpoint; on a tie the later epoch wins. Where images show several
    classes there is no accuracy: give mean_average_precision, macro_f1 or micro_f1."""
    eval_every: PositiveInt = 1
    """Validate every so many epochs (and after the last)."""
    log_test: bool = False
    """Also measure the test split whenever validation runs, for the curves alone: nothing is ever chosen by it."""
    sheet_every: NonNegativeInt = 10
    """Write a contact sheet of part maps every so many epochs; 0 = only after the last."""
    eval_every_steps: NonNegativeInt = 0
    """Also validate within epochs, every so many optimiser steps; 0 = only where eval_every says."""
    keep_every: NonNegativeInt = 0
    """Keep a copy of the checkpoint every so many epochs, checkpoints/epoch_NNN.safetensors; 0 = only the last."""
    save_every_steps: NonNegativeInt = 0
    """Also checkpoint within epochs, every so many optimiser steps; 0 = at the end of an epoch."""


@dataclass(frozen=True)
class WandbConfig:
    """Mirror the run to Weights & Biases (the wandb extra)."""

    mode: Literal["off", "online", "offline"] = "off"
    project: str = "faithful-vit"
    entity: str | None = None
    name: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class RunConfig:
    """Everything a training run depends on."""

    out: str = "runs/default"
    """The run folder."""
    resume: bool | Literal["auto"] = False
    """Continue the run in `out` exactly where it stopped; auto: if there is one, else start."""
    allow_change: bool = False
    """Resume (`--resume.allow-change`) although config keys or the number of processes have changed."""
    overwrite: bool = False
    """Start afresh in a folder that already holds a run."""
    compat: Literal["none", "reference"] = "none"
    """reference: switch every quirk of the published code back on (see docs/compat.md)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)


def save_config(config: RunConfig, path: Path) -> None:
    """Write every key with its resolved value."""
    path.write_text(dump_config(asdict(config)))


def dump_config(values: dict[str, Any]) -> str:
    """Nested values as YAML that the parser reads back as they are."""
    return yaml.dump(_plain(values), Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Quotes texts that begin like a number: the parser takes 1e3 for one, PyYAML does not."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        """A text, quoted or as PyYAML sees fit."""
        style = "'" if text[:1] in "+-.0123456789" else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
