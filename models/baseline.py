"""The plain ViT baseline: it sees the whole image and classifies the pooled tokens."""

from typing import cast

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from models.backbone import create_backbone, require_class_token
from models.config import ModelConfig
from models.interface import ImageClassifier, Readout
from models.outputs import ClassifierOutput
from models.transformer import ViT


class EfficientProbing(nn.Module):
    """`ep` pooling: 32 learned queries attend to the tokens; each pools its own chunk of one value projection."""

    def __init__(self, width: int, queries: int = 32) -> None:
        """`width` D must be a multiple of `queries`."""
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.values = nn.Linear(width, width, bias=False)

    def forward(self, x_BND: Tensor) -> Tensor:
        """[B, N, D] -> [B, D]."""
        # The tokens themselves are the keys: there is no key projection.
        attn_BQN = (self.queries @ x_BND.transpose(1, 2) / x_BND.shape[-1] ** 0.5).softmax(-1)
        # Query q pools only channels [q * E, (q + 1) * E) of the values, with E = D / Q.
        chunks_BNQE = self.values(x_BND).unflatten(-1, (self.queries.shape[0], -1))
        return torch.einsum("bqn,bnqe->bqe", attn_BQN, chunks_BNQE).flatten(1)


class AimPooling(nn.Module):
    """`aim` pooling: one learned query attends to batch-normalised tokens with 12 heads and no biases."""

    def __init__(self, width: int, heads: int = 12) -> None:
        """`width` is D. If `heads` does not divide it, the largest smaller number that does is used."""
        super().__init__()
        self.heads = next(h for h in range(heads, 0, -1) if width % h == 0)
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.query = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.keys = nn.Linear(width, width, bias=False)
        self.values = nn.Linear(width, width, bias=False)

    def forward(self, x_BND: Tensor) -> Tensor:
        """[B, N, D] -> [B, D]."""
        x_BND = self.norm(x_BND.transpose(1, 2)).transpose(1, 2)

        def split(t: Tensor) -> Tensor:
            return cast(Tensor, t.unflatten(-1, (self.heads, -1)).transpose(1, 2))  # [B, S, D] -> [B, H, S, E]

        query = self.query.to(x_BND.dtype).expand(x_BND.shape[0], -1, -1)
        out = nn.functional.scaled_dot_product_attention(
            split(query), split(self.keys(x_BND)), split(self.values(x_BND))
        )
        return out.transpose(1, 2).flatten(1)


def linear_head(width: int, num_classes: int, bias: bool = True) -> nn.Linear:
    """A new classifier on `width` features: weights from a truncated normal with std 0.02, zero bias."""
    head = nn.Linear(width, num_classes, bias=bias)
    trunc_normal_(head.weight, std=0.02)
    if bias:
        nn.init.zeros_(head.bias)
    return head


class PlainViT(ImageClassifier):
    """A timm ViT with class-token, average or attentive pooling and a linear classifier with bias."""

    backbone: ViT

    def __init__(self, model_config: ModelConfig, num_classes: int, image_size: tuple[int, int]) -> None:
        """Random weights; `load_pretrained_backbones` loads `model_config.weights` into the backbone."""
        super().__init__()
        self.model_config = config = model_config
        self.backbone = create_backbone(config.backbone, image_size, config.drop_path)
        if config.pooling in ("cls", "gap_cls"):
            require_class_token(self.backbone, config.backbone, f"model.pooling={config.pooling}")
        width = self.backbone.embed_dim
        pools: dict[str, type[nn.Module]] = {"ep": EfficientProbing, "aim": AimPooling}
        self.pool = pools[config.pooling](width) if config.pooling in pools else nn.Identity()
        features = 2 * width if config.pooling == "gap_cls" else width
        self.head = linear_head(features, num_classes, bias=config.pooling != "aim")

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> ClassifierOutput:
        """Images [B, 3, H, W] -> ClassifierOutput. `generator` is unused: the model has no noise of its own."""
        return ClassifierOutput(cast(Tensor, self.head(self._pooled(self.backbone.forward_features(images)))))

    @property
    def readout(self) -> Readout:
        """The tokens that the pooling reads."""
        readouts: dict[str, Readout] = {"cls": "class_token", "gap_cls": "all"}
        return readouts.get(self.model_config.pooling, "patches")

    def _pooled(self, tokens_BSD: Tensor) -> Tensor:
        """Tokens [B, P + N, D] -> features of the head [B, D]; [B, 2 D] for `gap_cls`."""
        patches = tokens_BSD[:, self.backbone.num_prefix_tokens :]
        match self.model_config.pooling:
            case "cls":
                return tokens_BSD[:, 0]
            case "avg":
                return patches.mean(1)
            case "gap_cls":
                return torch.cat([tokens_BSD[:, 0], patches.mean(1)], dim=1)
        return cast(Tensor, self.pool(patches))
