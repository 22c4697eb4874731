"""One training step, forward and backward: the twins beside each other, and the torch one beside its naive form.

Every round times each form once, in turn, so that whatever else the machine does meets all of them; the fastest round
counts. Both frameworks get the same number of threads.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--width", type=int, default=256, help="a multiple of 64")
    parser.add_argument("--vocabulary", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--only", help="run only the systems whose name contains this")
    parser.add_argument(
        "--as-installed", action="store_true", help="do not ask Paddle's MKL for AVX2 on AMD processors"
    )
    return parser.parse_args()


OPTIONS = options()
os.environ["OMP_NUM_THREADS"] = str(OPTIONS.threads)  # read when the frameworks are imported
if OPTIONS.as_installed:
    os.environ["MKL_DEBUG_CPU_TYPE"] = "0"  # set already, so fastformer_paddle leaves it alone

import naive_fastformer as naive  # noqa: E402
import numpy as np  # noqa: E402
import paddle  # noqa: E402
import torch  # noqa: E402

import fastformer_paddle  # noqa: E402
import fastformer_torch  # noqa: E402

torch.set_num_threads(OPTIONS.threads)
paddle.base.core.set_num_threads(OPTIONS.threads)

Step = Callable[[], float]


def copy_weights(source: torch.nn.Module, target: Any) -> None:
    """Linear weights are stored transposed; a twin's other tensors are alike."""
    layers, state = dict(source.named_modules(remove_duplicate=False)), {}
    for name, value in source.state_dict().items():
        linear = isinstance(layers[name.rpartition(".")[0]], torch.nn.Linear) and name.endswith(".weight")
        state[name] = paddle.to_tensor(np.ascontiguousarray(value.numpy().T if linear else value.numpy()))
    missing, unexpected = target.set_state_dict(state)
    assert not missing
    assert not unexpected


def systems() -> dict[str, tuple[str, dict[str, Any], Callable[..., Any]]]:
    """Class, settings and naive form of each system, by the name printed."""
    o, width = OPTIONS, OPTIONS.width
    fast = {"num_tokens": o.vocabulary, "dim": width, "depth": 2, "max_seq_len": o.length, "heads": width // 64}
    return {
        "FastformerClassifier": (
            "FastformerClassifier",
            {
                "vocab_size": o.vocabulary,
                "num_classes": 5,
                "hidden_size": width,
                "intermediate_size": width,
                "max_position_embeddings": o.length,
                "dropout": o.dropout,
            },
            lambda w, ids, _: naive.fastformer_classifier(w, ids, heads=16, layers=2, dropout=o.dropout),
        ),
        "FastTransformer, absolute": (
            "FastTransformer",
            {**fast, "num_tokens": 1000, "absolute_pos_emb": True},
            lambda w, ids, mask: naive.fast_transformer(w, ids, mask, heads=fast["heads"], layers=2),
        ),
        "FastTransformer, rotary": (
            "FastTransformer",
            {**fast, "num_tokens": 1000},
            lambda w, ids, mask: naive.fast_transformer(w, ids, mask, heads=fast["heads"], layers=2),
        ),
        "FastTransformerClassifier": (
            "FastTransformerClassifier",
            {**fast, "num_classes": 5, "absolute_pos_emb": True},
            lambda w, ids, _: naive.fast_transformer_classifier(w, ids, heads=fast["heads"], layers=2),
        ),
        "FastformerTextClassifier": (
            "FastformerTextClassifier",
            {
                "vocab_size": o.vocabulary,
                "num_classes": 10,
                "embed": width,
                "num_attention_heads": 1,
                "dropout": o.dropout,
            },
            lambda w, ids, mask: naive.fastformer_text_classifier(w, ids, mask, heads=1, dropout=o.dropout),
        ),
    }


def steps(name: str, settings: dict[str, Any], naive_form: Callable[..., Any]) -> dict[str, Step]:
    """One training step of the torch twin, its naive form and the Paddle twin, from the same weights and batch."""
    generator = np.random.default_rng(0)
    rows = settings.get("num_tokens", settings.get("vocab_size"))
    ids = generator.integers(1, rows - 1, (OPTIONS.batch_size, OPTIONS.length))
    lengths = generator.integers(OPTIONS.length // 2, OPTIONS.length + 1, (OPTIONS.batch_size, 1))
    mask = np.arange(OPTIONS.length) < lengths
    ids[~mask] = 0
    classes = settings.get("num_classes", rows)
    targets = generator.integers(0, classes, ids.shape if name == "FastTransformer" else OPTIONS.batch_size)

    twin = getattr(fastformer_torch, name)(**settings).train()
    port = getattr(fastformer_paddle, name)(**settings)
    port.train()
    copy_weights(twin, port)
    leaves = {n: p.detach().clone().requires_grad_() for n, p in twin.named_parameters()}
    every = {n: leaves.get(n, b) for n, b in twin.state_dict().items()}
    for n, p in twin.named_parameters(remove_duplicate=False):  # a shared tensor is one leaf under all its names
        every[n] = next(leaves[m] for m, q in twin.named_parameters() if q is p)

    def arguments(tensor: Callable[..., Any]) -> tuple[Any, ...]:
        given = (
            (tensor(ids), tensor(mask)) if name in ("FastTransformer", "FastformerTextClassifier") else (tensor(ids),)
        )
        return given if name == "FastTransformer" else (*given, tensor(targets))

    t_args, p_args = arguments(torch.tensor), arguments(paddle.to_tensor)
    t_ids, t_mask, t_targets = torch.tensor(ids), torch.tensor(mask), torch.tensor(targets)
    p_targets = paddle.to_tensor(targets)

    def torch_twin() -> float:
        out = twin(*t_args)
        loss = (
            torch.nn.functional.cross_entropy(out.flatten(0, -2), t_targets.flatten())
            if name == "FastTransformer"
            else out[0]
        )
        loss.backward()
        value = loss.item()
        twin.zero_grad()
        return value

    def torch_naive() -> float:
        out = naive_form(every, t_ids, t_mask)
        loss = torch.nn.functional.cross_entropy(out.flatten(0, -2), t_targets.flatten())
        loss.backward()
        value = loss.item()
        for leaf in leaves.values():
            leaf.grad = None
        return value

    def paddle_twin() -> float:
        out = port(*p_args)
        loss = (
            paddle.nn.functional.cross_entropy(out.flatten(0, -2), p_targets.flatten())
            if name == "FastTransformer"
            else out[0]
        )
        loss.backward()
        value = float(loss)
        port.clear_gradients()
        return value

    return {"torch": torch_twin, "naive": torch_naive, "paddle": paddle_twin}


def measure(forms: dict[str, Step]) -> dict[str, float]:
    """The fastest of several rounds, in seconds, after one round that does not count."""
    best = dict.fromkeys(forms, float("inf"))
    for number in range(OPTIONS.repeats + 1):
        for name, step in forms.items():
            start = time.perf_counter()
            step()
            if number:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def main() -> None:
    o = OPTIONS
    print(f"batch {o.batch_size}, length {o.length}, width {o.width}, 2 layers, float32, training, dropout {o.dropout}")
    print(f"{o.threads} threads, best of {o.repeats}; torch {torch.__version__}, paddle {paddle.__version__}")
    print(
        f"{'milliseconds a step':28} {'torch':>8} {'naive':>8} {'paddle':>8}   {'torch/naive':>11} {'paddle/torch':>12}"
    )
    for title, (name, settings, naive_form) in systems().items():
        if o.only and o.only not in title:
            continue
        t = measure(steps(name, settings, naive_form))
        ratios = f"{t['torch'] / t['naive']:11.2f} {t['paddle'] / t['torch']:12.2f}"
        print(
            f"{title:28} {t['torch'] * 1e3:8.1f} {t['naive'] * 1e3:8.1f} {t['paddle'] * 1e3:8.1f}   {ratios}",
            flush=True,
        )


if __name__ == "__main__":
    main()
