"""Stored images give the same samples to the last bit, whatever happens to the files."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from datasets import DATASETS, DataConfig, Sample, Split, eval_loader, image_cache, load_split
from datasets.readers import files as reader
from datasets.readers.files import FileDataset
from datasets.types import RawDataset, RawSample


def config_of(layout: Path, cache: Path | str = "", **keys: object) -> DataConfig:
    data = DataConfig(name="cub", root=str(layout), image_size=32, val_fraction=0.0, image_cache=str(cache))
    return replace(data, **keys)  # type: ignore[arg-type]


def samples(config: DataConfig, train: bool = True, count: int = 3) -> list[Sample]:
    split = load_split(config, "train", train=train, seed=0)
    return [split[1, index] for index in range(count)]


def same(a: list[Sample], b: list[Sample]) -> bool:
    pairs = [
        (x, y)
        for left, right in zip(a, b, strict=True)
        for x, y in zip(vars(left).values(), vars(right).values(), strict=True)
    ]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def stored(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.npy"))


@pytest.fixture
def not_decoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    return lambda: monkeypatch.setattr(reader, "read_image", fail)


@pytest.mark.parametrize(
    ("train", "keys"),
    [
        (True, {"augmentation": "cub_original"}),
        (True, {"augmentation": "foreground_crop", "image_size": (32, 48)}),
        (True, {"augmentation": "flip", "evaluation": "squash"}),
        (False, {"crop": 0.875, "interpolation": "bicubic"}),
        (False, {"image_size": 48}),
    ],
    ids=["cub_original", "foreground_crop", "squash", "crop", "size of the images"],
)
def test_samples_are_equal_and_decoded_once(
    train: bool, keys: dict[str, object], layout: Path, tmp_path: Path, not_decoding: Callable[[], None]
) -> None:
    config = config_of(layout, tmp_path, **keys)
    expected = samples(replace(config, image_cache=""), train)
    assert expected[0].mask is not None and expected[0].keypoints is not None and not stored(tmp_path)
    assert same(samples(config, train), expected) and len(stored(tmp_path)) == 3
    not_decoding()
    assert same(samples(config, train), expected)


def test_loading_processes_read_and_write_the_same_folder(layout: Path, tmp_path: Path) -> None:
    def images(cache: Path | str, workers: int) -> torch.Tensor:
        split = load_split(config_of(layout, cache), "test", train=False, seed=0)
        return torch.cat([batch.image for batch in eval_loader(split, batch_size=8, workers=workers)])

    expected = images("", 0)
    assert torch.equal(images(tmp_path, 2), expected) and len(stored(tmp_path)) == len(expected)
    assert torch.equal(images(tmp_path, 0), expected)


def test_a_changed_file_size_step_or_library_is_another_entry(
    spoiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(spoiled, tmp_path / "cache", augmentation="none")
    (before,) = samples(config, count=1)
    path = Path(before.path)
    status, content = path.stat(), path.read_bytes()
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path, "JPEG" if path.suffix == ".jpg" else None)
    path.write_bytes(path.read_bytes().ljust(len(content), b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (after,) = samples(config, count=1)
    assert same([after], samples(replace(config, image_cache=""), count=1))
    assert not torch.equal(after.image, before.image) and len(stored(tmp_path)) == 2
    for count, keys in enumerate(
        ({"image_size": 40}, {"interpolation": "bicubic"}, {"crop": 0.9}, {"exif": "apply"}), 3
    ):
        samples(replace(config, **keys), count=1)  # type: ignore[arg-type]
        assert len(stored(tmp_path)) == count
    monkeypatch.setattr("datasets.image_cache.VERSION", "next")
    image_cache._digest.cache_clear()
    samples(config, count=1)
    assert len(stored(tmp_path)) == 7


@pytest.mark.parametrize("damage", [b"", b"no numbers", None])
def test_a_damaged_entry_is_computed_anew(damage: bytes | None, layout: Path, tmp_path: Path) -> None:
    config = config_of(layout, tmp_path)
    expected = samples(config, count=1)
    (file,) = stored(tmp_path)
    content = file.read_bytes()
    if damage is None:
        np.save(file, np.zeros((32, 32, 3), np.uint8))
    else:
        file.write_bytes(damage)
    assert same(samples(config, count=1), expected)
    assert file.read_bytes() == content, "and written again"


def test_the_folder_stops_growing(layout: Path, tmp_path: Path) -> None:
    config = config_of(layout, tmp_path, image_cache_gb=2.5 * 32 * 32 * 3 / 1e9)
    assert same(samples(config, count=4), samples(replace(config, image_cache=""), count=4))
    assert len(stored(tmp_path)) == 2


def test_a_folder_that_cannot_be_made_costs_one_line(
    layout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    config = config_of(layout, tmp_path / "file" / "below")
    assert same(samples(config), samples(replace(config, image_cache="")))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("data.image_cache: ") and "takes no more files (Not a directory)" in line


class Inverted:
    """A user's data set: another one with inverted colours. `as_array`: what makes an array of its images."""

    as_array: Callable[[object], np.ndarray] = staticmethod(np.asarray)

    def __init__(self, raw: RawDataset) -> None:
        self.raw, self.info, self.labels, self.groups = raw, raw.info, raw.labels, raw.groups

    def __len__(self) -> int:
        return len(self.raw)

    def read(self, index: int) -> RawSample:
        record = self.raw.read(index)
        return replace(record, image=255 - self.as_array(record.image))


def test_code_that_asks_for_pixels_gets_those_of_the_file(layout: Path, tmp_path: Path) -> None:
    plain, cached = (load_split(config_of(layout, cache), "train", train=True, seed=0) for cache in ("", tmp_path))
    assert same([cached[0, 0]], [plain[0, 0]]) and len(stored(tmp_path)) == 1
    inverted = [Split(Inverted(split.raw), split.transform, train=True, seed=0) for split in (cached, plain)]
    assert same([inverted[0][0, 0]], [inverted[1][0, 0]]) and len(stored(tmp_path)) == 1
    assert isinstance(cached.raw.read(0).image, np.ndarray)
    inverted[0].raw.as_array = lambda image: image  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="StoredImage"):
        inverted[0][0, 0]


def test_what_cannot_be_stored_is_refused(layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for augmentation in ("timm", "atcon_voc"):
        config = config_of(layout, tmp_path, augmentation=augmentation)
        with pytest.raises(UserError, match=rf"data\.image_cache: data\.augmentation={augmentation} crops before"):
            samples(config)
        samples(config, train=False)
    monkeypatch.setitem(DATASETS._entries, "mine", lambda config, split: FileDataset)  # type: ignore[attr-defined]
    for name in ("digits", "mine"):
        with pytest.raises(UserError, match=rf"data\.image_cache: data\.name={name} is not read from image files"):
            load_split(DataConfig(name=name, image_cache=str(tmp_path)), "train", train=True, seed=0)
