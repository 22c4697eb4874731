"""torch's side of training: a model with torch's own optimizer and schedule, behind `alignment.training.trainer.Trainer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch.optim import lr_scheduler

from alignment.errors import AlignmentError
from alignment.frameworks import torch as adapter
from alignment.frameworks.masks import Masks
from alignment.frameworks.training import BaseTrainer, no_loss, not_said, same_in_all
from alignment.training.recipe import Optimizer, Recipe, Schedule
from alignment.training.rules import CLIP_EPS
from fake_data import Batch

ROW = 1024


class TorchTrainer(BaseTrainer):
    """See `alignment.frameworks.get_trainer`."""

    slots: ClassVar[dict[str, str]] = {
        "momentum": "momentum_buffer",
        "first moment": "exp_avg",
        "second moment": "exp_avg_sq",
        "largest second moment": "max_exp_avg_sq",
        "mean square": "square_avg",
    }

    def _dtype(self) -> str:
        return adapter.dtype_of(self.model)

    def _trainable(self) -> dict[str, Any]:
        return {full: p for full, p in self.model.named_parameters() if p.requires_grad}

    def _made(self) -> tuple[Any, Any]:
        chosen = self._recipe.optimizer
        groups: list[dict[str, Any]] = []
        for number in range(1 + len(self._recipe.groups)):
            factor, decay = self._recipe.settings_of(number)
            held = [parameter for full, parameter in self._parameters.items() if self._groups[full] == number]
            groups.append({"params": held, "lr": factor * chosen.learning_rate, "weight_decay": decay})
        optimizer: torch.optim.Optimizer
        if chosen.kind == "sgd":
            optimizer = torch.optim.SGD(groups, momentum=chosen.momentum, nesterov=chosen.nesterov)
        else:
            kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[chosen.kind]
            optimizer = kind(groups, betas=chosen.betas, eps=chosen.eps, amsgrad=chosen.amsgrad)
        scheduler = _scheduler(optimizer, self._recipe)
        self._spread(optimizer)
        return optimizer, scheduler

    def _spread(self, optimizer: torch.optim.Optimizer) -> None:
        """A group's rate is a multiple of the first one's; some of torch's schedules (eta_min, min_lr) would not have it so."""
        first, *others = optimizer.param_groups
        for number, group in enumerate(others, 1):
            group["lr"] = self._recipe.settings_of(number)[0] * first["lr"]

    def _set_model(self, mode: str, masks: Masks | None) -> None:
        adapter.set_mode(self.model, mode, masks)

    def _seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def _backward(self, batch: Batch) -> Any:
        self._optimizer.zero_grad(set_to_none=True)
        _, value = adapter.forward(self.model, batch, self._loss)
        if value is None:
            raise no_loss()
        value = value.sum()
        torch.autograd.backward(value)
        return value.detach()

    def _gradients(self) -> dict[str, Any]:
        return {full: p.grad for full, p in self._parameters.items() if p.grad is not None}

    def _is_sparse(self, gradient: Any) -> bool:
        return bool(gradient.is_sparse)

    def _norms(self, gradients: Sequence[Any]) -> Any:
        flat = [gradient.reshape(-1) for gradient in gradients]
        small = [gradient for gradient in flat if gradient.numel() <= ROW]
        norms = iter(torch._foreach_norm(small) if small else ())
        found = [next(norms) if gradient.numel() <= ROW else _norm(gradient) for gradient in flat]
        return torch.stack([norm.to(found[0]) for norm in found]) if found else torch.empty(0)

    def _to_host(self, value: Any, norms: Any) -> list[float]:
        found: list[float] = torch.cat([value.reshape(1), norms.to(value)]).tolist()
        return found

    def _copied(self, tensor: Any) -> Any:
        return None if tensor is None else adapter.to_numpy(tensor)

    def _clips_itself(self) -> bool:
        return False

    @torch.no_grad()
    def _clip(self, gradients: Sequence[Any], norms: Any) -> None:
        """As `torch.nn.utils.clip_grad_value_` and `clip_grad_norm_` do, with norms that are known already."""
        assert self._recipe.clip is not None
        limit, given = self._recipe.clip.limit, list(gradients)
        if self._recipe.clip.kind == "value":
            torch._foreach_clamp_min_(given, -limit)
            torch._foreach_clamp_max_(given, limit)
            return
        if self._recipe.clip.kind == "global norm":
            norms = torch.linalg.vector_norm(norms).expand(len(given))
        torch._foreach_mul_(given, list(torch.clamp(limit / (norms + CLIP_EPS), max=1.0)))

    def _rates(self) -> tuple[float, ...]:
        return tuple(float(group["lr"]) for group in self._optimizer.param_groups)

    def predict(self, batch: Batch) -> NDArray:
        """See `Trainer.predict`."""
        self._set_mode("eval")
        return adapter.without_targets(self.model, batch)

    def weights(self) -> dict[str, NDArray]:
        """See `Trainer.weights`."""
        return adapter.read_state(self.model)

    def load_weights(self, tensors: Mapping[str, NDArray]) -> None:
        """See `Trainer.load_weights`."""
        adapter.load_state(self.model, tensors)

    # ------------------------------------------------------------------------------------------------------ schedule

    def _plateau(self) -> bool:
        return isinstance(self._scheduler, lr_scheduler.ReduceLROnPlateau)

    def _move_on(self, metric: float | None) -> None:
        try:
            self._scheduler.step(*(() if metric is None else (metric,)))
        except ValueError as error:  # a one-cycle schedule that is over
            raise AlignmentError(f"the learning-rate schedule can't go on: {error}") from error
        if not self._own:
            self._spread(self._optimizer)

    def _position(self) -> dict[str, Any]:
        if self._own:
            return {"rates": list(self._rates()), "schedulers": [_plain(s) for s in _all(self._scheduler)]}
        if self._scheduler is None:
            return {}
        found = {"position": self._scheduler.last_epoch, "rate": self._rates()[0]}
        if self._plateau():
            own = self._scheduler
            found |= {"best": None if own.best == own.mode_worse else own.best}
            found |= {"bad": own.num_bad_epochs, "cooldown": own.cooldown_counter}
        return found

    def _place(self, position: Mapping[str, Any]) -> None:
        if self._own:
            for group, rate in zip(self._optimizer.param_groups, position.get("rates", ()), strict=False):
                group["lr"] = rate
            for scheduler, held in zip(_all(self._scheduler), position.get("schedulers", ()), strict=False):
                scheduler.__dict__.update(held)
            return
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.optimizer.learning_rate
            group.pop("initial_lr", None)
        self._scheduler = scheduler = _scheduler(self._optimizer, self._recipe)
        if scheduler is not None and position:
            scheduler.last_epoch, scheduler._step_count = position["position"], position["position"] + 1
            self._optimizer.param_groups[0]["lr"] = position["rate"]
            scheduler._last_lr = [position["rate"]]
            if self._plateau():
                scheduler.best = scheduler.mode_worse if position["best"] is None else position["best"]
                scheduler.num_bad_epochs, scheduler.cooldown_counter = position["bad"], position["cooldown"]
        self._spread(self._optimizer)

    # --------------------------------------------------------------------------------------------------------- state

    def _held(self, full: str) -> Mapping[str, Any]:
        held = self._optimizer.state.get(self._parameters[full], {})
        return {own: value for own, value in held.items() if own != "step" and isinstance(value, torch.Tensor)}

    def _forget(self) -> None:
        self._optimizer.state.clear()

    def _fill(self, full: str, count: int, held: Mapping[str, NDArray]) -> None:
        parameter = self._parameters[full]
        state = self._optimizer.state[parameter]
        if not isinstance(self._optimizer, torch.optim.SGD):
            state["step"] = torch.tensor(float(count))
        for slot, value in held.items():
            state[self.slots.get(slot, slot)] = adapter.to_tensor(value).to(parameter)

    # ------------------------------------------------------------------------------------------------------ reading

    def _read(self) -> Recipe:
        groups = self._optimizer.param_groups
        kind = type(self._optimizer).__name__.lower()
        if kind not in ("sgd", "adam", "adamw"):
            raise not_said(f"the optimizer is torch's {type(self._optimizer).__name__}")
        if kind == "adam" and groups[0].get("decoupled_weight_decay"):
            kind = "adamw"
        same_in_all("torch", groups, ("betas", "eps", "amsgrad", "momentum", "nesterov", "dampening", "maximize"))
        first = groups[0]
        for option in ("dampening", "maximize"):
            if first.get(option):
                raise not_said(f"the optimizer has {option}={first[option]}")
        if kind == "sgd":
            own: dict[str, Any] = {"momentum": float(first["momentum"]), "nesterov": bool(first["nesterov"])}
        else:
            own = {"betas": tuple(first["betas"]), "eps": float(first["eps"]), "amsgrad": bool(first["amsgrad"])}
        rates = [float(group.get("initial_lr", group["lr"])) for group in groups]
        named = {id(parameter): full for full, parameter in self._parameters.items()}
        settings = {
            named[id(parameter)]: (rate / rates[0] if rates[0] else 1.0, float(group["weight_decay"]))
            for group, rate in zip(groups, rates, strict=True)
            for parameter in group["params"]
            if id(parameter) in named
        }
        decay = float(first["weight_decay"])
        schedule, base = _schedule_of(self._scheduler, rates[0])
        return Recipe(
            Optimizer(kind, base, weight_decay=decay, **own),  # type: ignore[arg-type]
            Schedule(*schedule, by=self._recipe.schedule.by),
            self._recipe.clip,
            self._groups_of(settings, (1.0, decay)),
        )


trainer = TorchTrainer


def _norm(flat: torch.Tensor) -> torch.Tensor:
    """Row by row: in one piece, the norm of ten million float32 is off by 4e-4 on a CPU."""
    whole = flat.numel() // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1)
    if whole < flat.numel():
        rows = torch.cat([rows, torch.linalg.vector_norm(flat[whole:]).reshape(1)])
    return torch.linalg.vector_norm(rows)


def _scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe) -> Any:
    told, kind = recipe.schedule.settled(), recipe.schedule.kind
    if kind == "constant":
        return None
    if kind == "onecycle":
        if told["max_lr"] is None:
            told["max_lr"] = recipe.optimizer.learning_rate
        told["cycle_momentum"] = False  # which Paddle's does not have
    made = {
        "step": lr_scheduler.StepLR,
        "multistep": lr_scheduler.MultiStepLR,
        "cosine": lr_scheduler.CosineAnnealingLR,
        "warmup": lr_scheduler.LinearLR,
        "plateau": lr_scheduler.ReduceLROnPlateau,
        "onecycle": lr_scheduler.OneCycleLR,
    }[kind]
    return made(optimizer, **told)


def _schedule_of(scheduler: Any, base: float) -> tuple[tuple[str, dict[str, Any]], float]:
    """Kind and options of one of torch's schedulers, and the rate it starts from."""
    kind = type(scheduler).__name__
    if scheduler is None:
        return ("constant", {}), base
    if kind == "OneCycleLR":
        if scheduler.cycle_momentum:
            raise not_said(
                "torch's OneCycleLR moves the momentum, too (cycle_momentum=True, its default; Paddle's never does)"
            )
        group, first = scheduler.optimizer.param_groups[0], scheduler._schedule_phases[0]["end_step"]
        top = float(group["max_lr"])
        return (
            "onecycle",
            {
                "max_lr": top,
                "total_steps": scheduler.total_steps,
                "pct_start": (first + 1.0) / scheduler.total_steps,
                "anneal_strategy": "linear" if "linear" in str(scheduler._anneal_func_type) else "cos",
                "div_factor": top / group["initial_lr"],
                "final_div_factor": group["initial_lr"] / group["min_lr"],
                "three_phase": len(scheduler._schedule_phases) == 3,
            },
        ), top
    if kind == "MultiStepLR":
        return ("multistep", {"milestones": sorted(scheduler.milestones.elements()), "gamma": scheduler.gamma}), base
    if kind == "ReduceLROnPlateau":
        told = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "eps")
        return ("plateau", {**{n: getattr(scheduler, n) for n in told}, "min_lr": scheduler.min_lrs[0]}), base
    known: dict[str, tuple[str, tuple[str, ...]]] = {
        "StepLR": ("step", ("step_size", "gamma")),
        "CosineAnnealingLR": ("cosine", ("T_max", "eta_min")),
        "LinearLR": ("warmup", ("start_factor", "end_factor", "total_iters")),
    }
    if kind not in known:
        raise not_said(f"the schedule is torch's {kind}")
    word, names = known[kind]
    return (word, {name: getattr(scheduler, name) for name in names}), base


def _all(scheduler: Any) -> list[Any]:
    """A scheduler, and those it is made of."""
    if scheduler is None:
        return []
    return [scheduler, *(one for inner in getattr(scheduler, "_schedulers", ()) for one in _all(inner))]


def _plain(scheduler: Any) -> dict[str, Any]:
    """The part of a scheduler's state that JSON can hold; the rest is options, which the user's own code sets again."""

    def fits(value: Any) -> bool:
        if isinstance(value, list):
            return all(fits(part) for part in value)
        return value is None or isinstance(value, (bool, int, float, str))

    return {name: value for name, value in vars(scheduler).items() if fits(value)}
