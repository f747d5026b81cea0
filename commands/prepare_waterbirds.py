"""Compose a Waterbirds-style data set from your own photographs of objects and places.

Objects are cut out by masks or alpha channels and put on backgrounds of two kinds, called land and water. Every class
of objects belongs on one kind, where most of its training images show it (--correlation). Objects and background
photographs are disjoint between splits. Guide: docs/compose.md.

    python -m commands.prepare_waterbirds data/birds --objects cutouts --labels labels.txt --land forest --water lake
    python -m commands.prepare_waterbirds data/waterbirds --preset waterbirds --objects CUB_200_2011 --places places365

Train on it with --data.name waterbirds --data.root data/birds. The same files, options and seed give the same bytes.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from rich.progress import track

from common.errors import UserError, exit_on_user_error
from common.flags import Parser
from common.ranges import ClosedUnitInterval, NonNegativeInt, PositiveInt
from common.seeds import stable_seed
from datasets.composition import recipe
from datasets.composition.backgrounds import backgrounds_in, backgrounds_of_places, listed_backgrounds
from datasets.composition.checks import check_usable
from datasets.composition.files import BackgroundFile, ObjectFile, excluding, without_ending
from datasets.composition.objects import find_objects
from datasets.composition.pixels import ComposedImage, PixelOptions, compose
from datasets.composition.plan import PlannedImage, PlanOptions, plan_images
from datasets.composition.readme import group_of, readme
from datasets.formats.layout import Entry, new_folder, write_layout
from datasets.readers.waterbirds import GROUPS
from datasets.types import SPLITS
from report.sheets import Column, contact_sheet

QUALITY = 95
TILE = 180
SHOWN = 3
"""Images of each group and split on the contact sheet."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. Raises UserError for flags that contradict each other."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="new folder; CUB_200_2011/ is created in it")
    parser.add_argument(
        "--preset", choices=("waterbirds",),
        help="the published Waterbirds: its species, and other defaults for --placement and --eval-places",
    )  # fmt: skip
    _add_source_flags(parser.add_argument_group("sources"))
    _add_image_flags(parser.add_argument_group("images"))
    _add_split_flags(parser.add_argument_group("splits"))
    args = parser.parse_args(argv)
    published = args.preset == "waterbirds"
    args.placement = args.placement or ("original" if published else "random")
    args.eval_places = args.eval_places or ("balanced" if published else "both")
    _check(args)
    args.size = args.size or 224
    args.object_size = args.object_size or [0.6, 0.9]
    return args


def _add_source_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--objects", type=Path, required=True, metavar="PATH",
        help="CUB_200_2011 with segmentations/, a folder per class, or a .csv list (file, y; species, split)",
    )  # fmt: skip
    group.add_argument(
        "--masks", type=Path, metavar="DIR", help="masks under the objects' paths; default: their alpha channels"
    )
    group.add_argument(
        "--labels", type=Path, metavar="FILE", help='lines "land CLASS" or "water CLASS"; default: by folder names'
    )
    group.add_argument(
        "--exclude", type=Path, metavar="FILE", help="objects and backgrounds to leave out, one name a line"
    )
    group.add_argument("--land", type=Path, nargs="+", metavar="DIR", help="folders of land backgrounds")
    group.add_argument("--water", type=Path, nargs="+", metavar="DIR", help="folders of water backgrounds")
    group.add_argument(
        "--places", type=Path, metavar="DIR", help="Places365; the four categories of Waterbirds are used"
    )
    group.add_argument("--backgrounds", type=Path, metavar="FILE", help="a .csv list (file, kind; split, photograph)")


def _add_image_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--size", type=PositiveInt, metavar="PIXELS", help="side of the square images; default: 224")
    group.add_argument(
        "--placement", choices=("centred", "random", "original"),
        help="original: as in the object's photograph, whose size the image has; default: random, preset: original",
    )  # fmt: skip
    group.add_argument(
        "--object-size", type=float, nargs="+", metavar="FRACTION",
        help="longer side of the object, fraction of the image's side; two numbers are a range; default: 0.6 0.9",
    )  # fmt: skip
    group.add_argument(
        "--max-upscale", type=float, default=2.0, metavar="FACTOR",
        help="enlarge objects and backgrounds by at most this; default: 2",
    )  # fmt: skip
    group.add_argument(
        "--format", choices=("jpg", "png"), default="jpg", help=f"jpg has quality {QUALITY}; default: jpg"
    )


def _add_split_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--correlation", type=ClosedUnitInterval, default=recipe.CORRELATION, metavar="FRACTION",
        help="training images of each class on the place where it belongs; default: 0.95",
    )  # fmt: skip
    group.add_argument(
        "--eval-places", choices=("both", "balanced", "correlated"),
        help="val and test: each object on both kinds of place, half of each class on each kind, or as in training; "
        "default: both, preset: balanced",
    )  # fmt: skip
    for split in SPLITS:
        group.add_argument(
            f"--{split}", type=PositiveInt, metavar="N", help=f"images of {split}; default: all objects once"
        )
    group.add_argument("--balance-classes", action="store_true", help="equally many objects of both classes")
    group.add_argument(
        "--split-by", choices=("given", "object", "class"),
        help="given: as the objects' source states; class: no class is in two splits; default: given, else object",
    )  # fmt: skip
    group.add_argument(
        "--val-fraction", type=float, default=recipe.VAL_FRACTION, metavar="FRACTION",
        help="of the objects that are not in test, if no val is given; default: 0.2",
    )  # fmt: skip
    group.add_argument(
        "--test-fraction", type=float, default=0.3, metavar="FRACTION",
        help="of the objects, if no test is given; default: 0.3",
    )  # fmt: skip
    group.add_argument("--seed", type=NonNegativeInt, default=0, metavar="N", help="random seed; default: 0")


def _check(args: argparse.Namespace) -> None:
    """Raise UserError for values out of range and flags that contradict each other."""
    given = [bool(args.land or args.water), bool(args.places), bool(args.backgrounds)]
    low, high = ((args.object_size or [0.6, 0.9]) * 2)[:2]
    original = args.placement == "original"
    valid = {
        "give the backgrounds by one of --land and --water, --places, or --backgrounds": sum(given) == 1,
        "--land and --water belong together; give folders of both": bool(args.land) == bool(args.water),
        "--size needs --placement centred or random; original keeps the photograph's": not (original and args.size),
        "--object-size needs --placement centred or random; original keeps the photograph's": not (
            original and args.object_size
        ),
        "--object-size must be one number or two": len(args.object_size or [1]) in (1, 2),
        "--object-size must be above 0 and at most 1, the smaller number first": 0 < low <= high <= 1,
        "--size must be at least 16": not args.size or args.size >= 16,
        "--max-upscale must be from 1 to 100": 1 <= args.max_upscale <= 100,
        "--val-fraction must be above 0 and below 1": 0 < args.val_fraction < 1,
        "--test-fraction must be above 0 and below 1": 0 < args.test_fraction < 1,
    }
    for problem, holds in valid.items():
        if not holds:
            raise UserError(problem)


def read_sources(args: argparse.Namespace) -> tuple[list[ObjectFile], list[BackgroundFile]]:
    """Objects and backgrounds by the flags. Raises UserError for anything missing."""
    objects = find_objects(args.objects, args.masks, args.labels, published=args.preset == "waterbirds")
    if args.places:
        backgrounds = backgrounds_of_places(args.places)
    elif args.backgrounds:
        backgrounds = listed_backgrounds(args.backgrounds)
    else:
        backgrounds = backgrounds_in((args.land, args.water))
    return excluding(args.exclude, objects, backgrounds) if args.exclude else (objects, backgrounds)


class Composer:
    """Composes the images one after the other; keeps what the contact sheet and the counts need."""

    def __init__(self, images: Sequence[PlannedImage], options: PixelOptions) -> None:
        self.images, self.options = images, options
        self.categories = sorted({image.object.category for image in images})
        self.smaller = 0
        """Images whose object is smaller than drawn, because of --max-upscale."""
        self.shown = shown_images(images)
        """Name of an image on the contact sheet -> its column, once it is composed."""

    def entries(self) -> Iterator[Entry]:
        """What to write, in the order of the plan."""
        for planned in track(self.images, "composing"):
            composed = compose(planned, self.options)
            self.smaller += composed.is_smaller
            if planned.name in self.shown:
                self.shown[planned.name] = column(planned, composed)
            yield Entry(
                composed.image, composed.mask, self.categories.index(planned.object.category), planned.object.label,
                SPLITS.index(planned.split), planned.background.place, planned.background.name, stem=planned.name,
                object_name=planned.object.name,
            )  # fmt: skip

    def write(self, folder: Path, suffix: str) -> None:
        """The images, index files and contact sheet."""
        species = [recipe.bare_name(category) for category in self.categories]
        write_layout(folder, self.entries(), species, cub_images=False, suffix=suffix, quality=QUALITY)
        columns = [each for each in self.shown.values() if each is not None]
        contact_sheet(columns, ("image", "object"), folder / "contact_sheet.png", per_band=4 * SHOWN)


def shown_images(images: Sequence[PlannedImage]) -> dict[str, Column | None]:
    """The names of `SHOWN` random images of each group and split, in the order of the contact sheet.

    They are chosen by their objects, so an object on both kinds of place is shown on both.
    """
    drawn = sorted(images, key=lambda image: stable_seed("sheet", without_ending(image.object.name), image.pose))
    cells = [(split, group) for split in SPLITS for group in range(len(GROUPS))]
    found = {cell: [each.name for each in drawn if (each.split, group_of(each)) == cell][:SHOWN] for cell in cells}
    return dict.fromkeys(name for names in found.values() for name in names)


def column(planned: PlannedImage, composed: ComposedImage) -> Column:
    """A composed image and its object, for the contact sheet."""
    cut = np.where(composed.mask[..., None], composed.image, np.uint8(128))
    views = [Image.fromarray(each) for each in (composed.image, cut)]
    tiles = [np.asarray(ImageOps.pad(view, (TILE, TILE), color="white")) for view in views]
    caption = recipe.bare_name(planned.object.category).replace("_", " ")
    return Column(tiles, f"{planned.split}: {GROUPS[group_of(planned)]}", caption)


def flags_of(args: argparse.Namespace) -> dict[str, str]:
    """The flags in use, with their values as text."""
    found = {}
    for name, value in vars(args).items():
        if value is not None and value is not False and name != "out":
            words = value if isinstance(value, list) else [value]
            found[f"--{name.replace('_', '-')}"] = " ".join(str(each) for each in words)
    if args.placement == "original":  # they do not matter there
        found = {name: value for name, value in found.items() if name not in ("--size", "--object-size")}
    return found


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Read the sources, plan, compose, write."""
    args = parse_args(argv)
    pixels = PixelOptions(args.placement, args.size, tuple(args.object_size), args.max_upscale, args.seed)
    options = PlanOptions(
        {split: getattr(args, split) for split in SPLITS}, args.correlation, args.eval_places, args.balance_classes,
        args.split_by, args.val_fraction, args.test_fraction, args.seed,
    )  # fmt: skip
    with new_folder(args.out) as folder:
        images = plan_images(*read_sources(args), options)
        check_usable(images, pixels)
        composer = Composer(images, pixels)
        composer.write(folder, f".{args.format}")
        (folder / "README.md").write_text(readme(images, flags_of(args), composer.smaller, args.out.name))
    counts = ", ".join(f"{sum(image.split == split for image in images)} {split}" for split in SPLITS)
    print(f"{counts} images in {args.out}; counts and sources: {args.out / 'README.md'}")


if __name__ == "__main__":
    main()
