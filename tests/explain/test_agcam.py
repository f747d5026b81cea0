"""AGCAM against autograd through explicit attention, and known values."""

from typing import Any

import pytest
import torch
from timm.layers import Mlp
from torch import Tensor, nn

from explain import explain
from explain.agcam import Agcam
from explain.attention_capture import Attention
from tests.explain.small import CASES, STAGES, TIMM, vit
from tests.explain.test_rollout import assert_known, known_capture, known_explained
from tests.explain.textbook import explicit_layers, read_out
from tests.models.small import shaken

TARGETS = torch.tensor([4, 1])


def test_known_values() -> None:
    assert_known(Agcam().maps_from(known_capture(), *known_explained()), 1.295905, 0.610554, 0.159771, 0.272084)


# ParallelScalingBlock makes q, k, v and the MLP's input in one product: its attention's input cannot be detached alone.
@pytest.mark.parametrize("name", [*(name for name in TIMM if name != "parallel_scaling"), *STAGES])
def test_equals_autograd_with_detached_attention_inputs(name: str) -> None:
    case = CASES[name]
    model, x = case.model(), case.images(2)
    maps = explain(model, x, "agcam", TARGETS, stage=case.stage)
    for image, target in enumerate(TARGETS.tolist()):
        explained = case.explained(model, x[[image]])
        layers = explicit_layers(explained, x[[image]], target, detach_inputs=True)
        total = sum((layer.G.clamp(min=0) * layer.S.sigmoid()).sum(0) for layer in layers)
        assert isinstance(total, Tensor)
        torch.testing.assert_close(maps[image].flatten(), read_out(total, explained), rtol=1e-4, atol=1e-5)


class TokenMixingMlp(Mlp):
    """A user's own: it needs every token, in their order."""

    def forward(self, x: Tensor) -> Tensor:
        patches = x[:, 1:].unflatten(1, (4, 4))
        return super().forward(x) + patches.amax((1, 2))[:, None]


@pytest.mark.parametrize("mlp", [TokenMixingMlp, lambda **_: nn.Softmax(dim=1)])
def test_parts_besides_attention_that_mix_tokens(mlp: Any) -> None:
    torch.manual_seed(0)
    model, x = shaken(vit(mlp_layer=mlp)).double().eval(), CASES["class_token"].images(1).double()
    layers = explicit_layers(CASES["class_token"].explained(model, x), x, 3, detach_inputs=True)
    wanted: Any = sum((layer.G.clamp(min=0) * layer.S.sigmoid()).sum(0) for layer in layers)
    torch.testing.assert_close(explain(model, x, "agcam", TARGETS[:1] * 0 + 3).flatten(), wanted[0, 1:])


def test_only_the_class_tokens_row_is_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    scores = Attention.scores

    def noted(self: Attention, rows: slice = slice(None)) -> Tensor:
        shapes.append(scores(self, rows).shape)
        return scores(self, rows)

    monkeypatch.setattr(Attention, "scores", noted)
    explain(CASES["dino"].model(), CASES["dino"].images(), "agcam")
    assert shapes == [(3, 2, 1, 21)] * 3


def test_never_negative() -> None:
    assert float(explain(CASES["gap"].model(), CASES["gap"].images(), "agcam").min()) >= 0
