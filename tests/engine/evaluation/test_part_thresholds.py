"""Part thresholds against a slow loop over images, and against what they do when they are applied."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from common.errors import UserError
from datasets import Split, eval_loader
from engine.evaluation.part_thresholds import (
    CUTS_NOTHING,
    PartThresholds,
    check_quantiles,
    measure_thresholds,
    part_logits,
    threshold_file,
)
from engine.evaluation.predict import evaluation_mode
from engine.run.config import RunConfig
from models.backbone import patch_tokens
from models.part_discovery import Intervention
from models.two_stage import TwoStageModel
from tests.tiny import CPU, tiny_model

QUANTILES = [0.01, 0.05, 0.3]


def model_of(config: RunConfig, **parts: object) -> TwoStageModel:
    """Random weights with patches of every part."""
    model = tiny_model(replace(config, model=replace(config.model, parts=replace(config.model.parts, **parts))))
    assert isinstance(model, TwoStageModel)
    with torch.no_grad():
        model.stage_1.parts.prototypes.normal_(0, 1, generator=torch.Generator().manual_seed(3))
    return model.eval()


def measured(model: TwoStageModel, split: Split, size: int = 5) -> PartThresholds:
    return measure_thresholds(model, eval_loader(split, batch_size=size, workers=0), CPU, QUANTILES)


@torch.no_grad()
def slow_logits(model: TwoStageModel, split: Split) -> list[list[float]]:
    """Per part, the dot products of its patches: image by image, patch by patch."""
    parts = model.model_config.parts.num_parts
    found: list[list[float]] = [[] for _ in range(parts)]
    for sample in split:
        maps = model(sample.image[None]).part_maps[0]
        tokens = patch_tokens(model.stage_1.backbone, sample.image[None])[0]
        for token, chances in zip(tokens, maps.flatten(1).T, strict=True):
            winner = int(chances.argmax())
            if winner < parts:
                found[winner].append(float(token @ model.stage_1.parts.prototypes[winner]))
    return found


def test_equals_the_slow_loop(config: RunConfig, split: Split) -> None:
    model = model_of(config)
    logits, found = slow_logits(model, split), measured(model, split)
    assert found.patches == [len(some) for some in logits] and min(found.patches) > 5
    assert sum(found.patches) < 16 * len(split), "some patches are background"
    for quantile in QUANTILES:
        expected = [np.quantile(some, quantile, method="linear") for some in logits]
        assert found.values[quantile] == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("noise", [False, True])
def test_exact_on_the_logits_of_the_model(noise: bool, config: RunConfig, split: Split) -> None:
    """Equal to numpy to rounding in float64; also with published noise."""
    model = model_of(config, eval_noise=noise)
    with evaluation_mode(model, CPU, seed=0):
        seen = [part_logits(model, batch.image, torch.float32) for batch in eval_loader(split, batch_size=5, workers=0)]
    dot, part = (torch.cat(tensors) for tensors in zip(*seen, strict=True))
    found = measured(model, split)
    for k in range(3):
        mine = dot[part == k].double().numpy()
        for quantile in QUANTILES:
            assert found.values[quantile][k] == pytest.approx(np.quantile(mine, quantile), rel=1e-14)


@torch.no_grad()
def test_applied_they_cut_the_share_they_were_made_for(config: RunConfig, split: Split) -> None:
    """The logits measured are those that an Intervention compares with, and so many patches lie below."""
    model = model_of(config)
    found = measured(model, split)
    images = torch.stack([sample.image for sample in split])
    winner = model(images).part_maps.argmax(1)
    for quantile in QUANTILES:
        cut = model(images, intervention=Intervention(torch.tensor(found.values[quantile])))
        for k, patches in enumerate(found.patches):
            gone = int((cut.part_maps[:, k][winner == k] == 0).sum())
            assert gone == np.ceil(quantile * (patches - 1))


@torch.no_grad()
def test_a_part_without_patches_gets_a_threshold_that_cuts_nothing(config: RunConfig, split: Split) -> None:
    model = model_of(config)
    model.stage_1.parts.prototypes[1] = 100.0
    found = measured(model, split)
    assert found.patches[1] == 0 and min(found.patches[0], found.patches[2]) > 0
    assert all(values[1] == CUTS_NOTHING for values in found.values.values())
    images: Tensor = torch.stack([sample.image for sample in split])
    cut = model(images, intervention=Intervention(torch.full((3,), CUTS_NOTHING)))
    assert torch.equal(cut.logits, model(images).logits)


def test_the_published_names() -> None:
    assert [threshold_file(q) for q in (0.01, 0.03, 0.05, 0.1)] == ["0.99.json", "0.97.json", "0.95.json", "0.9.json"]
    assert PartThresholds({0.05: [1.5, -2.0]}, [3, 4]).files() == {"0.95.json": {"0": 1.5, "1": -2.0}}


@pytest.mark.parametrize("quantiles", [[0.0], [0.05, 1.0], [-0.1], [float("nan")], [0.05, 0.05]])
def test_quantiles_that_are_none(quantiles: list[float]) -> None:
    with pytest.raises(UserError, match="--quantiles"):
        check_quantiles(quantiles)
