"""Drawn photographs to compose."""

from pathlib import Path

import pytest

from tests.datasets.composition.photographs import photograph, save, save_cutout, write_sources


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """objects/CLASS/*.png with alpha, land/, water/; labels.txt."""
    for label, name in enumerate(("hen house", "gull")):
        for i in range(8):
            save_cutout(tmp_path / "objects" / name / f"{i}.png", seed=10 * label + i)
    for place in ("land", "water"):
        for i in range(4):
            save(tmp_path / place / f"{i}.jpg", photograph(100 * len(place) + i))
    (tmp_path / "labels.txt").write_text("land hen house\nwater gull\n")
    return tmp_path
