"""The loss terms on part maps, each a pure function from tensors to a scalar.

Shapes: B images, K foreground parts, K+1 channels (the last one is background), h x w patches, D feature width.
`maps_BKhw` has K+1 channels that sum to 1 over dim 1 at every patch. The formulas are those of iFAM (arXiv 2506.08915)
and PDiscoFormer (arXiv 2407.04538); `border` is not from a paper. `avg3` is the 3x3 mean with stride 1 and no padding,
so the smallest grid is 3x3. Wrong shapes raise ValueError.

Call these with fp32 tensors inside `torch.autocast(device_type, enabled=False)`: nothing here casts, and sums over
thousands of patches are inaccurate in half precision. Values are means over the given images; the average over
processes is the value for their batches together, and `presence` already is that value.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from common.processes import all_rows

PresenceKind = Literal["original", "soft_constraint", "tanh", "soft_tanh"]
EnforcedPresenceKind = Literal["enforced_presence", "log", "linear", "mse"]
OrthogonalityKind = Literal["parts", "channels"]

COSINE_EPS = 1e-8
LARGEST_NEGATIVE_LOG = 100.0


def presence(maps_BKhw: Tensor, kind: PresenceKind = "original", beta: float = 0.1) -> Tensor:
    """Every foreground part should occur somewhere in the batch.

    With p_k = max over images and positions of avg3(A_k): `original` 1 - mean_k p_k (iFAM, PDiscoFormer);
    `soft_constraint` mean_k (1 - p_k)((1 - beta) sg(p_k) + beta). With t_k = tanh(sum over images of
    max_u avg3(A_k)): `tanh` mean_k -log t_k; `soft_tanh` mean_k (1 - t_k).

    The batch is the global batch of all processes. sg: stop-gradient.
    """
    peaks_BK = _avg3(_checked(maps_BKhw)[:, :-1]).amax(dim=(2, 3))
    # Each process sends one row, as the number of readable images may differ between processes.
    if kind in ("original", "soft_constraint"):
        p_K = all_rows(peaks_BK.amax(dim=0, keepdim=True)).amax(dim=0)
        if kind == "original":
            return 1 - p_K.mean()
        return ((1 - p_K) * ((1 - beta) * p_K.detach() + beta)).mean()
    if kind in ("tanh", "soft_tanh"):
        t_K = all_rows(peaks_BK.sum(dim=0, keepdim=True)).sum(dim=0).tanh()
        return (_negative_log(t_K) if kind == "tanh" else 1 - t_K).mean()
    raise ValueError(f"unknown presence kind {kind!r}")


def enforced_presence(maps_BKhw: Tensor, kind: EnforcedPresenceKind = "enforced_presence") -> Tensor:
    """Every image should have background, towards its corners.

    `enforced_presence` (iFAM): mean_b -log max_u [avg3(A_background)(b, u) * rho(u)], rho as in `corner_weight`.
    With the mean background mass m_b of an image: `log` mean_b -log m_b; `linear` mean_b (1 - m_b); `mse`
    mean_b (1 - m_b)^2. -log is at most 100.
    """
    background_Bhw = _checked(maps_BKhw)[:, -1]
    if kind == "enforced_presence":
        pooled_Bhw = _avg3(background_Bhw)
        rho_hw = corner_weight(pooled_Bhw.shape[-2:], pooled_Bhw)
        return _negative_log((pooled_Bhw * rho_hw).amax(dim=(1, 2))).mean()
    mass_B = background_Bhw.mean(dim=(1, 2))
    if kind == "log":
        return _negative_log(mass_B).mean()
    if kind == "linear":
        return (1 - mass_B).mean()
    if kind == "mse":
        return (1 - mass_B).square().mean()
    raise ValueError(f"unknown enforced_presence kind {kind!r}")


def corner_weight(size_hw: tuple[int, int] | torch.Size, like: Tensor) -> Tensor:
    """rho [h, w] of iFAM's enforced presence: 1 in the corners, 0 in the centre.

    rho = (r^2 + c^2) / max with rows r and columns c scaled to [-1, 1]. An axis of length 1 has r = 0; a single cell
    has rho = 1. `like` gives dtype and device.
    """
    # The maximum of r^2 + c^2 is 2, or 1 if one axis has length 1.
    row_h, column_w = (_symmetric_axis(n, like).square() for n in size_hw)
    rho_hw = row_h[:, None] + column_w[None, :]
    return rho_hw / 2 if min(size_hw) > 1 else rho_hw + float(max(size_hw) == 1)


def total_variation(maps_BKhw: Tensor) -> Tensor:
    """Sum over all K+1 channels of absolute vertical and horizontal neighbour differences, per patch: sum / (B h w).

    As published (iFAM, PDiscoFormer), it is not divided by K+1, so its scale grows with the number of parts.
    """
    batch, _, height, width = _checked(maps_BKhw).shape
    vertical = maps_BKhw.diff(dim=2).abs().sum()
    horizontal = maps_BKhw.diff(dim=3).abs().sum()
    return (vertical + horizontal) / (batch * height * width)


def pixel_entropy(maps_BKhw: Tensor) -> Tensor:
    """Each patch should belong to one channel: mean over images and patches of -sum_k A_k log A_k (iFAM, PDiscoFormer).

    0 log 0 is 0, and its gradient is the finite -log(tiny) instead of infinity.
    """
    safe = _checked(maps_BKhw).clamp_min(torch.finfo(maps_BKhw.dtype).tiny)
    return -(maps_BKhw * safe.log()).sum(dim=1).mean()


def orthogonality(part_features_BDK1: Tensor, kind: OrthogonalityKind = "parts") -> Tensor:
    """Part vectors (modulated, background included) [B, D, K+1] should be orthogonal.

    `parts` (PDiscoFormer): G = Gram matrix of the K+1 unit part vectors; mean over B and the (K+1)^2 entries of
    (G - I)^2. `channels` (computed by the released iFAM trainer): the same between the D channels, each a unit vector
    over the K+1 parts; mean over B and D^2 entries. It is at least 1/(K+1) - 1/D and depends little on how similar the
    parts are.
    """
    if part_features_BDK1.ndim != 3:
        raise ValueError(f"expected part features [B, D, K+1], got {tuple(part_features_BDK1.shape)}")
    if kind == "parts":
        unit = F.normalize(part_features_BDK1, dim=1)
        gram = unit.mT @ unit
        return (gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).square().mean()
    if kind == "channels":
        return _channel_orthogonality(part_features_BDK1)
    raise ValueError(f"unknown orthogonality kind {kind!r}")


def _channel_orthogonality(part_features_BDK1: Tensor) -> Tensor:
    """mean (U U^T - I_D)^2 for the unit rows of U [D, K+1], without the D x D matrix.

    |U U^T - I|^2 = |U^T U|^2 - 2 tr(U^T U) + D, where U^T U is (K+1) x (K+1). There is no cancellation: the first term
    is at least D^2 / (K+1).
    """
    channels = part_features_BDK1.shape[1]
    unit = F.normalize(part_features_BDK1, dim=2)
    gram = unit.mT @ unit
    squared = gram.square().sum(dim=(1, 2)) - 2 * unit.square().sum(dim=(1, 2)) + channels
    return squared.mean() / channels**2


def concentration(maps_BKhw: Tensor) -> Tensor:
    """Each foreground part should be concentrated around its centroid (iFAM, PDiscoFormer).

    Mean over images, parts and patches u = (i, j) of A_k(u) [((c_i - i) / h)^2 + ((c_j - j) / w)^2] with the centroid
    c_i = sum_u i A_k(u) / sg(sum_u A_k(u)). A part without mass has no centroid (0/0) and contributes 0, with a
    finite gradient. The released code divides rows by w and columns by h, which is the same on square grids.
    """
    parts = _checked(maps_BKhw)[:, :-1]
    height, width = parts.shape[-2:]
    mass = parts.sum(dim=(2, 3), keepdim=True).detach()
    mass = torch.where(mass > torch.finfo(mass.dtype).tiny, mass, torch.ones_like(mass))
    spread = torch.zeros_like(parts)
    for dim, size in ((2, height), (3, width)):
        position = torch.arange(size, dtype=parts.dtype, device=parts.device).view([-1, 1] if dim == 2 else [1, -1])
        centre = (parts * position).sum(dim=(2, 3), keepdim=True) / mass
        spread = spread + ((centre - position) / size).square()
    return (parts * spread).mean()


def equivariance(maps_BKhw: Tensor, maps_back_BKhw: Tensor, valid_Bhw: Tensor | None = None) -> Tensor:
    """Parts should follow the image: 1 - mean over images and foreground parts of cos(A_k, the view's A_k warped back).

    Vectors have h w entries, eps 1e-8. Without `valid_Bhw` this is the published form (iFAM, PDiscoFormer): positions
    that left the view are zeros in the second map, so the term cannot reach 0. With `valid_Bhw` ([B, h, w], bool or
    0/1) these positions are left out of both vectors, and images with no position in view are left out of the mean.
    """
    if maps_BKhw.shape != maps_back_BKhw.shape:
        raise ValueError(f"maps {tuple(maps_BKhw.shape)} and maps_back {tuple(maps_back_BKhw.shape)} differ in shape")
    first, second = _checked(maps_BKhw)[:, :-1], maps_back_BKhw[:, :-1]
    if valid_Bhw is None:
        return 1 - _cosine(first, second).mean()
    valid = valid_Bhw.to(first.dtype)
    seen_B = valid.amax(dim=(1, 2))
    distance_B = 1 - _cosine(first * valid[:, None], second * valid[:, None]).mean(dim=1)
    count = all_rows(seen_B.sum().reshape(1)).mean()  # mean per process, so that the average over processes is exact
    return (distance_B * seen_B).sum() / count.clamp_min(1e-6)


def border(logits_BKhw: Tensor, ring_weight: float) -> Tensor:
    """Content at the image border is background, content only inside is foreground (not from a paper).

    Mean over patches (not over weights) of weighted binary cross-entropy on z = logsumexp(foreground logits) -
    background logit. Outermost ring of patches: target background, weight `ring_weight`; all others: target foreground,
    weight 1. `logits_BKhw` [B, K+1, h, w] are the part logits, before the softmax. Needs no labels or masks, but
    assumes that objects rarely touch the border.
    """
    _checked(logits_BKhw)
    z_Bhw = logits_BKhw[:, :-1].logsumexp(dim=1) - logits_BKhw[:, -1]
    inside_hw = F.pad(torch.ones_like(z_Bhw[0, 1:-1, 1:-1]), (1, 1, 1, 1))
    weight_hw = inside_hw + ring_weight * (1 - inside_hw)
    return F.binary_cross_entropy_with_logits(z_Bhw, inside_hw.expand_as(z_Bhw), weight=weight_hw)


def _checked(maps_BKhw: Tensor) -> Tensor:
    """Return the maps unchanged; raise ValueError if their shape is wrong, UserError if the images are too small."""
    if maps_BKhw.ndim != 4 or maps_BKhw.shape[1] < 2:
        raise ValueError(f"expected maps [B, K+1, h, w] with K >= 1, got {tuple(maps_BKhw.shape)}")
    height, width = maps_BKhw.shape[-2:]
    if min(height, width) < 3:
        raise UserError(f"data.image_size: part terms need a grid of at least 3 x 3 patches, not {height} x {width}")
    return maps_BKhw


def _avg3(maps: Tensor) -> Tensor:
    return F.avg_pool2d(maps, kernel_size=3, stride=1)


def _symmetric_axis(length: int, like: Tensor) -> Tensor:
    ends = (-1.0, 1.0) if length > 1 else (0.0, 0.0)
    return torch.linspace(*ends, steps=length, dtype=like.dtype, device=like.device)


def _negative_log(x: Tensor) -> Tensor:
    """-log x, and 100 without gradient where x is 0 (or too small for 1/x to be finite).

    Equals F.binary_cross_entropy with target 1, which clips at 100 but refuses to run under autocast and fails a CUDA
    assertion when rounding lifts a mean above 1.
    """
    usable = x > torch.finfo(x.dtype).tiny
    safe = torch.where(usable, x, torch.ones_like(x))
    return torch.where(usable, -safe.log(), torch.full_like(x, LARGEST_NEGATIVE_LOG))


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    return F.cosine_similarity(first.flatten(2), second.flatten(2), dim=2, eps=COSINE_EPS)
