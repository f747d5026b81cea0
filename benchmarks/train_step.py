"""Time and memory of a training step, and of stage 2 alone: the published form and this repository's.

    python -m benchmarks.train_step                                  # about 5 minutes on 2 CPU cores
    python -m benchmarks.train_step --keep 0.1 0.2 0.3 0.5 1.0 --save
    python -m benchmarks.train_step --device cuda --precision bf16 --backbone vit_base_patch14_reg4_dinov2

All variants run on the same random weights, images, noise and masks. Nothing is timed (exit code 1) unless they give
the same loss and the same gradients.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from math import inf, isnan
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerScale
from torch import Tensor, nn

from benchmarks.estimates import size_of
from benchmarks.fixed_masks import NUM_CLASSES, FixedMaskModel, random_mask
from benchmarks.gpu import peak_flops
from benchmarks.harness import MIB, SEED, Case, Section, measure, parser, report, require_equal, start
from benchmarks.published_step import VARIANTS, Variant
from common.errors import exit_on_user_error
from common.ranges import ClosedUnitInterval, LeftOpenUnitInterval, PositiveInt
from datasets.types import Batch
from engine.run.config import OptimConfig
from engine.run.machine import PRECISIONS
from engine.training.optim import build_optimizer, two_stage_rules
from losses.config import LossConfig
from models.config import ModelConfig
from models.masked_vit import MaskedViT
from models.selection import Selection

OURS = [name for name in VARIANTS if name != "published"]
CHECK_IMAGES, CHECK_SPREAD = 4, 0.5
TOLERANCE = {"fp32": 1e-4, "bf16": 0.1}
"""Largest relative difference of the loss or of a gradient. bf16 has 3 digits: a rough check."""
METHOD = (
    "`published` does the work of the published step: the equivariance view runs both stages, and stage 2 runs dense. "
    "Left out are its further costs: a [B, D, K+1, h, w] product, a D x D Gram matrix, host synchronisations. The "
    "stage-1 backbone is frozen as in the recommended runs. `times faster` and `memory ratio` compare with the first "
    "row; times faster is the median over the rounds of the ratio within a round. Peak MiB: tensors in addition to "
    "weights and optimiser state. On a GPU: seconds by its events after 10 calls to warm up; `sm MHz`: median clock "
    "after a round; `mfu`: FLOPs of the two stages (published: without stage 2 on the view) per second, of the peak."
)


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    flags = parser(__doc__, rounds=3, precisions=list(TOLERANCE))
    flags.add_argument("--backbone", default="vit_small_patch14_dinov2", help="any timm ViT, with random weights")
    flags.add_argument("--batch", type=PositiveInt, default=16)
    flags.add_argument(
        "--keep", type=LeftOpenUnitInterval, nargs="+", default=[0.3], help="fractions of patches stage 2 sees"
    )
    flags.add_argument(
        "--spread", type=ClosedUnitInterval, default=0.0, help="0.5: from 0.5 to 1.5 x keep within a batch"
    )
    flags.add_argument("--stage-2-keep", type=LeftOpenUnitInterval, default=0.25, help="fraction for stage 2 alone")
    flags.add_argument("--variants", nargs="+", choices=OURS, default=OURS, help="in addition to published")
    flags.add_argument("--compile", action="store_true", help="torch.compile both stages")
    return flags.parse_args(args)


class VariantRunner:
    """A model and its optimiser, run in any variant. The learning rate is 0: steps leave the weights as they are."""

    def __init__(self, backbone: str, image_size: int, device: torch.device, compiled: bool = False) -> None:
        """Random weights. The stage-1 backbone is frozen as in the recommended runs: only its tokens are trained."""
        torch.manual_seed(SEED)
        config = ModelConfig(backbone=backbone, weights="none")
        self.device = device
        self.model = FixedMaskModel(config, NUM_CLASSES, (image_size, image_size)).to(device)
        self.grid = self.model.patch_grid
        for module in self.model.modules():
            if isinstance(module, LayerScale):
                nn.init.ones_(module.gamma)  # at DINOv2's initial 1e-5 the blocks would hardly affect the check
        rates = OptimConfig(lr=0.0)
        self.clip = rates.clip
        self.optimizer = build_optimizer(self.model, two_stage_rules(rates), rates, rates.weight_decay)
        self.stage_2s = {name: with_weights_of(self.model.stage_2, variant) for name, variant in VARIANTS.items()}
        self.objectives = {
            name: variant.objective(LossConfig(), NUM_CLASSES, [1] * NUM_CLASSES) for name, variant in VARIANTS.items()
        }
        self.precision = torch.float32
        if compiled:
            torch._dynamo.config.recompile_limit = 64  # one per variant, batch size, mode and precision
            self.model.stage_1.compile()
            for stage_2 in self.stage_2s.values():
                stage_2.compile()

    def loss(self, variant: str, mask: Tensor, batch: Batch) -> Tensor:
        """Forward and backward pass of one step. Returns the loss; the gradients stay on the parameters."""
        self._prepare(variant, mask)
        with self._autocast():
            output = self.objectives[variant](self.model, batch)
        output.loss.backward()
        return output.loss.detach()

    def train_step(self, variant: str, mask: Tensor, batch: Batch) -> None:
        """One training step with the trainer's check of the loss, clipping and optimiser."""
        assert self.loss(variant, mask, batch).isfinite().item()  # waits for the device, as the trainer does
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def stage_2_step(self, variant: str, mask: Tensor, batch: Batch) -> None:
        """Forward and backward pass of stage 2 alone."""
        self._prepare(variant, mask)
        with self._autocast():
            logits = self.model.predict(batch.image, Selection(mask))
        F.cross_entropy(logits.float(), batch.label).backward()
        self.optimizer.zero_grad(set_to_none=True)

    def gradients(self, variant: str, mask: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The loss and every gradient of one step, by name."""
        loss = self.loss(variant, mask, batch)
        found = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        self.optimizer.zero_grad(set_to_none=True)  # the tensors stay: the next step gets new ones
        return {"loss": loss, **found}

    def resident_bytes(self) -> int:
        """Bytes of weights and optimiser state."""
        state = [t for entry in self.optimizer.state.values() for t in entry.values() if isinstance(t, Tensor)]
        return sum(t.nbytes for t in [*self.model.parameters(), *self.model.buffers(), *state])

    def _prepare(self, variant: str, mask: Tensor) -> None:
        self.model.stage_2 = self.stage_2s[variant]
        self.model.fixed_mask = mask
        self.model.train()
        torch.manual_seed(SEED)  # every variant draws the same noise

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision != torch.float32)


def with_weights_of(stage_2: MaskedViT, variant: Variant) -> MaskedViT:
    """A stage 2 of the variant that shares the parameters of `stage_2`."""
    other = variant.stage_2(stage_2.backbone, NUM_CLASSES, variant.path)
    other.fc_norm, other.head = stage_2.fc_norm, stage_2.head
    return other


def random_batch(size: int, image_size: int, device: torch.device) -> Batch:
    """Noise as images, random labels."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(size, 3, image_size, image_size, generator=generator)
    labels = torch.randint(NUM_CLASSES, (size,), generator=generator)
    return Batch(images, labels, tuple(f"noise {i}" for i in range(size))).to(device)


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """Largest relative difference |a - b| / |b| (2-norms) of two results of `gradients`, and where it is."""
    if found.keys() != expected.keys():
        return inf, ", ".join(sorted(found.keys() ^ expected.keys()))
    tiny = torch.finfo(torch.float32).tiny

    def relative(name: str) -> float:
        a, b = found[name].double(), expected[name].double()
        value = float((a - b).norm() / b.norm().clamp_min(tiny))
        return inf if isnan(value) else value  # max() would pass over a nan

    return max((relative(name), name) for name in expected)


def check(runner: VariantRunner, options: argparse.Namespace) -> dict[str, float]:
    """ "PRECISION VARIANT (TENSOR)" -> difference from `published`, on images that keep unequal numbers of patches.

    Exits with code 1 where one exceeds the tolerance.
    """
    size = min(options.batch, CHECK_IMAGES)
    mask = random_mask(size, runner.grid, min(options.keep), CHECK_SPREAD).to(runner.device)
    batch = random_batch(size, options.image_size, runner.device)
    found: dict[str, float] = {}
    for precision in dict.fromkeys(("fp32", options.precision)):
        runner.precision = PRECISIONS[precision]
        expected = runner.gradients("published", mask, batch)
        differences = {}
        for variant in options.variants:
            value, tensor = difference(runner.gradients(variant, mask, batch), expected)
            differences[f"{precision} {variant} ({tensor})"] = value
        require_equal(differences, TOLERANCE[precision])
        found |= differences
    return found


def cases(runner: VariantRunner, options: argparse.Namespace) -> dict[str, list[Case]]:
    """Title of a table -> its cases; the first one is the baseline."""
    batch = random_batch(options.batch, options.image_size, runner.device)
    size = size_of(options.backbone, (options.image_size, options.image_size))

    def case(work: Callable[..., None], variant: str, keep: float | None) -> Case:
        mask = random_mask(options.batch, runner.grid, keep or options.keep[0], options.spread).to(runner.device)
        found = Case({"variant": variant, "keep": keep}, options.batch, lambda _: partial(work, variant, mask, batch))
        stage_1 = 4 * size.forward() if work == runner.train_step else 0  # image and view, forward and to the tokens
        kept = 1.0 if keep is None or variant == "dense" else keep
        found.flops = options.batch * (stage_1 + 3 * size.forward(kept))
        return found

    # Dense work does not depend on the fraction of patches kept: one row.
    dense = ["published", *(variant for variant in options.variants if variant == "dense")]
    sparse = [variant for variant in options.variants if variant != "dense"]
    return {
        "Training step": [
            *(case(runner.train_step, variant, None) for variant in dense),
            *(case(runner.train_step, variant, keep) for keep, variant in product(options.keep, sparse)),
        ],
        "Stage 2, forward and backward": [
            case(runner.stage_2_step, variant, options.stage_2_keep) for variant in ("dense", "packed")
        ],
    }


def rows(measured: list[Case], peak: float | None = None) -> list[dict[str, Any]]:
    """The table of cases, each compared with the first. `peak`: of the device, FLOP/s."""
    first = measured[0]
    ratios = [
        {"times_faster": case.times_faster(first), "memory_ratio": case.peak_bytes / max(1, first.peak_bytes)}
        for case in measured
    ]
    return [case.row(**ratio, **case.utilisation(peak)) for case, ratio in zip(measured, ratios, strict=True)]


@exit_on_user_error
def main(args: Sequence[str] | None = None) -> None:
    """Check, measure, report."""
    options = parse(args)
    device = start(options)
    runner = VariantRunner(options.backbone, options.image_size, device, options.compile)
    differences = check(runner, options)
    tables = cases(runner, options)
    tables["Training step"][0].prepare(0)()  # creates the optimiser state, which belongs to no step
    measure([case for table in tables.values() for case in table], options.rounds, device, int(options.compile))
    peak = peak_flops(device, options.precision)
    sections = [Section(title, rows(table, peak)) for title, table in tables.items()]
    sections[0].notes = [
        f"weights and optimiser state: {runner.resident_bytes() / MIB:.0f} MiB",
        *(f"relative difference from published, {name}: {value:.1e}" for name, value in differences.items()),
    ]
    words = [options.backbone, f"{options.image_size}px", device.type, options.precision]
    words += ["compiled"] * options.compile + ["spread"] * (options.spread > 0)
    report("Training step", sections, METHOD, options, "_".join(words))


if __name__ == "__main__":
    main()
