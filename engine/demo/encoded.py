"""One image as one model sees it, and what the model predicts when the mask is edited.

Stage 1's tokens are kept, so that an edit runs the part head and stage 2 alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from common.errors import UserError
from datasets.types import Sample
from engine.demo.edits import OWN, TRUE, Edits, Patch
from engine.demo.subject import Subject
from engine.evaluation.part_thresholds import CUTS_NOTHING
from explain import build_method, explain
from explain.explained_model import explained_model
from metrics.maps.as_masks import keep_largest, object_patches
from metrics.maps.removal import on_grid
from metrics.parts.part_maps import part_centres
from models.interface import finds_parts, select_parts, selects_patches
from models.outputs import StageOneOutput
from models.part_discovery import Intervention, PartNoise, draw_noise
from models.selection import Selection, enlarge_patches, foreground_margin, selection_of


@dataclass(frozen=True)
class Predicted:
    """What a model predicts for one image, and what it saw of it."""

    logits: Tensor
    """[C]."""
    stage_1_logits: Tensor | None = None
    """[C]."""
    selection: Selection | None = None
    """Of one image; None for a model that sees every pixel. Of a model with parts only: the patches of its parts."""

    @property
    def visible(self) -> Tensor | None:
        """[h, w] or, of a mask of pixels, [H, W] bool."""
        return None if self.selection is None else self.selection.visible[0]


@dataclass(frozen=True)
class Encoded:
    """One image as one model sees it. Make one with `encode`."""

    subject: Subject
    image: Tensor
    """[3, H, W], normalised, on the model's device."""
    own: Predicted
    """Without edits."""
    tokens: Tensor | None = None
    """[1, N, D] of stage 1, if the model's parts can be edited."""
    noise: PartNoise | None = None
    """Of stage 1; none but with `model.parts.eval_noise`."""
    sample: Sample | None = None
    """The image with its annotations, if it is one of the test split."""

    @property
    def truth(self) -> Tensor | None:
        """[H, W] bool: the true mask, where it is known."""
        return None if self.sample is None else self.sample.mask

    def edited(self, edits: Edits, heat: Tensor | None = None) -> Predicted:
        """The prediction after the edits. `heat` [h, w] or at pixels: the map that `edits.mask` names.

        Raises UserError for edits that do not fit the model or the image.
        """
        if edits == Edits():
            return self.own
        model, selection = self.subject.model, self.own.selection
        if not selects_patches(model) or selection is None:
            raise UserError(self.subject.limits)
        edits.check(self.subject.parts, (selection.mask.shape[1], selection.mask.shape[2]))
        if edits.changes_stage_1 and self.subject.two_stage is None:
            raise UserError(self.subject.limits)
        scores = self.own.stage_1_logits
        with self.subject.alone():
            if edits.changes_stage_1:
                stage_1 = self._stage_1(edits)
                selection, scores = stage_1.selection, stage_1.class_logits[0].float()
            if edits.mask != OWN:
                selection = self._replaced(selection, edits, heat)
            if edits.shown or edits.hidden:
                selection = painted(selection, edits.shown, edits.hidden)
            return Predicted(_finite(model.predict(self.image[None], selection)), scores, selection)

    def _stage_1(self, edits: Edits) -> StageOneOutput:
        model, tokens, noise = self.subject.two_stage, self.tokens, self.noise
        assert model is not None and tokens is not None and noise is not None
        if edits.margin:  # what training adds at random
            noise = replace(noise, margin=tokens.new_tensor([edits.margin], dtype=torch.float32))
        given = dict(edits.thresholds)
        thresholds = [given.get(part, CUTS_NOTHING) for part in range(self.subject.parts)]
        change = Intervention(tokens.new_tensor(thresholds) if given else None, edits.remove_parts)
        return model.stage_1.from_tokens(tokens, noise, change)

    def _replaced(self, selection: Selection, edits: Edits, heat: Tensor | None) -> Selection:
        """The true mask, or the largest patches (pixels) of a map, as many as the selection shows."""
        visible = selection.visible
        grid = (visible.shape[1], visible.shape[2])
        if edits.mask == TRUE:
            if self.truth is None:
                raise UserError("the true mask of this image is not known; choose another mask")
            chosen = object_patches(self.truth[None].to(self.image.device), grid)
        else:
            assert heat is not None, f"the map of {edits.mask} is missing"
            if not heat.isfinite().all():
                raise UserError(f"{edits.mask} gives this image a map that is not finite; choose another mask")
            chosen = keep_largest(on_grid(heat[None].to(visible.device), grid), visible.flatten(1).sum(1))
        other = selection_of(chosen, (selection.mask.shape[1], selection.mask.shape[2]))
        return replace(selection, mask=other.mask, pixels=other.pixels, gate=None)

    def sees_same_pixels(self, other: "Encoded") -> bool:
        """Whether both models see the same pixels, up to rounding, so that masks and maps of one fit the other."""

        def shown(one: Encoded) -> Tensor:
            mean, std = (
                one.image.new_tensor(values)[:, None, None]
                for values in (one.subject.classifier.mean, one.subject.classifier.std)
            )
            return (one.image * std + mean).cpu()

        first, second = shown(self), shown(other)
        return first.shape == second.shape and torch.allclose(first, second, rtol=0, atol=1 / 255)

    def heat(self, method: str, target: int | None = None, predicted: Predicted | None = None) -> Tensor:
        """The map of `method`, [h, w] or at pixels, of class `target` (None: the predicted one), unscaled.

        `predicted`: the edited prediction to explain; None: the model's own. Raises UserError.
        """
        shown = (predicted or self.own).selection if self.subject.selects else None
        maps = explain(
            self.subject.model,
            self.image[None],
            build_method(method),
            target,
            stage=self.subject.stage,
            selection=shown,
        )
        return maps[0]

    def threshold_ranges(self) -> list[tuple[float, float]]:
        """Of each part, the smallest and largest dot product with a patch of this image."""
        if self.subject.two_stage is None or self.tokens is None:
            return []
        with self.subject.alone():
            _, dots = self.subject.two_stage.stage_1.parts.logits(self.tokens.float())
        low, high = dots[0].amin(0).tolist(), dots[0].amax(0).tolist()
        return list(zip(low, high, strict=True))[: self.subject.parts]

    def largest_margin(self) -> float:
        """The largest magnitude of a patch's foreground margin: beyond it, all or no patches are foreground."""
        selection = self.own.selection
        if self.subject.two_stage is None or selection is None or selection.logits is None:
            return 0.0
        return float(foreground_margin(selection.logits.flatten(2).mT).abs().amax())

    def part_labels(self) -> list[str]:
        """ "part 0", ... with the key point that is nearest to its centre, if the image has key points."""
        nearest = self._nearest_points()
        return [f"part {part}" + (f" ({point})" if point else "") for part, point in enumerate(nearest)]

    def _nearest_points(self) -> Sequence[str | None]:
        sample, selection = self.sample, self.own.selection
        none = [None] * self.subject.parts
        if sample is None or sample.keypoints is None or selection is None or selection.maps is None:
            return none
        names = self.subject.split.info.part_names if self.subject.split else None
        there = sample.keypoints[:, 2] > 0
        if names is None or not there.any():
            return none
        parts = self.subject.parts
        strongest = one_hot(selection.maps[0].argmax(0), parts + 1).permute(2, 0, 1)  # where each part is drawn
        size, (h, w) = (self.image.shape[1], self.image.shape[2]), strongest.shape[1:]
        half = torch.tensor([size[1] / w / 2, size[0] / h / 2])  # a patch is placed at its first pixel there
        centres = part_centres(strongest[None], size)[0].cpu() + half
        distance = torch.cdist(centres, sample.keypoints[:, :2].double())
        nearest = distance.masked_fill(~there, torch.inf).argmin(1).tolist()
        return [names[point] if strongest[part].any() else None for part, point in enumerate(nearest)]


def encode(subject: Subject, image: Tensor, sample: Sample | None = None) -> Encoded:
    """Run the whole model once on an image [3, H, W] of the subject's normalisation. Raises UserError."""
    images, model = image[None].to(subject.device), subject.model
    with subject.alone():
        if (two_stage := subject.two_stage) is not None:
            tokens = two_stage.stage_1.tokens(images)
            seed = torch.Generator(images.device).manual_seed(0)  # as `select_parts`
            h, w = two_stage.stage_1.mask_grid
            noise = draw_noise(two_stage.model_config.parts, tokens.shape[:2], tokens.device, False, seed, h * w)
            stage_1 = two_stage.stage_1.from_tokens(tokens, noise)
            logits = _finite(two_stage.predict(images, stage_1.selection))
            own = Predicted(logits, stage_1.class_logits[0].float(), stage_1.selection)
            return Encoded(subject, images[0], own, tokens, noise, sample)
        if selects_patches(model):
            selection = model.selection(images)
            own = Predicted(_finite(model.predict(images, selection)), None, selection)
        elif finds_parts(model):
            parts = select_parts(model, images)
            own = Predicted(_finite(parts.logits), None, parts.selection)
        else:
            own = Predicted(_finite(explained_model(model, images, subject.stage).logits(images)))
    return Encoded(subject, images[0], own, sample=sample)


def painted(selection: Selection, shown: Iterable[Patch], hidden: Iterable[Patch]) -> Selection:
    """The selection of one image with the patches `shown` wholly visible and those in `hidden` hidden."""
    mask, pixels, gate = selection.mask, selection.pixels, selection.gate
    for patches, value in ((shown, True), (hidden, False)):
        at = torch.zeros_like(mask)
        for row, column in patches:
            at[0, row, column] = True
        mask = mask.masked_fill(at, value)
        gate = None if gate is None else gate.masked_fill(at, float(value))
        if pixels is not None:
            pixels = pixels.masked_fill(enlarge_patches(at, (pixels.shape[1], pixels.shape[2])), value)
    return replace(selection, mask=mask, pixels=pixels, gate=gate)


def _finite(logits: Tensor) -> Tensor:
    """[1, C] -> [C]. Raises UserError for logits that are not finite."""
    if not logits.isfinite().all():
        raise UserError("the model's logits for this image are not finite; use other weights")
    return logits[0].float()
