"""Optimiser groups: which parameters learn how fast, which decay, which are frozen."""

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
    """The first rule whose pattern matches a parameter's name decides for it."""

    pattern: str
    factor: float
    """Times the base rate."""
    decay: bool | None
    """True, False, or None: every parameter but vectors."""
    frozen: bool = False


_TOKENS = r"\.(cls_token|reg_token|pos_embed)$"


def two_stage_rules(config: OptimConfig) -> list[ParamGroupRule]:
    """iFAM's table: heads fast, prototypes slower, backbones at the base rate."""
    return [
        ParamGroupRule(r"^stage_1\.parts\.classifier\.", config.head_lr_mult, True),
        ParamGroupRule(r"^stage_2\.head\.", config.head_lr_mult, True),
        ParamGroupRule(r"^stage_2\.fc_norm\.", config.head_lr_mult, False),
        ParamGroupRule(r"^stage_1\.parts\.modulation\.", config.modulation_lr_mult, False),
        ParamGroupRule(r"^stage_1\.parts\.prototypes$", config.prototype_lr_mult, False),
        ParamGroupRule(r"^stage_1\.backbone" + _TOKENS, 1.0, False, config.freeze_stage_1_tokens),
        ParamGroupRule(r"^stage_2\.backbone" + _TOKENS, config.stage_2_lr_mult, False, config.freeze_stage_2_tokens),
        ParamGroupRule(r"^stage_2\.", config.stage_2_lr_mult, None, config.freeze_stage_2),
        ParamGroupRule(r"^stage_1\.", 1.0, None, config.freeze_stage_1),
    ]


def classifier_rules(config: OptimConfig) -> list[ParamGroupRule]:
    """The published baselines' simpler table. The backbone is stage 2's counterpart and follows stage 2's freezing."""
    return [
        ParamGroupRule(r"^pool\.(query|queries)$", config.head_lr_mult, False),
        ParamGroupRule(r"^(stage_2\.)?(head|pool)\.", config.head_lr_mult, None),
        ParamGroupRule(r"", config.stage_2_lr_mult, None, config.freeze_stage_2),
    ]


PARAM_GROUP_RULES: Registry[Callable[[OptimConfig], list[ParamGroupRule]]] = Registry("parameter groups of a model")
PARAM_GROUP_RULES.register("two_stage")(two_stage_rules)
PARAM_GROUP_RULES.register("classifier")(classifier_rules)


def parameter_groups(
    model: nn.Module, rules: list[ParamGroupRule], config: OptimConfig, weight_decay: float
) -> list[dict[str, object]]:
    """Trainable parameters grouped by (rate, decay); frozen ones lose `requires_grad` and appear in no group.

    Each group keeps its own `base_lr`, which the schedule multiplies.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rule = next(rule for rule in rules if re.search(rule.pattern, name))
        parameter.requires_grad_(not rule.frozen)
        if rule.frozen:
            continue
        decays = rule.decay if rule.decay is not None else parameter.ndim != 1
        key = (config.lr * rule.factor, weight_decay if decays else 0.0)
        groups.setdefault(key, []).append(parameter)
    return [{"params": p, "lr": lr, "base_lr": lr, "weight_decay": wd} for (lr, wd), p in groups.items()]


def normalised_weight_decay(config: OptimConfig, steps_per_epoch: int, epochs: int) -> float:
    """w * sqrt(1 / (steps per epoch * epochs)), or w itself where that is off."""
    if not config.normalise_weight_decay:
        return config.weight_decay
    return float(config.weight_decay * (1 / max(1, steps_per_epoch * epochs)) ** 0.5)


def build_optimizer(
    model: nn.Module, rules: list[ParamGroupRule], config: OptimConfig, weight_decay: float
) -> torch.optim.Optimizer:
    """timm's optimiser of the configured name on the model's groups. Raises UserError for an unknown name."""
    groups = parameter_groups(model, rules, config, weight_decay)
    if not groups:
        raise UserError("optim.freeze_*: every parameter is frozen, there is nothing to train")
    extra = {"momentum": config.betas[0]} if "sgd" in config.name else {"betas": config.betas, "eps": config.eps}
    make: Callable[..., torch.optim.Optimizer] = partial(
        timm.optim.create_optimizer_v2, opt=config.name, weight_decay=0.0, **extra
    )
    try:
        if config.zero and processes().is_distributed:
            return ZeroRedundancyOptimizer(groups, optimizer_class=make, lr=config.lr)  # type: ignore[arg-type]
        return make(groups, lr=config.lr)
    except (ValueError, TypeError, IndexError) as error:  # IndexError: a name that wants three betas
        raise UserError(f"optim.name={config.name}: {str(error).splitlines()[0]}") from None
