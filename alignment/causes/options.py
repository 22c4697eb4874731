"""Options of library layers: the two sides' layers differ in one, and setting it makes the difference vanish."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from alignment.causes.suspect import Cause, Suspect, Trial

# (name, kind begins with, option by torch's name, what is wrong, what to change)
OPTIONS = (
    (
        "layernorm-eps",
        "LayerNorm",
        "eps",
        "a LayerNorm adds another epsilon to the variance",
        "pass epsilon= of the reference",
    ),
    (
        "groupnorm-eps",
        "GroupNorm",
        "eps",
        "a GroupNorm adds another epsilon to the variance",
        "pass epsilon= of the reference",
    ),
    (
        "bn-eps",
        "BatchNorm",
        "eps",
        "a BatchNorm adds another epsilon to the variance",
        "pass epsilon= of the reference",
    ),
    (
        "instancenorm-eps",
        "InstanceNorm",
        "eps",
        "an InstanceNorm adds another epsilon to the variance",
        "pass epsilon= of the reference",
    ),
    (
        "groupnorm-groups",
        "GroupNorm",
        "num_groups",
        "a GroupNorm has another number of groups",
        "pass the reference's num_groups=, which comes first in both frameworks",
    ),
    ("conv-stride", "Conv", "stride", "a convolution takes other strides", "pass the reference's stride="),
    (
        "conv-dilation",
        "Conv",
        "dilation",
        "a convolution spreads its kernel otherwise",
        "pass the reference's dilation=",
    ),
    (
        "conv-output-padding",
        "ConvTranspose",
        "output_padding",
        "a transposed convolution adds rows and columns at the end on one side only",
        "pass the reference's output_padding=",
    ),
    (
        "gelu-form",
        "GELU",
        "approximate",
        "GELU in its other form (erf, or its tanh approximation)",
        "set approximate= as the reference has it",
    ),
    ("leaky-slope", "LeakyReLU", "negative_slope", "another negative slope", "pass the reference's negative_slope="),
    (
        "softmax-axis",
        "Softmax",
        "dim",
        "softmax over another axis",
        "pass axis= (torch's Softmax() of a 3-D input takes axis 0, Paddle's always −1)",
    ),
    (
        "dropout-on",
        "Dropout",
        "training",
        "dropout is active in evaluation mode",
        "call eval() on the model, and pass training=self.training to functional dropout",
    ),
    (
        "dropout-mode",
        "Dropout",
        "mode",
        "dropout scales in inference (downscale_in_infer) where it should in training",
        'use mode="upscale_in_train"',
    ),
    (
        "avgpool-padding",
        "AvgPool",
        "count_include_pad",
        "average pooling leaves padding out of the count, or counts it",
        "set exclusive= to the opposite of torch's count_include_pad",
    ),
    (
        "align-corners",
        "Upsample",
        "align_corners",
        "interpolation aligns corners on one side only",
        "set align_corners= as the reference has it",
    ),
    (
        "loss-reduction",
        "CrossEntropyLoss",
        "reduction",
        "the loss is reduced in another way",
        "set reduction= as the reference has it",
    ),
    (
        "label-smoothing",
        "CrossEntropyLoss",
        "label_smoothing",
        "the loss smooths labels on one side only",
        "set label_smoothing= as the reference has it",
    ),
    (
        "batch-first",
        ("LSTM", "GRU", "RNN"),
        "batch_first",
        "the recurrent layer takes time for batch",
        "set time_major= to the opposite of torch's batch_first",
    ),
)


def _differs(option: str, kind: str | tuple[str, ...], suspect: Suspect) -> Iterator[Trial]:
    if not suspect.kind.startswith(kind):
        return
    ours, theirs = suspect.options("reference"), suspect.options("candidate")
    wanted = ours.get(option, {"mode": "upscale_in_train"}.get(option))
    if option not in theirs or wanted is None or theirs[option] == wanted:
        return
    change = f"setting {option} of {suspect.owner} from {_plain(theirs[option])} to {_plain(wanted)}"
    yield from suspect.trial(change, suspect.again(options={option: wanted}))


def _plain(value: object) -> str:
    """An option in few words: a probe holds eps as float32, which nobody writes down in full."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


CAUSES: Iterable[Cause] = tuple(
    Cause(name, summary, remedy, ("activation", "loss"), partial(_differs, option, kind))
    for name, kind, option, summary, remedy in OPTIONS
)
