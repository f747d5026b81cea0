"""The config of a run as frozen dataclasses: the only schema, from which jsonargparse builds the command line."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from common.ranges import (
    ClosedUnitInterval,
    HalfOpenUnitInterval,
    LeftOpenUnitInterval,
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
    """Optimiser, parameter groups and schedule. A group's learning rate is `lr` times its multiplier."""

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
    freeze_stage_2_blocks: NonNegativeInt = 0
    """Freeze the patch embedding and the first N blocks of stage 2's backbone (of a plain ViT's backbone)."""
    clip: NonNegativeFloat = 2.0
    """Maximum global gradient norm; 0 = no clipping."""
    grad_accum_steps: PositiveInt = 1
    """Micro-batches per optimiser step, if data.global_batch is 0."""
    scale_lr: Literal["none", "sqrt", "linear"] = "none"
    """Multiply lr by the images of an optimiser step divided by lr_batch, or by the root of that."""
    lr_batch: PositiveInt = 16
    """With scale_lr: the images per optimiser step that lr is for."""
    zero: bool = False
    """With several processes, each keeps a part of the optimiser's state (ZeRO, stage 1): for large backbones."""
    schedule: Literal["cosine", "step", "linear", "constant"] = "cosine"
    schedule_unit: Literal["epoch", "step"] = "epoch"
    """When the learning rate changes: after every epoch (as published) or after every step."""
    min_lr_ratio: ClosedUnitInterval = 0.0
    """The cosine schedule's last learning rate as a fraction of the first."""
    restarts: NonNegativeInt = 0
    """How often the cosine schedule starts again, after equal numbers of epochs."""
    restart_decay: LeftOpenUnitInterval = 1.0
    """Each restart begins with the learning rate of the one before, times this."""
    warmup_epochs: NonNegativeFloat = 0.0
    warmup_lr: NonNegativeFloat | None = None
    """Learning rate of every group at the start of the warm-up; null: 0.1 % of the group's own."""
    step_epochs: PositiveInt = 10
    step_decay: PositiveFloat = 0.1
    stage_1_epochs: NonNegativeInt = 0
    """Number of first epochs that train stage 1 alone (two-stage model), with their own schedule."""
    stage_1_lr_mult: NonNegativeFloat = 1.0
    """Multiplies the learning rates in these epochs."""


@dataclass(frozen=True)
class TrainConfig:
    """Length, precision, device, validation and checkpoints of a run."""

    epochs: PositiveInt = 90
    seed: int = 42
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Of autocast. auto: bf16 on a GPU that has it, else fp32."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Of float32 matrix products on a GPU: highest = float32, high = TF32, medium = bfloat16. Convolutions are in TF32
    unless it is highest."""
    device: str = "auto"
    """auto (CUDA if available) | cpu | cuda | cuda:N"""
    threads: NonNegativeInt = 0
    """CPU threads; 0 = torch's default."""
    ema_decay: HalfOpenUnitInterval = 0.0
    """Exponential moving average of the weights, used for evaluation; 0 = off. The published value is 0.9999."""
    ema_warmup: bool = True
    """Lower the decay in the first steps: at most 1 - (1 + step)^(-2/3)."""
    token_cache: str = ""
    """Folder for stage 1's patch tokens, where its backbone and tokens are frozen: each network input is computed once,
    for all epochs and runs. Empty: off. No effect on models without stage 1."""
    token_cache_gb: PositiveFloat = 10.0
    """Size at which the folder gets no more files."""
    compile: bool = False
    deterministic: bool = False
    """Use deterministic kernels only (slower on CUDA; an operation without one is an error)."""
    best_metric: str = "accuracy"
    """The validation metric whose best value, the highest or the lowest as the metric declares, selects the best
    checkpoint; on a tie the later epoch. For multi-label data, which has no accuracy: mean_average_precision, ..."""
    eval_every: PositiveInt = 1
    """Validate every N epochs, and after the last."""
    log_test: bool = False
    """Also evaluate the test split at every validation, for the curves only: it never selects anything."""
    sheet_every: NonNegativeInt = 10
    """Write a contact sheet of part maps every N epochs; 0 = only after the last."""
    eval_every_steps: NonNegativeInt = 0
    """Also validate within epochs, every N optimiser steps; 0 = only at the end of epochs."""
    keep_every: NonNegativeInt = 0
    """Keep the checkpoint of every Nth epoch as checkpoints/epoch_NNN.safetensors; 0 = only the last."""
    save_every_steps: NonNegativeInt = 0
    """Also save a checkpoint every N optimiser steps; 0 = only at the end of epochs."""
    trackers: tuple[Literal["jsonl", "wandb", "tensorboard"], ...] = ("jsonl",)
    """Where metrics go: jsonl (OUT/metrics.jsonl, always written), wandb, tensorboard (the extras of these names)."""


@dataclass(frozen=True)
class WandbConfig:
    """The run in Weights & Biases (the wandb extra)."""

    mode: Literal["auto", "off", "online", "offline"] = "auto"
    """auto: online if train.trackers names wandb, else off."""
    project: str = "faithful-vit"
    entity: str | None = None
    name: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunConfig:
    """All settings of a training run."""

    out: str = "runs/default"
    """The run folder."""
    resume: bool | Literal["auto"] = False
    """Continue the run in `out` exactly where it stopped; auto: continue if there is a checkpoint, else start."""
    allow_change: bool = False
    """`--resume.allow-change`: resume even though config keys or the number of processes have changed."""
    overwrite: bool = False
    """Delete the run that `out` already holds and start again; a flag only. Refused where `out` holds other files."""
    compat: Literal["none", "reference"] = "none"
    """reference: reproduce every quirk of the published code (see docs/compat.md)."""
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
    """Nested values as YAML that the parser reads back unchanged."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def flat(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of every entry of nested mappings; an empty mapping is a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class _Dumper(yaml.SafeDumper):
    """Quotes strings that start like a number: the parser reads 1e3 as a number, PyYAML as a string."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write an object that appears twice, such as a default, twice: `check_yaml` accepts no aliases."""
        return True

    def represent_str(self, text: str) -> yaml.ScalarNode:
        """Quote a string that starts like a number; leave others to PyYAML."""
        style = "'" if text[:1] in "+-.0123456789" else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)
