"""Mask, key points and boxes are transformed with the image; draws depend on the seed only."""

import pickle
import random
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from common.errors import UserError
from common.seeds import seeded_globals
from datasets import DataConfig, RawSample, Sample, build_transform
from datasets.config import TimmConfig
from datasets.transforms import PublishedPlanckianJitter

SIZE = (96, 96)
CONFIG = DataConfig(image_size=SIZE, mean=(0, 0, 0), std=(1, 1, 1))
AUGMENTATIONS = ("none", "flip", "cub_original", "cub_geometry", "foreground_crop", "timm", "atcon_voc", "atcon_svhn")


def scene(height: int = 96, width: int = 96, x: float = 40, y: float = 52, radius: float = 9) -> RawSample:
    """A white disc on dark grey, with the disc as mask, its centre as key point, and the square around it as box."""
    rows, columns = np.mgrid[:height, :width]
    mask = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    image = np.where(mask[..., None], np.uint8(255), np.uint8(64)).repeat(3, 2)
    edge = radius + 0.5  # box edges run along pixel borders, half a pixel beyond the outermost centres
    boxes = np.array([[x - edge + 0.5, y - edge + 0.5, x + edge + 0.5, y + edge + 0.5]])
    return RawSample(image, 1, "a.jpg", 2, mask, np.array([[x, y, 1], [x, y, 0]], float), boxes)


def run(raw: RawSample, augmentation: str, seed: int, config: DataConfig = CONFIG) -> Sample:
    return build_transform(replace(config, augmentation=augmentation), train=True)(raw, seed)


def same(a: Sample, b: Sample) -> bool:
    fields = [(getattr(a, name), getattr(b, name)) for name in ("image", "mask", "keypoints", "boxes")]
    return all(x is y is None or torch.equal(x, y) for x, y in fields)


@pytest.mark.parametrize("augmentation", ["none", "flip", "cub_original", "atcon_svhn"])
def test_annotations_follow_the_pixels(augmentation: str) -> None:
    seen = 0
    for seed in range(40):
        out = run(scene(), augmentation, seed)
        assert out.mask is not None and out.keypoints is not None and out.boxes is not None
        green = out.image[1]  # the channel Planckian jitter keeps
        assert torch.equal(out.mask, green > 0.9), "the white disc is where the mask says"
        if out.mask.sum() < 200:
            continue  # partly outside
        seen += 1
        centre = out.mask.nonzero().float().mean(0).flip(0)
        assert torch.dist(out.keypoints[0, :2], centre) < 1.0
        assert out.keypoints[:, 2].tolist() == [1, 0]
        x0, y0, x1, y1 = out.boxes[0].tolist()
        rows, columns = (out.mask.any(axis).nonzero() for axis in (1, 0))
        assert x0 <= columns[0] + 1 and y0 <= rows[0] + 1 and x1 >= columns[-1] and y1 >= rows[-1]
        assert (x1 - x0) < 1.6 * 1.2 * 20 and (y1 - y0) < 1.6 * 1.2 * 20
    assert seen >= 25


def test_flip_is_exact_and_half_of_the_time() -> None:
    flipped = 0
    for seed in range(200):
        raw = scene()
        out = run(raw, "flip", seed)
        assert out.mask is not None and out.keypoints is not None and out.boxes is not None and raw.mask is not None
        if not np.array_equal(out.mask.numpy(), raw.mask):
            flipped += 1
            assert np.array_equal(out.mask.numpy(), raw.mask[:, ::-1])
            assert out.keypoints[0].tolist() == [96 - 1 - 40, 52, 1]
            assert out.boxes[0].tolist() == pytest.approx([96 - 50, 43, 96 - 31 + 0, 62], abs=1e-3)
    assert 70 < flipped < 130


def test_affine_is_nearest_and_black_outside() -> None:
    values = torch.cat([run(scene(), "cub_original", seed).image[1].unique() for seed in range(10)]).unique()
    assert np.allclose(values.numpy(), [0, 64 / 255, 1])


def test_cub_original_ranges() -> None:
    turns, scales = [], []
    raw = replace(scene(radius=2), keypoints=np.array([[30, 48, 1], [66, 48, 1]], float))
    for seed in range(200):
        parts = run(raw, "cub_original", seed).keypoints
        assert parts is not None
        if parts[:, 2].all():
            across = (parts[1, :2] - parts[0, :2]).numpy()
            scales.append(np.hypot(*across) / 36)
            turns.append(np.degrees(np.arctan2(across[1], across[0])))
    assert 0.79 < min(scales) < 0.83 and 1.17 < max(scales) < 1.21
    assert max(turns) > 150, "mirrored, then turned"
    forward = [turn for turn in turns if abs(turn) < 90]
    assert 0.3 < len(forward) / len(turns) < 0.7


def test_steps_draw_independently() -> None:
    """Flips and jitter are independent, which they would not be with one seed for all steps."""
    raw = replace(scene(radius=2), keypoints=np.array([[30, 48, 1], [66, 48, 1], [48, 30, 1]], float))
    jittered: dict[bool, list[bool]] = {True: [], False: []}
    for seed in range(300):
        out = run(raw, "cub_original", seed)
        assert out.keypoints is not None
        a, b, c = out.keypoints[:, :2]
        if out.keypoints[:, 2].all():
            ab, ac = b - a, c - a
            assert ab.norm() / ac.norm() == pytest.approx(36 / np.hypot(18, 18), rel=1e-3), "one scale for both axes"
            mirrored = bool(ab[0] * ac[1] - ab[1] * ac[0] > 0)  # unmirrored, c is above the line from a to b
            jittered[mirrored].append(not torch.equal(out.image[0], out.image[2]))
    for flags in jittered.values():
        assert len(flags) > 50 and 0.65 < np.mean(flags) < 0.95


def test_planckian_temperatures() -> None:
    jitter = PublishedPlanckianJitter(mode="blackbody", p=1.0)
    jitter.set_random_seed(0)
    drawn = {jitter.get_params()["temperature"] for _ in range(1000)}
    assert drawn == set(range(3000, 15001, 500))
    grey = np.full((2, 2, 3), 100, np.uint8)
    warm = jitter.apply(grey, temperature=3000)[0, 0]
    assert warm.tolist() == pytest.approx([100 * 0.6743 / 0.4029, 100, 100 * 0.0013 / 0.4029], abs=1)


def test_cub_geometry_is_cub_original_without_its_colours() -> None:
    """The coloured scene keeps its three colours and varies over the same ranges."""
    raw = scene()
    raw = replace(raw, image=(raw.image * np.array([1.0, 0.5, 0.25])).astype(np.uint8))
    outs = [run(raw, "cub_geometry", seed).image * 255 for seed in range(20)]
    found = torch.cat([out.flatten(1).T.round().unique(dim=0) for out in outs]).unique(dim=0)
    assert found.tolist() == [[0, 0, 0], [64, 32, 16], [255, 127, 63]]
    sizes = [int((out[0] > 200).sum()) for out in outs]
    assert min(sizes) < 0.75 * 253 and max(sizes) > 1.2 * 253, "253 pixels at scale 1"


def test_foreground_crop_contains_the_object_whatever_its_place() -> None:
    """A 96 x 400 image whose object of one pixel stands anywhere: the random crop always has it."""
    starts = set()
    for seed in range(60):
        x = 7 * seed % 400
        raw = replace(scene(96, 400, x=x, y=50, radius=0), keypoints=np.array([[200, 48, 1]], float), boxes=None)
        out = run(raw, "foreground_crop", seed)
        assert out.mask is not None and int(out.mask.sum()) == 1
        starts.add(int(out.mask.nonzero()[0, 1]))
    assert len(starts) > 30, "it can be anywhere in the crop"


def test_foreground_crop_shifts_colours_half_of_the_time_and_mirrors_half_of_the_time() -> None:
    raw = replace(scene(x=20), keypoints=None, boxes=None)
    outs = [run(raw, "foreground_crop", seed) for seed in range(100)]
    grey = [bool((out.image - out.image[:1]).abs().max() < 0.02) for out in outs]
    plain = [bool(torch.equal(out.image.unique(), torch.tensor([64 / 255, 1.0]))) for out in outs]
    mirrored = [bool(out.mask[52, 75]) for out in outs]  # type: ignore[index]
    assert 0.35 < np.mean(mirrored) < 0.65
    assert 0.35 < np.mean(grey) < 0.65, "hue and saturation leave a grey image grey, Planckian jitter does not"
    assert 0.12 < np.mean(plain) < 0.4, "a quarter keeps its brightness too"


def test_foreground_crop_without_a_mask_is_one_line_and_without_an_object_any_crop() -> None:
    with pytest.raises(UserError, match=r"foreground_crop needs a mask for every image, and a\.jpg has none"):
        run(replace(scene(), mask=None), "foreground_crop", 0)
    out = run(replace(scene(), mask=np.zeros((96, 96), bool)), "foreground_crop", 0)
    assert out.mask is not None and not out.mask.any() and out.image.shape == (3, 96, 96)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_a_sample_depends_on_the_seed_only(augmentation: str) -> None:
    raw = scene(80, 110)
    first = run(raw, augmentation, seed=5)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    run(raw, augmentation, seed=6)
    assert same(first, run(raw, augmentation, seed=5))
    if augmentation != "none":
        assert any(not same(first, run(raw, augmentation, seed)) for seed in range(6, 12))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_global_random_states_are_unchanged(augmentation: str) -> None:
    transform = build_transform(replace(CONFIG, augmentation=augmentation), train=True)  # type: ignore[arg-type]
    states = random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state()
    transform(scene(), 3)
    assert random.getstate() == states[0] and pickle.dumps(np.random.get_state()) == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("size", [32, (32, 64), (64, 32)])
@pytest.mark.parametrize("shape", [(50, 70), (90, 40), (20, 21)])
def test_sizes(augmentation: str, size: int | tuple[int, int], shape: tuple[int, int]) -> None:
    config = replace(CONFIG, image_size=size)
    out = run(scene(*shape, x=10, y=10, radius=5), augmentation, 0, config)
    assert out.image.shape == (3, *config.size_hw) and out.image.dtype == torch.float32 and out.image.is_contiguous()
    if augmentation == "timm":
        assert out.mask is out.keypoints is out.boxes is None
    else:
        assert out.mask is not None and out.mask.shape == config.size_hw and out.mask.dtype == torch.bool


@pytest.mark.parametrize("augmentation", [name for name in AUGMENTATIONS if name != "foreground_crop"])
def test_records_without_annotations_and_unchanged_input(augmentation: str) -> None:
    raw = scene()
    bare = run(replace(raw, mask=None, keypoints=None, boxes=None, group=None), augmentation, 1)
    assert bare.mask is bare.keypoints is bare.boxes is bare.group is None
    out, fresh = run(raw, augmentation, 1), scene()
    assert torch.equal(out.image, bare.image) and (out.label, out.group, out.path) == (1, 2, "a.jpg")
    for name in ("image", "mask", "keypoints", "boxes"):
        assert np.array_equal(getattr(raw, name), getattr(fresh, name)), "a record may be read twice"


TIMM = DataConfig(image_size=48, augmentation="timm")
COLOURED = replace(scene(), image=np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
DIALS = TimmConfig(
    train_crop_mode="rkrr", scale=(0.5, 1.0), ratio=(0.9, 1.1), interpolation="bilinear", hflip=0.3, vflip=0.7,
    auto_augment="", color_jitter=0.2, color_jitter_prob=0.8, grayscale_prob=0.5, gaussian_blur_prob=0.5, re_prob=1.0,
    re_mode="pixel", re_count=2,
)  # fmt: skip


@pytest.mark.parametrize(
    ("dials", "options"),
    [(TimmConfig(), {"auto_augment": "rand-m6-mstd0.5", "interpolation": "bicubic"}), (DIALS, asdict(DIALS))],
    ids=["default", "all"],
)
def test_timms_augmentation_is_that_of_its_create_transform(dials: TimmConfig, options: dict[str, Any]) -> None:
    mean, std = TIMM.normalisation
    theirs = create_transform((3, *TIMM.size_hw), is_training=True, mean=mean, std=std, **options)
    ours, image = build_transform(replace(TIMM, timm=dials), train=True), Image.fromarray(COLOURED.image)
    for seed in range(4):
        with seeded_globals(seed):
            expected = theirs(image)
        assert torch.equal(ours(COLOURED, seed).image, expected)
    assert len({ours(COLOURED, seed).image.sum().item() for seed in range(4)}) == 4


def test_each_of_timms_dials_changes_the_image() -> None:
    for name, value in asdict(DIALS).items():
        changed = {name: value} | ({"auto_augment": ""} if name.startswith("color_jitter") else {})
        changed |= {"re_prob": 1.0} if name.startswith("re_") else {}
        before = replace(TimmConfig(), **{key: item for key, item in changed.items() if key != name})
        first, second = (
            build_transform(replace(TIMM, timm=each), train=True) for each in (before, replace(before, **{name: value}))
        )
        assert any(not torch.equal(first(COLOURED, seed).image, second(COLOURED, seed).image) for seed in range(9)), (
            name
        )


def test_a_policy_that_timm_does_not_know() -> None:
    with pytest.raises(UserError, match="^data.timm.auto_augment=foo: timm has no such policy"):
        build_transform(replace(TIMM, timm=TimmConfig(auto_augment="foo")), train=True)
