"""The four systems written out step by step over a plain dictionary of weights.

No module and no shortcut: heads are transposed to the front, pooled vectors are repeated along the sequence, masks are
expanded in every layer. It is the yardstick for speed, and the second opinion that the recorded test cases come from.
Every function takes torch tensors under the checkpoints' names.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def split(x: Tensor, heads: int) -> Tensor:
    """b n (h d) -> b h n d."""
    b, n, _ = x.shape
    return x.view(b, n, heads, -1).permute(0, 2, 1, 3)


def join(x: Tensor) -> Tensor:
    """b h n d -> b n (h d)."""
    b, _, n, _ = x.shape
    return x.permute(0, 2, 1, 3).reshape(b, n, -1)


def pooler(w: Weights, prefix: str, x: Tensor, mask: Tensor | None) -> Tensor:
    e = torch.exp(linear(w, f"{prefix}att_fc2", torch.tanh(linear(w, f"{prefix}att_fc1", x))))  # b n 1
    if mask is not None:
        e = e * mask.to(x.dtype).unsqueeze(2)
    weights = e / (torch.sum(e, dim=1, keepdim=True) + 1e-8)
    return torch.bmm(x.permute(0, 2, 1), weights).reshape(x.shape[0], -1)


def additive_attention(w: Weights, prefix: str, x: Tensor, mask: Tensor, heads: int) -> Tensor:
    n, d = x.shape[1], x.shape[2] // heads
    additive = ((1.0 - mask.to(x.dtype)) * -10000.0).unsqueeze(1).repeat(1, heads, 1)  # b h n
    query, key = linear(w, f"{prefix}query", x), linear(w, f"{prefix}key", x)

    scores = linear(w, f"{prefix}query_att", query).transpose(1, 2) / math.sqrt(d) + additive
    query_heads = split(query, heads)  # b h n d
    pooled = torch.matmul(torch.softmax(scores, -1).unsqueeze(2), query_heads)  # b h 1 d
    product = key * join(pooled).repeat(1, n, 1)  # b n (h d)

    scores = linear(w, f"{prefix}key_att", product).transpose(1, 2) / math.sqrt(d) + additive
    pooled = torch.matmul(torch.softmax(scores, -1).unsqueeze(2), split(product, heads))  # b h 1 d
    return linear(w, f"{prefix}transform", join(pooled.repeat(1, 1, n, 1) * query_heads)) + query


def fastformer_classifier(
    w: Weights, ids: Tensor, *, heads: int, layers: int, eps: float = 1e-12, dropout: float = 0.0, pooler_index: int = 0
) -> Tensor:
    drop = {"p": dropout, "training": dropout > 0}
    mask = ids != 0
    words = F.embedding(ids, w["word_embedding.weight"], padding_idx=0)
    positions = torch.arange(ids.shape[1]).unsqueeze(0).repeat(ids.shape[0], 1)
    x = words + F.embedding(positions, w["fastformer_model.position_embeddings.weight"])
    x = F.dropout(norm(w, "fastformer_model.LayerNorm", x, eps), **drop)
    for layer in range(layers):
        prefix = f"fastformer_model.encoders.{layer}."
        y = additive_attention(w, f"{prefix}attention.self.", x, mask, heads)
        y = F.dropout(linear(w, f"{prefix}attention.output.dense", y), **drop)
        h = norm(w, f"{prefix}attention.output.LayerNorm", y + x, eps)
        y = F.gelu(linear(w, f"{prefix}intermediate.dense", h))
        y = F.dropout(linear(w, f"{prefix}output.dense", y), **drop)
        x = norm(w, f"{prefix}output.LayerNorm", y + h, eps)
    return linear(w, "dense_linear", pooler(w, f"fastformer_model.poolers.{pooler_index}.", x, mask))


def fastformer_text_classifier(
    w: Weights, ids: Tensor, mask: Tensor, *, heads: int, padded: bool = True, dropout: float = 0.0
) -> Tensor:
    table = w["embedding.weight"]
    x = F.embedding(ids, table, padding_idx=table.shape[0] - 1 if padded else None)
    x = torch.tanh(additive_attention(w, "", x, mask, heads))
    return linear(w, "fc", F.dropout(pooler(w, "", x, mask), dropout, training=dropout > 0))


def turn(x: Tensor, freqs: Tensor) -> Tensor:
    """Rotate the leading pairs of features by position times frequency, one complex product: b h n d."""
    rotated, rest = x[..., : 2 * len(freqs)], x[..., 2 * len(freqs) :]
    angles = torch.outer(torch.arange(x.shape[2], dtype=freqs.dtype), freqs)  # n f
    pairs = torch.view_as_complex(rotated.reshape(*rotated.shape[:-1], -1, 2).contiguous())
    pairs = pairs * torch.complex(torch.cos(angles), torch.sin(angles))
    return torch.cat((torch.view_as_real(pairs).flatten(-2), rest), dim=-1)


def fast_attention(w: Weights, prefix: str, x: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    n = x.shape[1]
    q, k, v = (split(part, heads) for part in linear(w, f"{prefix}to_qkv", x).chunk(3, dim=-1))  # b h n d
    scale = q.shape[-1] ** -0.5
    freqs = w.get(f"{prefix}pos_emb.freqs")
    q_turned, k_turned, v_turned = (q, k, v) if freqs is None else (turn(q, freqs), turn(k, freqs), turn(v, freqs))

    def attend(scores: Tensor, values: Tensor) -> Tensor:  # b h n 1, b h n d -> b h n d
        logits = scores.squeeze(-1) * scale
        if mask is not None:
            hidden = ~mask.unsqueeze(1).expand(-1, heads, -1)
            logits = logits.masked_fill(hidden, -torch.finfo(logits.dtype).max)
        weights = torch.softmax(logits, dim=-1).unsqueeze(-1)
        return torch.sum(weights * values, dim=2, keepdim=True).repeat(1, 1, n, 1)

    def pairs(x: Tensor) -> Tensor:
        return x if freqs is None else x.reshape(*x.shape[:-1], -1, 2).sum(-1)

    product = pairs(k * attend(linear(w, f"{prefix}to_q_attn_logits", q), q_turned))
    values = pairs(v_turned * attend(linear(w, f"{prefix}to_k_attn_logits", product), k_turned))
    return linear(w, f"{prefix}to_out", join(linear(w, f"{prefix}to_r", values) + q))


def encoder(w: Weights, prefix: str, ids: Tensor, mask: Tensor | None, heads: int, layers: int) -> Tensor:
    x = F.embedding(ids, w[f"{prefix}token_emb.weight"])
    if f"{prefix}abs_pos_emb.weight" in w:
        x = x + F.embedding(torch.arange(ids.shape[1]), w[f"{prefix}abs_pos_emb.weight"])
    for layer in range(layers):
        attention, feed_forward = f"{prefix}layers.{layer}.0", f"{prefix}layers.{layer}.1"
        x = fast_attention(w, f"{attention}.fn.", norm(w, f"{attention}.norm", x, 1e-5), mask, heads) + x
        y = F.gelu(linear(w, f"{feed_forward}.fn.0", norm(w, f"{feed_forward}.norm", x, 1e-5)))
        x = linear(w, f"{feed_forward}.fn.2", y) + x
    return x


def fast_transformer(w: Weights, ids: Tensor, mask: Tensor | None, *, heads: int, layers: int) -> Tensor:
    x = encoder(w, "", ids, mask, heads, layers)
    return linear(w, "to_logits.1", norm(w, "to_logits.0", x, 1e-5))


def fast_transformer_classifier(w: Weights, ids: Tensor, *, heads: int, layers: int, dropout: float = 0.0) -> Tensor:
    x = encoder(w, "fastformer_model.", ids, ids != 0, heads, layers)
    x = F.dropout(x, dropout, training=dropout > 0)
    return linear(w, "dense_linear", pooler(w, "fastformer_model.pooler.", x, None))
