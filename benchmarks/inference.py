"""Parameters, FLOPs, images per second and memory at inference, with hidden patches masked (dense) or dropped.

    python -m benchmarks.inference runs/waterbirds-k8 --data.root data/CUB_200_2011 --batch 1 16 64
    python -m benchmarks.inference two_stage/vit_base_patch14_reg4_dinov2 vit/vit_base_patch14_reg4_dinov2 --save

A run is measured with its best weights on images of a split, where stage 1 decides how many patches are hidden; flags
with a dot override its config. NAME/BACKBONE is a model with random weights, measured on noise; a two-stage one gets
random masks that keep a given fraction of the patches.

Shape legend: B images, N patches (h x w grid).
"""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.fixed_masks import NUM_CLASSES, FixedMaskModel, random_mask
from benchmarks.harness import SEED, Case, Section, log, measure, parser, report, start
from common.errors import UserError, exit_on_user_error
from common.plugins import with_plugins
from common.ranges import ClosedUnitInterval, LeftOpenUnitInterval, PositiveInt
from datasets import eval_loader
from datasets.types import SPLITS, Batch
from engine.evaluation.loading import load_run_model, read_split
from engine.evaluation.predict import evaluation_mode, predict
from engine.run.folder import run_config
from engine.run.machine import PRECISIONS
from models import build_model, masked_vit
from models.config import ModelConfig
from models.interface import ImageClassifier, finds_parts
from models.masked_vit import MaskedViT
from models.registry import MODELS
from models.selection import Selection

WHOLE, SOFT = "whole", "soft"
"""Names of the path of a model without a stage 2, and of one with soft masks: neither hides patches."""
QUANTILES = {"min": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1.0}
METHOD = (
    "Whole batches through the whole model, after a warm-up. p90 seconds: nine of ten batches took no longer. Peak "
    "MiB: tensors in addition to weights and images. FLOPs: matrix products, convolutions and attention, a "
    "multiplication and an addition counting as two; those of stage 2 are the mean over the images, without padding. "
    "`dense` masks the hidden patches, `packed` and `gathered` drop them."
)


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, with the overrides of the runs' configs as `overrides`."""
    flags = parser(__doc__, rounds=20, precisions=list(PRECISIONS))
    flags.add_argument("models", nargs="+", metavar="RUN|NAME/BACKBONE")
    flags.add_argument("--batch", type=PositiveInt, nargs="+", default=[1, 16], metavar="B", help="batch sizes")
    flags.add_argument("--images", type=PositiveInt, default=64, help="number of images, used again and again")
    flags.add_argument("--split", choices=SPLITS, default="test", help="split of a run")
    flags.add_argument(
        "--paths", nargs="+", choices=get_args(masked_vit.Path), default=["dense", "auto"], help="through stage 2"
    )
    flags.add_argument(
        "--keep", type=LeftOpenUnitInterval, default=0.3, help="fraction of patches kept by NAME/BACKBONE"
    )
    flags.add_argument("--spread", type=ClosedUnitInterval, default=0.5, help="0.5: from 0.5 to 1.5 x keep")
    options, overrides = flags.parse_known_args(args)
    if unknown := [word for word in overrides if not word.startswith("--") or "." not in word.partition("=")[0]]:
        flags.error(f"{unknown[0]}: overrides of a run's config are written --data.root=...")
    options.overrides = overrides
    return options


@dataclass(frozen=True)
class MeasuredModel:
    """A model, and the images that it is measured on."""

    name: str
    model: ImageClassifier
    images: Tensor
    """[M, 3, H, W] float32, on the CPU."""
    source: str
    """Where the images come from."""
    pixel_masks: Tensor | None = None
    """[M, H, W] bool, input of the models that take a mask; None where the data set has none."""
    patch_masks: Tensor | None = None
    """[M, h, w] bool, for a FixedMaskModel."""

    @property
    def stage_2(self) -> MaskedViT | None:
        """The stage that sees a mask, if there is one."""
        return getattr(self.model, "stage_2", None)

    def batch(self, number: int, size: int, device: torch.device) -> Batch:
        """Images number * size, number * size + 1, ... modulo M; sets the masks of a FixedMaskModel."""
        index = torch.arange(number * size, (number + 1) * size) % len(self.images)
        if self.patch_masks is not None and isinstance(self.model, FixedMaskModel):
            self.model.fixed_mask = self.patch_masks[index].to(device)
        masks = None if self.pixel_masks is None else self.pixel_masks[index]
        paths = tuple(f"image {i}" for i in index.tolist())
        return Batch(self.images[index], torch.zeros(size, dtype=torch.long), paths, mask=masks).to(device)

    def use(self, path: str) -> None:
        """Make stage 2 take the path."""
        if self.stage_2 is not None and path != SOFT:
            self.stage_2.path = cast(masked_vit.Path, path)

    def paths(self, wanted: Sequence[masked_vit.Path]) -> list[str]:
        """The paths to measure, with `auto` replaced by what it chooses. Raises UserError where `packed` cannot run."""
        if self.stage_2 is None or self.model.model_config.mask_kind == "soft":
            return [WHOLE if self.stage_2 is None else SOFT]
        found = []
        for path in wanted:
            if path == "packed":
                self.stage_2.require_plain_blocks("--paths packed")
            self.use(path)
            found.append(self.stage_2.chosen_path())
        return list(dict.fromkeys(found))


def load_run(run: Path, options: argparse.Namespace) -> MeasuredModel:
    """The best weights of a run, on a sample of a split. Raises UserError."""
    config = run_config(run, options.overrides)
    split = read_split(config, options.split, options.images, run)
    model = load_run_model(run, config, "best", split.info.num_outputs)
    batches = list(eval_loader(split, batch_size=config.data.eval_batch_size, workers=config.data.loading_processes))
    masks = [batch.mask for batch in batches if batch.mask is not None]
    return MeasuredModel(
        run.name or str(run),
        model,
        torch.cat([batch.image for batch in batches]),
        f"{len(split)} images of its {options.split} split",
        pixel_masks=torch.cat(masks) if len(masks) == len(batches) else None,
    )


def random_model(name: str, options: argparse.Namespace) -> MeasuredModel:
    """NAME/BACKBONE with random weights on noise. Raises UserError."""
    kind, _, backbone = name.partition("/")
    if not backbone or kind not in MODELS:
        raise UserError(f"{name!r} is neither a run folder nor NAME/BACKBONE with NAME one of {', '.join(MODELS)}")
    config, size = ModelConfig(name=kind, backbone=backbone, weights="none"), (options.image_size, options.image_size)
    generator = torch.Generator().manual_seed(SEED)
    count, source = options.images, f"{options.images} images of noise"
    images = torch.randn(count, 3, *size, generator=generator)
    if kind == "two_stage":
        model = FixedMaskModel(config, NUM_CLASSES, size)
        masks = random_mask(count, model.patch_grid, options.keep, options.spread)
        masks = masks[torch.randperm(count, generator=generator)]  # or the counts would rise from batch to batch
        source += f", with random masks that keep {options.keep:.0%} of the patches, +- {options.spread:.0%} of that"
        return MeasuredModel(name, model, images, source, patch_masks=masks)
    pixel_masks = torch.rand(count, *size, generator=generator) < options.keep if MODELS[kind].needs_mask else None
    return MeasuredModel(name, build_model(config, NUM_CLASSES, size), images, source, pixel_masks)


def kept_counts(measured: MeasuredModel, size: int, device: torch.device) -> list[int]:
    """Number of patches that stage 2 sees of each image, predicted in batches of `size`; empty if it hides none."""
    counts: list[int] = []
    if measured.paths(["dense"]) != ["dense"]:
        return counts
    for number in range(-(-len(measured.images) // size)):
        mask = predict(measured.model, measured.batch(number, size, device)).mask
        counts += cast(Tensor, mask).flatten(1).sum(1).tolist()
    return counts[: len(measured.images)]


def difference(measured: MeasuredModel, paths: Sequence[str], size: int, device: torch.device) -> float:
    """Largest absolute difference of the logits between any path and the first, relative to the largest logit; fp32."""
    batch, found = measured.batch(0, size, device), []
    for path in paths:
        measured.use(path)
        found.append(predict(measured.model, batch).logits)
    return max(float((logits - found[0]).abs().max() / found[0].abs().max()) for logits in found)


def flops(measured: MeasuredModel, path: str, counts: Sequence[int], device: torch.device) -> dict[str, float]:
    """Floating-point operations per image, by stage: the mean over images that keep `counts` patches.

    They depend on the number of patches kept, not on which ones. Padding is not counted: it depends on the other images
    of the batch.
    """
    model, stage_2 = measured.model, measured.stage_2
    batch = measured.batch(0, 1, device)
    if stage_2 is None:
        return {"model": float(_count_flops(lambda: predict(model, batch)))}
    found = {"stage_1": float(_count_flops(lambda: model.select(batch.image)))} if finds_parts(model) else {}
    measured.use("dense" if path == SOFT else path)
    rows, columns = model.patch_grid

    def seeing(count: int) -> int:
        mask = (torch.arange(rows * columns, device=device) < count).view(1, rows, columns)
        return _count_flops(lambda: stage_2(batch.image, Selection(mask)))

    images = Counter([rows * columns] if path in ("dense", SOFT) else counts)
    return found | {"stage_2": sum(seeing(count) * times for count, times in images.items()) / images.total()}


def _count_flops(work: Callable[[], Any]) -> int:
    # torch has no FLOP formula for the CPU's fused attention, nor for attention of packed tokens
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def cases(
    measured: MeasuredModel, paths: Sequence[str], sizes: Sequence[int], precision: torch.dtype, device: torch.device
) -> list[Case]:
    """Every path at every batch size."""

    def prepare(path: str, size: int, number: int) -> Callable[[], object]:
        batch = measured.batch(number, size, device)
        measured.use(path)
        return partial(predict, measured.model, batch, precision)

    return [Case({"path": path, "batch": size}, size, partial(prepare, path, size)) for size in sizes for path in paths]


def measure_model(measured: MeasuredModel, options: argparse.Namespace, device: torch.device) -> Section:
    """One model's table, with its parameters, FLOPs and kept patches."""
    model = measured.model.to(device)
    with evaluation_mode(model, device, seed=0):
        paths = measured.paths(options.paths)
        counts = kept_counts(measured, max(options.batch), device)
        apart = difference(measured, paths, min(options.batch), device)
        work = {path: flops(measured, path, counts, device) for path in paths}
        table = cases(measured, paths, options.batch, PRECISIONS[options.precision], device)
        measure(table, options.rounds, device, warm_up=2)
    stages = {name: stage for name, stage in model.named_children() if name in ("stage_1", "stage_2")}
    stages = stages if len(stages) == 2 else {"model": model}
    details: dict[str, Any] = {
        "parameters": {name: sum(p.numel() for p in stage.parameters()) for name, stage in stages.items()},
        "flops_per_image": work,
        "difference_of_paths": apart,
        "kept_patches": counts,
        "grid": model.patch_grid,
    }
    return Section(measured.name, [case.row() for case in table], notes(measured.source, details), details)


def notes(source: str, details: dict[str, Any]) -> list[str]:
    """The details of a model as lines."""
    size = ", ".join(f"{name.replace('_', ' ')} {count / 1e6:.2f} M" for name, count in details["parameters"].items())
    lines = [f"measured on {source}", f"parameters: {size}"]
    for path, stages in details["flops_per_image"].items():
        work = " + ".join(f"{name.replace('_', ' ')} {count / 1e9:.2f}" for name, count in stages.items())
        lines.append(f"GFLOPs per image, {path}: {work} = {sum(stages.values()) / 1e9:.2f}")
    if len(details["flops_per_image"]) > 1:
        lines.append(f"largest difference between the paths' logits, relative: {details['difference_of_paths']:.1e}")
    if counts := details["kept_patches"]:
        patches, mean = details["grid"][0] * details["grid"][1], float(np.mean(counts))
        shown = ", ".join(f"{name} {np.quantile(counts, q):.0f}" for name, q in QUANTILES.items())
        lines.append(f"of {patches} patches stage 2 sees: {shown}, mean {mean:.1f} ({mean / patches:.1%})")
    return lines


@exit_on_user_error
@with_plugins
def main(args: Sequence[str] | None = None) -> None:
    """Measure each model, report."""
    options = parse(args)
    device = start(options)
    sections = []
    for name in options.models:
        measured = load_run(Path(name), options) if Path(name).is_dir() else random_model(name, options)
        sections.append(measure_model(measured, options, device))
        log(f"measured {name}")
    names = [section.title.replace("/", "-") for section in sections]
    report("Inference", sections, METHOD, options, "_".join(["inference", *names, device.type, options.precision]))


if __name__ == "__main__":
    main()
