"""The plain ViT: each pooling against its formula, the classifier, and its weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.baseline import AimPooling, EfficientProbing, PlainViT
from tests.models.small import backbone, config, images, shaken

SIZE = (16, 40)


def model_of(pooling: str, name: str = "vit_t_dino") -> PlainViT:
    model = PlainViT(config(name="vit", backbone=name, pooling=pooling), 5, SIZE)
    shaken(model)
    return model.eval()


def slow_ep(x: Tensor, pool: EfficientProbing) -> Tensor:
    """x [N, D]: row m of the attention weights chunk m of the values; the keys are the tokens."""
    width, queries = x.shape[1], len(pool.queries)
    values, chunks = x @ pool.values.weight.T, []
    for m in range(queries):
        weights = (pool.queries[m] @ x.T / width**0.5).softmax(0)
        chunks.append(weights @ values[:, m * width // queries : (m + 1) * width // queries])
    return torch.cat(chunks)


def slow_aim(x: Tensor, pool: AimPooling) -> Tensor:
    """x [N, D]: frozen batch statistics, then each head's softmax(q k / sqrt(width)) v."""
    x = (x - pool.norm.running_mean) / (pool.norm.running_var + 1e-6).sqrt()
    keys, values, query = x @ pool.keys.weight.T, x @ pool.values.weight.T, pool.query[0, 0]
    step, heads = x.shape[1] // pool.heads, []
    for h in range(pool.heads):
        part = slice(h * step, (h + 1) * step)
        heads.append((keys[:, part] @ query[part] / step**0.5).softmax(0) @ values[:, part])
    return torch.cat(heads)


@pytest.mark.parametrize("pooling", ["cls", "avg", "gap_cls", "ep", "aim"])
@pytest.mark.parametrize("name", ["vit_t_dino", "vit_nano_patch8"])
@torch.no_grad()
def test_poolings_follow_their_formulas(pooling: str, name: str) -> None:
    model, x = model_of(pooling, name), images(3, SIZE)
    if isinstance(model.pool, AimPooling):
        model.pool.norm.running_mean.normal_(generator=torch.Generator().manual_seed(0))
        model.pool.norm.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    tokens = model.backbone.forward_features(x)
    patches = tokens[:, model.backbone.num_prefix_tokens :]
    pooled = {
        "cls": lambda: tokens[:, 0],
        "avg": lambda: sum(patches[:, u] for u in range(10)) / 10,
        "gap_cls": lambda: torch.cat([tokens[:, 0], sum(patches[:, u] for u in range(10)) / 10], dim=1),
        "ep": lambda: torch.stack([slow_ep(image, model.pool) for image in patches]),
        "aim": lambda: torch.stack([slow_aim(image, model.pool) for image in patches]),
    }[pooling]()
    expected = pooled @ model.head.weight.T + (0 if model.head.bias is None else model.head.bias)
    torch.testing.assert_close(model(x).logits, expected, atol=1e-5, rtol=1e-5)
    assert (pooled[0] - pooled[1]).abs().max() > 0.05


def test_parameters_of_the_poolings() -> None:
    ep, aim = EfficientProbing(768), AimPooling(768)
    assert ep.queries.shape == (32, 768) and abs(ep.queries.std() - 0.02) < 1e-3 and ep.values.bias is None
    assert aim.heads == 12 and aim.norm.eps == 1e-6 and not aim.norm.affine
    assert aim.keys.bias is None and aim.values.bias is None and AimPooling(32).heads == 8
    assert [model_of(pooling).head.bias is None for pooling in ("cls", "avg", "ep", "aim")] == [False] * 3 + [True]
    head = PlainViT(config(name="vit"), 2000, SIZE).head
    assert abs(head.weight.std() - 0.02) < 1e-3 and not head.bias.any()


def test_aim_normalises_by_the_batch_while_training() -> None:
    pool = AimPooling(16).train()
    x = 3 + 2 * torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0))
    pool(x)
    torch.testing.assert_close(pool.norm.running_mean, 0.1 * x.mean((0, 1)))


@pytest.mark.parametrize("pooling", ["cls", "avg", "gap_cls", "ep", "aim"])
def test_every_weight_gets_a_gradient_under_autocast(pooling: str) -> None:
    model, x = model_of(pooling).train(), images(3, SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x).logits
    logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    full = model.eval()(x).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (model(x).logits.float() - full).abs().max() < 0.1 * full.abs().max()


def test_pretrained_weights_fill_the_backbone(tmp_path: Path) -> None:
    source = backbone("vit_t_dino", SIZE, seed=4)
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    model = PlainViT(config(name="vit", weights=str(tmp_path / "vit.safetensors")), 5, SIZE)
    model.load_pretrained_backbones()
    state = source.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.backbone.state_dict().items())
