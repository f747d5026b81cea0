"""Attention rollout and raw attention against their slow textbook form and known values."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from explain import explain
from explain.attention_capture import AttentionCapture
from explain.explained_model import ExplainedModel, explained_model
from explain.raw_attention import RawAttention
from explain.rollout import Fusion, Rollout, discard, divide_by_maximum, roll_out
from tests.explain.small import CASES, STAGES, TIMM, vit
from tests.explain.textbook import dropped, explicit_layers, fuse, product, read_out


@dataclass
class Given:
    """An attention whose weights, scores and gradients are given."""

    block: int
    A: Tensor
    S: Tensor
    gradient: Tensor
    mixed_weights: None = None

    def weights(self, rows: slice = slice(None)) -> Tensor:
        return self.A[:, :, rows]

    def scores(self, rows: slice = slice(None)) -> Tensor:
        return self.S[:, :, rows]

    def weights_gradient(self, rows: slice = slice(None)) -> Tensor:
        return self.gradient[:, :, rows]

    scores_gradient = weights_gradient


def known_capture() -> AttentionCapture:
    """The inputs of the known values: two blocks, two heads, a class token and 2 x 2 patches."""
    l, h, i, j = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (2, 2, 5, 5)), indexing="ij")  # noqa: E741
    S = 2 * (1 + l + 2 * h + 3 * i + 5 * j).sin()
    gradient = (2 + 3 * l + h + 2 * i + 7 * j).cos()
    attentions: Any = [Given(b, S[[b]].softmax(-1), S[[b]], gradient[[b]]) for b in range(2)]
    return AttentionCapture(attentions)


def known_explained() -> tuple[ExplainedModel, Tensor]:
    images = torch.zeros(1, 3, 4, 4)
    return explained_model(vit(img_size=4, patch_size=2, depth=2), images), images


def assert_known(maps: Tensor, *numbers: float) -> None:
    torch.testing.assert_close(maps.flatten().double(), torch.tensor(numbers, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("fusion", "ratio", "numbers"),
    [
        ("mean", 0.0, (1, 0.702288, 0.263929, 0.604082)),
        ("mean", 0.5, (1, 0.450365, 0.104867, 0.402435)),
        ("max", 0.0, (1, 0.718703, 0.255143, 0.738777)),
        ("max", 0.5, (1, 0.477014, 0, 0.864654)),
        ("min", 0.0, (1, 0.192749, 0.228014, 0.129659)),
        ("min", 0.5, (1, 0.146414, 0.171039, 0.002581)),
    ],
)
def test_known_values(fusion: Fusion, ratio: float, numbers: tuple[float, ...]) -> None:
    method = Rollout(fusion, ratio, compat="vit-explain")
    assert_known(method.maps_from(known_capture(), *known_explained()), *numbers)


@pytest.mark.parametrize("name", [*TIMM, *STAGES])
@pytest.mark.parametrize("options", [{}, {"head_fusion": "max", "discard_ratio": 0.4}, {"start_layer": 1}])
def test_equals_the_textbook(name: str, options: dict[str, Any]) -> None:
    case = CASES[name]
    model, x = case.model(), case.images(2)
    maps = explain(model, x, "rollout", stage=case.stage, **options)
    for image in range(len(x)):
        explained = case.explained(model, x[[image]])
        layers = explicit_layers(explained, x[[image]], None)[options.get("start_layer", 0) :]
        fused = [fuse(layer.A, options.get("head_fusion", "mean")) for layer in layers]
        fused = [dropped(F, options.get("discard_ratio", 0), keep_first=True) for F in fused]
        wanted = read_out(product(fused, "row"), explained)
        torch.testing.assert_close(maps[image].flatten(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["dinov3", "parallel_things"])
@pytest.mark.parametrize("method", ["raw_attention", "rollout", "attention_flow"])
def test_a_single_head(name: str, method: str) -> None:
    """Of parallel branches, the heads are numbered one branch after the other."""
    case = CASES[name]
    model, x = case.model().double(), case.images(1).double()
    explained = case.explained(model, x)
    layers = explicit_layers(explained, x, None)
    heads = [explain(model, x, method, head=head) for head in range(len(layers[0].A))]
    for head, found in enumerate(heads):
        if method == "attention_flow":
            assert not torch.equal(found, heads[0]) or head == 0
            continue
        alone = [layer.A[head] for layer in layers]
        wanted = alone[-1] if method == "raw_attention" else product(alone, "row")
        torch.testing.assert_close(found[0].flatten(), read_out(wanted, explained))
    with pytest.raises(UserError, match=f"^--head: {len(heads)}; the model has heads 0 to {len(heads) - 1}$"):
        explain(model, x, method, head=len(heads))


@pytest.mark.parametrize("compat", ["vit-explain", "agcam", "chefer"])
def test_published_forms(compat: str) -> None:
    case = CASES["class_token"]
    model, x = case.model(), case.images(1)
    explained = case.explained(model, x)
    maps = explain(model, x, "rollout", compat=compat, head_fusion="max")
    fused = [fuse(layer.A, "max") for layer in explicit_layers(explained, x, None)]
    if compat == "vit-explain":
        wanted = read_out(product([dropped(F, 0.9, keep_first=True) for F in fused], "column"), explained)
        wanted = wanted / wanted.max()
    else:
        wanted = read_out(product(fused[1:], "row") if compat == "chefer" else product(fused, "column"), explained)
    torch.testing.assert_close(maps.flatten(), wanted, rtol=1e-5, atol=1e-6)


def test_the_classifiers_row_sums_to_one() -> None:
    case = CASES["gap"]
    maps = explain(case.model(), case.images(), "rollout", head_fusion="min", discard_ratio=0.3)
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(3))


def test_discard_takes_the_smallest_of_each_image() -> None:
    fused = torch.tensor([[[0.1, 0.9], [0.3, 0.2]], [[0.9, 0.1], [0.2, 0.3]]])
    assert discard(fused, 0.24, keep_first=True) is fused
    left = torch.tensor([[[0, 0.9], [0.3, 0]], [[0.9, 0], [0, 0.3]]])
    assert torch.equal(discard(fused, 0.5, keep_first=False), left)
    left[0, 0, 0] = 0.1
    assert torch.equal(discard(fused, 0.5, keep_first=True), left)


def test_discarding_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0))
    wanted = discard(fused, 0.5, keep_first=True)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    monkeypatch.setattr(torch.Tensor, "kthvalue", None)  # raises there on a GPU
    assert torch.equal(discard(fused, 0.5, keep_first=True), wanted)


def test_all_discarded_leaves_zeros_and_no_nan() -> None:
    maps = explain(
        CASES["class_token"].model(), CASES["class_token"].images(), "rollout", discard_ratio=1.0, compat="vit-explain"
    )
    assert torch.equal(maps, torch.zeros_like(maps))
    assert divide_by_maximum(torch.tensor([[[1.0, 2.0]]])).tolist() == [[[0.5, 1.0]]]


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"head_fusion": "sum"}, "--head-fusion: 'sum'; known: mean, max, min"),
        ({"compat": "published"}, "--compat: 'published'; known: vit-explain, agcam, chefer"),
        ({"discard_ratio": 1.5}, "--discard-ratio"),
        ({"discard_ratio": -0.1}, "--discard-ratio"),
        ({"start_layer": -1}, "--start-layer"),
        ({"start_layer": 3}, "--start-layer"),
        ({"depth": 3}, "rollout has no option depth; it has head_fusion, discard_ratio, start_layer, compat"),
    ],
)
def test_refused_options(options: dict[str, Any], flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        explain(CASES["class_token"].model(), CASES["class_token"].images(), "rollout", **options)


@pytest.mark.parametrize("name", ["dino", "gap", "parallel_things", "stage_1"])
def test_raw_attention_is_one_blocks_row(name: str) -> None:
    case = CASES[name]
    model, x = case.model(), case.images(1)
    explained = case.explained(model, x)
    layers = explicit_layers(explained, x, None)
    for layer, fusion in ((-1, "mean"), (0, "max")):
        maps = explain(model, x, "raw_attention", stage=case.stage, layer=layer, head_fusion=fusion)
        wanted = read_out(fuse(layers[layer].A, fusion), explained)
        torch.testing.assert_close(maps.flatten(), wanted, rtol=1e-5, atol=1e-6)


def test_raw_attention_of_a_block_that_is_not_there() -> None:
    for layer in (3, -4):
        with pytest.raises(UserError, match=r"--layer: -?\d; the model has blocks 0 to 2"):
            explain(CASES["class_token"].model(), CASES["class_token"].images(), RawAttention(layer=layer))


def test_column_sums_divide_columns_in_the_published_form() -> None:
    explained, images = known_explained()
    fused = torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(0))
    wanted = read_out(product([fused[0]], "column"), explained)
    maps = roll_out([fused], explained, images, by_column=True, keep_identity=True)
    torch.testing.assert_close(maps.flatten(), wanted)
