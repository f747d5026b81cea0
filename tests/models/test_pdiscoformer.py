"""PDiscoFormer: stage 1 alone against its formulas, with both kinds of modulation."""

from pathlib import Path

import pytest
import torch

from models import build_model
from models.backbone import patch_tokens
from models.part_discovery import PartNoise
from models.pdiscoformer import PDiscoFormer
from tests.models.small import config, images, shaken
from tests.models.textbook import part_logits, softmax, stage_one

SIZE, CLASSES = (16, 24), 5
KINDS = ("layer_norm", "original")


def model_of(kind: str = "layer_norm", seed: int = 0) -> PDiscoFormer:
    model = build_model(config(name="pdiscoformer", parts={"modulation": kind}), CLASSES, SIZE)
    assert isinstance(model, PDiscoFormer)
    shaken(model, seed, gain=1.0)
    return model.eval()


@torch.no_grad()
def test_class_logits_are_the_mean_over_parts() -> None:
    model, x = model_of(), images(2, SIZE)
    tokens, out = patch_tokens(model.stage_1.backbone, x), model(x)
    for b in range(2):
        slow = stage_one(tokens, model.stage_1.parts, PartNoise(), b)
        expected = torch.tensor(slow.scores).mean(1)
        torch.testing.assert_close(out.class_logits[b], expected, atol=1e-4, rtol=1e-4)
        assert out.selection.mask[b].flatten().tolist() == slow.mask


@torch.no_grad()
def test_modulation_original_multiplies_every_number_by_its_factor() -> None:
    model, x = model_of("original"), images(2, SIZE)
    head = model.stage_1.parts
    assert head.modulation.weight.shape == (1, 32, 4) and [n for n, _ in head.modulation.named_parameters()] == [
        "weight"
    ]
    tokens, out = patch_tokens(model.stage_1.backbone, x), model(x)
    for b in range(2):
        rows = tokens[b].tolist()
        maps = [softmax(row) for row in part_logits(rows, head)]
        for d, k in ((0, 0), (5, 3), (31, 1)):
            pooled = sum(maps[u][k] * rows[u][d] for u in range(6)) / 6
            expected = pooled * head.modulation.weight[0, d, k].item()
            assert out.part_features[b, d, k].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_modulation_original_starts_as_the_identity() -> None:
    fresh = build_model(config(name="pdiscoformer", parts={"modulation": "original"}), CLASSES, SIZE)
    assert torch.equal(fresh.stage_1.parts.modulation.weight, torch.ones(1, 32, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_gets_a_gradient(kind: str) -> None:
    model = model_of(kind).train()
    out = model(images(3, SIZE))
    (out.class_logits.square().sum() + out.part_features.square().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_read_back(kind: str, tmp_path: Path) -> None:
    model, x = model_of(kind), images(2, SIZE)
    model.save_pretrained(tmp_path)
    again = PDiscoFormer.from_pretrained(tmp_path)
    assert again.model_config == model.model_config
    assert torch.equal(again(x).class_logits, model(x).class_logits)


def test_it_is_stage_1_of_the_two_stage_model() -> None:
    """Same names and shapes, so the weights of stage 1 can be exchanged."""
    two = build_model(config(), CLASSES, SIZE)
    stage_1 = {name: t for name, t in two.state_dict().items() if name.startswith("stage_1.")}
    model = model_of(seed=3)
    model.load_state_dict(stage_1)
    assert torch.equal(model(images(2, SIZE)).class_logits, two.eval()(images(2, SIZE)).stage_1.class_logits)
