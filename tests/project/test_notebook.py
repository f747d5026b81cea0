"""The notebook is committed without outputs and runs offline, from the repository root or its own folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "visualization.ipynb"


def code_cells() -> list[dict[str, object]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_it_is_committed_without_outputs() -> None:
    assert len(code_cells()) >= 5
    assert [cell for cell in code_cells() if cell["outputs"] or cell["execution_count"]] == []


@pytest.mark.slow
@pytest.mark.parametrize("folder", [ROOT, NOTEBOOK.parent], ids=["root", "notebooks"])
def test_it_runs(folder: Path, tmp_path: Path) -> None:
    plots = tmp_path / "plots"
    plots.mkdir()
    save = f"\nfor n in plt.get_fignums():\n    plt.figure(n).savefig({str(plots)!r} + f'/{{n}}.png')\n"
    script = tmp_path / "notebook.py"
    script.write_text("\n".join("".join(cell["source"]) for cell in code_cells()) + save)  # type: ignore[arg-type]
    environment = os.environ | {"MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(list(plots.iterdir())) == 4
    assert done.stdout.splitlines()[-1].endswith("largest change of a logit 0")
