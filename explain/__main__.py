"""Draw heat maps of what a classifier looks at: one column per image and class, one row per method.

    python -m explain photo.jpg --model timm/vit_small_patch16_224
    python -m explain photo.jpg --method agcam rollout --head-fusion max --target "golden retriever" "tabby cat"
    python -m explain photos/ --run runs/quickstart/two_stage-seed0 --method all --out parts.png --save-maps maps.h5

--plugin FILE.py imports a file of yours that registers a model or method.

Writes one PNG, and prints the predicted class, its probability and the file of each image. For a two-stage run the PNG
also shows its parts, what stage 2 sees, and the foreground probability.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError, exit_on_user_error, printable
from common.files import read_file
from common.flags import Parser
from common.plugins import with_plugins
from explain.output import MAP_SUFFIXES, check_output, find_images, write_maps

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from explain.loading import Classifier
    from explain.sheet import ExplainedImage, ExplanationSheet

MODEL = "timm/vit_small_patch16_224"
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
SHOWN = 60
"""Largest number of columns of the sheet."""
METHODS = ("agcam", "gradcam", "rollout")
"""The methods shown by default."""


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line. Raises UserError."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = Parser(
        "python -m explain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of images")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--model", default=MODEL, metavar="NAME", help=f"timm/, torchvision/ or hf/NAME; default: {MODEL}"
    )
    source.add_argument("--run", type=Path, metavar="DIR", help="folder that train.py wrote")
    parser.add_argument("--weights", metavar="FILE", help="for --model: hub (default), none, or a file")
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), help="for --model: input size, pixels")
    parser.add_argument(
        "--crop", choices=("model", "center", "squash"), default="model",
        help="center: resize to cover the input and crop the centre; squash: the whole image, distorted; "
        "default: as the model's own evaluation",
    )  # fmt: skip
    parser.add_argument("--interpolation", choices=INTERPOLATIONS, help="for --model; default: the model's own")
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}", nargs=3, type=float, metavar=("R", "G", "B"),
            help=f"for --model: {name} of the normalisation, for values in [0, 1]; default: the model's own",
        )  # fmt: skip
    parser.add_argument("--stage", type=int, choices=(1, 2), default=2, help="of a two-stage run; default: 2")
    parser.add_argument(
        "--method", nargs="+", default=METHODS, metavar="NAME", help=f"names, or all; default: {' '.join(METHODS)}"
    )
    parser.add_argument(
        "--target",
        nargs="+",
        metavar="CLASS",
        help="class numbers or names (without classifier: numbers of features); default: predicted class",
    )
    parser.add_argument(
        "--target-image", type=Path, metavar="FILE",
        help="for a model without classifier: explain the similarity of its features to those of this image",
    )  # fmt: skip
    parser.add_argument("--class-names", type=Path, metavar="FILE", help="text file with one class name per line")
    parser.add_argument("--same-scale", action="store_true", help="one scale for all maps of a method")
    parser.add_argument(
        "--out", type=Path, default=Path("explained.png"), metavar="FILE", help="default: explained.png"
    )
    parser.add_argument("--save-maps", type=Path, metavar="FILE", help="also save the unscaled maps: .npy or .h5")
    parser.add_argument("--overwrite", action="store_true", help="overwrite files that this command did not write")
    if {"-h", "--help"} & set(arguments) and "--method" not in arguments:  # the methods are slow to import
        parser.epilog = "options of methods, such as --head-fusion: python -m explain --method all --help"
    else:
        from explain.options import add_options

        add_options(parser)
    args = parser.parse_args(arguments)
    if args.out.suffix.lower() != ".png":
        raise UserError(f"--out: {args.out} must end in .png")
    if args.std and min(args.std) <= 0:
        raise UserError(f"--std: {' '.join(map(str, args.std))}; give positive values")
    return args


def check_outputs(args: argparse.Namespace) -> None:
    """Raise UserError for output files that must not be written."""
    inputs = [*args.images, *(Path(file) for file in (args.class_names, args.weights, args.target_image) if file)]
    check_output(args.out, "--out", inputs, args.overwrite)
    if not args.save_maps:
        return
    if args.save_maps.suffix not in MAP_SUFFIXES:
        raise UserError(f"--save-maps: {args.save_maps} must end in {' or '.join(MAP_SUFFIXES)}")
    if args.save_maps.suffix == ".npy" and (len(args.method) > 1 or args.method == ["all"]):
        raise UserError("--save-maps: a .npy file holds the maps of one method; name a .h5 file, or one --method")
    check_output(args.save_maps, "--save-maps", inputs, args.overwrite)


def load(args: argparse.Namespace) -> "Classifier":
    """Load the model that the flags name. Raises UserError."""
    from explain.loading import Preprocessing, load_any, load_run

    if args.run:
        given = [flag for flag in ("weights", "size", "interpolation", "mean", "std") if getattr(args, flag)]
        if given:
            raise UserError(f"--{given[0]} goes with --model; a run has its own weights, size and normalisation")
        return load_run(args.run, args.crop)
    mean, std, size = (tuple(values) if values else None for values in (args.mean, args.std, args.size))
    return load_any(args.model, args.weights or "hub", size, Preprocessing(args.crop, args.interpolation, mean, std))


def read_names(path: Path) -> list[str]:
    """The class names in the file, one per line. Raises UserError if it cannot be read."""
    try:
        return [name.strip() for name in read_file(path).decode().strip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--class-names: cannot read {path} ({error})") from None


def names_of(classifier: "Classifier", path: Path | None, given: list[str] | None) -> list[str]:
    """The names given in the file `path`, else the classifier's own, else "class 0", ... Raises UserError if there are
    more or fewer given names than classes.
    """
    if not classifier.has_classes:
        return []
    count = classifier.num_classes
    if given is not None and len(given) != count:
        raise UserError(f"--class-names: {path} has {len(given)} lines; the model has {count} classes")
    return given or classifier.class_names or [f"class {index}" for index in range(count)]


def build_sheet(args: argparse.Namespace) -> "ExplanationSheet":
    """Load the model, and check methods, names and targets. What needs no model is checked first. Raises UserError."""
    import torch

    from datasets.formats.images import read_image
    from explain.options import build_methods
    from explain.sheet import ExplanationSheet

    methods = build_methods(args.method, vars(args))
    given = read_names(args.class_names) if args.class_names else None
    classifier = load(args)
    names = names_of(classifier, args.class_names, given)
    targets = targets_of(args, classifier, names)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier.model.to(device)
    other = None
    if args.target_image:
        other = args.target_image.name, classifier.preprocess(read_image(args.target_image)).to(device)
    return ExplanationSheet(classifier, methods, names, targets, args.stage, args.same_scale, other)


def targets_of(args: argparse.Namespace, classifier: "Classifier", names: list[str]) -> list[int]:
    """`--target` as indices of classes, or of features for a model without classifier. Raises UserError."""
    from explain.inputs import class_index

    if classifier.has_classes:
        if args.target_image:
            raise UserError("--target-image: this model has a classifier; name a class with --target")
        return [class_index(text, names) for text in args.target or []]
    if args.target and args.target_image:
        raise UserError("--target: with --target-image, the similarity of all features is explained; leave one out")
    for text in args.target or []:
        if not text.isdecimal():
            raise UserError(f"--target: {text!r}; this model has no classifier, so give the number of a feature")
    return [int(text) for text in args.target or []]


@contextmanager
def progress(steps: int, console: "Console | None" = None) -> Iterator[Callable[[str], None]]:
    """A progress bar with the elapsed and the remaining time on a terminal's stderr; yields a function to call before
    each step with what it does.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = console or Console(stderr=True)
    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task, started = bar.add_task("", total=steps), False

        def start(what: str) -> None:
            nonlocal started
            bar.update(task, description=what, advance=int(started))
            started = True

        yield start


def explain_all(sheet: "ExplanationSheet", paths: Sequence[Path], everything: bool) -> list["ExplainedImage"]:
    """Explain every image. `everything`: leave out methods that cannot explain the model. Raises UserError."""
    from datasets.formats.images import read_image

    def read(path: Path) -> "Tensor":
        return sheet.classifier.preprocess(read_image(path)).to(next(sheet.classifier.model.parameters()).device)

    if everything:
        for problem in sheet.leave_out_unable(read(paths[0])):
            print(printable(problem), file=sys.stderr)
    with progress(len(paths) * len(sheet.methods)) as start:
        return [sheet.explain(path, read(path), start) for path in paths]


def shown_images(args: argparse.Namespace) -> int:
    """How many images fit on the sheet; says so if not all of them do."""
    count = max(1, SHOWN // len(args.target or [0]))
    if count < len(args.images):
        rest = "" if args.save_maps else "; --save-maps FILE.h5 explains all"
        print(f"note: the sheet shows the first {count} of {len(args.images)} images{rest}", file=sys.stderr)
    return count


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Print each warning of a method once, as one line on stderr, at the end."""
    with warnings.catch_warnings(record=True) as caught:
        try:
            yield
        finally:
            for text in dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning)):
                print(printable(f"note: {text}"), file=sys.stderr)


@exit_on_user_error
@with_plugins
@warnings_as_notes()
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    args = parse_args(arguments)
    args.images = find_images(args.images)
    check_outputs(args)
    shown = shown_images(args)
    paths = args.images if args.save_maps else args.images[:shown]
    from datasets.formats.images import read_image

    for path in [*paths, *filter(None, [args.target_image])]:  # a broken file is found before the model is loaded
        read_image(path)
    sheet = build_sheet(args)
    images = explain_all(sheet, paths, args.method == ["all"])
    for image in images:
        text = "no classifier"
        if image.predicted is not None:
            text = f"{sheet.names[image.predicted]}  {image.probability[image.predicted]:.3f}"
        print(printable(f"{text}  {image.path}"))
        for note in sheet.notes(image):
            print(printable(note), file=sys.stderr)
    print(f"input: {sheet.classifier.preprocessing}")
    for note in compat_notes(args, sheet):
        print(printable(note), file=sys.stderr)
    if args.save_maps:
        print(f"maps: {write_maps(args.save_maps, images, sheet.names)}")
    print(f"look at {sheet.write(images[:shown], args.out)}")


def compat_notes(args: argparse.Namespace, sheet: "ExplanationSheet") -> list[str]:
    """What vit-explain's command does besides `--compat vit-explain`, if it is not given."""
    if getattr(args, "compat", "") != "vit-explain" or args.run:
        return []
    half = [0.5, 0.5, 0.5]
    wanted = {
        "--crop squash": args.crop == "squash",
        "--mean 0.5 0.5 0.5": list(sheet.classifier.mean) == half,
        "--std 0.5 0.5 0.5": list(sheet.classifier.std) == half,
        "--head-fusion max": "rollout" not in sheet.methods or "head_fusion" in args,
    }
    lacking = [flag for flag, given in wanted.items() if not given]
    return [f"note: vit-explain's command also has {' '.join(lacking)}"] if lacking else []


if __name__ == "__main__":
    main()
