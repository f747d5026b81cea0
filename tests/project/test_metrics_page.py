"""The Python example of docs/metrics.md works as written."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()


@pytest.mark.slow
def test_heat_maps_are_scored_in_python(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(example, "example.py", "exec"), {})
    pointing, insertion_deletion = capsys.readouterr().out.splitlines()
    assert "'pointing/mask/energy/high': " in pointing and "'count/pointing/images': 8.0" in pointing
    assert "'insertion_deletion/deletion/low': " in insertion_deletion
