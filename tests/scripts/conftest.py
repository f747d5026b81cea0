"""Fixtures of the script tests: a data set on disk, trained runs."""

from pathlib import Path

import pytest

from datasets.config import DataConfig, SyntheticConfig
from datasets.synthetic.__main__ import write_cub_layout
from tests.scripts.method_runs import measure, runs

__all__ = ["birds", "measure", "runs"]


@pytest.fixture(scope="session")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated birds in the published layout of CUB and Waterbirds: 24 train, 12 val, 12 test, 48 pixels."""
    out = tmp_path_factory.mktemp("data") / "birds"
    options = SyntheticConfig(train_images=24, val_images=12, test_images=12, correlation=0.75)
    write_cub_layout(DataConfig(image_size=48, synthetic=options), out)
    return out
