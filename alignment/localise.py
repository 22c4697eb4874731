"""Where divergences start: each piece of the candidate is run by itself on the reference's own values (teacher forcing).

A `Scene` is one batch with one set of weights. Its forced run gives every module of the candidate what the reference's
module was given, and hands on what the reference's module made of it, in the backward pass likewise; the weights are the
reference's, too. So what still differs there differs by the code between two neighbouring records: it is a root, and what
differs in the free run only is inherited. Several independent faults are all found in the one run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

import checkpoints
from alignment.compare import Comparison, Pair, measure, settle
from alignment.correspondence import holder, path_of, rename
from alignment.details import detail_of
from alignment.errors import AlignmentError
from alignment.experiment import Case, Experiment, State
from alignment.orders import arrange
from alignment.report import StageResult, TensorResult
from alignment.stages import CUT, criterion_faults, result_of
from alignment.trace import GRADIENT_OF, Kind, Record, Trace
from checkpoints import undo
from fake_data import Batch

# Most cases (batch × weights) that are looked into: faults that show in a few batches only are rare, and each costs runs.
MOST_SCENES = 4

FORWARD: tuple[Kind, ...] = ("input", "activation")
# What comes of the last module: what the model returns, and the loss.
END: tuple[Kind, ...] = ("logits", "output", "loss")
FLOWS: frozenset[Kind] = frozenset((*GRADIENT_OF, *GRADIENT_OF.values()))


@dataclass(frozen=True)
class Root:
    """A divergence that starts here: all that it depends on was the reference's own, and it differs all the same.

    kind, name: of the record, in the reference's words. owner: path of the module (the reference's words) whose code
    computes it: an activation and its gradients by the module itself, what a module is given by its parent.
    reference, candidate: the float64 values, the candidate's in the reference's layout; None where it has none.
    """

    kind: Kind
    name: str
    owner: str
    comparison: Comparison
    reference: NDArray | None
    candidate: NDArray | None


class Scene:
    """One batch with one set of weights, run in full detail. `dtype` is that of the forced runs.

    live: are the models at hand, to be run again with a change? A cause that needs that has nothing to try where not.
    state: the weights in the reference's layout, by `Move.label`: those of a tensor whose parts have counterparts of their
    own by these parts. moves: by label, too.
    """

    live = True

    def __init__(self, experiment: Experiment, weights: str, batch: Batch, dtype: str = "float64") -> None:
        assert experiment.layout is not None
        self.experiment, self.weights, self.batch, self.dtype = experiment, weights, batch, dtype
        self.state = checkpoints.split(experiment.weights[weights], experiment.layout)
        self.moves = {move.label: move for move in experiment.layout.moves}
        self._orders_known = False
        # Arguments of the reference's modules -> an earlier one that is the same tensor, where the candidate has that alone.
        self._copies: dict[str, str] = {}
        self.backward = 5 in experiment.options.steps and experiment.has_loss(batch)

    # ------------------------------------------------------------------------------------------------------------ runs

    def model(self, side: str, dtype: str | None = None) -> Any:
        """This scene's model of a side, with the faults planted and the right weights."""
        model = self.experiment.model(side, dtype or self.dtype)
        if model.user is not self:
            self.load(side, model.module, self.state)
            model.user = self
        return model.module

    def load(self, side: str, model: Any, state: State) -> None:
        """Give a model of one side weights in the reference's layout, by its names or by label."""
        framework, layout = self.experiment.side(side)[0], self.experiment.layout
        assert layout is not None
        state = checkpoints.join(state, layout)
        framework.load_state(model, state if side == "reference" else self.experiment.converted(state))

    def run(self, side: str, dtype: str | None = None, forced: Trace | None = None) -> Trace:
        """A detailed run of one side."""
        return self.experiment.run(side, self.model(side, dtype), self.batch, self.backward, detail=True, forced=forced)

    @cached_property
    def reference64(self) -> Trace:
        return self._joined(self.run("reference", "float64"))

    @cached_property
    def reference32(self) -> Trace:
        return self._joined(self.run("reference", "float32"))

    @cached_property
    def noise(self) -> Trace:
        """A float32 run of the reference with its weights moved by one unit in the last place."""
        model = self.model("reference", "float32")
        self.load("reference", model, self.experiment.moved(self.weights, 1)[0])
        try:
            return self._joined(self.run("reference", "float32"))
        finally:
            self.load("reference", model, self.state)

    @cached_property
    def candidate_state(self) -> State:
        """The weights the candidate was given in the check (planted faults included), in its own names and layout."""
        return self.experiment.candidate_state(self.experiment.weights[self.weights])

    @cached_property
    def candidate64(self) -> Trace:
        """The candidate by itself, with the weights it was given in the check (planted faults included)."""
        model = self.model("candidate", "float64")
        framework = self.experiment.candidate
        framework.load_state(model, self.candidate_state)
        try:
            return self.run("candidate", "float64")
        finally:
            self.load("candidate", model, self.state)

    def _given_twice(self) -> dict[str, str]:
        """What the reference's modules are given as a second argument that is also an earlier one, and its name there."""
        found: dict[str, str] = {}
        first: dict[tuple[str, str, bytes], str] = {}
        for record in self.reference64.records:
            if record.kind == "input" and record.value is not None and record.value.dtype.kind == "f":
                call = record.name.partition("[")[0]
                key = call, str(record.value.shape), record.value.tobytes()
                if key in first:
                    found[record.name] = first[key]
                first.setdefault(key, record.name)
        return found

    def _joined(self, trace: Trace) -> Trace:
        """The trace as if modules were given once what the candidate's are given once: attention of x, x and x is that of x."""
        if not self._copies:
            return trace
        parts: dict[str, list[NDArray]] = {}
        for record in trace.records:
            if record.kind == "input gradient" and record.value is not None:
                parts.setdefault(self._copies.get(record.name, record.name), []).append(record.value)
        records = []
        for record in trace.records:
            if record.kind in ("input", "input gradient") and record.name in self._copies:
                continue
            whole = parts.get(record.name, []) if record.kind == "input gradient" else []
            records.append(replace(record, value=sum(whole[1:], whole[0])) if len(whole) > 1 else record)
        return replace(trace, records=tuple(records))

    @property
    def given(self) -> Trace:
        """What forced runs are given: the reference's run in this scene's dtype."""
        return self.reference64 if self.dtype == "float64" else self.reference32

    def forced(
        self,
        state: State | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        given: Mapping[tuple[Kind, str], NDArray | None] | None = None,
        side: str = "candidate",
    ) -> Trace:
        """A forced run of the candidate (or the reference), on request with a change whose effect is to be seen.

        Args:
            state: other weights, as `state` has them.
            options: module path (the reference's words) -> options to set, by torch's names.
            given: records to give other values; None: not to force.
        """
        if self.experiment.orders:
            self.learn_orders()
        model, (framework, _) = self.model(side), self.experiment.side(side)
        paths = self.experiment.paths if side == "candidate" else {path: path for path in self.experiment.paths}
        trace = self.given
        if given:
            changed = [Record(r.kind, r.name, given.get((r.kind, r.name), r.value)) for r in trace.records]
            trace = replace(trace, records=tuple(record for record in changed if record.value is not None))
        before = {path: framework.options(model, paths[path]) for path in options or {}}
        try:
            for path, values in (options or {}).items():
                framework.set_options(model, paths[path], values)
            if state is not None:
                self.load(side, model, state)
            return self.run(side, forced=trace)
        finally:
            for path, values in before.items():
                framework.set_options(model, paths[path], values)
            if state is not None:
                self.load(side, model, self.state)

    def learn_orders(self) -> None:
        """Of what modules are given, too: free runs don't record that."""
        if not self._orders_known:
            self._orders_known = True
            self.candidate64 = arrange(self.candidate64, self.experiment.learn(self.reference64, self.candidate64))

    # --------------------------------------------------------------------------------------------------------- judging

    def value(self, trace: Trace, kind: Kind, name: str) -> NDArray | None:
        """One record of the candidate's trace by the reference's name, in the reference's layout."""
        move = self.moves.get(name) if kind == "gradient" else None
        if move is None:
            return trace.get(kind, name)
        value = trace.get(kind, move.target)
        return value if value is None or value.shape != move.shape_to else undo(value, move)

    def judge(self, kind: Kind, name: str, candidate: NDArray | None) -> Comparison:
        """Compare a candidate's value with the reference's, both computed from the reference's own values."""
        one, noise = self.reference32.get(kind, name), self.noise.get(kind, name)
        truth = self.reference64.get(kind, name)
        runs = () if noise is None else (noise,)
        scale = self.gradient_scale if kind not in FORWARD else 0.0
        if self.dtype == "float32":
            # Both computed it from the same float32 values: the reference's own is what the candidate's should be.
            pair = Pair(one, candidate, truth, truth, runs, truth32=None if one is None else one.astype(np.float64))
        else:
            pair = Pair(one, one, truth, candidate, runs, scale=scale)
        tolerance = self.experiment.scope.tolerance(name, self._called(name))
        return settle([measure(pair, tolerance)], tolerance)[0]

    def _called(self, name: str) -> str:
        """What the candidate calls a record."""
        return self.moves[name].target if name in self.moves else rename(name, self.experiment.paths)

    @cached_property
    def gradient_scale(self) -> float:
        """The largest gradient of this scene, whose rounding reaches the small ones."""
        values = [r.value for r in self.reference64.records if r.kind == "gradient" and r.value is not None]
        return max((float(np.abs(v).max(initial=0.0)) for v in values), default=0.0)

    def points(self) -> Iterable[tuple[Kind, str]]:
        """Everything the reference's run recorded and that is compared, in the order it came to be."""
        scope = self.experiment.scope
        for record in self.reference64.records:
            if scope.left_out(record.kind, record.name, self._called(record.name)):
                continue
            if record.kind in FLOWS or record.kind in ("gradient", "loss", "output") or record.name == "logits":
                yield record.kind, record.name

    def failing(self, trace: Trace, kinds: Iterable[Kind] | None = None) -> dict[tuple[Kind, str], Comparison]:
        """What differs in a forced run, of all kinds or of some."""
        found = {}
        for kind, name in self.points():
            if kinds is not None and kind not in kinds:
                continue
            value = self.value(trace, kind, name)
            if value is None and not self._due(trace, kind, name):
                continue
            comparison = self.judge(kind, name, value)
            if comparison.verdict == "diverged":
                found[kind, name] = comparison
        return found

    def _due(self, trace: Trace, kind: Kind, name: str) -> bool:
        """Should the candidate have a record that it has not?

        What a model returns; and a gradient of what it computed or owns, unless that is zero.
        """
        if kind == "output":
            return True
        value = self.reference64.get(kind, name)
        if value is None or not value.any():
            return False
        if kind == "gradient":
            return name in self.moves
        flow = next((flow for flow, gradient in GRADIENT_OF.items() if gradient == kind), None)
        return flow is not None and trace.get(flow, name) is not None

    @cached_property
    def forced_run(self) -> Trace:
        """The candidate's forced run, without a change."""
        trace = self.forced()
        self._copies = {name: copy for name, copy in self._given_twice().items() if trace.get("input", name) is None}
        if self._copies:
            self.reference64, self.reference32 = self._joined(self.reference64), self._joined(self.reference32)
            self.noise = self._joined(self.noise)
            trace = self.forced()
        differing = [key for key in self.failing(trace, ["input"]) if not _is_float(trace.get(*key))]
        if not differing:
            return trace
        # Where forcing a mask makes more differ than leaving it, the two sides only mean different things by it.
        free: dict[tuple[Kind, str], NDArray | None] = dict.fromkeys(differing)
        left = self.forced(given=free)
        better = len(self.failing(left, FORWARD)) < len(self.failing(trace, FORWARD))
        return left if better else trace

    @cached_property
    def roots(self) -> tuple[Root, ...]:
        """Every divergence that starts by itself, forward ones first, in order of execution."""
        trace = self.forced_run
        failing = self.failing(trace)
        forward = [key for key in failing if key[0] in FORWARD and self._matters(*key)]
        # Code that is wrong forward is wrong in what it makes after that, and backward, too.
        wrong = {self.owner(*key) for key in forward}
        forward += [key for key in failing if key[0] in END and self.owner(*key) not in wrong]
        guilty = {self.owner(*key) for key in forward}
        backward = [key for key in failing if key[0] not in (*FORWARD, *END)]
        backward = [key for key in backward if self.owner(*key) not in guilty]
        if (
            forward
        ):  # a gradient sums what each call adds: with fewer calls, or none, it differs for the reason that they do
            here, there = _calls(self.reference64), _calls(trace)
            backward = [key for key in backward if key[0] != "gradient" or self._called_alike(key, here, there)]
        flowing = {self.owner(*key) for key in backward if key[0] in FLOWS}
        backward = [key for key in backward if key[0] in FLOWS or self.owner(*key) not in flowing]
        of_weights = [key for key in backward if key[0] != "gradient" or key[1] in self.moves]
        backward = of_weights or backward
        return tuple(
            Root(
                kind,
                name,
                self.owner(kind, name),
                failing[kind, name],
                self.reference64.get(kind, name),
                self.value(trace, kind, name),
            )
            for kind, name in (*forward, *backward)
        )

    def _called_alike(self, key: tuple[Kind, str], here: Counter[str], there: Counter[str]) -> bool:
        """Is the module that owns a gradient called, and as often as the reference's? The model may return no tensor itself."""
        owner = self.owner(*key)
        return owner == "" or (there[owner] > 0 and here[owner] in (0, there[owner]))

    @cached_property
    def criterion_faults(self) -> set[str]:
        """Rows of the criterion that differ though both sides are given the reference's logits."""
        one, two = self.reference32, self.reference64
        return criterion_faults(self.experiment, Case(self.weights, self.batch, one, two, one, two, (self.noise,)))

    def _matters(self, kind: Kind, name: str) -> bool:
        """Does what a module is given make a difference to anything? A mask of −1e4 or −inf may not."""
        if kind != "input":
            return True
        before = self.failing(self.forced_run, FORWARD)
        left = self.failing(self.forced(given={(kind, name): None}), FORWARD)
        return any(key not in before for key in left)

    @cached_property
    def _paths(self) -> frozenset[str]:
        modules = self.experiment.reference.modules(self.experiment.reference_model)
        return frozenset(module.path for module in modules)

    def owner(self, kind: Kind, name: str) -> str:
        """Path of the module whose code computes a record."""
        if kind == "gradient" and name in self.moves:
            return holder(name, self._paths)
        if kind in (*END, "gradient"):
            return ""
        path = path_of(name)
        return path if kind in ("activation", "input gradient") else path.rpartition(".")[0]


def _calls(trace: Trace) -> Counter[str]:
    """Module path -> how often it was called, as far as it gave tensors."""
    return Counter(path_of(call) for call in {name.partition("[")[0] for name in trace.names("activation")})


def _is_float(value: NDArray | None) -> bool:
    return value is not None and value.dtype.kind == "f"


def localise(
    experiment: Experiment,
    stages: tuple[StageResult, ...],
    find_scenes: Callable[[Experiment, tuple[StageResult, ...]], Iterable[Scene]] | None = None,
) -> tuple[tuple[StageResult, ...], tuple[Scene, ...]]:
    """Mark every root divergence, and add the roots that no stage looks at (what modules are given).

    find_scenes: the scenes to look into, where the models are not at hand to be run.

    Returns the stages, and the scenes in which the roots of the stages that run the models were found.
    """
    scenes: list[Scene] = []
    stages = tuple(replace(stage, tensors=tuple(_by_itself(stage.tensors))) for stage in stages)
    try:
        for scene in (find_scenes or _scenes)(experiment, stages):
            stages = _with_roots(stages, scene, experiment.options.details)
            scenes.append(scene)
    except AlignmentError as error:
        # The candidate can't be run piece by piece: what the stages found stands.
        note = f"root divergences could not be separated: {error}"
        stages = (*stages[:-1], replace(stages[-1], notes=(*stages[-1].notes, note)))
    stages = _without_consequences(experiment, with_uses_of_logits(stages, scenes))
    if any(tensor.root for stage in stages for tensor in stage.tensors):
        return stages, tuple(scenes)
    return first_is_root(stages), tuple(scenes)


def _by_itself(tensors: Iterable[TensorResult]) -> Iterable[TensorResult]:
    """Mark what depends on nothing else a stage looks at: structure, weights, and steps given what they start from."""
    tensors = list(tensors)
    gradients = {t.name for t in tensors if t.record == "gradient" and t.verdict == "diverged"}
    # A piece that is run by itself gets no gradient where the reference cuts: the cut nearest to the loss is seen here, in all
    # parameters of the module before it.
    cuts = [t.name for t in tensors if t.record == "gradient" and t.reason.startswith(CUT)]
    cut = {name for name in cuts if name.rpartition(".")[0] == cuts[0].rpartition(".")[0]}
    for tensor in tensors:
        alone = tensor.record in ("module", "parameter", "buffer", "initializer")
        alone = alone or (tensor.record == "update" and tensor.name not in gradients)
        alone = alone or (tensor.record == "gradient" and tensor.name in cut)
        yield replace(tensor, root=True) if alone and tensor.verdict == "diverged" else tensor


def _scenes(experiment: Experiment, stages: tuple[StageResult, ...]) -> Iterable[Scene]:
    """Cases to look into, until every diverging tensor of the stages that run the models was in one of them."""
    batches = {batch.name: batch for batch in experiment.batches}
    left = [t for stage in stages for t in stage.tensors if t.diverging and t.record in _RUN and not t.root]
    for _ in range(MOST_SCENES):
        cases = Counter(case for tensor in left for case in tensor.diverging if case.rpartition("/")[2] in batches)
        if not cases:
            return
        case = cases.most_common(1)[0][0]
        here = [tensor for tensor in left if case in tensor.diverging]
        left = [tensor for tensor in left if case not in tensor.diverging]
        weights, _, batch = case.rpartition("/")
        only_precision = all(tensor.decided_by == "precision" for tensor in here)
        yield Scene(experiment, weights, batches[batch], "float32" if only_precision else "float64")


def _with_roots(stages: tuple[StageResult, ...], scene: Scene, details: bool) -> tuple[StageResult, ...]:
    for root in scene.roots:
        record, name = row_of(root)
        step = _STEP[record]
        for position, stage in enumerate(stages):
            if stage.step != step:
                continue
            tensors = list(stage.tensors)
            known = [i for i, t in enumerate(tensors) if (t.record, t.name) == (record, name)]
            if (
                known
            ):  # what the models make of it by themselves may agree: two differences that cancel are one root less
                row = tensors[known[0]]
                tensors[known[0]] = replace(row, root=row.verdict == "diverged")
            else:
                first = next((i for i, t in enumerate(tensors) if not t.root), len(tensors))
                tensors.insert(first, _row(root, record, name, scene, details))
            stages = (*stages[:position], replace(stage, tensors=tuple(tensors)), *stages[position + 1 :])
    return stages


def with_uses_of_logits(stages: tuple[StageResult, ...], scenes: Iterable[Scene]) -> tuple[StageResult, ...]:
    """Mark what is made of the logits outside the models: criteria that differ given the same ones, and metrics."""
    rows = [tensor for stage in stages for tensor in stage.tensors]
    logits = [tensor.verdict for tensor in rows if tensor.record == "logits"]
    agree = bool(logits) and all(verdict == "aligned" for verdict in logits)
    asked = any(tensor.verdict == "diverged" and is_criterion(tensor) for tensor in rows)
    wrong = set().union(*(scene.criterion_faults for scene in scenes)) if asked else set()

    def starts(tensor: TensorResult) -> bool:
        of_logits = is_criterion(tensor) or tensor.record == "metric"
        return tensor.verdict == "diverged" and of_logits and (agree or tensor.name in wrong)

    return tuple(
        replace(stage, tensors=tuple(replace(t, root=t.root or starts(t)) for t in stage.tensors)) for stage in stages
    )


def is_criterion(tensor: TensorResult) -> bool:
    """Is this the framework's criterion with some options, and not the twin's own loss?"""
    return tensor.record == "loss" and tensor.name != "loss"


def row_of(root: Root) -> tuple[str, str]:
    """Record and name under which a stage lists a root."""
    if path_of(root.name) == "criterion" and root.kind == "activation":
        return "loss", "loss"
    return root.kind, root.name


def _row(root: Root, record: str, name: str, scene: Scene, details: bool) -> TensorResult:
    called = rename(name, scene.experiment.paths)
    row = result_of(record, name, called, root.comparison, scene.weights, scene.batch.name)
    given = "given the reference's own values: " if scene.live else ""
    detail = detail_of(Pair(None, None, root.reference, root.candidate), root.comparison) if details else None
    return replace(row, reason=given + row.reason, root=True, detail=detail)


def _without_consequences(experiment: Experiment, stages: tuple[StageResult, ...]) -> tuple[StageResult, ...]:
    """Unmark what follows from another root by a way the forced run does not cut.

    Running statistics are computed from whatever reaches them; and where a tie is lost, so is a part of the gradient.
    """
    roots = [tensor for stage in stages for tensor in stage.tensors if tensor.root]
    forward = any(tensor.record in ("parameter", "buffer", "input", "activation") for tensor in roots)
    outputs = [tensor for stage in stages for tensor in stage.tensors if tensor.record == "activation"]
    # A layer whose output agrees was reached by nothing that is wrong.
    untouched = {path_of(t.name) for t in outputs} - {path_of(t.name) for t in outputs if t.verdict == "diverged"}
    slots = {slot.name: slot for slot in experiment.slots}
    buffers = {name for name, slot in slots.items() if slot.role == "buffer"} if forward else set()
    buffers = {name for name in buffers if name.rpartition(".")[0] not in untouched}
    untied = {t.name for t in roots if t.record == "parameter" and "tied to" in t.reason}
    untied |= {slot.tied_to for name, slot in slots.items() if name in untied and slot.tied_to}

    def follows(tensor: TensorResult) -> bool:
        return (tensor.record == "update" and tensor.name in buffers) or (
            tensor.record == "gradient" and tensor.name in untied
        )

    return tuple(
        replace(stage, tensors=tuple(replace(t, root=t.root and not follows(t)) for t in stage.tensors))
        for stage in stages
    )


def first_is_root(stages: tuple[StageResult, ...]) -> tuple[StageResult, ...]:
    """Call the first tensor that diverges a root, where none is known otherwise."""
    for position, stage in enumerate(stages):
        for index, tensor in enumerate(stage.tensors):
            if tensor.verdict == "diverged":
                marked = (*stage.tensors[:index], replace(tensor, root=True), *stage.tensors[index + 1 :])
                return (*stages[:position], replace(stage, tensors=marked), *stages[position + 1 :])
    return stages


_STEP = {
    "input": 3,
    "activation": 3,
    "logits": 3,
    "output": 3,
    "loss": 4,
    "gradient": 5,
    "input gradient": 5,
    "activation gradient": 5,
}
_RUN = ("activation", "logits", "output", "loss", "metric", "gradient")
