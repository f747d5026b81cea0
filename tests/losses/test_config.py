"""The ranges of `loss.*` values."""

from dataclasses import asdict

import pytest

from common.errors import UserError
from engine.run.command_line import parse_config
from losses.config import LossWeights

REFUSED = {
    "equivariance.max_angle": (-1,), "equivariance.max_shift": (-0.1,), "equivariance.scale": ("[0,1]",),
    "equivariance.images": (-1,), "classification.label_smoothing": (1, -0.1), "classification.mixup": (-1,),
    "classification.cutmix": (-1,), "classification.topk": (0,), "classification.topk_epsilon": (-1,),
    "classification.topk_max_margin": (-1,), "consistency.weight": (-1, "nan"), "consistency.mask_intensity": (-1,),
    "consistency.report_fraction": (0, 1.1), "border_weight": (-1,),
    **{f"weights.{name}": (-1,) for name in asdict(LossWeights())},
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in REFUSED.items() for value in values])
def test_values_out_of_range_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"loss.{key}") as caught:
        parse_config([f"--loss.{key}={value}"])
    assert "\n" not in str(caught.value)


def test_the_ends_of_the_ranges_are_accepted() -> None:
    ends = {
        "classification.label_smoothing": 0, "equivariance.images": 0, "consistency.report_fraction": 1,
        "consistency.weight": 0, "weights.border": 0,
    }  # fmt: skip
    loss = parse_config([f"--loss.{key}={value}" for key, value in ends.items()]).loss
    assert loss.consistency.report_fraction == 1 and loss.weights.border == 0 == loss.classification.label_smoothing
