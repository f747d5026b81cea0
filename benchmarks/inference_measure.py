"""How inference is measured: parameters, FLOPs by stage, what stage 2 sees, memory, then seconds in interleaved rounds.

Shape legend: B images, N patches (h x w grid).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from inference_subjects import Subject
from step_measure import CLOCKS, peak_bytes, seconds
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from engine.evaluation.predict import predict
from models.backbone import grid_of
from models.interface import ImageClassifier
from models.masked_vit import MaskedViT, Path
from models.selection import Selection

WHOLE, SOFT = "whole", "soft"
"""The paths of a model of one stage, and of soft masks: nothing is hidden."""


@dataclass
class Case:
    """One line of the table."""

    path: str
    batch: int
    peak_bytes: int = 0
    """Tensors alive at once in a batch, on top of weights and images."""
    seconds: list[float] = field(default_factory=list)
    """Of a batch, one per round."""


def parameters(model: nn.Module) -> dict[str, int]:
    """Number of parameters by stage; of a model of one stage as `model`."""
    stages = {name: stage for name, stage in model.named_children() if name in ("stage_1", "stage_2")}
    parts = stages if len(stages) == 2 else {"model": model}
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def stage_2_of(model: nn.Module) -> MaskedViT | None:
    """The stage that reads a mask; None for a model without."""
    return cast(MaskedViT | None, getattr(model, "stage_2", None))


def paths_of(model: ImageClassifier, wanted: list[Path]) -> list[str]:
    """The ways through stage 2 that the model is measured with; `auto` by the name of what it takes."""
    stage_2 = stage_2_of(model)
    if stage_2 is None or model.model_config.mask_kind == "soft":
        return [WHOLE if stage_2 is None else SOFT]
    found = []
    for path in wanted:
        if path == "packed":
            stage_2.require_plain_blocks("--paths packed")
        stage_2.path = path
        found.append(stage_2.chosen_path())
    return list(dict.fromkeys(found))


def _take(model: nn.Module, path: str) -> None:
    stage_2 = stage_2_of(model)
    if stage_2 is not None and path != SOFT:
        stage_2.path = cast(Path, path)


def kept_counts(subject: Subject, size: int, device: torch.device) -> list[int]:
    """Patches that stage 2 sees of every image, by batches of `size`; empty for a model that hides none."""
    counts: list[int] = []
    if paths_of(subject.model, ["dense"]) != ["dense"]:
        return counts
    for number in range(-(-len(subject.images) // size)):
        mask = predict(subject.model, subject.batch(number, size, device)).mask
        counts += cast(Tensor, mask).flatten(1).sum(1).tolist()
    return counts[: len(subject.images)]


def difference(subject: Subject, paths: list[str], size: int, device: torch.device) -> float:
    """Largest absolute difference of the logits to those of the first path, in units of the largest, in fp32."""
    batch, found = subject.batch(0, size, device), []
    for path in paths:
        _take(subject.model, path)
        found.append(predict(subject.model, batch).logits)
    return max(float((logits - found[0]).abs().max() / found[0].abs().max()) for logits in found)


def flops(subject: Subject, path: str, counts: list[int], device: torch.device) -> dict[str, float]:
    """Floating-point operations of one image by stage, a product and its sum counting as two.

    Stage 2's are the mean over `counts`: they follow from the number of patches seen alone. Padding, which depends on
    the other images of a batch, is not counted.
    """
    model: Any = subject.model
    batch, stage_2 = subject.batch(0, 1, device), stage_2_of(model)
    if stage_2 is None:
        return {"model": float(_count(lambda: predict(model, batch)))}
    found = {"stage_1": float(_count(lambda: model.select(batch.image)))} if hasattr(model, "select") else {}
    _take(model, "dense" if path == SOFT else path)
    hides = path not in ("dense", SOFT)
    rows, columns = grid_of(stage_2.backbone)

    def seeing(count: int) -> int:
        mask = (torch.arange(rows * columns, device=device) < count).view(1, rows, columns)
        return _count(lambda: stage_2(batch.image, Selection(mask)))

    images = Counter(counts if hides else [rows * columns])
    return found | {"stage_2": sum(seeing(count) * times for count, times in images.items()) / images.total()}


def _count(work: Callable[[], Any]) -> int:
    """With plain attention: torch has no formula for the CPU's fused one, nor for attention of packed tokens."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def timings(
    subject: Subject, paths: list[str], sizes: list[int], rounds: int, precision: torch.dtype, device: torch.device
) -> list[Case]:
    """Every path at every batch size. The memory pass, the first, and two more warm up; all cases take turns."""
    cases = [Case(path, size) for size in sizes for path in paths]

    def work(case: Case, number: int) -> Callable[[], None]:
        batch = subject.batch(number, case.batch, device)
        _take(subject.model, case.path)

        def infer() -> None:
            predict(subject.model, batch, precision)

        return infer

    for case in cases:
        case.peak_bytes = peak_bytes(work(case, 0), device)
        for number in (1, 2):
            work(case, number)()
    for number in range(rounds):
        for case in cases:
            case.seconds.append(seconds(work(case, number), device, CLOCKS["wall"]))
    return cases
