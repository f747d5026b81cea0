"""ImageNet-9: its sets, the two rules from 1000 outputs to nine classes, masks, and errors."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from datasets import DataConfig, load_split
from datasets.readers.imagenet9 import NONE, VARIANTS, ImageNet9
from datasets.registry import with_prescribed
from tests.trees import IN9, NINE, imagenet9_tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return imagenet9_tree(tmp_path / "bg_challenge")


def read(root: Path, variant: str = "original", **changes: object) -> ImageNet9:
    config = DataConfig(name="imagenet9", root=str(root), variant=variant, image_size=32)  # type: ignore[arg-type]
    return ImageNet9(replace(config, **changes), "test")  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_set(root: Path, variant: str) -> None:
    data = read(root, variant)
    assert data.labels == list(range(9)) and data.info.class_names == (*(n[3:] for n in NINE), NONE)
    sample = data.read(2)
    assert Path(sample.path).parts[-4:-1] == (variant, "val", "02_wheeled vehicle") and sample.label == 2
    if variant in ("no_fg", "only_bg_b", "only_bg_t"):
        assert sample.mask is None
    else:
        assert sample.mask is not None and sample.mask.sum() == 512 and sample.mask[:, :16].all()


def test_images_of_the_input_size_are_not_resampled(root: Path) -> None:
    config = DataConfig(name="imagenet9", root=str(root), image_size=32, mean=(0.0,) * 3, std=(1.0,) * 3)  # type: ignore[arg-type]
    raw, sample = read(root).read(4), load_split(config, "test", train=False, seed=0)[4]
    assert np.array_equal(sample.image.numpy(), raw.image.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
    assert sample.mask is not None and np.array_equal(sample.mask.numpy(), raw.mask)  # type: ignore[arg-type]


def test_the_rules(root: Path) -> None:
    argmax, restricted = read(root).info, read(root, output_rule="restricted").info
    assert argmax.num_outputs == restricted.num_outputs == 1000
    assert (argmax.num_classes, restricted.num_classes) == (10, 9)
    assert restricted.class_of_output == tuple(IN9.get(output, -1) for output in range(1000))
    assert argmax.class_of_output == tuple(IN9.get(output, 9) for output in range(1000))


def test_other_values_and_missing_keys_mean_none(root: Path) -> None:
    path = root / "in_to_in9.json"
    path.write_text(json.dumps({str(output): label for output, label in IN9.items()} | {"5": 9, "7": -3, "8": 99}))
    found = read(root, output_rule="restricted").info.class_of_output
    assert found is not None and {o: c for o, c in enumerate(found) if c != -1} == IN9


def test_the_mapping_may_lie_elsewhere(root: Path, tmp_path: Path) -> None:
    moved = shutil.move(root / "in_to_in9.json", tmp_path / "map.json")
    assert read(root, class_mapping=str(moved)).info.num_outputs == 1000
    with pytest.raises(UserError, match=r"in_to_in9\.json is missing; .* give data\.class_mapping"):
        read(root)


def test_a_set_of_another_data_set(root: Path) -> None:
    with pytest.raises(UserError, match=r"data\.variant: ImageNet-9 has no set 'full'; known: original, mixed_same"):
        read(root, "full")


def test_without_masks(root: Path) -> None:
    shutil.rmtree(root / "fg_mask")
    assert read(root).read(0).mask is None
    with pytest.raises(UserError, match=r"n00000003_00007\.npy.* is missing"):
        other = imagenet9_tree(root.parent / "other")
        (other / "fg_mask" / "val" / NINE[3] / "n00000003_00007.npy").unlink()
        read(other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no array", r"cannot read image .*00007\.npy"),
        (b"", r"cannot read image .*00007\.npy"),
        (np.zeros((32, 32, 3), bool), r"00007\.npy: not a 2-D array of numbers"),
        (np.array([{"a": 1}], object), r"00007\.npy: .*Python objects"),
        (np.zeros((16, 32), bool), r"00007\.npy is 32 x 16 pixels but .*original.*is 32 x 32"),
    ],
)
def test_a_wrong_mask_is_named(root: Path, content: bytes | np.ndarray, message: str) -> None:
    path = root / "fg_mask" / "val" / NINE[0] / "n00000000_00007.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    data = read(root)
    with pytest.raises(UserError, match=message) as caught:
        data.read(0)
    assert "\n" not in str(caught.value) and data.read(1).mask is not None


def mapping(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "in_to_in9.json").write_text(text)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: shutil.rmtree(root / "mixed_rand"),
            r"val is missing; data\.root must contain the sets",
        ),
        (
            lambda root: shutil.rmtree(root / "mixed_rand" / "val" / NINE[3]),
            r"must have nine folders 00_dog to 08_fish",
        ),
        (lambda root: (root / "mixed_rand" / "val" / "extra").mkdir(), r"must have nine folders 00_dog to 08_fish"),
        (mapping("[]"), r"in_to_in9\.json must map \"0\"\.\.\"999\" to integers"),
        (mapping("{"), r"in_to_in9\.json must map"),
        (mapping('{"dog": 0}'), r"in_to_in9\.json must map"),
        (mapping('{"0": null}'), r"in_to_in9\.json must map"),
        (mapping('{"1000": 0}'), r"in_to_in9\.json has a class 1000; it must map 1000 classes"),
        (mapping('{"0": 8}'), r"in_to_in9\.json maps no class to 0"),
    ],
)
def test_one_line_for_what_is_wrong(root: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(root)
    with pytest.raises(UserError, match=message) as caught:
        read(root, "mixed_rand")
    assert "\n" not in str(caught.value)


def test_its_images_are_not_cropped_a_second_time() -> None:
    assert with_prescribed(DataConfig(name="imagenet9", evaluation="imagenet")).evaluation == "center_crop"
    assert with_prescribed(DataConfig(name="imagenet_a", evaluation="imagenet")).evaluation == "imagenet"
