"""The ranges of `data.*` values: both ends are accepted or refused as the field's type says."""

import os

import pytest

from common.errors import UserError
from datasets import DataConfig
from engine.run.command_line import parse_config

REFUSED = {
    "batch_size": (0, -1, 1.5), "eval_batch_size": (0,), "workers": (-1, "many"), "val_fraction": (1, -0.1),
    "std": ("[0,1,1]", "[1,1,-1]"), "image_size": (0, "[32,0]"), "semi.alpha": (0, -1), "semi.batch_size": (0,),
    "semi.images_per_class": (-1,), "semi.unlabelled_size": (-1,), "synthetic.train_images": (0,),
    "synthetic.val_images": (0,), "synthetic.test_images": (0,), "synthetic.correlation": (1.5, -0.5, "nan"),
    "synthetic.tilt": (-0.1,), "synthetic.contrast": (-1,), "synthetic.noise": (-0.1, "nan"),
    "synthetic.any_hue": (1.1, -0.1), "synthetic.hue_gap": (1.1, -0.1), "synthetic.colour_cue": (1.1, -0.1),
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in REFUSED.items() for value in values])
def test_values_out_of_range_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"data.{key}") as caught:
        parse_config([f"--data.{key}={value}"])
    assert "\n" not in str(caught.value)


def test_the_ends_of_the_ranges_are_accepted() -> None:
    ends = {
        "batch_size": 1, "workers": 0, "val_fraction": 0, "semi.images_per_class": 0, "synthetic.correlation": 1,
        "synthetic.any_hue": 0, "synthetic.noise": 0, "synthetic.hue_gap": 1,
    }  # fmt: skip
    data = parse_config([f"--data.{key}={value}" for key, value in ends.items()]).data
    assert (data.batch_size, data.workers, data.val_fraction, data.semi.images_per_class) == (1, 0, 0.0, 0)
    assert (data.synthetic.correlation, data.synthetic.noise, data.synthetic.hue_gap) == (1.0, 0.0, 1.0)


def test_values_with_a_range_stay_plain_numbers() -> None:
    """A subclass of int or float could not be written as YAML."""
    data = parse_config(["--data.batch_size=3", "--data.std=[1,1,1]", "--data.synthetic.correlation=1"]).data
    assert [type(n) for n in (data.batch_size, *data.std, data.synthetic.correlation)] == [int, *[float] * 4]
    assert type(DataConfig().batch_size) is int


@pytest.mark.parametrize(
    ("cores", "together", "expected"), [(1, "", 1), (2, "", 1), (6, "", 5), (64, "", 8), (64, "16", 3), (4, "8", 1)]
)
def test_loading_processes_follow_the_machine(
    cores: int, together: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`together`: processes that torchrun started here."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if together:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", together or "16")  # without torchrun it says nothing of the cores
    assert parse_config([]).data.loading_processes == expected
    assert parse_config(["--data.workers=3"]).data.loading_processes == 3
