"""One resolved config per job: frozen dataclasses are the only schema, jsonargparse makes the command line of them."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from common.errors import UserError
from datasets.config import DataConfig, with_prescribed
from losses.config import LossConfig
from models.config import ModelConfig


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser, its groups and the schedule. Rates are per group: `lr` times the group's factor."""

    name: str = "adamw"
    """Any optimiser name of timm: adamw, adam, sgd, nadam, lamb, ..."""
    lr: float = 2.828e-6
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    normalise_weight_decay: bool = True
    """Multiply the weight decay by sqrt(1 / (steps per epoch * epochs))."""
    scratch_factor: float = 1e4
    """Stage-1 classifier, stage-2 head and its norm; a plain ViT's head and pooling."""
    modulation_factor: float = 1e4
    prototype_factor: float = 1e3
    stage_2_factor: float = 1.0
    freeze_stage_1: bool = True
    """Stage-1 backbone, except its class token, registers and positions."""
    freeze_stage_1_tokens: bool = False
    freeze_stage_2: bool = False
    """Stage-2 backbone, except its class token, registers and positions. A plain ViT: the whole backbone."""
    freeze_stage_2_tokens: bool = False
    clip: float = 2.0
    """Largest global gradient norm; 0 = off."""
    accumulation: int = 1
    """Micro-batches per optimiser step."""
    schedule: Literal["cosine", "step", "linear", "constant"] = "cosine"
    schedule_unit: Literal["epoch", "step"] = "epoch"
    """When the rate moves: after every epoch (as published) or after every step."""
    min_lr_share: float = 0.0
    """The cosine's last rate, as a share of the first."""
    warmup_epochs: float = 0.0
    step_epochs: int = 10
    step_decay: float = 0.1
    stage_1_epochs: int = 0
    """First so many of the epochs train stage 1 alone (two-stage model), with a schedule of their own."""
    stage_1_lr_factor: float = 1.0
    """Rates in those epochs are multiplied by this."""


@dataclass(frozen=True)
class TrainConfig:
    """How a run goes."""

    epochs: int = 90
    seed: int = 42
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: str = "auto"
    """auto (CUDA where there is one) | cpu | cuda | cuda:N"""
    threads: int = 0
    """CPU threads; 0 = torch's choice."""
    ema_decay: float = 0.0
    """Exponential moving average of the weights, used for evaluation; 0 = off. The published value is 0.9999."""
    compile: bool = False
    deterministic: bool = False
    """Only deterministic kernels (slower on CUDA; an operation without one is an error)."""
    best_metric: str = "accuracy"
    """The validation figure that picks the best checkpoint; on a tie the later epoch wins. Where pictures show several
    classes there is no accuracy: give mean_average_precision, macro_f1 or micro_f1."""
    eval_every: int = 1
    """Validate every so many epochs (and after the last)."""
    watch_test: bool = False
    """Also measure the test split whenever validation runs, for the curves alone: nothing is ever chosen by it."""
    sheet_every: int = 10
    """Write a contact sheet of part maps every so many epochs; 0 = only after the last."""
    eval_every_steps: int = 0
    """Also validate within epochs, every so many optimiser steps; 0 = only where eval_every says."""
    keep_every: int = 0
    """Keep a copy of the checkpoint every so many epochs, checkpoints/epoch_NNN.safetensors; 0 = only the last."""
    save_every_steps: int = 0
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
    resume: bool = False
    """Continue the run in `out` exactly where it stopped."""
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


def config_parser(**kwargs: Any) -> ArgumentParser:
    """The command line of a RunConfig: `--config FILE` and one flag per field."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the texts beside the fields become --help
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, **kwargs)
    parser.add_argument("--config", action="config", help="YAML file of any of the keys below; later flags win")
    parser.add_class_arguments(RunConfig, None)
    return parser


def parse_config(args: Sequence[str] | None = None, **kwargs: Any) -> RunConfig:
    """Command line (or `args`) -> resolved RunConfig. Raises UserError for an unknown key or a bad value."""
    parser = config_parser(**kwargs)
    try:
        return resolve(_instantiate(parser, parser.parse_args(args)))
    except ArgumentError as error:
        raise UserError(_one_line(error) + _file_to_blame(error, sys.argv[1:] if args is None else args)) from None


def load_config(path: Path, overrides: Mapping[str, Any] = MappingProxyType({})) -> RunConfig:
    """Read one YAML file, with `overrides` by dotted key on top. Raises UserError."""
    flags = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in overrides.items()]
    if not path.is_file():
        raise UserError(f"no such config file: {path}")
    return parse_config([f"--config={path}", *flags])


def save_config(config: RunConfig, path: Path) -> None:
    """Write every key with its resolved value."""
    path.write_text(yaml.dump(_plain(asdict(config)), Dumper=_Dumper, sort_keys=False))


def resolve(config: RunConfig) -> RunConfig:
    """Apply `compat` and what the data set prescribes; check what types cannot say. Raises UserError naming the key."""
    config = replace(config, data=with_prescribed(config.data))
    if config.compat == "reference":
        config = _with_reference_quirks(config)
    for key in _nulls(config):
        raise UserError(f"{key} has no value; give one or leave the key out")
    for problem, fine in {**_model_and_data(config), **_course(config), **_few_labels(config)}.items():
        if not fine:
            raise UserError(problem)
    return config


def _model_and_data(config: RunConfig) -> dict[str, bool]:
    """What to say -> whether all is well."""
    return {
        "model.parts.num_parts must be at least 1": config.model.parts.num_parts >= 1,
        "model.parts.temperature must be positive": config.model.parts.temperature > 0,
        "model.parts.logit_scale must be positive": config.model.parts.logit_scale > 0,
        "model.parts.part_dropout must be in [0, 1)": 0 <= config.model.parts.part_dropout < 1,
        "model.parts.mask_dropout must be in [0, 1)": 0 <= config.model.parts.mask_dropout < 1,
        "data.image_size must be positive": min(config.data.size_hw) >= 1,
        "data.batch_size must be at least 1": config.data.batch_size >= 1,
        "data.eval_batch_size must be at least 1": config.data.eval_batch_size >= 1,
        "data.workers must not be negative": config.data.workers >= 0,
        "loss.weights: every term is off, there is nothing to train": any(asdict(config.loss.weights).values()),
        f"loss.classification: mixed images have no mask, which model.name={config.model.name} needs; set mixup and "
        "cutmix to 0": not (config.loss.classification.mixup or config.loss.classification.cutmix)
        or config.model.name not in ("decoupled", "late_masking"),
    }


def _course(config: RunConfig) -> dict[str, bool]:
    """What to say -> whether all is well."""
    optim, train = config.optim, config.train
    stage_1_terms = any(weight for name, weight in asdict(config.loss.weights).items() if name != "stage_2")
    return {
        "train.epochs must be at least 1": train.epochs >= 1,
        "train.eval_every must be at least 1": train.eval_every >= 1,
        "train.ema_decay must be in [0, 1)": 0 <= train.ema_decay < 1,
        "train.threads must not be negative": train.threads >= 0,
        "train.sheet_every must not be negative": train.sheet_every >= 0,
        "train.save_every_steps must not be negative": train.save_every_steps >= 0,
        "train.eval_every_steps must not be negative": train.eval_every_steps >= 0,
        "train.keep_every must not be negative": train.keep_every >= 0,
        "optim.lr must be positive": optim.lr > 0,
        "optim.clip must not be negative": optim.clip >= 0,
        "optim.accumulation must be at least 1": optim.accumulation >= 1,
        "optim.step_epochs must be at least 1": optim.step_epochs >= 1,
        "optim.warmup_epochs must not be negative": optim.warmup_epochs >= 0,
        "optim.min_lr_share must be in [0, 1]": 0 <= optim.min_lr_share <= 1,
        "optim.stage_1_epochs must be from 0 to train.epochs - 1": 0 <= optim.stage_1_epochs < train.epochs,
        "optim.stage_1_epochs: every stage-1 term of loss.weights is off": not optim.stage_1_epochs or stage_1_terms,
        "--resume and --overwrite contradict each other": not (config.resume and config.overwrite),
    }


def _few_labels(config: RunConfig) -> dict[str, bool]:
    """What to say -> whether all is well."""
    semi, weight = config.data.semi, config.loss.consistency.weight
    supervised = semi.mode == "supervised"
    return {
        "data.semi.alpha must be positive": semi.alpha > 0,
        "data.semi.batch_size must be at least 1": semi.batch_size >= 1,
        "data.semi.images_per_class must not be negative": semi.images_per_class >= 0,
        "data.semi.unlabelled_size must not be negative": semi.unlabelled_size >= 0,
        "loss.consistency.weight must not be negative": weight >= 0,
        f"data.semi.mode={semi.mode} learns from consistency; set loss.consistency.weight, to 1 say": supervised
        or weight > 0,
        f"data.semi.mode={semi.mode}: optim.stage_1_epochs must be 0": supervised or not config.optim.stage_1_epochs,
        "loss.consistency: compiled code has no second derivative; set train.compile to false": not weight
        or not config.train.compile,
    }


def _nulls(config: Any, prefix: str = "") -> Iterator[str]:
    """Keys left empty in a YAML file although they need a value; the parser lets them pass."""
    for item in fields(config):
        value, key = getattr(config, item.name), prefix + item.name
        if is_dataclass(value):
            yield from _nulls(value, f"{key}.")
        elif value is None and "None" not in str(item.type):
            yield key


def _with_reference_quirks(config: RunConfig) -> RunConfig:
    parts = replace(config.model.parts, independent_draws=True, eval_noise=True, threshold_form="dot_product")
    model = replace(config.model, parts=parts, empty_mask="prefix_only", mask_gradient="detached")
    equivariance = replace(config.loss.equivariance, published=True, images=0, padding="zeros")
    return replace(config, model=model, loss=replace(config.loss, orthogonality="channels", equivariance=equivariance))


def _instantiate(parser: ArgumentParser, namespace: Namespace) -> RunConfig:
    values = parser.instantiate(namespace)
    return RunConfig(**{name: values[name] for name in RunConfig.__dataclass_fields__})


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:4])[:400]


def _file_to_blame(error: Exception, args: Sequence[str]) -> str:
    """The config files given, where the parser complains about a file's syntax without naming it."""
    if not str(error).startswith(("Problems parsing config", "Unexpected config")):
        return ""
    following = dict(zip(args, [*args[1:], ""], strict=True))
    files = [arg.partition("=")[2] or following[arg] for arg in args if arg.partition("=")[0] == "--config"]
    return f" (in {', '.join(files)})"


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
