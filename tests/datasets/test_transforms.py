"""Mask, key points and boxes are transformed with the image; draws depend on the seed only."""

import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import v2

from common.errors import UserError
from datasets import DataConfig, RawSample, Sample, build_transform
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


def test_evaluation_geometry() -> None:
    """A 60 x 123 image to 30: the long side is rounded down to 61, the crop starts at round(31 / 2) = 16."""
    raw = replace(scene(60, 123, x=61, y=30, radius=8), keypoints=np.array([[61, 30, 1], [10, 30, 1]], float))
    boxes = np.array([[20, 10, 80, 40], [50, -8, 120, 70], [0, 0, 20, 20]], float)
    out = build_transform(replace(CONFIG, image_size=30), train=False)(replace(raw, boxes=boxes), 0)
    assert out.keypoints is not None and out.boxes is not None and out.mask is not None
    across = 61 / 123
    assert out.keypoints[0].tolist() == pytest.approx([61 * across - 16, 15, 1], abs=1e-4)
    assert out.keypoints[1].tolist() == pytest.approx([0, 15, 0]), "outside: invisible, moved to the edge"
    assert len(out.boxes) == 2, "a box wholly outside is dropped"
    assert out.boxes[0].tolist() == pytest.approx([0, 5, 80 * across - 16, 20], abs=1e-4), "cut, not moved"
    assert out.boxes[1].tolist() == pytest.approx([50 * across - 16, 0, 30, 30], abs=1e-4)
    centre = out.mask.nonzero().float().mean(0)
    assert centre.tolist() == pytest.approx([14.75, 14], abs=0.3)


@pytest.mark.parametrize(
    ("box", "frame"),
    [
        ((30, 10, 90, 50), (10, 10, 60, 40)),  # inside
        ((10, -6, 50, 70), (0, 0, 40, 76)),  # corner moved into the image, size as it was
        ((90, 20, 119, 59), (70, 20, 29, 39)),  # sticks out on the right: not cut
        ((0, 5, 10, 25), (0, 5, 10, 20)),  # wholly outside
    ],
)
def test_the_frame_of_key_points_is_moved_and_scaled_but_not_cut(box: tuple[int, ...], frame: tuple[int, ...]) -> None:
    """A 120 x 80 image loses 20 columns on either side; one twice as large is halved first."""
    raw = replace(scene(80, 120, x=60, y=40), boxes=np.array([box], float))
    transform = build_transform(replace(CONFIG, image_size=80), train=False)
    first, again = transform(raw, 0).frame, transform(raw, 0).frame
    assert first is not None and again is not None
    assert first.tolist() == list(frame) == again.tolist(), "a record may be read twice"
    half = transform(replace(scene(160, 240, x=120, y=80), boxes=2 * raw.boxes), 0).frame  # type: ignore[operator]
    assert half is not None and half.tolist() == pytest.approx(frame)


def test_no_frame_without_key_points_or_boxes_or_in_training() -> None:
    raw, transform = scene(), build_transform(CONFIG, train=False)
    assert transform(raw, 0).frame is not None
    assert transform(replace(raw, keypoints=None), 0).frame is transform(replace(raw, boxes=None), 0).frame is None
    assert transform(replace(raw, boxes=np.zeros((0, 4))), 0).frame is None
    assert all(run(raw, augmentation, 0).frame is None for augmentation in ("flip", "cub_original", "timm"))


@pytest.mark.parametrize("size", [224, 384])
@pytest.mark.parametrize("shape", [(300, 400), (500, 333), (257, 256), (20, 30)])
def test_the_evaluation_of_imagenet_is_timms(size: int, shape: tuple[int, int]) -> None:
    """Below 384 pixels a bicubic resize to 8/7 and the centre; from there on all of the image, squashed."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    ratio = {"crop_pct": 1.0, "crop_mode": "squash"} if size == 384 else {"crop_pct": 0.875}
    theirs = create_transform(size, interpolation="bicubic", **ratio)  # type: ignore[arg-type]
    config = DataConfig(image_size=size, evaluation="imagenet")
    ours = build_transform(config, train=False)(RawSample(image, 0, ""), 0)
    assert torch.allclose(ours.image, theirs(Image.fromarray(image)), atol=1e-6)


@pytest.mark.parametrize("size", [32, 75, 160])
@pytest.mark.parametrize("shape", [(97, 120), (120, 97), (64, 65), (50, 50)])
def test_the_evaluation_geometry_is_torchvisions_bit_by_bit(size: int, shape: tuple[int, int]) -> None:
    """Images, masks and part labels; the centre crop meets odd and even margins."""
    rng = np.random.default_rng(0)
    image, labels = rng.integers(0, 256, (*shape, 3), np.uint8), rng.integers(-1, 5, shape).astype(np.int16)
    ours = build_transform(replace(CONFIG, image_size=size), train=False)(
        RawSample(image, 0, "", mask=labels > 1, part_labels=labels), 0
    )

    def theirs(values: np.ndarray, mode: v2.InterpolationMode) -> np.ndarray:
        return np.asarray(v2.CenterCrop(size)(v2.Resize(size, mode)(Image.fromarray(values))))

    pixels = theirs(image, v2.InterpolationMode.BILINEAR).transpose(2, 0, 1)
    assert np.array_equal(ours.image.numpy(), pixels.astype(np.float32) / np.float32(255))
    nearest = theirs(labels.astype(np.int32), v2.InterpolationMode.NEAREST)
    assert ours.part_labels is not None and np.array_equal(ours.part_labels.numpy(), nearest)
    assert ours.mask is not None and np.array_equal(ours.mask.numpy(), nearest > 1)


def test_boxes_and_masks_follow_the_evaluation_of_imagenet() -> None:
    """300 x 400 (w x h) becomes 256 x 341, of which columns 16 to 240 and rows 58 to 282 are kept."""
    mask = np.zeros((400, 300), bool)
    mask[200:] = True
    raw = RawSample(np.zeros((400, 300, 3), np.uint8), 0, "", mask=mask, boxes=np.array([[0, 200, 300, 400]], float))
    sample = build_transform(DataConfig(image_size=224, evaluation="imagenet"), train=False)(raw, 0)
    assert sample.mask is not None and sample.boxes is not None
    top = sample.mask[:, 0].int().argmax().item()
    assert top == round(200 * 341 / 400 - 58) and sample.mask[top:].all()
    assert torch.allclose(sample.boxes, torch.tensor([[0, 200 * 341 / 400 - 58, 224, 224]]))


def test_evaluation_ignores_augmentation_and_seed() -> None:
    config = replace(CONFIG, augmentation="cub_original")
    transform = build_transform(config, train=False)
    assert same(transform(scene(), 1), transform(scene(), 2))
    assert same(transform(scene(), 1), run(scene(), "none", 0))


def test_normalisation() -> None:
    config = DataConfig(image_size=8)
    raw = RawSample(np.full((8, 8, 3), (255, 0, 51), np.uint8), 0, "a")
    out = build_transform(config, train=False)(raw, 0)
    expected = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor(config.mean)) / torch.tensor(config.std)
    assert torch.allclose(out.image[:, 3, 3], expected, atol=1e-6)


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    out = build_transform(replace(CONFIG, image_size=8), train=False)(RawSample(stripes, 0, "a"), 0)
    assert (out.image - 0.5).abs().max() < 0.1
