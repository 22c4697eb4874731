"""Faults for the four built-in Fastformer twins, each planted on the Paddle side the way a wrong port would be written.

`FASTFORMER_FAULTS` are the faults, `EXPECTED` says where each one's root divergence belongs, `CAUSES` what a diagnosis
should call it. All of them survive evaluation mode, and gradients go through all of them but those about a cut graph.

Two mistakes are not here, because no input can show them. A padding row that trains: where there is a padding row, its
positions are masked in the attention and in the pooler, so that its gradient is 0 either way. A mask of -10000 for -max
in the community model, and of -max for -10000 in the one without positions: see `_mask_magnitude`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor, nn
from paddle.autograd import PyLayer

from alignment.faults import Fault, Tensors
from alignment.frameworks import Framework
from alignment.twins import Twin
from checkpoints.structure import Slot
from fastformer_paddle import FastformerTextClassifier
from fastformer_paddle._layers import AttentionPooling, Embedding, LayerNorm, pool_heads
from fastformer_paddle.fast_transformer import (
    Block,
    Encoder,
    FastAttention,
    PooledEncoder,
    RotaryEmbedding,
    pairs,
    rotate,
)
from fastformer_paddle.fastformer_classifier import AdditiveSelfAttention, Fastformer

functional = nn.functional

Slots = tuple[Slot, ...]
Plant = Callable[[Framework, Any, Twin], list[str]]
Weights = Callable[[Tensors, Slots], Tensors | None]
Expected = Callable[[str, str, str], bool]
Found = list[tuple[str, Any]]


@dataclass(frozen=True)
class Mutant:
    """A fault, the places where its root may be found, and the cause that explains it ("" where none is known).

    places: patterns of "record path", or of "twin: record path" where twins differ.
    """

    name: str
    summary: str
    stage: int
    places: tuple[str, ...]
    cause: str
    plant: Plant | None = None
    weights: Weights | None = None


def _find(model: Any, *kinds: type) -> Found:
    """(path, layer) of every layer of these classes, in order."""
    return [(path, layer) for path, layer in model.named_sublayers(include_self=True) if isinstance(layer, kinds)]


def _ending(model: Any, *ends: str) -> Found:
    """(path, layer) of every layer whose path is, or ends in, one of these."""
    layers = model.named_sublayers()
    return [(path, layer) for path, layer in layers if any(f".{path}".endswith(f".{end}") for end in ends)]


def _set_forward(found: Found, forward: Callable[..., Any]) -> list[str]:
    """Each layer computes `forward(layer, *inputs)`; returns the paths."""
    for _, layer in found:
        layer.forward = partial(forward, layer)
    return _paths(found)


def _paths(found: Found) -> list[str]:
    return [path or "(root)" for path, _ in found]


# -------------------------------------------------------------------------------------------------------------- weights


def _linear_weights(slots: Slots) -> list[Slot]:
    tied = {slot.tied_to for slot in slots}
    linear = [slot for slot in slots if slot.kind == "Linear" and slot.local == "weight"]
    return [slot for slot in linear if slot.tied_to is None and slot.name not in tied]


def _square(slots: Slots, kind: str) -> list[str]:
    found = [slot for slot in slots if slot.kind == kind and slot.local == "weight" and len(slot.shape) == 2]
    return [slot.name for slot in found if slot.shape[0] == slot.shape[1] > 1]


def _changed(tensors: Tensors, changes: dict[str, NDArray]) -> Tensors | None:
    return {**tensors, **{name: np.ascontiguousarray(value) for name, value in changes.items()}} if changes else None


def _embedding_transposed(tensors: Tensors, slots: Slots) -> Tensors | None:
    return _changed(tensors, {name: tensors[name].T for name in _square(slots, "Embedding")})


def _last_not_transposed(tensors: Tensors, slots: Slots) -> Tensors | None:
    return _changed(tensors, {name: tensors[name].T for name in _square(slots, "Linear")[-1:]})


def _mha_packing(tensors: Tensors, slots: Slots) -> Tensors | None:
    changes = {}
    for slot in slots:
        if slot.name.endswith("to_qkv.weight"):
            q, k, v = np.split(tensors[slot.name], 3, axis=1)
            changes[slot.name] = np.concatenate([k, q, v], axis=1)
    return _changed(tensors, changes)


def _head_order(tensors: Tensors, slots: Slots) -> Tensors | None:
    """The first attention's heads in reverse: the columns of its query, or the rows of to_out."""
    shapes = {slot.name: slot.shape for slot in slots}
    for name in shapes:
        query = re.fullmatch(r"(.*\b)query\.weight", name)
        if query and (heads := shapes[f"{query[1]}query_att.weight"][1]) > 1:
            blocks = np.split(tensors[name], heads, axis=1)
            return _changed(tensors, {name: np.concatenate(blocks[::-1], axis=1)})
        out = re.fullmatch(r"(.*\b)to_out\.weight", name)
        if out and (heads := shapes[name][0] // shapes[f"{out[1]}to_r.weight"][1]) > 1:
            blocks = np.split(tensors[name], heads, axis=0)
            return _changed(tensors, {name: np.concatenate(blocks[::-1], axis=0)})
    return None


def _weight_of_another_model(tensors: Tensors, slots: Slots) -> Tensors | None:
    changes = {}
    for slot in _linear_weights(slots)[:1]:
        value = tensors[slot.name]
        drawn = np.random.default_rng(99).normal(value.mean(), value.std(), value.shape)
        changes[slot.name] = drawn.astype(value.dtype)
    return _changed(tensors, changes)


def _bias_not_loaded(tensors: Tensors, slots: Slots) -> Tensors | None:
    # At a published initialisation the bias is zero already: only other weights show the mistake.
    names = [slot.name for slot in slots if slot.kind == "Linear" and slot.local == "bias"]
    return _changed(tensors, {name: np.zeros_like(tensors[name]) for name in names[-1:]})


def _stale_layer(tensors: Tensors, _slots: Slots) -> Tensors | None:
    earlier = {name: re.sub(r"\b(layers|encoders)\.1\.", r"\1.0.", name) for name in tensors}
    return _changed(tensors, {name: tensors[first] for name, first in earlier.items() if first != name})


def _scaled_weight(tensors: Tensors, slots: Slots) -> Tensors | None:
    changes = {slot.name: tensors[slot.name] * np.float32(1.001) for slot in _linear_weights(slots)[-1:]}
    return _changed(tensors, changes)


# ------------------------------------------------------------------------------------------------------------ attention


def _sum_scores(scores: Tensor, x: Tensor, mask: Tensor | None, epsilon: float = 1e-8) -> Tensor:
    e = scores.exp() if mask is None else scores.exp() * mask[:, :, None]
    weights = e / (e.sum(1, keepdim=True) + epsilon)
    return (weights.transpose((0, 2, 1)) @ x)[:, 0]


@dataclass(frozen=True)
class Attention:
    """One way to write the attention wrongly; the defaults are right.

    pool: heads' weights, features -> pooled. mask: scores b h n, real b 1 n -> logits; None: as the model does.
    summed: the pooler of the model whose pooler is no layer of its own.
    """

    pool: Callable[[Tensor, Tensor], Tensor] = pool_heads
    mask: Callable[[Tensor, Tensor], Tensor] | None = None
    residual: bool = True
    keys_as_values: bool = False
    swapped: bool = False
    several_heads: bool = False
    summed: Callable[..., Tensor] = field(default=_sum_scores)


def _additive_attention(layer: Any, x: Tensor, additive: Tensor, *, way: Attention) -> Tensor:
    real = additive == 0

    def attend(scores: Tensor) -> Tensor:
        scores = scores.transpose((0, 2, 1)) * layer.scale
        return layer.softmax(scores + additive if way.mask is None else way.mask(scores, real))

    q, k = layer.query(x), layer.key(x)
    q, k = (k, q) if way.swapped else (q, k)
    p = k * way.pool(attend(layer.query_att(q)), q)
    values = k if way.keys_as_values else q
    y = layer.transform(values * way.pool(attend(layer.key_att(p)), p))
    return y + q if way.residual else y


def _fast_attention(layer: Any, x: Tensor, mask: Tensor | None = None, *, way: Attention) -> Tensor:
    b, n, h, d = x.shape[0], x.shape[1], layer.heads, layer.dim_head

    def attend(scores: Tensor) -> Tensor:
        if way.mask is None or mask is None:
            return layer.attend(scores, mask)
        return layer.softmax(way.mask(scores[..., 0].transpose((0, 2, 1)) * layer.scale, mask))

    def add_pairs(x: Tensor) -> Tensor:
        return x if layer.pos_emb is None else paddle.add(*pairs(x))

    qkv = layer.to_qkv(x).reshape((b, n, 3 * h, d))
    turned = qkv if layer.pos_emb is None else rotate(qkv, *layer.pos_emb(x))
    q, k, _ = qkv.chunk(3, 2)
    q_, k_, v_ = turned.chunk(3, 2)
    if way.swapped:
        q, k, q_, k_ = k, q, k_, q_
    alpha = attend(layer.to_q_attn_logits(q))
    p = add_pairs(k * way.pool(alpha, q_.flatten(2)).reshape((b, 1, h, d)))
    beta = attend(layer.to_k_attn_logits(p))
    u = add_pairs((k_ if way.keys_as_values else v_) * way.pool(beta, k_.flatten(2)).reshape((b, 1, h, d)))
    y = layer.to_r(u)
    return layer.to_out((y + q if way.residual else y).flatten(2))


def _title_forward(
    model: Any, input_ids: Tensor, mask: Tensor, targets: Tensor | None = None, *, way: Attention
) -> Tensor | tuple[Tensor, Tensor]:
    x = model.embedding(input_ids)
    mask = mask.astype(x.dtype)
    y = model.tanh(_additive_attention(model, x, (1.0 - mask[:, None]) * -10000.0, way=way))
    pooled = way.summed(model.att_fc2(model.tanh(model.att_fc1(y))), y, mask)
    logits = model.fc(model.dropout(pooled))
    return logits if targets is None else (model.criterion(logits, targets), logits)


def _heads(layer: Any) -> int:
    return layer.heads if isinstance(layer, FastAttention) else layer.query_att.weight.shape[1]


def _attention(**wrong: Any) -> Plant:
    """Every attention computes in that way."""
    way = Attention(**wrong)

    def plant(_framework: Framework, model: Any, _twin: Twin) -> list[str]:
        hit = []
        for kind, forward in (
            (AdditiveSelfAttention, _additive_attention),
            (FastAttention, _fast_attention),
            (FastformerTextClassifier, _title_forward),
        ):
            found = [(path, layer) for path, layer in _find(model, kind) if not way.several_heads or _heads(layer) > 1]
            hit += _set_forward(found, partial(forward, way=way))
        return hit

    return plant


def _all_real(scores: Tensor, _real: Tensor) -> Tensor:
    return scores


def _mask_added(scores: Tensor, real: Tensor) -> Tensor:
    return scores + real.astype(scores.dtype)


def _largest_for_10000(scores: Tensor, real: Tensor) -> Tensor:
    return scores.masked_fill(~real, -paddle.finfo(scores.dtype).max)


def _infinity(scores: Tensor, real: Tensor) -> Tensor:
    return scores.masked_fill(~real, -float("inf"))


def _heads_reversed(weights: Tensor, x: Tensor) -> Tensor:
    return pool_heads(weights.flip(1), x)


def _heads_interleaved(weights: Tensor, x: Tensor) -> Tensor:
    """Features read as (d h) where they are (h d)."""
    b, h, n = weights.shape
    split = x.reshape((b, n, x.shape[2] // h, h))
    return (weights.transpose((0, 2, 1)).unsqueeze(2) * split).sum(1).reshape((b, 1, x.shape[2]))


def _mask_magnitude(framework: Framework, model: Any, twin: Twin) -> list[str]:
    # Another result comes only where no token is real, the scores are added to and positions differ. Where the mask
    # replaces the scores, a padded row weighs 1/n either way; so it does where all its positions hold the same vector.
    return _attention(mask=_largest_for_10000)(framework, model, twin) if _find(model, Fastformer) else []


def _set_scale(wrong: Callable[[Any], float]) -> Plant:
    def plant(_framework: Framework, model: Any, _twin: Twin) -> list[str]:
        hit = []
        for path, layer in _find(model, AdditiveSelfAttention, FastAttention, FastformerTextClassifier):
            scale = wrong(layer)
            if scale != layer.scale:
                layer.scale = scale
                hit.append(path or "(root)")
        return hit

    return plant


def _width(layer: Any) -> int:
    return layer.heads * layer.dim_head if isinstance(layer, FastAttention) else layer.query.weight.shape[0]


def _softmax(forward: Callable[[Any, Tensor], Tensor]) -> Plant:
    return lambda _framework, model, _twin: _set_forward(_find(model, nn.Softmax), forward)


# ------------------------------------------------------------------------------------------- residuals, positions, pooler


def _output_without_residual(layer: Any, x: Tensor, _residual: Tensor) -> Tensor:
    return layer.LayerNorm(layer.dropout(layer.dense(x)))


def _block_without_residual(layer: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    x = layer[0](x, mask)
    return layer[1](x) + x


def _block_residual_missing(_framework: Framework, model: Any, _twin: Twin) -> list[str]:
    hit = _set_forward(_ending(model, "attention.output"), _output_without_residual)
    return hit + _set_forward(_find(model, Block), _block_without_residual)


def _position_off_by_one(_framework: Framework, model: Any, _twin: Twin) -> list[str]:
    """The first position is 1; the last wraps around, so that the longest sequence still runs."""
    found = _ending(model, "position_embeddings", "abs_pos_emb")
    for _, layer in found:
        layer.register_forward_pre_hook(lambda layer, inputs: ((inputs[0] + 1) % layer.weight.shape[0],))
    return _paths(found) + _set_forward(_find(model, RotaryEmbedding), partial(_rotary, first=1))


def _rotary(layer: Any, x: Tensor, *, first: int = 0, sign: float = 1.0, power: float = 1.0) -> tuple[Tensor, Tensor]:
    n = paddle.arange(x.shape[1], dtype=x.dtype) + first
    theta = n[:, None, None] * layer.freqs.astype(x.dtype) ** power
    return theta.cos(), sign * theta.sin()


def _rotate(**wrong: Any) -> Plant:
    return lambda _framework, model, _twin: _set_forward(_find(model, RotaryEmbedding), partial(_rotary, **wrong))


def _positions_missing(_framework: Framework, model: Any, _twin: Twin) -> list[str]:
    hit = []
    for path, layer in _find(model, Encoder):
        if layer.abs_pos_emb is not None:
            layer.encode = partial(_encode_without_positions, layer)
            hit.append(path or "(root)")
    return hit + _set_forward(_find(model, Fastformer), _fastformer_without_positions)


def _encode_without_positions(layer: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    x = layer.token_emb(ids)
    for block in layer.layers:
        x = block(x, None if mask is None else mask[:, None])
    return x


def _fastformer_without_positions(layer: Any, embeddings: Tensor, mask: Tensor, pooler_index: int = 0) -> Tensor:
    mask = mask.astype(embeddings.dtype)
    x = layer.dropout(layer.LayerNorm(embeddings))
    for encoder in layer.encoders:
        x = encoder(x, (1.0 - mask[:, None]) * -10000.0)
    return layer.poolers[pooler_index](x, mask)


def _pooled_with_mask(layer: Any, ids: Tensor, mask: Tensor) -> Tensor:
    x = layer.dropout(layer.encode(ids, mask))
    return layer.pooler(x, mask.astype(x.dtype))


def _pooler_forward(layer: Any, x: Tensor, mask: Tensor | None = None, *, summed: Callable[..., Tensor]) -> Tensor:
    return summed(layer.att_fc2(layer.tanh(layer.att_fc1(x))), x, mask)


def _pooling(summed: Callable[..., Tensor], masked_only: bool = False) -> Plant:
    """Every pooler sums in that way; masked_only: where it is given a mask."""

    def plant(framework: Framework, model: Any, twin: Twin) -> list[str]:
        if masked_only and _find(model, PooledEncoder):
            return []
        hit = _set_forward(_find(model, AttentionPooling), partial(_pooler_forward, summed=summed))
        return hit + (
            _attention(summed=summed)(framework, model, twin) if _find(model, FastformerTextClassifier) else []
        )

    return plant


def _sum_unmasked(scores: Tensor, x: Tensor, _mask: Tensor | None) -> Tensor:
    return _sum_scores(scores, x, None)


# ------------------------------------------------------------------------------------------------------- single layers


def _padding_reads_zero(_framework: Framework, model: Any, _twin: Twin) -> list[str]:
    found = [(path, layer) for path, layer in _find(model, Embedding) if layer.padding_idx is not None]
    return _set_forward(found, lambda layer, x: functional.embedding(x, layer.weight, padding_idx=layer.padding_idx))


def _padding_row_invented(_framework: Framework, model: Any, _twin: Twin) -> list[str]:
    found = _ending(model, "token_emb")
    return _set_forward(found, lambda layer, x: functional.embedding(x, layer.weight, padding_idx=0))


def _gelu_form_once(_framework: Framework, model: Any, _twin: Twin) -> list[str]:
    found = _find(model, nn.GELU)[-1:]
    for _, layer in found:
        layer._approximate = True
    return _paths(found)


def _layernorm_eps_once(_framework: Framework, model: Any, _twin: Twin) -> list[str]:
    found = _find(model, LayerNorm)[-1:]
    for _, layer in found:
        layer._epsilon = 1e-12 if layer._epsilon > 1e-6 else 1e-5
    return _paths(found)


def _unbiased_layernorm(layer: Any, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).sum(-1, keepdim=True) / (x.shape[-1] - 1)
    return centred / (variance + layer._epsilon).sqrt() * layer.weight + layer.bias


def _bare_layernorm(layer: Any, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    # The affine part is left out by value, so that its parameters still are parameters.
    return centred / ((centred * centred).mean(-1, keepdim=True) + layer._epsilon).sqrt()


def _layernorms(forward: Callable[[Any, Tensor], Tensor]) -> Plant:
    return lambda _framework, model, _twin: _set_forward(_find(model, LayerNorm), forward)


def _dropout_mode(_framework: Framework, model: Any, _twin: Twin) -> list[str]:
    found = [(path, layer) for path, layer in _find(model, nn.Dropout) if layer.p > 0]
    for _, layer in found:
        layer.mode = "downscale_in_infer"
    return _paths(found)


def _dropout_on_once(_framework: Framework, model: Any, _twin: Twin) -> list[str]:
    found = [(path, layer) for path, layer in _find(model, nn.Dropout) if layer.p > 0][-1:]
    for _, layer in found:
        layer.training = True
    return _paths(found)


def _forward_of(kind: type, forward: Callable[[Any, Tensor], Tensor]) -> Plant:
    return lambda _framework, model, _twin: _set_forward(_find(model, kind), forward)


def _narrow_linear(layer: Any, x: Tensor) -> Tensor:
    weight, bias = layer.weight.astype("float32"), layer.bias.astype("float32")
    return functional.linear(x.astype("float32"), weight, bias).astype(x.dtype)


def _float32_inside(_framework: Framework, model: Any, _twin: Twin) -> list[str]:
    return _set_forward(_ending(model, "transform", "to_r")[:1], _narrow_linear)


def _alternating(y: Tensor) -> Tensor:
    return y * paddle.to_tensor((-1.0) ** np.arange(y.shape[-1])).astype(y.dtype)


def _on_output(change: Callable[[Tensor], Tensor], *ends: str) -> Plant:
    """The output of the first layer of such a path is changed."""

    def plant(_framework: Framework, model: Any, _twin: Twin) -> list[str]:
        found = _ending(model, *ends)[:1]
        for _, layer in found:
            layer.register_forward_post_hook(lambda _layer, _inputs, output: change(output))
        return _paths(found)

    return plant


# ----------------------------------------------------------------------------------------------------------------- loss


def _loss(wrong: Callable[[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor], Tensor]) -> Plant:
    """The criterion computes wrong(right criterion, logits, targets)."""

    def plant(_framework: Framework, model: Any, _twin: Twin) -> list[str]:
        model.criterion.forward = partial(wrong, model.criterion.forward)
        return ["criterion"]

    return plant


Criterion = Callable[[Tensor, Tensor], Tensor]


def _double_softmax(right: Criterion, logits: Tensor, targets: Tensor) -> Tensor:
    return right(functional.softmax(logits, -1), targets)


def _label_smoothing(right: Criterion, logits: Tensor, targets: Tensor) -> Tensor:
    return 0.9 * right(logits, targets) - 0.1 * functional.log_softmax(logits, -1).mean()


def _loss_over_batch_axis(_right: Criterion, logits: Tensor, targets: Tensor) -> Tensor:
    return -functional.log_softmax(logits, 0).take_along_axis(targets[:, None], 1).mean()


def _class_zero_ignored(_right: Criterion, logits: Tensor, targets: Tensor) -> Tensor:
    losses = -functional.log_softmax(logits, -1).take_along_axis(targets[:, None], 1)[:, 0]
    return (losses * (targets != 0).astype(logits.dtype)).mean()


# ------------------------------------------------------------------------------------------------------------- backward


class ScaleGradient(PyLayer):
    """The same values; the gradient is multiplied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.factor


def _scaled_gradient(factor: float) -> Callable[[Tensor], Tensor]:
    # Without gradients there is nothing to scale, and a PyLayer's output would ask for them.
    return lambda output: output if output.stop_gradient else ScaleGradient.apply(output, factor)


def _on_gradient(change: Callable[[NDArray], NDArray], choose: Callable[[Slots], list[str]]) -> Plant:
    """The gradients of the chosen parameters are changed."""

    def plant(framework: Framework, model: Any, _twin: Twin) -> list[str]:
        names = choose(framework.slots(model))
        for name in names:
            framework.replace_gradient(model, name, change)
        return names

    return plant


def _last_bias(slots: Slots) -> list[str]:
    return [slot.name for slot in slots if slot.kind == "Linear" and slot.local == "bias"][-1:]


def _last_weight(slots: Slots) -> list[str]:
    return [slot.name for slot in _linear_weights(slots)][-1:]


def _first_square(slots: Slots) -> list[str]:
    return _square(slots, "Linear")[:1]


def _null_bias(slots: Slots) -> list[str]:
    """A bias that shifts all scores of a softmax, or of a pooler, alike."""
    found = [slot.name for slot in slots if slot.name.endswith(("key_att.bias", "att_fc2.bias"))]
    return sorted(found, key=lambda name: not name.endswith("key_att.bias"))[:1]


def _clipped(gradient: NDArray) -> NDArray:
    norm = float(np.sqrt(np.sum(np.square(gradient, dtype=np.float64))))
    return gradient if norm <= 0.01 else (gradient * (0.01 / norm)).astype(gradient.dtype)


def _padding_frozen(_framework: Framework, model: Any, _twin: Twin) -> list[str]:
    def forward(layer: Any, x: Tensor) -> Tensor:
        rows, keep = functional.embedding(x, layer.weight), (x != 0).astype(layer.weight.dtype).unsqueeze(-1)
        return rows * keep + rows.detach() * (1.0 - keep)

    return _set_forward(_ending(model, "token_emb"), forward)


def _tie_lost(_framework: Framework, model: Any, _twin: Twin) -> list[str]:
    """Every layer after the first uses its own copies of the two attention vectors: equal values, other parameters."""
    attentions = _find(model, FastAttention)
    if len(attentions) < 2:
        return []
    first = attentions[0][1]
    inside = {"later": False}

    def enter(_layer: Any, _inputs: Any) -> None:
        inside["later"] = True

    def leave(_layer: Any, _inputs: Any, _output: Any) -> None:
        inside["later"] = False

    def forward(layer: Any, x: Tensor) -> Tensor:
        weight = layer.weight
        if inside["later"]:
            weight = weight.detach().clone()
            weight.stop_gradient = False
        return functional.linear(x, weight)

    for _, layer in attentions[1:]:
        layer.register_forward_pre_hook(enter)
        layer.register_forward_post_hook(leave)
    for shared in (first.to_q_attn_logits, first.to_k_attn_logits):
        shared.forward = partial(forward, shared)
    return _paths(attentions[1:])


# ------------------------------------------------------------------------------------------------------------ the table

# Where the parts are, in the reference's names: in each attention (the one-layer model is an attention itself), and first.
ATTENTION = r"(fastformer_model\.encoders\.\d+\.attention\.self\.|(fastformer_model\.)?layers\.\d+\.0\.fn\.|)"
FIRST_ATTENTION = ATTENTION.replace(r"\d+", "0")
POOLER = r"fastformer_model\.(poolers\.0|pooler)"
LAYERNORM = r"(.*\.)?(LayerNorm|norm|to_logits\.0)"
GELU = r"(.*\.intermediate\.gelu|.*\.1\.fn\.1)"
EMBEDDING = r"(word_embedding|embedding|(fastformer_model\.)?token_emb)"
POSITIONS = r"(fastformer_model\.)?(position_embeddings|abs_pos_emb)"
ROTARY = r"(fastformer_model\.)?layers\.\d+\.0\.fn\.pos_emb"
LAST = r"[1-9]\d*"  # layer, in twins of more than one
LAST_LINEAR = r"(dense_linear|fc|to_logits\.1)"
# What the softmax is given, and what the layers after its two sums are given.
SCORES = (f"input {ATTENTION}softmax",)
POOLED = (f"input {ATTENTION}(key_att|to_k_attn_logits|transform|to_r)",)
FEED_FORWARD = r"(fastformer_model\.encoders\.0\.intermediate\.dense|(fastformer_model\.)?layers\.0\.1\.fn\.0|att_fc1)"
LOSS = ("loss loss",)

MUTANTS = (
    # Weights.
    Mutant(
        "embedding-transposed",
        "a blanket transpose also turns a square embedding",
        2,
        (rf"parameter ({EMBEDDING}|{POSITIONS})\.weight",),
        "embedding-transposed",
        weights=_embedding_transposed,
    ),
    Mutant(
        "linear-not-transposed-last",
        "the last square Linear weight is loaded untransposed",
        2,
        (
            rf"parameter ({POOLER}\.)?att_fc1\.weight",
            rf"parameter layers\.{LAST}\.(0\.fn\.(to_r|to_out)|1\.fn\.2)\.weight",
        ),
        "linear-not-transposed",
        weights=_last_not_transposed,
    ),
    Mutant(
        "mha-packing",
        "the thirds of the packed projection are taken for k, q, v",
        2,
        (rf"parameter {ATTENTION}to_qkv\.weight",),
        "mha-packing",
        weights=_mha_packing,
    ),
    Mutant(
        "head-order",
        "one weight's heads are stored in reverse order",
        2,
        (rf"parameter {FIRST_ATTENTION}(query|to_out)\.weight",),
        "head-order",
        weights=_head_order,
    ),
    Mutant(
        "weight-of-another-model",
        "one weight is of another training run",
        2,
        (rf"parameter {FIRST_ATTENTION}(query|to_qkv)\.weight",),
        "",
        weights=_weight_of_another_model,
    ),
    Mutant(
        "bias-not-loaded",
        "one bias stays zero",
        2,
        (rf"parameter {LAST_LINEAR}\.bias",),
        "bias-not-loaded",
        weights=_bias_not_loaded,
    ),
    Mutant(
        "stale-layer",
        "layer 1 gets the weights of layer 0",
        2,
        (r"parameter (fastformer_model\.)?(layers|encoders)\.1\..*",),
        "stale-layer",
        weights=_stale_layer,
    ),
    Mutant(
        "scaled-weight",
        "one weight is 1.001 times what it should be",
        2,
        (rf"parameter {LAST_LINEAR}\.weight",),
        "scaled-weight",
        weights=_scaled_weight,
    ),
    # Forward: attention.
    Mutant(
        "mask-ignored",
        "the attention takes padding for real tokens",
        3,
        SCORES,
        "mask-ignored",
        _attention(mask=_all_real),
    ),
    Mutant(
        "mask-added-as-0/1",
        "the mask is added to the scores as 0 and 1",
        3,
        SCORES,
        "mask-added-as-0/1",
        _attention(mask=_mask_added),
    ),
    Mutant(
        "mask-magnitude",
        "scores of padding become -max of the dtype where -10000 should be added: another result in padded rows alone",
        3,
        SCORES,
        "mask-magnitude",
        _mask_magnitude,
    ),
    Mutant(
        "nan-at-padding",
        "scores of padding become -infinity: a wholly padded row has no softmax",
        3,
        SCORES,
        "mask-magnitude",
        _attention(mask=_infinity),
    ),
    Mutant(
        "scale-missing",
        "attention scores are not divided by the root of the head's width",
        3,
        SCORES,
        "scale-missing",
        _set_scale(lambda _layer: 1.0),
    ),
    Mutant(
        "scale-wrong",
        "attention scores are divided by the root of the whole width",
        3,
        SCORES,
        "scale-wrong",
        _set_scale(lambda layer: _width(layer) ** -0.5),
    ),
    Mutant(
        "softmax-axis",
        "the softmax runs over the heads",
        3,
        (f"activation {ATTENTION}softmax",),
        "softmax-axis",
        _softmax(lambda _layer, x: functional.softmax(x, 1)),
    ),
    Mutant(
        "softmax-temperature",
        "the softmax halves its input",
        3,
        (f"activation {ATTENTION}softmax",),
        "softmax-temperature",
        _softmax(lambda _layer, x: functional.softmax(x / 2, -1)),
    ),
    Mutant(
        "heads-swapped",
        "each head's weights sum the features of another head",
        3,
        POOLED,
        "head-order",
        _attention(pool=_heads_reversed, several_heads=True),
    ),
    Mutant(
        "sdpa-layout",
        "features are split as (d h) where they are (h d)",
        3,
        POOLED,
        "sdpa-layout",
        _attention(pool=_heads_interleaved, several_heads=True),
    ),
    Mutant(
        "residual-missing",
        "the queries are not added to the attention's result",
        3,
        (
            r"activation fastformer_model\.encoders\.\d+\.attention\.self",
            r"input (fastformer_model\.)?layers\.\d+\.0\.fn\.to_out",
            r"fastformer-text-classifier: input tanh",
        ),
        "residual-missing",
        _attention(residual=False),
    ),
    Mutant(
        "residual-missing-block",
        "the attention's input is not added to its output",
        3,
        (
            r"input fastformer_model\.encoders\.\d+\.attention\.output\.LayerNorm",
            # The sum is used twice: by the feed-forward part, and as its residual.
            r"input (fastformer_model\.)?layers\.\d+\.1",
            r"activation (fastformer_model\.)?layers\.\d+",
        ),
        "residual-missing",
        _block_residual_missing,
    ),
    Mutant(
        "value-is-key",
        "the keys stand where the values should",
        3,
        (f"input {ATTENTION}(transform|to_r)",),
        "value-is-key",
        _attention(keys_as_values=True),
    ),
    Mutant(
        "query-key-swapped",
        "queries and keys are exchanged",
        3,
        (
            # Each use of q or k is wrong by itself.
            f"input {ATTENTION}(query_att|key_att|transform)",
            f"input {ATTENTION}(to_q_attn_logits|to_k_attn_logits|to_r|to_out)",
            r"activation fastformer_model\.encoders\.\d+\.attention\.self",
            r"fastformer-text-classifier: input tanh",
        ),
        "query-key-swapped",
        _attention(swapped=True),
    ),
    # Forward: embeddings and positions.
    Mutant(
        "padding-row",
        "the embedding gives 0 for the padding id, whatever its row holds",
        3,
        (f"activation {EMBEDDING}",),
        "padding-row",
        _padding_reads_zero,
    ),
    Mutant(
        "padding-row-invented",
        "the embedding has no padding row, but gives 0 for id 0",
        3,
        (f"activation {EMBEDDING}",),
        "padding-row",
        _padding_row_invented,
    ),
    Mutant(
        "position-off-by-one",
        "positions count from 1",
        3,
        (
            # The lookup is given wrong ids; where inputs that are integers are not recorded, its output shows it first.
            f"input {POSITIONS}",
            f"activation {POSITIONS}",
            f"activation {ROTARY}",
        ),
        "position-off-by-one",
        _position_off_by_one,
    ),
    Mutant(
        "positions-missing",
        "learned positions are never looked up nor added",
        3,
        (
            f"activation {POSITIONS}",
            f"input {POSITIONS}",
            # The sum that lacks them; and as nothing looks them up, they get no gradient.
            r"input fastformer_model\.LayerNorm",
            r"input (fastformer_model\.)?layers\.0",
            rf"gradient {POSITIONS}\.weight",
        ),
        "positions-missing",
        _positions_missing,
    ),
    Mutant(
        "rotary-sign",
        "rotary positions turn the other way",
        3,
        (f"activation {ROTARY}",),
        "rotary-sign",
        _rotate(sign=-1.0),
    ),
    Mutant(
        "rotary-frequency-base",
        "rotary frequencies fall off with base 1000 for 10000",
        3,
        (f"activation {ROTARY}",),
        "rotary-frequency-base",
        _rotate(power=0.75),
    ),
    # Forward: single layers.
    Mutant(
        "gelu-form-once",
        "the last GELU alone is the tanh approximation",
        3,
        (
            rf"activation (fastformer_model\.encoders\.{LAST}\.intermediate\.gelu|(fastformer_model\.)?layers\.{LAST}\.1\.fn\.1)",
        ),
        "gelu-form",
        _gelu_form_once,
    ),
    Mutant(
        "activation-relu-for-gelu",
        "ReLU stands where GELU should",
        3,
        (f"activation {GELU}",),
        "activation-relu-for-gelu",
        _forward_of(nn.GELU, lambda _layer, x: functional.relu(x)),
    ),
    Mutant(
        "layernorm-eps-once",
        "the last LayerNorm alone has eps 1e-5 for 1e-12 (or 1e-12 for 1e-5)",
        3,
        (
            rf"activation fastformer_model\.encoders\.{LAST}\.output\.LayerNorm",
            rf"activation fastformer_model\.layers\.{LAST}\.1\.norm",
            r"activation to_logits\.0",
        ),
        "layernorm-eps",
        _layernorm_eps_once,
    ),
    Mutant(
        "layernorm-unbiased-variance",
        "LayerNorm divides the squares by D - 1",
        3,
        (f"activation {LAYERNORM}",),
        "layernorm-unbiased-variance",
        _layernorms(_unbiased_layernorm),
    ),
    Mutant(
        "layernorm-no-affine",
        "LayerNorm leaves out weight and bias",
        3,
        (f"activation {LAYERNORM}",),
        "layernorm-no-affine",
        _layernorms(_bare_layernorm),
    ),
    Mutant(
        "dropout-mode",
        "dropout is of the kind that scales by 1 - p in evaluation mode",
        3,
        (r"activation (.*\.)?dropout",),
        "dropout-mode",
        _dropout_mode,
    ),
    Mutant(
        "dropout-on-once",
        "the last dropout alone stays on in evaluation mode",
        3,
        (
            rf"fastformer-classifier: activation fastformer_model\.encoders\.{LAST}\.output\.dropout",
            r"fast-transformer-classifier: activation fastformer_model\.dropout",
            r"fastformer-text-classifier: activation dropout",
        ),
        "dropout-on",
        _dropout_on_once,
    ),
    Mutant(
        "tanh-missing",
        "the tanh is left out",
        3,
        (rf"activation ({POOLER}\.)?tanh",),
        "tanh-missing",
        _forward_of(nn.Tanh, lambda _layer, x: x.clone()),
    ),
    Mutant(
        "float32-inside-float64",
        "one Linear computes in float32 in a float64 model",
        3,
        (f"activation {FIRST_ATTENTION}(transform|to_r)",),
        "precision-lost",
        _float32_inside,
    ),
    Mutant(
        "square-added",
        "a layer adds a thousandth of its output's square",
        3,
        (rf"activation {FEED_FORWARD}",),
        "",
        _on_output(lambda y: y + 1e-3 * y * y, "intermediate.dense", "1.fn.0", "att_fc1"),
    ),
    Mutant(
        "alternating-sign",
        "every other feature of a layer has the opposite sign",
        3,
        (rf"activation {FEED_FORWARD}",),
        "",
        _on_output(_alternating, "intermediate.dense", "1.fn.0", "att_fc1"),
    ),
    Mutant(
        "gradient-square",
        "one gradient is squared, sign kept",
        5,
        (rf"gradient {LAST_LINEAR}\.weight",),
        "backward-not-derivative",
        _on_gradient(lambda g: g * np.abs(g), _last_weight),
    ),
    Mutant(
        "constant-offset",
        "1e-6 is added to one layer's output",
        3,
        (f"activation {FEED_FORWARD}",),
        "constant-offset",
        _on_output(lambda output: output + 1e-6, "intermediate.dense", "1.fn.0", "att_fc1"),
    ),
    # Forward: the pooler.
    Mutant(
        "pooler-masked",
        "the pooler is given the mask, where padding should take part",
        3,
        # The pooler has one more input, and its output is wrong.
        (f"input {POOLER}", f"activation {POOLER}"),
        "pooler-masked",
        lambda _framework, model, _twin: _set_forward(_find(model, PooledEncoder), _pooled_with_mask),
    ),
    Mutant(
        "pooler-unmasked",
        "padding takes part in the pooler",
        3,
        (f"activation {POOLER}", "input dropout"),
        "mask-ignored",
        _pooling(_sum_unmasked, masked_only=True),
    ),
    Mutant(
        "pooling-epsilon",
        "the pooler's weights are divided by their sum plus 1e-5 for 1e-8",
        3,
        (f"activation {POOLER}", "input dropout"),
        "pooling-epsilon",
        _pooling(partial(_sum_scores, epsilon=1e-5)),
    ),
    Mutant(
        "pooling-epsilon-zero",
        "the pooler's weights are divided by their sum alone: a padded row is 0/0",
        3,
        (f"activation {POOLER}", "input dropout"),
        "pooling-epsilon",
        _pooling(partial(_sum_scores, epsilon=0.0)),
    ),
    # Loss.
    Mutant(
        "double-softmax",
        "the criterion is given probabilities for logits",
        4,
        LOSS,
        "double-softmax",
        _loss(_double_softmax),
    ),
    Mutant(
        "label-smoothing",
        "the criterion smooths the labels by 0.1",
        4,
        LOSS,
        "label-smoothing",
        _loss(_label_smoothing),
    ),
    Mutant(
        "loss-half",
        "the loss is half of what it should be",
        4,
        LOSS,
        "loss-half",
        _loss(lambda right, logits, targets: 0.5 * right(logits, targets)),
    ),
    Mutant(
        "ce-axis",
        "the criterion's softmax runs over the batch",
        4,
        LOSS,
        "ce-axis",
        _loss(_loss_over_batch_axis),
    ),
    Mutant(
        "ce-ignores-class-0",
        "targets of class 0 count as ignored, while the mean still divides by all",
        4,
        LOSS,
        "ce-ignore-index",
        _loss(_class_zero_ignored),
    ),
    # Backward: the forward pass is exact.
    Mutant(
        "graph-cut",
        "one layer's output leaves the graph",
        5,
        (
            rf"gradient {FIRST_ATTENTION}(transform|to_r)\.(weight|bias)",
            f"activation gradient {FIRST_ATTENTION}(transform|to_r)",
            f"input gradient {FIRST_ATTENTION}(transform|to_r)",
        ),
        "graph-cut",
        _on_output(lambda output: output.detach(), "transform", "to_r"),
    ),
    Mutant(
        "graph-cut-embedding",
        "the embedded words leave the graph",
        5,
        (rf"gradient {EMBEDDING}\.weight", f"activation gradient {EMBEDDING}"),
        "graph-cut",
        _on_output(lambda output: output.detach(), "word_embedding", "embedding", "token_emb"),
    ),
    Mutant(
        "gradient-scaled",
        "the gradient is doubled on its way through one layer",
        5,
        (
            rf"gradient {FIRST_ATTENTION}(key|to_qkv)\.(weight|bias)",
            f"input gradient {FIRST_ATTENTION}(key|to_qkv)",
        ),
        "gradient-scaled",
        _on_output(_scaled_gradient(2.0), "key", "to_qkv"),
    ),
    Mutant(
        "gradient-sign",
        "the gradient changes sign on its way through one layer",
        5,
        (rf"gradient {FEED_FORWARD}\.(weight|bias)", f"input gradient {FEED_FORWARD}"),
        "gradient-sign",
        _on_output(_scaled_gradient(-1.0), "intermediate.dense", "1.fn.0", "att_fc1"),
    ),
    Mutant(
        "bias-gradient-zero",
        "the last bias gets no gradient but zeros",
        5,
        (rf"gradient {LAST_LINEAR}\.bias",),
        "gradient-zero",
        _on_gradient(np.zeros_like, _last_bias),
    ),
    Mutant(
        "bias-gradient-constant-1e-9",
        "a bias whose true gradient is zero gets 1e-9",
        5,
        (rf"gradient {FIRST_ATTENTION}key_att\.bias", r"gradient fastformer_model\.pooler\.att_fc2\.bias"),
        "gradient-offset",
        _on_gradient(lambda gradient: gradient + gradient.dtype.type(1e-9), _null_bias),
    ),
    Mutant(
        "weight-gradient-transposed",
        "the gradient of one square weight is transposed",
        5,
        (rf"gradient {FIRST_ATTENTION}(query|to_r|to_out)\.weight",),
        "weight-gradient-transposed",
        _on_gradient(lambda gradient: np.ascontiguousarray(gradient.T), _first_square),
    ),
    Mutant(
        "gradient-clipped",
        "one gradient is clipped to the norm 0.01",
        5,
        (rf"gradient {LAST_LINEAR}\.weight",),
        "gradient-clipped",
        _on_gradient(_clipped, _last_weight),
    ),
    Mutant(
        "embedding-padding-frozen",
        "row 0 of the embedding does not train, although it is an ordinary one",
        5,
        (rf"gradient {EMBEDDING}\.weight",),
        "embedding-padding-frozen",
        _padding_frozen,
    ),
    Mutant(
        "tie-lost",
        "the layers after the first have attention vectors of their own, of equal values",
        5,
        (r"gradient (fastformer_model\.)?layers\.0\.0\.fn\.(to_q_attn_logits|to_k_attn_logits)\.weight",),
        "tie-lost",
        _tie_lost,
    ),
)


def _expected(places: tuple[str, ...]) -> Expected:
    """Whether (twin, record, tensor) is one of these places: which call of a layer, and which of its tensors, is left open."""

    def is_there(twin: str, record: str, name: str) -> bool:
        name = re.sub(r"(#\d+|\[\w+\])+$", "", name)
        where = (f"{record} {name}", f"{twin}: {record} {name}")
        return any(re.fullmatch(place, here) for place in places for here in where)

    return is_there


FASTFORMER_FAULTS = tuple(
    Fault(mutant.name, mutant.summary, mutant.stage, mutant.weights, mutant.plant) for mutant in MUTANTS
)
# The faults that come with the toolkit, each its own cause.
BUILT_IN = {
    "stale-bias-gradient": (rf"gradient {LAST_LINEAR}\.bias",),
    "linear-not-transposed": (rf"parameter {FIRST_ATTENTION}(query|to_r|to_out)\.weight",),
    "layernorm-eps": (rf"activation {LAYERNORM}",),
    "mask-inverted": (r"input fastformer_model", r"input layers\.\d+", rf"input {ATTENTION}softmax", "input dropout"),
    "dropout-on": (r"activation (.*\.)?dropout",),
    "gelu-form": (rf"activation {GELU}",),
    "loss-reduction": LOSS,
}

EXPECTED: dict[str, Expected] = {mutant.name: _expected(mutant.places) for mutant in MUTANTS}
EXPECTED |= {name: _expected(places) for name, places in BUILT_IN.items()}
CAUSES: dict[str, str] = {mutant.name: mutant.cause for mutant in MUTANTS} | {name: name for name in BUILT_IN}
