"""Fastformer as its community knows it: pre-norm, one pair of attention vectors for all layers, rotary positions.

Source: "Fastformer: Additive Attention Can Be All You Need", arXiv 2108.09084.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ._checks import check_ids, check_mask, check_multiple, check_number, check_sizes, check_targets
from ._layers import AttentionPooling, CrossEntropyLoss, Embedding, LayerNorm, Linear, pool_heads


class RotaryEmbedding(nn.Module):
    """The cosines and sines of position times frequency, in the model's dtype from the frequencies as loaded."""

    freqs: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        freqs = 1.0 / (10000 ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
        self.register_buffer("freqs", freqs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # b n d -> n 1 f, n 1 f
        n = torch.arange(x.shape[1], dtype=x.dtype, device=x.device)
        theta = n[:, None, None] * self.freqs.to(x.dtype)
        return theta.cos(), theta.sin()


def pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """The even and the odd features: b n h (d 2) -> b n h d, b n h d."""
    even, odd = x.reshape((*x.shape[:-1], x.shape[-1] // 2, 2)).unbind(-1)
    return even, odd


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs of features that have an angle, pass the others through: b n h d, n 1 f, n 1 f -> b n h d."""
    r = 2 * cos.shape[-1]
    turning, rest = torch.split(x, [r, x.shape[-1] - r], -1)
    even, odd = pairs(turning)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)
    return torch.cat([turned, rest], -1)


class FastAttention(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int, rotary: bool, q_logits: Linear, k_logits: Linear) -> None:
        super().__init__()
        self.heads, self.dim_head, self.scale = heads, dim_head, dim_head**-0.5
        self.to_qkv = Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_q_attn_logits = q_logits
        self.to_k_attn_logits = k_logits
        self.to_r = Linear(dim_head // 2 if rotary else dim_head, dim_head)
        self.to_out = Linear(heads * dim_head, dim)
        self.pos_emb = RotaryEmbedding(dim_head // 2) if rotary else None
        self.softmax = nn.Softmax(-1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # b n d, b 1 n
        b, n, h, d = x.shape[0], x.shape[1], self.heads, self.dim_head
        qkv = self.to_qkv(x).reshape((b, n, 3 * h, d))
        turned = qkv if self.pos_emb is None else rotate(qkv, *self.pos_emb(x))
        q, k, _ = qkv.chunk(3, 2)  # b n h d
        q_, k_, v_ = turned.chunk(3, 2)

        alpha = self.attend(self.to_q_attn_logits(q), mask)  # b h n
        p = k * pool_heads(alpha, q_.flatten(2)).reshape((b, 1, h, d))  # b n h d
        p = p if self.pos_emb is None else torch.add(*pairs(p))

        beta = self.attend(self.to_k_attn_logits(p), mask)  # b h n
        u = v_ * pool_heads(beta, k_.flatten(2)).reshape((b, 1, h, d))  # b n h d
        u = u if self.pos_emb is None else torch.add(*pairs(u))
        return self.to_out((self.to_r(u) + q).flatten(2))

    def attend(self, scores: Tensor, mask: Tensor | None) -> Tensor:  # b n h 1, b 1 n -> b h n
        logits = scores[..., 0].transpose(1, 2) * self.scale
        if mask is not None:  # replaced, not added: where nothing is real, every position weighs 1/n
            logits = logits.masked_fill(~mask, -torch.finfo(logits.dtype).max)
        return self.softmax(logits)


class PreNorm(nn.Module):
    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor, *args: Tensor | None) -> Tensor:
        return self.fn(self.norm(x), *args)


class Block(nn.ModuleList):
    """Attention and feed-forward part, each with its residual."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # b n d, b 1 n
        x = self[0](x, mask) + x
        return self[1](x) + x


class Encoder(nn.Module):
    def __init__(
        self,
        *,
        num_tokens: int,
        dim: int,
        depth: int,
        max_seq_len: int,
        heads: int,
        dim_head: int,
        ff_mult: int,
        absolute_pos_emb: bool,
    ) -> None:
        super().__init__()
        check_sizes(num_tokens=num_tokens, dim=dim, depth=depth, max_seq_len=max_seq_len)
        check_sizes(heads=heads, dim_head=dim_head, ff_mult=ff_mult)
        if not absolute_pos_emb:
            check_multiple("dim_head", dim_head, "4 (rotary positions)", 4)
        self.token_emb = Embedding(num_tokens, dim)
        self.abs_pos_emb = Embedding(max_seq_len, dim) if absolute_pos_emb else None
        q_logits = Linear(dim_head, 1, bias=False)  # one pair for all layers
        k_logits = Linear(dim_head if absolute_pos_emb else dim_head // 2, 1, bias=False)
        self.layers = nn.ModuleList()
        for _ in range(depth):
            attention = FastAttention(dim, heads, dim_head, not absolute_pos_emb, q_logits, k_logits)
            feed_forward = nn.Sequential(Linear(dim, ff_mult * dim), nn.GELU(), Linear(ff_mult * dim, dim))
            self.layers.append(Block([PreNorm(dim, attention), PreNorm(dim, feed_forward)]))

    def encode(self, ids: Tensor, mask: Tensor | None) -> Tensor:  # b n, b n -> b n d
        x = self.token_emb(ids)
        if self.abs_pos_emb is not None:
            x = x + self.abs_pos_emb(torch.arange(ids.shape[1], device=ids.device))
        mask = None if mask is None else mask[:, None]  # b 1 n
        for block in self.layers:
            x = block(x, mask)
        return x


class PooledEncoder(Encoder):
    """The encoder, dropout, and a pooler that is given no mask: padded positions take part."""

    def __init__(self, *, dim: int, dropout: float, **settings: Any) -> None:
        super().__init__(dim=dim, **settings)
        self.dropout = nn.Dropout(dropout)
        self.pooler = AttentionPooling(dim)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:  # b n, b n -> b d
        return self.pooler(self.dropout(self.encode(ids, mask)))


class FastTransformer(Encoder):
    """The community model: logits for every token.

    Args:
        num_tokens: rows of the embedding, columns of the logits. Token 0 is an ordinary one.
        dim, depth, heads, dim_head, ff_mult: width D, layers, heads and their width (heads * dim_head need not be D),
            width of the feed-forward part in multiples of D.
        max_seq_len: the longest sequence.
        absolute_pos_emb: learned positions; otherwise rotary ones, for which dim_head must be a multiple of 4.

    Call with ``x`` int64 [B, N] and, if wanted, ``mask`` bool [B, N], True at a real token, for logits
    [B, N, num_tokens] in the parameters' dtype. Without a mask nothing is masked; a row of padding alone attends
    evenly to all its positions. The two attention vectors of all layers are one pair of parameters.

    Raises:
        ValueError: a setting, rank, dtype, shape, length or id that is not allowed. Ids on an accelerator are read,
            which waits for it, only with ``model.check_ranges = True``; False never reads any.

    Source: arXiv 2108.09084.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        dim: int,
        depth: int,
        max_seq_len: int,
        heads: int = 8,
        dim_head: int = 64,
        ff_mult: int = 4,
        absolute_pos_emb: bool = False,
    ) -> None:
        super().__init__(
            num_tokens=num_tokens,
            dim=dim,
            depth=depth,
            max_seq_len=max_seq_len,
            heads=heads,
            dim_head=dim_head,
            ff_mult=ff_mult,
            absolute_pos_emb=absolute_pos_emb,
        )
        self.num_tokens, self.max_length = num_tokens, max_seq_len
        self.check_ranges: bool | None = None
        self.to_logits = nn.Sequential(LayerNorm(dim), Linear(dim, num_tokens))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        check_ids("x", x, ("num_tokens", self.num_tokens), ("max_seq_len", self.max_length), self.check_ranges)
        if mask is not None:
            check_mask(mask, x)
        return self.to_logits(self.encode(x, mask))  # b n v


class FastTransformerClassifier(nn.Module):
    """The community model pooled to one vector per text. Token 0 is padding for the attention.

    The pooler is not masked, as in the original: padding changes the logits, so a text's result depends on the
    length it is padded to. Token 0 has an ordinary embedding that trains.

    Args:
        num_classes: columns of the logits.
        num_tokens, dim, depth, max_seq_len, heads, dim_head, ff_mult, absolute_pos_emb: as in FastTransformer.
        dropout: in [0, 1), between encoder and pooler, active in training mode only.

    Call with ``input_ids`` int64 [B, N] for logits [B, num_classes] in the parameters' dtype; with ``targets`` int64
    [B] besides, for a pair (mean cross entropy [], logits).

    Raises:
        ValueError: a setting, rank, dtype, length, id or target that is not allowed. Ids and targets on an
            accelerator are read, which waits for it, only with ``model.check_ranges = True``; False never reads any.

    Source: arXiv 2108.09084.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_tokens: int,
        dim: int,
        depth: int,
        max_seq_len: int,
        heads: int = 8,
        dim_head: int = 64,
        ff_mult: int = 4,
        absolute_pos_emb: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes)
        check_number("dropout", dropout, 1)
        self.num_classes, self.num_tokens, self.max_length = num_classes, num_tokens, max_seq_len
        self.check_ranges: bool | None = None
        self.fastformer_model = PooledEncoder(
            num_tokens=num_tokens,
            dim=dim,
            depth=depth,
            max_seq_len=max_seq_len,
            heads=heads,
            dim_head=dim_head,
            ff_mult=ff_mult,
            absolute_pos_emb=absolute_pos_emb,
            dropout=dropout,
        )
        self.dense_linear = Linear(dim, num_classes)
        self.criterion = CrossEntropyLoss()

    def forward(self, input_ids: Tensor, targets: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        values, limit = ("num_tokens", self.num_tokens), ("max_seq_len", self.max_length)
        check_ids("input_ids", input_ids, values, limit, self.check_ranges)
        logits = self.dense_linear(self.fastformer_model(input_ids, input_ids != 0))  # b c
        if targets is None:
            return logits
        check_targets(targets, input_ids, self.num_classes, self.check_ranges)
        return self.criterion(logits, targets), logits
