"""Every method's map of a ViT and an image in closed form, recorded when it agreed with the textbook form.

A textbook form and a method could change together; golden.json does not. See make_golden.py for its contents.
"""

import json
from pathlib import Path

import pytest
import torch

from explain import METHODS
from tests.explain import make_golden

GOLDEN: dict[str, list[float]] = json.loads(make_golden.FILE.read_text())


def assert_golden(key: str, found: list[float]) -> None:
    expected = torch.tensor(GOLDEN[key], dtype=torch.float64)
    atol = 1e-7 * float(expected.abs().max())
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("key", GOLDEN)
def test_a_known_map(key: str) -> None:
    assert_golden(key, make_golden.golden_map(key))


def test_every_method_has_one() -> None:
    """Except for `inherent`, which needs a two-stage model."""
    assert {key.split()[0] for key in GOLDEN} == set(METHODS) - {"inherent"}


def test_the_script_reproduces_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same keys and layout, and values equal up to rounding, which may differ between machines."""
    committed, written = make_golden.FILE.read_text(), tmp_path / "golden.json"
    written.write_text(committed)
    monkeypatch.setattr(make_golden, "FILE", written)
    make_golden.main(["gradient", "rollout head_fusion=min"])
    remade = json.loads(written.read_text())
    assert list(remade) == [*GOLDEN, "rollout head_fusion=min"]
    for key in GOLDEN:
        assert_golden(key, remade[key])
    assert make_golden.to_json(GOLDEN) == committed
