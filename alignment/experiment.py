"""The set-up of a check: two live sides, the layout between them, the weights and the batches both are given."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import checkpoints
from alignment.correspondence import OF_MODULES, packed_tensors, parted, path_of, renamed
from alignment.errors import AlignmentError
from alignment.faults import Fault, get_fault
from alignment.frameworks import ATTENTION, Absent, Framework, Loss, get_framework, own_loss, reserve_threads
from alignment.inputs import make_batches
from alignment.mapping import ModelMapping
from alignment.matching import Tree
from alignment.orders import Orders, arrange, as_candidate, learn
from alignment.scope import Scope, corresponding, located, plan_scope, settle_scope
from alignment.sizes import read_sizes
from alignment.sources import raising_site
from alignment.trace import Record, Terms, Trace, widest
from alignment.twins import Twin
from checkpoints import Layout, Slot
from fake_data import Batch

State = dict[str, NDArray]

SIDES = ("reference", "candidate")
DROPOUT = ("frozen", "seeded")
# Dtypes of a further run, besides the two that every check makes.
PRECISIONS = ("float32", "bfloat16", "float16")

# Further float32 runs of the reference with its weights moved by one unit in the last place: they measure how large its
# rounding can be, where one run of a small tensor may be exact by luck.
NOISE_RUNS = 2
LEARNING_RATE = 1e-3
# Multiplications of a forward pass below which threads wait for each other longer than they compute.
SMALL_RUN = 1e9


@dataclass(frozen=True)
class Options:
    """What a check is asked to do. Every default is the command line's.

    steps:      which stages, by number.
    settings:   sizes and other constructor keywords that replace the twin's own.
    data:       ``"fake"``, ``"synthetic"``, or the path of a reviews file; None: the twin's own choice.
    weights:    ``"init"`` (the reference's initialiser), ``"random"``, or the path of a checkpoint. Randomised weights are
                always tried too.
    seed:       of weights and batches.
    batch_size: rows of a batch. length: tokens of a row; None: at most 64.
    faults:     faults to plant on the candidate, by name or as they are.
    mapping:    how the two sides' parts correspond, and what of them is compared: a value, or a file; None: the twin's own.
    threads:    CPU threads of both frameworks; None: all, or one where a run is too small to gain by more.
    details:    keep of each tensor where its differences sit, and the worst of them (`alignment.details`).
    strict:     call diverged, too, what the frameworks' own layers define differently: batch norm's running variance, and
                the padding row of an embedding, should it not be zero.
    dropout:    ``"frozen"`` or ``"seeded"``, see `alignment.twins.Twin`; None: the twin's own choice.
    precision:  ``"bfloat16"`` or ``"float16"``: run both sides in this dtype, too, and judge its errors.
    reference_device, candidate_device: ``"cpu"``, ``"gpu"`` or ``"gpu:N"``; None: where the framework has its models.
    """

    steps: tuple[int, ...] = (1, 2, 3, 4, 5)
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None
    weights: str = "init"
    seed: int = 0
    batch_size: int = 8
    length: int | None = None
    faults: tuple[str | Fault, ...] = ()
    threads: int | None = None
    strict: bool = False
    mapping: ModelMapping | str | None = None
    dropout: str | None = None
    precision: str = "float32"
    reference_device: str | None = None
    candidate_device: str | None = None
    details: bool = False

    def __post_init__(self) -> None:
        if not self.steps or not set(self.steps) <= {1, 2, 3, 4, 5}:
            raise AlignmentError(f"steps are numbers from 1 to 5, not {list(self.steps)}")
        if self.batch_size < 1:
            raise AlignmentError(f"the batch size must be at least 1, not {self.batch_size}")
        if self.length is not None and self.length < 1:
            raise AlignmentError(f"the length must be at least 1, not {self.length}")
        if not 0 <= self.seed < 2**32:
            raise AlignmentError(f"the seed must be a number from 0 to 2**32 - 1, not {self.seed}")
        if self.dropout not in (None, *DROPOUT):
            raise AlignmentError(f"dropout is {' or '.join(DROPOUT)}, not {self.dropout!r}")
        if self.precision not in PRECISIONS:
            raise AlignmentError(f"the precision is {', '.join(PRECISIONS)}, not {self.precision!r}")
        for device in (self.reference_device, self.candidate_device):
            if device is not None and not re.fullmatch(r"cpu|gpu(:\d+)?", device):
                raise AlignmentError(f"a device is cpu, gpu or gpu:N, not {device!r}")

    def device(self, side: str) -> str | None:
        """The device of one side with its number, as `Framework.build` takes it."""
        device = self.reference_device if side == "reference" else self.candidate_device
        return "gpu:0" if device == "gpu" else device


@dataclass(frozen=True)
class Case:
    """Both sides' runs of one batch with one set of weights, in both precisions.

    largest_gradient: of the reference in float64, where its trace does not hold all its gradients. details: as in `Options`.
    """

    weights: str
    batch: Batch
    reference32: Trace
    reference64: Trace
    candidate32: Trace
    candidate64: Trace
    noise: tuple[Trace, ...]
    scope: Scope = field(default_factory=Scope)
    largest_gradient: float | None = None
    details: bool = False

    @property
    def gradient_scale(self) -> float:
        """The largest gradient of the case, whose rounding reaches the small ones."""
        if self.largest_gradient is not None:
            return self.largest_gradient
        return largest_gradient(self.reference64)


def largest_gradient(trace: Trace) -> float:
    """The largest size of an element in all gradients of a run."""
    return widest([trace.get("gradient", name) for name in trace.names("gradient")])


def summands_of(trace: Trace) -> dict[str, Terms]:
    """Module path -> what the gradients of its parameters sum up, by a detailed run."""
    found = {path_of(name): Terms(0.0, 0.0, 0.0) for name in trace.names("activation gradient")}
    for record in trace.records:
        value, path = record.value, path_of(record.name)
        flows = record.kind in ("activation gradient", "input") and path in found
        if not flows or value is None or value.dtype.kind != "f" or not value.size:
            continue
        with np.errstate(over="ignore"):
            size, known = math.sqrt(float(np.mean(np.square(value, dtype=np.float64)))), found[path]
        if record.kind == "input":
            found[path] = known._replace(inputs=max(known.inputs, size))
        else:
            found[path] = Terms(known.summed + value.size * size, known.squared + value.size * size**2, known.inputs)
    return found


@dataclass
class Model:
    """A model that is used again. user: who loaded its weights last."""

    module: Any
    user: object = None


@dataclass(frozen=True)
class Experiment:
    """Everything the stages work on.

    layout: None when the candidate's tensors do not correspond to the reference's (`mismatch` says why).
    paths: reference's module path -> the candidate's.
    scope: what is compared, and how strictly.
    weights: name of the set -> reference's state dict.
    brief: few runs for each case: one of noise, and with the first weights alone a step of training and a call without
        targets.
    orders: of axes that the candidate has otherwise, as far as they are known from the runs up to now.
    """

    twin: Twin
    options: Options
    settings: dict[str, Any]
    reference: Framework
    candidate: Framework
    reference_model: Any
    candidate_model: Any
    layout: Layout | None
    mismatch: tuple[str, ...]
    paths: dict[str, str]
    weights: dict[str, State]
    batches: tuple[Batch, ...]
    data: str
    faults: tuple[Fault, ...]
    notes: tuple[str, ...]
    threads: int
    brief: bool = False
    scope: Scope = field(default_factory=Scope)
    models: dict[tuple[str, str], Model] = field(default_factory=dict, repr=False, compare=False)
    orders: Orders = field(default_factory=dict, repr=False, compare=False)

    def build(self, side: str, seed: int = 0) -> Any:
        """A new model of one side, ``"reference"`` or ``"candidate"``, without faults."""
        framework, _ = self.side(side)
        model = _build(framework, self.twin, side, self.settings, seed, self.options)
        _mark_attention(framework, model, self.scope.attention[SIDES.index(side)])
        return model

    @property
    def mode(self) -> str:
        """``"eval"`` or ``"train"``: in which the models run."""
        return _mode(self.twin, self.options)

    def side(self, side: str) -> tuple[Framework, str]:
        """Adapter of one side, and what its model is called."""
        if side == "reference":
            return self.reference, self.twin.reference.name
        return self.candidate, self.twin.candidate.name

    def loss(self, side: str) -> Loss:
        """Where the loss of one side comes from, as `Framework.run` takes it."""
        own = self.twin.reference if side == "reference" else self.twin.candidate
        return own.loss if self.twin.loss == "function" else self.twin.loss

    def has_loss(self, batch: Batch) -> bool:
        """Is there a loss of this batch? Cross entropy needs targets."""
        return batch.targets is not None or not own_loss(self.twin.loss)

    def candidate_state(self, reference_state: State) -> State:
        """The weights the candidate is given: converted, with the planted faults."""
        assert self.layout is not None
        state = self.converted(reference_state)
        slots = self.candidate.slots(self.candidate_model)
        for fault in self.faults:
            if fault.weights is not None:
                changed = fault.weights(state, slots)
                if changed is None:
                    raise _nothing_to_hit(fault, self.twin)
                state = checkpoints.fill_aliases(changed, self.layout)
        return state

    def converted(self, reference_state: State, layout: Layout | None = None) -> State:
        """All tensors of the candidate: the reference's, converted, and its own where a mapping leaves it these.

        layout: in place of the experiment's, for another floating dtype.
        """
        layout = layout or self.layout
        assert layout is not None
        state = checkpoints.convert(reference_state, layout)
        if self.scope.kept:
            own = self.candidate.read_state(self.candidate_model)
            first = {slot.name: slot.tied_to or slot.name for slot in self.candidate.slots(self.candidate_model)}
            given = {first[name]: value for name, value in state.items()}
            state |= {name: given.get(first[name], own[name]) for name in self.scope.kept}
        return state

    @cached_property
    def called(self) -> dict[str, str]:
        """Candidate's module path -> what it is called: the reference's path, or a name of its own that is not taken."""
        called = {two: one for one, two in self.paths.items()}
        for module in self.candidate.modules(self.candidate_model):
            if module.path not in called and module.path in self.paths:
                called[module.path] = f"{module.path} (candidate)"
        return called

    @cached_property
    def own_words(self) -> dict[str, str]:
        """`called` the other way: what a module of the candidate is called -> its path there."""
        return {name: path for path, name in self.called.items()}

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The reference's tensors; of one whose parts have counterparts of their own, the parts (`Move.label`)."""
        slots = self.reference.slots(self.reference_model)
        return slots if self.layout is None else checkpoints.split_slots(slots, self.layout)

    def use_threads(self) -> None:
        """Let both frameworks use as many CPU threads as this experiment's runs gain by."""
        for framework in (self.reference, self.candidate):
            framework.set_threads(self.threads)

    def model(self, side: str, dtype: str) -> Model:
        """The model of one side in `dtype`, the candidate with the planted faults that change a model itself.

        It is built once. Whoever uses it loads its weights first, and again where another has used it since (`user`).
        """
        if (side, dtype) not in self.models:
            framework, _ = self.side(side)
            model = self.build(side)
            if dtype != "float32" or self.half:
                model = framework.cast(model, dtype)
            if side == "candidate":
                plant(self, model)
            self.models[side, dtype] = Model(model)
        return self.models[side, dtype]

    @cached_property
    def half(self) -> str | None:
        """The half-precision dtype of the weights, if they have one: such models are run in float32 and float64."""
        slots = (*self.reference.slots(self.reference_model), *self.candidate.slots(self.candidate_model))
        return next((slot.dtype for slot in slots if slot.dtype in ("bfloat16", "float16")), None)

    def plain_reference(self) -> Any:
        """The reference to run in float32, without another copy of it where there need be none."""
        return self.model("reference", "float32").module if self.half else self.reference_model

    def cases(self, backward: bool, progress: Callable[[], None]) -> Iterator[Case]:
        """Run both sides on every batch with every set of weights, one case at a time."""
        models = {(side, dtype): self._used(side, dtype) for side in SIDES for dtype in ("float32", "float64")}
        for name, state in self.weights.items():
            given = self.candidate_state(state)
            for (side, _), model in models.items():
                self.side(side)[0].load_state(model, state if side == "reference" else given)
            moved = self.moved(name, 1 if self.brief else NOISE_RUNS)
            whole = not self.brief or name == next(iter(self.weights))
            for batch in self.batches:
                traces = {
                    key: self.run(key[0], model, batch, backward, step=whole, brief=not whole)
                    for key, model in models.items()
                }
                noise = []
                for weights in moved:
                    self.reference.load_state(models["reference", "float32"], weights)
                    noise.append(
                        self.run("reference", models["reference", "float32"], batch, backward, brief=self.brief)
                    )
                self.reference.load_state(models["reference", "float32"], state)
                new = self.learn(traces["reference", "float64"], traces["candidate", "float64"])
                for key in (("candidate", "float32"), ("candidate", "float64")):
                    traces[key] = arrange(traces[key], new)
                yield Case(
                    name,
                    batch,
                    traces["reference", "float32"],
                    traces["reference", "float64"],
                    traces["candidate", "float32"],
                    traces["candidate", "float64"],
                    tuple(noise),
                    self.scope,
                    details=self.options.details,
                )
                progress()

    def learn(self, reference: Trace, candidate: Trace) -> Orders:
        """What two runs of one batch tell of the order of axes; returns, and keeps, what was not known."""
        new = {key: order for key, order in learn(reference, candidate).items() if key not in self.orders}
        self.orders.update(new)
        return new

    def detailed(self, weights: str, batch: str) -> Trace:
        """A detailed float64 run of the reference, of a batch and a set of weights by name."""
        held = self.model("reference", "float64")
        held.user = None
        self.reference.load_state(held.module, self.weights[weights])
        given = next(one for one in self.batches if one.name == batch)
        return self.run("reference", held.module, given, True, detail=True)

    def summands(self, weights: str, batch: str) -> Mapping[str, Terms]:
        """`summands_of` such a run."""
        return summands_of(self.detailed(weights, batch))

    def initial(self, side: str, seed: int) -> State:
        """What a side's own initialiser gives under a seed."""
        return self.side(side)[0].read_state(self.build(side, seed))

    def _used(self, side: str, dtype: str) -> Any:
        model = self.model(side, dtype)
        model.user = None
        return model.module

    def moved(self, weights: str, count: int) -> list[State]:
        """Sets of weights whose values differ from those called `weights` by one unit in the last place."""
        number = list(self.weights).index(weights)
        first = self.options.seed + 1000 * number
        return [moved_by_one_ulp(self.weights[weights], first + run) for run in range(count)]

    def run(
        self,
        side: str,
        model: Any,
        batch: Batch,
        backward: bool,
        *,
        step: bool = False,
        brief: bool = False,
        detail: bool = False,
        forced: Trace | None = None,
        sink: Callable[[Record], None] | None = None,
    ) -> Trace:
        """One run of a model of one side, its modules called by the reference's names (those of `forced`, too).

        Gradients and updates of the reference are of the parts of a tensor where these have counterparts of their own.

        step: with what a step of training changes, if the run goes backward. For the others see `Framework.run`.

        Raises:
            AlignmentError: the model raised something; the message says on which side and batch.
        """
        framework, target = self.side(side)

        def outside(record: Record, number: int = SIDES.index(side)) -> bool:
            return self.scope.is_outside(number, record.kind, record.name)

        if forced is not None and side == "candidate":
            # What has no counterpart there must not be taken for what has its name.
            forced = _only(forced, lambda record: record.kind not in OF_MODULES or path_of(record.name) in self.paths)
            forced = replace(forced, records=tuple(as_candidate(record, self.orders) for record in forced.records))
            forced = renamed(forced, self.paths)
        if self.scope.inside[SIDES.index(side)]:
            forced = None if forced is None else _only(forced, outside)
            every = sink
            sink = None if every is None else lambda record: every(record) if outside(record) else None
        packed = packed_tensors(self.layout) if side == "reference" else {}
        told = sink

        def divided(record: Record) -> None:
            assert told is not None
            for part in parted(record, packed):
                told(part)

        try:
            trace = framework.run(
                model,
                batch,
                loss=self.loss(side),
                backward=backward,
                learning_rate=LEARNING_RATE if backward and step else None,
                brief=brief,
                detail=detail,
                forced=forced,
                sink=sink and divided,
            )
        except (Exception, SystemExit) as error:  # a user's model may raise anything: say where, and never pass
            what = str(error) if isinstance(error, AlignmentError) else f"{type(error).__name__}: {error}"
            raise AlignmentError(
                f"the {side} ({target}) fails on batch {batch.name!r}{_at(error)}: {what}{_hint(error)}"
            ) from error
        if self.scope.inside[SIDES.index(side)]:
            trace = _only(trace, outside)
        if side == "reference":
            return replace(trace, records=tuple(part for record in trace.records for part in parted(record, packed)))
        return arrange(renamed(trace, self.called), self.orders)


def _at(error: BaseException) -> str:
    """The line of the model's own code where it failed, where that is known."""
    site = raising_site(error)
    return f" at {site}" if site else ""


def _hint(error: BaseException) -> str:
    """What to change, where the frameworks' own words for it don't say so."""
    text = str(error).lower()
    if isinstance(error, TypeError) and "positional argument" in text:
        return (
            "\nA batch that is a tuple is a model's positional arguments; of a pair (inputs, targets) the targets are left "
            "to the loss, where one is given: loss=…"
        )
    if "float64" in text or "double" in text:
        return (
            "\nA model is run in float32 and in float64: what its forward makes must have the dtype of its input, "
            "torch.zeros(…, dtype=x.dtype), paddle.zeros(…, dtype=x.dtype)"
        )
    return ""


def _only(trace: Trace, holds: Callable[[Record], bool]) -> Trace:
    return replace(trace, records=tuple(record for record in trace.records if holds(record)))


def prepare(twin: Twin, options: Options, alone: bool = False) -> Experiment:
    """Build both sides, find the layout, settle weights and batches.

    alone: the reference alone, without layout; nothing of the candidate's is imported.

    Raises:
        AlignmentError, CheckpointError, DataError: what is wrong with the settings, weights or data.
    """
    faults = tuple(get_fault(fault) if isinstance(fault, str) else fault for fault in options.faults)
    reference = get_framework(twin.reference.framework)
    absent = cast(Framework, Absent(twin.candidate.framework))
    candidate = absent if alone else get_framework(twin.candidate.framework)
    settings = {**twin.settings, **options.settings}
    unknown = set(settings) - set(twin.settings)
    if unknown:
        raise AlignmentError(
            f"{twin.name} has no setting {', '.join(sorted(unknown))}; it has: {', '.join(twin.settings)}"
        )
    given = None
    if options.weights not in ("init", "random"):
        given = checkpoints.read(Path(options.weights))
        told, _ = read_sizes(twin, {name: value.shape for name, value in given.items()})
        settings |= {name: size for name, size in told.items() if name not in options.settings}
    chosen = make_batches(
        twin,
        settings,
        fixed=given is not None or twin.vocabulary in options.settings,
        data=options.data,
        seed=options.seed,
        batch_size=options.batch_size,
        length=options.length,
    )
    settings = chosen.settings
    for side, framework in (("reference", reference), ("candidate", candidate))[: 1 if alone else 2]:
        _refuse_device(framework, side, options.device(side))
    reference_model = _build(reference, twin, "reference", settings, options.seed, options)
    candidate_model = None if alone else _build(candidate, twin, "candidate", settings, options.seed, options)
    threads = options.threads or _threads(reference.slots(reference_model), chosen.batches)
    for framework in (reference, candidate):
        framework.set_threads(threads)
    layout: Layout | None = None
    mismatch: tuple[str, ...] = ()
    scope, paths = Scope(), {}
    if not alone:
        trees = tree_of(reference, reference_model), tree_of(candidate, candidate_model)
        layout, mismatch, scope = settle_scope(*trees, mapping_of(twin, options), twin.names)
        paths = corresponding(scope, *trees, layout)
        scope = located(scope, *trees, paths)
        _mark_attention(reference, reference_model, scope.attention[0])
        _mark_attention(candidate, candidate_model, scope.attention[1])
    experiment = Experiment(
        twin,
        options,
        settings,
        reference,
        candidate,
        reference_model,
        candidate_model,
        layout,
        mismatch,
        paths,
        {},
        chosen.batches,
        chosen.source,
        faults,
        (*chosen.notes, *(() if 1 in options.steps else scope.notes)),
        threads,
        scope=scope,
    )
    devices = [f"{side} on {device}" for side in SIDES if (device := options.device(side)) is not None]
    if devices:
        experiment = replace(experiment, notes=(*experiment.notes, ", ".join(devices)))
    if _dropout(twin, options) == "seeded":
        note = f"training mode; dropout layers apply masks of seed {options.seed}, the same on both sides"
        experiment = replace(experiment, notes=(*experiment.notes, note))
    if experiment.half:
        note = f"{experiment.half} weights: run in float32 and float64, with the values they have"
        experiment = replace(experiment, notes=(*experiment.notes, note))
    for fault in faults:
        if fault.plant is not None and not fault.plant(candidate, experiment.build("candidate"), twin):
            raise _nothing_to_hit(fault, twin)
    return replace(experiment, weights=_weight_sets(experiment, given))


def plan_layout(experiment: Experiment, reference_model: Any, candidate_model: Any) -> Layout:
    """How these two models' tensors correspond."""
    trees = tree_of(experiment.reference, reference_model), tree_of(experiment.candidate, candidate_model)
    return plan_scope(*trees, experiment.scope)


def mapping_of(twin: Twin, options: Options) -> ModelMapping:
    """The mapping a check goes by.

    Raises:
        AlignmentError: it is a file that can't be read or holds no mapping.
    """
    if options.mapping is None:
        return twin.mapping
    return ModelMapping.read(options.mapping) if isinstance(options.mapping, str) else options.mapping


def told_mapping(experiment: Experiment) -> dict[str, Any] | None:
    """The mapping that an experiment goes by, as in a file; None where neither the options nor the twin have one."""
    mapping = experiment.scope.mapping
    return None if experiment.options.mapping is None and mapping == ModelMapping() else mapping.to_dict()


@dataclass(frozen=True)
class Built:
    """One live side of a twin, and what a matching looks at of it."""

    framework: Framework
    model: Any
    tree: Tree


def build_sides(twin: Twin, settings: Mapping[str, Any]) -> tuple[Built, Built]:
    """The reference and the candidate, built with these settings in place of the twin's own.

    Raises:
        AlignmentError: one of them can't be built.
    """

    def built(name: str, framework_name: str) -> Built:
        framework = get_framework(framework_name)
        model = _build(framework, twin, name, {**twin.settings, **settings}, 0, Options())
        return Built(framework, model, tree_of(framework, model))

    return built("reference", twin.reference.framework), built("candidate", twin.candidate.framework)


def tree_of(framework: Framework, model: Any) -> Tree:
    """What a matching looks at of a live model."""
    return Tree(framework.name, framework.modules(model), framework.slots(model))


def plant(experiment: Experiment, model: Any) -> None:
    """Plant every fault that changes the candidate itself."""
    for fault in experiment.faults:
        if fault.plant is not None:
            fault.plant(experiment.candidate, model, experiment.twin)


def _mode(twin: Twin, options: Options) -> str:
    return "train" if _dropout(twin, options) == "seeded" else twin.mode


def _dropout(twin: Twin, options: Options) -> str:
    return options.dropout or twin.dropout


def _build(
    framework: Framework, twin: Twin, name: str, settings: Mapping[str, Any], seed: int, options: Options
) -> Any:
    side = twin.reference if name == "reference" else twin.candidate
    settings = {**settings, **side.settings}
    try:
        return framework.build(
            side.target,
            settings,
            seed,
            criterion=twin.loss == "criterion",
            mode=_mode(twin, options),
            dropout=options.seed if _dropout(twin, options) == "seeded" else None,
            device=options.device(name),
        )
    except (Exception, SystemExit) as error:  # a user's class may raise anything: say where, and never pass
        what = f"{type(error).__name__}: {error}"
        given = f" with {_listed(settings)}" if settings else ""
        raise AlignmentError(f"{side.name} can't be built{given}{_at(error)}: {what}") from error


def _refuse_device(framework: Framework, side: str, device: str | None) -> None:
    if device is None or device in (there := framework.devices()):
        return
    raise AlignmentError(
        f"the {side} can't run on {device}: {framework.name} finds {', '.join(there)} here; choose one of these with "
        f"--{side}-device, or install a build of {framework.name} for this machine's GPUs"
    )


def _mark_attention(framework: Framework, model: Any, paths: tuple[str, ...]) -> None:
    for path in paths:
        setattr(framework.module(model, path), ATTENTION, True)


def _threads(slots: tuple[Slot, ...], batches: tuple[Batch, ...]) -> int:
    """One thread for a small run, all that are reserved for a large one."""
    tokens = max(next(iter(batch.inputs.values())).size for batch in batches)
    return 1 if tokens * matrix_elements(slots) < SMALL_RUN else reserve_threads()


def matrix_elements(slots: tuple[Slot, ...]) -> int:
    """Elements of all matrices that are multiplied with: multiplications for each token of a forward pass."""
    return sum(math.prod(slot.shape) for slot in slots if len(slot.shape) > 1 and slot.kind != "Embedding")


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _nothing_to_hit(fault: Fault, twin: Twin) -> AlignmentError:
    return AlignmentError(
        f"fault {fault.name!r} ({fault.summary}) has nothing to hit in {twin.name} with these settings; "
        "choose another fault or another twin"
    )


def _weight_sets(experiment: Experiment, given: State | None) -> dict[str, State]:
    framework, options = experiment.reference, experiment.options
    own = framework.read_state(experiment.reference_model)
    randomised = {"random": randomise(framework.slots(experiment.reference_model), own, options.seed, options.strict)}
    if given is not None:
        path = Path(options.weights)
        return {path.name: _from_file(experiment, path, given, own), **randomised}
    return randomised if options.weights == "random" else {"init": own, **randomised}


def _from_file(experiment: Experiment, path: Path, given: State, own: State) -> State:
    if path.suffix == ".pdparams" and experiment.layout is not None:
        stored = {name: value.dtype.name for name, value in given.items()}
        given = checkpoints.convert(given, checkpoints.retype(checkpoints.reverse(experiment.layout), stored))
    problems = [f"missing {name}" for name in own if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in own]
    problems += [
        f"{name}: shape {list(given[name].shape)} in the file, {list(own[name].shape)} in the model"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    if problems:
        raise AlignmentError(
            f"{path} does not fit {experiment.twin.name} with these settings (set sizes with --set NAME=VALUE): "
            + "; ".join(problems[:8])
            + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        )
    return {name: given[name].astype(own[name].dtype) for name in own}


def randomise(slots: tuple[Slot, ...], state: State, seed: int, strict: bool = False) -> State:
    """Weights under which every part of a model matters.

    At a published initialisation attention is nearly uniform and biases are zero, so that most mistakes move the result by
    less than float32 rounding. Here matrices are N(0, s²) with s = 0.3 up to 16 inputs, and 1.2 / √inputs beyond, so that
    magnitudes neither vanish nor explode with width; vectors are N(0, 0.3²) around the value the initialiser centres them
    on. Buffers stay as they are, and so do an embedding's rows of zeros unless the check is strict.
    """
    generator = np.random.default_rng(seed)
    result: State = {}
    for slot in slots:
        value = state[slot.name]
        if slot.tied_to is not None:
            result[slot.name] = result[slot.tied_to]
        elif slot.role == "buffer" or not is_floating(value.dtype):
            result[slot.name] = value
        else:
            inputs = math.prod(value.shape[1:] if value.ndim > 2 else value.shape[-1:])
            deviation = min(0.3, 1.2 / math.sqrt(max(1, inputs))) if value.ndim > 1 else 0.3
            centre = 1.0 if value.ndim == 1 and slot.kind.endswith("Norm") and slot.local == "weight" else 0.0
            drawn = (centre + deviation * generator.standard_normal(value.shape)).astype(value.dtype)
            if slot.kind == "Embedding" and not strict:
                # A row of zeros is the padding's; Paddle's own layer looks it up as zeros whatever it holds.
                drawn[~np.any(value != 0, axis=-1)] = 0
            result[slot.name] = drawn
    return result


def is_floating(dtype: np.dtype) -> bool:
    """Is it a floating-point dtype, bfloat16 among them?"""
    return np.issubdtype(dtype, np.floating) or dtype == ml_dtypes.bfloat16


def moved_by_one_ulp(state: State, seed: int, widen: bool = True) -> State:
    """Every floating-point value moved to a neighbouring one, up or down at random; zeros stay.

    widen: take the neighbours that half precision's values have as float32, in which such a model is run.
    """
    generator = np.random.default_rng(seed)
    moved: State = {}
    for name, value in state.items():
        if is_floating(value.dtype):
            value = value.astype(np.float32) if widen and value.itemsize == 2 else value
            # The neighbours of a number other than zero are those of its bit pattern, taken as an integer.
            bits = np.unpackbits(np.frombuffer(generator.bytes(value.size // 8 + 1), np.uint8), count=value.size)
            steps = (2 * bits.view(np.int8).reshape(value.shape) - 1) * (np.isfinite(value) & (value != 0))
            moved[name] = (value.view(f"i{value.itemsize}") + steps).view(value.dtype)
        else:
            moved[name] = value
    return moved
