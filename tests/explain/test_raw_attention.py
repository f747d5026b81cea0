"""Which tokens a classifier reads, and the attention of a pooling head."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from common.errors import UserError
from explain import explain
from tests.explain.small import CASES, NO_TOKEN, vit
from tests.explain.textbook import explicit_layers

x = CASES["class_token"].images(1).double()


@pytest.mark.parametrize("settings", [NO_TOKEN, {"pool_include_prefix": True}, {}])
def test_the_attention_of_a_pooling(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model: Any = vit(global_pool="map", **settings).double().eval()
    found = explain(model, x, "raw_attention", pooling=True)
    model.attn_pool.fused_attn = False
    seen: list[Tensor] = []
    model.attn_pool.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(x)
    (tokens,) = seen
    pool = model.attn_pool
    heads = (1, -1, pool.num_heads, pool.head_dim)
    q = pool.q(pool.latent).view(heads).transpose(1, 2)
    k = pool.kv(tokens).chunk(2, dim=-1)[0].reshape(heads).transpose(1, 2)
    weights = (q @ k.mT * pool.scale).softmax(-1).mean(1)[:, 0, -16:]
    torch.testing.assert_close(found, weights.view(1, 4, 4).detach())


def test_a_model_without_attention_pooling() -> None:
    with pytest.raises(UserError, match="--pooling: this model has no attention pooling"):
        explain(vit(), CASES["class_token"].images(), "raw_attention", pooling=True)


def test_a_pooling_that_reads_the_class_token_too() -> None:
    model = vit(global_pool="avg", pool_include_prefix=True).double().eval()
    A = explicit_layers(CASES["gap"].explained(model, x), x, 0)[-1].A
    torch.testing.assert_close(explain(model, x, "raw_attention").flatten(), A.mean(0).mean(0)[1:])


class OwnHead(VisionTransformer):
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        out: Tensor = self.head(x[:, 0] + x[:, 1:].mean(1))
        return out


class OwnPool(VisionTransformer):
    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        return x[:, 1:].mean(1)


def test_a_head_that_reads_unknown_tokens_is_refused() -> None:
    for kind in (OwnHead, OwnPool):
        model = vit(kind).eval()
        with pytest.raises(UserError, match=rf"^cannot explain this {kind.__name__}: which tokens its own"):
            explain(model, CASES["class_token"].images(), "rollout")
        assert explain(model, CASES["class_token"].images(), "gradcam").isfinite().all()
    compiled: Any = vit().eval()
    compiled.forward_head = torch.compile(compiled.forward_head, backend="eager")
    assert explain(compiled, CASES["class_token"].images(), "rollout").isfinite().all()


@pytest.mark.parametrize("pooling", ["max", "avgmax"])
def test_the_maximum_over_tokens_is_refused(pooling: str) -> None:
    model = vit(global_pool=pooling).eval()
    with pytest.raises(UserError, match=rf"^global_pool={pooling}"):
        explain(model, CASES["class_token"].images(), "rollout")
    assert explain(model, CASES["class_token"].images(), "gradcam").isfinite().all()
