"""The table predictions.csv."""

import io

import pandas as pd
import torch

from datasets.types import Batch, DatasetInfo
from engine.evaluation.records import PredictionTable
from metrics.comparison import prediction_metrics
from metrics.types import Prediction

LOGITS = torch.tensor([[1.0, 0.5], [-1.0, 2.0], [0.25, -3.0]])


def table(predictions: PredictionTable, **annotations: torch.Tensor) -> pd.DataFrame:
    for rows in (slice(2), slice(2, 3)):
        own = {name: values[rows] for name, values in annotations.items()}
        names = tuple("abc"[rows])
        predictions(
            Batch(torch.zeros(len(names), 3, 1, 1), torch.tensor([0, 0, 1])[rows], names, **own),
            Prediction(LOGITS[rows]),
        )  # type: ignore[arg-type]
    return pd.read_csv(io.StringIO(predictions.csv()), index_col="path")


def test_table_of_single_label_images() -> None:
    found = table(PredictionTable(DatasetInfo("two", ("x", "y"))), group=torch.tensor([0, 3, 3]))
    assert list(found.index) == ["a", "b", "c"] and list(found) == ["label", "predicted", "group"]
    assert found["predicted"].tolist() == [0, 1, 0] and found["group"].tolist() == [0, 3, 3]
    results = prediction_metrics(found)(torch.ones(3).numpy())
    assert results["accuracy"] == 1 / 3 and results["worst_group_accuracy"] == 0


def test_multi_label_images() -> None:
    present = torch.tensor([[True, False], [False, True], [True, True]])
    info = DatasetInfo("two", ("x", "y"), multi_label=True)
    found = table(PredictionTable(info), present=present)
    assert torch.equal(torch.tensor(found[["present/x", "present/y"]].to_numpy()), present.long())
    assert torch.equal(torch.tensor(found[["logit/x", "logit/y"]].to_numpy()).float(), LOGITS)
    assert found["group"].isna().all()
    assert prediction_metrics(found)(torch.ones(3).numpy())["micro_f1"] == 6 / 8
    many = DatasetInfo("many", tuple(map(str, range(21))), multi_label=True)
    assert list(table(PredictionTable(many), present=present)) == ["label", "predicted", "group"], "too many classes"
