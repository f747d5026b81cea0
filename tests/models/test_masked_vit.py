"""Stage 2: three equivalent ways to remove hidden patches, the gradient of gates, empty masks."""

import copy

import pytest
import torch
from torch import Tensor, nn

from models import masked_attention
from models.masked_vit import MaskedViT
from models.selection import Selection
from models.transformer import describe
from tests.models.small import EVAS, FLAT, backbone, images, random_mask, shaken
from tests.models.textbook import stage_two

PATHS = ("dense", "gathered", "packed")
SIZES = {"vit_nano_patch8": (16, 40), "vit_t_dino": (24, 16)}
CLASSES = 5


def model_of(name: str = "vit_t_dino", size: tuple[int, int] = (32, 32), path: str = "auto", **options) -> MaskedViT:
    model = shaken(MaskedViT(backbone(name, size, **options), CLASSES, path), seed=1)
    assert isinstance(model, MaskedViT)
    return model.eval()


def on_path(model: MaskedViT, path: str) -> MaskedViT:
    model.path = path
    return model


def grid_mask(size: tuple[int, int], batch: int = 3, seed: int = 0) -> Tensor:
    height, width = size[0] // 8, size[1] // 8
    return random_mask(batch, height * width, seed=seed).unflatten(1, (height, width))


def logits_and_gradients(model: MaskedViT, x: Tensor, selection: Selection) -> dict[str, Tensor]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    logits = model(x, selection)
    nn.functional.cross_entropy(logits, torch.arange(len(x)) % CLASSES).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert None not in gradients.values()
    return {"logits": logits.detach(), "input": x.grad, **gradients}


def assert_same(mine: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    for name in mine:
        scale = max(1.0, mine[name].abs().max().item())
        assert (mine[name] - other[name]).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("name", FLAT + EVAS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("square", [True, False], ids=["square", "wide"])
def test_three_paths_give_the_same_logits_and_gradients(name: str, training: bool, square: bool) -> None:
    size = (32, 32) if square else SIZES.get(name, (16, 40))
    model, x, mask = model_of(name, size).train(training), images(4, size), grid_mask(size, 4)
    counts = mask.flatten(1).sum(1)
    assert len(set(counts.tolist())) > 1 and counts.max() < mask[0].numel()
    dense, *others = (logits_and_gradients(on_path(model, p), x, Selection(mask)) for p in PATHS)
    counted = Selection(torch.cat([mask[1:], mask])).counted().part(slice(3, None))  # those of `mask`
    others += [logits_and_gradients(on_path(model, p), x, counted) for p in PATHS[1:]]
    for other in others:
        assert_same(dense, other)
    assert dense["input"].abs().max() > 1e-3


@pytest.mark.parametrize("path", ["dense", "gathered"])
def test_blocks_other_than_timms_plain_block_run_unchanged(path: str) -> None:
    model, x, mask = model_of("vit_t_parallel"), images(), grid_mask((32, 32))
    assert not describe(model.backbone).is_plain
    expected = describe(model.backbone).embed(x).x
    keys = masked_attention.key_mask(mask.flatten(1), 1)[:, None, None, :]
    for block in model.backbone.blocks:
        expected = block(expected, attn_mask=keys)
    expected = model.head(model.fc_norm(model.backbone.norm(expected)[:, 0]))
    torch.testing.assert_close(on_path(model, path)(x, Selection(mask)), expected, atol=1e-5, rtol=0)
    assert on_path(model, "auto").chosen_path() == "gathered"


@pytest.mark.parametrize("name", FLAT[:2] + FLAT[-1:])
@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_equals_a_slow_loop(name: str, path: str) -> None:
    model, x, mask = (
        model_of(name, (16, 16), path),
        images(2, (16, 16)),
        torch.tensor([[1, 0, 0, 1], [0, 0, 1, 0]]).bool(),
    )
    bias = torch.zeros(2, 4).masked_fill(~mask, -torch.inf)
    logits = model(x, Selection(mask.unflatten(1, (2, 2))))
    torch.testing.assert_close(logits, stage_two(model, x, bias), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_soft_mask_is_a_logarithmic_bias() -> None:
    model, x = model_of("vit_t_dino", (16, 16)), images(2, (16, 16))
    gate = torch.tensor([[0.0, 1.0, 0.3, 0.02], [1.0, 1.0, 1e-4, 0.5]])
    selection = Selection((gate > 0.5).unflatten(1, (2, 2)), gate=gate.unflatten(1, (2, 2)))
    logits = model(x, selection, soft=True)
    torch.testing.assert_close(logits, stage_two(model, x, (gate + 1e-10).log()), atol=1e-5, rtol=1e-5)
    assert (logits - model(x, Selection(selection.mask))).abs().max() > 1e-2


@pytest.mark.parametrize("name", FLAT + EVAS)
@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_hidden_pixels_do_not_change_logits_bitwise(name: str, path: str) -> None:
    model, x, mask = model_of(name, path=path), images(), grid_mask((32, 32))
    before = model(x, Selection(mask))
    pixels = mask.repeat_interleave(8, 1).repeat_interleave(8, 2).unsqueeze(1)
    assert torch.equal(before, model(torch.where(pixels, x, 100 * images(seed=9)), Selection(mask)))
    assert (before - model(torch.where(pixels, images(seed=9), x), Selection(mask))).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("name", FLAT + EVAS)
def test_straight_through_forward_is_the_hard_forward(name: str) -> None:
    model, x, mask = model_of(name).train(), images(), grid_mask((32, 32))
    gated = Selection(mask, gate=mask.float())
    with torch.no_grad():
        hard = on_path(model, "dense")(x, Selection(mask))
        assert torch.equal(model(x, gated), hard)
    assert_same(logits_and_gradients(model, x, gated), logits_and_gradients(model, x, Selection(mask)))


def gate_losses(model: MaskedViT, x: Tensor, gates_FN: Tensor) -> Tensor:
    """[F]: the loss of one image [1, 3, H, W] under each of F gates."""
    gates = gates_FN.unflatten(1, (8, 8))
    logits = model(x.expand(len(gates), -1, -1, -1), Selection(gates > 0.5, gate=gates))
    return nn.functional.cross_entropy(logits, torch.ones(len(gates), dtype=torch.long), reduction="none")


@pytest.mark.parametrize("name", ["vit_nano_patch8", "vit_t_dino"])
def test_gate_gradient_predicts_switching_each_token(name: str) -> None:
    """Also for hidden tokens: the derivative at 0 predicts the effect of making the patch visible."""
    model, x = shaken(model_of(name, (64, 64)), gain=0.7), images(1, (64, 64))
    mask = random_mask(2, 64, seed=3)[1:].float().requires_grad_()
    (slope,) = torch.autograd.grad(gate_losses(model, x, mask).sum(), mask)
    with torch.no_grad():
        flipped = torch.where(torch.eye(64).bool(), 1 - mask, mask)
        true = gate_losses(model, x, flipped) - gate_losses(model, x, mask)
        predicted = (slope * (1 - 2 * mask))[0]
        for tokens in (mask[0] == 1, mask[0] == 0):
            assert torch.corrcoef(torch.stack([true[tokens], predicted[tokens]]))[0, 1] > 0.98
            assert (true - predicted)[tokens].norm() < 0.25 * true[tokens].norm(), "the size matches too"


@torch.no_grad()
def test_ratio_attention_at_head_widths_that_need_padding() -> None:
    for width in (7, 8, 15, 16):
        q, k, v = torch.randn(3, 2, 4, 6, width, generator=torch.Generator().manual_seed(width))
        mask = random_mask(2, 6)
        out = masked_attention.ratio_attention(q, k, v, mask.float(), 0.3)
        bias = torch.zeros(2, 1, 1, 6).masked_fill(~mask[:, None, None], -torch.inf)
        torch.testing.assert_close(out, (0.3 * q @ k.transpose(2, 3) + bias).softmax(-1) @ v, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", [*PATHS, "gate"])
def test_empty_mask_leaves_only_prefix_tokens(path: str) -> None:
    """Finite and the same for all images, also next to an image with visible patches."""
    model, x, mask = model_of(path="auto" if path == "gate" else path), images(), torch.zeros(3, 4, 4).bool()
    gate = mask.float() if path == "gate" else None
    outputs = logits_and_gradients(model, x, Selection(mask, gate=gate))
    assert all(value.isfinite().all() for value in outputs.values())
    assert outputs["input"].abs().max() <= (1e-7 if path == "gate" else 0), "with a gate, rounding differences"
    tokens = describe(model.backbone).embed(x).x[:, : model.backbone.num_prefix_tokens]
    for block in model.backbone.blocks:
        tokens = block(tokens)
    expected = model.head(model.fc_norm(model.backbone.norm(tokens)[:, 0]))
    torch.testing.assert_close(outputs["logits"], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs["logits"], expected[:1].expand(3, -1), atol=1e-5, rtol=0)
    mask[1, 2, 3] = True
    mixed = model(x, Selection(mask, gate=None if gate is None else mask.float()))
    torch.testing.assert_close(mixed[::2], expected[::2], atol=1e-5, rtol=0)
    assert (mixed[1] - expected[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_all_visible_equals_the_plain_vit(name: str, path: str) -> None:
    model, x = model_of(name, path=path), images()
    plain = model.head(model.fc_norm(model.backbone.forward_features(x)[:, 0]))
    torch.testing.assert_close(model(x, Selection(torch.ones(3, 4, 4).bool())), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("path", [*PATHS, "gate", "soft"])
@torch.no_grad()
def test_autocast_stays_near_full_precision(path: str) -> None:
    model, x, mask = model_of("vit_t_qknorm", path=path if path in PATHS else "auto"), images(), grid_mask((32, 32))
    selection = Selection(mask, gate=None if path in PATHS else mask.float())
    full = model(x, selection, soft=path == "soft")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(x, selection, soft=path == "soft")
    assert (half.float() - full).abs().max() < 0.05 * full.abs().max()


@pytest.mark.parametrize("soft", [False, True])
def test_a_mask_on_another_grid_is_refused(soft: bool) -> None:
    model, x, mask = model_of(size=(16, 32)), images(3, (16, 32)), grid_mask((32, 16))
    with pytest.raises(ValueError, match=r"shape \(3, 4, 2\); the patch grid is \(2, 4\)"):
        model(x, Selection(mask, gate=mask.float() if soft else None), soft)


def test_stochastic_depth_gathers_while_training() -> None:
    model = model_of(drop_path=0.5)
    assert model.chosen_path() == "packed"
    model.train()
    assert model.chosen_path() == "gathered"
    x, selection = images(), Selection(grid_mask((32, 32)))
    torch.manual_seed(0)
    assert not torch.equal(model(x, selection), model(x, selection))
    assert model_of().train().chosen_path() == "packed"
    dropout = model_of().train()
    dropout.backbone.blocks[0].attn.proj_drop.p = 0.1
    assert dropout.chosen_path() == "gathered"
    assert on_path(model, "dense").chosen_path() == "dense"


def test_head_starts_small_and_without_bias() -> None:
    model = MaskedViT(backbone("vit_t_dino"), 1000)
    assert model.head.bias is None and model.fc_norm.eps == 1e-5 and model.backbone.norm.eps == 1e-6
    assert abs(model.head.weight.std() - 0.02) < 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="variable-length attention needs a GPU")
@pytest.mark.parametrize("name", FLAT)
def test_packed_on_a_gpu_in_bf16_equals_dense(name: str) -> None:
    model, x, mask = model_of(name).cuda(), images().cuda(), grid_mask((32, 32)).cuda()
    outputs = []
    for path in PATHS:
        twin, pixels = on_path(copy.deepcopy(model), path), x.clone().requires_grad_()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = twin(pixels, Selection(mask)).float()
        logits.square().sum().backward()
        assert pixels.grad is not None
        outputs.append((logits.detach(), pixels.grad))
    for logits, gradient in outputs[1:]:
        assert (logits - outputs[0][0]).abs().max() <= 2e-2 * outputs[0][0].abs().max()
        assert (gradient - outputs[0][1]).abs().max() <= 5e-2 * outputs[0][1].abs().max()
