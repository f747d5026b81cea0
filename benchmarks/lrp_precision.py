"""How far relevance propagation in float32 is from float64 on photographs, and what float64 costs.

    python -m benchmarks.lrp_precision data/real_birds/waterbird_complete95_forest2water2 --image-size 140 --save

Pretrained weights matter: with random weights few of the sums that the rules divide by cancel. A backbone without a
classifier gets a random linear one. Compared are maps of the predicted class of each image, with precision=float64 and
with precision=model, and the two rules for tensors that are used twice (compat=chefer with start_layer=0, and ours).
"""

import argparse
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from scipy.stats import spearmanr
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from benchmarks.harness import SEED, Case, Section, measure, parser, report, start
from common.errors import UserError, exit_on_user_error
from common.ranges import PositiveInt
from datasets.config import DataConfig
from datasets.formats.images import read_image
from datasets.transforms import EvalTransform
from datasets.types import RawSample
from explain import explain
from explain.lrp.method import Variant
from models.backbone import create_backbone, load_backbone_weights

METHOD = (
    "Spearman correlation and error: precision=model (float32) against float64. guard: compat=chefer, start_layer=0 "
    "against ours, both in float64. Errors are relative to a map's largest value, those of the worst image. Both "
    "precisions are timed in turn; times slower is the median over the rounds of the ratio within a round."
)
CLASSES = 20
"""Outputs of the random classifier."""


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    flags = parser(__doc__, rounds=3, precisions=["fp32"])
    flags.add_argument("folder", type=Path, help="its JPEG files are used, at any depth")
    flags.add_argument("--model", default="vit_small_patch14_dinov2", help="a timm ViT")
    flags.add_argument("--weights", default="weights/dinov2_small.safetensors", help="hub, none, or a file")
    flags.add_argument("--count", type=PositiveInt, default=10, help="photographs, evenly spaced among all")
    return flags.parse_args(args)


def load_model(name: str, weights: str, size: int) -> VisionTransformer:
    """timm's ViT `name` in eval mode with a random linear classifier on its class token. Raises UserError."""
    torch.manual_seed(SEED)
    vit = create_backbone(name, (size, size))
    if not isinstance(vit, VisionTransformer):
        raise UserError(f"--model: {name!r} is a {type(vit).__name__}, not a timm VisionTransformer")
    load_backbone_weights(vit, name, weights)
    vit.head = nn.Linear(vit.num_features, CLASSES)
    return vit.eval()


def load_images(folder: Path, count: int, size: int) -> Tensor:
    """[count, 3, size, size]: evenly spaced JPEG files of the folder. Raises UserError if there are fewer."""
    files = sorted(folder.rglob("*.jpg"))
    if len(files) < count:
        raise UserError(f"--count: {count} photographs, but {folder} holds only {len(files)} .jpg files")
    transform = EvalTransform(DataConfig(image_size=size))
    chosen = [files[i * len(files) // count] for i in range(count)]
    return torch.stack([transform(RawSample(read_image(file), label=0, path=str(file))).image for file in chosen])


def difference(found: Tensor, expected: Tensor) -> tuple[list[float], float]:
    """Of maps [B, h, w]: each image's Spearman correlation, and the largest difference over all images, relative to the
    image's largest expected value.
    """
    ranks = [float(spearmanr(a.flatten(), b.flatten()).statistic) for a, b in zip(found, expected, strict=True)]
    errors = (found.double() - expected.double()).flatten(1).abs().amax(1) / expected.double().flatten(1).abs().amax(1)
    return ranks, float(errors.max())


def compare(vit: VisionTransformer, images: Tensor, targets: Tensor, **options: Any) -> dict[str, float]:
    """What float32, and the published guard, change in maps of images [B, 3, H, W]."""
    run = partial(explain, vit, images, "lrp", targets, **options)
    exact = run()
    ranks, error = difference(run(precision="model"), exact)
    _, guard = difference(run(compat="chefer", start_layer=0), exact)
    return {"lowest_spearman": min(ranks), "highest_spearman": max(ranks), "largest_error": error, "guard": guard}


def one_by_one(vit: VisionTransformer, images: Tensor, targets: Tensor, **options: Any) -> dict[str, float]:
    """`compare` with one image per call, because the published residual sums run over the batch; the worst image's."""
    rows = [compare(vit, images[[i]], targets[[i]], **options) for i in range(len(images))]
    worst = {"lowest_spearman": min, "highest_spearman": max, "largest_error": max, "guard": max}
    return {key: pick(row[key] for row in rows) for key, pick in worst.items()}


def seconds(vit: VisionTransformer, images: Tensor, rounds: int, device: torch.device) -> dict[str, float]:
    """Images per second of the default variant in both precisions, timed in turn, and the ratio of their times."""

    def case(precision: str) -> Case:
        work = partial(explain, vit, images, "lrp", precision=precision)
        return Case({"precision": precision}, len(images), lambda _: work)

    single, double = cases = case("model"), case("float64")
    measure(cases, rounds, device)
    rows = {name: c.row() for name, c in {"float32": single, "float64": double}.items()}
    speed = {f"{name}_images_per_second": row["images_per_second"] for name, row in rows.items()}
    return speed | {"times_slower": 1 / double.times_faster(single)}


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    options = parse(arguments)
    device = start(options)
    vit = load_model(options.model, options.weights, options.image_size).to(device)
    images = load_images(options.folder, options.count, options.image_size).to(device)
    warnings.filterwarnings("ignore", message="lrp in float32")
    with torch.no_grad():
        targets = vit(images).argmax(1)
    rows = [
        {"variant": variant, **one_by_one(vit, images, targets, variant=variant)}
        for variant in get_args(Variant)
        if variant != "last_layer_attn"  # no relevance
    ]
    cost = seconds(vit, images, options.rounds, device)
    sections = [Section("Differences", rows), Section("Cost of variant=transformer_attribution", [cost])]
    stem = f"lrp_precision_{options.model}_{options.image_size}px_{device.type}"
    report("Precision of relevance propagation", sections, METHOD, options, stem)


if __name__ == "__main__":
    main()
