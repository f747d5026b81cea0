"""Learning rate, weight decay and freezing of every parameter; weight decay normalised by run length."""

from dataclasses import replace
from itertools import product
from typing import NamedTuple

import pytest
import torch
from torch import nn

from common.errors import UserError
from engine.run.config import OptimConfig
from engine.training.optim import (
    PARAM_GROUP_RULES,
    ParamGroupRule,
    build_optimizer,
    classifier_rules,
    normalised_weight_decay,
    parameter_groups,
    two_stage_rules,
)  # fmt: skip
from models import build_model
from models.config import ModelConfig, PartsConfig
from tests.tiny import tiny_config, tiny_trainer

BASE = OptimConfig(lr=1e-6, head_lr_mult=1e4, modulation_lr_mult=2e4, prototype_lr_mult=1e3, stage_2_lr_mult=3.0)
FREEZES = ("freeze_stage_1", "freeze_stage_1_tokens", "freeze_stage_2", "freeze_stage_2_tokens")
DECAY = 0.01
BLOCK = {
    "patch_embed.proj.weight": True, "patch_embed.proj.bias": False,
    "blocks.0.norm1.weight": False, "blocks.0.norm1.bias": False,
    "blocks.0.attn.qkv.weight": True, "blocks.0.attn.qkv.bias": False,
    "blocks.0.attn.proj.weight": True, "blocks.0.attn.proj.bias": False,
    "blocks.0.ls1.gamma": False, "blocks.0.norm2.weight": False, "blocks.0.norm2.bias": False,
    "blocks.0.mlp.fc1.weight": True, "blocks.0.mlp.fc1.bias": False,
    "blocks.0.mlp.fc2.weight": True, "blocks.0.mlp.fc2.bias": False,
    "blocks.0.ls2.gamma": False, "norm.weight": False, "norm.bias": False,
}  # fmt: skip
"""Parameter of a one-block DINOv2, without tokens -> whether it has weight decay."""
Groups = dict[str, tuple[float, bool] | None]
TOKENS = ("cls_token", "reg_token", "pos_embed")


class Setting(NamedTuple):
    factor: float
    decays: bool
    frozen_by: str | None


TABLE = {
    "stage_1.parts.classifier.weight": Setting(1e4, True, None),
    "stage_2.head.weight": Setting(1e4, True, None),
    "stage_2.fc_norm.weight": Setting(1e4, False, None),
    "stage_2.fc_norm.bias": Setting(1e4, False, None),
    "stage_1.parts.modulation.weight": Setting(2e4, False, None),
    "stage_1.parts.modulation.bias": Setting(2e4, False, None),
    "stage_1.parts.prototypes": Setting(1e3, False, None),
    **{f"stage_1.backbone.{name}": Setting(1.0, False, "freeze_stage_1_tokens") for name in TOKENS},
    **{f"stage_2.backbone.{name}": Setting(3.0, False, "freeze_stage_2_tokens") for name in TOKENS},
    **{f"stage_1.backbone.{name}": Setting(1.0, decays, "freeze_stage_1") for name, decays in BLOCK.items()},
    **{f"stage_2.backbone.{name}": Setting(3.0, decays, "freeze_stage_2") for name, decays in BLOCK.items()},
}
MODEL = ModelConfig(backbone="vit_test_reg4", weights="none", parts=PartsConfig(num_parts=3))


@pytest.fixture(scope="module")
def two_stage() -> nn.Module:
    return build_model(MODEL, 2, (32, 32))


def groups_of(model: nn.Module, rules: list[ParamGroupRule], config: OptimConfig) -> Groups:
    """Parameter name -> (rate / base rate, whether it decays), or None if frozen. Checks the groups on the way."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, tuple[float, bool] | None] = dict.fromkeys(names.values())
    for group in parameter_groups(model, rules, config, DECAY):
        assert group["lr"] == group["base_lr"]
        assert group["weight_decay"] in (0.0, DECAY)
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert found[name] is None, f"{name} is in two groups"
            found[name] = (pytest.approx(group["lr"] / config.lr), group["weight_decay"] == DECAY)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, setting in found.items() if setting}
    return found


@pytest.mark.parametrize("frozen", list(product([False, True], repeat=4)))
def test_two_stage_table(two_stage: nn.Module, frozen: tuple[bool, ...]) -> None:
    config = replace(BASE, **dict(zip(FREEZES, frozen, strict=True)))
    expected = {
        name: None if setting.frozen_by and getattr(config, setting.frozen_by) else (setting.factor, setting.decays)
        for name, setting in TABLE.items()
    }
    assert groups_of(two_stage, two_stage_rules(config), config) == expected


def test_dimensions_of_modulation_and_tokens(two_stage: nn.Module) -> None:
    shapes = {name: parameter.ndim for name, parameter in two_stage.named_parameters()}
    assert shapes["stage_1.parts.modulation.weight"] == 2
    assert shapes["stage_1.backbone.pos_embed"] == shapes["stage_2.backbone.reg_token"] == 3


def test_published_defaults_train_tokens_and_head_of_stage_1_and_all_of_stage_2(two_stage: nn.Module) -> None:
    config = OptimConfig()
    found = groups_of(two_stage, two_stage_rules(config), config)
    assert {name for name, group in found.items() if group is None} == {f"stage_1.backbone.{name}" for name in BLOCK}
    assert (config.head_lr_mult, config.modulation_lr_mult, config.prototype_lr_mult) == (1e4, 1e4, 1e3)
    assert (config.stage_2_lr_mult, config.betas, config.eps, config.clip) == (1.0, (0.9, 0.999), 1e-8, 2.0)


POOLS = {
    "cls": {},
    "avg": {},
    "gap_cls": {},
    "ep": {"pool.queries": False, "pool.values.weight": True},
    "aim": {"pool.query": False, "pool.keys.weight": True, "pool.values.weight": True},
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("pooling", POOLS)
def test_plain_vit_table(pooling: str, frozen: bool) -> None:
    config = replace(BASE, freeze_stage_2=frozen)
    model = build_model(replace(MODEL, name="vit", pooling=pooling), 2, (32, 32))
    backbone = BLOCK | dict.fromkeys(TOKENS, True)  # published: tokens and positions DO decay here
    bias = {} if pooling == "aim" else {"head.bias": False}
    expected = {f"backbone.{name}": None if frozen else (3.0, decays) for name, decays in backbone.items()}
    expected |= {name: (1e4, decays) for name, decays in ({"head.weight": True} | bias | POOLS[pooling]).items()}
    assert groups_of(model, classifier_rules(config), config) == expected


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["decoupled", "late_masking"])
def test_given_mask_table(name: str, frozen: bool) -> None:
    config = replace(BASE, freeze_stage_2=frozen)
    model = build_model(replace(MODEL, name=name), 2, (32, 32))
    prefix = "stage_2." if name == "decoupled" else ""
    backbone = BLOCK | dict.fromkeys(TOKENS, True)
    expected = {f"{prefix}backbone.{key}": None if frozen else (3.0, decays) for key, decays in backbone.items()}
    expected |= {f"{prefix}head.weight": (1e4, True)} | ({} if prefix else {"head.bias": (1e4, False)})
    assert groups_of(model, PARAM_GROUP_RULES[model.parameter_rules](config), config) == expected


@pytest.mark.parametrize("kind", ["layer_norm", "original"])
def test_pdiscoformer_table_is_that_of_stage_1(kind: str) -> None:
    model = build_model(replace(MODEL, name="pdiscoformer", parts=PartsConfig(3, modulation=kind)), 2, (32, 32))
    config = replace(BASE, freeze_stage_1=True)
    expected = {
        name: None if setting.frozen_by == "freeze_stage_1" else (setting.factor, setting.decays)
        for name, setting in TABLE.items()
        if name.startswith("stage_1.") and not (kind == "original" and name.endswith("modulation.bias"))
    }
    assert groups_of(model, PARAM_GROUP_RULES[model.parameter_rules](config), config) == expected


def test_normalised_weight_decay_of_the_published_cub_run() -> None:
    config = OptimConfig(weight_decay=0.05)
    assert normalised_weight_decay(config, 5994 // 128, 90) == pytest.approx(7.77e-4, abs=5e-7)
    assert normalised_weight_decay(replace(config, normalise_weight_decay=False), 5994 // 128, 90) == 0.05


def test_the_trainer_normalises_by_whole_batches_and_epochs(tmp_path) -> None:
    keys = {"optim.normalise_weight_decay": True, "optim.weight_decay": 0.05, "train.epochs": 3}
    trainer = tiny_trainer(tiny_config(tmp_path, keys))  # 34 images, 8 per batch
    decays = {group["weight_decay"] for group in trainer.state.optimizer.param_groups}
    assert sorted(decays) == pytest.approx([0.0, 0.05 / (4 * 3) ** 0.5])


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "nadam", "lars", "lamb", "lion"])
def test_optimisers_step_with_the_settings_of_each_group(name: str) -> None:
    model = nn.Linear(3, 2)
    config = OptimConfig(name=name, lr=0.1, betas=(0.8, 0.9))
    rules = [ParamGroupRule("weight", 2.0, True), ParamGroupRule("", 1.0, False)]
    optimizer = build_optimizer(model, rules, config, 0.5)
    assert [g["lr"] / config.lr for g in optimizer.param_groups] == [2.0, 1.0]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.5, 0.0]
    before = model.weight.detach().clone()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.weight, before)
    if name in ("adamw", "nadam", "lamb"):
        assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    if name == "sgd":
        assert optimizer.param_groups[0]["momentum"] == 0.8 and optimizer.param_groups[0]["nesterov"]


@pytest.mark.parametrize("name", ["adamsandler", "", "adan"])  # adan: needs three betas
def test_invalid_optimiser_is_a_one_line_error(name: str) -> None:
    with pytest.raises(UserError, match=f"optim.name={name}") as caught:
        build_optimizer(nn.Linear(2, 2), [ParamGroupRule("", 1.0, None)], OptimConfig(name=name), 0.0)
    assert "\n" not in str(caught.value)


def test_everything_frozen_is_an_error() -> None:
    with pytest.raises(UserError, match="freeze"):
        build_optimizer(nn.Linear(2, 2), [ParamGroupRule("", 1.0, None, frozen=True)], OptimConfig(), 0.0)


@pytest.mark.parametrize("name", ["two_stage", "decoupled", "vit"])
def test_first_blocks_of_stage_2_are_frozen(name: str) -> None:
    model = build_model(ModelConfig(name=name, backbone="vit_nano_patch8", weights="none"), 3, (32, 32))
    config = replace(BASE, freeze_stage_2_blocks=2)
    build_optimizer(model, PARAM_GROUP_RULES[model.parameter_rules](config), config, DECAY)
    stage_2 = {n.removeprefix("stage_2."): p for n, p in model.named_parameters() if not n.startswith("stage_1.")}
    frozen = {n for n, p in stage_2.items() if not p.requires_grad}
    assert frozen == {n for n in stage_2 if "patch_embed" in n or "blocks.0." in n or "blocks.1." in n}
    assert any("blocks.2." in n for n in stage_2.keys() - frozen)


def test_more_frozen_blocks_than_there_are_is_an_error() -> None:
    model = build_model(ModelConfig(name="vit", backbone="vit_nano_patch8", weights="none"), 3, (32, 32))
    config = replace(BASE, freeze_stage_2_blocks=50)
    with pytest.raises(UserError, match="freeze_stage_2_blocks=50: the backbone has fewer blocks"):
        build_optimizer(model, classifier_rules(config), config, DECAY)
