"""What the model tests share: both sides behind four verbs, recorded cases, and the rule for being right."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import torch
from safetensors import safe_open

import fastformer_paddle
import fastformer_torch

FRAMEWORKS = ("torch", "paddle")
NOTES = {"system", "mask", "loss", "pooler_mask", "padding_idx", "class"}
CLASSES = {
    "official Fastformer classifier": "FastformerClassifier",
    "FastTransformer (token logits)": "FastTransformer",
    "FastTransformer pooled 5-class classifier (Amazon)": "FastTransformerClassifier",
    "single-layer Fastformer text classifier": "FastformerTextClassifier",
}


def build(framework: str, name: str, dtype: str = "float32", **settings: Any) -> Any:
    """A model in evaluation mode."""
    model = getattr({"torch": fastformer_torch, "paddle": fastformer_paddle}[framework], name)(**settings)
    model.eval()
    return cast(framework, model, dtype)


def cast(framework: str, model: Any, dtype: str) -> Any:
    return model.to(getattr(torch, dtype)) if framework == "torch" else model.to(dtype=dtype)


def tensor(framework: str, array: Any) -> Any:
    return torch.tensor(array) if framework == "torch" else paddle.to_tensor(array)


def array(value: Any) -> np.ndarray:
    if str(value.dtype).endswith("bfloat16"):
        value = value.float() if isinstance(value, torch.Tensor) else value.astype("float32")
    return value.detach().numpy()


def is_linear(model: Any, name: str) -> bool:
    """Whether this state entry is a linear weight, which Paddle stores transposed: decided by the layer's class."""
    owner = functools.reduce(
        lambda o, part: o[int(part)] if part.isdigit() else getattr(o, part), name.split(".")[:-1], model
    )
    return isinstance(owner, (torch.nn.Linear, paddle.nn.Linear)) and name.endswith(".weight")


def load(framework: str, model: Any, weights: dict[str, np.ndarray]) -> None:
    """Strictly by name: all names, no others; shapes exact."""
    if framework == "torch":
        model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()}, strict=True)
        return
    stored = {n: np.ascontiguousarray(v.T) if is_linear(model, n) else v for n, v in weights.items()}
    state = model.state_dict()
    assert {n: list(v.shape) for n, v in state.items()} == {n: list(v.shape) for n, v in stored.items()}
    assert model.set_state_dict({n: paddle.to_tensor(v).astype(state[n].dtype) for n, v in stored.items()}) == ([], [])


def state(framework: str, model: Any) -> dict[str, np.ndarray]:
    """The state dict in torch's layout."""
    arrays = {name: array(value) for name, value in model.state_dict().items()}
    return {n: v.T if framework == "paddle" and is_linear(model, n) else v for n, v in arrays.items()}


def gradients(framework: str, model: Any) -> dict[str, np.ndarray]:
    """Gradients in torch's layout; a parameter without one (a pooler that is not used) is not listed."""
    grads = {name: array(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    return {n: g.T if framework == "paddle" and is_linear(model, n) else g for n, g in grads.items()}


def token_loss(framework: str, logits: Any, targets: Any) -> Any:
    """Mean cross entropy over all positions."""
    if framework == "torch":
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return paddle.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def step(framework: str, model: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits, loss and every gradient of one step, by the names that recorded cases use."""
    ids, targets = tensor(framework, inputs["in.input_ids"]), tensor(framework, inputs["in.target"])
    mask = tensor(framework, inputs["in.mask"]) if "in.mask" in inputs else None
    name = type(model).__name__
    if name == "FastTransformer":
        logits = model(ids, mask)
        loss = token_loss(framework, logits, targets)
    elif name == "FastformerTextClassifier":
        loss, logits = model(ids, mask, targets)
    else:
        loss, logits = model(ids, targets)
    loss.backward()
    return {
        "out.logits": array(logits),
        "out.loss": array(loss),
        **{f"grad.{n}": g for n, g in gradients(framework, model).items()},
    }


class Case:
    """A recorded case: settings, weights, inputs, and what the original made of them."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "numpy") as file:
            notes = {key: json.loads(value) for key, value in file.metadata().items()}
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        self.name = notes.get("class") or CLASSES[notes["system"]]
        self.settings = {key: value for key, value in notes.items() if key not in NOTES}
        self.weights = self.part("weight.")
        self.inputs = {key: value for key, value in self.tensors.items() if key.startswith("in.")}

    def part(self, prefix: str) -> dict[str, np.ndarray]:
        return {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}

    def recorded(self, dtype: str) -> dict[str, np.ndarray]:
        prefix = "f64." if dtype == "float64" else ""
        return {
            n: v for kind in ("out.", "grad.") for n, v in ((kind + k, v) for k, v in self.part(prefix + kind).items())
        }


def check(framework: str, case: Case, dtype: str) -> None:
    """Run the case and hold every tensor to the rule: max|a - b| <= r * max|b| + s * G.

    G is the case's largest gradient; r and s are 1e-12 and 1e-14 in float64, 1e-5 and 1e-6 in float32, where twenty
    times the original's own rounding error is allowed if that is more. s is 0 for logits and loss.
    """
    model = cast(framework, build(framework, case.name, **case.settings), "float32")
    load(framework, model, case.weights)
    got, want, truth = (
        step(framework, cast(framework, model, dtype), case.inputs),
        case.recorded(dtype),
        case.recorded("float64"),
    )
    assert set(got) == set(want)
    r, s = (1e-12, 1e-14) if dtype == "float64" else (1e-5, 1e-6)
    largest = max(np.abs(value).max() for name, value in want.items() if name.startswith("grad."))
    wrong = {}
    for name, expected in want.items():
        assert got[name].shape == expected.shape, name
        assert str(got[name].dtype) == dtype, name
        allowed = r * np.abs(expected).max() + (s * largest if name.startswith("grad.") else 0.0)
        if dtype == "float32":
            allowed = max(allowed, 20 * np.abs(expected - truth[name]).max())
        error = np.abs(got[name].astype(np.float64) - expected).max()
        if not error <= allowed:
            wrong[name] = f"{error:.2g} allowed {allowed:.2g}"
    assert not wrong, wrong
