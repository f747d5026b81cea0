"""Build a small Waterbirds-style data set from real photographs, in the published folder layout.

Objects: bird photographs with alpha masks from Debian's package `tuxpaint-stamps-default`. Backgrounds: Debian's
wallpaper packages, landscapes (place 0, land in Waterbirds) and artwork (place 1, water in Waterbirds). The object
determines the class. The background agrees with it in 95 % of the training images and in half of the validation and
test images, where all four groups have the same size. Test backgrounds do not appear in training; with
--unseen-species, test species do not either (hard: about ten photographs per class remain).

    python -m commands.prepare_waterstamps data/waterstamps --size 168 --train 1000 --test 400

Train on it with --data.name waterbirds --data.root data/waterstamps. Needs apt-get and dpkg-deb; the packages are
downloaded and unpacked in a temporary folder, not installed. Takes about a minute.
"""

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance
from rich.progress import track

from common.archives import unpack_tar
from common.errors import UserError, exit_on_user_error
from common.flags import Parser
from datasets.formats.images import FORMATS, read_image
from datasets.formats.layout import Entry, new_folder, write_layout
from datasets.synthetic.groups import balanced_groups
from datasets.types import SPLITS

PACKAGES = (
    "tuxpaint-stamps-default", "mate-backgrounds", "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04",
    "ukui-wallpapers", "plasma-workspace-wallpapers",
)  # fmt: skip
STAMPS = Path("usr/share/tuxpaint/stamps/animals/birds")
WALLPAPERS = (Path("usr/share/backgrounds"), Path("usr/share/wallpapers"))
LAND = (
    "adelaide-rosella", "albino_peahen", "blackbird", "crow", "rainbow-lorikeet", "cuckoo", "helmeted_guineafowl",
    "vulture", "hen", "pigeon", "chicken_profile", "quetzal", "ostrich", "rooster", "owl", "lark", "magpie", "tucan",
)  # fmt: skip
WATER = (
    "silver-gull", "little-penguin", "penguin", "pink_flamingo", "heron_greatblue_flying", "drake", "duck", "seagull",
    "gander", "magellanic_penguin", "heron_greatblue", "pelican",
)  # fmt: skip
SPECIES = tuple(sorted(LAND + WATER))
TEST_SPECIES = frozenset(
    ("cuckoo", "hen", "owl", "magpie", "rainbow-lorikeet", "silver-gull", "magellanic_penguin", "drake", "pelican")
)
NATURE = ("nature", "by_", "Autumn", "BytheWater", "EveningGlow", "FallenLeaf", "Grey", "ColdRipple", "Bridge", "Kite")
"""A wallpaper with one of these in its path is a landscape (place 0), any other is artwork (place 1)."""
SKIP = ("screenshot", "dark", "Stripes", "logo", "Elephants", "Transparent")
KINDS = ("nature", "artwork")


@dataclass(frozen=True)
class Background:
    """One wallpaper: its file name and its pixels (RGB)."""

    name: str
    image: Image.Image


@dataclass(frozen=True)
class Source:
    """The photographs that images are composed of."""

    stamps: dict[str, Image.Image]
    """Species -> RGBA photograph."""
    places: tuple[list[Background], list[Background]]
    """Landscapes, artwork."""


def run_tool(command: list[str], folder: Path, problem: str) -> None:
    """Run a program in `folder`. Raises UserError with `problem` and the last line of its stderr if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise UserError(f"{problem}: {last}")


def fetch_packages(folder: Path) -> Path:
    """Download and unpack the Debian packages in `folder`; return the root of the unpacked tree."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UserError(f"{tool} not found: run this on Debian or Ubuntu (only to download; nothing is installed)")
    # A fresh machine has no package lists. Where updating them is not permitted, the existing ones may do.
    subprocess.run(["apt-get", "update", "-qq"], capture_output=True)
    problem = "apt-get cannot download the image packages (this needs the network and Debian's or Ubuntu's archive)"
    run_tool(["apt-get", "download", "-qq", *PACKAGES], folder, problem)
    for package in sorted(folder.glob("*.deb")):
        unpack(package, folder / "root")
    return folder / "root"


def unpack(package: Path, root: Path) -> None:
    """Unpack the regular files of a Debian package. Raises UserError if it is broken or writes outside `root`."""
    command = ["dpkg-deb", "--fsys-tarfile", package.name]
    with subprocess.Popen(command, cwd=package.parent, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tool:
        assert tool.stdout is not None
        unpack_tar(tool.stdout, root, package.name)


def load_source(root: Path, short_side: int) -> Source:
    """The stamps and wallpapers of an unpacked tree; wallpapers are resized to `short_side` pixels to fit in memory."""
    stamps = {}
    for name in SPECIES:
        path = root / STAMPS / f"{name}.png"
        if not path.is_file():
            raise UserError(f"the package tuxpaint-stamps-default has no {STAMPS / path.name}; use Debian 12 or newer")
        with Image.open(path, formats=("PNG",)) as loaded:
            stamps[name] = loaded.convert("RGBA")
    places: tuple[list[Background], list[Background]] = ([], [])
    for path in track(wallpaper_files(root), "wallpapers"):
        background = Background(wallpaper_name(path), reduced(path, short_side))
        places[place_of(path.relative_to(root))].append(background)
    for kind, found in zip(KINDS, places, strict=True):
        if len(found) < 2:
            raise UserError(f"the wallpaper packages have {len(found)} {kind} images; use Debian 12 or newer")
    return Source(stamps, places)


def wallpaper_files(root: Path) -> list[Path]:
    """The usable images of the wallpaper packages, in a fixed order, each in its largest resolution only.

    KDE ships a wallpaper in several sizes, NAME/contents/images/WIDTHxHEIGHT.jpg: counted as several images, it could
    be in both training and test.
    """
    files = [path for folder in WALLPAPERS for path in sorted((root / folder).rglob("*"))]
    candidates = [path for path in files if path.suffix in {".jpg", ".png"} and not path.is_symlink()]
    usable = [path for path in candidates if not any(word in str(path.relative_to(root)) for word in SKIP)]
    widest: dict[str, Path] = {}
    for path in usable:
        key = wallpaper_name(path)
        if key not in widest or width(path) > width(widest[key]):
            widest[key] = path
    return list(widest.values())


def wallpaper_name(path: Path) -> str:
    """The file's name, or NAME for NAME/contents/images/FILE."""
    return path.parents[2].name if path.parts[-3:-1] == ("contents", "images") else path.name


def width(path: Path) -> int:
    """Width of an image file, pixels."""
    with Image.open(path, formats=FORMATS) as loaded:
        return loaded.width


def place_of(path: Path) -> int:
    """0 for a landscape, 1 for artwork."""
    return int(not any(word in str(path) for word in NATURE))


def reduced(path: Path, short_side: int) -> Image.Image:
    """The RGB image, its short side resized to at most `short_side` pixels."""
    loaded = Image.fromarray(read_image(path))
    scale = min(1.0, short_side / min(loaded.size))
    size = (round(loaded.width * scale), round(loaded.height * scale))
    return loaded.resize(size, Image.Resampling.BICUBIC)


def compose(
    stamp: Image.Image, place: Image.Image, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One object (RGBA) on a random crop of a background (RGB): image [S, S, 3] uint8 and mask [S, S] bool."""
    image = random_crop(place, size, rng)
    stamp = random_pose(stamp, size, rng)
    alpha = stamp.getchannel("A")
    corner = (int(rng.integers(0, size - stamp.width + 1)), int(rng.integers(0, size - stamp.height + 1)))
    image.paste(ImageEnhance.Brightness(stamp).enhance(rng.uniform(0.8, 1.2)), corner, alpha)
    mask = Image.new("L", (size, size))
    mask.paste(alpha, corner)
    return np.array(image), np.asarray(mask) > 127


def random_crop(place: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """A random square with a side of 50 to 100 % of the short side, resized to `size`."""
    side = int(min(place.size) * rng.uniform(0.5, 1.0))
    x, y = (int(rng.integers(0, length - side + 1)) for length in place.size)
    return place.crop((x, y, x + side, y + side)).resize((size, size), Image.Resampling.BICUBIC)


def random_pose(stamp: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """The object mirrored with p = 0.5, rotated by up to 15 degrees, its long side 40 to 75 % of `size`."""
    if rng.random() < 0.5:
        stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    stamp = stamp.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC, expand=True)
    stamp = stamp.crop(stamp.getchannel("A").getbbox())
    scale = size * rng.uniform(0.4, 0.75) / max(stamp.size)
    width, height = (max(8, round(length * scale)) for length in stamp.size)
    return stamp.resize((width, height), Image.Resampling.BICUBIC)


def usable_species(label: int, split: int, unseen: bool) -> list[str]:
    """Species of a class that may appear in a split (number): all of them, or disjoint for the test if `unseen`."""
    names = WATER if label else LAND
    return [name for name in names if not unseen or (name in TEST_SPECIES) == (SPLITS[split] == "test")]


def usable_backgrounds(backgrounds: list[Background], split: int) -> list[Background]:
    """Every third background is for test, the others are for train and val."""
    return [each for i, each in enumerate(backgrounds) if (i % 3 == 0) == (SPLITS[split] == "test")]


def entries(source: Source, args: argparse.Namespace) -> Iterator[Entry]:
    """Every image of the data set in order, a function of --seed."""
    rng = np.random.default_rng(args.seed)
    for split, count in enumerate((args.train, args.test // 2, args.test)):
        labels, places = balanced_groups(count, 0.95 if SPLITS[split] == "train" else 0.5, rng)
        for label, place in track(list(zip(labels, places, strict=True)), SPLITS[split]):
            name = str(rng.choice(usable_species(label, split, args.unseen_species)))
            backgrounds = usable_backgrounds(source.places[place], split)
            background = backgrounds[int(rng.integers(len(backgrounds)))]
            image, mask = compose(source.stamps[name], background.image, args.size, rng)
            yield Entry(image, mask, SPECIES.index(name), label, split, place, background.name)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line. Raises UserError for a size or count that is too small."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="new folder; CUB_200_2011/ is created in it")
    parser.add_argument("--size", type=int, default=224, help="side of the square images, pixels (default 224)")
    parser.add_argument("--train", type=int, default=1200, help="training images (default 1200)")
    parser.add_argument("--test", type=int, default=400, help="test images; half as many for validation (default 400)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default 0)")
    parser.add_argument("--unseen-species", action="store_true", help="exclude the test species from train and val")
    args = parser.parse_args(argv)
    for name, least in (("size", 32), ("train", 2), ("test", 2), ("seed", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} is {getattr(args, name)}; it must be at least {least}")
    return args


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Download, compose, write."""
    args = parse_arguments(argv)
    with new_folder(args.out) as folder, tempfile.TemporaryDirectory() as scratch:
        print("downloading packages ...", flush=True)
        source = load_source(fetch_packages(Path(scratch)), short_side=4 * args.size)
        count = write_layout(folder, entries(source, args), SPECIES, cub_images=False)
    kinds = ", ".join(f"{len(found)} {kind}" for kind, found in zip(KINDS, source.places, strict=True))
    print(f"{count} images in {args.out}; backgrounds: {kinds}")


if __name__ == "__main__":
    main()
