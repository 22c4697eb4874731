"""Fastformer in one layer, for short texts such as news titles: no positions, no blocks, no normalisation.

Source: "Fastformer: Additive Attention Can Be All You Need", arXiv 2108.09084.
"""

from paddle import Tensor, nn

from ._checks import check_ids, check_mask, check_multiple, check_number, check_sizes, check_targets
from ._layers import CrossEntropyLoss, Embedding, Linear, initialise, load_vectors, pool_heads, pool_scores


class FastformerTextClassifier(nn.Layer):
    """Additive attention over word vectors, pooled and classified. The last word, vocab_size - 1, is padding.

    Args:
        vocab_size, num_classes: rows of the embedding, columns of the logits.
        embed: width D, a multiple of num_attention_heads.
        dropout: in [0, 1), before the last layer, active in training mode only.
        initializer_range: standard deviation of the initial linear weights; the embedding starts as N(0, 1).
        embeddings: pretrained word vectors, a finite floating-point array [vocab_size, embed]. They train, all of
            them: no row is padding then. Without them the padding row is 0 and never trains.

    Call with ``input_ids`` int64 [B, N] and ``mask`` bool [B, N], True at a real token (the padding id is not masked by
    itself), for logits [B, num_classes] in the parameters' dtype; with ``targets`` int64 [B] besides, for a pair
    (mean cross entropy [], logits). Any length from 1 is allowed. A row of padding alone gives the final bias.

    Raises:
        ValueError: a setting, rank, dtype, shape, length, id or target that is not allowed. Ids and targets on an
            accelerator are read, which waits for it, only with ``model.check_ranges = True``; False never reads any.

    Source: arXiv 2108.09084.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        num_classes: int,
        embed: int = 300,
        num_attention_heads: int = 1,
        dropout: float = 0.2,
        initializer_range: float = 0.02,
        embeddings: object = None,
    ) -> None:
        super().__init__()
        check_sizes(vocab_size=vocab_size, num_classes=num_classes, embed=embed)
        check_sizes(num_attention_heads=num_attention_heads)
        check_multiple("embed", embed, "num_attention_heads", num_attention_heads)
        check_number("dropout", dropout, 1)
        check_number("initializer_range", initializer_range)
        self.vocab_size, self.num_classes = vocab_size, num_classes
        self.check_ranges: bool | None = None
        self.scale = (embed // num_attention_heads) ** -0.5
        self.query = Linear(embed, embed)
        self.query_att = Linear(embed, num_attention_heads)
        self.key = Linear(embed, embed)
        self.key_att = Linear(embed, num_attention_heads)
        self.transform = Linear(embed, embed)
        self.att_fc1 = Linear(embed, embed)
        self.att_fc2 = Linear(embed, 1)
        self.fc = Linear(embed, num_classes)
        self.softmax = nn.Softmax(-1)
        self.tanh = nn.Tanh()
        self.dropout = nn.Dropout(dropout)
        self.criterion = CrossEntropyLoss()
        initialise(self, initializer_range)
        self.embedding = Embedding(vocab_size, embed, vocab_size - 1 if embeddings is None else None)
        if embeddings is not None:
            load_vectors(self.embedding.weight, embeddings)

    def forward(self, input_ids: Tensor, mask: Tensor, targets: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        check_ids("input_ids", input_ids, ("vocab_size", self.vocab_size), None, self.check_ranges)
        check_mask(mask, input_ids)
        x = self.embedding(input_ids)  # b n d
        mask = mask.astype(x.dtype)
        additive = (1.0 - mask[:, None]) * -10000.0  # b 1 n

        q, k = self.query(x), self.key(x)  # b n d
        alpha = self.softmax(self.query_att(q).transpose((0, 2, 1)) * self.scale + additive)  # b h n
        p = k * pool_heads(alpha, q)  # b n d
        beta = self.softmax(self.key_att(p).transpose((0, 2, 1)) * self.scale + additive)  # b h n
        y = self.tanh(self.transform(q * pool_heads(beta, p)) + q)  # b n d

        pooled = pool_scores(self.att_fc2(self.tanh(self.att_fc1(y))), y, mask)  # b d
        logits = self.fc(self.dropout(pooled))  # b c
        if targets is None:
            return logits
        check_targets(targets, input_ids, self.num_classes, self.check_ranges)
        return self.criterion(logits, targets), logits
