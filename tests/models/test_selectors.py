"""Maps that stand in for stage 1, against slow forms and against the explanation methods of the same name."""

import hashlib
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from explain import explain
from models.backbone import patch_tokens
from models.baseline import PlainViT
from models.selectors import (
    attention_rollout,
    class_attention,
    first_component,
    grad_cam,
    random_scores,
    select_largest,
)  # fmt: skip
from models.transformer import describe
from tests.models.small import FLAT, backbone, config, images, shaken

SIZE, GRID = (32, 48), (4, 6)


def plain_vit(pooling: str = "cls", name: str = "vit_t_dino") -> PlainViT:
    model = PlainViT(config(name="vit", backbone=name, pooling=pooling), 5, SIZE)
    shaken(model, 2)
    return model.eval()


def slow_attention(vit: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """The mean over heads of every block's attention, [S, S] each, of one image's tokens x [S, D]; float64."""
    found = []
    for block in vit.blocks:
        attn, h = block.attn, block.norm1(x[None])[0]
        qkv = h @ attn.qkv.weight.T + attn.qkv.bias
        width, heads = x.shape[1], attn.num_heads
        e = width // heads
        mean = torch.zeros(len(x), len(x), dtype=torch.float64)
        for head in range(heads):
            q = attn.q_norm(qkv[:, head * e : (head + 1) * e]).double()
            k = attn.k_norm(qkv[:, width + head * e : width + (head + 1) * e]).double()
            for i in range(len(x)):
                scores = [math.exp(float(q[i] @ k[j]) / math.sqrt(e)) for j in range(len(x))]
                mean[i] += torch.tensor(scores, dtype=torch.float64) / sum(scores) / heads
        found.append(mean)
        x = block(x[None])[0]
    return found


@pytest.mark.parametrize("name", FLAT)
@torch.no_grad()
def test_attention_and_rollout_are_those_of_the_formula(name: str) -> None:
    vit, x = backbone(name, SIZE).eval(), images(2, SIZE)
    attention, rollout = class_attention(vit, x), attention_rollout(vit, x)
    for image in range(2):
        matrices = slow_attention(vit, describe(vit).embed(x).x[image])
        product = torch.eye(len(matrices[0]), dtype=torch.float64)
        for matrix in matrices:
            step = matrix + torch.eye(len(matrix), dtype=torch.float64)
            product = (step / step.sum(1, keepdim=True)) @ product
        prefix = vit.num_prefix_tokens
        torch.testing.assert_close(attention[image].double(), matrices[-1][0, prefix:], atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(rollout[image].double(), product[0, prefix:], atol=1e-6, rtol=1e-4)


def test_maps_are_those_of_the_explanation_methods() -> None:
    model, x = plain_vit(), images(3, SIZE)
    with torch.no_grad():
        found = {"raw_attention": class_attention, "rollout": attention_rollout}
        for method, scores in found.items():
            expected = explain(model, x, method).flatten(1)
            torch.testing.assert_close(scores(model.backbone, x), expected, atol=1e-7, rtol=1e-5)
            assert expected.std() > 1e-3


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize("pooling", ["cls", "avg", "gap_cls", "ep"])
def test_grad_cam_is_that_of_the_predicted_class(pooling: str, name: str) -> None:
    model, x = plain_vit(pooling, name), images(3, SIZE)
    found = grad_cam(model.requires_grad_(False), x)
    torch.testing.assert_close(found, explain(model, x, "gradcam", relu=False).flatten(1), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.relu(), explain(model, x, "gradcam").flatten(1), atol=1e-6, rtol=1e-4)
    assert (found < 0).any() and (found > 0).any() and not found.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_cam_works_in_any_grad_mode_and_leaves_no_gradient(mode: type) -> None:
    model = plain_vit()
    expected = grad_cam(model, images(2, SIZE))
    with mode():
        assert torch.equal(grad_cam(model, images(2, SIZE) + 0.0), expected)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.backbone.blocks[-1].norm1._forward_hooks


@pytest.mark.parametrize("size", [SIZE, (48, 64)], ids=["fewer patches than channels", "more"])
@torch.no_grad()
def test_first_component_is_that_of_the_singular_value_decomposition(size: tuple[int, int]) -> None:
    vit, x = backbone("vit_t_dino", size).eval(), images(4, size)
    found, (h, w) = first_component(vit, x), (size[0] // 8, size[1] // 8)
    for scores, tokens in zip(found, patch_tokens(vit, x).double().numpy(), strict=True):
        centred = tokens - tokens.mean(0)
        expected = centred @ np.linalg.svd(centred)[2][0]
        border = [i * w + j for i in range(h) for j in range(w) if i in (0, h - 1) or j in (0, w - 1)]
        expected *= -np.sign(expected[border].mean())
        mine = scores.double().numpy()
        mine, expected = mine / np.linalg.norm(mine), expected / np.linalg.norm(expected)
        np.testing.assert_allclose(mine, expected, atol=1e-3)
        assert mine[border].mean() < 0


def test_random_scores_depend_on_the_image_alone() -> None:
    x = images(4, SIZE)
    before = torch.random.get_rng_state()
    found = random_scores(x, 24)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(found, torch.cat([random_scores(image[None], 24) for image in x]))
    assert torch.equal(found.flip(0), random_scores(x.flip(0), 24))
    digest = hashlib.blake2b(x[1].numpy().tobytes(), digest_size=8).digest()  # no process, epoch or batch in it
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    assert torch.equal(found[1], torch.rand(24, generator=generator))
    assert len({tuple(row) for row in found.tolist()}) == 4
    x[0, 0, 0, 0] += 0.1
    changed = random_scores(x, 24)
    assert not torch.equal(changed[0], found[0]) and torch.equal(changed[1:], found[1:])


@pytest.mark.parametrize(("keep", "count"), [(0.25, 6), (0.27, 6), (0.3, 7), (0.001, 1), (1.0, 24)])
def test_the_largest_scores_are_kept(keep: float, count: int) -> None:
    scores = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    selection = select_largest(scores, GRID, keep, None)
    assert selection.pixels is None and selection.mask.shape == (3, *GRID)
    for row, mask in zip(scores.tolist(), selection.mask.flatten(1).tolist(), strict=True):
        assert {i for i, kept in enumerate(mask) if kept} == set(sorted(range(24), key=lambda i: -row[i])[:count])


def test_of_equal_scores_the_first_are_kept() -> None:
    mask = select_largest(torch.tensor([[0.0, 1.0] + [0.0] * 22]), GRID, 0.25, None).mask
    assert mask.flatten().nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_pixels_are_those_of_the_interpolated_map() -> None:
    scores = torch.randn(2, 24, generator=torch.Generator().manual_seed(1))
    selection = select_largest(scores, GRID, 0.25, SIZE)
    for row, pixels, mask in zip(scores, selection.pixels, selection.mask, strict=True):
        fine = np.empty(SIZE)
        for i in range(SIZE[0]):
            for j in range(SIZE[1]):
                v, u = max((i + 0.5) / 8 - 0.5, 0), max((j + 0.5) / 8 - 0.5, 0)
                r, c, a, b = int(v), int(u), v % 1, u % 1
                r1, c1, g = min(r + 1, 3), min(c + 1, 5), row.view(GRID)
                fine[i, j] = (1 - a) * ((1 - b) * g[r, c] + b * g[r, c1]) + a * ((1 - b) * g[r1, c] + b * g[r1, c1])
        assert pixels.sum() == 32 * 48 // 4
        smallest_kept, largest_hidden = fine[pixels.numpy()].min(), fine[~pixels.numpy()].max()
        assert smallest_kept > largest_hidden - 1e-5
        holds = [[bool(pixels[8 * i : 8 * i + 8, 8 * j : 8 * j + 8].any()) for j in range(6)] for i in range(4)]
        assert torch.equal(mask, torch.tensor(holds))
