"""Records the cases beside this file from the naive form of the models (``benchmarks/naive_fastformer.py``).

    python tests/fastformer/cases/generate.py

The twins serve only to list names and shapes; no number comes from them. Every parameter is random and large enough
for the attention to matter, and the recorded results are float32 and float64.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[2] / "benchmarks")]

import naive_fastformer as naive  # noqa: E402

import fastformer_torch  # noqa: E402

torch.set_num_threads(1)
Form = Callable[[dict[str, torch.Tensor], torch.Tensor, torch.Tensor], torch.Tensor]

CASES: dict[str, tuple[str, dict[str, Any], list[int], Form]] = {
    # name: class, settings, real tokens of every row (the longest sets the length), naive form
    "classifier_two_poolers": (
        "FastformerClassifier",
        {"vocab_size": 23, "num_classes": 3, "hidden_size": 12, "num_attention_heads": 6, "num_hidden_layers": 2}
        | {"intermediate_size": 10, "max_position_embeddings": 9, "pooler_count": 2},
        [7, 0, 1, 4],
        lambda w, ids, _: naive.fastformer_classifier(w, ids, heads=6, layers=2),
    ),
    "classifier_one_head": (
        "FastformerClassifier",
        {"vocab_size": 31, "num_classes": 7, "hidden_size": 14, "num_attention_heads": 1, "num_hidden_layers": 1}
        | {"intermediate_size": 40, "max_position_embeddings": 33, "layer_norm_eps": 1e-5},
        [33, 20, 5],
        lambda w, ids, _: naive.fastformer_classifier(w, ids, heads=1, layers=1, eps=1e-5),
    ),
    "transformer_absolute": (
        "FastTransformer",
        {"num_tokens": 19, "dim": 16, "depth": 2, "max_seq_len": 6, "heads": 5, "dim_head": 2, "ff_mult": 1}
        | {"absolute_pos_emb": True},
        [6, 0, 3],
        lambda w, ids, mask: naive.fast_transformer(w, ids, mask, heads=5, layers=2),
    ),
    "transformer_rotary": (
        "FastTransformer",
        {"num_tokens": 17, "dim": 9, "depth": 2, "max_seq_len": 40, "heads": 3, "dim_head": 12, "ff_mult": 2},
        [31, 0, 12],
        lambda w, ids, mask: naive.fast_transformer(w, ids, mask, heads=3, layers=2),
    ),
    "pooled_absolute": (
        "FastTransformerClassifier",
        {"num_classes": 4, "num_tokens": 21, "dim": 12, "depth": 3, "max_seq_len": 8, "heads": 3, "dim_head": 5}
        | {"ff_mult": 2, "absolute_pos_emb": True},
        [8, 0, 2, 5],
        lambda w, ids, _: naive.fast_transformer_classifier(w, ids, heads=3, layers=3),
    ),
    "pooled_rotary": (
        "FastTransformerClassifier",
        {"num_classes": 2, "num_tokens": 15, "dim": 9, "depth": 2, "max_seq_len": 11, "heads": 2, "dim_head": 8},
        [9, 0, 1],
        lambda w, ids, _: naive.fast_transformer_classifier(w, ids, heads=2, layers=2),
    ),
    "text_four_heads": (
        "FastformerTextClassifier",
        {"vocab_size": 27, "num_classes": 6, "embed": 20, "num_attention_heads": 4},
        [13, 0, 1, 6],
        lambda w, ids, mask: naive.fastformer_text_classifier(w, ids, mask, heads=4),
    ),
}


def results(
    form: Form, weights: dict[str, np.ndarray], leaves: list[str], inputs: dict[str, np.ndarray], dtype: torch.dtype
) -> dict[str, np.ndarray]:
    """Logits, loss, and gradients of the named leaves; other names of a shared tensor point at its first one."""
    first = {
        name: next(n for n in leaves if shared(n) == shared(name)) for name in weights if not name.endswith("freqs")
    }
    tensors = {name: torch.tensor(value).to(dtype) for name, value in weights.items()}
    for name in leaves:
        tensors[name].requires_grad_()
    tensors |= {name: tensors[leaf] for name, leaf in first.items()}
    logits = form(tensors, torch.tensor(inputs["in.input_ids"]), torch.tensor(inputs["in.mask"]))
    targets = torch.tensor(inputs["in.target"]).flatten()
    loss = torch.nn.functional.cross_entropy(logits.reshape(len(targets), -1), targets)
    loss.backward()
    grads = {name: tensors[name].grad for name in leaves if tensors[name].grad is not None}  # a spare pooler has none
    out = {"out.logits": logits.detach(), "out.loss": loss.detach()} | {f"grad.{n}": g for n, g in grads.items()}
    return {name: value.numpy() for name, value in out.items()}


def shared(name: str) -> str:
    """One text for all names of the attention vectors that the layers share."""
    return name.split(".")[-2] if "_attn_logits" in name else name


def record(file: str, number: int) -> None:
    name, settings, lengths, form = CASES[file]
    generator = np.random.default_rng(number)
    twin = getattr(fastformer_torch, name)(**settings)
    leaves = [n for n, _ in twin.named_parameters()]
    weights: dict[str, np.ndarray] = {}
    for key, value in twin.state_dict().items():
        scale = 1.0 if "emb" in key else 0.5
        drawn = generator.normal(0, scale, tuple(value.shape)).astype(np.float32)
        original = next((n for n in weights if shared(n) == shared(key)), None)
        weights[key] = value.numpy() if key.endswith("freqs") else weights[original] if original else drawn
        if key.lower().endswith("norm.weight") or key == "to_logits.0.weight":
            weights[key] = weights[key] + np.float32(1)
    padding = {"word_embedding.weight": 0, "embedding.weight": -1}
    for key, row in padding.items():
        if key in weights:  # a stored padding row that is not zero must come out as it is, and have no gradient
            weights[key][row] = generator.normal(0, 1, weights[key].shape[1])

    rows = settings.get("vocab_size", settings.get("num_tokens"))
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    pad = rows - 1 if name == "FastformerTextClassifier" else 0
    ids = np.where(mask, generator.integers(1, rows - 1, mask.shape), pad)
    shape = mask.shape if name == "FastTransformer" else len(lengths)
    inputs = {"in.input_ids": ids, "in.mask": mask}
    inputs["in.target"] = generator.integers(0, settings.get("num_classes", rows), shape)

    tensors = {f"weight.{key}": value for key, value in weights.items()} | inputs
    for prefix, dtype in (("", torch.float32), ("f64.", torch.float64)):
        tensors |= {prefix + key: value for key, value in results(form, weights, leaves, inputs, dtype).items()}
    notes = {key: json.dumps(value) for key, value in ({"class": name} | settings).items()}
    save_file({k: np.array(v, order="C") for k, v in tensors.items()}, HERE / f"{file}.safetensors", metadata=notes)
    print(f"{file}: {(HERE / f'{file}.safetensors').stat().st_size} bytes")


if __name__ == "__main__":
    for index, case in enumerate(CASES):
        record(case, index)
