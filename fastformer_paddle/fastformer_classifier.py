"""Fastformer as its authors published it: additive attention in post-norm blocks, pooled to one vector per text.

Source: "Fastformer: Additive Attention Can Be All You Need", arXiv 2108.09084.
"""

import paddle
from paddle import Tensor, nn

from ._checks import check_ids, check_multiple, check_number, check_pooled, check_sizes, check_targets
from ._layers import AttentionPooling, CrossEntropyLoss, Embedding, LayerNorm, Linear, initialise, pool_heads


class AdditiveSelfAttention(nn.Layer):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.scale = (dim // heads) ** -0.5
        self.query = Linear(dim, dim)
        self.query_att = Linear(dim, heads)
        self.key = Linear(dim, dim)
        self.key_att = Linear(dim, heads)
        self.transform = Linear(dim, dim)
        self.softmax = nn.Softmax(-1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # b n d, b 1 n: 0 at a token, -10000 at padding
        q, k = self.query(x), self.key(x)  # b n d
        alpha = self.softmax(self.query_att(q).transpose((0, 2, 1)) * self.scale + mask)  # b h n
        p = k * pool_heads(alpha, q)  # b n d
        beta = self.softmax(self.key_att(p).transpose((0, 2, 1)) * self.scale + mask)  # b h n
        return self.transform(q * pool_heads(beta, p)) + q  # the values are the queries


class Output(nn.Layer):
    """Project, drop out, add the residual, normalise."""

    def __init__(self, dim_in: int, dim: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.dense = Linear(dim_in, dim)
        self.dropout = nn.Dropout(dropout)
        self.LayerNorm = LayerNorm(dim, eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class Attention(nn.Layer):
    def __init__(self, dim: int, heads: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.self = AdditiveSelfAttention(dim, heads)
        self.output = Output(dim, dim, dropout, eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.output(self.self(x, mask), x)


class Intermediate(nn.Layer):
    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.dense = Linear(dim, dim_out)
        self.gelu = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.gelu(self.dense(x))


class Block(nn.Layer):
    def __init__(self, dim: int, heads: int, dim_ff: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, dropout, eps)
        self.intermediate = Intermediate(dim, dim_ff)
        self.output = Output(dim_ff, dim, dropout, eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.attention(x, mask)
        return self.output(self.intermediate(h), h)


class Fastformer(nn.Layer):
    def __init__(
        self, dim: int, heads: int, depth: int, dim_ff: int, max_length: int, dropout: float, eps: float, poolers: int
    ) -> None:
        super().__init__()
        self.position_embeddings = Embedding(max_length, dim)
        self.LayerNorm = LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)
        self.encoders = nn.LayerList([Block(dim, heads, dim_ff, dropout, eps) for _ in range(depth)])
        self.poolers = nn.LayerList([AttentionPooling(dim) for _ in range(poolers)])

    def forward(self, embeddings: Tensor, mask: Tensor, pooler_index: int = 0) -> Tensor:  # b n d, b n -> b d
        if not 0 <= pooler_index < len(self.poolers):
            raise ValueError(f"pooler_index is {pooler_index}; allowed are 0 to {len(self.poolers) - 1}")
        check_pooled(embeddings, mask, self.position_embeddings.weight.shape[0])
        mask = mask.astype(embeddings.dtype)
        additive = (1.0 - mask[:, None]) * -10000.0  # b 1 n
        positions = paddle.arange(embeddings.shape[1])
        x = self.dropout(self.LayerNorm(embeddings + self.position_embeddings(positions)))
        for encoder in self.encoders:
            x = encoder(x, additive)
        return self.poolers[pooler_index](x, mask)


class FastformerClassifier(nn.Layer):
    """The authors' classifier. Token 0 is padding: it is masked everywhere and its embedding never trains.

    Args:
        vocab_size, num_classes: rows of the word embedding, columns of the logits.
        hidden_size: width D, a multiple of num_attention_heads.
        num_hidden_layers, intermediate_size: blocks, and the width inside each one's feed-forward part.
        max_position_embeddings: the longest sequence.
        dropout: in [0, 1), active in training mode only.
        layer_norm_eps: of every LayerNorm.
        initializer_range: standard deviation of the initial weights; biases and the padding row start at 0.
        pooler_count: poolers in ``fastformer_model.forward(embeddings, mask, pooler_index=0)``; the classifier uses 0.

    Call with ``input_ids`` int64 [B, N] for logits [B, num_classes] in the parameters' dtype; with ``targets`` int64
    [B] besides, for a pair (mean cross entropy [], logits). A row of padding alone gives the final bias.

    Raises:
        ValueError: a setting, rank, dtype, length, id or target that is not allowed. Ids and targets on an
            accelerator are read, which waits for it, only with ``model.check_ranges = True``; False never reads any.

    Source: arXiv 2108.09084.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        num_classes: int,
        hidden_size: int = 256,
        num_attention_heads: int = 16,
        num_hidden_layers: int = 2,
        intermediate_size: int = 256,
        max_position_embeddings: int = 512,
        dropout: float = 0.2,
        layer_norm_eps: float = 1e-12,
        initializer_range: float = 0.02,
        pooler_count: int = 1,
    ) -> None:
        super().__init__()
        check_sizes(vocab_size=vocab_size, num_classes=num_classes, hidden_size=hidden_size)
        check_sizes(num_attention_heads=num_attention_heads, num_hidden_layers=num_hidden_layers)
        check_sizes(intermediate_size=intermediate_size, max_position_embeddings=max_position_embeddings)
        check_sizes(pooler_count=pooler_count)
        check_multiple("hidden_size", hidden_size, "num_attention_heads", num_attention_heads)
        check_number("dropout", dropout, 1)
        check_number("layer_norm_eps", layer_norm_eps)
        check_number("initializer_range", initializer_range)
        self.vocab_size, self.num_classes, self.max_length = vocab_size, num_classes, max_position_embeddings
        self.check_ranges: bool | None = None
        self.word_embedding = Embedding(vocab_size, hidden_size, 0)
        self.fastformer_model = Fastformer(
            hidden_size,
            num_attention_heads,
            num_hidden_layers,
            intermediate_size,
            max_position_embeddings,
            dropout,
            layer_norm_eps,
            pooler_count,
        )
        self.dense_linear = Linear(hidden_size, num_classes)
        self.criterion = CrossEntropyLoss()
        initialise(self, initializer_range)

    def forward(self, input_ids: Tensor, targets: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        values, limit = ("vocab_size", self.vocab_size), ("max_position_embeddings", self.max_length)
        check_ids("input_ids", input_ids, values, limit, self.check_ranges)
        mask = input_ids != 0  # b n
        logits = self.dense_linear(self.fastformer_model(self.word_embedding(input_ids), mask))  # b c
        if targets is None:
            return logits
        check_targets(targets, input_ids, self.num_classes, self.check_ranges)
        return self.criterion(logits, targets), logits
