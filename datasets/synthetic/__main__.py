"""Write the synthetic birds to disk in the layout of CUB-200-2011 and Waterbirds.

python -m datasets.synthetic OUT --train 60 --val 20 --test 40 --size 96
"""

from collections.abc import Iterator
from pathlib import Path

from common.errors import exit_on_user_error
from common.flags import Parser
from common.ranges import PositiveInt
from datasets.config import DataConfig, SyntheticConfig
from datasets.formats.layout import Entry, new_folder, write_layout
from datasets.synthetic.dataset import INFO, SyntheticBirds
from datasets.synthetic.drawing import PARTS
from datasets.types import SPLITS

PLACES = ("forest", "ocean")


def write_cub_layout(config: DataConfig, out: Path) -> int:
    """Draw all three splits, write them to the new folder `out` and return the number of images.

    Images are saved as JPEG, as in CUB, so pixels change a little. Raises UserError if `out` exists.
    """
    with new_folder(out) as folder:
        return write_layout(folder, _entries(config), INFO.class_names, parts=PARTS)


def _entries(config: DataConfig) -> Iterator[Entry]:
    for number, split in enumerate(SPLITS):
        birds = SyntheticBirds(config, split)
        for index, (label, place) in enumerate(zip(birds.labels, birds.places, strict=True)):
            mask = birds.part_map[index] > 0
            yield Entry(
                birds.images[index], mask, label, label, number, place, f"/{PLACES[place]}", birds.keypoints[index]
            )


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m datasets.synthetic`."""
    parser = Parser(prog="python -m datasets.synthetic", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="new folder; the birds go into its sub-folder CUB_200_2011")
    parser.add_argument("--train", type=PositiveInt, default=2000, help="training images")
    parser.add_argument("--val", type=PositiveInt, default=400, help="validation images")
    parser.add_argument("--test", type=PositiveInt, default=800, help="test images")
    parser.add_argument("--size", type=PositiveInt, default=96, help="side of the square images, pixels")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    args = parser.parse_args(argv)
    options = SyntheticConfig(train_images=args.train, val_images=args.val, test_images=args.test)
    count = write_cub_layout(DataConfig(image_size=args.size, seed=args.seed, synthetic=options), args.out)
    print(f"{count} images in {args.out}")


if __name__ == "__main__":
    main()
