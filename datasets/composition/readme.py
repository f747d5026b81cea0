"""The README.md of a composed set: its groups, its sources and its options, as numbers."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from datasets.composition.files import KINDS
from datasets.composition.plan import PlannedImage
from datasets.readers.waterbirds import GROUPS
from datasets.types import SPLITS


def group_of(image: PlannedImage) -> int:
    """Its group in the published numbering, 2 * label + place."""
    return 2 * image.object.label + image.background.place


def readme(images: Sequence[PlannedImage], options: Mapping[str, str], smaller: int, out: str) -> str:
    """Markdown. `options`: flags and values; `smaller`: objects limited by --max-upscale."""
    of_split = {split: [image for image in images if image.split == split] for split in SPLITS}
    groups = {split: Counter(map(group_of, each)) for split, each in of_split.items()}
    sections = [
        "# Composed images in the layout of Waterbirds",
        f"{len(images)} images, composed by `python -m commands.prepare_waterbirds`. Read them with `--data.name "
        f"waterbirds --data.root {out}`. `metadata.csv` names the files of each image: `object_filename` and "
        "`place_filename`.",
        _table(["group", *SPLITS], ([name, *(groups[s][i] for s in SPLITS)] for i, name in enumerate(GROUPS))),
        "## Sources",
        "Objects and background photographs are disjoint between splits.",
        _table(["different files", *SPLITS], _sources(of_split)),
        f"Most images of one object: {_most(image.object.name for image in images)}; of one background: "
        f"{_most(image.background.name for image in images)}. Images whose object is smaller than drawn, because of "
        f"--max-upscale: {smaller}.",
        "## Options",
        _table(["option", "value"], options.items()),
    ]
    return "\n\n".join(sections) + "\n"


def _sources(of_split: Mapping[str, Sequence[PlannedImage]]) -> Iterable[Sequence[object]]:
    for label, kind in enumerate(KINDS):
        mine = [[image.object for image in of_split[split] if image.object.label == label] for split in SPLITS]
        yield [f"objects that belong on {kind}", *(len({each.name for each in found}) for found in mine)]
        yield [f"their classes, {kind}", *(len({each.category for each in found}) for found in mine)]
    for place, kind in enumerate(KINDS):
        backgrounds = [[each.background for each in of_split[split]] for split in SPLITS]
        yield [f"{kind} backgrounds", *(len({b.name for b in found if b.place == place}) for found in backgrounds)]


def _most(names: Iterable[str]) -> int:
    return max(Counter(names).values())


def _table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
