"""ExplanationEvaluator: every method with every metric, no map computed twice, maps read from a file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.errors import UserError
from datasets.types import Batch, DatasetInfo
from engine.explanation.evaluator import ExplanationEvaluator, chosen_methods, options_of
from engine.explanation.map_store import MapProvenance, MapReader, MapWriter
from engine.run.memory import AutoBatchSize
from explain import METHODS, Explainer, explain
from explain.explained_model import ExplainedModel
from explain.options import build_methods
from metrics.maps.per_image import Columns, MapMetric
from metrics.types import Explanation
from models.two_stage import TwoStageModel
from tests.explain.small import CLASSES, Case, two_stage, vit
from tests.tiny import CPU

INFO = DatasetInfo(name="things", class_names=tuple("abcde"))
MODEL = Case(vit).model()
IMAGES = Case(vit).images(10)
with torch.no_grad():
    PREDICTED = MODEL(IMAGES).argmax(1)
WRONG = (1, 4, 5, 9)
LABELS = PREDICTED.index_add(0, torch.tensor(WRONG), torch.ones(len(WRONG), dtype=torch.int64)) % CLASSES


def batches(size: int) -> list[Batch]:
    rows = torch.arange(10).split(size)
    return [Batch(IMAGES[r], LABELS[r], tuple(f"{i}.jpg" for i in r.tolist())) for r in rows]


class Keeper(MapMetric):
    """Keeps its inputs."""

    columns = ("mean",)

    def __init__(self, target: Literal["predicted", "label"]) -> None:
        super().__init__(INFO)
        self.target = target  # type: ignore[misc]
        self.maps: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.asked: list[Tensor] = []

    def rows(self, batch: Batch, explanation: Explanation) -> Tensor:
        self.maps.append(explanation.maps)
        self.logits.append(explanation.logits)
        self.asked.append(explanation.predict(batch.image.repeat(3, 1, 1, 1))[: len(batch)])
        return explanation.maps.flatten(1).double().mean(1, keepdim=True)

    def summarise(self, columns: Columns, weight: np.ndarray) -> dict[str, float]:
        return {}

    def protocol(self) -> dict[str, object]:
        return {}

    @property
    def seen(self) -> Tensor:
        return torch.cat(self.maps)


@dataclass(frozen=True)
class Recorded(Explainer):
    """A constant map with the target's number; records every call."""

    class_specific: ClassVar[bool] = True
    calls: list[list[int]] = field(default_factory=list)

    def maps(self, subject: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        assert targets is not None
        self.calls.append(targets.tolist())
        return targets[:, None, None].expand(-1, 4, 4).float()


class Agnostic(Recorded):
    class_specific: ClassVar[bool] = False


def bench(
    methods: dict[str, Explainer], targets: Sequence[Literal["predicted", "label"]], model: nn.Module = MODEL,
    limit: int = 100, **more: Any,
) -> tuple[ExplanationEvaluator, dict[str, dict[str, Keeper]]]:  # fmt: skip
    keepers = {name: {target: Keeper(target) for target in targets} for name in methods}
    return ExplanationEvaluator(
        model, methods, keepers, AutoBatchSize(limit, lambda text: None), **{"info": INFO, **more}
    ), keepers  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 4, 10])
def test_label_is_explained_only_for_wrong_predictions(size: int) -> None:
    method = Recorded()
    run, keepers = bench({"recorded": method}, ("predicted", "label"))
    run.run(batches(size), CPU)
    assert torch.equal(keepers["recorded"]["predicted"].seen[:, 0, 0], PREDICTED.float())
    assert torch.equal(keepers["recorded"]["label"].seen[:, 0, 0], LABELS.float())
    explained = [target for call in method.calls for target in call]
    assert len(explained) == 10 + len(WRONG) == run.timings["recorded"].maps
    assert sorted(explained) == sorted([*PREDICTED.tolist(), *LABELS[list(WRONG)].tolist()])


def test_highest_output_of_a_class_is_explained() -> None:
    """Outputs 1 and 4 are class 0, outputs 0 and 2 class 1, output 3 none. Metrics get classes."""
    info = DatasetInfo("other", ("a", "b"), class_of_output=(1, 0, 1, -1, 0))
    with torch.no_grad():
        outputs = MODEL(IMAGES)
    scores = torch.stack([outputs[:, [1, 4]].amax(1), outputs[:, [0, 2]].amax(1)], 1)
    predicted, labels = scores.argmax(1), torch.arange(10) % 2
    best = torch.stack([outputs[:, [1, 4]].argmax(1) * 3 + 1, outputs[:, [0, 2]].argmax(1) * 2], 1)
    method = Recorded()
    run, keepers = bench({"recorded": method}, ("predicted", "label"), info=info)
    run.run([Batch(IMAGES, labels, tuple("0123456789"))], CPU)
    kept = keepers["recorded"]
    assert torch.allclose(torch.cat(kept["label"].logits), scores) and kept["label"].asked[0].shape == (10, 2)
    assert torch.equal(kept["predicted"].seen[:, 0, 0], best.gather(1, predicted[:, None])[:, 0].float())
    assert torch.equal(kept["label"].seen[:, 0, 0], best.gather(1, labels[:, None])[:, 0].float())
    assert len({target for call in method.calls for target in call}) > 2


@pytest.mark.parametrize(
    ("method", "targets"),
    [(Agnostic(), ("predicted", "label")), (Recorded(), ("predicted",))],
    ids=["agnostic", "unasked"],
)
def test_one_map_per_image_if_the_second_is_not_needed(method: Recorded, targets: Any) -> None:
    """For a method that ignores classes, or if no metric needs the map of the label."""
    run, keepers = bench({"recorded": method}, targets)
    run.run(batches(4), CPU)
    assert sum(map(len, method.calls)) == 10
    for keeper in keepers["recorded"].values():
        assert torch.equal(keeper.seen[:, 0, 0], PREDICTED.float())


def test_observers_see_the_predicted_classes_maps_of_every_method() -> None:
    run, _ = bench({"a": Recorded(), "b": Agnostic()}, ("label",))
    seen: list[tuple[Batch, Tensor, Any]] = []
    run.run(batches(4), CPU, [lambda *what: seen.append(what)])
    assert [len(batch) for batch, _, _ in seen] == [4, 4, 2]
    for name in ("a", "b"):
        assert torch.equal(torch.cat([maps[name][:, 0, 0] for _, _, maps in seen]), PREDICTED.float())
    assert torch.equal(torch.cat([logits.argmax(1) for _, logits, _ in seen]), PREDICTED)


def test_real_methods_give_the_maps_of_explain() -> None:
    names = ["agcam", "rollout", "input_x_gradient"]
    run, keepers = bench(build_methods(names, {}), ("predicted", "label"), limit=3)
    run.run(batches(5), CPU)
    for name in names:
        for target, classes in (("predicted", PREDICTED), ("label", LABELS)):
            torch.testing.assert_close(keepers[name][target].seen, explain(MODEL, IMAGES, name, classes))
        assert run.timings[name].maps == 10 + (0 if name == "rollout" else len(WRONG))
        assert run.timings[name].seconds_per_map > 0


def test_running_out_of_memory_only_changes_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, keepers = bench(build_methods(["agcam"], {}), ("label",))
    whole.run(batches(10), CPU)
    forward = MODEL.forward

    def small(images: Tensor) -> Tensor:
        if len(images) > 3:
            raise torch.OutOfMemoryError
        return forward(images)

    monkeypatch.setattr(MODEL, "forward", small)
    logged: list[str] = []
    run, halved = bench(build_methods(["agcam"], {}), ("label",))
    run.auto_batch.log = logged.append
    run.run(batches(10), CPU)
    torch.testing.assert_close(halved["agcam"]["label"].seen, keepers["agcam"]["label"].seen)
    assert logged == [
        "out of memory; continuing with 5 images at a time",
        "out of memory; continuing with 2 images at a time",
    ]


def saved(path: Path, names: list[str]) -> tuple[MapProvenance, dict[str, dict[str, Keeper]]]:
    """A file with the maps of the methods, and the metrics' inputs then: maps of the predicted classes only."""
    methods = build_methods(names, {})
    source = MapProvenance({"weights": "these"}, options_of(methods))
    run, keepers = bench(methods, ("predicted",))
    with MapWriter(path, source) as run.writer:
        run.run(batches(4), CPU)
    return source, keepers


def test_maps_from_a_file_are_those_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other batches and metrics, and without running a method."""
    names = ["agcam", "rollout", "guided_backprop"]
    source, _ = saved(tmp_path / "maps.h5", names)
    run, read = bench(build_methods(names, {}), ("predicted", "label"), reader=MapReader(tmp_path / "maps.h5", source))
    monkeypatch.setattr("engine.explanation.evaluator.run_method", lambda *_: pytest.fail("a method ran"))
    run.run(batches(3), CPU)
    monkeypatch.undo()
    assert run.timings == {}
    computed, keepers = bench(build_methods(names, {}), ("predicted", "label"))
    computed.run(batches(3), CPU)
    for name in names:
        for target in ("predicted", "label"):
            mine, theirs = read[name][target].seen, keepers[name][target].seen
            scale = theirs.abs().amax((1, 2), keepdim=True)
            assert ((mine - theirs).abs() / scale).max() <= 2**-11
            assert not torch.equal(mine, theirs)


@pytest.mark.parametrize("stage", [1, 2])
def test_metrics_use_the_explained_stage(stage: Literal[1, 2]) -> None:
    """Logits, predicted classes and predictions for perturbed images come from the explained stage."""
    case = Case(two_stage, stage=stage)
    model, images = case.model(), case.images(6)
    assert isinstance(model, TwoStageModel)
    with torch.no_grad():
        whole = model(images)
    logits = {1: whole.stage_1.class_logits, 2: whole.logits}
    assert not torch.equal(logits[1].argmax(1), logits[2].argmax(1))
    run, keepers = bench(build_methods(["agcam"], {}), ("predicted",), model, stage=stage)
    run.run([Batch(images, torch.zeros(6, dtype=torch.int64), tuple("abcdef"))], CPU)
    kept = keepers["agcam"]["predicted"]
    torch.testing.assert_close(torch.cat(kept.logits), logits[stage])
    torch.testing.assert_close(torch.cat(kept.asked), logits[stage])
    torch.testing.assert_close(kept.seen, explain(model, images, "agcam", logits[stage].argmax(1), stage=stage))


def test_published_noise_repeats_and_does_not_change_the_generator() -> None:
    model = Case(lambda: two_stage(parts={"eval_noise": True, "temperature": 20.0})).model()
    run, _ = bench({}, ())
    run.model = model
    images = Case(two_stage).images(6)
    before = torch.get_rng_state()
    first = run.predict(images)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(run.predict(images), first)


def test_all_leaves_out_and_logs_methods_that_cannot_explain_the_model() -> None:
    logged: list[str] = []
    able = chosen_methods(["all"], {}, MODEL, IMAGES[:1], 2, logged.append)
    assert set(METHODS) - set(able) == {"inherent"}
    assert len(logged) == 1 and logged[0].startswith("inherent is left out: ")
    with pytest.raises(UserError, match="two-stage"):
        chosen_methods(["rollout", "inherent"], {}, MODEL, IMAGES[:1], 2, logged.append)


def test_options_reach_the_methods_that_have_them() -> None:
    given = {"head_fusion": "max", "discard_ratio": "0.5", "run": "unrelated"}
    able = chosen_methods(["all"], given, MODEL, IMAGES[:1], 2, lambda text: None)
    options = options_of(able)
    assert options["rollout"] == {
        "head_fusion": "max", "discard_ratio": 0.5, "start_layer": None, "compat": "", "head": None
    }  # fmt: skip
    assert options["raw_attention"]["head_fusion"] == "max" and options["agcam"] == {}
    with pytest.raises(UserError, match="--discard-ratio"):
        chosen_methods(["agcam"], given, MODEL, IMAGES[:1], 2, lambda text: None)


def test_a_batch_is_selected_once_for_all_methods_and_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(two_stage)
    model, images = case.model(), case.images(6)
    assert isinstance(model, TwoStageModel)
    with torch.no_grad():
        label = 1 - model(images).logits.argmax(1).clamp(max=1)
    names = ["agcam", "gradcam", "inherent"]
    run, keepers = bench(build_methods(names, {}), ("predicted", "label"), model, limit=4)
    monkeypatch.setattr(run, "predict", lambda images: torch.zeros(len(images), CLASSES))
    selected: list[int] = []
    select = model.select
    monkeypatch.setattr(model, "select", lambda x, **options: (selected.append(len(x)), select(x, **options))[1])
    run.run([Batch(images, label, tuple("abcdef"))], CPU)
    assert selected == [4, 2]  # for the predictions and for all maps
    for name in names:
        maps = keepers[name]["label"].seen
        torch.testing.assert_close(maps, explain(model, images, name, None if name == "inherent" else label))


def test_precision_is_that_of_predictions_and_not_of_maps() -> None:
    runs = {}
    for precision in (torch.float32, torch.bfloat16):
        run, keepers = bench(build_methods(["agcam"], {}), ("label",), precision=precision)
        run.run(batches(5), CPU)
        runs[precision] = keepers["agcam"]["label"]
    full, half = runs.values()
    assert torch.equal(half.seen, full.seen)
    for mine, theirs in ((half.logits, full.logits), (half.asked, full.asked)):
        a, b = torch.cat(mine), torch.cat(theirs)
        assert a.dtype == torch.float32 and not torch.equal(a, b)
        torch.testing.assert_close(a, b, rtol=0, atol=0.03 * float(b.abs().max()))
