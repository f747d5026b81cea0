"""The procedural birds: what is drawn, reproducibility, and reading the written layout back."""

import colorsys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from datasets import DATASETS, DataConfig, SyntheticConfig
from datasets.synthetic.__main__ import main, write_cub_layout
from datasets.synthetic.dataset import SyntheticBirds
from datasets.synthetic.drawing import Uniform, blank_canvas, draw_pose

OPTIONS = SyntheticConfig(train_images=80, val_images=40, test_images=40)
CONFIG = DataConfig(image_size=96, synthetic=OPTIONS)


@pytest.fixture(scope="module")
def birds() -> SyntheticBirds:
    return SyntheticBirds(CONFIG, "train")


def groups(data: SyntheticBirds) -> list[int]:
    return np.bincount([data.read(i).group for i in range(len(data))], minlength=4).tolist()  # type: ignore[arg-type]


def with_options(**options: float) -> DataConfig:
    return replace(CONFIG, synthetic=replace(OPTIONS, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 2, (4, 1)])
def test_images_without_a_bird_are_refused(size: int | tuple[int, int]) -> None:
    with pytest.raises(UserError, match=r"data\.image_size: .* is too small for synthetic images"):
        SyntheticBirds(replace(CONFIG, image_size=size), "train")
    assert SyntheticBirds(replace(CONFIG, image_size=8), "val").read(0).mask is not None


def test_same_key_same_images(birds: SyntheticBirds) -> None:
    again = SyntheticBirds(CONFIG, "train")
    assert np.array_equal(birds.images, again.images)
    assert np.array_equal(birds.part_map, again.part_map)
    assert np.array_equal(birds.keypoints, again.keypoints)
    assert birds.labels == again.labels


def test_the_number_of_threads_changes_nothing(birds: SyntheticBirds) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert np.array_equal(SyntheticBirds(CONFIG, "train").images, birds.images)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_splits_and_seeds_differ() -> None:
    config = with_options(train_images=20, val_images=20, test_images=20)
    drawn = [SyntheticBirds(config, split).images for split in ("train", "val", "test")]
    drawn.append(SyntheticBirds(replace(config, seed=1), "train").images)
    for i, first in enumerate(drawn):
        assert all(not np.array_equal(a, b) for second in drawn[:i] for a in first for b in second)


def test_global_random_state_is_unchanged() -> None:
    before = torch.get_rng_state()
    SyntheticBirds(with_options(val_images=4), "val")
    assert torch.equal(torch.get_rng_state(), before)


def test_group_sizes(birds: SyntheticBirds) -> None:
    assert groups(birds) == [38, 2, 2, 38]
    assert birds.labels != [0, 1] * 40, "shuffled"
    assert groups(SyntheticBirds(CONFIG, "val")) == [19, 1, 1, 19], "validation is drawn like training"
    assert groups(SyntheticBirds(CONFIG, "test")) == [10, 10, 10, 10]


def test_annotations_agree(birds: SyntheticBirds) -> None:
    for index in range(20):
        sample, part_map = birds.read(index), birds.part_map[index]
        assert sample.mask is not None and sample.keypoints is not None and sample.boxes is not None
        assert np.array_equal(sample.mask, part_map > 0)
        assert sample.part_labels is not None and np.array_equal(sample.part_labels + 1, part_map)
        x0, y0, x1, y1 = sample.boxes[0].astype(int)
        assert sample.mask[y0:y1, x0:x1].sum() == sample.mask.sum()
        assert all(
            edge.any() for edge in (sample.mask[y0], sample.mask[y1 - 1], sample.mask[:, x0], sample.mask[:, x1 - 1])
        )
        # The tail's key point may lie in the notch, so it is not checked.
        body, head, beak, wing, _ = np.round(sample.keypoints[:, :2]).astype(int)
        found = [part_map[y, x] for x, y in (body, head, wing)]
        assert found == [4, 2, 4], "the wing is painted over the middle of the body"
        assert part_map[beak[1], beak[0]] in (2, 3), "the beak's point lies where it leaves the head"
    assert 0.10 < (birds.part_map > 0).mean() < 0.18


def test_no_bird_leaves_the_image() -> None:
    canvas = blank_canvas(4000, (4, 4))
    pose = draw_pose(canvas, Uniform(torch.Generator().manual_seed(0), 4000))
    tips = torch.tensor([(1.20, 0.33), (-1.0, 0.34), (-1.0, -0.22), (0.5, 0.61), (0.0, -0.37)])
    points = pose.to_image(tips)
    assert points.min() > -1e-5 and points.max() < 1 + 1e-5
    assert pose.x.std() > 0.05 and pose.y.std() > 0.05, "positions vary"


def test_to_bird_inverts_to_image() -> None:
    canvas = blank_canvas(50, (4, 4))
    pose = draw_pose(canvas, Uniform(torch.Generator().manual_seed(0), 50))
    points = torch.tensor([(0.5, 0.36), (-0.7, 0.06)])
    points_in_image = pose.to_image(points)
    x, y = pose.to_bird(points_in_image[..., :1], points_in_image[..., 1:])
    assert torch.allclose(torch.cat([x, y], 2), points.expand(50, 2, 2), atol=1e-5)


def mean_hues(data: SyntheticBirds, place: int) -> np.ndarray:
    rows = [data.images[i][data.part_map[i] == 0].mean(0) / 255 for i, each in enumerate(data.places) if each == place]
    return np.array([colorsys.rgb_to_hsv(*row)[0] for row in rows])


def test_hue_gap_separates_the_backgrounds() -> None:
    shared, apart = (SyntheticBirds(with_options(hue_gap=gap, noise=0), "test") for gap in (0, 1))
    assert mean_hues(apart, 0).max() < 0.54 and mean_hues(apart, 1).min() > 0.40  # the light colour varies by 0.06
    assert mean_hues(apart, 1).mean() - mean_hues(apart, 0).mean() > 0.12
    assert abs(mean_hues(shared, 1).mean() - mean_hues(shared, 0).mean()) < 0.08


def test_colour_cue_whitens_striped_wings_only() -> None:
    data = SyntheticBirds(with_options(colour_cue=1, noise=0), "test")
    wings = [data.images[i][data.part_map[i] == 4].astype(int) for i in range(len(data))]
    light = [wing[wing.sum(1) > np.quantile(wing.sum(1), 0.8)] for wing in wings]
    blue_to_red = np.array([(pixels[:, 2] / pixels[:, 0]).mean() for pixels in light])
    labels = np.array(data.labels)
    assert blue_to_red[labels == 0].max() < 0.6 < 0.75 < blue_to_red[labels == 1].min()


def test_classes_differ_in_the_beak(birds: SyntheticBirds) -> None:
    reach = np.array([np.ptp(np.argwhere(part_map == 3), axis=0).max() for part_map in birds.part_map])
    labels = np.array(birds.labels)
    assert np.median(reach[labels == 1]) > 1.5 * np.median(reach[labels == 0])


def test_not_square() -> None:
    data = SyntheticBirds(replace(with_options(val_images=6), image_size=(48, 80)), "val")
    assert data.images.shape == (6, 48, 80, 3) and data.read(0).image.shape == (48, 80, 3)
    assert (data.part_map > 0).any((1, 2)).all()


@pytest.mark.parametrize(
    ("config", "split", "message"),
    [
        (CONFIG, "dev", "no split 'dev'"),
    ],
)
def test_errors(config: DataConfig, split: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        DATASETS["synthetic"](config, split)


@pytest.mark.parametrize("name", ["cub", "waterbirds"])
def test_written_layout_reads_back(layout: Path, name: str) -> None:
    options = SyntheticConfig(train_images=40, val_images=12, test_images=16)
    drawn = SyntheticBirds(DataConfig(image_size=48, synthetic=options), "test")
    read = DATASETS[name](DataConfig(name=name, root=str(layout)), "test")
    assert len(read) == 16 and list(read.labels) == drawn.labels
    for index in range(16):
        a, b = drawn.read(index), read.read(index)
        assert np.abs(a.image.astype(int) - b.image).mean() < 12  # JPEG
        assert np.array_equal(a.mask, b.mask)  # type: ignore[arg-type]
        assert np.array_equal(a.boxes, b.boxes)  # type: ignore[arg-type]
        assert np.allclose(a.keypoints, b.keypoints, atol=0.051)  # type: ignore[arg-type]
        assert b.group == (a.group if name == "waterbirds" else None)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "birds"
    command = [str(out), "--train", "4", "--val", "2", "--test", "4", "--size", "32"]
    main(command)
    assert "10 images" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(command)
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--train", "--val", "--test", "--size"])
def test_a_number_out_of_range_is_refused(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "birds"), flag, "0"])
    assert f"argument {flag}: invalid PositiveInt value: '0'" in capsys.readouterr().err


def test_an_error_while_writing_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_fails(config: DataConfig, split: str) -> SyntheticBirds:
        if split == "val":
            raise UserError("no space")
        return SyntheticBirds(config, split)

    monkeypatch.setattr("datasets.synthetic.__main__.SyntheticBirds", read_fails)
    with pytest.raises(UserError, match="no space"):
        write_cub_layout(with_options(train_images=2), tmp_path / "birds")
    assert list(tmp_path.iterdir()) == []
