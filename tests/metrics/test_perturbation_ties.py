"""The order in which ABPC covers equal values."""

import pytest
import torch

from common.errors import UserError
from common.maps import minmax
from metrics.maps.removal import on_grid
from tests.metrics.covering import classifier, feed, metric, random_case, slow_cover


def test_published_ties_equal_one_image_one_step() -> None:
    """The k largest of m + 1 and of -m - 1 in float32, by torch.topk, each image and step on its own."""
    predict, (batch, maps) = classifier(), random_case()
    heat = minmax(on_grid(maps.clamp(min=0), (16, 16)))[0]
    cover = slow_cover(batch.image[0], "grey")
    expected = torch.zeros(2, 6, 11)
    for i, (image, label) in enumerate(zip(batch.image, batch.label, strict=True)):
        for order, values in enumerate((heat[i] + 1, -heat[i] - 1)):
            for step in range(11):
                seen = image.clone().flatten(1)
                chosen = values.flatten().topk(256 * step // 10).indices
                seen[:, chosen] = cover.flatten(1)[:, chosen]
                expected[order, i, step] = predict(seen.view(1, 3, 16, 16))[0].softmax(0)[label]
    found = feed(metric("abpc", ties="published"), batch, maps.clamp(min=0), predict)
    assert found.mean_curves()["morf"] == pytest.approx(expected[0].mean(0).tolist(), abs=1e-5)
    assert found.mean_curves()["lerf"] == pytest.approx(expected[1].mean(0).tolist(), abs=1e-5)
    by_position = feed(metric("abpc"), batch, maps.clamp(min=0), predict)
    assert by_position.compute()["abpc"] != pytest.approx(found.compute()["abpc"], abs=1e-5)
    assert "topk" in str(found.protocol()["ties"]) and by_position.protocol()["ties"] == "row-major position"


def test_without_ties_the_published_order_is_ours() -> None:
    predict, (batch, maps) = classifier(), random_case(maps_side=16)
    maps[0] = maps[1]  # without ties
    found = [feed(metric("abpc", ties=ties), batch, maps, predict).compute() for ties in ("position", "published")]
    assert found[0]["abpc"] == pytest.approx(found[1]["abpc"], abs=1e-12)
    with pytest.raises(UserError, match="ties='topk'"):
        metric("abpc", ties="topk")
