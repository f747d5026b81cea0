"""One resolved config per job: frozen dataclasses are the only schema, jsonargparse makes the command line of them."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, get_loader, set_loader, set_parsing_settings

from common.errors import UserError
from common.plain_yaml import check_yaml
from datasets.config import DataConfig, with_prescribed
from engine.config_checks import problems
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
    zero: bool = False
    """Of several processes each keeps a part of the optimiser's state (ZeRO, stage 1): for large backbones."""
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


def config_parser(**kwargs: Any) -> ArgumentParser:
    """The command line of a RunConfig: `--config FILE` and one flag per field."""
    # The texts beside the fields become --help. No value may name a module: the parser would import it to look at it.
    set_parsing_settings(docstring_parse_attribute_docstrings=True, import_path_denylist=["*"])
    set_loader("yaml", _load_plain, (yaml.YAMLError, ValueError))
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, **kwargs)
    parser.add_argument("--config", action="config", help="YAML file of any of the keys below; later flags win")
    parser.add_class_arguments(RunConfig, None)
    return parser


def parse_config(args: Sequence[str] | None = None, **kwargs: Any) -> RunConfig:
    """Command line (or `args`) -> resolved RunConfig. Raises UserError for an unknown key or a bad value."""
    parser, words = config_parser(**kwargs), list(sys.argv[1:] if args is None else args)
    try:
        return resolve(_instantiate(parser, parser.parse_args([_spelled_out(word) for word in words])))
    except ArgumentError as error:
        raise UserError(_one_line(error) + _file_to_blame(error, words)) from None
    except UnicodeDecodeError:
        raise UserError(f"a config file is no text in UTF-8{_config_files(words)}") from None
    except OverflowError:
        raise UserError(f"a number is too large to be computed with{_config_files(words)}") from None
    except ImportError:
        raise UserError(f"a value names a Python module, and none is ever imported{_config_files(words)}") from None


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
    for key, value, kind in _leaves(config):
        if value is None and "None" not in kind:  # left empty in a YAML file; the parser lets that pass
            raise UserError(f"{key} has no value; give one or leave the key out")
        if isinstance(value, int | float) and not abs(value) < 2**63:  # so is nan not
            raise UserError(f"{key} is not a number that can be computed with; give another")
    for problem in problems(config):
        raise UserError(problem)
    return config


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every dotted key with its value and its type."""
    for item in fields(config):
        value, key = getattr(config, item.name), prefix + item.name
        if is_dataclass(value):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value, str(item.type)


def _with_reference_quirks(config: RunConfig) -> RunConfig:
    parts = replace(config.model.parts, independent_draws=True, eval_noise=True, threshold_form="dot_product")
    model = replace(config.model, parts=parts, empty_mask="prefix_only", mask_gradient="detached")
    equivariance = replace(config.loss.equivariance, published=True, images=0, padding="zeros")
    return replace(config, model=model, loss=replace(config.loss, orthogonality="channels", equivariance=equivariance))


_load_yaml = get_loader("yaml")


def _load_plain(text: str) -> Any:
    check_yaml(text)
    return _load_yaml(text)


def _instantiate(parser: ArgumentParser, namespace: Namespace) -> RunConfig:
    for key in _bare_groups(namespace, RunConfig()):
        raise UserError(f"{key} is a group of keys, not a value; give its keys, such as {key}.NAME, or leave it out")
    values = parser.instantiate(namespace)
    return RunConfig(**{name: values[name] for name in RunConfig.__dataclass_fields__})


def _bare_groups(namespace: Namespace, config: Any, prefix: str = "") -> Iterator[str]:
    """Groups that a config file gives a value of their own; the parser ignores it, or stumbles over it."""
    for item in fields(config):
        default, key = getattr(config, item.name), prefix + item.name
        if is_dataclass(default):
            given = namespace[item.name]
            yield from _bare_groups(given, default, f"{key}.") if isinstance(given, Namespace) else (key,)


def _spelled_out(word: str) -> str:
    """`--resume.allow-change` as the parser knows it, for which `resume` has a value and no keys below."""
    flag, _, value = word.partition("=")
    return f"--allow_change={value or 'true'}" if flag == "--resume.allow-change" else word


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:4])[:400]


def _file_to_blame(error: Exception, args: Sequence[str]) -> str:
    """The config files given, where the parser complains about a file's syntax without naming it."""
    return _config_files(args) if str(error).startswith(("Problems parsing config", "Unexpected config")) else ""


def _config_files(args: Sequence[str]) -> str:
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
