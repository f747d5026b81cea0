"""The notebook runs offline, from the repository root or its own folder, and holds small outputs of trained models."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ipykernel", reason="the extra `notebook` is not installed")
from notebooks.store_outputs import NOTEBOOK, execute

ROOT = Path(__file__).parents[2]
FIGURES = 4


def outputs(notebook: Any) -> tuple[list[Image.Image], list[str]]:
    """The pictures and the lines of text."""
    found = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    pngs = [output["data"]["image/png"] for output in found if "data" in output]
    text = "".join("".join(output.get("text", "")) for output in found if output.get("name") == "stdout")
    return [Image.open(io.BytesIO(base64.b64decode(png))) for png in pngs], text.splitlines()


def test_stored_outputs_are_small_and_of_trained_models() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    images, lines = outputs(notebook)
    assert len(images) == FIGURES and NOTEBOOK.stat().st_size < 500_000
    for image in images:
        assert max(image.size) < 800 and len(np.unique(np.asarray(image))) > 50
    assert lines[0].endswith("largest change of a logit 0")
    assert not any(text in NOTEBOOK.read_text() for text in (": random weights\\n", '"stderr"', "site-packages"))


@pytest.mark.slow
@pytest.mark.parametrize("given", ["drawn birds", "photograph"])
def test_it_runs(given: str, tmp_path: Path) -> None:
    photo = None
    if given == "photograph":
        photo = tmp_path / "photo.jpg"
        Image.effect_noise((150, 90), 60).convert("RGB").save(photo)
    images, lines = outputs(execute(NOTEBOOK.parent if photo else ROOT, photo))
    assert len(images) == FIGURES
    shapes = [line.split("(")[1] for line in lines if line.startswith("'gradcam'")]
    assert shapes == [f"{1 if photo else 4}, 12, 12)"]
    assert any(line.endswith("largest change of a logit 0") for line in lines)
