"""Paddle's side of training: a model with Paddle's own optimizer and schedule, behind `alignment.training.trainer.Trainer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from alignment.errors import AlignmentError
from alignment.frameworks import PLACED_ON, Dropout, Loss
from alignment.frameworks import paddle as adapter
from alignment.frameworks.masks import Masks
from alignment.training.recipe import Recipe
from alignment.training.trainer import Step, TrainerState
from fake_data import Batch

import paddle  # isort: skip (the adapter imports it first, without its warnings)

# slot -> what Paddle's optimizers call it
SLOTS = {
    "momentum": "velocity",
    "first moment": "moment1",
    "second moment": "moment2",
    "largest second moment": "moment2_max",
}


class PaddleTrainer:
    """See `alignment.frameworks.get_trainer`."""

    def __init__(
        self, model: Any, recipe: Recipe, *, loss: Loss, dropout: Dropout, names: Mapping[str, str] | None
    ) -> None:
        adapter.refuse_what_crashes(model)
        self.model, self._loss = model, loss
        self._dtype = adapter.dtype_of(model)
        self._recipe = recipe.as_held() if self._dtype == "float64" else recipe
        self._own_dropout = dropout == "own"
        self._masks = Masks(dropout) if isinstance(dropout, int) else None
        self._mode = ""
        self._parameters = {full: p for full, p in model.named_parameters() if not p.stop_gradient}
        self._updates = dict.fromkeys(self._parameters, 0)
        self._names = names
        self._steps = 0
        with self._placed():
            self._optimizer = self._make()

    def _placed(self) -> Any:
        return adapter.on(getattr(self.model, PLACED_ON, None))

    def _make(self) -> Any:
        chosen = self._recipe.optimizer
        groups: list[dict[str, Any]] = [
            {"params": [], "learning_rate": 1.0, "weight_decay": chosen.weight_decay},
            *(
                {
                    "params": [],
                    "learning_rate": group.factor,
                    "weight_decay": chosen.weight_decay if group.weight_decay is None else group.weight_decay,
                }
                for group in self._recipe.groups
            ),
        ]
        for full, parameter in self._parameters.items():
            named = full if self._names is None else self._names.get(full, full)
            groups[self._recipe.group_of(named)]["params"].append(parameter)
        given: dict[str, Any] = {
            "learning_rate": chosen.learning_rate,
            "parameters": [group for group in groups if group["params"]],
        }
        if chosen.kind == "sgd" and chosen.momentum:
            return paddle.optimizer.Momentum(momentum=chosen.momentum, use_nesterov=chosen.nesterov, **given)
        if chosen.kind == "sgd":
            return paddle.optimizer.SGD(**given)
        kind = {"adam": paddle.optimizer.Adam, "adamw": paddle.optimizer.AdamW}[chosen.kind]
        beta1, beta2 = chosen.betas
        return kind(beta1=beta1, beta2=beta2, epsilon=chosen.eps, amsgrad=chosen.amsgrad, **given)

    def step(self, batch: Batch, *, gradients: bool = False) -> Step:
        """See `Trainer.step`."""
        with self._placed():
            return self._step(batch, gradients)

    def _step(self, batch: Batch, gradients: bool) -> Step:
        self._set_mode("train")
        if self._masks is not None:
            self._masks.restart(self._steps + 1)
        adapter.clear_gradients(self._parameters)
        with adapter.to_the_last_digit(self._dtype):
            _, value = adapter.forward(self.model, batch, self._loss)
            if value is None:
                raise AlignmentError(
                    "there is no loss to train by: the batch has no targets, or the logits' shape is not theirs"
                )
            value = value.sum()
            value.backward()
        found = {full: p.grad for full, p in self._parameters.items() if p.grad is not None}
        loss, norms = self._measured(value.detach(), found)
        copies = {full: self._copied(full) for full in self._parameters} if gradients else None
        rates = (self._optimizer.get_lr(), *(self._optimizer.get_lr() * group.factor for group in self._recipe.groups))
        self._optimizer.step()
        self._steps += 1
        for full in found:
            self._updates[full] += 1
        return Step(self._steps, loss, rates, {full: norms.get(full) for full in self._parameters}, copies)

    def _measured(self, loss: Any, found: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
        """The loss and the norm of each gradient, in one transfer."""
        norms = [paddle.linalg.norm(gradient) for gradient in found.values()]
        values = paddle.stack([part.astype(loss.dtype) for part in (loss, *norms)]).tolist()
        return values[0], dict(zip(found, values[1:], strict=True))

    def _copied(self, full: str) -> NDArray | None:
        gradient = self._parameters[full].grad
        return None if gradient is None else adapter.to_numpy(gradient)

    def end_epoch(self, metric: float | None = None) -> None:
        """See `Trainer.end_epoch`."""

    def predict(self, batch: Batch) -> NDArray:
        """See `Trainer.predict`."""
        with self._placed():
            self._set_mode("eval")
            return adapter.without_targets(self.model, batch)

    def _set_mode(self, mode: str) -> None:
        if mode == self._mode:
            return
        if mode == "train" and self._own_dropout:
            self.model.train()
        else:
            adapter.set_mode(self.model, mode, self._masks)
        self._mode = mode

    def weights(self) -> dict[str, NDArray]:
        """See `Trainer.weights`."""
        return adapter.read_state(self.model)

    def load_weights(self, tensors: Mapping[str, NDArray]) -> None:
        """See `Trainer.load_weights`."""
        adapter.load_state(self.model, tensors)

    def state(self) -> TrainerState:
        """See `Trainer.state`."""
        slots: dict[str, dict[str, NDArray]] = {}
        for slot, own in SLOTS.items():
            held = self._optimizer._accumulators.get(own, {})
            for full, parameter in self._parameters.items():
                if self._updates[full] and parameter.name in held:
                    slots.setdefault(slot, {})[full] = adapter.to_numpy(held[parameter.name])
        updates = {full: count for full, count in self._updates.items() if count}
        return TrainerState(self._steps, slots, {}, updates)

    def load_state(self, state: TrainerState) -> None:
        """See `Trainer.load_state`."""
        with self._placed():
            self._optimizer = self._make()
            for full, count in state.updates.items():
                self._fill(full, count, {slot: held[full] for slot, held in state.slots.items() if full in held})
        self._updates = {full: state.updates.get(full, 0) for full in self._parameters}
        self._steps = state.steps

    def _fill(self, full: str, count: int, held: Mapping[str, NDArray]) -> None:
        parameter, chosen = self._parameters[full], self._recipe.optimizer
        block = paddle.base.framework.default_main_program().global_block()
        self._optimizer._create_accumulators(block, [parameter])
        accumulators = self._optimizer._accumulators
        for slot, value in held.items():
            accumulators[SLOTS[slot]][parameter.name].set_value(adapter.to_tensor(value).astype(parameter.dtype))
        if chosen.kind != "sgd":
            for number, beta in enumerate(chosen.betas, 1):
                tensor = accumulators[f"beta{number}_pow_acc"][parameter.name]
                tensor.set_value(paddle.to_tensor([beta ** (count + 1)], dtype=tensor.dtype))


def trainer(
    model: Any, recipe: Recipe, *, loss: Loss, dropout: Dropout, names: Mapping[str, str] | None
) -> PaddleTrainer:
    """See `alignment.frameworks.get_trainer`."""
    return PaddleTrainer(model, recipe, loss=loss, dropout=dropout, names=names)
