"""Training and evaluation of baselines: masks, losses, and errors before any work."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from commands import train_run
from common.errors import UserError
from datasets import Batch, Split, collate, eval_loader
from engine.evaluation.loop import evaluate
from engine.evaluation.predict import check_masks, given_mask, prediction_of
from engine.training.objectives import OBJECTIVES
from losses.config import EquivarianceConfig, LossConfig, LossWeights
from metrics.registry import build_metrics, default_metrics
from models.interface import gives_mask
from models.two_stage import TwoStageModel
from tests.tiny import CPU, tiny_config, tiny_model, tiny_splits

GIVEN = ("decoupled", "late_masking")
WEIGHTS = LossWeights(1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.1)
"""All terms on, with different weights."""


def keys(name: str, **more: Any) -> dict[str, Any]:
    backbone = "resnet10t" if name == "cnn" else "vit_test_reg4"
    return {"model.name": name, "model.backbone": backbone, "model.parts.temperature": 20.0, **more}


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return tiny_splits(tiny_config(tmp_path))["val"]


def a_batch(split: Split, count: int = 7) -> Batch:
    return collate([split[i] for i in range(count)])


@pytest.mark.parametrize("name", ["cnn", *GIVEN])
def test_loss_is_the_cross_entropy_of_the_logits(name: str, tmp_path: Path, split: Split) -> None:
    config, batch = tiny_config(tmp_path, keys(name)), a_batch(split)
    model = tiny_model(config).eval()
    output = OBJECTIVES[model.objective](config.loss, 2, [17, 17])(model, batch)
    logits = (model(batch.image, batch.mask) if name in GIVEN else model(batch.image)).logits
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, batch.label))
    assert torch.equal(output.prediction.logits, logits.detach())
    assert (output.prediction.mask is not None) == (name in GIVEN) == gives_mask(model)


def test_pdiscoformer_minimises_the_two_stage_terms_without_stage_2(tmp_path: Path, split: Split) -> None:
    config = tiny_config(tmp_path, keys("pdiscoformer"))
    loss = replace(LossConfig(), weights=WEIGHTS, equivariance=EquivarianceConfig(images=4))
    model, batch = tiny_model(config).train(), a_batch(split)
    two = tiny_model(tiny_config(tmp_path, keys("two_stage"))).train()
    assert isinstance(two, TwoStageModel)
    two.stage_1.load_state_dict(model.stage_1.state_dict())
    torch.manual_seed(3)
    output = OBJECTIVES[model.objective](loss, 2, [17, 17])(model, batch)
    torch.manual_seed(3)
    full = OBJECTIVES[two.objective](loss, 2, [17, 17])(two, batch)
    assert output.terms == {term: value for term, value in full.terms.items() if term != "stage_2"}
    torch.testing.assert_close(output.loss, full.loss.detach() - 1.1 * full.terms["stage_2"])
    assert torch.equal(output.prediction.logits, full.prediction.stage_1_logits)
    assert output.prediction.stage_1_logits is None and torch.equal(output.prediction.mask, full.prediction.mask)


@pytest.mark.parametrize("name", GIVEN)
def test_evaluation_uses_the_masks_of_the_data_set(name: str, tmp_path: Path, split: Split) -> None:
    model = tiny_model(tiny_config(tmp_path, keys(name)))
    names = default_metrics(split.info, has_mask=gives_mask(model))
    assert "mask" in names
    results = [
        evaluate(model, eval_loader(split, batch_size=size, workers=0), build_metrics(names, split.info), CPU)
        for size in (3, 16)
    ]
    assert results[0] == pytest.approx(results[1], nan_ok=True)
    shown = model.eval()(*(lambda b: (b.image, b.mask))(a_batch(split, len(split)))).mask
    assert results[0]["keep_ratio"] == pytest.approx(shown.float().mean().item())
    assert 0.05 < results[0]["keep_ratio"] < 0.5 and results[0]["mask_iou"] > 0.3


@pytest.mark.parametrize("name", GIVEN)
def test_missing_masks_are_a_one_line_error(name: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, keys(name, **{"data.augmentation": "timm"}))
    splits, model = tiny_splits(config), tiny_model(config)
    check_masks(model, [splits["val"], splits["test"]])
    with pytest.raises(UserError, match=rf"model\.name={name} needs a mask.*synthetic/train/00000.*data\.mask_folder"):
        check_masks(model, splits.values())
    plain = tiny_model(tiny_config(tmp_path, keys("vit")))
    check_masks(plain, splits.values())
    assert given_mask(plain, a_batch(splits["val"])) == {}


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize("name", GIVEN)
def test_mixed_images_have_no_mask(name: str, kind: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", keys(name, **{f"loss.classification.{kind}": 0.4}))
    with pytest.raises(UserError, match=rf"loss\.classification: mixed images have no mask.*model\.name={name}"):
        train_run.train(config)
    assert not (tmp_path / "run").exists()


def test_prediction_of_stage_1(tmp_path: Path, split: Split) -> None:
    model = tiny_model(tiny_config(tmp_path, keys("pdiscoformer"))).eval()
    out = model(a_batch(split).image)
    found = prediction_of(out)
    assert torch.equal(found.logits, out.part_logits.mean(-1)) and not found.logits.requires_grad
    assert torch.equal(found.maps, out.selection.maps) and torch.equal(found.empty, out.selection.empty)
