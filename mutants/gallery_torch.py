"""The reference side of the gallery: small models made of common layers. They have no faults."""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.nn.utils import weight_norm


class ConvNet(nn.Module):
    """Images, a residual block, a fixed spatial transform, class logits: b 3 h w -> b c."""

    def __init__(self, channels: int, size: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels, eps=1e-3)
        self.relu1 = nn.ReLU()
        self.pool = nn.AvgPool2d(4, stride=2, padding=1)
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))
        self.conv2 = nn.Conv2d(channels, channels, 3)
        self.relu2 = nn.ReLU()
        self.head = nn.Linear(channels * (size // 2) ** 2, num_classes)
        self.register_buffer("theta", torch.tensor([[0.8, 0.25, 0.1], [-0.25, 0.8, -0.1]]))
        # As a trained model's: at 0 and 1 nobody would notice that they are lost.
        self.bn.running_mean.copy_(torch.arange(channels) / channels - 0.5)
        self.bn.running_var.copy_(0.25 + torch.arange(channels) / channels)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu1(self.bn(self.conv1(images.to(self.theta.dtype))))
        x = self.pool(x)
        skip = x
        x += self.shift  # in place: the skip connection is shifted too
        x = self.conv2(F.pad(x, (2, 0, 1, 1)))  # causal along the width, symmetric along the height
        x = self.relu2(x + skip)
        grid = F.affine_grid(self.theta.expand(len(x), 2, 3), x.shape, align_corners=False)
        x = F.grid_sample(x, grid, align_corners=False)
        return self.head(x.flatten(1))


class AttentionNet(nn.Module):
    """One layer of self-attention and attention pooling: b n, b n -> b c. The mask is True at real tokens."""

    def __init__(self, vocab_size: int, max_length: int, dim: int, heads: int, num_classes: int) -> None:
        super().__init__()
        self.heads = heads
        self.embedding = nn.Embedding(vocab_size, dim)
        self.positions = nn.Embedding(max_length, dim)
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.softmax = nn.Softmax(dim=-1)
        self.out_proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.pool_score = nn.Linear(dim, 1, bias=False)
        self.pool_softmax = nn.Softmax(dim=1)
        self.head = nn.Linear(dim, num_classes)

    def split_heads(self, x: Tensor) -> Tensor:  # b n (h d) -> b h n d
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embedding(input_ids) + self.positions(torch.arange(input_ids.shape[1], device=input_ids.device))
        q, k, v = (self.split_heads(part) for part in self.in_proj(x).chunk(3, dim=-1))
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~mask[:, None, None, :], -1e9)
        context = self.softmax(scores) @ v  # b h n d
        context = self.out_proj(context.transpose(1, 2).flatten(2))
        x = self.norm(x + context)
        pooling = self.pool_softmax(self.pool_score(x).masked_fill(~mask[:, :, None], -1e9))  # b n 1
        return self.head((pooling * x).sum(1))


class TokenNet(nn.Module):
    """A bag of tokens: b n -> b c. Id 0 is padding; its row is looked up like any other."""

    def __init__(self, vocab_size: int, dim: int, group: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.group = group
        self.embedding = nn.Embedding(vocab_size, dim, padding_idx=0)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.begin = nn.Parameter(torch.zeros(dim))
        self.up = nn.Linear(dim, 2 * dim)
        self.act = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(2 * dim, dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, input_ids: Tensor) -> Tensor:
        b, n = input_ids.shape
        x = self.norm(self.embedding(input_ids))
        first = torch.arange(b, device=x.device) * n
        rows = x.flatten(0, 1).index_add(0, first, self.begin.expand(b, -1))  # marks where each text begins
        x = self.down(self.dropout(self.act(self.up(rows.view_as(x)))))
        groups = [part - part.detach().median(-1, keepdim=True).values for part in x.split(self.group, dim=-1)]
        return self.head(torch.cat(groups, -1).mean(1))


class TiedNet(nn.Module):
    """Token logits by the embedding's own rows: b n -> b n v."""

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.hidden = nn.Linear(dim, dim)
        self.gains = nn.Parameter(torch.ones(2, dim))  # all alike at first: the maximum is a tie
        self.norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, vocab_size, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        x = 0.1 * x + 0.9 * x.detach()  # shrinks the embedding's gradient, for stable training
        x = self.hidden(x)
        x = self.norm(torch.tanh(x) * self.gains.max(0).values)
        return self.output(x)


class LossNet(nn.Module):
    """A classifier of positions that computes its own loss: b l f -> b l c, with targets b l -> ([], b l c)."""

    def __init__(self, features: int, hidden: int, num_classes: int, loss: str) -> None:
        super().__init__()
        self.loss, self.num_classes = loss, num_classes
        self.fc = nn.Linear(features, hidden)
        self.act = nn.Tanh()
        self.head = nn.Linear(hidden, num_classes)
        self.register_buffer("class_weights", torch.arange(1, num_classes + 1) / num_classes)

    def forward(self, features: Tensor, targets: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.head(self.act(self.fc(features.to(self.class_weights.dtype))))
        if targets is None:
            return logits
        return self.loss_of(logits, targets), logits

    def loss_of(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.loss == "sequence":
            return F.cross_entropy(logits.transpose(1, 2), targets)  # b c l, b l
        logits, targets = logits.flatten(0, 1), targets.flatten()
        one_hot = F.one_hot(targets, self.num_classes).to(logits.dtype)
        if self.loss == "ignore-index":
            return F.cross_entropy(logits, torch.where(targets == 0, -100, targets))
        if self.loss == "label-smoothing":
            return F.cross_entropy(logits, targets, label_smoothing=0.1)
        if self.loss == "smooth-l1":
            return F.smooth_l1_loss(logits, one_hot, beta=0.5)
        if self.loss == "soft-labels":
            return F.cross_entropy(logits, 0.75 * one_hot + 0.25 / self.num_classes, weight=self.class_weights)
        return F.cross_entropy(logits, targets)


class RecurrentNet(nn.Module):
    """A label for every step of a sequence: b n f -> b n c."""

    def __init__(self, features: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.cell = nn.LSTMCell(features, hidden)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        x = features.to(self.head.weight.dtype)
        h = c = x.new_zeros(len(x), self.hidden)
        steps = []
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c))
            steps.append(h)
        return self.head(torch.stack(steps, 1))


class NormNet(nn.Module):
    """Convolution, instance and group norm, a weight-normed layer: b 3 h w -> b c."""

    def __init__(self, channels: int, groups: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, bias=False)
        nn.init.kaiming_uniform_(self.conv.weight, a=math.sqrt(5))
        self.instance_norm = nn.InstanceNorm2d(channels)
        self.relu = nn.ReLU()
        self.group_norm = nn.GroupNorm(groups, channels)
        fc = nn.Linear(channels, channels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.fc = weight_norm(fc)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.instance_norm(self.conv(images.to(self.head.weight.dtype)))
        x = self.group_norm(self.relu(x)).mean((2, 3))
        return self.head(torch.tanh(self.fc(x)))
