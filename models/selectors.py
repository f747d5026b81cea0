"""Fixed sources of masks that stand in for stage 1: maps of a frozen network, or random patches.

A map scores the patches of an image; stage 2 sees the fraction with the largest scores. Nothing here is trained. All
scores are fp32 and depend on their own image alone.

Shape legend: B images, N patches (h x w grid), P prefix tokens (class token first), S = P + N tokens, D width.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor

from models.backbone import grid_of, patch_tokens
from models.baseline import PlainViT
from models.selection import Selection, enlarge_tokens, patches_with
from models.transformer import Tokens, Transformer, ViT, describe


def class_attention(vit: ViT, images: Tensor) -> Tensor:
    """Attention of the class token to the patches in the last block, mean over heads: [B, 3, H, W] -> [B, N].

    The ViT must have a class token and plain blocks (`Transformer.is_plain`).
    """
    described = describe(vit)
    tokens = described.embed(images)
    x_BSD, last = tokens.x, len(described.blocks) - 1
    for index in range(last):
        x_BSD = described.run_block(index, tokens, x_BSD)
    return _head_mean(described, last, tokens, x_BSD, slice(0, 1))[:, 0, described.num_prefix_tokens :]


def attention_rollout(vit: ViT, images: Tensor) -> Tensor:
    """The class token's row of M_L ... M_1, M_l = (A_l + I) / 2, A_l the mean over heads: [B, 3, H, W] -> [B, N].

    Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020; the same as `explain` with "rollout". The
    ViT must have a class token and plain blocks (`Transformer.is_plain`).
    """
    described = describe(vit)
    tokens = described.embed(images)
    x_BSD, means_BSS = tokens.x, []
    for index in range(len(described.blocks)):
        means_BSS.append(_head_mean(described, index, tokens, x_BSD))
        x_BSD = described.run_block(index, tokens, x_BSD)
    row_B1S = torch.zeros_like(means_BSS[0][:, :1])
    row_B1S[..., 0] = 1
    with torch.autocast(images.device.type, enabled=False):
        for mean_BSS in reversed(means_BSS):
            row_B1S = (row_B1S @ mean_BSS + row_B1S) / 2
    return row_B1S[:, 0, described.num_prefix_tokens :]


def _head_mean(vit: Transformer, index: int, tokens: Tokens, x_BSD: Tensor, rows: slice = slice(None)) -> Tensor:
    """Attention weights of the query tokens `rows` of a plain block, mean over heads: [B, S, D] -> [B, R, S]."""
    block: Any = vit.blocks[index]
    q, k, _ = vit.query_key_value(index, block.norm1(x_BSD), tokens.rope_of(index))
    with torch.autocast(x_BSD.device.type, enabled=False):
        q, k = q[:, :, rows].float() * block.attn.scale, k.float()
        total_BRS: Tensor = q.new_zeros(q.shape[0], q.shape[2], k.shape[2])
        for head in range(q.shape[1]):  # one at a time: S x S matrices of all heads take much memory
            total_BRS += (q[:, head] @ k[:, head].mT).softmax(-1)
        return total_BRS.div_(q.shape[1])


def grad_cam(model: PlainViT, images: Tensor) -> Tensor:
    """Grad-CAM of the predicted class at the input of the last attention: [B, 3, H, W] -> [B, N].

    sum_k w_k a_k with w_k = mean over patches of dy/da_k (Selvaraju et al., ICCV 2017), as `explain` with "gradcam" and
    relu=False: without the ReLU the patches of negative value keep an order. No parameter gets a gradient, and the
    caller's grad mode does not matter. The ViT must have plain blocks (`Transformer.is_plain`).
    """
    leaves: list[Tensor] = []

    def cut(_: Any, __: Any, out: Tensor) -> Tensor:
        leaves.append(out.detach().requires_grad_())
        return leaves[-1]

    norm: Any = model.backbone.blocks[-1].norm1
    with torch.inference_mode(False), torch.enable_grad(), norm.register_forward_hook(cut):
        logits = model(images.clone() if images.is_inference() else images.detach()).logits
        score = logits.gather(1, logits.argmax(1, keepdim=True)).sum()  # images do not interact
        (gradient,) = torch.autograd.grad(score, leaves)
    prefix = model.backbone.num_prefix_tokens
    a_BND, gradient_BND = leaves[0].detach()[:, prefix:].float(), gradient[:, prefix:].float()
    return (a_BND * gradient_BND.mean(1, keepdim=True)).sum(-1)


def first_component(vit: ViT, images: Tensor) -> Tensor:
    """First principal component of each image's patch tokens (after the final norm): [B, 3, H, W] -> [B, N].

    Its sign is chosen so that the mean over the patches at the image border is negative (the mean over all is 0).
    """
    grid = grid_of(vit)
    x_BND = patch_tokens(vit, images).float()
    with torch.autocast(images.device.type, enabled=False):
        x_BND = x_BND - x_BND.mean(1, keepdim=True)
        by_patch = x_BND.shape[1] <= x_BND.shape[2]  # the smaller of the two Gram matrices
        gram = x_BND @ x_BND.mT if by_patch else x_BND.mT @ x_BND
        first = torch.linalg.eigh(gram).eigenvectors[..., -1:]  # ascending eigenvalues
        scores_BN = (first if by_patch else x_BND @ first)[..., 0]
    at_border = torch.ones(grid, dtype=torch.bool)
    at_border[1:-1, 1:-1] = False
    border = at_border.flatten().nonzero()[:, 0].to(images.device, non_blocking=True)  # no wait for their number
    inwards = scores_BN.index_select(1, border).mean(1, keepdim=True) <= 0
    return torch.where(inwards, scores_BN, -scores_BN)


def random_scores(images: Tensor, patches: int) -> Tensor:
    """Independent uniform scores drawn from a hash of each image's values: [B, 3, H, W] -> [B, `patches`].

    The same image gets the same scores in every epoch, process and batch; one that is augmented differently, others.
    """
    rows = []
    for image in images.detach().float().cpu():
        digest = hashlib.blake2b(image.numpy().tobytes(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        rows.append(torch.rand(patches, generator=generator))
    return torch.stack(rows).to(images.device, non_blocking=True)


def select_largest(scores_BN: Tensor, grid: tuple[int, int], keep: float, size: tuple[int, int] | None) -> Selection:
    """The Selection of the patches with the largest scores: the fraction `keep`, rounded, at least one.

    `size` (H, W): select pixels, of the scores interpolated to that size (bilinear). Of equal scores, the first counts.
    """
    if size is not None:
        pixels = _largest(enlarge_tokens(scores_BN[..., None], grid, size)[..., 0], keep).unflatten(1, size)
        return Selection(patches_with(pixels, grid), pixels)
    return Selection(_largest(scores_BN, keep).unflatten(1, grid))


def _largest(scores_BN: Tensor, keep: float) -> Tensor:
    """[B, N] bool: the fraction `keep` of each row."""
    count = max(1, round(keep * scores_BN.shape[1]))
    # A stable sort, because the order of equal values in topk depends on device and batch.
    best = scores_BN.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(scores_BN, dtype=torch.bool).scatter_(1, best, True)
