"""A small data set on disk in the published layout, and a copy of it to corrupt."""

import shutil
from pathlib import Path

import pytest

from datasets.config import DataConfig, SyntheticConfig
from datasets.synthetic.__main__ import write_cub_layout

TINY = DataConfig(image_size=48, synthetic=SyntheticConfig(train_images=40, val_images=12, test_images=16))


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only. CUB_200_2011 with 52 training images (Waterbirds: 40 and 12 for validation), 16 test images."""
    out = tmp_path_factory.mktemp("layout") / "birds"
    assert write_cub_layout(TINY, out) == 68
    return out


@pytest.fixture
def spoiled(layout: Path, tmp_path: Path) -> Path:
    """A copy of the folder CUB_200_2011 that a test may change."""
    return Path(shutil.copytree(layout / "CUB_200_2011", tmp_path / "CUB_200_2011"))
