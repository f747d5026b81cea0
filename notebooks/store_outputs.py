"""Run the notebook and store its outputs in it: python notebooks/store_outputs.py (after make quickstart).

Its PNGs get 96 colours, which makes them a quarter as large. Warnings are left out.
"""

import base64
import io
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = Path(__file__).with_name("visualization.ipynb")


def execute(folder: Path, photo: Path | None = None) -> Any:
    """The notebook after running in `folder`; with `photo` in place of the drawn birds. Raises CellExecutionError."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if photo:
        for cell in notebook.cells:
            cell.source = cell.source.replace("photo = None", f"photo = Path({str(photo)!r})")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def store(notebook: Any) -> None:
    """Write the executed notebook over the one that was read."""
    for cell in notebook.cells:
        cell.metadata = {}
        outputs = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
        for output in outputs:
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = few_colours(output["data"]["image/png"])
        if cell.cell_type == "code":
            cell.outputs = outputs
    notebook.metadata = nbformat.read(NOTEBOOK, as_version=4).metadata
    nbformat.write(notebook, NOTEBOOK)


def few_colours(png: str) -> str:
    """A PNG in base64 with 96 colours."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        image.convert("RGB").quantize(96).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


if __name__ == "__main__":
    store(execute(NOTEBOOK.parent))
