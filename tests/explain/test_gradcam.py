"""Grad-CAM against its textbook form, one image at a time with all activations kept."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from common.errors import UserError
from explain import explain
from tests.explain.classifiers import classifier, hooks, images, two_stage
from tests.explain.small import vit


def textbook(vit: VisionTransformer, layer: nn.Module, at_input: bool, image: Tensor, target: int) -> Tensor:
    """[N], before the relu."""
    kept: list[Tensor] = []

    def keep(tokens: Tensor) -> None:
        tokens.retain_grad()
        kept.append(tokens)

    if at_input:
        handle: Any = layer.register_forward_pre_hook(lambda _, args: keep(args[0]))
    else:
        handle = layer.register_forward_hook(lambda _, __, out: keep(out))
    vit(image[None])[0, target].backward()
    handle.remove()
    vit.zero_grad()
    tokens, gradient = kept[0][0, vit.num_prefix_tokens :], kept[0].grad[0, vit.num_prefix_tokens :]  # type: ignore[index]
    result = torch.zeros(len(tokens), dtype=torch.float64)
    for channel in range(tokens.shape[1]):
        result += gradient[:, channel].mean() * tokens[:, channel].detach()
    return result


CASES: dict[str, tuple[dict[str, Any], str, bool]] = {
    "plain": ({}, "norm1", False),
    "registers": ({"reg_tokens": 4, "init_values": 0.5}, "norm1", False),
    "average": ({"class_token": False, "global_pool": "avg"}, "norm1", False),
    "norm first": ({"block_fn": ParallelScalingBlock}, "in_norm", False),
    "norm behind": ({"block_fn": ResPostBlock}, "", True),
    "norm per branch": ({"block_fn": ParallelThingsBlock}, "", True),
}


@pytest.mark.parametrize("layer", [-1, 0])
@pytest.mark.parametrize(("settings", "name", "at_input"), CASES.values(), ids=CASES.keys())
def test_parity(settings: dict[str, Any], name: str, at_input: bool, layer: int) -> None:
    vit, x = classifier(img_size=(32, 48), **settings), images(size=(32, 48))
    block = vit.blocks[layer]
    targets = [3, 0, 4]
    expected = torch.stack(
        [textbook(vit, getattr(block, name) if name else block, at_input, x[i], targets[i]) for i in range(3)]
    ).unflatten(1, (4, 6))
    signed = explain(vit, x, "gradcam", torch.tensor(targets), layer=layer, relu=False)
    torch.testing.assert_close(signed, expected)
    assert (signed < 0).any()
    torch.testing.assert_close(explain(vit, x, "gradcam", torch.tensor(targets), layer=layer), expected.clamp(min=0))


def test_predicted_class_is_the_default() -> None:
    vit, x = classifier(), images()
    predicted = vit(x).argmax(1)
    assert torch.equal(explain(vit, x, "gradcam"), explain(vit, x, "gradcam", predicted))
    assert not torch.equal(explain(vit, x, "gradcam"), explain(vit, x, "gradcam", (predicted + 1) % 5))


def textbook_chefer(vit: VisionTransformer, image: Tensor, target: int) -> Tensor:
    """[N]: relu of the head mean of a times the patch mean of its gradient, attention written out."""
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(image[None])))
    for block in vit.blocks[:-1]:
        x = block(x)
    block = vit.blocks[-1]
    h, attn = block.norm1(x), block.attn
    q, k, v = attn.qkv(h).reshape(1, h.shape[1], 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    weights.retain_grad()
    x = x + block.ls1(attn.proj((weights @ v).transpose(1, 2).flatten(2)))
    x = x + block.ls2(block.mlp(block.norm2(x)))
    vit.forward_head(vit.norm(x))[0, target].backward()
    vit.zero_grad()
    assert weights.grad is not None
    row, gradient = weights[0, :, 0, vit.num_prefix_tokens :].detach(), weights.grad[0, :, 0, vit.num_prefix_tokens :]
    total = torch.zeros(row.shape[1], dtype=torch.float64)
    for head in range(len(row)):
        total += row[head] * gradient[head].mean() / len(row)
    return total


def test_chefer_parity() -> None:
    vit, x = classifier(reg_tokens=2), images()
    expected = torch.stack([textbook_chefer(vit, image, 2) for image in x]).unflatten(1, (4, 4))
    targets = torch.tensor([2, 2, 2])
    signed = explain(vit, x, "gradcam", targets, compat="chefer", relu=False)
    torch.testing.assert_close(signed, expected)
    torch.testing.assert_close(explain(vit, x, "gradcam", targets, compat="chefer"), expected.clamp(min=0))


@pytest.mark.parametrize("compat", ["", "chefer"])
@pytest.mark.parametrize("stage", [1, 2])
def test_two_stage(stage: Any, compat: str) -> None:
    model, x = two_stage(), images().float()
    mask = model.select(x).selection.mask
    maps = explain(model, x, "gradcam", stage=stage, compat=compat, relu=False)
    assert 0 < mask.double().mean() < 1
    assert (maps[~mask] == 0).all() == (stage == 2)
    assert (maps[mask] != 0).any()


@pytest.mark.parametrize("compat", ["", "chefer"])
def test_batch_is_single_and_nothing_is_left(compat: str) -> None:
    vit, x = classifier().requires_grad_(False), images()
    before = hooks(vit)
    with torch.no_grad():
        batch = explain(vit, x, "gradcam", compat=compat)
        single = torch.cat([explain(vit, image[None], "gradcam", compat=compat) for image in x])
    torch.testing.assert_close(batch, single)
    with pytest.raises(UserError, match="^images:"):
        explain(vit, x[:, :2], "gradcam", compat=compat)
    with pytest.raises(UserError, match="^targets: 99"):
        explain(vit, x, "gradcam", torch.tensor([0, 99, 0]), compat=compat)
    assert hooks(vit) == before
    assert all(p.grad is None for p in vit.parameters())


@pytest.mark.parametrize("layer", [3, -4])
def test_no_such_block(layer: int) -> None:
    with pytest.raises(UserError, match=f"--layer: {layer}; the model has blocks 0 to 2"):
        explain(classifier(), images(), "gradcam", layer=layer)


@pytest.mark.parametrize(
    "module", ["blocks.1.attn.k_norm", "head", "blocks.1.attn.attn_drop", "norm_pre", "norm", "pos_drop.inner"]
)
def test_a_module_whose_output_is_no_map_is_refused(module: str) -> None:
    model = vit(qk_norm=True).eval()
    if module == "norm_pre":  # no grid: one token is missing
        model.norm_pre.register_forward_hook(lambda _, __, tokens: tokens[:, 1:-1])
    if module == "pos_drop.inner":  # another batch
        model.pos_drop = Twice()
    with pytest.raises(UserError, match=r"^--module: ") as error:
        explain(model, images().float(), "gradcam", module=module)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"^--module: compat=chefer reads"):
        explain(model, images().float(), "gradcam", module="blocks.1", compat="chefer")


class Twice(nn.Module):
    """Its inner module sees the batch twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = self.inner(torch.cat([x, x]))
        return doubled[: len(x)]


def test_patch_tokens_and_maps_before_the_class_token() -> None:
    model, x = vit().double().eval(), images()
    tokens = explain(model, x, "gradcam", module="patch_embed", relu=False)
    torch.testing.assert_close(explain(model, x, "gradcam", module="patch_embed.proj", relu=False), tokens)
    assert tokens.shape == (3, 4, 4)
