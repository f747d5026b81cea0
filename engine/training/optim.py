"""Optimiser and parameter groups: learning rate, weight decay and freezing of each parameter."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import timm.optim
import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from common.errors import UserError
from common.processes import processes
from common.registry import Registry
from engine.run.config import OptimConfig


@dataclass(frozen=True)
class ParamGroupRule:
    """Settings of the parameters whose names match `pattern`. The first matching rule applies."""

    pattern: str
    factor: float
    """Learning rate = factor * optim.lr."""
    decay: bool | None
    """Weight decay on or off; None: on, except for vectors (biases, norms)."""
    frozen: bool = False
    name: str = "all"
    """Name of its learning rate in metrics.jsonl: `lr/NAME`. Rules of one name have one factor."""


_TOKENS = r"\.(cls_token|reg_token|pos_embed|rope\.freqs)$"


def two_stage_rules(config: OptimConfig) -> list[ParamGroupRule]:
    """iFAM's groups: separate rates for heads, modulation, prototypes and stage 2."""
    stage_2 = config.stage_2_lr_mult
    return [
        ParamGroupRule(r"^selector\.", 0.0, None, frozen=True),
        ParamGroupRule(r"^stage_1\.parts\.classifier\.", config.head_lr_mult, True, name="head"),
        ParamGroupRule(r"^stage_2\.head\.", config.head_lr_mult, True, name="head"),
        ParamGroupRule(r"^stage_2\.fc_norm\.", config.head_lr_mult, False, name="head"),
        ParamGroupRule(r"^stage_1\.parts\.modulation\.", config.modulation_lr_mult, False, name="modulation"),
        ParamGroupRule(r"^stage_1\.parts\.prototypes$", config.prototype_lr_mult, False, name="prototypes"),
        ParamGroupRule(r"^stage_1\.backbone" + _TOKENS, 1.0, False, config.freeze_stage_1_tokens, "stage_1"),
        ParamGroupRule(r"^stage_2\.backbone" + _TOKENS, stage_2, False, config.freeze_stage_2_tokens, "stage_2"),
        *frozen_blocks(config),
        ParamGroupRule(r"^stage_2\.", stage_2, None, config.freeze_stage_2, "stage_2"),
        ParamGroupRule(r"^stage_1\.", 1.0, None, config.freeze_stage_1, "stage_1"),
    ]


def classifier_rules(config: OptimConfig) -> list[ParamGroupRule]:
    """The simpler groups of the published baselines. The backbone takes the settings of stage 2, its counterpart."""
    return [
        ParamGroupRule(r"^pool\.(query|queries)$", config.head_lr_mult, False, name="head"),
        ParamGroupRule(r"^(stage_2\.)?(head|pool)\.", config.head_lr_mult, None, name="head"),
        *frozen_blocks(config),
        ParamGroupRule(r"\.rope\.freqs$", config.stage_2_lr_mult, False, config.freeze_stage_2, "backbone"),
        ParamGroupRule(r"", config.stage_2_lr_mult, None, config.freeze_stage_2, "backbone"),
    ]


def frozen_blocks(config: OptimConfig) -> list[ParamGroupRule]:
    """The rule of `freeze_stage_2_blocks`, if it freezes any."""
    if not config.freeze_stage_2_blocks:
        return []
    indices = "|".join(map(str, range(config.freeze_stage_2_blocks)))
    return [ParamGroupRule(rf"^(stage_2\.)?backbone\.(patch_embed|blocks\.({indices}))\.", 0.0, None, frozen=True)]


PARAM_GROUP_RULES: Registry[Callable[[OptimConfig], list[ParamGroupRule]]] = Registry("parameter groups of a model")
PARAM_GROUP_RULES.register("two_stage")(two_stage_rules)
PARAM_GROUP_RULES.register("classifier")(classifier_rules)


def parameter_groups(
    model: nn.Module, rules: list[ParamGroupRule], config: OptimConfig, weight_decay: float
) -> list[dict[str, object]]:
    """Trainable parameters grouped by learning rate and weight decay. Frozen ones get `requires_grad=False`.

    Each group has a `base_lr`, which the schedule multiplies, and `names`, those of its rules.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    names: dict[tuple[float, float], set[str]] = {}
    for name, parameter in model.named_parameters():
        rule = next(rule for rule in rules if re.search(rule.pattern, name))
        parameter.requires_grad_(not rule.frozen)
        if rule.frozen:
            continue
        decays = rule.decay if rule.decay is not None else parameter.ndim != 1
        key = (config.lr * rule.factor, weight_decay if decays else 0.0)
        groups.setdefault(key, []).append(parameter)
        names.setdefault(key, set()).add(rule.name)
    return [
        {"params": p, "lr": key[0], "base_lr": key[0], "weight_decay": key[1], "names": sorted(names[key])}
        for key, p in groups.items()
    ]


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """`lr/NAME` -> the learning rate of the last step, for each name of a parameter group's rules."""
    groups = optimizer.param_groups
    return {f"lr/{name}": float(group["lr"]) for group in groups for name in group.get("names", ())}


def normalised_weight_decay(config: OptimConfig, steps_per_epoch: int, epochs: int) -> float:
    """Normalised weight decay of AdamW (Loshchilov and Hutter 2019): w * sqrt(1 / (steps per epoch * epochs)).

    Without `normalise_weight_decay`, w itself.
    """
    if not config.normalise_weight_decay:
        return config.weight_decay
    return float(config.weight_decay * (1 / max(1, steps_per_epoch * epochs)) ** 0.5)


def build_optimizer(
    model: nn.Module, rules: list[ParamGroupRule], config: OptimConfig, weight_decay: float
) -> torch.optim.Optimizer:
    """timm's optimiser `config.name` with the model's parameter groups.

    Raises UserError for an unknown name, or if all parameters are frozen.
    """
    last = f"blocks.{config.freeze_stage_2_blocks - 1}."
    if config.freeze_stage_2_blocks and not any(last in name for name, _ in model.named_parameters()):
        raise UserError(f"optim.freeze_stage_2_blocks={config.freeze_stage_2_blocks}: the backbone has fewer blocks")
    groups = parameter_groups(model, rules, config, weight_decay)
    if not groups:
        raise UserError("optim.freeze_*: all parameters are frozen, so there is nothing to train")
    extra = {"momentum": config.betas[0]} if "sgd" in config.name else {"betas": config.betas, "eps": config.eps}
    if config.name == "adamw" and all(p.is_cuda for p in model.parameters() if p.requires_grad):
        extra["fused"] = True  # one kernel for all weights
    make: Callable[..., torch.optim.Optimizer] = partial(
        timm.optim.create_optimizer_v2, opt=config.name, weight_decay=0.0, **extra
    )
    try:
        if config.zero and processes().is_distributed:
            return ZeroRedundancyOptimizer(groups, optimizer_class=make, lr=config.lr)  # type: ignore[arg-type]
        return make(groups, lr=config.lr)
    except (ValueError, TypeError, IndexError) as error:  # IndexError: an optimiser with three betas
        raise UserError(f"optim.name={config.name}: {str(error).splitlines()[0]}") from None
