"""Time and memory of every explanation method and of ABPC: ours, the published form, and installable packages.

    python -m benchmarks.explanations --save                                  # about 8 minutes on 2 CPU cores
    python -m benchmarks.explanations --models vit_base_patch16_224 --save    # about 30
    python -m benchmarks.explanations --device cuda --batches 64 1 --models vit_small_patch16_224 vit_base_patch16_224

The packages are measured where they are installed: `pip install captum grad-cam`. Nothing is timed (exit code 1)
unless ours equals the published form in double precision.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from benchmarks import published_explanations as published
from benchmarks.harness import MIB, SEED, Case, Section, measure, parser, report, require_equal, start
from common.errors import exit_on_user_error
from common.ranges import PositiveInt
from datasets.types import Batch, DatasetInfo
from explain import explain
from explain.loading import load_any
from metrics.maps.perturbation import ABPC
from metrics.types import Explanation

MODULES = {"captum": "captum", "grad-cam": "pytorch_grad_cam"}
"""Package -> the module it installs."""
CHECK_IMAGES = 2
ABPC_IMAGES = 4
"""ABPC removes pixels in 18 steps, so a batch holds a quarter of the images; its forward passes are as large."""
GREY = (0.5, 0.5, 0.5)
TOLERANCE = 1e-6
"""Largest difference in double precision, relative to each map's largest value."""
METHOD = (
    "`published` does the work of the published code: one image per call, unfused attention read by hooks, N x N "
    "products, gradients of all weights, fp32. Where a method has options, ours is timed with those that give the "
    "published number. `forwards`: seconds per image relative to a forward pass at the same batch size. `times "
    "published`: images/s relative to the published form, at batch 1. `times package`: relative to the package at the "
    "same batch size. All three are medians over the rounds of the ratio within a round. captum's guided_backprop "
    "guides only ReLU, so for a ViT it is the plain gradient; grad-cam also enlarges its maps. abpc takes 19 forward "
    "passes per image, the published form 22. Peak MiB: tensors in addition to weights and images."
)


class Inputs(NamedTuple):
    """Images, and maps for ABPC to score."""

    images: Tensor
    """[B, 3, H, W]."""
    maps: Tensor
    """[B, H, W] in [0, 1), all pixels of a map different: ties would leave their order open."""
    labels: Tensor
    """[B] int64."""


def random_inputs(count: int, size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Inputs:
    """`count` random images of size x size pixels."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(count, 3, size, size, generator=generator)
    maps = torch.rand(count, size * size, generator=generator).argsort(1) / size**2
    labels = torch.randint(10, (count,), generator=generator)
    return Inputs(images.to(device, dtype), maps.view(count, size, size).to(device, dtype), labels.to(device))


class Models:
    """A ViT with random weights, and a copy with unfused attention for the published forms."""

    def __init__(self, name: str, size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        """Raises UserError for a model that timm cannot make or the published code cannot explain."""
        torch.manual_seed(SEED)
        vit = load_any(f"timm/{name}", "none", (size, size)).model
        assert isinstance(vit, VisionTransformer)
        for module in vit.modules():
            if isinstance(module, nn.Linear):  # timm's initial weights give nearly uniform attention: errors would hide
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        self.vit = vit.to(device, dtype)
        self.explicit = published.explicit(vit)

    def logits(self, images: Tensor) -> Tensor:
        """[B, C], without gradients."""
        with torch.no_grad():
            return self.vit(images)


Implementation = Callable[[Models, Inputs], Tensor]
"""(models, inputs) -> maps or scores [B, ...]."""


@dataclass(frozen=True)
class Task:
    """A method, and the implementations that are compared."""

    label: str
    """The method, then the options of ours that give the published number."""
    implementations: dict[str, Implementation]
    """By "ours", "published" or the name of a package."""
    equal: bool = True
    """Whether all implementations compute the same."""
    fewer: int = 1
    """A batch holds so many times fewer images, where one image takes many forward passes or long."""


def is_installed(package: str) -> bool:
    """Whether the package can be imported."""
    return find_spec(MODULES[package]) is not None


def _task(name: str, options: dict[str, Any] | None = None, equal: bool = True, fewer: int = 1, **others: Any) -> Task:
    def ours(models: Models, inputs: Inputs) -> Tensor:
        return explain(models.vit, inputs.images, name, **(options or {}))

    label = " ".join([name, *(f"{key}={value}" for key, value in (options or {}).items())])
    return Task(label, {"ours": ours, **{other.replace("_", "-"): run for other, run in others.items()}}, equal, fewer)


def _one_by_one(method: Callable[[VisionTransformer, Tensor], Tensor]) -> Implementation:
    def run(models: Models, inputs: Inputs) -> Tensor:
        maps = torch.stack([method(models.explicit, image[None]) for image in inputs.images])
        models.explicit.zero_grad()
        return maps

    return run


def _captum(name: str, signed: bool = True, **options: Any) -> Implementation:
    def run(models: Models, inputs: Inputs) -> Tensor:
        from captum import attr

        images, targets = inputs.images.clone().requires_grad_(), models.logits(inputs.images).argmax(1)
        found = getattr(attr, name)(models.vit).attribute(images, target=targets, **options).detach()
        return found.sum(1) if signed else found.abs().sum(1)

    return run


def _grad_cam(models: Models, inputs: Inputs) -> Tensor:
    """On the tokens after the last block's first norm; enlarged and stretched to [0, 1]."""
    from pytorch_grad_cam import GradCAM

    vit = models.vit

    def spatial(tokens: Tensor) -> Tensor:
        return tokens[:, vit.num_prefix_tokens :].transpose(1, 2).unflatten(2, vit.patch_embed.grid_size)

    with GradCAM(vit, [vit.blocks[-1].norm1], reshape_transform=spatial) as cam:
        found = torch.from_numpy(cam(input_tensor=inputs.images, targets=None))
    vit.zero_grad()
    return found


def _abpc(models: Models, inputs: Inputs) -> Tensor:
    count = len(inputs.images)
    batch = Batch(inputs.images, inputs.labels, ("",) * count)
    metric = ABPC(DatasetInfo("noise", ()), mean=GREY, std=GREY, chunk=count * ABPC_IMAGES if count > 1 else 1)
    explanation = Explanation(inputs.maps, models.logits(inputs.images), models.logits)
    return metric.rows(batch, explanation)[:, 0]


def _published_abpc(models: Models, inputs: Inputs) -> Tensor:
    each = zip(*inputs, strict=True)
    return torch.stack([published.abpc(models.explicit, image[None], heat, label) for image, heat, label in each])


def _forward_backward(models: Models, inputs: Inputs) -> Tensor:
    """As in training: a gradient for every weight."""
    logits = models.vit(inputs.images)
    logits.amax(1).sum().backward()
    models.vit.zero_grad()
    return logits


FORWARD, FORWARD_BACKWARD = "(forward)", "(forward+backward)"
"""For comparison: the model alone."""
TASKS = (
    Task(FORWARD, {"ours": lambda models, inputs: models.logits(inputs.images)}),
    Task(FORWARD_BACKWARD, {"ours": _forward_backward}),
    _task("raw_attention"),
    _task("gradient"),
    _task("rollout", {"compat": "vit-explain"}, published=_one_by_one(published.rollout)),
    _task("grad_rollout", {"compat": "vit-explain"}, published=_one_by_one(published.grad_rollout)),
    _task("lrp", {"start_layer": published.LRP_START, "precision": "model"}, published=_one_by_one(published.lrp)),
    _task("agcam", published=_one_by_one(published.agcam)),
    _task("gradcam", {"compat": "chefer", "relu": False}, published=_one_by_one(published.gradcam)),
    _task("gradcam", equal=False, grad_cam=_grad_cam),
    _task("guided_backprop", equal=False, captum=_captum("GuidedBackprop", signed=False)),
    _task("input_x_gradient", captum=_captum("InputXGradient")),
    _task("integrated_gradients", {"steps": 8}, fewer=8, captum=_captum("IntegratedGradients", n_steps=8)),
    _task("attention_flow", fewer=32),
    Task("abpc", {"ours": _abpc, "published": _published_abpc}, fewer=ABPC_IMAGES),
)
NAMES = list(dict.fromkeys(task.label.split()[0] for task in TASKS[2:]))


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    flags = parser(__doc__, rounds=3, precisions=["fp32", "bf16"])
    flags.add_argument("--models", nargs="+", default=["vit_small_patch16_224"], help="timm ViTs, with random weights")
    flags.add_argument("--batches", type=PositiveInt, nargs="+", default=[32, 1], help="not for the published form")
    flags.add_argument("--methods", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    return flags.parse_args(args)


def available(task: Task) -> dict[str, Implementation]:
    """The task's implementations that can run here."""
    return {name: run for name, run in task.implementations.items() if name not in MODULES or is_installed(name)}


def check(models: Models, inputs: Inputs, tasks: Sequence[Task]) -> dict[str, float]:
    """ "METHOD (IMPLEMENTATION)" -> largest difference from ours, which gets all images in one batch.

    Exits with code 1 where one exceeds the tolerance.
    """
    found: dict[str, float] = {}
    for task in tasks:
        for name, run in available(task).items():
            if name != "ours" and task.equal:
                ours = task.implementations["ours"](models, inputs)
                found[f"{task.label} ({name})"] = relative_difference(ours, run(models, inputs))
    require_equal(found, TOLERANCE)
    return found


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Largest |a - b| divided by the largest |b| of the same image; of the worst image. Both [B, ...]."""
    a, b = (tensor.double().reshape(len(tensor), -1) for tensor in (found, expected))
    return ((a - b).abs().amax(1) / b.abs().amax(1)).max().item()


def cases(models: Models, inputs: Inputs, tasks: Sequence[Task], precision: str, batches: Sequence[int]) -> list[Case]:
    """Ours and the packages at every batch size, the published form at 1 and in fp32."""

    def work(run: Implementation, images: int, half: bool) -> None:
        with torch.autocast(inputs.images.device.type, dtype=torch.bfloat16, enabled=half):
            run(models, Inputs(*(tensor[:images] for tensor in inputs)))

    def case(task: Task, name: str, batch: int) -> Case:
        images, half = max(1, batch // task.fewer), precision == "bf16" and name != "published"
        labels = {"method": task.label, "implementation": name, "batch": batch, "images": images}
        return Case(labels, images, lambda _: partial(work, task.implementations[name], images, half))

    names = ((task, name) for task in tasks for name in available(task))
    return [case(task, name, batch) for task, name in names for batch in ([1] if name == "published" else batches)]


def rows(measured: Sequence[Case]) -> list[dict[str, Any]]:
    """The table; METHOD explains its ratios."""
    found = {tuple(case.labels.values())[:3]: case for case in measured}  # (method, implementation, batch)

    def times(case: Case, *baselines: tuple[str, str, int]) -> float | None:
        return next((case.times_faster(found[baseline]) for baseline in baselines if baseline in found), None)

    table = []
    for (label, _, batch), case in found.items():
        forward = times(case, (FORWARD, "ours", batch))
        published = times(case, (label, "published", 1))
        package = times(case, *((label, package, batch) for package in MODULES))
        table.append(case.row(forwards=forward and 1 / forward, times_published=published, times_package=package))
    return table


def measure_model(name: str, tasks: Sequence[Task], options: argparse.Namespace, device: torch.device) -> Section:
    """The table of one model. Exits with code 1, before timing, where numbers differ."""
    size = options.image_size
    exact = Models(name, size, device, torch.float64)
    differences = check(exact, random_inputs(CHECK_IMAGES, size, device, torch.float64), tasks)
    del exact
    models, inputs = Models(name, size, device), random_inputs(max(options.batches), size, device)
    measured = cases(models, inputs, tasks, options.precision, options.batches)
    measure(measured, options.rounds, device)
    worst = ", ".join(f"{label} {value:.0e}" for label, value in differences.items())
    notes = [
        f"weights: {sum(p.nbytes for p in models.vit.parameters()) / MIB:.0f} MiB",
        f"largest difference from ours in double precision, relative to a map's largest value: {worst}",
        *(f"{package}: not installed, not measured" for package in MODULES if not is_installed(package)),
    ]
    return Section(name, rows(measured), notes, {"differences": differences})


@exit_on_user_error
def main(args: Sequence[str] | None = None) -> None:
    """Check, measure, report."""
    options = parse(args)
    device = start(options)
    tasks = [task for task in TASKS if task.label.split()[0] in (FORWARD, FORWARD_BACKWARD, *options.methods)]
    sections = [measure_model(name, tasks, options, device) for name in options.models]
    stem = ["explain", *options.models, f"{options.image_size}px", device.type, options.precision]
    report("Explanations: ours, as published, and from packages", sections, METHOD, options, "_".join(stem))


if __name__ == "__main__":
    main()
