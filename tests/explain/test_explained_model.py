"""What is explained of each kind of model, and what is refused."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import DiffParallelScalingBlock

from common.errors import UserError
from explain import build_method, explain
from explain.explained_model import (
    explainable,
    explained_model,
    require_attention,
    with_selection,
    without_hidden,
)
from models.interface import select_parts
from models.two_stage import with_mask
from tests.explain.small import CASES, ROTARY, two_stage, vit
from tests.models.small import shaken

CLASS_TOKEN = ("class_token", "dino", "wide", "res_post", "plain_cls", "stage_2")
PATCHES = ("gap", "gap_with_token", "map", "plain_aim", "plain_gap_cls", "stage_1")


@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_models_own(name: str) -> None:
    case = CASES[name]
    model, x = case.model(), case.images()
    out: Any = model(x)
    if not isinstance(out, torch.Tensor):
        out = out.stage_1.class_logits if case.stage == 1 else out.logits
    explained = case.explained(model, x)
    with explainable(explained):
        torch.testing.assert_close(explained.logits(x), out)


def test_rows_are_the_tokens_that_the_classifier_reads() -> None:
    def rows(name: str) -> slice:
        return CASES[name].explained(CASES[name].model(), CASES[name].images()).rows()

    assert [rows(name) for name in CLASS_TOKEN] == [slice(0, 1)] * len(CLASS_TOKEN)
    assert rows("distilled") == slice(0, 2)
    prefixes = {"gap": 0, "gap_with_token": 1, "map": 0, "plain_aim": 5, "plain_gap_cls": 0, "stage_1": 5}
    assert [rows(name) for name in PATCHES] == [slice(prefixes[name], None) for name in PATCHES]


def test_the_grid_is_that_of_the_images() -> None:
    grids = {"class_token": (4, 4), "wide": (4, 6), "dynamic": (6, 4), "stage_2": (4, 4)}
    for name, grid in grids.items():
        case = CASES[name]
        assert case.explained(case.model(), case.images()).grid(case.images()) == grid


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"attn_layer": "diff"}, "DiffAttention"),
        ({"block_fn": DiffParallelScalingBlock}, "DiffParallelScalingBlock"),
    ],
)
def test_blocks_without_an_attention_matrix_are_named(settings: dict[str, Any], kind: str) -> None:
    explained = explained_model(vit(**settings), CASES["class_token"].images())
    with pytest.raises(UserError, match=rf"^blocks\.0: a {kind} "):
        require_attention(explained)


@pytest.mark.parametrize("targets", [torch.tensor([1]), torch.tensor([[1], [1], [1]])])
def test_one_target_per_image(targets: torch.Tensor) -> None:
    with pytest.raises(UserError, match="one class per image"):
        explain(CASES["class_token"].model(), CASES["class_token"].images(), "agcam", targets)


def test_another_selection() -> None:
    case = CASES["stage_2"]
    model, x = case.model(), case.images()
    explained = case.explained(model, x)
    assert explained.selection is not None
    inverted = with_mask(explained.selection, ~explained.selection.mask)
    other = with_selection(explained, inverted)
    assert other.selection is inverted
    with explainable(other):
        torch.testing.assert_close(other.logits(x), model.predict(x, inverted))
        assert not torch.allclose(other.logits(x), explained.logits(x))


def test_published_noise_in_evaluation_is_the_same_in_every_call() -> None:
    model = shaken(two_stage(parts={"eval_noise": True, "temperature": 0.02})).eval()
    x = CASES["stage_2"].images()
    quiet = shaken(two_stage(parts={"temperature": 0.02})).eval()
    before = torch.get_rng_state()
    first, second = (select_parts(model, x).selection for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.maps is not None and second.maps is not None
    torch.testing.assert_close(first.maps, second.maps, rtol=0, atol=0)
    assert not torch.allclose(first.maps, select_parts(quiet, x).selection.maps)


def test_hidden_patches_of_stage_2_are_zero_in_attention_maps() -> None:
    case = CASES["stage_2"]
    model, x = case.model(), case.images()
    hidden = ~model.select(x).selection.mask
    for method in ("raw_attention", "rollout", "grad_rollout", "attention_flow", "agcam", "inherent"):
        maps = explain(model, x, method)
        assert float(maps[hidden].abs().max()) == 0, method
        assert float(maps[~hidden].abs().max()) > 0, method


def test_soft_masks_can_be_explained() -> None:
    model = shaken(two_stage(mask_kind="soft")).eval()
    assert explain(model, CASES["stage_2"].images(), "agcam").isfinite().all()


def test_inside_nothing_asks_for_gradients_of_weights() -> None:
    case = CASES["class_token"]
    model = case.model()
    with explainable(case.explained(model, case.images())):
        assert not any(p.requires_grad for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


RUNS: list[tuple[str, dict[str, Any]]] = [
    ("agcam", {}), ("attention_flow", {}), ("raw_attention", {}), ("raw_attention", {"layer": 0, "head_fusion": "max"}),
    ("rollout", {}), ("rollout", {"compat": "agcam", "head_fusion": "min"}), ("grad_rollout", {}), ("gradcam", {}),
    ("gradcam", {"module": "blocks.1"}), ("lrp", {}),
    ("lrp", {"compat": "chefer"}), ("gradient", {}), ("input_x_gradient", {}), ("guided_backprop", {}),
    ("integrated_gradients", {"steps": 2, "absolute": True}),
]  # fmt: skip
"""Methods with options."""


@pytest.mark.parametrize("name", ["stage_2", "stage_2_dinov3", "stage_2_mean", "stage_2_rope_mean"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_maps_of_the_kept_tokens_are_those_of_all(
    name: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    model, x = case.model().to(dtype), case.images().to(dtype)
    explained = case.explained(model, x)
    assert explained.selection is not None
    mask = torch.zeros_like(explained.selection.mask)
    mask[0, 1:3, :2] = mask[1, 0, 3] = mask[2, 2] = True  # different counts
    selection = with_mask(explained.selection, mask)
    kept = without_hidden(with_selection(explained, selection)).kept
    assert kept is not None and kept.shape[1] == explained.num_prefix + 4

    runs = [(method, options) for method, options in RUNS if method != "lrp" or name not in ROTARY]

    def maps() -> list[torch.Tensor]:
        return [explain(model, x, method, [3, 1, 4], selection=selection, **options) for method, options in runs]

    found = maps()
    monkeypatch.setattr("explain.api.without_hidden", lambda explained: explained)
    for found_maps, wanted, run in zip(found, maps(), runs, strict=True):
        assert wanted.any(), run
        limit = tolerance * float(wanted.abs().max())
        torch.testing.assert_close(found_maps, wanted, rtol=0, atol=limit, msg=lambda text, run=run: f"{run}: {text}")


def test_all_tokens_stay_where_hidden_ones_count() -> None:
    for case in (CASES["stage_1"], CASES["class_token"], CASES["stage_2_soft_mean"]):
        assert without_hidden(case.explained(case.model(), case.images())).kept is None
    case = CASES["stage_2"]
    explained = case.explained(case.model(), case.images())
    assert explained.selection is not None
    everything = with_mask(explained.selection, torch.ones_like(explained.selection.mask))
    assert without_hidden(with_selection(explained, everything)).kept is None
    for method in ("rollout", "grad_rollout"):  # discarded entries are counted over the whole matrix
        assert build_method(method).drops_hidden and not build_method(method, discard_ratio=0.5).drops_hidden
        assert not build_method(method, compat="vit-explain").drops_hidden
    assert not build_method("gradcam", compat="chefer").drops_hidden  # a mean over the gradients of all patches
