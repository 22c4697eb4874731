"""torch's side of training: a model with torch's own optimizer and schedule, behind `alignment.training.trainer.Trainer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from alignment.errors import AlignmentError
from alignment.frameworks import Dropout, Loss
from alignment.frameworks import torch as adapter
from alignment.frameworks.masks import Masks
from alignment.training.recipe import Recipe
from alignment.training.trainer import Step, TrainerState
from fake_data import Batch

# slot -> what torch's optimizers call it
SLOTS = {
    "momentum": "momentum_buffer",
    "first moment": "exp_avg",
    "second moment": "exp_avg_sq",
    "largest second moment": "max_exp_avg_sq",
}


class TorchTrainer:
    """See `alignment.frameworks.get_trainer`."""

    def __init__(
        self, model: nn.Module, recipe: Recipe, *, loss: Loss, dropout: Dropout, names: Mapping[str, str] | None
    ) -> None:
        self.model, self._loss = model, loss
        self._recipe = recipe.as_held() if adapter.dtype_of(model) == "float64" else recipe
        self._own_dropout = dropout == "own"
        self._masks = Masks(dropout) if isinstance(dropout, int) else None
        self._mode = ""
        self._parameters = {full: p for full, p in model.named_parameters() if p.requires_grad}
        self._updates = dict.fromkeys(self._parameters, 0)
        self._names = names
        self._steps = 0
        self._optimizer = self._make()

    def _make(self) -> torch.optim.Optimizer:
        chosen = self._recipe.optimizer
        groups: list[dict[str, Any]] = [{"params": []} for _ in range(1 + len(self._recipe.groups))]
        groups[0]["lr"], groups[0]["weight_decay"] = chosen.learning_rate, chosen.weight_decay
        for made, group in zip(groups[1:], self._recipe.groups, strict=True):
            made["lr"] = group.factor * chosen.learning_rate
            made["weight_decay"] = chosen.weight_decay if group.weight_decay is None else group.weight_decay
        for full, parameter in self._parameters.items():
            named = full if self._names is None else self._names.get(full, full)
            groups[self._recipe.group_of(named)]["params"].append(parameter)
        if chosen.kind == "sgd":
            return torch.optim.SGD(groups, momentum=chosen.momentum, nesterov=chosen.nesterov)
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[chosen.kind]
        return kind(groups, betas=chosen.betas, eps=chosen.eps, amsgrad=chosen.amsgrad)

    def step(self, batch: Batch, *, gradients: bool = False) -> Step:
        """See `Trainer.step`."""
        self._set_mode("train")
        if self._masks is not None:
            self._masks.restart(self._steps + 1)
        self._optimizer.zero_grad(set_to_none=True)
        _, value = adapter.forward(self.model, batch, self._loss)
        if value is None:
            raise AlignmentError(
                "there is no loss to train by: the batch has no targets, or the logits' shape is not theirs"
            )
        value = value.sum()
        torch.autograd.backward(value)
        found = {full: p.grad for full, p in self._parameters.items() if p.grad is not None}
        loss, norms = self._measured(value.detach(), found)
        copies = {full: self._copied(full) for full in self._parameters} if gradients else None
        rates = tuple(float(group["lr"]) for group in self._optimizer.param_groups)
        self._optimizer.step()
        self._steps += 1
        for full in found:
            self._updates[full] += 1
        return Step(self._steps, loss, rates, {full: norms.get(full) for full in self._parameters}, copies)

    def _measured(self, loss: torch.Tensor, found: Mapping[str, torch.Tensor]) -> tuple[float, dict[str, float]]:
        """The loss and the norm of each gradient, in one transfer."""
        norms = torch._foreach_norm(list(found.values())) if found else ()
        values = torch.stack([part.to(loss) for part in (loss, *norms)]).tolist()
        return values[0], dict(zip(found, values[1:], strict=True))

    def _copied(self, full: str) -> NDArray | None:
        gradient = self._parameters[full].grad
        return None if gradient is None else adapter.to_numpy(gradient)

    def end_epoch(self, metric: float | None = None) -> None:
        """See `Trainer.end_epoch`."""

    def predict(self, batch: Batch) -> NDArray:
        """See `Trainer.predict`."""
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
        for full, parameter in self._parameters.items():
            held = self._optimizer.state.get(parameter, {})
            for slot, own in SLOTS.items():
                if held.get(own) is not None:
                    slots.setdefault(slot, {})[full] = adapter.to_numpy(held[own])
        updates = {full: count for full, count in self._updates.items() if count}
        return TrainerState(self._steps, slots, {}, updates)

    def load_state(self, state: TrainerState) -> None:
        """See `Trainer.load_state`."""
        self._optimizer.state.clear()
        for slot, tensors in state.slots.items():
            for full, value in tensors.items():
                parameter = self._parameters[full]
                made = adapter.to_tensor(value).to(parameter)
                self._optimizer.state[parameter][SLOTS[slot]] = made
        if self._recipe.optimizer.kind != "sgd":
            for full, count in state.updates.items():
                self._optimizer.state[self._parameters[full]]["step"] = torch.tensor(float(count))
        self._updates = {full: state.updates.get(full, 0) for full in self._parameters}
        self._steps = state.steps


def trainer(
    model: nn.Module, recipe: Recipe, *, loss: Loss, dropout: Dropout, names: Mapping[str, str] | None
) -> TorchTrainer:
    """See `alignment.frameworks.get_trainer`."""
    return TorchTrainer(model, recipe, loss=loss, dropout=dropout, names=names)
