"""Every method's numbers on a ViT and an image of closed form, as they were when they agreed with the textbook forms.

Textbook and method could change together; these do not. golden.json: "method option=value ..." -> the map of class 3 on
the 4 x 4 patch grid, pixel maps averaged over patches.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from explain import METHODS, explain
from tests.explain.small import wave_image, waves

GOLDEN: dict[str, list[float]] = json.loads(Path(__file__).with_name("golden.json").read_text())


def on_grid(key: str) -> Tensor:
    method, *options = key.split()
    given = {name: yaml.safe_load(value) for name, value in (option.split("=") for option in options)}
    found = explain(waves(), wave_image(), method, torch.tensor([3]), **given)
    return F.adaptive_avg_pool2d(found, 4).flatten()


@pytest.mark.parametrize("key", GOLDEN)
def test_a_known_map(key: str) -> None:
    expected = torch.tensor(GOLDEN[key], dtype=torch.float64)
    torch.testing.assert_close(on_grid(key), expected, rtol=1e-5, atol=1e-7 * float(expected.abs().max()))


def test_every_method_has_one() -> None:
    """But the two-stage model's own maps, which no ViT has."""
    assert {key.split()[0] for key in GOLDEN} == set(METHODS) - {"inherent"}
