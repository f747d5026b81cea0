"""A sample of a split: the same records every time, none twice, each as in the whole."""

import pytest
import torch

from datasets import DataConfig, Split, eval_loader, load_split
from datasets.config import SyntheticConfig
from datasets.subset import sample_split


@pytest.fixture(scope="module")
def whole() -> Split:
    config = DataConfig(image_size=32, synthetic=SyntheticConfig(test_images=40))
    return load_split(config, "test", train=False, seed=3)


def paths(split: Split) -> list[str]:
    return [path for batch in eval_loader(split, batch_size=8, workers=0) for path in batch.paths]


def test_every_record_is_that_of_the_whole(whole: Split) -> None:
    part, everything = sample_split(whole, 15), paths(whole)
    names = paths(part)
    assert len(part) == len(names) == len(set(names)) == 15
    indices = [everything.index(name) for name in names]
    assert indices == sorted(indices) and indices != list(range(15))
    assert part.info == whole.info
    assert list(part.labels) == [whole.labels[i] for i in indices]
    assert whole.raw.groups is not None and part.raw.groups == [whole.raw.groups[i] for i in indices]
    for i, index in enumerate(indices):
        mine, theirs = part[i], whole[index]
        assert torch.equal(mine.image, theirs.image) and torch.equal(mine.mask, theirs.mask)
        assert (mine.label, mine.group, mine.path) == (theirs.label, theirs.group, theirs.path)
        assert (mine.label, mine.group) == (part.labels[i], part.raw.groups[i])


def test_the_same_records_every_time_and_more_of_them_in_larger_samples(whole: Split) -> None:
    assert paths(sample_split(whole, 15)) == paths(sample_split(whole, 15))
    assert set(paths(sample_split(whole, 5))) < set(paths(sample_split(whole, 15)))


@pytest.mark.parametrize("count", [40, 41, 1000])
def test_all_where_there_are_no_more(count: int, whole: Split) -> None:
    assert sample_split(whole, count) is whole


def test_a_data_set_without_groups(whole: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole.raw, "groups", None)
    assert sample_split(whole, 3).raw.groups is None
