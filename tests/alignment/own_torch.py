"""Models a user might bring, in torch; `own_paddle` is the same line by line."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Output:
    logits: torch.Tensor
    labels: torch.Tensor
    extra: dict[str, torch.Tensor] | None = None


class Silent(nn.Module):
    """Returns nothing."""

    def forward(self, x):
        self.seen = x.shape[0]


class Net(nn.Module):
    """A module called twice, one that returns nothing, tied weights, an unused one, a buffer, an in-place operation."""

    def __init__(self, width: int = 6, classes: int = 4):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.act = nn.GELU()
        self.silent = Silent()
        self.unused = nn.Linear(width, 2)
        self.tied = nn.Linear(width, width)
        self.tied.weight = self.first.weight
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(width, classes)
        self.register_buffer("offset", torch.linspace(-1.0, 1.0, width))

    def forward(self, x, scale=1.0, mask=None):
        y = self.act(self.norm(self.first(x)))
        y = y + self.norm(self.tied(y) * scale)
        y += self.offset
        self.silent(y)
        if mask is not None:
            y = y * mask[..., None]
        return self.head(self.dropout(y))


class Named(Net):
    """Returns a dict."""

    def forward(self, x):
        y = super().forward(x)
        return {"logits": y, "best": y.argmax(-1), "positive": y > 0}


class Typed(Net):
    """Returns a dataclass."""

    def forward(self, x):
        y = super().forward(x)
        return Output(y, y.argmax(-1), {"mean": y.mean()})


class Pair(nn.Module):
    """Takes nested inputs: (ids, {"states": [a, b]}); returns a nested tuple with None in it."""

    def __init__(self, width: int = 5):
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.mix = nn.Bilinear(width, width, width)

    def forward(self, ids, memory):
        a, b = memory["states"]
        x = self.embed(ids)
        return self.mix(x, a), (b * x, None)


class Block(nn.Module):
    """A residual block of the ResNet kind, and group norm."""

    def __init__(self, channels: int = 8, classes: int = 5):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.down = nn.Sequential(nn.Conv2d(3, channels, 1), nn.BatchNorm2d(channels))
        self.group = nn.GroupNorm(2, channels)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y = self.relu(y + self.down(x))
        return self.fc(self.group(y).mean((2, 3)))


class Bare(nn.Module):
    """No parameters at all."""

    def forward(self, x):
        return torch.softmax(x, -1) @ x.transpose(-1, -2)


def squared_error(output, targets):
    """A loss of one's own."""
    return ((output - targets["wanted"]) ** 2).mean() + targets["weight"] * output.abs().sum()
