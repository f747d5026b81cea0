"""Files as published, where this machine has them: `../shared/data/published` beside the repository."""

from pathlib import Path

import pytest

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "published"


def published(name: str) -> Path:
    """The path of a published file or folder; skips the test where it is absent."""
    if not (PUBLISHED / name).exists():
        pytest.skip(f"needs {name} of ../shared/data/published")
    return PUBLISHED / name
