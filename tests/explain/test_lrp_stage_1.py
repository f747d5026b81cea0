"""LRP of stage 1 of a two-stage model against relevance computed by hand, where float32 needs care."""

from typing import Any

import torch
from torch import Tensor

from explain import explain
from models.part_discovery import draw_noise
from models.two_stage import TwoStageModel
from tests.explain import textbook_lrp
from tests.explain.classifiers import images
from tests.models.small import config, shaken


def test_stage_1_tells_patches_apart_in_float32() -> None:
    """The relevance per patch is far below the 1 / N of the identity, which float32 cannot add to it."""
    torch.manual_seed(0)
    model = shaken(TwoStageModel(config(), 5, (96, 96))).eval()  # 144 patches
    x = images(1, (96, 96)).float()
    found = explain(model, x, "lrp", torch.tensor([2]), stage=1)
    assert len(found.unique()) == 144
    wanted = stage_1_by_hand(model.double(), x.double(), 2)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def stage_1_by_hand(model: Any, image: Tensor, target: int) -> Tensor:
    """transformer_attribution of the mean over parts of the class scores, with constant part maps: [1, h, w]."""
    stage_1 = model.stage_1
    vit, parts = stage_1.backbone, stage_1.parts
    before = vit._pos_embed(vit.patch_embed(image))[0]
    blocks: list[textbook_lrp.Kept] = []
    x = before
    for block in vit.blocks:
        blocks.append(textbook_lrp.forward_block(block, x))
        x = blocks[-1].x_mid + blocks[-1].branch_2
    tokens = vit.norm(x)[None, vit.num_prefix_tokens :]
    noise = draw_noise(parts.config, tokens.shape[:2], image.device, training=False)
    maps = parts(tokens, noise).maps.detach()
    pooled = torch.einsum("bnk,bnd->bdk", maps, tokens) / tokens.shape[1]
    features = parts.modulation(pooled)
    vectors = features[0, :, : parts.config.num_parts].T
    scores = parts.classifier(vectors)[:, target]
    G = torch.autograd.grad(scores.mean(), [kept.A for kept in blocks])
    with torch.no_grad():
        start = torch.zeros_like(parts.classifier(vectors))
        start[:, target] = textbook_lrp.q(torch.ones(()).double(), scores.sum()) * scores
        R_vectors = textbook_lrp.linear(start, vectors, parts.classifier.weight, "ours")
        R_pooled = torch.zeros_like(pooled)
        R_pooled[0, :, : parts.config.num_parts] = R_vectors.T
        s = textbook_lrp.q(R_pooled[0], pooled[0] * tokens.shape[1])
        R = torch.zeros_like(x)
        R[vit.num_prefix_tokens :] = tokens[0] * (maps[0] @ s.T)
        for block, kept in zip(reversed(vit.blocks), reversed(blocks), strict=True):
            R = textbook_lrp.backward_block(block, kept, R, "ours")
        product = eye = torch.eye(len(x)).double()
        for kept, gradient in zip(blocks, G, strict=True):
            product = (eye + (gradient * kept.C).clamp(min=0).mean(0)) @ product
        row = (product - eye)[vit.num_prefix_tokens :].mean(0)
    return row[vit.num_prefix_tokens :].view(1, *vit.patch_embed.grid_size)
