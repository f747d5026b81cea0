"""Regenerate golden.json, the recorded maps that test_golden.py compares with:

    python -m tests.explain.make_golden                           # all keys of the file, in their order
    python -m tests.explain.make_golden "rollout head_fusion=min" # and new ones

A key is a method with its options. Its value is the method's map of class 3 for `small.waves()` and
`small.wave_image()` on the 4 x 4 patch grid (maps at pixels are averaged over patches), with 7 significant digits. Run
this only after an intended change of a method's values, and check the diff: all other lines must stay the same.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml

from explain import explain
from tests.explain.small import wave_image, waves

FILE = Path(__file__).with_name("golden.json")


def golden_map(key: str) -> list[float]:
    """The 16 values of a key such as "rollout head_fusion=max"."""
    method, *options = key.split()
    given = {name: yaml.safe_load(value) for name, value in (option.split("=") for option in options)}
    found = explain(waves(), wave_image(), method, torch.tensor([3]), **given)
    return [float(f"{value:.7g}") for value in F.adaptive_avg_pool2d(found, 4).flatten().tolist()]


def to_json(golden: Mapping[str, Sequence[float]]) -> str:
    """One line per key, so that a diff shows which maps have changed."""
    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(values)}" for key, values in golden.items()) + "\n}\n"


def main(new_keys: Sequence[str]) -> None:
    """Compute every key of the file, and the new ones."""
    keys = dict.fromkeys([*json.loads(FILE.read_text()), *new_keys])
    FILE.write_text(to_json({key: golden_map(key) for key in keys}))


if __name__ == "__main__":
    main(sys.argv[1:])
