"""From a model's outputs to other classes, against a plain loop."""

import math

import pytest
import torch

from datasets.types import DatasetInfo
from metrics import Prediction
from metrics.class_mapping import best_outputs, class_logits, to_dataset_classes
from tests.metrics.cases import many_classes

OWNERS = (2, -1, 0, 0, -1, 1, 2)
"""Seven outputs for three classes."""
RESTRICTED = DatasetInfo("nine", ("a", "b", "c"), class_of_output=OWNERS)
ARGMAX = DatasetInfo("nine", ("a", "b", "c", "none"), class_of_output=tuple(3 if c < 0 else c for c in OWNERS))
LOGITS = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))


def slow(row: list[float], info: DatasetInfo) -> list[float]:
    assert info.class_of_output is not None
    return [
        max((value for value, owner in zip(row, info.class_of_output, strict=True) if owner == c), default=-math.inf)
        for c in range(info.num_classes)
    ]


@pytest.mark.parametrize("info", [RESTRICTED, ARGMAX], ids=["restricted", "argmax"])
def test_each_class_scores_as_its_best_output(info: DatasetInfo) -> None:
    expected = torch.tensor([slow(row, info) for row in LOGITS.tolist()])
    assert torch.equal(class_logits(LOGITS, info), expected)


def test_the_two_rules() -> None:
    """argmax: the best of all outputs decides; restricted: the best of those that count."""
    best = LOGITS.argmax(1)
    argmax, restricted = class_logits(LOGITS, ARGMAX).argmax(1), class_logits(LOGITS, RESTRICTED).argmax(1)
    assert argmax.tolist() == [OWNERS[i] if OWNERS[i] >= 0 else 3 for i in best.tolist()]
    counted = torch.tensor([c >= 0 for c in OWNERS])
    assert restricted.tolist() == [OWNERS[i] for i in LOGITS.masked_fill(~counted, -math.inf).argmax(1).tolist()]
    assert torch.equal(argmax[argmax < 3], restricted[argmax < 3]) and (argmax == 3).any()


def test_two_hundred_of_a_thousand_is_a_choice_of_columns() -> None:
    owners = [-1] * 20
    for label, output in enumerate((3, 4, 11)):
        owners[output] = label
    logits = torch.randn(5, 20, generator=torch.Generator().manual_seed(1))
    info = DatasetInfo("few", ("a", "b", "c"), class_of_output=tuple(owners))
    assert info.num_outputs == 20 and torch.equal(class_logits(logits, info), logits[:, [3, 4, 11]])


@pytest.mark.parametrize("info", [RESTRICTED, ARGMAX], ids=["restricted", "argmax"])
def test_the_output_that_speaks_for_a_class(info: DatasetInfo) -> None:
    classes = torch.arange(50) % info.num_classes
    found = best_outputs(LOGITS, classes, info)
    chosen = LOGITS.gather(1, found[:, None])
    assert torch.equal(chosen, class_logits(LOGITS, info).gather(1, classes[:, None]))
    assert info.class_of_output is not None
    assert [info.class_of_output[i] for i in found.tolist()] == classes.tolist()


def test_where_the_outputs_are_the_classes_nothing_is_done() -> None:
    info, classes = many_classes(7), torch.arange(50) % 7
    assert info.num_outputs == 7
    assert class_logits(LOGITS, info) is LOGITS and best_outputs(LOGITS, classes, info) is classes


def test_a_prediction_in_classes() -> None:
    mask = torch.ones(50, 2, 2, dtype=torch.bool)
    found = to_dataset_classes(Prediction(LOGITS, stage_1_logits=-LOGITS, mask=mask), RESTRICTED)
    assert found.logits.shape == (50, 3) and found.mask is mask and found.stage_1_logits is not None
    assert torch.equal(found.stage_1_logits, class_logits(-LOGITS, RESTRICTED))
    assert to_dataset_classes(Prediction(LOGITS), RESTRICTED).stage_1_logits is None


def test_a_broken_answer_stays_broken() -> None:
    logits = LOGITS[:2].clone()
    logits[0, 3] = math.nan
    assert class_logits(logits, RESTRICTED).isnan().any(1).tolist() == [True, False]


def test_another_number_of_outputs_is_an_error() -> None:
    with pytest.raises(ValueError, match="logits have 6 outputs, 'nine' expects 7"):
        class_logits(LOGITS[:, :6], RESTRICTED)
