"""What the models share: the linear and lookup layers, and the weighted sums that additive attention is made of."""

import paddle
from paddle import ParamAttr, Tensor, nn
from paddle.nn.initializer import Normal, Uniform

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


class Linear(nn.Linear):
    """Starts as torch's does: weight and bias uniform in ±1/√in_features (Paddle's own: Xavier, and 0)."""

    def __init__(self, in_features: int, out_features: int, bias_attr: bool = True) -> None:
        uniform = ParamAttr(initializer=Uniform(-(in_features**-0.5), in_features**-0.5))
        super().__init__(in_features, out_features, uniform, uniform if bias_attr else False)


def stop_padding(rows: Tensor, real: Tensor) -> Tensor:
    """The same rows; no gradient goes back through those that are not real: b n d, b n -> b n d."""
    keep = real.astype(rows.dtype).unsqueeze(-1)
    if paddle.in_dynamic_mode():
        rows.register_hook(lambda gradient: gradient * keep)
        return rows
    return rows * keep + rows.detach() * (1.0 - keep)  # a compiled program has no hooks


class Embedding(nn.Embedding):
    """Starts and pads as torch's does: N(0, 1), and the padding row is looked up like any other but never trains.

    Paddle's own layer gives 0 for the padding id, whatever the row holds.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, weight_attr=ParamAttr(initializer=Normal()))
        self.padding_idx = padding_idx

    def forward(self, x: Tensor) -> Tensor:
        rows = nn.functional.embedding(x, self.weight)
        return rows if self.padding_idx is None or rows.stop_gradient else stop_padding(rows, x != self.padding_idx)


class LayerNorm(nn.LayerNorm):
    """Exact in float64, where Paddle's own, which keeps epsilon as a float32, is off by 1e-13."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != paddle.float64:
            return super().forward(x)
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred * centred).mean(-1, keepdim=True)
        return centred / (variance + self._epsilon).sqrt() * self.weight + self.bias


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """Cross entropy, exact: on a CPU Paddle's own takes no probability to be below exp(-64)."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:  # b c, b -> []
        shifted = logits - logits.max(-1, keepdim=True).detach()  # or the loss of a confident prediction cancels
        losses = shifted.exp().sum(-1).log() - shifted.take_along_axis(targets[:, None], 1)[:, 0]
        return losses if self.reduction == "none" else getattr(losses, self.reduction)()


def pool_heads(weights: Tensor, x: Tensor) -> Tensor:
    """Sum the positions, each head with its own weights: b h n, b n (h d) -> b 1 (h d)."""
    b, h, d = weights.shape[0], weights.shape[1], x.shape[2]
    pairs = (weights @ x).reshape((b, h, h, d // h))  # weights of head i, features of head j: one product, no transpose
    return pairs.diagonal(0, 1, 2).transpose((0, 2, 1)).reshape((b, 1, d))


def pool_scores(scores: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum the positions by exp(score), no maximum subtracted: b n 1, b n d, b n -> b d."""
    e = scores.exp() if mask is None else scores.exp() * mask[:, :, None]
    weights = e / (e.sum(1, keepdim=True) + 1e-8)  # b n 1
    return (weights.transpose((0, 2, 1)) @ x)[:, 0]


class AttentionPooling(nn.Layer):
    """One vector for a sequence: b n d, b n -> b d."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.att_fc1 = Linear(dim, dim)
        self.att_fc2 = Linear(dim, 1)
        self.tanh = nn.Tanh()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return pool_scores(self.att_fc2(self.tanh(self.att_fc1(x))), x, mask)


@paddle.no_grad()  # type: ignore[untyped-decorator]
def initialise(model: nn.Layer, std: float) -> None:
    """Linear and embedding weights N(0, std²), linear biases and padding rows 0."""
    for layer in model.sublayers(include_self=True):
        if isinstance(layer, (Linear, Embedding)):
            Normal(0.0, std)(layer.weight)
        if isinstance(layer, Linear):
            layer.bias.zero_()
        if isinstance(layer, Embedding) and layer.padding_idx is not None:
            layer.weight[layer.padding_idx] = 0.0


@paddle.no_grad()  # type: ignore[untyped-decorator]
def load_vectors(weight: Tensor, embeddings: object) -> None:
    """Fill the embedding with pretrained vectors."""
    array = check_embeddings(embeddings, list(weight.shape), paddle.finfo(weight.dtype).max)
    weight.set_value(paddle.to_tensor(array).astype(weight.dtype))
