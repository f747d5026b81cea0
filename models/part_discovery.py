"""Stage 1: patch tokens -> part maps -> part features -> class scores, and the logits of the mask.

Shape legend: B images, N patches, D width, C classes, K foreground parts; channel K (the last of K+1) is background.
Everything runs in fp32 (fp64 for a float64 model), also under autocast: a logit is a small difference between numbers
in the thousands.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from common.processes import own_rows
from common.transfer import on_device
from models.config import PartsConfig
from models.selection import foreground_margin, without_parts


@dataclass(frozen=True)
class PartNoise:
    """All random numbers of one stage-1 pass; None turns that noise off. The same noise gives bitwise the same pass."""

    gumbel: Tensor | None = None
    """[B, N, K+1], added to the logits of the maps, and of the mask unless `gumbel_mask` is given."""
    gumbel_mask: Tensor | None = None
    """[B, N, K+1], separate noise of the mask."""
    keep_features: Tensor | None = None
    """[B, K] bool: parts whose vectors the stage-1 classifier sees."""
    keep_in_mask: Tensor | None = None
    """[B, K] bool: parts that can make patches visible."""
    margin: Tensor | None = None
    """[B]: added to the margin by which the foreground must exceed the background."""
    border: Tensor | None = None
    """[B, N] in [0, 1): a visible patch with a hidden neighbour is hidden where this is below the dropout rate."""

    def at(self, places: Callable[[Tensor], Tensor]) -> "PartNoise":
        """The same with the Gumbel noise of patches [B, N, K+1] taken to other places [B, M, K+1]."""
        gumbel, mask = (None if noise is None else places(noise) for noise in (self.gumbel, self.gumbel_mask))
        return replace(self, gumbel=gumbel, gumbel_mask=mask)


def draw_noise(
    config: PartsConfig,
    shape: Sequence[int],
    device: torch.device,
    training: bool,
    generator: torch.Generator | None = None,
    mask_patches: int | None = None,
) -> PartNoise:
    """Draw the noise for `shape` = (B, N) from `generator` (None: torch's global generator).

    `mask_patches`: patches of the mask, if other than N.
    """
    batch, patches = shape
    noisy = training or config.eval_noise

    def gumbel(count: int) -> Tensor:
        size = (count, patches, config.num_parts + 1)
        # -log(E) of an exponential variable E follows the standard Gumbel distribution.
        return -torch.empty(size, device=device).exponential_(generator=generator).log()

    def uniform(*size: int) -> Tensor:
        # Not `torch.rand`, which torch.compile cannot trace with generator=None and a second batch size.
        return own_rows(lambda count: torch.empty(count, *size, device=device).uniform_(generator=generator), batch)

    def keep(dropout: float) -> Tensor | None:
        return uniform(config.num_parts) >= dropout if training and dropout else None

    # Every process draws the noise of all processes and takes its own rows: results do not depend on their number.
    return PartNoise(
        gumbel=own_rows(gumbel, batch) if noisy and config.gumbel else None,
        gumbel_mask=own_rows(gumbel, batch) if noisy and config.independent_draws else None,
        keep_features=keep(config.part_dropout),
        keep_in_mask=keep(config.mask_dropout),
        margin=(2 * uniform() - 1) * config.margin_noise if training and config.margin_noise else None,
        border=uniform(mask_patches or patches) if training and config.border_dropout else None,
    )


@dataclass(frozen=True)
class Intervention:
    """Changes to the part maps and the mask at test time; ignored in training."""

    thresholds: Tensor | None = None
    """[K]: a part only gets patches whose dot product with its prototype reaches its threshold."""
    remove_parts: tuple[int, ...] = ()
    """Patches of these parts (0-based) become background."""


@dataclass(frozen=True)
class PartOutput:
    """Everything the part head computes for one batch."""

    logits: Tensor
    """[B, N, K+1] fp32: scaled negative squared distances / temperature, after thresholds, without noise."""
    maps: Tensor
    """[B, N, K+1] fp32, probabilities."""
    noisy_logits: Tensor
    """[B, M, K+1] fp32: logits with the mask's noise, at the M places of the mask (patches or pixels)."""
    mask_logits: Tensor
    """[B, M, K+1] fp32: `noisy_logits` after part dropout and removal; the mask is computed from them."""
    fallback_score: Tensor
    """[B, N] fp32: foreground margin of each patch without noise; -inf for patches of removed parts."""
    part_features: Tensor
    """[B, D, K+1] fp32, modulated part vectors."""
    part_logits: Tensor
    """[B, C, K] fp32, class scores of each part; their mean over K gives stage 1's class logits."""


class Product(nn.Module):
    """PDiscoFormer's "original" modulation: an elementwise product with learned factors."""

    def __init__(self, width: int, channels: int) -> None:
        """Factors [1, width, channels], initialised to 1."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, width, channels))

    def forward(self, features_BDK: Tensor) -> Tensor:
        """[B, D, K+1] -> [B, D, K+1]."""
        return features_BDK * self.weight


class PartHead(nn.Module):
    """Prototypes, modulation and the shared classifier of stage 1 (iFAM, section 3.1; PDiscoFormer)."""

    def __init__(self, width: int, num_classes: int, config: PartsConfig) -> None:
        """`width` is D of the backbone."""
        super().__init__()
        self.config = config
        channels = config.num_parts + 1
        bound = width**-0.5
        self.prototypes = nn.Parameter(torch.empty(channels, width).uniform_(-bound, bound))
        layer_norm = config.modulation == "layer_norm"
        self.modulation = nn.LayerNorm([width, channels]) if layer_norm else Product(width, channels)
        self.classifier = nn.Linear(width, num_classes, bias=False)
        trunc_normal_(self.classifier.weight, std=0.02)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PartHead":
        """As usual, except that `.half()` and `.bfloat16()` leave the parameters in fp32."""

        def at_least_fp32(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            lower = changed.dtype in (torch.float16, torch.bfloat16)
            return tensor.to(changed.device, torch.promote_types(tensor.dtype, torch.float32)) if lower else changed

        return cast(PartHead, super()._apply(at_least_fp32, recurse))  # type: ignore[no-untyped-call]

    def logits(self, x_BND: Tensor) -> tuple[Tensor, Tensor]:
        """(l / tau, d): scaled negative squared distances and raw dot products, both [B, N, K+1] fp32."""
        # -|x - p|^2 = 2 x.p - (|p|^2 + |x|^2): one matrix product and no [B, N, K+1, D] tensor.
        dots = x_BND @ self.prototypes.T
        squares = self.prototypes.square().sum(-1) + x_BND.square().sum(-1, keepdim=True)
        return (2 * dots - squares) * (self.config.logit_scale / self.config.temperature), dots

    def part_features(self, x_BND: Tensor, maps_BNK: Tensor) -> Tensor:
        """Mean over all N patches of map times token, modulated: [B, D, K+1]."""
        # Divided by N, not by the sum of the map: a part that covers little of the image has a short vector.
        pooled = torch.einsum("bnk,bnd->bdk", maps_BNK, x_BND) / x_BND.shape[1]
        return cast(Tensor, self.modulation(pooled))

    def class_scores(self, features_BDK: Tensor, keep_BK: Tensor | None) -> Tensor:
        """[B, C, K]: one classifier for all foreground vectors; dropped vectors are 0, the others are rescaled."""
        z_BKD = features_BDK[..., : self.config.num_parts].transpose(1, 2)
        if keep_BK is not None:
            z_BKD = z_BKD * keep_BK.unsqueeze(-1) / (1 - self.config.part_dropout)
        return cast(Tensor, self.classifier(z_BKD).transpose(1, 2))

    def forward(
        self,
        tokens: Tensor,
        noise: PartNoise,
        intervention: Intervention | None = None,
        at_places: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> PartOutput:
        """Patch tokens [B, N, D] -> PartOutput. `intervention` is ignored in training.

        `at_places` takes values of the patches [B, N, K+1] to the M places of the mask [B, M, K+1].
        """
        with torch.autocast(tokens.device.type, enabled=False):
            x_BND = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
            raw, dots = self.logits(x_BND)
            intervention = intervention if intervention and not self.training else Intervention()
            logits = self._thresholded(raw, dots, intervention.thresholds)
            maps = self._noisy(logits, noise.gumbel).softmax(-1)
            # Interpolated before thresholds and removal, because values of -inf cannot be interpolated.
            noisy, mask_logits = self._for_mask(at_places(raw), at_places(dots), noise.at(at_places), intervention)
            removed = _argmax_in(maps, intervention.remove_parts)
            remaining = self._remaining(intervention.remove_parts, maps.device)
            features = self.part_features(x_BND, maps)
            return PartOutput(
                logits=logits,
                maps=maps,
                noisy_logits=noisy,
                mask_logits=mask_logits,
                # Without thresholds and noise: the best patch even if no patch passes a threshold.
                fallback_score=foreground_margin(without_parts(raw, remaining, removed)),
                part_features=features,
                part_logits=self.class_scores(features, noise.keep_features),
            )

    def _for_mask(
        self, raw: Tensor, dots: Tensor, noise: PartNoise, intervention: Intervention
    ) -> tuple[Tensor, Tensor]:
        """`PartOutput.noisy_logits` and `mask_logits`, from raw, dots [B, M, K+1] and noise at the mask's places."""
        logits = self._thresholded(raw, dots, intervention.thresholds)
        gumbel = noise.gumbel if noise.gumbel_mask is None else noise.gumbel_mask
        if intervention.remove_parts and self.config.independent_draws:
            gumbel = noise.gumbel  # the published code removes parts with the noise of the maps
        noisy = self._noisy(logits, gumbel)
        # Removal turns patches into background; their second-best part does not take over.
        maps = self._noisy(logits, noise.gumbel).softmax(-1) if intervention.remove_parts else logits
        return noisy, without_parts(noisy, noise.keep_in_mask, _argmax_in(maps, intervention.remove_parts))

    def _remaining(self, removed: tuple[int, ...], device: torch.device) -> Tensor | None:
        """[1, K] bool: the parts that were not removed; None if no part was."""
        if not removed:
            return None
        return on_device([[part not in removed for part in range(self.config.num_parts)]], device)

    def _noisy(self, logits: Tensor, gumbel: Tensor | None) -> Tensor:
        # `logits` are already divided by the temperature.
        return logits if gumbel is None else logits + gumbel / self.config.temperature

    def _thresholded(self, logits: Tensor, dots: Tensor, thresholds: Tensor | None) -> Tensor:
        if thresholds is None:
            return logits
        scale = self.config.logit_scale / self.config.temperature
        base = dots * scale if self.config.threshold_form == "dot_product" else logits
        limits = torch.cat(
            [thresholds.to(dots.device, dots.dtype, non_blocking=True), dots.new_full((1,), -torch.inf)]
        )  # the background has no threshold
        return base.masked_fill(dots < limits, -torch.inf)


def _argmax_in(maps: Tensor, parts: tuple[int, ...]) -> Tensor | None:
    """[B, N] bool: patches whose most probable part is in `parts`; None if `parts` is empty."""
    if not parts:
        return None
    return torch.isin(maps.argmax(-1), on_device(parts, maps.device))
