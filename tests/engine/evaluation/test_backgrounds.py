"""BG-gap and challenge of ImageNet-9 against plain loops over composed images."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from common.errors import UserError
from datasets import Split
from engine.evaluation.backgrounds import background_gaps, measure_set, read_sets, run_challenge
from engine.run.config import RunConfig
from metrics.class_mapping import class_logits
from models.outputs import ClassifierOutput
from tests.tiny import CPU, tiny_config
from tests.trees import imagenet9_tree

OUTPUTS = (217, 10, 817, 33, 340, 300, 402, 370, 1)
"""One output for each of the nine classes."""


class BackgroundBiased(nn.Module):
    """Classifies by the colour of the first pixel, but bright backgrounds override some objects."""

    def __init__(self, sets: dict[str, Split], strength: float = 0.6) -> None:
        super().__init__()
        self.colours = torch.stack([sets["original"][i].image[:, 0, 0] for i in range(9)])
        self.strength = strength
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> ClassifierOutput:
        label = (images[:, None, :, 0, 0] - self.colours).abs().sum(2).argmin(1)
        logits = torch.zeros(len(images), 1000)
        logits[range(len(images)), torch.tensor(OUTPUTS)[label]] = 1 + 0.2 * label
        logits[:, 5] = self.strength * images[:, 0, 0, -1]  # an output that belongs to no class
        logits[:, 9] = self.strength * images[:, 1, 0, -1]  # a bird
        return ClassifierOutput(logits)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    root = imagenet9_tree(tmp_path_factory.mktemp("in9"))
    keys = {"data.name": "imagenet9", "data.root": str(root), "model.name": "vit", "data.eval_batch_size": 4}
    return tiny_config(root / "run", keys)


@pytest.fixture(scope="module")
def sets(config: RunConfig) -> dict[str, Split]:
    return read_sets(config, None, challenge=True)


def test_background_gap_is_the_difference_of_two_variants(config: RunConfig, sets: dict[str, Split]) -> None:
    model = BackgroundBiased(sets)
    assert len(sets) == 8 and all(len(split) == 9 for split in sets.values())
    results = {name: measure_set(model, split, config, CPU) for name, split in sets.items()}
    for name, split in sets.items():
        predicted = [class_logits(model(split[i].image[None]).logits, split.info).argmax().item() for i in range(9)]
        assert results[name]["accuracy"] == sum(p == label for label, p in enumerate(predicted)) / 9
    gap = results["mixed_same"]["accuracy"] - results["mixed_rand"]["accuracy"]
    assert gap != 0
    assert background_gaps(results) == {"bg_gap": gap}


def test_both_stages_have_a_gap() -> None:
    results = {
        "mixed_same": {"accuracy": 0.75, "stage_1/accuracy": 0.5},
        "mixed_rand": {"accuracy": 0.5, "stage_1/accuracy": 0.5},
    }
    assert background_gaps(results) == {"bg_gap": 0.25, "stage_1/bg_gap": 0.0}


@pytest.mark.parametrize("rule", ["argmax", "restricted"])
def test_challenge_combines_every_object_with_every_background(config: RunConfig, rule: str) -> None:
    config = replace(config, data=replace(config.data, output_rule=rule))  # type: ignore[arg-type]
    sets = read_sets(config, None, challenge=True)
    model, calls = BackgroundBiased(sets), []
    found = run_challenge(model, sets, config, CPU, calls.append)
    correct = []
    for i in range(9):
        sample = sets["original"][i]
        assert sample.mask is not None
        shown = [torch.where(sample.mask, sample.image, sets["only_bg_t"][j].image)[None] for j in range(9)]
        correct.append(all(class_logits(model(x).logits, sets["original"].info).argmax() == i for x in shown))
    assert found["challenge_accuracy"] == sum(correct) / 9 and 0 < sum(correct) < 9
    names = sets["original"].info.class_names
    assert {i: found[f"challenge_accuracy/class/{names[i]}"] for i in range(9)} == dict(enumerate(map(float, correct)))
    assert found["count/foregrounds"] == found["count/backgrounds"] == len(calls) == 9


def test_model_that_ignores_backgrounds_is_always_correct(config: RunConfig, sets: dict[str, Split]) -> None:
    found = run_challenge(BackgroundBiased(sets, strength=0.0), sets, config, CPU, lambda count: None)
    assert {value for key, value in found.items() if key.startswith("challenge")} == {1.0}


def test_missing_folders(tmp_path: Path, config: RunConfig) -> None:
    root = imagenet9_tree(tmp_path / "tree")
    config = replace(config, data=replace(config.data, root=str(root)))
    for folder in ("only_bg_t", "no_fg", "fg_mask", "mixed_rand"):
        (root / folder).rename(tmp_path / folder)
    with pytest.raises(UserError, match="mixed_rand/val is missing"):
        read_sets(config, None, challenge=False)
    (tmp_path / "mixed_rand").rename(root / "mixed_rand")
    assert list(read_sets(config, 5, challenge=False)) == [
        "original",
        "mixed_same",
        "mixed_rand",
        "mixed_next",
        "only_fg",
        "only_bg_b",
    ]
    with pytest.raises(UserError, match="only_bg_t/val is missing"):
        read_sets(config, None, challenge=True)
    (tmp_path / "only_bg_t").rename(root / "only_bg_t")
    with pytest.raises(UserError, match=r"--challenge: .*fg_mask contains no object masks"):
        read_sets(config, None, challenge=True)
