"""The two-stage model's own maps."""

from dataclasses import replace
from typing import Literal

import pytest
import torch

from common.errors import UserError
from explain import explain, run_method
from explain.explained_model import explained_model, with_selection
from explain.inherent import Inherent
from models.selection import Selection
from tests.explain.small import CASES, two_stage
from tests.models.small import images, shaken


@pytest.mark.parametrize("stage", [1, 2])
def test_maps_are_the_models_own(stage: Literal[1, 2]) -> None:
    model = shaken(two_stage()).eval()
    x = images(3)
    selection = model.select(x).selection
    assert selection.maps is not None
    foreground = 1 - selection.maps[:, -1]
    wanted = {
        "mask": selection.mask.float(),
        "foreground": foreground,
        "selected": foreground * selection.mask,
        "part": selection.maps[:, 2],
    }
    for what, maps in wanted.items():
        torch.testing.assert_close(explain(model, x, "inherent", stage=stage, what=what, part=2), maps)
    torch.testing.assert_close(explain(model, x, "inherent", stage=stage), wanted["selected"])
    assert selection.mask.any() and not selection.mask.all()


def test_a_mask_from_outside() -> None:
    model, x = CASES["stage_2"].model(), images(3)
    mask = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    explained = with_selection(explained_model(model, x), Selection(mask))
    assert torch.equal(run_method(Inherent("mask"), explained, x), mask.float())
    with pytest.raises(UserError, match="--what: selected needs part maps"):
        run_method(Inherent(), explained, x)


@pytest.mark.parametrize(
    ("method", "message"),
    [(Inherent("part", 3), "--part: 3; the model has parts 0 to 2"), (Inherent("part", -1), "--part")],
)
def test_refused_parts(method: Inherent, message: str) -> None:
    with pytest.raises(UserError, match=message):
        explain(CASES["stage_2"].model(), images(1), method)


def test_refused_models_and_values() -> None:
    with pytest.raises(UserError, match="needs a two-stage model; this VisionTransformer"):
        explain(CASES["class_token"].model(), images(1), "inherent")
    with pytest.raises(UserError, match="--what: 'masks'; known: selected, mask, foreground, part"):
        replace(Inherent(), what="masks")  # type: ignore[arg-type]
