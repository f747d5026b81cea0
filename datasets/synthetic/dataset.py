"""The synthetic data set: procedural birds whose training background matches the class in most images.

Needs no download: a split is drawn in memory in seconds and depends only on (data.seed, split, data.synthetic, size).
`python -m datasets.synthetic OUT` writes it to disk in the layout of CUB-200-2011 and Waterbirds.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from common.errors import UserError
from common.seeds import stable_seed
from datasets.config import DataConfig
from datasets.readers.files import check_split
from datasets.synthetic.bird import draw_birds
from datasets.synthetic.drawing import KEY_POINTS, PARTS, Uniform, blank_canvas, draw_background, draw_pose
from datasets.synthetic.groups import balanced_groups
from datasets.types import DatasetInfo, RawSample

INFO = DatasetInfo(
    name="synthetic",
    class_names=("checked", "striped"),
    group_names=("checked on forest", "checked on water", "striped on forest", "striped on water"),
    minority_groups=(1, 2),
    part_names=PARTS,
)
CHUNK_PIXELS = 32 * 96 * 96  # about what fits in the cache of one core


class SyntheticBirds:
    """One split, drawn at construction, with images of data.image_size.

    images [n, H, W, 3] uint8 · part_map [n, H, W] uint8 (0 background, k + 1 = part k) ·
    keypoints [n, 5, 3] float32 (x, y, visible), pixels ·
    labels, places: n ints (place 0 forest, 1 water).
    Raises UserError for an unknown split, and for images so small that a bird has no pixel.
    """

    info = INFO

    def __init__(self, config: DataConfig, split: str) -> None:
        check_split("synthetic", split)
        self.split = split
        count: int = getattr(config.synthetic, f"{split}_images")
        seed = stable_seed("synthetic", config.seed, split)
        generator = torch.Generator().manual_seed(seed)
        correlation = 0.5 if split == "test" else config.synthetic.correlation
        self.labels, self.places = balanced_groups(count, correlation, np.random.default_rng(seed))
        self.groups = [2 * y + place for y, place in zip(self.labels, self.places, strict=True)]
        label, place = torch.tensor(self.labels), torch.tensor(self.places)
        self.images = np.empty((count, *config.size_hw, 3), np.uint8)
        self.part_map = np.empty((count, *config.size_hw), np.uint8)
        self.keypoints = np.ones((count, len(PARTS), 3), np.float32)
        # The chunk size is part of the data set: the generator draws chunk by chunk, so another size gives other birds.
        step = max(1, CHUNK_PIXELS // (config.size_hw[0] * config.size_hw[1]))
        with _one_thread():
            for start in range(0, count, step):
                chunk = slice(start, start + step)
                drawn = _draw_chunk(label[chunk], place[chunk], config, generator)
                self.images[chunk], self.part_map[chunk], self.keypoints[chunk, :, :2] = drawn

        if not self.part_map.any((1, 2)).all():
            raise UserError(
                f"data.image_size: {config.size_hw} is too small for synthetic images; use 8 or more pixels"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> RawSample:
        """Image, label, group = 2 * label + place, mask, five key points (all visible), one box, part labels."""
        mask = self.part_map[index] > 0
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        return RawSample(
            image=self.images[index],
            label=self.labels[index],
            path=f"synthetic/{self.split}/{index:05d}",
            group=self.groups[index],
            mask=mask,
            keypoints=self.keypoints[index],
            boxes=np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], np.float32),
            part_labels=self.part_map[index].astype(np.int16) - 1,
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread: the operations are too small for several threads to be faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _draw_chunk(
    label: torch.Tensor, place: torch.Tensor, config: DataConfig, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images [n, H, W, 3] uint8, part maps [n, H, W] uint8, key points [n, P, 2] float32 (0 = centre of pixel 0)."""
    options = config.synthetic
    canvas, draw = blank_canvas(len(label), config.size_hw), Uniform(generator, len(label))
    draw_background(canvas, place, draw, options)
    pose = draw_pose(canvas, draw)
    draw_birds(canvas, pose, label, draw, options)
    image = canvas.image
    # Uneven lighting: a brightness ramp in a random direction.
    image *= (1 + draw(-0.2, 0.2) * (canvas.x - 0.5) + draw(-0.2, 0.2) * (canvas.y - 0.5))[:, None]
    image += options.noise * torch.randn(image.shape, generator=generator)
    pixels = image.clamp_(0, 1).mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1)
    points = pose.to_image(torch.tensor(KEY_POINTS)) * canvas.side - 0.5
    return pixels.numpy(), canvas.parts.numpy(), points.numpy()
