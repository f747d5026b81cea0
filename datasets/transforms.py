"""From a record to a network input: the training augmentations by name, and the evaluation transform.

Every transform is called as `transform(raw, seed) -> Sample` and depends on these two arguments only. Key points keep
their names when an image is flipped (a left wing stays "left wing", though it now looks like a right one).
"""

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from common.errors import UserError
from common.seeds import seeded_globals, stable_seed
from datasets.config import DataConfig
from datasets.fixed_steps import NormalisedLast
from datasets.geometry import frame_of, inside_boxes, inside_keypoints, labels_inside
from datasets.registry import with_input, with_own_augmentation
from datasets.types import RawSample, Sample

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import looks for a newer version online
import albumentations as A  # noqa: E402, N812

Transform = Callable[[RawSample, int], Sample]
NEAREST, BLACK = 0, 0  # OpenCV's INTER_NEAREST and BORDER_CONSTANT, and the fill value


class PublishedPlanckianJitter(A.PlanckianJitter):
    """Planckian jitter with one of the 25 published colour temperatures (3000, 3500, ..., 15000 K), equally likely."""

    def get_params(self) -> dict[str, Any]:
        """Draw the colour temperature, kelvin."""
        return {"temperature": 500 * self.py_random.randint(6, 30)}


def build_transform(config: DataConfig, train: bool) -> NormalisedLast:
    """The transform of a split: `config.augmentation` if `train`, else the evaluation transform."""
    config = with_input(with_own_augmentation(config), {})
    if train and config.augmentation == "timm":
        return TimmTransform(config)
    if train and config.augmentation != "none":
        return AugmentTransform(config)
    return EvalTransform(config)


class EvalTransform(NormalisedLast):
    """Resize and crop as data.evaluation says, then normalise. Not random."""

    def __init__(self, config: DataConfig) -> None:
        self.config = with_input(config, {})

    def pixels(self, raw: RawSample, seed: int) -> Sample:
        """As for all; `seed` is ignored."""
        raw = self.first_step(raw)
        return replace(finish(raw), frame=frame_of(raw), box_labels=labels_inside(raw))


class AugmentTransform(NormalisedLast):
    """An albumentations pipeline from `STEPS`, seeded for each sample.

    `flip`, `siim_acr`: the evaluation geometry, flipped with p = 0.5. `cub_original`: iFAM's augmentation.
    `cub_geometry`: the same without colour jitter. `foreground_crop`: iFAM's decoupled training. `atcon_voc`,
    `atcon_svhn`: ATCON's.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.needs_mask = config.augmentation == "foreground_crop"
        self.crops_first = config.augmentation == "atcon_voc"
        self.covers = config.augmentation not in ("flip", "siim_acr", "atcon_svhn")
        steps = STEPS[config.augmentation](config.size_hw)
        boxes = A.BboxParams(format="pascal_voc", clip=True, filter_invalid_bboxes=True)
        points = A.KeypointParams("xy", remove_invisible=False)
        labels = {"part_labels": "mask"}
        self.pipeline = A.Compose(steps, bbox_params=boxes, keypoint_params=points, additional_targets=labels)

    def pixels(self, raw: RawSample, seed: int) -> Sample:
        """As for all. Raises UserError if the augmentation needs a mask and the record has none."""
        if self.needs_mask and raw.mask is None:
            raise UserError(
                f"data.augmentation=foreground_crop needs a mask for every image, and {raw.path} has none; "
                "give data.mask_folder or another augmentation"
            )
        raw = self.first_step(raw)
        for position, step in enumerate(self.pipeline.transforms):
            # With one seed for all steps their draws would be equal: flipped images would all be jittered alike.
            step.set_random_seed(stable_seed(seed, position))
        return finish(_apply(self.pipeline, raw))


def cub_steps(size_hw: tuple[int, int]) -> list[A.BasicTransform]:
    """iFAM on CUB, after the resize. The published colour jitter has strength 0 and is left out."""
    return [
        A.HorizontalFlip(p=0.5),
        PublishedPlanckianJitter(mode="blackbody", p=0.8),
        A.Affine(
            rotate=(-90, 90), translate_percent={"x": (-0.2, 0.2), "y": (-0.2, 0.2)}, scale=(0.8, 1.2), keep_ratio=True,
            interpolation=NEAREST, mask_interpolation=NEAREST, border_mode=BLACK, fill=BLACK, fill_mask=BLACK, p=1.0,
        ),
        A.RandomCrop(*size_hw, p=1.0),
    ]  # fmt: skip


def foreground_steps(size_hw: tuple[int, int]) -> list[A.BasicTransform]:
    """iFAM's decoupled training, after the resize: a random crop that contains a pixel of the object, if any."""
    strength = (0.8, 1.2)
    return [
        A.CropNonEmptyMaskIfExists(*size_hw),
        A.HorizontalFlip(p=0.5),
        A.ColorJitter(brightness=strength, contrast=strength, saturation=strength, hue=(-0.5, 0.5), p=0.5),
        PublishedPlanckianJitter(mode="blackbody", p=0.5),
    ]


def atcon_voc_steps(size_hw: tuple[int, int]) -> list[A.BasicTransform]:
    """ATCON on PASCAL VOC: a crop of 8 to 100 % of the area and aspect ratio 3/4 to 4/3; flip; colour jitter."""
    return [
        A.RandomResizedCrop(size_hw, area_for_downscale="image"),
        A.HorizontalFlip(p=0.5),
        A.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=(0, 0), p=1.0),
    ]


def atcon_svhn_steps(size_hw: tuple[int, int]) -> list[A.BasicTransform]:
    """ATCON on SVHN, after the resize: rotation by up to 10 degrees, black outside, then both flips."""
    return [
        A.Affine(
            rotate=(-10, 10), interpolation=NEAREST, mask_interpolation=NEAREST, border_mode=BLACK, fill=BLACK,
            fill_mask=BLACK, p=1.0,
        ),
        A.HorizontalFlip(p=0.5),
        A.VerticalFlip(p=0.5),
    ]  # fmt: skip


STEPS: dict[str, Callable[[tuple[int, int]], list[A.BasicTransform]]] = {
    "flip": lambda _: [A.HorizontalFlip(p=0.5)],
    "siim_acr": lambda _: [A.HorizontalFlip(p=0.5)],
    "cub_original": cub_steps,
    "cub_geometry": lambda size_hw: [s for s in cub_steps(size_hw) if not isinstance(s, PublishedPlanckianJitter)],
    "foreground_crop": foreground_steps,
    "atcon_voc": atcon_voc_steps,
    "atcon_svhn": atcon_svhn_steps,
}
"""Name of an augmentation -> its steps for inputs of (height, width) pixels."""


def _apply(pipeline: A.Compose, raw: RawSample) -> RawSample:
    """Run an albumentations pipeline on a record."""
    data: dict[str, Any] = {"image": np.ascontiguousarray(raw.image)}
    if raw.mask is not None:
        data["mask"] = raw.mask.astype(np.uint8)
    if raw.part_labels is not None:
        data["part_labels"] = raw.part_labels + np.int16(1)  # steps fill with 0, which must mean "no part"
    data["keypoints"] = np.zeros((0, 2)) if raw.keypoints is None else raw.keypoints[:, :2].astype(np.float32)
    data["bboxes"] = np.zeros((0, 4)) if raw.boxes is None else inside_boxes(raw.boxes, raw.image.shape[:2])
    done = pipeline(**data)
    keypoints = None if raw.keypoints is None else np.column_stack([done["keypoints"], raw.keypoints[:, 2]])
    boxes = None if raw.boxes is None else np.asarray(done["bboxes"]).reshape(-1, 4)
    mask = None if raw.mask is None else done["mask"] > 0
    labels = None if raw.part_labels is None else done["part_labels"] - np.int16(1)
    return replace(raw, image=done["image"], mask=mask, keypoints=keypoints, boxes=boxes, part_labels=labels)


class TimmTransform(NormalisedLast):
    """timm's ImageNet policy (`data.timm`). Images only: annotations are dropped.

    Random erasing may fill in normal noise: then timm normalises, too.
    """

    crops_first = True

    def __init__(self, config: DataConfig) -> None:
        """Raises UserError for a policy that timm does not know."""
        self.config, self.erases = config, config.timm.re_prob > 0
        mean, std = config.normalisation
        options = asdict(config.timm) | {"mean": mean, "std": std, "normalize": self.erases}
        try:
            self.policy = create_transform((3, *config.size_hw), is_training=True, **options)
        except (AssertionError, AttributeError, IndexError, KeyError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise UserError(
                f"data.timm.auto_augment={config.timm.auto_augment}: timm has no such policy ({reason})"
            ) from None

    def pixels(self, raw: RawSample, seed: int) -> Sample:
        """As for all, without annotations; with random erasing the image is normalised float32."""
        with seeded_globals(seed):
            image = self.policy(Image.fromarray(raw.image)).contiguous()
        return Sample(image, raw.label, raw.path, raw.group, present=_tensor(raw.present, torch.bool))


def finish(raw: RawSample) -> Sample:
    """Clip key points and boxes to the image, and convert arrays to tensors."""
    size = raw.image.shape[:2]
    return Sample(
        image=torch.from_numpy(raw.image.transpose(2, 0, 1).copy()),
        label=raw.label,
        path=raw.path,
        group=raw.group,
        mask=_tensor(raw.mask, torch.bool),
        keypoints=None if raw.keypoints is None else _tensor(inside_keypoints(raw.keypoints, size), torch.float32),
        boxes=None if raw.boxes is None else _tensor(inside_boxes(raw.boxes, size), torch.float32),
        part_labels=_tensor(raw.part_labels, torch.int64),
        present=_tensor(raw.present, torch.bool),
    )


def _tensor(values: np.ndarray | None, dtype: torch.dtype) -> Tensor | None:
    """A copy as a tensor: the array may be a view of data that the reader keeps."""
    return None if values is None else torch.tensor(values, dtype=dtype)
