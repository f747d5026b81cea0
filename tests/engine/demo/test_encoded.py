"""Edits of one image give what the model itself gives for the same mask."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from engine.demo.certificate import certify, largest_change
from engine.demo.edits import Edits
from engine.demo.encoded import Encoded, encode, painted
from engine.demo.subject import Subject, open_model, open_run
from metrics.maps.as_masks import object_patches
from models.interface import ImageClassifier, select_parts
from models.part_discovery import Intervention
from models.selection import Selection, patches_with, selection_of
from tests.tiny import untrained_run

BOTH = pytest.mark.parametrize("kind", ["patch", "pixel"])


@BOTH
def test_without_edits_it_is_the_models_own_prediction(encoded: dict[str, Encoded], kind: str) -> None:
    one = encoded[kind]
    model = one.subject.two_stage
    assert model is not None
    with torch.no_grad():
        out = model(one.image[None])
    assert torch.equal(one.own.logits, out.logits[0]) and one.own.stage_1_logits is not None
    assert torch.equal(one.own.stage_1_logits, out.stage_1_logits[0])
    assert one.own.visible is not None and torch.equal(one.own.visible, out.stage_1.selection.visible[0])
    assert one.edited(Edits()) is one.own


@BOTH
def test_parts_and_thresholds_are_the_intervention(encoded: dict[str, Encoded], kind: str) -> None:
    one = encoded[kind]
    model, ranges = one.subject.two_stage, one.threshold_ranges()
    assert model is not None and len(ranges) == 3 and all(low < high for low, high in ranges)
    middle = sum(ranges[1]) / 2
    found = one.edited(Edits(remove_parts=(0,), thresholds=((1, middle),)))
    never = torch.finfo(torch.float32).min
    with torch.no_grad():
        out = model(one.image[None], intervention=Intervention(torch.tensor([never, middle, never]), (0,)))
    assert torch.equal(found.logits, out.logits[0]) and not torch.equal(found.logits, one.own.logits)
    assert found.stage_1_logits is not None and torch.equal(found.stage_1_logits, out.stage_1_logits[0])


@BOTH
def test_the_margin_is_that_of_the_config(encoded: dict[str, Encoded], kind: str) -> None:
    one = encoded[kind]
    model, margin = one.subject.two_stage, one.largest_margin() / 2
    assert model is not None and margin > 0
    found, config = one.edited(Edits(margin=margin)), model.stage_1.config
    try:
        model.stage_1.config = replace(config, parts=replace(config.parts, margin=config.parts.margin + margin))
        with torch.no_grad():
            out = model(one.image[None])
    finally:
        model.stage_1.config = config
    assert torch.equal(found.logits, out.logits[0]) and not torch.equal(found.logits, one.own.logits)
    nothing = one.edited(Edits(margin=2 * one.largest_margin()))
    assert nothing.selection is not None and nothing.selection.mask.sum() == 1  # model.empty_mask=best_token


@BOTH
def test_painted_patches_are_what_predict_gets(encoded: dict[str, Encoded], kind: str) -> None:
    one = encoded[kind]
    assert one.own.visible is not None and one.subject.two_stage is not None
    edits = Edits().painted((0, 0), True).painted((3, 3), True).painted((3, 3), False).painted((1, 2), False)
    assert (edits.shown, edits.hidden) == ({(0, 0)}, {(3, 3), (1, 2)})
    found, wanted = one.edited(edits), one.own.visible.clone()
    side = wanted.shape[0] // 4
    for (row, column), value in (((0, 0), True), ((3, 3), False), ((1, 2), False)):
        wanted[row * side : (row + 1) * side, column * side : (column + 1) * side] = value
    assert found.visible is not None and torch.equal(found.visible, wanted)
    with torch.no_grad():
        logits = one.subject.two_stage.predict(one.image[None], selection_of(wanted[None], (4, 4)))
    assert torch.equal(found.logits, logits[0])


@BOTH
def test_another_mask_has_as_many_patches(encoded: dict[str, Encoded], kind: str) -> None:
    one = encoded[kind]
    heat = one.heat("raw_attention")
    assert one.own.visible is not None and one.truth is not None
    found = one.edited(Edits(mask="raw_attention"), heat)
    assert found.visible is not None and found.visible.sum() == one.own.visible.sum()
    if kind == "patch":
        assert heat[found.visible].min() >= heat[~found.visible].max()
    truth = one.edited(Edits(mask="true")).visible
    grid = (one.own.visible.shape[0], one.own.visible.shape[1])
    assert truth is not None and torch.equal(truth, object_patches(one.truth[None], grid)[0])


def test_a_soft_mask_is_painted_too() -> None:
    selection = Selection(torch.zeros(1, 2, 2, dtype=torch.bool), gate=torch.full((1, 2, 2), 0.3))
    found = painted(selection, {(0, 1)}, {(1, 1)})
    assert found.gate is not None and found.gate.flatten().tolist() == pytest.approx([0.3, 1, 0.3, 0])


def test_pixels_and_patches_stay_consistent(encoded: dict[str, Encoded]) -> None:
    selection = encoded["pixel"].edited(Edits().painted((0, 0), True).painted((2, 1), False)).selection
    assert selection is not None and selection.pixels is not None
    assert torch.equal(selection.mask, patches_with(selection.pixels, (4, 4)))


@pytest.mark.parametrize(
    ("edits", "problem"),
    [
        (Edits(remove_parts=(3,)), "no part 3: the model has parts 0 to 2"),
        (Edits(thresholds=((5, 0.0),)), "no part 5"),
        (Edits(margin=float("nan")), "not a number"),
        (Edits(shown=frozenset({(4, 0)})), "outside the grid of 4 x 4 patches"),
    ],
)
def test_edits_that_do_not_fit(encoded: dict[str, Encoded], edits: Edits, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        encoded["patch"].edited(edits)


def test_a_plain_vit_says_what_it_lacks(encoded: dict[str, Encoded]) -> None:
    plain = encoded["plain"]
    assert plain.own.visible is None and plain.heat("rollout").shape == (4, 4)
    assert "depends on every pixel" in plain.subject.limits and not plain.threshold_ranges()
    with pytest.raises(UserError, match="depends on every pixel"):
        plain.edited(Edits(margin=1.0))


def test_explanations_follow_the_edits(encoded: dict[str, Encoded]) -> None:
    one = encoded["patch"]
    found = one.edited(Edits().painted((0, 0), True).painted((1, 1), False))
    heat = one.heat("rollout", predicted=found)
    assert found.visible is not None and not heat[~found.visible].any() and heat[0, 0] > 0


def test_parts_are_named_by_the_nearest_key_point(encoded: dict[str, Encoded], subjects: dict[str, Subject]) -> None:
    one, split = encoded["patch"], subjects["patch"].split
    assert one.sample is not None and one.sample.keypoints is not None and split is not None
    assert one.own.selection is not None and one.own.selection.maps is not None and split.info.part_names
    maps = torch.zeros_like(one.own.selection.maps)
    maps[0, 0, 3, 3] = maps[0, 1, 0, 0] = 1.0  # part 2 has no patch
    maps[0, 3] = 0.5
    points = torch.zeros_like(one.sample.keypoints)
    points[:, 2] = 1
    points[2, :2], points[1, :2] = torch.tensor([28.0, 28.0]), torch.tensor([5.0, 3.0])
    points[0] = torch.tensor([28.0, 28.0, 0.0])  # not visible
    points[3:, 0] = 100
    changed = replace(
        one, sample=replace(one.sample, keypoints=points),
        own=replace(one.own, selection=replace(one.own.selection, maps=maps)),
    )  # fmt: skip
    names = split.info.part_names
    assert changed.part_labels() == [f"part 0 ({names[2]})", f"part 1 ({names[1]})", "part 2"]
    assert encode(one.subject, one.image).part_labels() == ["part 0", "part 1", "part 2"]


def test_an_image_file_is_seen_as_the_example_is(subjects: dict[str, Subject], tmp_path) -> None:
    subject = subjects["patch"]
    assert subject.split is not None
    Image.fromarray(subject.split.raw.read(3).image).save(tmp_path / "bird.png")
    assert torch.equal(subject.read(tmp_path / "bird.png"), subject.split[3].image)


def test_a_timm_model_is_explained(tmp_path) -> None:
    subject = open_model("timm/vit_nano_patch8", "none", torch.device("cpu"))
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(tmp_path / "grey.png")
    one = encode(subject, subject.read(tmp_path / "grey.png"))
    assert one.own.logits.shape == (subject.classifier.num_classes,) and one.heat("rollout").ndim == 2
    assert subject.class_names[3] == "class 3" and "depends on every pixel" in subject.limits


def test_noise_that_a_run_keeps_is_that_of_its_evaluation(encoded: dict[str, Encoded]) -> None:
    one = encoded["patch"]
    model = one.subject.two_stage
    assert model is not None
    config = model.stage_1.config
    noisy = replace(config, parts=replace(config.parts, eval_noise=True, gumbel=True))
    try:
        model.stage_1.config = model.model_config = noisy
        with torch.no_grad():
            wanted = select_parts(model, one.image[None]).selection
        found = encode(one.subject, one.image).own.selection
    finally:
        model.stage_1.config = model.model_config = config
    assert found is not None and wanted.maps is not None and found.maps is not None
    assert torch.equal(found.maps, wanted.maps) and torch.equal(found.mask, wanted.mask)
    assert one.own.selection is not None and not torch.equal(found.maps, one.own.selection.maps)


@pytest.mark.parametrize(
    "keys", [{"model.name": "pdiscoformer"}, {"model.selector": "attention"}, {"model.mask_kind": "soft"}]
)
def test_other_models_offer_what_the_docs_say(tmp_path, keys: dict[str, str]) -> None:
    run = untrained_run(tmp_path / "run", {"model.backbone": "vit_nano_patch8", **keys})
    subject = open_run(run, torch.device("cpu"))
    assert subject.split is not None and isinstance(subject.model, ImageClassifier)
    sample = subject.split[1]
    one = encode(subject, sample.image, sample)
    with torch.no_grad():
        out = subject.model(sample.image[None])
    assert torch.equal(one.own.logits, out.logits[0]) and one.heat("rollout").shape == (4, 4)
    edits = Edits().painted((0, 0), True).painted((1, 1), False)
    if "model.name" in keys:
        assert len(one.part_labels()) == 3 and "finds parts, but" in subject.limits
        with pytest.raises(UserError, match="depends on every pixel"):
            one.edited(edits)
        return
    found = one.edited(edits)
    assert found.visible is not None and found.visible[0, 0] and not found.visible[1, 1]
    assert (largest_change(certify(one, found)) == 0) is ("model.selector" in keys)
    if "model.selector" in keys:
        assert "no parts to remove" in subject.limits
        with pytest.raises(UserError, match="no part 0"):
            one.edited(Edits(remove_parts=(0,)))
