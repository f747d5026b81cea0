"""CaiT: heads mixed after the softmax, and a class token with blocks of its own; against explicit attention."""

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from timm.models.cait import Cait, TalkingHeadAttn
from torch import Tensor

from common.errors import UserError
from explain import explain
from tests.explain.small import CASES
from tests.explain.test_any_attention import patch
from tests.explain.textbook import fuse, product
from tests.models.small import images, shaken

PATCHES, GRID = 24, (4, 6)
TARGETS = torch.tensor([4, 1])


def cait(**settings: Any) -> Any:
    shape: dict[str, Any] = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    model = shaken(Cait(**shape | {"num_classes": 5, "depth_token_only": 2} | settings)).double().eval()
    for part in model.modules():
        if isinstance(part, TalkingHeadAttn):  # `shaken` leaves little of the mixing of so few heads
            torch.nn.init.normal_(part.proj_w.weight, generator=torch.Generator().manual_seed(1))
    return model


class Layer(NamedTuple):
    """One block of one image. A: what the values are multiplied with, G = dy/dA; S: scores of class attention."""

    A: Tensor
    """[H, N, N] without the class token, or [H, 1, 1 + N]."""
    G: Tensor
    S: Tensor | None


class Steps:
    """CaiT computed step by step from its weights. `cut`: no gradient passes an attention."""

    def __init__(self, model: Any, image: Tensor, target: int, cut: bool = False) -> None:
        self.read: list[tuple[Tensor, Tensor | None]] = []
        with torch.enable_grad():
            x = model.patch_embed(image) + model.pos_embed
            for block in model.blocks:
                x = x + block.gamma_1 * self.talking(block.attn, block.norm1(x.detach() if cut else x))
                x = x + block.gamma_2 * block.mlp(block.norm2(x))
            y = model.cls_token
            for block in model.blocks_token_only:
                u = block.norm1(torch.cat([y, x], dim=1))
                y = y + block.gamma_1 * self.class_attention(block.attn, u.detach() if cut else u)
                y = y + block.gamma_2 * block.mlp(block.norm2(y))
            self.logits = model.head(model.norm(y)[:, 0])
            A = [weights for weights, _ in self.read]
            gradients = torch.autograd.grad(self.logits[0, target], A, allow_unused=True)
        G = [torch.zeros_like(a) if g is None else g for a, g in zip(A, gradients, strict=True)]
        S = [None if scores is None else scores[0].detach() for _, scores in self.read]
        self.layers = [Layer(a[0].detach(), g[0], s) for a, g, s in zip(A, G, S, strict=True)]

    def talking(self, attn: Any, x: Tensor) -> Tensor:
        q, k, v = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = torch.einsum("gh,bhij->bgij", attn.proj_l.weight, q @ k.mT * attn.scale)
        weights = (scores + attn.proj_l.bias[:, None, None]).softmax(-1)
        mixed = torch.einsum("gh,bhij->bgij", attn.proj_w.weight, weights) + attn.proj_w.bias[:, None, None]
        self.read.append((mixed.requires_grad_(), None))
        return attn.proj((mixed @ v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def class_attention(self, attn: Any, u: Tensor) -> Tensor:
        q, k, v = (self.heads(part, attn.num_heads) for part in (attn.q(u[:, :1]), attn.k(u), attn.v(u)))
        scores = q @ k.mT * attn.scale
        self.read.append((scores.softmax(-1).requires_grad_(), scores))
        return attn.proj((self.read[-1][0] @ v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    @staticmethod
    def heads(x: Tensor, count: int) -> Tensor:
        return x.unflatten(-1, (count, -1)).transpose(1, 2)


@pytest.fixture(scope="module")
def model() -> Any:
    return cait()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return images(2, (32, 48), seed=1).double()


def test_maps_are_those_of_explicit_attention(model: Any, x: Tensor) -> None:
    found = {name: explain(model, x, name, TARGETS) for name in ("raw_attention", "grad_rollout", "agcam")}
    found["max"] = explain(model, x, "grad_rollout", TARGETS, head_fusion="max")
    found["chefer"] = explain(model, x, "gradcam", TARGETS, compat="chefer", layer=-2, relu=False)
    for index, target in enumerate(TARGETS.tolist()):
        image = x[index : index + 1]
        steps, cut = Steps(model, image, target), Steps(model, image, target, cut=True)
        torch.testing.assert_close(steps.logits, model(image))
        assert float(steps.layers[0].A.min()) < 0
        *_, before_last, last = steps.layers
        wanted = {
            "raw_attention": last.A.mean(0)[0, 1:],
            "agcam": gated(cut.layers),
            "grad_rollout": rolled(steps.layers, "mean"),
            "max": rolled(steps.layers, "max"),
            "chefer": (before_last.A * before_last.G[:, :, 1:].mean(-1, keepdim=True)).mean(0)[0, 1:],
        }  # fmt: skip
        for name, values in wanted.items():
            assert float(values.abs().max()) > 0
            torch.testing.assert_close(
                found[name][index], values.reshape(GRID), msg=lambda text, n=name: f"{n}: {text}"
            )


def gated(layers: list[Layer]) -> Tensor:
    """Over the blocks in which the class token has a row."""
    rows = [(layer.G.clamp_min(0) * layer.S.sigmoid()).sum(0)[0] for layer in layers if layer.S is not None]
    return torch.stack(rows).sum(0)[1:]


def rolled(layers: list[Layer], how: str) -> Tensor:
    """The class token's row of the product over all 1 + N tokens."""
    matrices = []
    for layer in layers:
        fused, F = fuse(layer.A * layer.G, how).clamp_min(0), torch.zeros(1 + PATCHES, 1 + PATCHES).double()
        rows = slice(0, 1) if layer.S is not None else slice(1, None)
        F[rows, slice(0 if layer.S is not None else 1, None)] = fused
        matrices.append(F)
    return product(matrices, "row")[0, 1:]


def test_gradcam_reads_the_patches_that_the_last_class_attention_reads(model: Any, x: Tensor) -> None:
    kept: list[Tensor] = []

    def keep(_: Any, __: Any, out: Tensor) -> None:
        kept.append(out)

    with model.blocks_token_only[-1].norm1.register_forward_hook(keep):
        score = model(x).gather(1, TARGETS[:, None]).sum()
    a, (gradient,) = kept[0][:, 1:], torch.autograd.grad(score, kept)
    wanted = (a * gradient[:, 1:].mean(1, keepdim=True)).sum(-1).reshape(2, *GRID)
    torch.testing.assert_close(explain(model, x, "gradcam", TARGETS, relu=False), wanted.detach())
    of_block = explain(model, x, "gradcam", TARGETS, relu=False, layer=1)  # a block between patches
    assert of_block.shape == (2, *GRID) and of_block.abs().amax((1, 2)).min() > 0


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("rollout", {}, r"the attention of blocks\.0 mixes its heads after the softmax .* choose raw_attention, grad_"),
        ("attention_flow", {}, r"the attention of blocks\.0 mixes its heads after the softmax"),
        ("grad_rollout", {"compat": "vit-explain"}, r"the attention of blocks\.0 mixes its heads"),
        ("raw_attention", {"layer": 2}, "--layer: 2; the class token of a Cait attends from block 3 on"),
        ("gradcam", {"compat": "chefer", "layer": 0}, "--layer: 0; the class token of a Cait attends from block 3 on"),
        ("raw_attention", {"layer": 5}, "--layer: 5; the model has blocks 0 to 4"),
        ("lrp", {}, "a Cait: lrp has no rule for blocks that mix heads"),
    ],
)
def test_refusals(model: Any, x: Tensor, method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}") as error:
        explain(model, x, method, TARGETS, **options)
    assert "\n" not in str(error.value)


def test_a_mean_over_patches_does_not_read_the_class_token(x: Tensor) -> None:
    with pytest.raises(UserError, match="^global_pool=avg of a Cait: the mean over patches does not read"):
        explain(cait(global_pool="avg"), x, "raw_attention")
    assert explain(cait(global_pool="avg"), x, "gradient").shape == x[:, 0].shape


def test_without_classifier(model: Any, x: Tensor) -> None:
    headless = cait(num_classes=0)
    weights = {key: value for key, value in model.state_dict().items() if not key.startswith("head.")}
    headless.load_state_dict(weights)
    torch.testing.assert_close(explain(headless, x, "raw_attention"), explain(model, x, "raw_attention"))


def by_mixing(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
    mixing = torch.tensor([[1.0, -0.5], [0.3, 0.8]], dtype=q.dtype)
    return F.linear(weights.permute(0, 2, 3, 1), mixing).permute(0, 3, 1, 2) @ v


@pytest.mark.parametrize("method", ["rollout", "attention_flow", "raw_attention", "agcam", "lrp"])
def test_heads_mixed_after_the_softmax(method: str) -> None:
    """In a ViT of another kind."""
    case = CASES["class_token"]
    model, x = case.model().double(), case.images(2).double()
    patch(model.blocks[-1], by_mixing)
    with pytest.raises(UserError, match=r"^the attention of blocks\.2 mixes its heads after the softmax") as error:
        explain(model, x, method, TARGETS)
    assert "\n" not in str(error.value)
    assert explain(model, x, "grad_rollout", TARGETS).abs().amax((1, 2)).min() > 0
