"""Data sets by name: lazy readers, one-line registration, and the augmentation of each."""

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import get_args, get_type_hints

import pytest

from common.errors import UserError
from datasets import DATASETS, DataConfig, RawDataset, build_transform, load_split
from datasets.readers.digits import Digits
from datasets.registry import BuiltIn, with_prescribed
from datasets.transforms import STEPS, AugmentTransform, EvalTransform, TimmTransform
from engine.run.command_line import parse_config

OWN = {
    "synthetic": "flip", "digits": "none", "svhn": "none", "cub": "cub_original", "waterbirds": "cub_original",
    "nabirds": "cub_geometry", "metashift": "cub_original", "flowers102": "cub_geometry",
    "part_imagenet": "cub_geometry", "voc2012": "atcon_voc", "coco": "atcon_voc",
    "siim_acr": "siim_acr", "folder": "flip", "imagenet": "timm", "imagenet1k": "timm", "imagenet_a": "timm",
    "imagenet_r": "timm", "imagenet_v2": "timm", "imagenet9": "timm",
}  # fmt: skip


@pytest.fixture
def mine() -> Iterator[str]:
    """A data set registered from outside, in the one line that the documentation shows."""

    class Mine(Digits):
        pass

    DATASETS.register("mine")(Mine)
    yield "mine"
    del DATASETS._entries["mine"]


@pytest.mark.parametrize("name", list(DATASETS))
def test_every_reader_can_be_imported_and_tells_its_splits(name: str) -> None:
    entry = DATASETS[name]
    assert isinstance(entry, BuiltIn)
    module, _, reader = entry.reader.partition(":")
    assert callable(getattr(import_module(module), reader))
    with pytest.raises(UserError, match=f"data set '{name}' has no split 'valid'"):
        entry(DataConfig(), "valid")


@pytest.mark.parametrize("name", list(DATASETS))
def test_auto_is_the_data_sets_own_augmentation(name: str) -> None:
    data = parse_config([f"--data.name={name}"]).data
    assert data.augmentation == OWN[name]
    kinds = {"none": EvalTransform, "timm": TimmTransform}
    assert type(build_transform(DataConfig(name=name), train=True)) is kinds.get(OWN[name], AugmentTransform)


def test_a_named_augmentation_stays() -> None:
    assert parse_config(["--data.name=cub", "--data.augmentation=timm"]).data.augmentation == "timm"
    given = build_transform(DataConfig(name="cub", augmentation="none"), train=True)
    assert isinstance(given, EvalTransform)


def test_auto_does_not_touch_evaluation() -> None:
    assert isinstance(build_transform(DataConfig(name="cub"), train=False), EvalTransform)


def test_every_augmentation_of_the_config_is_known() -> None:
    names = set(get_args(get_type_hints(DataConfig)["augmentation"]))
    assert names - {"auto", "none", "timm"} == STEPS.keys() and set(OWN.values()) < names


def test_a_data_set_of_your_own(mine: str) -> None:
    config = DataConfig(name=mine)
    raw: RawDataset = load_split(config, "test", train=False, seed=0).raw
    assert len(raw) > 700
    assert with_prescribed(config).augmentation == "none", "one that declares none"
    DATASETS[mine].augmentation = "flip"  # type: ignore[attr-defined]
    assert with_prescribed(config).augmentation == "flip"


def test_a_name_twice_is_an_error(mine: str) -> None:
    with pytest.raises(ValueError, match="'mine' is registered twice"):
        DATASETS.register(mine)(Digits)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        UserError, match=r"unknown data set \(--data.name\) 'cup' \(did you mean 'cub'\?\); known: coco, cub, "
    ):
        load_split(parse_config(["--data.name=cup"]).data, "train", train=True, seed=0)


def test_naming_a_data_set_imports_no_reader() -> None:
    code = "import sys, datasets.registry; print(sorted(m for m in sys.modules if m.startswith('datasets.')))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert "datasets.readers.cub" not in found and "datasets.readers.svhn" not in found
