"""The fixed steps of a transform: the first resizes, and may be stored; the last normalises, on the device or here."""

from dataclasses import replace

import numpy as np

from common.array_cache import ArrayCache
from common.errors import UserError
from datasets.config import DataConfig
from datasets.geometry import RESAMPLING, evaluation_view, resize_to_cover
from datasets.image_cache import ImageCache, StoredImage, blank
from datasets.normalise import Normalisation, constants_of, normalise
from datasets.types import RawSample, Sample


def eval_geometry(raw: RawSample, config: DataConfig) -> RawSample:
    """Resize and crop as `config.evaluation` says."""
    return evaluation_view(raw, config.size_hw, config)


class NormalisedLast:
    """A transform that ends with `normalise`, which a loader can leave to the device (`pixels`).

    It begins with a fixed resize, except where `crops_first`.
    """

    config: DataConfig
    crops_first = False
    """It begins with a random crop, so that no step can be stored."""
    covers = False
    """The first step is `resize_to_cover`, not `eval_geometry`."""
    image_cache: ImageCache | None = None
    """Where the images after `first_step` are kept."""
    erases = False
    """Random erasing follows the normalisation, so that `pixels` includes both."""

    @property
    def normalisation(self) -> Normalisation | None:
        """Mean and standard deviation of the last step; None if it is not the last, or `__call__` is a subclass's."""
        plain = type(self).__call__ is NormalisedLast.__call__ and not self.erases
        return self.config.normalisation if plain else None

    def use_cache(self, files: ArrayCache) -> None:
        """Keep the images after `first_step` there. Raises UserError where it is not fixed."""
        config = self.config
        if self.crops_first:
            raise UserError(
                f"data.image_cache: data.augmentation={config.augmentation} crops before it resizes, so that there is "
                "nothing to store; leave data.image_cache empty"
            )
        view = (config.interpolation,) if self.covers else (config.interpolation, config.evaluation, config.crop)
        self.image_cache = ImageCache(files, repr((config.size_hw, *view)))

    def first_step(self, raw: RawSample) -> RawSample:
        """Resize, and crop where that is not random. The image is read from `image_cache` where it is stored."""
        if self.crops_first:
            return raw
        image = raw.image
        if not isinstance(image, StoredImage):
            return self._geometry(raw)
        if image.step is not None:
            return replace(self._geometry(replace(raw, image=blank(image.shape))), image=image.step)
        done = self._geometry(replace(raw, image=np.asarray(image)))
        image.keep(done.image)
        return done

    def _geometry(self, raw: RawSample) -> RawSample:
        if self.covers:
            return resize_to_cover(raw, self.config.size_hw, RESAMPLING[self.config.interpolation])
        return eval_geometry(raw, self.config)

    def pixels(self, raw: RawSample, seed: int) -> Sample:
        """Everything but the last step: `image` is [3, H, W] uint8."""
        raise NotImplementedError

    def __call__(self, raw: RawSample, seed: int = 0) -> Sample:
        """Sample of config.size_hw with draws from `seed`; all annotations are transformed with the image."""
        sample = self.pixels(raw, seed)
        if self.erases:
            return sample
        return replace(sample, image=normalise(sample.image, constants_of(self.config.normalisation)))
