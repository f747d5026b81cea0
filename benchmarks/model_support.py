"""Which explanation methods explain which classifiers of timm and torchvision, tried on a small model of every family.

    python -m benchmarks.model_support                                 # goes on where an interrupted run has stopped
    python -m benchmarks.model_support --families timm/eva timm/beit --out runs/model_support.csv

A family is a module of the library, such as `timm/eva`; its model is the one with the fewest weights, in a smaller size
where it is large. Weights are random, so nothing is downloaded. Maps of attention are compared with
`benchmarks.textbook_attention` in float64. Writes a CSV with a row per family and, without `--families`, the table of
docs/models.md. The exit code is 1 after an exception, a wrong map, or a model that takes too long.
"""

import argparse
import csv
import functools
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from timm.models import get_pretrained_cfg, model_entrypoint
from torch import Tensor, nn

from benchmarks.textbook_attention import ATTENTION_METHODS, textbook_maps
from common.errors import UserError, exit_on_user_error
from explain import explain

OUT = Path("docs/results/model_support/models.csv")
PAGE = Path("docs/models.md")
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("raw_attention", "rollout", "grad_rollout", "agcam", "lrp")},
    "gradcam": ("gradcam", {"relu": False}),
    "guided_backprop": ("guided_backprop", {}),
    "gradient": ("gradient", {}),
}
"""Column: the method that is tried, and its options."""
COLUMNS = ("family", "version", "class", "model", "size", *METHODS)
CLASSES = 10
LARGE = 40_000_000
"""Weights from which on a model is made smaller, if it can be."""
SMALLER: dict[str, Any] = {"depth": 2, "embed_dim": 96, "num_heads": 2}
SIDE, LARGE_SIDE = 224, 512
"""Images larger than LARGE_SIDE are made SIDE x SIDE pixels, if the model takes these."""
TOLERANCE = 1e-6
"""Largest difference to the textbook in float64, relative to the map's largest value."""
TEXT = """# Models that can be explained

Which explanation method works on which model. In Python, `explain` takes any module from images to logits; on the
command line, models are `timm/NAME`, `torchvision/NAME`, `hf/NAME` or a run. The methods:
[explanations.md](explanations.md#methods).

- `attention_flow` explains the models that `rollout` explains; `input_x_gradient` and `integrated_gradients` those that
  `gradient` explains.
- Methods with attention need one attention matrix between all patches in every block. They explain timm's
  `VisionTransformer` (ViT, DeiT, DINOv2, SigLIP, CLIP), `Eva` (DINOv3, EVA, EVA-02, Perception Encoder, ViTs with
  rotary positions), `Beit`, `VisionTransformerRelPos`, `NaFlexVit` and, partly, `Cait`.
- **CaiT.** The blocks between patches mix their heads after the softmax ("talking heads"), so the matrix that
  multiplies the values can be negative and its rows have any sum. `rollout`, `attention_flow` and `lrp` refuse it;
  `grad_rollout` takes it as A (in the product, the class token has the identity's row in these blocks, and the patches
  in the blocks of class attention). `raw_attention`, `agcam` and `gradcam` with `compat=chefer` read the blocks of
  class attention, which are numbered after the others.
- **NaFlexViT** takes images of its ordinary kind, [B, 3, H, W], in any size that its patches divide.
- **Without a classifier** (`num_classes=0`: DINOv2, DINOv3, encoders): `raw_attention`, `rollout`, `attention_flow`;
  the other methods with a [feature as target](explanations.md#features-instead-of-classes).
- Models of Hugging Face: [explanations.md](explanations.md#hugging-face).
- `lrp` has rules for `VisionTransformer`, `Beit`, `VisionTransformerRelPos`, and `Eva` and `NaFlexVit` without rotary
  positions.
- `gradcam` reads timm's last feature stage or, of other networks, the last module that returns a feature map. Tokens
  are laid out as by timm's `forward_intermediates`, or refused. Where the class score reads only a class token after
  that stage, name an earlier module with `--module`.
- The models of a family can differ in their layers: one of a family marked "yes" may be refused.

The table is written by `python -m benchmarks.model_support` ([CSV]({csv})), which tries one small model of each family
of timm {timm} and torchvision {torchvision} with random weights; of models with more than {large} million weights, a
version of {depth} blocks where the library can build it. The maps of `raw_attention`, `rollout`, `grad_rollout` and
`agcam` are those of explicit softmax attention in float64, up to {tolerance:g} of their largest value; those of the
other methods are finite and not constant. "no" is followed by the number of the reason below.

| family | class | model tried | {columns} |
| --- | --- | --- |{dashes}
"""


def families() -> dict[str, list[str]]:
    """The models of each family: "timm/eva" -> ["eva02_tiny_patch14_224", ...]."""
    found: dict[str, list[str]] = {}
    for module in timm.list_modules():
        names = timm.list_models(module=module)
        if names and model_entrypoint(names[0]).__module__.startswith("timm."):  # others can register models with timm
            found[f"timm/{module}"] = [name for name in names if "_enc" not in name] or names
    for name in torchvision.models.list_models(torchvision.models):
        module = torchvision.models.get_model_builder(name).__module__.split(".")[-1]
        found.setdefault(f"torchvision/{module}", []).append(name)
    return found


def builder(family: str, name: str) -> Callable[..., nn.Module]:
    """Makes the model with random weights; settings are those of its library."""
    if family.startswith("timm/"):
        return functools.partial(timm.create_model, name, pretrained=False, num_classes=CLASSES)
    return functools.partial(torchvision.models.get_model, name, weights=None, num_classes=CLASSES)


def version_of(family: str) -> str:
    """Of the family's library."""
    library = timm if family.startswith("timm/") else torchvision
    return str(library.__version__.split("+")[0])


def num_weights(family: str, name: str) -> int:
    """The number of weights, without allocating them."""
    if family.startswith("torchvision/"):
        return int(torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"])
    with torch.device("meta"):
        return sum(weight.numel() for weight in builder(family, name)().parameters())


def small_model(family: str, name: str) -> tuple[nn.Module, Tensor]:
    """The model with random weights, in eval mode, and an image that it takes: smaller than usual where it is large."""
    make, own = builder(family, name), own_side(family, name)
    shapes = [SMALLER, {}] if num_weights(family, name) > LARGE else [{}]
    sides = [SIDE, own] if own > LARGE_SIDE else [own]
    tries = [(shape, side, sized) for shape in shapes for side in sides for sized in (side != own, False)]
    for shape, side, sized in tries:
        torch.manual_seed(0)
        image = torch.randn(1, 3, side, side)
        try:
            model = make(**shape, **({"img_size": side} if sized else {})).eval()
            with torch.no_grad():
                model(image)
        except Exception:
            if (shape, side, sized) == tries[-1]:
                raise
            continue  # the model has no such setting, or does not take this size
        randomise(model)
        return model, image
    raise AssertionError("the last try returns or raises")


def own_side(family: str, name: str) -> int:
    """Side of the images that the model is made for, pixels."""
    if family.startswith("timm/"):
        config = get_pretrained_cfg(name, allow_unregistered=True)
        return int(config.input_size[-1]) if config else SIDE
    return int(torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0])


def randomise(model: nn.Module) -> None:
    """Random weights in place of the library's, many of which start at zero."""
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn_like(p)
            p.copy_(p + 0.1 * noise if p.ndim < 2 else noise / max(1, p[0].numel()) ** 0.5)


def try_model(family: str, name: str) -> dict[str, str]:
    """A row of the table: each method's outcome, "yes", a refusal, or "error: ..."."""
    model, image = small_model(family, name)
    outcomes = {column: outcome(model, image, *METHODS[column]) for column in METHODS}
    for method, difference in wrong_maps(model, image, [m for m in ATTENTION_METHODS if outcomes[m] == "yes"]).items():
        outcomes[method] = f"error: {difference:.1e} from the textbook, relative to the largest value"
    size, version = str(image.shape[-1]), version_of(family)
    return {
        "family": family,
        "version": version,
        "class": type(model).__name__,
        "model": name,
        "size": size,
        **outcomes,
    }


def outcome(model: nn.Module, image: Tensor, method: str, options: dict[str, Any]) -> str:
    """ "yes", the message of a refusal, or "error: ..."."""
    try:
        maps = explain(model, image, method, **options)
    except UserError as error:
        return str(error)
    except TimeoutError:
        raise
    except Exception as error:
        return f"error: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    good = bool(maps.isfinite().all()) and float(maps.max() - maps.min()) > 0
    return "yes" if good else "error: the map is constant or not finite"


def wrong_maps(model: nn.Module, image: Tensor, methods: Sequence[str]) -> dict[str, float]:
    """Of the methods whose maps are not the textbook's in float64: the relative difference. Converts the model."""
    if not methods:
        return {}
    model, image = model.double(), image.double()
    maps = {method: explain(model, image, method)[0] for method in methods}
    differences = {}
    for method, wanted in textbook_maps(model, image, methods).items():
        difference = (maps[method].flatten() - wanted).abs().max() / wanted.abs().max()
        if not difference <= TOLERANCE:
            differences[method] = float(difference)
    return differences


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raises TimeoutError inside after this many seconds."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def page(rows: Sequence[dict[str, str]]) -> str:
    """docs/models.md."""
    text = TEXT.format(
        timm=version_of("timm/"), torchvision=version_of("torchvision/"), csv=OUT.relative_to("docs"),
        columns=" | ".join(METHODS), dashes=" --- |" * len(METHODS), tolerance=TOLERANCE,
        large=LARGE // 10**6, depth=SMALLER["depth"],
    )  # fmt: skip
    reasons: dict[str, int] = {}
    for row in rows:
        marks = []
        for column in METHODS:
            why = reason(row, row[column])
            marks.append("yes" if why == "yes" else f"no ({reasons.setdefault(why, len(reasons) + 1)})")
        text += f"| {row['family']} | `{row['class']}` | `{row['model']}` | {' | '.join(marks)} |\n"
    return text + "\n" + "".join(f"{number}. {why}\n" for why, number in reasons.items())


def reason(row: dict[str, str], message: str) -> str:
    """A refusal without the name of the model's class and without what to do instead."""
    kind = row["class"]
    for words in (f"a {kind}", f"an {kind}"):
        message = message.replace(words, "the network")
    return message.removeprefix("--method: ").split("; ")[0]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV of this script that need not be tried again: those of this version of their library."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    now = [row for row in rows if tuple(row) == COLUMNS and row["version"] == version_of(row["family"])]
    return [row for row in now if not any(cell.startswith("error") for cell in row.values())]


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """The CSV, families in alphabetical order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["family"]))


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", metavar="NAME", help="such as timm/eva; default: all")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help=f"default: {OUT}; rows in it are kept")
    parser.add_argument("--seconds", type=int, default=300, help="stop trying a model after this time; default: 300")
    args = parser.parse_args(arguments)
    known, rows = families(), read_rows(args.out)
    if unknown := set(args.families or ()) - known.keys():
        raise UserError(f"--families: no family {', '.join(sorted(unknown))}; known: {' '.join(known)}")
    done = {row["family"] for row in rows}
    torch.set_num_threads(1)
    for family in args.families or known:
        if family in done:
            continue
        name = min(known[family], key=lambda each: (num_weights(family, each), each))
        try:
            with warnings.catch_warnings(), at_most(args.seconds):
                warnings.simplefilter("ignore")
                rows.append(try_model(family, name))
        except Exception as error:
            what = f"error: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            rows.append(dict.fromkeys(COLUMNS, "") | {"family": family, "model": name} | dict.fromkeys(METHODS, what))
        write_rows(args.out, rows)
        print(*(f"{key}={value[:70]}" for key, value in rows[-1].items()), sep="  ", flush=True)
    if not args.families:
        PAGE.write_text(page(read_rows(args.out)))
    if any(cell.startswith("error") for row in rows for cell in row.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
