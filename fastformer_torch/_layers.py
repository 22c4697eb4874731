"""What the models share: the linear and lookup layers, and the weighted sums that additive attention is made of."""

import torch
from torch import Tensor, nn
from torch.nn import CrossEntropyLoss, Embedding, LayerNorm, Linear

from ._checks import check_embeddings

__all__ = [
    "AttentionPooling",
    "CrossEntropyLoss",
    "Embedding",
    "LayerNorm",
    "Linear",
    "initialise",
    "load_vectors",
    "pool_heads",
    "pool_scores",
]


def pool_heads(weights: Tensor, x: Tensor) -> Tensor:
    """Sum the positions, each head with its own weights: b h n, b n (h d) -> b 1 (h d)."""
    b, h, d = weights.shape[0], weights.shape[1], x.shape[2]
    pairs = (weights @ x).reshape((b, h, h, d // h))  # weights of head i, features of head j: one product, no transpose
    return pairs.diagonal(0, 1, 2).transpose(1, 2).reshape((b, 1, d))


def pool_scores(scores: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum the positions by exp(score), no maximum subtracted: b n 1, b n d, b n -> b d."""
    e = scores.exp() if mask is None else scores.exp() * mask[:, :, None]
    weights = e / (e.sum(1, keepdim=True) + 1e-8)  # b n 1
    return (weights.transpose(1, 2) @ x)[:, 0]


class AttentionPooling(nn.Module):
    """One vector for a sequence: b n d, b n -> b d."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.att_fc1 = Linear(dim, dim)
        self.att_fc2 = Linear(dim, 1)
        self.tanh = nn.Tanh()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return pool_scores(self.att_fc2(self.tanh(self.att_fc1(x))), x, mask)


@torch.no_grad()
def initialise(model: nn.Module, std: float) -> None:
    """Linear and embedding weights N(0, std²), linear biases and padding rows 0."""
    for layer in model.modules():
        if isinstance(layer, (Linear, Embedding)):
            nn.init.normal_(layer.weight, 0.0, std)
        if isinstance(layer, Linear):
            layer.bias.zero_()
        if isinstance(layer, Embedding) and layer.padding_idx is not None:
            layer.weight[layer.padding_idx] = 0.0


@torch.no_grad()
def load_vectors(weight: Tensor, embeddings: object) -> None:
    """Fill the embedding with pretrained vectors."""
    array = check_embeddings(embeddings, list(weight.shape), torch.finfo(weight.dtype).max)
    weight.copy_(torch.tensor(array))
