"""Paddle's side of training: a model with Paddle's own optimizer and schedule, behind `alignment.training.trainer.Trainer`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from numpy.typing import NDArray

from alignment.errors import AlignmentError
from alignment.frameworks import PLACED_ON, Target
from alignment.frameworks import paddle as adapter
from alignment.frameworks.masks import Masks
from alignment.frameworks.training import BaseTrainer, no_loss, not_said, same_in_all
from alignment.training.recipe import Clip, Optimizer, Recipe, Schedule
from alignment.training.rules import CLIP_EPS
from alignment.training.trainer import Step, TrainerState
from checkpoints.optimizer import POWERS, power_of
from fake_data import Batch

import paddle  # isort: skip (the adapter imports it first, without its warnings)

lr = paddle.optimizer.lr


class PaddleTrainer(BaseTrainer):
    """See `alignment.frameworks.get_trainer`."""

    slots: ClassVar[dict[str, str]] = {
        "momentum": "velocity",
        "first moment": "moment1",
        "second moment": "moment2",
        "largest second moment": "moment2_max",
        "mean square": "mean_square",
    }

    def __init__(self, model: Any, *arguments: Any, **options: Any) -> None:
        adapter.refuse_what_crashes(model)
        self._device = getattr(model, PLACED_ON, None)
        with adapter.on(self._device):
            super().__init__(model, *arguments, **options)

    def _dtype(self) -> str:
        return adapter.dtype_of(self.model)

    def _trainable(self) -> dict[str, Any]:
        return {full: p for full, p in self.model.named_parameters() if not p.stop_gradient}

    def _made(self) -> tuple[Any, Any]:
        chosen = self._recipe.optimizer
        scheduler = _scheduler(self._recipe)
        given: dict[str, Any] = {"learning_rate": scheduler or float(chosen.learning_rate)}
        if self._recipe.groups:
            given["parameters"] = []
            for number in range(1 + len(self._recipe.groups)):
                factor, decay = self._recipe.settings_of(number)
                held = [parameter for full, parameter in self._parameters.items() if self._groups[full] == number]
                group = {"params": held, "learning_rate": factor, "weight_decay": self._decay(decay)}
                given["parameters"] += [group] if held else []
        else:
            given |= {"parameters": list(self._parameters.values()), "weight_decay": self._decay(chosen.weight_decay)}
            for parameter in self._parameters.values():  # what ParamAttr or another optimizer's groups say of it
                parameter.optimize_attr["learning_rate"], parameter.regularizer = 1.0, None
        if chosen.kind == "sgd" and chosen.momentum:
            momentum = {"momentum": chosen.momentum, "use_nesterov": chosen.nesterov}
            return paddle.optimizer.Momentum(**momentum, **given), scheduler
        if chosen.kind == "sgd":
            return paddle.optimizer.SGD(**given), scheduler
        kind = {"adam": paddle.optimizer.Adam, "adamw": paddle.optimizer.AdamW}[chosen.kind]
        beta1, beta2 = chosen.betas
        return kind(beta1=beta1, beta2=beta2, epsilon=chosen.eps, amsgrad=chosen.amsgrad, **given), scheduler

    def _decay(self, coefficient: float) -> float | None:
        """None spares L2 decay by nothing its two operations a parameter."""
        return coefficient if coefficient or self._recipe.optimizer.kind == "adamw" else None

    def step(self, batch: Batch, *, gradients: bool = False) -> Step:
        """See `Trainer.step`."""
        with adapter.on(self._device):
            return super().step(batch, gradients=gradients)

    def _set_model(self, mode: str, masks: Masks | None) -> None:
        adapter.set_mode(self.model, mode, masks)

    def _seed(self, seed: int) -> None:
        paddle.seed(seed)

    def _backward(self, batch: Batch) -> Any:
        # Gone, not zero, as torch does it: by zeros Adam would move a parameter that the batch does not use.
        adapter.clear_gradients(self._parameters)
        with adapter.to_the_last_digit(self._dtype()):
            _, value = adapter.forward(self.model, batch, self._loss)
            if value is None:
                raise no_loss()
            value = value.sum()
            value.backward()
        return value.detach()

    def _gradients(self) -> dict[str, Any]:
        found = ((full, p.grad) for full, p in self._parameters.items())
        return {full: gradient for full, gradient in found if gradient is not None}

    def _is_sparse(self, gradient: Any) -> bool:
        return bool(gradient.is_selected_rows())

    def _norms(self, gradients: Sequence[Any]) -> Any:
        # What its optimizers clip by; paddle.linalg.norm takes twenty times as long, and of ten million float32 is off by 8e-3.
        squares = [paddle.nn.clip._squared_l2_norm(gradient) for gradient in gradients]
        same = [square.astype(squares[0].dtype).reshape([1]) for square in squares]
        return paddle.concat(same).sqrt() if same else paddle.empty([0])

    def _to_host(self, value: Any, norms: Any) -> list[float]:
        found: list[float] = paddle.concat([value.reshape([1]), norms.astype(value.dtype)]).tolist()
        return found

    def _copied(self, tensor: Any) -> Any:
        return None if tensor is None else adapter.to_numpy(tensor)

    def _clips_itself(self) -> bool:
        return self._optimizer._grad_clip is not None

    @paddle.no_grad()  # type: ignore[untyped-decorator]
    def _clip(self, gradients: Sequence[Any], norms: Any) -> None:
        """As `paddle.nn.utils.clip_grad_value_` and `clip_grad_norm_` do, with norms that are known already.

        Given to the optimizer, a clipping would be done for each of its groups by itself.
        """
        assert self._recipe.clip is not None
        limit = self._recipe.clip.limit
        if self._recipe.clip.kind == "value":
            for gradient in gradients:
                gradient.clip_(min=-limit, max=limit)
            return
        if self._recipe.clip.kind == "global norm":
            norms = norms.square().sum().sqrt().expand([len(gradients)])
        factors = (limit / (norms + CLIP_EPS)).clip(max=1.0)
        for gradient, factor in zip(gradients, factors.unbind(), strict=True):
            gradient.multiply_(factor)

    def _rates(self) -> tuple[float, ...]:
        now = float(self._optimizer.get_lr())
        if not self._own:
            return tuple(now * self._recipe.settings_of(number)[0] for number in range(1 + len(self._recipe.groups)))
        return tuple(now * group.get("learning_rate", 1.0) for group in self._own_groups())

    def _own_groups(self) -> list[dict[str, Any]]:
        groups = self._optimizer._param_groups
        return groups if groups and isinstance(groups[0], dict) else [{"params": groups}]

    def predict(self, batch: Batch) -> NDArray:
        """See `Trainer.predict`."""
        with adapter.on(self._device):
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
        return isinstance(self._scheduler, lr.ReduceOnPlateau)

    def _move_on(self, metric: float | None) -> None:
        scheduler = self._scheduler
        if metric is not None and not self._own and scheduler.cooldown_counter > 0 and scheduler.best is not None:
            # While a plateau cools down Paddle does not look for a better metric; torch does.
            scheduler.best = metric if scheduler._is_better(metric, scheduler.best) else scheduler.best
        try:
            scheduler.step(*(() if metric is None else (metric,)))
        except ValueError as error:  # a one-cycle schedule that is over
            raise AlignmentError(f"the learning-rate schedule can't go on: {error}") from error

    def _position(self) -> dict[str, Any]:
        scheduler = self._scheduler
        if self._own:
            own = self._optimizer._learning_rate
            return {"rate": float(own)} if isinstance(own, float) else {"scheduler": own.state_dict()}
        if scheduler is None:
            return {}
        found = {"position": scheduler.last_epoch, "rate": float(scheduler.last_lr)}
        if self._plateau():
            found |= {"best": scheduler.best, "bad": scheduler.num_bad_epochs, "cooldown": scheduler.cooldown_counter}
        return found

    def _place(self, position: Mapping[str, Any]) -> None:
        if self._own:
            own = self._optimizer._learning_rate
            if isinstance(own, float) and "rate" in position:
                self._optimizer.set_lr(position["rate"])
            elif "scheduler" in position:
                with warnings.catch_warnings():  # a warm-up's state is more than its own part knows
                    warnings.simplefilter("ignore")
                    own.set_state_dict(position["scheduler"])
            return
        self._scheduler = scheduler = _scheduler(self._recipe)
        if scheduler is None:
            return
        self._optimizer.set_lr_scheduler(scheduler)
        if position:
            scheduler.last_epoch, scheduler.last_lr = position["position"], position["rate"]
            if self._plateau():
                scheduler.best, scheduler.num_bad_epochs = position["best"], position["bad"]
                scheduler.cooldown_counter = position["cooldown"]

    # --------------------------------------------------------------------------------------------------------- state

    def load_state(self, state: TrainerState) -> None:
        """See `Trainer.load_state`."""
        with adapter.on(self._device):
            super().load_state(state)

    def _held(self, full: str) -> Mapping[str, Any]:
        key = self._parameters[full].name
        kept = self._optimizer._accumulators
        return {own: tensors[key] for own, tensors in kept.items() if own not in POWERS and key in tensors}

    def _forget(self) -> None:
        self._optimizer._accumulators.clear()
        self._optimizer._already_create_accumulator.clear()

    def _fill(self, full: str, count: int, held: Mapping[str, NDArray]) -> None:
        parameter, optimizer = self._parameters[full], self._optimizer
        optimizer._create_accumulators(paddle.base.framework.default_main_program().global_block(), [parameter])
        kept = optimizer._accumulators
        for slot, value in held.items():
            tensor = kept[slot if slot in kept else self.slots.get(slot, slot)].get(parameter.name)
            if tensor is None:
                raise AlignmentError(
                    f"Paddle's {type(optimizer).__name__} keeps no {slot}: the state is of another optimizer"
                )
            tensor.set_value(adapter.to_tensor(value).astype(tensor.dtype))
        for power, beta in zip(
            POWERS, (getattr(optimizer, "_beta1", 0.0), getattr(optimizer, "_beta2", 0.0)), strict=True
        ):
            if power in kept:
                tensor = kept[power][parameter.name]
                tensor.set_value(paddle.to_tensor(power_of(beta, count, tensor.numpy().dtype)))

    # ------------------------------------------------------------------------------------------------------ reading

    def _read(self) -> Recipe:
        optimizer, word = self._optimizer, type(self._optimizer).__name__
        kind = {"SGD": "sgd", "Momentum": "sgd", "Adam": "adam", "AdamW": "adamw"}.get(word)
        if kind is None:
            raise not_said(f"the optimizer is Paddle's {word}")
        groups = self._own_groups()
        same_in_all("Paddle", groups, ("beta1", "beta2", "epsilon", "momentum", "use_nesterov"))
        own: dict[str, Any] = {}
        if word == "Momentum":
            own = {"momentum": float(optimizer._momentum), "nesterov": bool(optimizer._use_nesterov)}
        elif kind != "sgd":
            own = {"betas": (float(optimizer._beta1), float(optimizer._beta2)), "eps": float(optimizer._epsilon)}
            own["amsgrad"] = bool(optimizer._amsgrad)
        usual = self._usual_decay()
        settings = {}
        named = {id(parameter): full for full, parameter in self._parameters.items()}
        for group in groups:
            for parameter in group["params"]:
                if id(parameter) in named:
                    factor = float(parameter.optimize_attr.get("learning_rate", 1.0))
                    settings[named[id(parameter)]] = (factor, self._decay_of(parameter, group, usual))
        source = optimizer._learning_rate
        schedule, base = (("constant", {}), float(source)) if isinstance(source, float) else _schedule_of(source)
        if not isinstance(source, float) and self._scheduler is None:
            schedule = ("constant", {})  # nothing moves it on
            base = float(source())
        clip = self._recipe.clip if optimizer._grad_clip is None else _clip_of(optimizer._grad_clip)
        return Recipe(
            Optimizer(kind, base, weight_decay=usual, **own),  # type: ignore[arg-type]
            Schedule(*schedule, by=self._recipe.schedule.by),
            clip,
            self._groups_of(settings, (1.0, usual)),
        )

    def _usual_decay(self) -> float:
        optimizer = self._optimizer
        if isinstance(optimizer, paddle.optimizer.AdamW):
            return float(optimizer._default_dict["weight_decay"])
        if getattr(optimizer, "_regularization_method", "") == "l2_decay":  # Momentum's
            return float(optimizer._regularization_coeff)
        return _coefficient(optimizer.regularization)

    def _decay_of(self, parameter: Any, group: Mapping[str, Any], usual: float) -> float:
        optimizer = self._optimizer
        if isinstance(optimizer, paddle.optimizer.AdamW):
            decays = optimizer._apply_decay_param_fun
            return float(group.get("weight_decay", usual)) if decays is None or decays(parameter.name) else 0.0
        return usual if parameter.regularizer is None else _coefficient(parameter.regularizer)


trainer = PaddleTrainer


def names_of_its_own(target: Target, settings: Mapping[str, Any]) -> dict[str, str]:
    """See `alignment.frameworks.paddle_names`."""
    with paddle.utils.unique_name.guard():
        model = adapter.build(target, settings)
    return {full: parameter.name for full, parameter in model.named_parameters()}


def _coefficient(regularizer: Any) -> float:
    if regularizer is None:
        return 0.0
    if not isinstance(regularizer, paddle.regularizer.L2Decay):
        raise not_said(f"weights decay by Paddle's {type(regularizer).__name__}")
    return float(regularizer._coeff)


def _clip_of(clip: Any) -> Clip:
    if isinstance(clip, paddle.nn.ClipGradByValue) and clip.min == -clip.max:
        return Clip("value", float(clip.max))
    if isinstance(clip, paddle.nn.ClipGradByNorm):
        return Clip("norm", float(clip.clip_norm))
    if isinstance(clip, paddle.nn.ClipGradByGlobalNorm):
        return Clip("global norm", float(clip.clip_norm))
    raise not_said(f"gradients are clipped by Paddle's {type(clip).__name__}")


def _scheduler(recipe: Recipe) -> Any:
    told, base = recipe.schedule.settled(), float(recipe.optimizer.learning_rate)
    top = base if told.get("max_lr") is None else float(told["max_lr"])
    made: dict[str, Callable[[], Any]] = {
        "constant": lambda: None,
        "step": lambda: lr.StepDecay(base, told["step_size"], told["gamma"]),
        "multistep": lambda: lr.MultiStepDecay(base, list(told["milestones"]), told["gamma"]),
        "cosine": lambda: lr.CosineAnnealingDecay(base, told["T_max"], told["eta_min"]),
        "warmup": lambda: lr.LinearLR(base, told["total_iters"], told["start_factor"], told["end_factor"]),
        "plateau": lambda: lr.ReduceOnPlateau(
            base, epsilon=told["eps"], **{name: value for name, value in told.items() if name != "eps"}
        ),
        # Paddle's end is a rate of its own, 1e-4 unless told otherwise, and torch's a share of the first.
        "onecycle": lambda: lr.OneCycleLR(
            top,
            told["total_steps"],
            divide_factor=told["div_factor"],
            end_learning_rate=top / told["div_factor"] / told["final_div_factor"],
            phase_pct=told["pct_start"],
            anneal_strategy=told["anneal_strategy"],
            three_phase=told["three_phase"],
        ),
    }
    return made[recipe.schedule.kind]()


def _schedule_of(scheduler: Any) -> tuple[tuple[str, dict[str, Any]], float]:
    """Kind and options of one of Paddle's schedulers by torch's names, and the rate it starts from."""
    kind = type(scheduler).__name__
    if kind == "OneCycleLR":
        first, top, *_, last = scheduler._lr_config
        return (
            "onecycle",
            {
                "max_lr": top,
                "total_steps": scheduler.total_steps,
                "pct_start": (scheduler._step_config[1] + 1.0) / scheduler.total_steps,
                "anneal_strategy": "linear" if "linear" in scheduler.anneal_func.__name__ else "cos",
                "div_factor": top / first,
                "final_div_factor": first / last if last else math.inf,
                "three_phase": len(scheduler._lr_config) == 4,
            },
        ), top
    if kind == "LinearWarmup" and isinstance(scheduler.learning_rate, (int, float)):
        if scheduler.learning_rate != scheduler.end_lr:
            raise not_said("Paddle's LinearWarmup ends at another rate than it goes on with")
        share = scheduler.start_lr / scheduler.end_lr
        return ("warmup", {"start_factor": share, "total_iters": scheduler.warmup_steps}), float(scheduler.end_lr)
    known: dict[str, tuple[str, dict[str, str]]] = {
        "StepDecay": ("step", {"step_size": "step_size", "gamma": "gamma"}),
        "MultiStepDecay": ("multistep", {"milestones": "milestones", "gamma": "gamma"}),
        "CosineAnnealingDecay": ("cosine", {"T_max": "T_max", "eta_min": "eta_min"}),
        "LinearLR": (
            "warmup",
            {"start_factor": "start_factor", "end_factor": "end_factor", "total_iters": "total_steps"},
        ),
        "ReduceOnPlateau": (
            "plateau",
            {
                "eps": "epsilon",
                **{
                    name: name
                    for name in ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr")
                },
            },
        ),
    }
    if kind not in known:
        raise not_said(f"the schedule is Paddle's {kind}")
    word, names = known[kind]
    return (word, {name: getattr(scheduler, own) for name, own in names.items()}), float(scheduler.base_lr)
