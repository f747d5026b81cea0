"""Time and memory of a training step of each recipe, beside the published step.

    python -m benchmarks.recipes --save    # about 6 minutes on 2 CPU cores

What the recipes cost in accuracy is for studies/real_birds.yaml to measure.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks.fixed_masks import NUM_CLASSES, FixedMaskModel, random_mask
from benchmarks.harness import SEED, Case, Section, measure, parser, report, start
from benchmarks.published_step import VARIANTS
from benchmarks.train_step import random_batch, rows, with_weights_of
from common.errors import exit_on_user_error
from common.ranges import LeftOpenUnitInterval, PositiveInt
from engine.run.config import OptimConfig, RunConfig
from engine.run.machine import PRECISIONS
from engine.training.epoch_means import EpochMeans
from engine.training.optim import build_optimizer, two_stage_rules
from engine.training.state import Progress, RunState
from engine.training.step import TrainStep
from losses.config import EquivarianceConfig, LossConfig
from models.config import ModelConfig
from models.token_cache import TokenCache

TOKENS, VIEWS, BLOCKS = "frozen tokens", "views of 1/4", "3/4 of the blocks frozen"
RECIPES: dict[str, tuple[str, ...]] = {
    "published": (),
    "same settings": (),
    TOKENS: (TOKENS,),
    VIEWS: (VIEWS,),
    "half-size stage 1": ("half size",),
    f"{TOKENS}, {VIEWS}": (TOKENS, VIEWS),
    f"{TOKENS}, {VIEWS}, stored tokens": (TOKENS, VIEWS, "stored"),
    f"{TOKENS}, {VIEWS}, stored tokens, {BLOCKS}": (TOKENS, VIEWS, "stored", BLOCKS),
}
"""Name of a row -> what it changes in the published settings."""
METHOD = (
    "`published` and `same settings` train with the published settings: stage 1's backbone frozen but for its tokens, "
    "a second view of every image. `published` does the work of the published step (see benchmarks.train_step). The "
    "other rows change settings. frozen tokens: optim.freeze_stage_1_tokens. views of 1/4: loss.equivariance.images is "
    "a quarter of the batch. half-size stage 1: model.stage_1_image_size is half the image. stored tokens: "
    "train.token_cache holds every image of the batch. 3/4 of the blocks frozen: optim.freeze_stage_2_blocks. Times "
    "faster: than the first row, median over the rounds of the ratio within a round. Peak MiB: tensors in addition to "
    "weights and optimiser state."
)


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    flags = parser(__doc__, rounds=3, precisions=["fp32", "bf16"])
    flags.add_argument("--backbone", default="vit_small_patch14_dinov2", help="any timm ViT, with random weights")
    flags.add_argument("--batch", type=PositiveInt, default=16)
    flags.add_argument("--keep", type=LeftOpenUnitInterval, default=0.3, help="fraction of patches stage 2 sees")
    return flags.parse_args(args)


def train_step(name: str, options: argparse.Namespace, device: torch.device, folder: Path) -> Callable[[], object]:
    """One training step of a recipe with the trainer's own code. `folder`: where tokens are stored.

    The learning rate is 0: steps leave the weights as they are.
    """
    changes = RECIPES[name]
    size = options.image_size
    stage_1_size = size // 2 if "half size" in changes else 0
    model_config = ModelConfig(backbone=options.backbone, weights="none", stage_1_image_size=stage_1_size)
    torch.manual_seed(SEED)
    model = FixedMaskModel(model_config, NUM_CLASSES, (size, size)).to(device)
    blocks = len(cast(Any, model.stage_2.backbone).blocks) * 3 // 4
    config = RunConfig(
        model=model_config,
        loss=LossConfig(equivariance=EquivarianceConfig(images=max(1, options.batch // 4) if VIEWS in changes else 0)),
        optim=OptimConfig(
            lr=0.0, freeze_stage_1_tokens=TOKENS in changes, freeze_stage_2_blocks=blocks if BLOCKS in changes else 0
        ),
    )
    variant = VARIANTS["published" if name == "published" else "packed"]
    model.stage_2 = with_weights_of(model.stage_2, variant)
    if "stored" in changes:
        model.stage_1.token_cache = TokenCache(folder, 1e10)
    state = RunState(
        model=model,
        optimizer=build_optimizer(model, two_stage_rules(config.optim), config.optim, config.optim.weight_decay),
        scaler=torch.amp.GradScaler(device.type, enabled=False),
        ema=None,
        progress=Progress(),
        means=EpochMeans(device, {}),
    )
    objective = variant.objective(config.loss, NUM_CLASSES, [1] * NUM_CLASSES)
    step = TrainStep(config, state, objective, PRECISIONS[options.precision])
    model.fixed_mask = random_mask(options.batch, model.patch_grid, options.keep).to(device)
    batch = random_batch(options.batch, size, device)
    model.train()
    step(batch, 1.0, 1.0)  # makes the optimiser's state and stores the tokens
    return partial(step, batch, 1.0, 1.0)


def _always(step: Callable[[], object], number: int) -> Callable[[], object]:
    """The same step in every round."""
    return step


@exit_on_user_error
def main(args: Sequence[str] | None = None) -> None:
    """Measure and report."""
    options = parse(args)
    device = start(options)
    with tempfile.TemporaryDirectory() as folder:
        steps = {name: train_step(name, options, device, Path(folder)) for name in RECIPES}
        cases = [Case({"recipe": name}, options.batch, partial(_always, step)) for name, step in steps.items()]
        measure(cases, options.rounds, device)
    words = ["recipes", options.backbone, f"{options.image_size}px", device.type, options.precision]
    report("Training recipes", [Section("Training step", rows(cases))], METHOD, options, "_".join(words))


if __name__ == "__main__":
    main()
