"""Draw heat maps of what a classifier looks at: one column per image and class, one row per method.

    python -m explain photo.jpg --model timm/vit_small_patch16_224
    python -m explain photo.jpg --method agcam rollout --head-fusion max --target "golden retriever" "tabby cat" \\
        --class-names imagenet.txt
    python -m explain *.jpg --run runs/quickstart/two_stage-seed0 --out parts.png

Writes one PNG, and prints the predicted class, its probability and the file of each image. For a two-stage run the PNG
also shows its parts, what stage 2 sees, and the foreground probability.
"""

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from common.errors import UserError, exit_on_user_error
from common.flags import Parser
from datasets.config import DataConfig
from datasets.formats.images import read_image
from datasets.transforms import EvalTransform
from datasets.types import RawSample
from explain.loading import Classifier, load_run, load_timm
from explain.options import add_options, build_methods
from explain.sheet import ExplanationSheet
from report.sheets import contact_sheet

MODEL = "timm/vit_small_patch16_224"
METHODS = ("agcam", "gradcam", "rollout")
"""The methods shown by default."""


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line. Raises UserError."""
    parser = Parser(
        "python -m explain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", default=MODEL, metavar="timm/NAME", help=f"default: {MODEL}")
    source.add_argument("--run", type=Path, metavar="DIR", help="folder that train.py wrote")
    parser.add_argument("--weights", metavar="FILE", help="for --model: hub (default), none, or a file")
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), help="for --model: input size, pixels")
    parser.add_argument("--stage", type=int, choices=(1, 2), default=2, help="of a two-stage run; default: 2")
    parser.add_argument("--method", nargs="+", default=METHODS, metavar="NAME", help=f"default: {' '.join(METHODS)}")
    parser.add_argument("--target", nargs="+", metavar="CLASS", help="class numbers or names; default: predicted class")
    parser.add_argument("--class-names", type=Path, metavar="FILE", help="text file with one class name per line")
    parser.add_argument(
        "--out", type=Path, default=Path("explained.png"), metavar="FILE", help="default: explained.png"
    )
    add_options(parser)
    args = parser.parse_args(arguments)
    if args.out.suffix.lower() != ".png":
        raise UserError(f"--out: {args.out} must end in .png")
    return args


def load(args: argparse.Namespace) -> Classifier:
    """Load the model that the flags name. Raises UserError."""
    if args.run:
        if args.weights or args.size:
            raise UserError("--weights and --size go with --model; a run has its own weights and size")
        return load_run(args.run)
    place, _, name = args.model.partition("/")
    if place != "timm" or not name:
        raise UserError(f"--model: {args.model!r}; write timm/NAME, or --run DIR for a folder that train.py wrote")
    return load_timm(name, args.weights or "hub", args.size and tuple(args.size))


def read_names(path: Path | None, count: int) -> list[str]:
    """The class names in the file, or "class 0", ... without one. Raises UserError unless the file has `count`."""
    if path is None:
        return [f"class {index}" for index in range(count)]
    try:
        names = path.read_text().strip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--class-names: cannot read {path} ({error})") from None
    if len(names) != count:
        raise UserError(f"--class-names: {path} has {len(names)} lines; the model has {count} classes")
    return [name.strip() for name in names]


def class_index(text: str, names: Sequence[str]) -> int:
    """The index of a class given by number or name. Raises UserError with the nearest names."""
    if text.isdecimal():
        if int(text) < len(names):
            return int(text)
        raise UserError(f"--target: {text}; the model has classes 0 to {len(names) - 1}")
    lower = [name.lower() for name in names]
    if text.lower() in lower:
        return lower.index(text.lower())
    near = [name for name in names if text.lower() in name.lower()][:3]
    near = near or [names[lower.index(name)] for name in difflib.get_close_matches(text.lower(), lower, 3, 0)]
    raise UserError(f"--target: no class is named {text!r}; nearest: {', '.join(map(repr, near))} (see --class-names)")


def read_input(path: Path, classifier: Classifier) -> Tensor:
    """The image with the evaluation transform, [3, H, W]. Raises UserError if it cannot be read."""
    config = DataConfig(image_size=classifier.size, mean=classifier.mean, std=classifier.std)
    return EvalTransform(config)(RawSample(read_image(path), label=0, path=str(path))).image


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    args = parse_args(arguments)
    methods = build_methods(args.method, vars(args))
    classifier = load(args)
    names = read_names(args.class_names, classifier.num_classes)
    targets = [class_index(text, names) for text in args.target or []]
    classifier.model.to(device := torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    images = [read_input(path, classifier).to(device) for path in args.images]
    sheet = ExplanationSheet(classifier, methods, names, targets, args.stage)
    columns = [column for path, image in zip(args.images, images, strict=True) for column in sheet.columns(path, image)]
    print(f"look at {contact_sheet(columns, sheet.row_titles(), args.out, legend=sheet.legend())}")


if __name__ == "__main__":
    main()
