"""A data set on disk for the scripts, and scripts run as a user runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

from datasets.config import DataConfig, SyntheticConfig
from datasets.synthetic_layout import write_cub_layout

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated birds in the published layout of CUB and Waterbirds: 24 train, 12 val, 12 test pictures of 48 pixels."""
    out = tmp_path_factory.mktemp("data") / "birds"
    dials = SyntheticConfig(train_images=24, val_images=12, test_images=12, correlation=0.75)
    write_cub_layout(DataConfig(image_size=48, synthetic=dials), out)
    return out


def command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / script), *arguments]


def run_script(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(script, *arguments), cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
