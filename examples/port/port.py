"""The models ported to Paddle."""

from __future__ import annotations

import math

import paddle
from paddle import nn


class Attention(nn.Layer):
    """Self-attention as in BERT: three projections, a mask of the tokens that count."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x, mask):  # b n d, b n -> b n d
        b, n, d = x.shape
        q, k, v = (
            layer(x).reshape([b, n, self.heads, d // self.heads]).transpose([0, 2, 1, 3])
            for layer in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose([0, 1, 3, 2]) / math.sqrt(d // self.heads)
        scores = paddle.where(mask[:, None, None, :], scores, paddle.full_like(scores, -1e9))
        weights = nn.functional.softmax(scores, axis=-1)
        return self.out((weights @ v).transpose([0, 2, 1, 3]).reshape([b, n, d]))


class Block(nn.Layer):
    """Attention and feed-forward, each with a residual connection and a norm behind it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width, epsilon=1e-12)
        self.up = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.down = nn.Linear(4 * width, width)
        self.norm2 = nn.LayerNorm(width, epsilon=1e-12)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x, mask):
        x = self.norm1(x + self.dropout(self.attention(x, mask)))
        return self.norm2(x + self.dropout(self.down(self.act(self.up(x)))))


class Encoder(nn.Layer):
    """A small BERT: the first token is classified."""

    def __init__(self, words: int, width: int, heads: int, depth: int, length: int, classes: int):
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=0)
        self.positions = nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width, epsilon=1e-12)
        self.blocks = nn.LayerList([Block(width, heads) for _ in range(depth)])
        self.head = nn.Linear(width, classes)

    def forward(self, ids):  # b n -> b c
        mask = ids != 0
        x = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]])
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x[:, 0])


class ConvNet(nn.Layer):
    """Convolutions, batch norm and pooling with padding."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.conv1 = nn.Conv2D(3, channels, 3, padding=1, bias_attr=False)
        self.norm1 = nn.BatchNorm2D(channels, momentum=0.9)
        self.pool = nn.AvgPool2D(3, stride=2, padding=1, exclusive=False)
        self.conv2 = nn.Conv2D(channels, channels, 3, padding=1, bias_attr=False)
        self.norm2 = nn.BatchNorm2D(channels, momentum=0.9)
        self.relu = nn.ReLU()
        self.head = nn.Linear(channels, classes)

    def forward(self, images):  # b 3 h w -> b c
        x = self.pool(self.relu(self.norm1(self.conv1(images))))
        return self.head(self.relu(self.norm2(self.conv2(x))).mean((2, 3)))


class Tagger(nn.Layer):
    """A bidirectional LSTM that gives each token a tag."""

    def __init__(self, words: int, width: int, tags: int):
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=0)
        self.lstm = nn.LSTM(width, width, num_layers=2, direction="bidirect")
        self.head = nn.Linear(2 * width, tags)

    def forward(self, ids):  # b n -> b n tags
        states, _ = self.lstm(self.words(ids))
        return self.head(states)
