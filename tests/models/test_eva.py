"""timm's `Eva` as a backbone: against timm's own forward, in every model, with weights of every naming."""

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from engine.run.config import OptimConfig
from engine.training.optim import classifier_rules, parameter_groups, two_stage_rules
from models import build_model
from models.backbone import create_backbone, patch_tokens
from models.interface import ImageClassifier
from models.published import to_published
from models.selection import Selection
from models.selectors import attention_rollout, class_attention
from models.token_cache import TokenCache
from models.two_stage import TwoStageModel
from tests.models.small import EVAS, backbone, config, images, shaken
from tests.models.test_masked_vit import PATHS, model_of

SIZE, GRID, CLASSES = (32, 48), (4, 6), 5
NO_CLASS_TOKEN = ("eva_t_gap", "vit_t_gap")


def classifier(vit: str, **changes: Any) -> ImageClassifier:
    """A model of random weights, with which stage 1 keeps some patches and hides others."""
    model = build_model(config(backbone=vit, **changes), CLASSES, SIZE)
    shaken(model, 6, gain=1.0)
    return model.eval()


def mask_of(count: int, seed: int = 0) -> Tensor:
    """[2, 4, 6] bool with `count` visible patches in each image."""
    noise = torch.rand(2, 24, generator=torch.Generator().manual_seed(seed))
    return (noise.argsort(1).argsort(1) < count).unflatten(1, GRID)


def read(vit: nn.Module, tokens: Tensor) -> Tensor:
    """Class token or mean of the patches, of tokens after the final norm."""
    return tokens[:, 0] if vit.cls_token is not None else tokens[:, vit.num_prefix_tokens :].mean(1)


class Keep(nn.Module):
    """In the place of timm's patch dropout: it keeps the patches of a mask, and timm lets the rotations follow."""

    def __init__(self, mask: Tensor, prefix: int) -> None:
        super().__init__()
        self.kept, self.prefix = mask.flatten(1).nonzero()[:, 1].unflatten(0, (len(mask), -1)), prefix

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        patches = x[:, self.prefix :].gather(1, self.kept[..., None].expand(-1, -1, x.shape[-1]))
        return torch.cat([x[:, : self.prefix], patches], 1), self.kept


@pytest.mark.parametrize("count", [24, 7], ids=["all visible", "some hidden"])
@pytest.mark.parametrize("name", EVAS)
@torch.no_grad()
def test_every_path_is_timms_forward_on_the_visible_patches(name: str, count: int) -> None:
    model, x, mask = model_of(name, SIZE).double(), images(2, SIZE).double(), mask_of(count)
    vit, gate = model.backbone, mask.double()
    logits = {}
    for path in PATHS:
        model.path = path
        logits[path] = model(x, Selection(mask))
    logits["straight_through"] = model(x, Selection(mask, gate=gate))
    if count < 24:
        vit.patch_drop = Keep(mask, vit.num_prefix_tokens)
    expected = model.head(model.fc_norm(read(vit, vit.forward_features(x))))
    for path, found in logits.items():
        # ratio_attention divides in float32, as everywhere.
        assert (found - expected).abs().max() < (1e-4 if path == "straight_through" else 1e-9), path
    assert expected.std() > 0.1


@pytest.mark.parametrize("name", ["eva_t_dinov3", "eva_t_mixed", "eva_t_gap"])
@torch.no_grad()
def test_positions_matter(name: str) -> None:
    """The same patches at other places are another image: their rotations were not lost."""
    model, x = model_of(name, SIZE), images(2, SIZE)
    patches = torch.zeros(2, *GRID, dtype=torch.bool)
    here, there = patches.clone(), patches.clone()
    here[:, 0, 0:2], there[:, 0, 0], there[:, 3, 5] = True, True, True
    moved = x.clone()
    moved[..., 24:32, 40:48] = x[..., 0:8, 8:16]
    for path in PATHS:
        model.path = path
        assert (model(x, Selection(here)) - model(moved, Selection(there))).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["eva_t_dinov3", "eva_t_mixed", "eva_t_gap", "vit_t_gap"])
@torch.no_grad()
def test_soft_mask_is_a_bias_of_timms_attention(name: str) -> None:
    model, x = model_of(name, SIZE), images(2, SIZE)
    gate = torch.rand(2, 24, generator=torch.Generator().manual_seed(3))
    vit = model.backbone
    weight = F.pad(gate, (vit.num_prefix_tokens, 0), value=1.0) + 1e-10
    tokens = vit.forward_features(x, attn_mask=weight.log()[:, None, None])
    expected = tokens[:, 0]
    if vit.cls_token is None:
        patches, weight = tokens[:, vit.num_prefix_tokens :], weight[:, vit.num_prefix_tokens :, None]
        expected = (patches * weight).sum(1) / weight.sum(1)
    gate = gate.unflatten(1, GRID)
    logits = model(x, Selection(gate > 0.5, gate=gate), soft=True)
    torch.testing.assert_close(logits, model.head(model.fc_norm(expected)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("path", [*PATHS, "gate"])
@pytest.mark.parametrize("name", NO_CLASS_TOKEN)
@torch.no_grad()
def test_without_class_token_an_empty_mask_is_no_image_at_all(name: str, path: str) -> None:
    """Also without any prefix token, where attention would have no key."""
    model, x, mask = model_of(name, SIZE), images(2, SIZE), torch.stack([mask_of(5)[0], torch.zeros(GRID).bool()])
    model.path = "auto" if path == "gate" else path
    gate = mask.float() if path == "gate" else None
    logits = model(x, Selection(mask, gate=gate))
    torch.testing.assert_close(logits[1], model.head(model.fc_norm(torch.zeros(1, 32)))[0])
    assert (logits[0] - logits[1]).abs().max() > 1e-2
    if path != "gate":
        assert torch.equal(
            logits,
            model(torch.where(mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None], x, 9.0), Selection(mask)),
        )


MODELS: dict[str, dict[str, Any]] = {
    "two_stage": {},
    "pixels": {"mask_resolution": "pixel"},
    "straight_through": {"mask_gradient": "straight_through"},
    "soft": {"mask_kind": "soft"},
    "other stage 1": {"stage_1_backbone": "vit_t_plain16"},
    "dropping": {"drop_path": 0.4, "stage_1_drop_path": 0.4},
    "pdiscoformer": {"name": "pdiscoformer"},
    "vit cls": {"name": "vit"},
    "vit gap_cls": {"name": "vit", "pooling": "gap_cls"},
    "vit ep": {"name": "vit", "pooling": "ep"},
    "decoupled": {"name": "decoupled"},
    "late_masking": {"name": "late_masking"},
    **{selector: {"selector": selector} for selector in ("attention", "rollout", "pca", "random", "given")},
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", ["eva_t_dinov3", "eva_t_mixed"])
def test_every_model_trains_and_is_read_back(name: str, kind: str, tmp_path: Any) -> None:
    model, x = classifier(name, **MODELS[kind]), images(2, SIZE)
    options = {"mask": mask_of(9).repeat_interleave(8, 1).repeat_interleave(8, 2)} if model.needs_mask else {}
    out = model.train()(x, **options)
    loss = out.logits.square().sum()
    loss = loss if out.stage_1_logits is None else loss + out.stage_1_logits.square().sum()
    loss.backward()
    idle = [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ]
    assert idle == []
    model.eval().save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(x, **options).logits, model(x, **options).logits)


@pytest.mark.parametrize("name", ["eva_t_dinov3", "eva_t_eva02", "eva_t_gap"])
@pytest.mark.parametrize("resolution", ["patch", "pixel"])
@torch.no_grad()
def test_hidden_pixels_never_move_the_logits_of_the_two_stage_model(name: str, resolution: str) -> None:
    model, x = classifier(name, mask_resolution=resolution), images(3, SIZE)
    selection = model.select(x).selection
    visible = selection.visible
    if resolution == "patch":
        visible = visible.repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert 0 < visible.float().mean() < 1
    other = torch.where(visible[:, None], x, images(3, SIZE, seed=9))
    assert torch.equal(model.predict(x, selection), model.predict(other, selection))


@pytest.mark.parametrize("name", ["eva_t_dinov3", "eva_t_eva02", "eva_t_pe", "eva_t_mixed", "eva_t_sapiens"])
@torch.no_grad()
def test_attention_maps_are_those_of_timms_own_forward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vit, x = backbone(name, SIZE).eval(), images(2, SIZE)
    matrices, fused = [], F.scaled_dot_product_attention

    def noted(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        matrices.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean(1))
        return fused(q, k, v, **options)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", noted)
        vit.forward_features(x)
    product = torch.eye(matrices[0].shape[-1])
    for matrix in matrices:
        product = (matrix + torch.eye(matrix.shape[-1])) / 2 @ product
    prefix = vit.num_prefix_tokens
    torch.testing.assert_close(class_attention(vit, x), matrices[-1][:, 0, prefix:], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(attention_rollout(vit, x), product[:, 0, prefix:], atol=1e-6, rtol=1e-4)


def test_stored_tokens_depend_on_the_rotary_positions(tmp_path: Any) -> None:
    """Which no weight shows, and no more the number of heads."""
    x, cache = images(1, SIZE), TokenCache(tmp_path, 1e9)
    state = backbone("eva_t_dinov3", SIZE).state_dict()
    for changes in ({}, {"rope_temperature": 7.0}, {"num_heads": 1}):
        vit = timm.create_model("eva_t_dinov3", num_classes=0, img_size=SIZE, **changes)
        vit.load_state_dict(state)
        torch.testing.assert_close(cache.tokens(vit, x), patch_tokens(vit, x).detach())
    assert len(list(tmp_path.rglob("*.npy"))) == 3
    vit = create_backbone("eva_t_rescaled", SIZE)
    assert cache.tokens(vit.eval(), x).shape == (1, 24, 32)
    with pytest.raises(UserError, match=r"train\.token_cache: this stage 1 draws its rotary positions anew"):
        cache.tokens(vit.train(), x)


def test_learned_frequencies_are_positions_to_the_optimiser() -> None:
    base = OptimConfig(freeze_stage_1=False)
    model = classifier("eva_t_mixed")
    names = {id(p): n for n, p in model.named_parameters()}
    for frozen in (False, True):
        rules = two_stage_rules(replace(base, freeze_stage_1_tokens=frozen))
        found = {
            names[id(p)]: g["weight_decay"] for g in parameter_groups(model, rules, base, 0.1) for p in g["params"]
        }
        assert found["stage_2.backbone.rope.freqs"] == 0
        assert ("stage_1.backbone.rope.freqs" in found) != frozen
        assert (
            found["stage_1.backbone.blocks.0.gamma_1"] == 0
            and found["stage_1.backbone.blocks.0.attn.qkv.weight"] == 0.1
        )
    plain = classifier("eva_t_mixed", name="vit")
    groups = parameter_groups(plain, classifier_rules(base), base, 0.1)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decays[id(plain.backbone.rope.freqs)] == 0 and decays[id(plain.backbone.cls_token)] == 0.1


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("eva_t_gap", {"name": "vit"}, "model.pooling=cls reads the class token, .* backbone 'eva_t_gap' does not"),
        ("eva_t_gap", {"selector": "rollout"}, "model.selector=rollout reads the class token, which"),
        ("eva_t_post", {"selector": "rollout"}, "plain blocks; its backbone has EvaBlockPostNorm"),
        ("eva_t_post", {"stage_2_path": "packed"}, "packed needs a ViT .* this backbone has EvaBlockPostNorm"),
        ("eva_t_post", {"mask_gradient": "straight_through"}, "this backbone has EvaBlockPostNorm"),
        ("eva_t_pe", {"name": "cnn"}, "'eva_t_pe' is a Eva; for a ViT use model.name=vit"),
        ("vit_t_conv", {}, "a Conv1d in the blocks of 'vit_t_conv' mixes patches; stage 2 would see hidden ones"),
    ],
)  # fmt: skip
def test_what_a_backbone_cannot_do_is_one_line(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        classifier(name, **changes)
    assert "\n" not in str(caught.value)


def test_export_to_published_names_needs_a_plain_vit() -> None:
    model = classifier("eva_t_eva02")
    assert isinstance(model, TwoStageModel)
    with pytest.raises(UserError, match="--export: the published models are plain ViTs; this backbone is an Eva"):
        to_published(model, "ifam")
