"""Localisation against the published numbers, a textbook version pixel by pixel, and worked examples."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from common.errors import UserError
from metrics.maps.boxes import component_boxes, fill_boxes, fill_components
from metrics.maps.per_image import MAP_METRICS
from metrics.maps.pixels import foreground, heat
from tests.metrics.map_cases import CONSTANT, EMPTY, FAILED, INFO, SIZE, feed, one, random_maps

SCORES = ("accuracy", "iou", "dice", "precision", "recall")


def published_case() -> torch.Tensor:
    i, j = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    first = torch.exp(-((i - 4) ** 2 + (j - 9) ** 2) / 8)
    return first + 0.8 * torch.exp(-((i - 11) ** 2 + (j - 3) ** 2) / 3)


def test_published_numbers() -> None:
    found = foreground(heat(published_case()[None], (224, 224)), 0.5)
    boxes = component_boxes(found[0].numpy())
    assert sorted(map(tuple, boxes.tolist())) == [(37, 165, 75, 203), (114, 34, 190, 110)]
    true = torch.tensor([[100.0, 40, 190, 130], [20, 150, 80, 215]])
    assert fill_components(found, "inclusive").sum() == 7450
    assert fill_boxes(true.numpy(), (224, 224), "inclusive").sum() == 12307
    metric = MAP_METRICS["localization"](INFO, threshold=0.5, edges="inclusive")
    results = feed(metric, *one(published_case(), (224, 224), boxes=(true,)), 1).compute()
    golden = dict(zip(SCORES, (0.884786, 0.547263, 0.707395, 0.937987, 0.567807), strict=True))
    assert {score: round(results[f"localization/boxes/{score}"], 6) for score in SCORES} == golden


def slow_pieces(mask: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """The box of each 8-connected piece, by flooding."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    while left:
        waiting = [left.pop()]
        piece = []
        while waiting:
            y, x = waiting.pop()
            piece.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            waiting += near
        ys, xs = zip(*piece, strict=True)
        yield min(xs), min(ys), max(xs) + 1, max(ys) + 1


@pytest.mark.parametrize("density", [0.02, 0.2, 0.5])
def test_pieces_are_8_connected(density: float) -> None:
    mask = np.random.default_rng(0).random((30, 40)) < density
    boxes = component_boxes(mask)
    assert len(boxes) > 1 or density > 0.3
    assert sorted(map(tuple, boxes.tolist())) == sorted(slow_pieces(mask))


def slow_fill(boxes: list[list[float]], size: tuple[int, int], inclusive: bool) -> np.ndarray:
    filled = np.zeros(size, bool)
    for y in range(size[0]):
        for x in range(size[1]):
            for x0, y0, x1, y1 in boxes:
                if inclusive:
                    filled[y, x] |= int(x0) <= x <= int(x1) and int(y0) <= y <= int(y1)
                else:
                    filled[y, x] |= x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1
    return filled


def slow_scores(found: np.ndarray, true: np.ndarray, epsilon: float) -> dict[str, float]:
    tp = fp = fn = tn = 0
    for f, t in zip(found.flatten().tolist(), true.flatten().tolist(), strict=True):
        tp, fp, fn, tn = tp + (f and t), fp + (f and not t), fn + (t and not f), tn + (not f and not t)

    def quotient(a: float, b: float) -> float:
        return (a + epsilon) / (b + epsilon) if b + epsilon else 0.0

    return {
        "accuracy": quotient(tp + tn, tp + tn + fp + fn),
        "iou": quotient(tp, tp + fp + fn),
        "dice": quotient(2 * tp, 2 * tp + fp + fn),
        "precision": quotient(tp, tp + fp),
        "recall": quotient(tp, tp + fn),
    }


@pytest.mark.parametrize("edges", ["exact", "inclusive"])
@pytest.mark.parametrize("threshold", [0.5, None])
def test_against_the_textbook(edges: str, threshold: float | None) -> None:
    batch, explanation = random_maps()
    assert batch.boxes is not None and batch.mask is not None
    results = feed(MAP_METRICS["localization"](INFO, threshold=threshold, edges=edges), batch, explanation, 7).compute()
    epsilon, inclusive = (1e-5, True) if edges == "inclusive" else (0.0, False)
    table: dict[str, list[float]] = {}
    for i in (i for i in range(len(batch)) if i != EMPTY):
        pixels = interpolate(explanation.maps[i][None, None], size=SIZE, mode="bilinear", align_corners=False)[0, 0]
        if i in (FAILED, CONSTANT):
            pixels = torch.zeros(SIZE)
        m = ((pixels - pixels.min()) / (pixels.max() - pixels.min()).clamp(min=1e-9)).numpy()
        above = m > (torch.from_numpy(m).mean().item() if threshold is None else threshold)
        pieces = [[float(value) for value in box] for box in slow_pieces(above)]
        boxed = slow_scores(
            slow_fill(pieces, SIZE, inclusive), slow_fill(batch.boxes[i].tolist(), SIZE, inclusive), epsilon
        )
        masked = slow_scores(above, batch.mask[i].numpy(), epsilon)
        correct = explanation.logits[i].argmax() == batch.label[i]
        for name, value in [(f"boxes/{k}", v) for k, v in boxed.items()] + [
            (f"mask/{k}", v) for k, v in masked.items()
        ]:
            table.setdefault(f"localization/{name}/all", []).append(value)
            if correct:
                table.setdefault(f"localization/{name}", []).append(value)
    assert len(table) == 20
    for key, values in table.items():
        assert results[key] == pytest.approx(sum(values) / len(values), abs=1e-12), key
    assert len(table["localization/boxes/iou"]) < len(table["localization/boxes/iou/all"])


def test_counts() -> None:
    batch, explanation = random_maps()
    results = feed(MAP_METRICS["localization"](INFO), batch, explanation, 7).compute()
    correct = (explanation.logits.argmax(1) == batch.label).sum().item()
    counts = {key.removeprefix("count/localization/"): value for key, value in results.items() if "count/" in key}
    assert counts == {
        "images": 23, "correct": correct, "with_boxes": 22, "with_mask": 22, "nan_maps": 1, "constant_maps": 1,
    }  # fmt: skip
    assert "count/localization/images/low" not in results and "localization/boxes/iou/all/low" in results


def test_a_box_that_is_the_map_scores_one() -> None:
    maps = torch.zeros(8, 8)
    maps[2:4, 1:5] = 1.0
    true = torch.tensor([[1.0, 2.0, 5.0, 4.0]])
    results = feed(MAP_METRICS["localization"](INFO), *one(maps, (8, 8), boxes=(true,)), 1).compute()
    assert [results[f"localization/boxes/{score}"] for score in SCORES] == [1.0] * 5
    published = MAP_METRICS["localization"](INFO, edges="inclusive")
    results = feed(published, *one(maps, (8, 8), boxes=(true,)), 1).compute()
    assert [results[f"localization/boxes/{score}"] for score in SCORES] == [1.0] * 5, "both are one pixel too large"
    assert fill_boxes(true.numpy(), (8, 8), "inclusive").sum() == 15 and fill_boxes(true.numpy(), (8, 8)).sum() == 8


@pytest.mark.parametrize(
    "maps", [torch.full((2, 2), torch.nan), torch.full((2, 2), 0.1), torch.tensor([[1, torch.inf]])]
)
def test_maps_that_say_nothing_find_nothing(maps: torch.Tensor) -> None:
    """0.1 enlarged to 7 x 7 is no longer exactly constant."""
    case = one(maps, (7, 7), boxes=(torch.tensor([[0.0, 0.0, 7.0, 1.0]]),))
    exact = feed(MAP_METRICS["localization"](INFO), *case, 1).compute()
    assert [exact[f"localization/boxes/{score}"] for score in SCORES] == [42 / 49, 0, 0, 0, 0]
    assert exact["count/localization/nan_maps"] + exact["count/localization/constant_maps"] == 1
    published = feed(MAP_METRICS["localization"](INFO, edges="inclusive"), *case, 1).compute()
    assert published["localization/boxes/precision"] == 1.0 and published["localization/boxes/iou"] < 1e-5


def test_boxes_outside_the_image() -> None:
    boxes = np.array([[-5.0, -3.0, 2.0, 2.0], [6.0, 6.0, 20.0, 20.0], [-9.0, -9.0, -1.0, -1.0]])
    assert fill_boxes(boxes, (8, 8)).sum() == 8
    assert fill_boxes(boxes[2:], (8, 8), "inclusive").sum() == 0
    assert fill_boxes(np.zeros((0, 4)), (8, 8)).sum() == 0


def test_only_wrong_answers() -> None:
    batch, explanation = one(torch.tensor([[0.0, 1.0]]), (2, 4), mask=torch.ones(1, 2, 4, dtype=torch.bool))
    explanation.logits[0, 0] = -9
    results = feed(MAP_METRICS["localization"](INFO), batch, explanation, 1).compute()
    assert np.isnan(results["localization/mask/iou"]) and results["localization/mask/iou/all"] == 0.5
    assert np.isnan(results["localization/mask/iou/low"]) and "localization/boxes/iou" not in results


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.0}, r"threshold=1\.0 must be in \[0, 1\)"),
        ({"threshold": float("nan")}, "threshold=nan must be in"),
        ({"edges": "wide"}, "edges='wide' is unknown; known: exact, inclusive"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MAP_METRICS["localization"](INFO, **options)


@pytest.mark.parametrize("name", ["localization", "pointing"])
def test_a_data_set_without_objects(name: str) -> None:
    with pytest.raises(UserError, match=f"metric '{name}' needs boxes or masks.*drop it from --metrics"):
        MAP_METRICS[name](INFO).update(*one(torch.rand(2, 2), (4, 4)))
