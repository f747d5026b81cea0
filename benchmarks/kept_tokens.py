"""Time of every explanation of stage 2 with all tokens in its sequence, and with those of visible patches alone.

    python -m benchmarks.kept_tokens --save     # about 5 minutes on 2 CPU cores

Nothing is timed (exit code 1) unless the maps are equal in double precision.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import SEED, Case, Section, measure, parser, report, require_equal, start
from common.errors import exit_on_user_error
from common.ranges import PositiveFloat, PositiveInt
from explain import METHODS, Explainer, build_method
from explain.explained_model import explainable, explained_model, selected, without_hidden
from explain.options import build_methods
from models.config import ModelConfig
from models.selection import Selection
from models.two_stage import TwoStageModel

SLOW = {"attention_flow": 8, "integrated_gradients": 8, "lrp": 4}
"""Methods whose batch holds so many times fewer images."""
OPTIONS: dict[str, dict[str, Any]] = {"integrated_gradients": {"steps": 8, "absolute": True}}
TOLERANCE = 1e-9
CHECK_IMAGES = 2
METHOD = (
    "A two-stage model with random weights. In place of its own mask, each image gets a disc with a rough edge; areas"
    " go from half to one and a half times `keep`. `all`: hidden patches stay in stage 2's sequence, masked. `kept`: "
    "they are left out, and get 0 in the map. `times faster`: images/s relative to `all`, the median over the rounds "
    "of the ratio within a round. Stage 1 is not part of these calls; (stage 1) is its time, once for all methods and"
    " targets of an image. integrated_gradients has 8 steps. Peak MiB: tensors in addition to weights and images."
)


def discs(count: int, grid: tuple[int, int], keep: float) -> Tensor:
    """[count, h, w] bool: a disc with a rough edge in each; its area goes from keep / 2 to 3 keep / 2 of the grid."""
    random = torch.Generator().manual_seed(SEED)
    y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in grid), indexing="ij")
    fraction = torch.linspace(0.5, 1.5, count) * keep
    distance = (y - grid[0] / 2) ** 2 + (x - grid[1] / 2) ** 2
    distance = distance + torch.rand(count, *grid, generator=random)  # no ties
    kept = (fraction * grid[0] * grid[1]).round().long().clamp(min=1)
    return distance.flatten(1).argsort(1).argsort(1).lt(kept[:, None]).unflatten(1, grid)


class Subject:
    """A two-stage model in eval mode, images, and what stage 2 sees of them."""

    def __init__(self, options: argparse.Namespace, images: int, device: torch.device, dtype: torch.dtype) -> None:
        torch.manual_seed(SEED)
        size = (options.image_size, options.image_size)
        model = TwoStageModel(ModelConfig(backbone=options.backbone), 2, size)
        for module in model.modules():
            if isinstance(module, nn.Linear):  # as in benchmarks.explanations
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        self.model = model.eval().to(device, dtype)
        self.images = torch.randn(images, 3, *size, generator=torch.Generator().manual_seed(SEED)).to(device, dtype)
        self.mask = discs(images, model.patch_grid, options.keep).to(device)

    def maps(self, method: Explainer, kept: bool, count: int) -> Tensor:
        """Maps of the first `count` images."""
        images, selection = self.images[:count], Selection(self.mask[:count])
        explained = explained_model(self.model, images, selection=selection)
        if kept:
            explained = without_hidden(explained)
        with explainable(explained):
            return method.maps(explained, images, None).detach()


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    names = [name for name in METHODS if name != "inherent"]  # which runs no stage 2
    flags = parser(__doc__, rounds=3, precisions=["fp32"])
    flags.add_argument("--backbone", default="vit_small_patch14_dinov2", help="timm ViT, with random weights")
    flags.add_argument("--keep", type=PositiveFloat, default=0.2, help="mean fraction of visible patches")
    flags.add_argument("--batch", type=PositiveInt, default=8)
    flags.add_argument("--methods", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    return flags.parse_args(args)


def check(subject: Subject, methods: dict[str, Explainer]) -> dict[str, float]:
    """Method -> largest difference between the maps, relative to the largest value. Exits with code 1 if too large."""
    found = {}
    for name, method in methods.items():
        kept, wanted = (subject.maps(method, kept, CHECK_IMAGES) for kept in (True, False))
        found[name] = float((kept - wanted).abs().max() / wanted.abs().max())
    require_equal(found, TOLERANCE)
    return found


@exit_on_user_error
def main(args: Sequence[str] | None = None) -> None:
    """Check, measure, report."""
    options = parse(args)
    device = start(options)
    methods = build_methods(options.methods, {})
    methods |= {name: build_method(name, **given) for name, given in OPTIONS.items() if name in methods}
    differences = check(Subject(options, CHECK_IMAGES, device, torch.float64), methods)
    subject = Subject(options, options.batch, device, torch.float32)

    def select() -> Selection:
        return selected(subject.model, subject.images)

    cases = [Case({"method": "(stage 1)", "tokens": "", "images": options.batch}, options.batch, lambda _: select)]
    for name, method in methods.items():
        count = max(1, options.batch // SLOW.get(name, 1))
        for tokens in ("all", "kept"):
            work = partial(subject.maps, method, tokens == "kept", count)
            cases.append(Case({"method": name, "tokens": tokens, "images": count}, count, lambda _, work=work: work))  # type: ignore[misc]
    measure(cases, options.rounds, device)
    by_name = {(case.labels["method"], case.labels["tokens"]): case for case in cases}
    rows = [
        case.row(times_faster=case.times_faster(by_name[name, "all"]) if tokens else None)
        for (name, tokens), case in by_name.items()
    ]
    worst = max(differences.values())
    counts = subject.mask.flatten(1).sum(1)
    range_of = f"{int(counts.min())} to {int(counts.max())}, mean {counts.double().mean():.1f}"
    notes = [
        f"visible patches: {range_of}, of {subject.mask[0].numel()}",
        f"largest difference in double precision, relative to a map's largest value: {worst:.0e}",
    ]
    section = Section(options.backbone, rows, notes, {"differences": differences})
    stem = f"explain_kept_tokens_{options.backbone}_{options.image_size}px_{device.type}_{options.precision}"
    report("Explanations of stage 2: all tokens and kept tokens", [section], METHOD, options, stem)


if __name__ == "__main__":
    main()
