"""Recording changes nothing: outputs, loss and gradients are bit for bit those of the bare model, on both frameworks.

A detailed run is the exception, in gradients alone: each record's gradient needs a node of its own in the graph, so that where
a tensor is used several times Paddle may add the parts of its gradient in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from alignment.experiment import SIDES, Experiment, prepare
from alignment.trace import Record
from alignment.twins import TWINS
from fake_data import Batch

Bare = tuple[NDArray, NDArray, dict[str, NDArray | None]]


def bare_torch(model: Any, batch: Batch, loss: str) -> Bare:
    import torch

    inputs = [torch.from_numpy(value.copy()) for value in batch.inputs.values()]
    targets = torch.from_numpy(batch.targets.copy())
    model.zero_grad(set_to_none=True)
    if loss == "model":
        value, logits = model(*inputs, targets)
    else:
        logits = model(*inputs)
        value = model.criterion(logits.flatten(0, -2), targets.flatten())
    value.backward()
    gradients = {name: None if p.grad is None else p.grad.numpy().copy() for name, p in model.named_parameters()}
    return logits.detach().numpy(), value.detach().numpy(), gradients


def bare_paddle(model: Any, batch: Batch, loss: str) -> Bare:
    import paddle

    inputs = [paddle.to_tensor(value) for value in batch.inputs.values()]
    targets = paddle.to_tensor(batch.targets)
    for parameter in model.parameters():
        parameter.clear_gradient(set_to_zero=False)
    if loss == "model":
        value, logits = model(*inputs, targets)
    else:
        logits = model(*inputs)
        value = model.criterion(logits.flatten(0, -2), targets.flatten())
    value.backward()
    gradients = {name: None if p.grad is None else p.grad.numpy() for name, p in model.named_parameters()}
    return logits.numpy(), value.numpy(), gradients


BARE: dict[str, Callable[[Any, Batch, str], Bare]] = {"torch": bare_torch, "paddle": bare_paddle}


def bits(value: NDArray | None) -> Any:
    return None if value is None else (value.shape, str(value.dtype), np.ascontiguousarray(value).tobytes())


def recorded(experiment: Experiment, side: str, model: Any, batch: Batch, **how: Any) -> list[Record]:
    """What a run records, its values copied where they share the framework's memory."""
    kept: list[Record] = []

    def sink(record: Record) -> None:
        kept.append(Record(record.kind, record.name, None if record.value is None else record.value.copy()))

    trace = experiment.run(side, model, batch, True, sink=sink if how.pop("shared") else None, **how)
    return kept or list(trace.records)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", TWINS)
def test_with_and_without_recording(small, name, side) -> None:
    experiment = prepare(TWINS[name], small(name))
    framework, _ = experiment.side(side)
    for dtype in ("float32", "float64"):
        model = experiment.model(side, dtype).module
        state = experiment.weights["random"]
        given = state if side == "reference" else experiment.candidate_state(state)
        framework.load_state(model, given)
        for batch in experiment.batches[:2]:
            logits, loss, gradients = BARE[framework.name](model, batch, experiment.twin.loss)
            assert np.abs(logits).max() > 0
            largest = max(float(np.abs(gradient).max()) for gradient in gradients.values() if gradient is not None)
            for how in (
                {"step": True, "shared": False},
                {"detail": True, "shared": False},
                {"brief": True, "shared": True},
            ):
                records = {(r.kind, r.name): r.value for r in recorded(experiment, side, model, batch, **how)}
                assert bits(records["logits", "logits"]) == bits(logits), how
                assert bits(records["loss", "loss"]) == bits(loss), how
                for parameter, gradient in gradients.items():
                    found = records["gradient", parameter]
                    if "detail" in how and gradient is not None:
                        eps = np.finfo(dtype).eps
                        np.testing.assert_allclose(found, gradient, rtol=0, atol=16 * eps * largest, err_msg=parameter)
                    else:
                        assert bits(found) == bits(gradient), (parameter, how)
            # And nothing of it stays behind.
            again = BARE[framework.name](model, batch, experiment.twin.loss)
            assert bits(again[0]) == bits(logits)
            assert {n: bits(g) for n, g in again[2].items()} == {n: bits(g) for n, g in gradients.items()}
        after = framework.read_state(model)
        assert all(bits(after[full]) == bits(value.astype(after[full].dtype)) for full, value in given.items())


@pytest.mark.parametrize("side", SIDES)
def test_training_with_and_without_recording(small, side) -> None:
    name = "fastformer-text-classifier"
    experiment = prepare(TWINS[name], small(name))
    framework, model = experiment.side(side)[0], experiment.model(side, "float32").module
    batches = [*experiment.batches[:2]] * 2
    kept: list[tuple[int, Record]] = []
    options = {"loss": experiment.loss(side), "learning_rate": 1e-3}
    before = framework.read_state(model)
    bare = framework.train(model, batches, **options)
    assert framework.train(model, batches, **options, sink=lambda step, record: kept.append((step, record))) == bare
    assert [step for step, record in kept if record.name == "fc.weight"] == [1, 2, 3, 4]
    sums = sum(record.value for _, record in kept if record.name == "fc.weight")
    assert np.abs(sums).max() > 1e-3
    assert all(bits(value) == bits(before[full]) for full, value in framework.read_state(model).items())
