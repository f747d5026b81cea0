"""What a model answered, image by image: the table that two evaluations are compared by."""

import pandas as pd

from common.processes import gather_blocks
from datasets.types import Batch, DatasetInfo
from metrics.comparison import LOGIT, PRESENT
from metrics.registry import MAX_NAMED_CLASSES
from metrics.types import Prediction

ANSWERS = "answers.csv"


class Answers:
    """An observer of an evaluation: one line per image with path, label, predicted class (numbers) and group.

    Where pictures show several classes, up to `MAX_NAMED_CLASSES`, also which of them (1 or 0), and their logits.
    """

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info
        self.frames: list[pd.DataFrame] = []

    def __call__(self, batch: Batch, prediction: Prediction) -> None:
        """Note every image of the batch."""
        frame = pd.DataFrame({"path": batch.paths, "label": batch.label.cpu().numpy()})
        frame["predicted"] = prediction.logits.argmax(1).cpu().numpy()
        frame["group"] = None if batch.group is None else batch.group.cpu().numpy()
        if batch.present is not None and self.info.num_classes <= MAX_NAMED_CLASSES:
            for kind, values in ((PRESENT, batch.present.int()), (LOGIT, prediction.logits)):
                frame[[f"{kind}{name}" for name in self.info.class_names]] = values.cpu().numpy()
        self.frames.append(frame)

    def csv(self) -> str:
        """The table of all processes, in the order of the split; every process must ask."""
        frames = gather_blocks(self.frames)
        return pd.concat(frames).to_csv(index=False, float_format="%.9g")
