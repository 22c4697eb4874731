"""Multi-head attention of torch's own, of Paddle's own, and written by hand on either side, with twins of them."""

from __future__ import annotations

import paddle
import torch

from alignment import Side, Twin
from fake_data import Ids, InputSpec, Labels

WIDTH, HEADS = 8, 2
# What a hand-made attention calls its projections: of queries, keys and values, and of what it gives.
USUAL = ("q_proj", "k_proj", "v_proj", "out_proj")
OTHER = ("query", "key", "value", "dense")
SILENT = ("a", "b", "c", "d")


class OwnAttention(torch.nn.Module):
    def __init__(self, names, width=WIDTH):
        super().__init__()
        self.names = names
        for name in sorted(names):  # in another order than torch's own
            setattr(self, name, torch.nn.Linear(width, width))

    def forward(self, x):
        b, n, width = x.shape
        q, k, v = (getattr(self, name)(x).reshape(b, n, HEADS, -1).transpose(1, 2) for name in self.names[:3])
        scores = torch.softmax(q @ k.transpose(-1, -2) / (width // HEADS) ** 0.5, -1)
        return getattr(self, self.names[3])((scores @ v).transpose(1, 2).reshape(b, n, width))


class OwnAttentionPort(paddle.nn.Layer):
    """fault: ``"scale"`` leaves the scores as they are. weights: give them, too, and one thing more."""

    def __init__(self, names, fault="", weights=False, width=WIDTH):
        super().__init__()
        self.words, self.fault, self.gives_weights = names, fault, weights
        for name in sorted(names):
            setattr(self, name, paddle.nn.Linear(width, width))

    def forward(self, x):
        b, n, width = x.shape
        q, k, v = (getattr(self, name)(x).reshape([b, n, HEADS, -1]).transpose([0, 2, 1, 3]) for name in self.words[:3])
        scale = 1.0 if self.fault == "scale" else (width // HEADS) ** -0.5
        scores = paddle.nn.functional.softmax(q @ k.transpose([0, 1, 3, 2]) * scale, -1)
        given = getattr(self, self.words[3])((scores @ v).transpose([0, 2, 1, 3]).reshape([b, n, width]))
        return (given, scores.sum(), None) if self.gives_weights else given


class Packed(torch.nn.Module):
    """Queries, keys and values in one tensor. extra: a layer that is never used."""

    def __init__(self, classes=3, extra=False):
        super().__init__()
        self.emb = torch.nn.Embedding(10, WIDTH)
        self.attn = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.head = torch.nn.Linear(WIDTH, classes)
        if extra:
            self.spare = torch.nn.Linear(7, 7)

    def forward(self, ids):
        x = self.emb(ids)
        return self.head(self.attn(x, x, x)[0]).mean(1)


class Own(torch.nn.Module):
    def __init__(self, names, classes=3):
        super().__init__()
        self.emb = torch.nn.Embedding(10, WIDTH)
        self.attn = OwnAttention(names)
        self.head = torch.nn.Linear(WIDTH, classes)

    def forward(self, ids):
        return self.head(self.attn(self.emb(ids))).mean(1)


class OwnPort(paddle.nn.Layer):
    def __init__(self, names, at="attn", fault="", weights=False, classes=3, extra=False):
        super().__init__()
        self.emb = paddle.nn.Embedding(10, WIDTH)
        self.at, self.weights = at, weights
        setattr(self, at, OwnAttentionPort(names, fault, weights))
        self.head = paddle.nn.Linear(WIDTH, classes)
        if extra:
            self.aux = paddle.nn.Linear(5, 5)

    def forward(self, ids):
        given = getattr(self, self.at)(self.emb(ids))
        return self.head(given[0] if self.weights else given).mean(1)


class LayerPort(paddle.nn.Layer):
    """Paddle's own attention; packed: the one that stores what torch's does."""

    def __init__(self, packed=False, classes=3):
        super().__init__()
        self.emb = paddle.nn.Embedding(10, WIDTH)
        self.packed = packed
        if packed:
            self.attn = paddle.compat.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        else:
            self.attn = paddle.nn.MultiHeadAttention(WIDTH, HEADS)
        self.head = paddle.nn.Linear(WIDTH, classes)

    def forward(self, ids):
        x = self.emb(ids)
        given = self.attn(x, x, x)
        return self.head(given[0] if self.packed else given).mean(1)


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = torch.nn.Embedding(10, WIDTH)
        self.layer = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, 12, batch_first=True)
        self.head = torch.nn.Linear(WIDTH, 3)

    def forward(self, ids):
        return self.head(self.layer(self.emb(ids))).mean(1)


class BlockPort(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.attention = OwnAttentionPort(OTHER)
        self.norm1, self.norm2 = paddle.nn.LayerNorm(WIDTH), paddle.nn.LayerNorm(WIDTH)
        self.up, self.down = paddle.nn.Linear(WIDTH, 12), paddle.nn.Linear(12, WIDTH)

    def forward(self, x):
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.down(paddle.nn.functional.relu(self.up(x))))


class EncoderPort(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.table = paddle.nn.Embedding(10, WIDTH)
        self.block = BlockPort()
        self.out = paddle.nn.Linear(WIDTH, 3)

    def forward(self, ids):
        return self.out(self.block(self.table(ids))).mean(1)


def inputs(_settings):
    return InputSpec({"ids": Ids(0, 10, ("B", "N")), "targets": Labels(3, ("B",))}, max_length=8)


def twin(reference, candidate, ours=None, theirs=None, settings=None, **more):
    """A twin of two classes of this file, with keywords of each side and of both."""
    return Twin(
        "attention",
        "a port of attention",
        Side("torch", f"{__name__}:{reference}", ours or {}),
        Side("paddle", f"{__name__}:{candidate}", theirs or {}),
        settings or {},
        inputs,
        loss="criterion",
        **more,
    )


usual = twin("Packed", "OwnPort", theirs={"names": USUAL})
other = twin("Packed", "OwnPort", theirs={"names": OTHER, "at": "mha"}, settings={"classes": 3})
silent = twin("Packed", "OwnPort", theirs={"names": SILENT})
spare = twin("Packed", "OwnPort", ours={"extra": True}, theirs={"names": OTHER, "extra": True})
joined = twin("Own", "LayerPort", ours={"names": OTHER}, theirs={"packed": True})
