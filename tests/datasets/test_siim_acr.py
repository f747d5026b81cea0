"""SIIM-ACR as prepare_siim_acr.py writes it: sets, groups, masks, transform, a run from training to evaluation."""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import prepare_siim_acr
import train
from common.errors import UserError
from datasets import DATASETS, DataConfig, RawSample, Sample, build_transform, collate, load_split
from datasets.formats.dicom import read_dicom
from datasets.readers.siim_acr import SiimAcr
from datasets.registry import with_prescribed
from engine.run.command_line import parse_config
from tests.datasets.radiographs import image_id, source_of, write_archive
from tests.tiny import KEYS, flags


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 radiographs; 0..7 are test images, of which 2, 3, 6, 7 show a tube; odd ones are positive."""
    root = tmp_path_factory.mktemp("siim")
    tubes = write_archive(root, count=40)
    prepare_siim_acr.main(["--pkl_file_path", str(tubes), "--root_dir", str(root), "--workers", "1"])
    return root


@pytest.fixture
def spoiled(prepared: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    root = tmp_path / "copy"
    shutil.copytree(prepared, root, ignore=shutil.ignore_patterns("dicom-images-train"))
    return root


def config_of(root: Path, **changes: object) -> DataConfig:
    config = replace(DataConfig(name="siim_acr", root=str(root), val_fraction=0.25, image_size=24), **changes)  # type: ignore[arg-type]
    return with_prescribed(config)


def read(root: Path, split: str = "test", **changes: object) -> SiimAcr:
    return SiimAcr(config_of(root, **changes), split)


def images(data: SiimAcr) -> list[int]:
    return [int(record.path.stem.rpartition(".")[2]) for record in data.records]


def test_the_test_sets_and_their_groups(prepared: Path) -> None:
    """group = 2 * label + tube."""
    assert images(read(prepared)) == [0, 2, 4, 6, 1, 3, 5, 7]
    assert read(prepared).labels == [0, 0, 0, 0, 1, 1, 1, 1]
    assert read(prepared).groups == [0, 1, 0, 1, 2, 3, 2, 3]
    robust, easy = read(prepared, variant="robust"), read(prepared, variant="non_robust")
    assert (images(robust), robust.groups) == ([2, 6, 1, 5], [1, 1, 2, 2])
    assert (images(easy), easy.groups) == ([0, 4, 3, 7], [0, 0, 3, 3])
    info = read(prepared, variant="full").info
    assert info.group_names is not None and info.group_names[1] == "no pneumothorax, tube"
    assert info.class_names[1] == "pneumothorax" and info.minority_groups == (1, 2)


def test_val_is_held_out_of_the_training_set(prepared: Path) -> None:
    train_set, val = read(prepared, "train"), read(prepared, "val")
    assert Counter(train_set.labels) == {0: 12, 1: 12} and Counter(val.labels) == {0: 4, 1: 4}
    assert sorted(images(train_set) + images(val)) == list(range(8, 40))
    assert images(read(prepared, "val", batch_size=1)) == images(val) != images(read(prepared, "val", seed=1))
    assert train_set.groups is None and train_set.info.group_names is None
    assert val.info.split_origin.startswith("held out: 0.25") and read(prepared).info.split_origin == "published"
    assert len(read(prepared, "train", val_fraction=0.0)) == 32


def test_a_record(prepared: Path) -> None:
    sample = read(prepared).read(4)
    assert sample.path == str(prepared / "full_test_set" / "1" / f"{image_id(1)}.dcm") and sample.label == 1
    assert sample.image.shape == (48, 48, 3) and sample.image.dtype == np.uint8
    grey = read_dicom(source_of(prepared, 1))
    assert all(np.array_equal(sample.image[..., channel], grey) for channel in range(3))
    assert sample.mask is not None and sample.mask.dtype == bool and sample.mask.sum() == 40
    assert sample.mask[5:15, 2:4].all() and sample.mask[5:15, 30:32].all()
    negative = read(prepared).read(0)
    assert negative.mask is not None and not negative.mask.any()


def test_the_registered_reader_in_a_batch(prepared: Path) -> None:
    assert isinstance(DATASETS["siim_acr"](config_of(prepared), "test"), SiimAcr)
    split = load_split(config_of(prepared), "test", train=False, seed=0)
    batch = collate([split[index] for index in range(len(split))])
    assert batch.image.shape == (8, 3, 24, 24) and batch.mask is not None and batch.mask.shape == (8, 24, 24)
    assert batch.group is not None and batch.group.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


def raw_of(height: int, width: int) -> RawSample:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 1), dtype=np.uint8).repeat(3, 2)
    mask = np.zeros((height, width), bool)
    mask[: height // 2, : width // 2] = True
    return RawSample(image, 1, "a.dcm", mask=mask)


def sample_of(raw: RawSample, train_it: bool, seed: int) -> Sample:
    config = with_prescribed(DataConfig(name="siim_acr", image_size=32))
    return build_transform(config, train_it)(raw, seed)


def test_evaluation_warps_the_whole_image() -> None:
    """Other data sets lose what is outside the centre crop."""
    raw = raw_of(40, 100)
    shrunk = np.asarray(Image.fromarray(raw.image).resize((32, 32), Image.Resampling.BILINEAR))
    wanted = (torch.tensor(shrunk).permute(2, 0, 1) / 255 - 0.48865) / 0.24621
    sample = sample_of(raw, False, 5)
    assert torch.allclose(sample.image, wanted, atol=1e-6)
    assert sample.mask is not None
    assert torch.equal(sample.mask.nonzero().amax(0), torch.tensor([15, 15])) and sample.mask.sum() == 256


def test_training_mirrors_half_of_the_time_and_no_more() -> None:
    plain = sample_of(raw_of(40, 100), False, 0)
    assert plain.mask is not None
    mirrored = 0
    for seed in range(100):
        sample = sample_of(raw_of(40, 100), True, seed)
        flip = not torch.equal(sample.image, plain.image)
        mirrored += flip
        axes = (-1,) if flip else ()
        assert sample.mask is not None
        assert torch.equal(sample.image, plain.image.flip(axes)) and torch.equal(sample.mask, plain.mask.flip(axes))
    assert 30 < mirrored < 70


def test_its_transform_is_prescribed() -> None:
    given = ["--data.name=siim_acr", "--data.augmentation=timm", "--data.mean=[0, 0, 0]"]
    data = parse_config(given).data
    assert (data.augmentation, data.mean, data.std) == ("siim_acr", (0.48865,) * 3, (0.24621,) * 3)
    assert parse_config(given[1:]).data.augmentation == "timm"


def test_without_masks_and_without_the_other_test_sets(spoiled: Path) -> None:
    shutil.rmtree(spoiled / "all_masks")
    for name in ("robust_test_set", "non_robust_test_set"):
        shutil.rmtree(spoiled / name)
    data = read(spoiled)
    assert data.groups is None and data.info.group_names is None and data.read(0).mask is None
    with pytest.raises(UserError, match=r"robust_test_set is missing; run prepare_siim_acr\.py, or correct data\.root"):
        read(spoiled, variant="robust")


def missing_mask(root: Path) -> None:
    (root / "all_masks" / f"{image_id(4)}.png").unlink()


def small_mask(root: Path) -> None:
    Image.new("L", (8, 8)).save(root / "all_masks" / f"{image_id(0)}.png")


def broken(root: Path) -> None:
    path = root / "full_test_set" / "0" / f"{image_id(0)}.dcm"
    path.write_bytes(path.read_bytes()[:900])


def wrong_label(root: Path) -> None:
    (root / "full_test_set" / "0").rename(root / "full_test_set" / "negative")


def empty(root: Path) -> None:
    for path in (root / "full_test_set").rglob("*.dcm"):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing_mask, r"4\.png is missing"),
        (small_mask, r"0\.png is 8 x 8 pixels but .*0\.dcm is 48 x 48; restore both files"),
        (broken, r"cannot read image .*0\.dcm: "),
        (wrong_label, r"negative/.*dcm is not in a folder 0 or 1, its label"),
        (empty, "the test split of data set 'siim_acr' is empty"),
        (lambda root: shutil.rmtree(root / "full_test_set"), r"full_test_set is missing; run prepare_siim_acr\.py"),
    ],
)
def test_one_line_for_what_is_wrong(spoiled: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(spoiled)
    with pytest.raises(UserError, match=message) as caught:
        read(spoiled).read(0)
    assert "\n" not in str(caught.value)


def test_wrong_keys(prepared: Path) -> None:
    with pytest.raises(
        UserError, match=r"data\.variant is mixed_same; siim_acr has the test sets full, robust, non_robust"
    ):
        read(prepared, variant="mixed_same")
    with pytest.raises(UserError, match="has no split 'valid'"):
        read(prepared, "valid")
    with pytest.raises(UserError, match="siim_acr's val split needs one between 0 and 1"):
        read(prepared, "val", val_fraction=0.0)
    with pytest.raises(UserError, match=r"data\.root is empty; give the folder that contains train_set/"):
        SiimAcr(DataConfig(name="siim_acr"), "test")


@pytest.mark.slow
def test_train_an_epoch_and_evaluate(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {
        **{key: value for key, value in KEYS.items() if not key.startswith("data.synthetic")},
        "model.backbone": "vit_nano_patch8", "model.stage_1_backbone": "vit_pico_patch8", "train.epochs": 1,
        "train.best_metric": "auroc", "data.name": "siim_acr", "data.root": str(prepared), "out": str(tmp_path / "run"),
    }  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["train.py", *flags(keys)])
    train.main()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 <= results["test/auroc"] <= 1 and 0 <= results["val/auroc"] <= 1 and "test/mask_iou" in results
    for variant, count in {"full": 8, "robust": 4}.items():
        out = tmp_path / variant
        arguments = ["--run", str(tmp_path / "run"), "--out", str(out), f"--data.variant={variant}"]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
        evaluate.main()
        found = json.loads((out / "results.json").read_text())
        assert found["images"] == count and 0 <= found["test/auroc"] <= 1
        assert found["test/count/group/no pneumothorax, tube"] == 2
        assert found["test/count/group/pneumothorax, tube"] == (2 if variant == "full" else 0)
        assert (found["test/auroc"] == results["test/auroc"]) or variant != "full"
