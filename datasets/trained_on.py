"""What a model was trained on, stored with its weights, and other data with its labels.

A model's outputs have the order of the classes in its training data. Folders of other data may sort differently or be
fewer, so labels are matched by the names of the classes, never by their numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import parse_json, read_file
from common.schema import from_values
from datasets.config import DataConfig, Triple, earlier_view
from datasets.formats.notices import say_once
from datasets.split import Split
from datasets.types import UNLABELLED, DatasetInfo, RawDataset, RawSample

INPUT = ("image_size", "mean", "std", "evaluation", "interpolation", "crop")
"""Keys of `data` that make an image the input of a network."""


@dataclass(frozen=True)
class TrainedOn:
    """The classes and the input of a trained model: the block "data" of best/config.json."""

    name: str
    """data.name of the training data."""
    class_names: tuple[str, ...]
    """Of each output."""
    class_keys: tuple[str, ...] | None
    """See `DatasetInfo.class_keys`."""
    group_names: tuple[str, ...] | None
    multi_label: bool
    image_size: tuple[int, int]
    """(height, width), pixels."""
    mean: Triple
    std: Triple
    evaluation: str
    interpolation: str
    crop: float
    """The evaluation transform: data.evaluation, data.interpolation, data.crop."""

    @classmethod
    def of(cls, config: DataConfig, info: DatasetInfo) -> "TrainedOn":
        """What a run with this data config and data set is trained on."""
        return cls(
            config.name, info.class_names, info.class_keys, info.group_names, info.multi_label, config.size_hw,
            *config.normalisation, config.evaluation, config.interpolation, config.crop,
        )  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainedOn":
        """Read what `as_dict` wrote, in earlier versions too. Raises UserError naming a key for anything else."""
        if not isinstance(values, Mapping):
            raise UserError("data is a group of keys, not a value")
        return from_values(cls, {**earlier_view(values), **values}, "data")

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @property
    def keys(self) -> tuple[str, ...]:
        """What identifies each class."""
        return self.class_keys or self.class_names

    def data_config(self) -> DataConfig:
        """A config with the evaluation transform of the model's input."""
        given = {name: getattr(self, name) for name in INPUT}
        return DataConfig(**given)


def read_trained_on(file: Path) -> TrainedOn | None:
    """The block "data" of best/config.json; None if it has none or there is no such file.

    Raises UserError if the file is damaged: labels must not be taken by number then.
    """
    if not file.exists():
        return None
    try:
        content = parse_json(read_file(file))
        if not isinstance(content, dict):
            raise ValueError("it has no keys")
        stored = TrainedOn.from_dict(content["data"]) if "data" in content else None
        if stored and content.get("num_classes", len(stored.class_names)) != len(stored.class_names):
            raise ValueError(f"{len(stored.class_names)} names of {content['num_classes']} classes")
        return stored
    except (OSError, ValueError, RecursionError, UserError) as error:
        what = " ".join(str(error).split())[:200]
        raise UserError(f"{file} is damaged ({what}); delete it, and train.py --resume writes it again") from None


class Relabelled:
    """The records of `raw` with the labels of a trained model; a RawDataset."""

    def __init__(self, raw: RawDataset, trained: TrainedOn, new_labels: Sequence[int]) -> None:
        """`new_labels`: label in `raw` -> label of the model."""
        self.raw, self.new_labels = raw, new_labels
        self.info = replace(raw.info, class_names=trained.class_names, class_keys=trained.class_keys)
        self.labels = [self._new(label) for label in raw.labels]

    @property
    def groups(self) -> Sequence[int] | None:
        """Group of every record, unchanged."""
        return self.raw.groups

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> RawSample:
        """One record with its label, the classes of its boxes, and the classes in the image as the model has them."""
        raw, boxes, present = self.raw.read(index), None, None
        if raw.box_labels is not None:
            boxes = np.array([self._new(int(label)) for label in raw.box_labels], np.int64)
        if raw.present is not None:
            present = np.zeros(self.info.num_classes, bool)
            present[[self.new_labels[label] for label in np.flatnonzero(raw.present).tolist()]] = True
        return replace(raw, label=self._new(raw.label), box_labels=boxes, present=present)

    def _new(self, label: int) -> int:
        return label if label == UNLABELLED else self.new_labels[label]


def with_trained_labels(split: Split, trained: TrainedOn, source: str) -> Split:
    """The split with the labels of the model `source`, matched by the names of the classes.

    Upper and lower case are the same where that is unambiguous. Data sets that map a model's outputs to their classes
    (`DatasetInfo.class_of_output`) are returned unchanged. Raises UserError for a class that the model does not have.
    """
    info = split.info
    if info.class_of_output is not None or info.keys == trained.keys:
        return split
    known = {key: label for label, key in enumerate(trained.keys)}
    folded = {key.casefold(): label for key, label in known.items()}
    if len(folded) < len(known):
        folded = {}
    unknown = [key for key in info.keys if key not in known and key.casefold() not in folded]
    if unknown:
        raise UserError(
            f"{source} was not trained on the class{'es' * (len(unknown) > 1)} {listed(unknown)}, which "
            f"{info.name} has; its classes are {listed(trained.keys)}; rename these classes, or move them away"
        )
    new_labels = [known.get(key, folded.get(key.casefold(), 0)) for key in info.keys]
    if len(set(new_labels)) < len(new_labels):
        raise UserError(f"{info.name} has classes that differ in upper and lower case only; rename one of each")
    say_once(f"labels of {info.name} are matched to the classes of {source} by name, not by number")
    return split.over(Relabelled(split.raw, trained, new_labels))


def check_same_classes(info: DatasetInfo, trained: TrainedOn, source: str) -> None:
    """Raise UserError unless the classes are those of the model `source`, in the same order."""
    if info.keys != trained.keys:
        raise UserError(
            f"{source} was trained on the classes {listed(trained.keys)}, not {listed(info.keys)} in this order; "
            "give the same data"
        )


def listed(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
