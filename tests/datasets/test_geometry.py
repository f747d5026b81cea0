"""The evaluation transform: equal to torchvision and timm, with annotations in the right place."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import v2

from datasets import DataConfig, RawSample, build_transform
from tests.datasets.test_transforms import CONFIG, run, same, scene


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
    mean, std = config.normalisation
    expected = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor(mean)) / torch.tensor(std)
    assert torch.allclose(out.image[:, 3, 3], expected, atol=1e-6)


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    out = build_transform(replace(CONFIG, image_size=8), train=False)(RawSample(stripes, 0, "a"), 0)
    assert (out.image - 0.5).abs().max() < 0.1
