"""Training: the loop in lockstep beside the two bare loops, and each twin's tokens a second beside the naive form.

A bare loop is what one writes without this project: batch to tensors, forward, backward, Adam's step, the loss as a number.
In lockstep both trainers make the same steps through `alignment.training.lockstep`, without looking at weights. Every round
makes each step once, in turn, so that whatever else the machine does meets all of them; the fastest round counts. Options
are those of bench_twins.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from bench_twins import (
    OPTIONS,
    Step,
    copy_weights,
    measure,
    systems,
)  # first: it settles threads before frameworks load

# isort: split
import numpy as np
import paddle
import torch

import fastformer_paddle
import fastformer_torch
from alignment.frameworks import get_framework, get_trainer
from alignment.training.lockstep import Follower, lockstep
from alignment.training.recipe import Optimizer, Recipe
from fake_data import Batch

RATE = 1e-3
ENTROPY = {"torch": torch.nn.functional.cross_entropy, "paddle": paddle.nn.functional.cross_entropy}


def batch_of(name: str, settings: dict[str, Any]) -> Batch:
    """Ids, the mask where it is an input, and targets; rows of half to all of the length."""
    generator = np.random.default_rng(0)
    rows = settings.get("num_tokens", settings.get("vocab_size"))
    ids = generator.integers(1, rows - 1, (OPTIONS.batch_size, OPTIONS.length))
    mask = np.arange(OPTIONS.length) < generator.integers(OPTIONS.length // 2, OPTIONS.length + 1, (len(ids), 1))
    ids[~mask] = 0
    targets = generator.integers(0, settings.get("num_classes", rows), ids.shape if language_model(name) else len(ids))
    inputs = {"ids": ids, "mask": mask} if name in ("FastTransformer", "FastformerTextClassifier") else {"ids": ids}
    return Batch("bench", inputs, targets)


def language_model(name: str) -> bool:
    return name == "FastTransformer"


def of_logits(entropy: Callable[..., Any]) -> Callable[..., Any]:
    """A framework's cross entropy, of logits with any axes."""
    return lambda logits, targets: entropy(logits.flatten(0, -2), targets.flatten())


def bare(
    name: str,
    model: Any,
    optimizer: Any,
    batch: Batch,
    tensor: Callable[..., Any],
    entropy: Callable[..., Any],
    clear: str,
) -> Step:
    """One step as a plain training loop makes it."""

    def step() -> float:
        inputs, targets = [tensor(array) for array in batch.inputs.values()], tensor(batch.targets)
        getattr(optimizer, clear)()
        loss = of_logits(entropy)(model(*inputs), targets) if language_model(name) else model(*inputs, targets)[0]
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def naive(name: str, model: torch.nn.Module, form: Callable[..., Any], batch: Batch) -> Step:
    """The same of the naive form, in torch."""
    leaves = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    every = {n: leaves.get(n, b) for n, b in model.state_dict().items()}
    for n, p in model.named_parameters(remove_duplicate=False):  # a shared tensor is one leaf under all its names
        every[n] = next(leaves[m] for m, q in model.named_parameters() if q is p)
    optimizer = torch.optim.Adam(leaves.values(), lr=RATE)

    def step() -> float:
        ids, targets = torch.tensor(batch.inputs["ids"]), torch.tensor(batch.targets)
        mask = torch.tensor(batch.inputs["mask"]) if "mask" in batch.inputs else ids != 0
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(form(every, ids, mask).flatten(0, -2), targets.flatten())
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def steps(name: str, settings: dict[str, Any], form: Callable[..., Any]) -> dict[str, Step]:
    """Both bare loops, the naive one, and the loop in lockstep; every one with models of its own."""
    batch = batch_of(name, settings)
    one = getattr(fastformer_torch, name)(**settings).train()
    two = getattr(fastformer_paddle, name)(**settings)
    two.train()
    copy_weights(one, two)
    recipe = Recipe(Optimizer("adam", RATE))
    trainers = []
    for side, entropy in ENTROPY.items():
        model = get_framework(side).build(f"fastformer_{side}:{name}", settings)
        loss = of_logits(entropy) if language_model(name) else "model"
        trainers.append(get_trainer(side, model, recipe, loss=loss, dropout="own"))
    moments = lockstep(trainers[0], {"candidate": Follower(trainers[1])}, itertools.repeat(batch))
    adam = torch.optim.Adam(one.parameters(), lr=RATE)
    theirs = paddle.optimizer.Adam(RATE, parameters=two.parameters())
    return {
        "torch": bare(name, one, adam, batch, torch.tensor, ENTROPY["torch"], "zero_grad"),
        "paddle": bare(name, two, theirs, batch, paddle.to_tensor, ENTROPY["paddle"], "clear_grad"),
        "naive": naive(name, one, form, batch),
        "lockstep": lambda: next(moments).reference.loss,
    }


def main() -> None:
    o = OPTIONS
    print(f"batch {o.batch_size}, length {o.length}, width {o.width}, 2 layers, float32, Adam, dropout {o.dropout}")
    print(f"{o.threads} threads, best of {o.repeats}; torch {torch.__version__}, paddle {paddle.__version__}")
    print(f"{'':28} {'milliseconds a step':>34}  {'':>9} {'thousand tokens a second':>26}")
    print(
        f"{'':28} {'torch':>8} {'paddle':>8} {'both':>8} {'lockstep':>8} {'overhead':>9} {'torch':>8} {'paddle':>8} {'naive':>8}"
    )
    for title, (name, settings, form) in systems().items():
        if o.only and o.only not in title:
            continue
        t = measure(steps(name, settings, form))
        both = t["torch"] + t["paddle"]
        speeds = [o.batch_size * o.length / t[which] / 1e3 for which in ("torch", "paddle", "naive")]
        print(
            f"{title:28} {t['torch'] * 1e3:8.1f} {t['paddle'] * 1e3:8.1f} {both * 1e3:8.1f} {t['lockstep'] * 1e3:8.1f} "
            f"{t['lockstep'] / both - 1:9.1%} {speeds[0]:8.1f} {speeds[1]:8.1f} {speeds[2]:8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
