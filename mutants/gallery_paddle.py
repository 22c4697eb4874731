"""The candidate side of the gallery: ports of gallery_torch, right ones, and wrong ones by the name of their fault.

Each wrong line is what a porting engineer would write: Paddle's default, an argument in torch's meaning, a lost step.
"""

import math

import paddle
import paddle.nn.functional as F
from paddle import ParamAttr, Tensor, nn
from paddle.nn.initializer import Constant, KaimingUniform, Normal, Uniform
from paddle.nn.utils import weight_norm

from fastformer_paddle._layers import Embedding, LayerNorm, Linear


class Conv2D(nn.Conv2D):
    """Starts as torch's does: weight and bias uniform in ±1/√fan."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, padding: int = 0) -> None:
        bound = (in_channels * kernel_size**2) ** -0.5
        uniform = ParamAttr(initializer=Uniform(-bound, bound))
        super().__init__(
            in_channels, out_channels, kernel_size, padding=padding, weight_attr=uniform, bias_attr=uniform
        )


class BatchNorm2D(nn.BatchNorm2D):
    """Learns torch's running statistics: the unbiased variance, where Paddle's own is biased."""

    def forward(self, x: Tensor) -> Tensor:
        before, keep = (self._mean.clone(), self._variance.clone()), self._momentum
        y = F.batch_norm(x, self._mean, self._variance, self.weight, self.bias, self.training, epsilon=self._epsilon)
        if self.training:
            with paddle.no_grad():
                mean = x.mean((0, 2, 3), keepdim=True)
                variance = (x - mean).square().sum((0, 2, 3)) / (x.size // x.shape[1] - 1)
                self._mean.set_value(keep * before[0] + (1.0 - keep) * mean.flatten())
                self._variance.set_value(keep * before[1] + (1.0 - keep) * variance)
        return y


class BatchNormOfTorchNames(nn.BatchNorm2D):
    """Keeps torch's names for the statistics, so that its own, which Paddle's checkpoints fill, are not the ones used."""

    def __init__(self, num_features: int, epsilon: float) -> None:
        super().__init__(num_features, epsilon=epsilon)
        self.register_buffer("running_mean", paddle.zeros([num_features]), persistable=False)
        self.register_buffer("running_var", paddle.ones([num_features]), persistable=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, epsilon=self._epsilon)


class ConvNet(nn.Layer):
    """Images, a residual block, a fixed spatial transform, class logits: b 3 h w -> b c."""

    def __init__(self, channels: int, size: int, num_classes: int, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        conv = nn.Conv2D if fault == "conv-init" else Conv2D
        linear = nn.Linear if fault == "linear-init" else Linear
        self.conv1 = conv(3, channels, 3, padding=1)
        if fault == "bn-eps":
            self.bn: nn.BatchNorm2D = BatchNorm2D(channels)
        elif fault == "bn-buffers-lost":
            self.bn = BatchNormOfTorchNames(channels, epsilon=1e-3)
        elif fault == "bn-momentum":
            self.bn = BatchNorm2D(channels, momentum=0.1, epsilon=1e-3)
        elif fault == "bn-biased-variance":
            self.bn = nn.BatchNorm2D(channels, epsilon=1e-3)
        else:
            self.bn = BatchNorm2D(channels, epsilon=1e-3)
        self.relu1 = nn.ReLU()
        if fault == "avgpool-padding":
            self.pool = nn.AvgPool2D(4, stride=2, padding=1)
        else:
            self.pool = nn.AvgPool2D(4, stride=2, padding=1, exclusive=False)
        self.shift = self.create_parameter([channels, 1, 1], default_initializer=Constant(0.0))
        self.conv2 = conv(channels, channels, 3)
        self.relu2 = nn.ReLU()
        self.head = linear(channels * (size // 2) ** 2, num_classes)
        self.register_buffer("theta", paddle.to_tensor([[0.8, 0.25, 0.1], [-0.25, 0.8, -0.1]]))
        self.bn._mean.set_value(paddle.arange(channels, dtype="float32") / channels - 0.5)
        self.bn._variance.set_value(0.25 + paddle.arange(channels, dtype="float32") / channels)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu1(self.bn(self.conv1(images.astype(self.theta.dtype))))
        x = self.pool(x)
        if self.fault == "inplace-alias":
            skip = x
            x += self.shift
        else:
            x = x + self.shift
            skip = x
        # Four numbers begin with the last axis, as torch's do (a number for each side of every axis would not).
        x = self.conv2(F.pad(x, [1, 1, 2, 0] if self.fault == "pad-order" else [2, 0, 1, 1]))
        x = self.relu2(x + skip)
        theta = self.theta.expand([len(x), 2, 3])
        if self.fault == "align-corners":
            x = F.grid_sample(x, F.affine_grid(theta, x.shape))
        else:
            x = F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)
        if self.fault == "flatten-order":
            x = x.transpose((0, 2, 3, 1))
        return self.head(x.flatten(1))


class AttentionNet(nn.Layer):
    """One layer of self-attention and attention pooling: b n, b n -> b c. The mask is True at real tokens."""

    def __init__(
        self, vocab_size: int, max_length: int, dim: int, heads: int, num_classes: int, fault: str = ""
    ) -> None:
        super().__init__()
        self.heads, self.fault = heads, fault
        self.embedding = Embedding(vocab_size, dim)
        self.positions = Embedding(max_length, dim)
        self.in_proj = Linear(dim, 3 * dim)
        self.softmax = nn.Softmax()
        self.out_proj = Linear(dim, dim)
        self.norm = LayerNorm(dim) if fault == "layernorm-eps" else LayerNorm(dim, epsilon=1e-12)
        self.pool_score = Linear(dim, 1, bias_attr=False)
        self.pool_softmax = nn.Softmax() if fault == "softmax-axis" else nn.Softmax(axis=1)
        self.head = Linear(dim, num_classes)

    def split_heads(self, x: Tensor) -> Tensor:  # b n (h d) -> b h n d
        b, n, _ = x.shape
        if self.fault == "sdpa-layout":
            return x.reshape((b, self.heads, n, -1))
        return x.reshape((b, n, self.heads, -1)).transpose((0, 2, 1, 3))

    def mask_scores(self, scores: Tensor, mask: Tensor) -> Tensor:
        mask = mask[:, None, None, :]
        if self.fault == "mask-ignored":
            return scores
        if self.fault == "mask-inverted":
            return scores.masked_fill(mask, -1e9)
        if self.fault == "mask-added-as-0/1":
            return scores + mask.astype(scores.dtype)
        if self.fault == "mask-magnitude":
            return scores + (1.0 - mask.astype(scores.dtype)) * -10000.0
        return scores.masked_fill(~mask, -1e9)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embedding(input_ids) + self.positions(paddle.arange(input_ids.shape[1]))
        q, k, v = (self.split_heads(part) for part in self.in_proj(x).chunk(3, axis=-1))
        if self.fault == "mha-packing":
            q, k = k, q
        scores = q @ k.transpose((0, 1, 3, 2))
        if self.fault != "scale-missing":
            scores = scores / math.sqrt(q.shape[-1])
        context = self.softmax(self.mask_scores(scores, mask)) @ v  # b h n d
        context = self.out_proj(context.transpose((0, 2, 1, 3)).flatten(2))
        x = self.norm(x + context)
        pooling = self.pool_softmax(self.pool_score(x).masked_fill(~mask[:, :, None], -1e9))  # b n 1
        return self.head((pooling * x).sum(1))


class EmbeddingOfPaddlesStart(nn.Embedding):
    """Looks the padding row up like any other, but starts as Paddle's own: Xavier."""

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx)
        self.padding_idx = padding_idx

    forward = Embedding.forward


class FunctionalDropout(nn.Dropout):
    """Dropout by the function, which has to be told that it is not training."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p)


class TokenNet(nn.Layer):
    """A bag of tokens: b n -> b c. Id 0 is padding; its row is looked up like any other."""

    def __init__(
        self, vocab_size: int, dim: int, group: int, num_classes: int, dropout: float, fault: str = ""
    ) -> None:
        super().__init__()
        self.group, self.fault = group, fault
        linear = nn.Linear if fault == "linear-init" else Linear
        if fault == "padding-row":
            start = ParamAttr(initializer=Normal())
            self.embedding: nn.Layer = nn.Embedding(vocab_size, dim, padding_idx=0, weight_attr=start)
        elif fault == "embedding-init":
            self.embedding = EmbeddingOfPaddlesStart(vocab_size, dim, padding_idx=0)
        else:
            self.embedding = Embedding(vocab_size, dim, padding_idx=0)
        self.norm = LayerNorm(dim) if fault == "layernorm-eps" else LayerNorm(dim, epsilon=1e-12)
        self.begin = self.create_parameter([dim], default_initializer=Constant(0.0))
        self.up = linear(dim, 2 * dim)
        self.act = nn.GELU(approximate=True) if fault == "gelu-form" else nn.GELU()
        if fault == "dropout-on":
            self.dropout: nn.Layer = FunctionalDropout(dropout)
        elif fault == "dropout-mode":
            self.dropout = nn.Dropout(dropout, mode="downscale_in_infer")
        else:
            self.dropout = nn.Dropout(dropout)
        self.down = linear(2 * dim, dim)
        self.head = linear(dim, num_classes)

    def median(self, x: Tensor) -> Tensor:
        if self.fault == "median-even":
            return x.median(-1, keepdim=True)
        return x.median(-1, keepdim=True, mode="min")[0]

    def forward(self, input_ids: Tensor) -> Tensor:
        b, n = input_ids.shape
        x = self.norm(self.embedding(input_ids))
        first = paddle.arange(b) * n
        rows, begin = x.flatten(0, 1), self.begin.expand([b, -1])
        if self.fault == "scatter-overwrite":
            rows = paddle.scatter(rows, first, begin, overwrite=False)
        else:
            rows = paddle.index_add(rows, first, 0, begin)
        x = self.down(self.dropout(self.act(self.up(rows.reshape(x.shape)))))
        parts = self.group if self.fault == "split-meaning" else x.shape[-1] // self.group
        groups = [part - self.median(part.detach()) for part in x.split(parts, axis=-1)]
        return self.head(paddle.concat(groups, -1).mean(1))


class DetachedOutput(paddle.compat.nn.Linear):
    """Uses the tied weight without training it."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.detach().T


class TiedNet(nn.Layer):
    """Token logits by the embedding's own rows: b n -> b n v."""

    def __init__(self, vocab_size: int, dim: int, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.embedding = Embedding(vocab_size, dim)
        self.hidden = Linear(dim, dim)
        self.gains = self.create_parameter([2, dim], default_initializer=Constant(1.0))
        self.norm = LayerNorm(dim)
        output = DetachedOutput if fault == "tie-detached" else paddle.compat.nn.Linear
        self.output = output(dim, vocab_size, bias=False)  # [out, in], as the embedding's rows lie
        if fault == "tie-lost":
            self.output.weight.set_value(self.embedding.weight)
        else:
            self.output.weight = self.embedding.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        if self.fault != "grad-scale":
            x = 0.1 * x + 0.9 * x.detach()
        x = self.hidden(x)
        if self.fault == "graph-cut":
            x = paddle.to_tensor(x.numpy())
        gain = self.gains.amax(0) if self.fault == "max-ties" else paddle.compat.max(self.gains, 0).values
        x = self.norm(paddle.tanh(x) * gain)
        return self.output(x)


class LossNet(nn.Layer):
    """A classifier of positions that computes its own loss: b l f -> b l c, with targets b l -> ([], b l c)."""

    def __init__(self, features: int, hidden: int, num_classes: int, loss: str, fault: str = "") -> None:
        super().__init__()
        self.loss, self.num_classes, self.fault = loss, num_classes, fault
        self.fc = Linear(features, hidden)
        self.act = nn.Tanh()
        self.head = Linear(hidden, num_classes)
        self.register_buffer("class_weights", paddle.arange(1, num_classes + 1, dtype="float32") / num_classes)

    def forward(self, features: Tensor, targets: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.head(self.act(self.fc(features.astype(self.class_weights.dtype))))
        if targets is None:
            return logits
        return self.loss_of(logits, targets), logits

    def loss_of(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.loss == "sequence":
            logits = logits.transpose((0, 2, 1))  # b c l
            if self.fault == "ce-axis":
                return F.cross_entropy(logits, targets)
            return F.cross_entropy(logits, targets.unsqueeze(1), axis=1)
        logits, targets = logits.flatten(0, 1), targets.flatten()
        one_hot = F.one_hot(targets, self.num_classes).astype(logits.dtype)
        if self.loss == "ignore-index":
            targets = paddle.where(targets == 0, paddle.full_like(targets, -100), targets)
            if self.fault == "ce-ignore-index":
                return F.cross_entropy(logits, targets)
            total = F.cross_entropy(logits, targets, reduction="sum")
            return total / (targets != -100).sum().astype(total.dtype)  # its mean would count the ignored ones too
        if self.loss == "label-smoothing":
            if self.fault == "label-smoothing":
                return F.cross_entropy(logits, targets)
            soft = 0.9 * one_hot + 0.1 / self.num_classes  # Paddle's own option is a float32
            return -(soft * F.log_softmax(logits)).sum(-1).mean()
        if self.loss == "smooth-l1":
            if self.fault == "smooth-l1":
                return F.smooth_l1_loss(logits, one_hot, delta=0.5)
            return F.smooth_l1_loss(logits, one_hot, delta=0.5, is_huber=False)
        if self.loss == "soft-labels":
            soft = 0.75 * one_hot + 0.25 / self.num_classes
            if self.fault == "soft-label-weight":
                return F.cross_entropy(logits, soft, weight=self.class_weights, soft_label=True)
            # The mean over the samples, where Paddle's own divides by their weights.
            return -(soft * self.class_weights * F.log_softmax(logits)).sum(-1).mean()
        if self.fault == "double-softmax":
            logits = F.softmax(logits)
        return F.cross_entropy(logits, targets, reduction="sum" if self.fault == "loss-reduction" else "mean")


class LSTMCell(nn.LSTMCell):
    """Gives torch's pair (h, c), where Paddle's own gives (h, (h, c))."""

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return super().forward(x, state)[1]


class RecurrentNet(nn.Layer):
    """A label for every step of a sequence: b n f -> b n c."""

    def __init__(self, features: int, hidden: int, num_classes: int, fault: str = "") -> None:
        super().__init__()
        self.hidden, self.time = hidden, 0 if fault == "batch-first" else 1
        self.cell = LSTMCell(features, hidden)
        self.head = Linear(hidden, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        x = features.astype(self.head.weight.dtype)
        h = c = paddle.zeros([x.shape[1 - self.time], self.hidden], dtype=x.dtype)
        steps = []
        for step in x.unbind(self.time):
            h, c = self.cell(step, (h, c))
            steps.append(h)
        return self.head(paddle.stack(steps, self.time))


class NormNet(nn.Layer):
    """Convolution, instance and group norm, a weight-normed layer: b 3 h w -> b c."""

    def __init__(self, channels: int, groups: int, num_classes: int, fault: str = "") -> None:
        super().__init__()
        if fault == "kaiming-slope":
            start = KaimingUniform(negative_slope=math.sqrt(5))  # the slope counts for nothing under "relu"
        else:
            start = KaimingUniform(negative_slope=math.sqrt(5), nonlinearity="leaky_relu")
        self.conv = nn.Conv2D(3, channels, 3, weight_attr=ParamAttr(initializer=start), bias_attr=False)
        if fault == "instance-norm-affine":
            self.instance_norm = nn.InstanceNorm2D(channels)
        else:
            self.instance_norm = nn.InstanceNorm2D(channels, weight_attr=False, bias_attr=False)
        self.relu = nn.ReLU()
        self.group_norm = nn.GroupNorm(groups, channels)
        fc = Linear(channels, channels)
        self.fc = weight_norm(fc) if fault == "weight-norm-axis" else weight_norm(fc, dim=1)
        self.head = Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.instance_norm(self.conv(images.astype(self.head.weight.dtype)))
        x = self.group_norm(self.relu(x)).mean((2, 3))
        return self.head(paddle.tanh(self.fc(x)))
