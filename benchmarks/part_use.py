"""Which settings of stage 1 use all K parts. Trains the part head alone, on cached patch tokens of a frozen backbone.

    python -m benchmarks.part_use --data cub=../shared/data/published/cub10 waterbirds=../shared/data/real_birds
    python -m benchmarks.part_use --data waterbirds=data/real_birds --rows current recipe --seeds 0 1 2 --save

A row is a setting: config keys on top of --config. --set adds a row of your own. Each row is trained from scratch on
every data set and seed with the losses, optimiser and schedule of train.py; the tables show means over the seeds.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, one_hot

from benchmarks.cached_tokens import CachedSplit, TokenModel, TokenObjective, cache_split, rows_of
from benchmarks.harness import RESULTS, Section, log, report, start
from benchmarks.part_settings import SETTINGS
from common.errors import UserError, exit_on_user_error
from common.flags import Parser
from common.ranges import NonNegativeInt, PositiveInt
from common.seeds import stable_seed
from datasets import Batch, load_split
from datasets.subset import sample_split
from engine.evaluation.predict import evaluation_mode, prediction_of
from engine.run.command_line import load_config
from engine.run.config import RunConfig
from engine.training.epoch_means import EpochMeans
from engine.training.optim import build_optimizer, normalised_weight_decay, two_stage_rules
from engine.training.schedule import lr_factor
from engine.training.state import Progress, RunState
from engine.training.step import TrainStep
from losses.equivariance import AffineView
from metrics import Prediction, build_metrics
from metrics.base import mean
from models.backbone import create_backbone, load_backbone_weights

Predict = Callable[[Batch, Tensor], Prediction]
"""Annotations of images [B] and their tokens [B, N, D] -> part maps."""
STEPS = "steps"
"""A row's key for its number of training steps; all others are config keys."""
COLUMNS = {
    "parts_used": "parts used", "part_entropy": "entropy", "largest_part": "largest part",
    "parts_per_image": "parts per image", "part_nmi": "NMI", "part_ari": "ARI", "keypoint_error": "key-point error",
    "mask_iou": "mask IoU", "foreground_iou": "foreground IoU", "accuracy": "accuracy",
}  # fmt: skip
METHOD = (
    "Patch tokens of the frozen backbone are computed once: each training image, its flip, a warped view of both. "
    "The part head (prototypes, modulation, classifier) is trained on them as in train.py: losses, optimiser, "
    "parameter groups, schedule, noise, clipping. Evaluated without noise: cub on its test split, others on val. Parts "
    "used: parts that hold at least 1 % of the foreground patches. Entropy: of the foreground patches over the parts, "
    "1 = equally many. Key-point error: fraction of the box."
)


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    flags.add_argument("--data", nargs="+", required=True, metavar="NAME=FOLDER", help="data.name=data.root of each")
    flags.add_argument("--config", type=Path, default=Path("configs/real_birds.yaml"), help="what the rows change")
    flags.add_argument("--image-size", type=PositiveInt, default=224, help="pixels")
    flags.add_argument("--images", type=PositiveInt, default=400, help="largest number of training images")
    flags.add_argument("--steps", type=PositiveInt, default=60, help="of rows that do not set their own")
    flags.add_argument("--seeds", type=int, nargs="+", default=[0])
    flags.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="default: all")
    flags.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="one more row; key steps: its length")
    flags.add_argument("--clusters", type=PositiveInt, nargs="+", default=[], metavar="K", help="rows of k-means")
    flags.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    flags.add_argument("--threads", type=NonNegativeInt, default=0, help="CPU threads; 0: torch's default")
    flags.add_argument("--out", type=Path, help="write the results to this file, as .json and .md")
    flags.add_argument("--save", action="store_true", help=f"write the results to {RESULTS.parent.name}/{RESULTS.name}")
    return flags.parse_args(args)


def settings_of(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Row -> its config keys. Raises UserError for an unknown row or a value that is not valid YAML."""
    if unknown := [row for row in options.rows if row not in SETTINGS]:
        raise UserError(f"--rows: unknown {', '.join(unknown)}; known: {', '.join(SETTINGS)}")
    chosen = {row: keys for row, keys in SETTINGS.items() if not (options.rows or options.set) or row in options.rows}
    if options.set:
        try:
            chosen["set"] = {key: yaml.safe_load(value) for key, _, value in (s.partition("=") for s in options.set)}
        except yaml.YAMLError as error:
            raise UserError(f"--set: {' '.join(str(error).split())}") from None
    return chosen


def config_of(options: argparse.Namespace, keys: Mapping[str, Any], name: str, root: str, seed: int = 0) -> RunConfig:
    """The config of a row on a data set."""
    fixed = {"data.name": name, "data.root": root, "data.image_size": options.image_size, "train.seed": seed}
    return load_config(options.config, {**{k: v for k, v in keys.items() if k != STEPS}, **fixed})


def read_data(options: argparse.Namespace, name: str, root: str) -> tuple[CachedSplit, CachedSplit]:
    """Tokens for training and for evaluation: the test split of cub, which has no val, else val."""
    config = config_of(options, {}, name, root)
    backbone = create_backbone(config.model.backbone, config.data.size_hw).eval()
    load_backbone_weights(backbone, config.model.backbone, config.model.weights)
    train = sample_split(load_split(config.data, "train", train=False, seed=0), options.images)
    held_out = load_split(config.data, "test" if name == "cub" else "val", train=False, seed=0)
    backbone, device = backbone.to(options.device), torch.device(options.device)
    return cache_split(backbone, train, config.loss.equivariance, device), cache_split(backbone, held_out, None, device)


def train_head(config: RunConfig, data: CachedSplit, steps: int, device: torch.device) -> TokenModel:
    """Train the part head for `steps` steps; the schedule of stage 1 alone is stretched over them."""
    torch.manual_seed(config.train.seed)
    model = TokenModel(config.model, data.info.num_outputs, config.data.size_hw).to(device).train()
    counts = data.label.bincount(minlength=data.info.num_classes).tolist()
    objective = TokenObjective(config.loss, data.info.num_classes, counts)
    epochs = config.optim.stage_1_epochs or config.train.epochs
    decay = normalised_weight_decay(config.optim, max(1, steps // epochs), epochs)
    optimizer = build_optimizer(model, two_stage_rules(config.optim), config.optim, decay)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    state = RunState(model, optimizer, scaler, None, Progress(), EpochMeans(device, {}))
    step = TrainStep(config, state, objective, torch.float32)
    for number in range(steps):
        batch, objective.second = draw_batch(config, data, number, device)
        state.progress.batch = number
        step(batch, 1.0, lr_factor(config.optim, config.train.epochs, epochs * number / steps))
    return model


def draw_batch(
    config: RunConfig, data: CachedSplit, step: int, device: torch.device
) -> tuple[Batch, tuple[Tensor, AffineView]]:
    """Batch number `step` with tokens as its images, each of a random view, and its warped views."""
    assert data.warped is not None and data.view is not None
    label, size = data.label, config.data.batch_size
    per_epoch = len(label) // size
    if not per_epoch:
        raise UserError(f"{data.info.name}: {len(label)} training images are fewer than data.batch_size={size}")
    epoch, position = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(stable_seed("order", config.train.seed, epoch))
    rows = torch.randperm(len(label), generator=generator)[position * size : (position + 1) * size]
    which = torch.randint(len(data.tokens), (len(label),), generator=generator)[rows]
    tokens, warped = data.tokens[which, rows], data.warped[which, rows]
    batch = Batch(tokens.float(), label[rows], tuple(f"image {row}" for row in rows.tolist())).to(device)
    return batch, (warped.float().to(device), rows_of(data.view, which, rows))


def measure(predict: Predict, train: CachedSplit, held_out: CachedSplit) -> dict[str, float]:
    """The metrics of part maps on the held-out images; those of key points where there are any."""
    points = held_out.batches[0].keypoints is not None
    names = ["accuracy", "part_use", "mask", "foreground", *(["parts", "keypoints"] if points else [])]
    metrics = build_metrics(names, held_out.info)
    for batch, tokens in train.evaluated() if points else ():
        metrics.fit(batch, predict(batch, tokens))
    for batch, tokens in held_out.evaluated():
        metrics.update(batch, predict(batch, tokens))
    return metrics.compute()


def measure_head(
    model: TokenModel, train: CachedSplit, held_out: CachedSplit, device: torch.device
) -> dict[str, float]:
    """`measure` of a trained part head."""
    with evaluation_mode(model, device, seed=0):
        return measure(lambda _, tokens: prediction_of(model.select(tokens.to(device))), train, held_out)


def measure_clusters(train: CachedSplit, held_out: CachedSplit, parts: int) -> dict[str, float]:
    """`measure` of k-means clusters of the tokens inside the true masks: what tokens give without any training."""
    inside = torch.cat([object_patches(batch, tokens) for batch, tokens in train.evaluated()])
    found = KMeans(parts, n_init=3, random_state=0).fit(train.tokens[0].float()[inside].numpy())

    def predict(batch: Batch, tokens: Tensor) -> Prediction:
        patches = object_patches(batch, tokens)
        label = torch.from_numpy(found.predict(tokens.flatten(0, 1).numpy())).view(patches.shape).long()
        grid = (math.isqrt(tokens.shape[1]), -1)
        maps = one_hot(label.where(patches, parts), parts + 1).movedim(-1, 1).unflatten(2, grid).float()
        logits = torch.zeros(len(tokens), held_out.info.num_outputs)
        return Prediction(logits, mask=patches.unflatten(1, grid), maps=maps)

    return measure(predict, train, held_out)


def object_patches(batch: Batch, tokens: Tensor) -> Tensor:
    """[B, N] bool: patches of which the true mask covers at least half. Raises UserError without true masks."""
    if batch.mask is None:
        raise UserError(f"--clusters: {batch.paths[0]} has no true mask")
    side = math.isqrt(tokens.shape[1])
    return adaptive_avg_pool2d(batch.mask[:, None].float(), side).flatten(1) >= 0.5


def measure_row(
    options: argparse.Namespace, row: str, keys: dict[str, Any], source: tuple[str, str],
    data: tuple[CachedSplit, CachedSplit],
) -> dict[str, Any]:  # fmt: skip
    """One row of the table of a data set: means over the seeds; nan values are left out of a mean."""
    device, found = torch.device(options.device), []
    for seed in options.seeds:
        config = config_of(options, keys, *source, seed)
        model = train_head(config, data[0], keys.get(STEPS, options.steps), device)
        found.append(measure_head(model, *data, device))
    return table_row(f"{source[0]}, {row}", row, found)


def table_row(what: str, row: str, found: list[dict[str, float]]) -> dict[str, Any]:
    """Means of the metrics of all seeds."""
    means = {title: mean(one[key] for one in found) for key, title in COLUMNS.items() if key in found[0]}
    log(f"{what}: " + ", ".join(f"{title} {value:.3g}" for title, value in means.items()))
    return {"setting": row, **means, "parts used by seed": [one["parts_used"] for one in found]}


@exit_on_user_error
def main(args: Sequence[str] | None = None) -> None:
    """Read, train, measure, report."""
    options = parse(args)
    options.device = str(start(options))
    settings = settings_of(options)
    sections = []
    for item in options.data:
        name, _, root = item.partition("=")
        data = read_data(options, name, root)
        rows = [measure_row(options, row, keys, (name, root), data) for row, keys in settings.items()]
        for parts in options.clusters:
            title = f"k-means in the true masks, K = {parts}"
            rows.append(table_row(f"{name}, {title}", title, [measure_clusters(*data, parts)]))
        notes = [f"{len(data[0].label)} training images, {len(data[1].label)} held out"]
        sections.append(Section(name, rows, notes, {"settings": settings}))
    report("Part use", sections, METHOD, options, "part_use")


if __name__ == "__main__":
    main()
