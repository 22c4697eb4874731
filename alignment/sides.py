"""Which side is wrong, without trusting either: identities that each side must satisfy by itself, and finite differences.

Sources: the gradients of a product and of a sum are calculus; softmax and cross entropy sum as their definitions say.
A finite difference is the central one of fourth order, (8(f₁ − f₋₁) − (f₂ − f₋₂)) / 12h (Abramowitz and Stegun, 25.3.6).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, log_softmax, softmax

import checkpoints
from alignment.correspondence import path_of
from alignment.errors import AlignmentError
from alignment.experiment import SIDES
from alignment.localise import FORWARD, Root, Scene
from alignment.trace import GRADIENT_OF, Kind, Trace
from checkpoints import undo

Array = NDArray

# Of the sum of the magnitudes of all terms: float64 rounding stays four orders below it, the smallest fault known well above.
IDENTITY_LIMIT = 1e-12
# A finite difference is believed where it is this much nearer to one side's gradient than the two are to each other.
DIFFERENCE_LIMIT = 0.02
STEP = 1e-4
# Layers whose identities need their weight as it is stored; a weight norm stores another.
WEIGHTED = ("Linear", "Embedding")
DERIVATIVE = "(L(w + hv) − L(w − hv)) / 2h = ⟨∂w, v⟩"


@dataclass(frozen=True)
class Law:
    """One identity on both sides. off: side -> largest violation, as a share of the summands' size; holds: side -> kept?"""

    text: str
    where: str
    off: dict[str, float]
    holds: dict[str, bool]

    @property
    def guilty(self) -> str | None:
        """The side that breaks it where the other keeps it."""
        broken = [side for side in SIDES if not self.holds.get(side, True)]
        return broken[0] if len(broken) == 1 and len(self.holds) == len(SIDES) else None

    def describe(self) -> str:
        """In words, with figures."""
        parts = [
            f"the {side} {'satisfies' if self.holds[side] else 'breaks'} it (off by {self.off[side]:.1g})"
            for side in self.holds
        ]
        return f"{self.text} at {self.where}: {'; '.join(parts)}"


def laws(scene: Scene, root: Root) -> list[Law]:
    """Every identity that concerns a root, checked inside each side's own run; differences only where it can be run again."""
    off: dict[str, dict[str, float]] = {}
    for side in SIDES:
        for text, violation, size in _identities(scene, root, side):
            share = violation / size if size else violation
            sides = off.setdefault(text, {})
            sides[side] = max(share, sides.get(side, 0.0))
    where = root.owner or "the model"
    found = [
        Law(text, where, sides, {side: share <= IDENTITY_LIMIT for side, share in sides.items()})
        for text, sides in off.items()
    ]
    if scene.live and (root.kind == "gradient" or root.kind in GRADIENT_OF.values()):
        found += _finite_difference(scene, root)
    return found


def attribute(root: Root, found: Iterable[Law]) -> tuple[str, str]:
    """The side that is wrong, and why it is said to be."""
    found = list(found)
    broken = [law for law in found if law.guilty is not None]
    # A weight that is used beside its own layer breaks the layer's identities, and its gradient is right all the same.
    right = {side for law in found if law.text == DERIVATIVE for side in SIDES if law.holds[side]}
    identities = [law for law in broken if law.text != DERIVATIVE and law.guilty not in right]
    identities = identities or [law for law in broken if law.text == DERIVATIVE]
    if identities and (identities[0].text, identities[0].guilty) == (DERIVATIVE, "reference"):
        return "candidate", (
            "the reference's gradient is not the derivative of its own loss here, as with a stop-gradient, a custom "
            "backward pass or a kink, and the candidate's is; the reference is the truth by definition"
        )
    if identities:
        side, where = identities[0].guilty, identities[0].where
        assert side is not None
        laws_broken = " and ".join(law.text for law in identities if law.guilty == side)
        other = next(one for one in SIDES if one != side)
        them = "it" if " and " not in laws_broken else "them"
        return side, f"the {side} breaks {laws_broken} at {where}; the {other} satisfies {them}"
    if root.candidate is None:
        return "candidate", "the candidate has no such tensor"
    return (
        "candidate",
        "each side is consistent in itself, so the two compute different functions; the reference is the truth by definition",
    )


# --------------------------------------------------------------------------------------------------------- identities

Terms = tuple[str, float, float]  # the law, its largest violation, the size of its summands


def _identities(scene: Scene, root: Root, side: str) -> Iterator[Terms]:
    trace = scene.reference64 if side == "reference" else scene.candidate64
    view = _View(scene, trace, side, root.owner)
    rules = {
        "Linear": _linear,
        "Embedding": _embedding,
        "Softmax": _softmax,
        "LayerNorm": _layer_norm,
        "GELU": _gelu,
        "Dropout": _dropout,
        "CrossEntropyLoss": _cross_entropy,
    }
    rule = rules.get(view.kind)
    if rule is not None and view.complete and (view.kind not in WEIGHTED or "weight" in view.weights):
        yield from rule(view)


class _View:
    """One module in one side's own trace, in the reference's names and layout."""

    def __init__(self, scene: Scene, trace: Trace, side: str, path: str) -> None:
        self.path, self.side = path, side
        experiment = scene.experiment
        modules = {m.path: m for m in experiment.reference.modules(experiment.reference_model)}
        self.kind = modules[path].kind if path in modules and not modules[path].own else ""
        own = path if side == "reference" else experiment.paths.get(path, path)
        framework, _ = experiment.side(side)
        self.options = framework.options(scene.model(side, "float64"), own)
        self.calls = [name for name in trace.names("activation") if path_of(name) == path]
        self.inputs = [trace.get("input", name) for name in self.calls]
        self.others = [trace.get("input", f"{name}[1]") for name in self.calls]
        self.outputs = [trace.get("activation", name) for name in self.calls]
        self.output_gradients = [trace.get("activation gradient", name) for name in self.calls]
        self.input_gradients = [trace.get("input gradient", name) for name in self.calls]
        state = scene.state
        if side == "candidate":
            given = scene.candidate_state
            state = {name: undo(given[move.target], move) for name, move in scene.moves.items()}
        prefix = f"{path}."
        local = {n.removeprefix(prefix) for n in scene.moves if n.startswith(prefix) and "." not in n[len(prefix) :]}
        self.weights = {name: np.asarray(state[prefix + name], dtype=np.float64) for name in local}
        slots = experiment.slots
        tied = {slot.tied_to for slot in slots if slot.tied_to} | {slot.name for slot in slots if slot.tied_to}
        self.gradients = {
            name: trace.get("gradient", prefix + name)
            if side == "reference"
            else scene.value(trace, "gradient", prefix + name)
            for name in local
            if prefix + name not in tied
        }
        self.logits = trace.get("logits", "logits")
        self.is_last = bool(self.outputs) and _same(self.outputs[-1], self.logits)
        self.softmax_loss = scene.experiment.twin.loss in ("model", "criterion")

    @property
    def complete(self) -> bool:
        return bool(self.calls) and all(value is not None for value in (*self.inputs, *self.outputs))

    def pairs(self) -> Iterator[tuple[Array, Array]]:
        """(input, output) of each call."""
        yield from zip((_wide(x) for x in self.inputs), (_wide(y) for y in self.outputs), strict=True)

    def flows(self) -> list[tuple[Array, Array]]:
        """(input, gradient of the output) of each call through which something flows."""
        flows = zip(self.inputs, self.output_gradients, strict=True)
        return [(_rows(x), _rows(g)) for x, g in flows if x is not None and g is not None]


def _linear(view: _View) -> Iterator[Terms]:
    weight, bias = view.weights["weight"], view.weights.get("bias", np.zeros(1))
    for x, y in view.pairs():
        yield _terms("y = xWᵀ + b", y, x @ weight.T + bias, np.abs(x) @ np.abs(weight.T) + np.abs(bias))
    flows = view.flows()
    if not flows:
        return
    gradient = view.gradients.get("bias")
    if gradient is not None:
        due, size = sum(g.sum(0) for _, g in flows), sum(np.abs(g).sum(0) for _, g in flows)
        yield _terms("∂b = Σ∂y", gradient, np.asarray(due), np.asarray(size))
        if (
            view.is_last
            and view.softmax_loss
            and gradient.size > 1
            and abs(float(np.sum(due))) < 1e-9 * float(np.sum(size))
        ):
            zero = np.zeros(())
            yield _terms(
                "Σ_classes ∂b = 0", np.asarray(gradient.sum()), zero, np.abs(gradient).sum() + np.asarray(size).sum()
            )
    gradient = view.gradients.get("weight")
    if gradient is not None:
        due = sum(g.T @ x for x, g in flows)
        yield _terms("∂W = ∂yᵀx", gradient, np.asarray(due), np.asarray(sum(np.abs(g).T @ np.abs(x) for x, g in flows)))
    for (_, g), dx in zip(flows, view.input_gradients, strict=False):
        if dx is not None:
            yield _terms("∂x = ∂y·W", _rows(dx), g @ weight, np.abs(g) @ np.abs(weight))


def _embedding(view: _View) -> Iterator[Terms]:
    table, gradient = view.weights["weight"], view.gradients.get("weight")
    for ids, output in zip(view.inputs, view.outputs, strict=True):
        assert ids is not None
        rows = table[ids.astype(np.int64)]
        yield _terms("y = E[ids]", _wide(output), rows, np.abs(rows))
    if gradient is None:
        return
    looked_up = np.zeros(len(table), dtype=bool)
    due, size = np.zeros_like(table), np.zeros_like(table)
    for ids, g in zip(view.inputs, view.output_gradients, strict=True):
        if ids is None or g is None:
            return
        flat = ids.astype(np.int64).ravel()
        looked_up[flat] = True
        np.add.at(due, flat, _rows(g))
        np.add.at(size, flat, np.abs(_rows(g)))
    # A row that never trains (padding) may be zero though it was looked up.
    quiet = ~gradient.any(-1)
    yield _terms("∂E[r] = Σ ∂y where ids = r", gradient[~quiet], due[~quiet], size[~quiet])
    yield _terms(
        "∂E = 0 where nothing was looked up", gradient[~looked_up], np.zeros_like(gradient[~looked_up]), np.zeros(1)
    )


def _softmax(view: _View) -> Iterator[Terms]:
    dim = view.options.get("dim", -1)
    for x, y in view.pairs():
        # What torch takes where no axis was given.
        axis = int(dim) if dim is not None else 0 if y.ndim in (0, 1, 3) else 1
        yield _terms("Σ outputs = 1", y.sum(axis), np.ones(y.sum(axis).shape), np.ones(1))
        yield _terms("y = softmax(x)", y, np.asarray(softmax(x, axis)), np.ones(1))


def _layer_norm(view: _View) -> Iterator[Terms]:
    weight, bias, eps = view.weights.get("weight"), view.weights.get("bias"), float(view.options.get("eps", 1e-5))
    for x, y in view.pairs():
        axes = tuple(range(-(1 if weight is None else weight.ndim), 0))
        centred = x - x.mean(axes, keepdims=True)
        variance = (centred * centred).mean(axes, keepdims=True)
        due = centred / np.sqrt(variance + eps)
        due = due if weight is None else due * weight
        yield _terms(
            "y = w·(x − μ)/√(σ² + ε) + b, with its own ε", y, due if bias is None else due + bias, np.abs(y) + 1
        )


def _gelu(view: _View) -> Iterator[Terms]:
    for x, y in view.pairs():
        if view.options.get("approximate") == "tanh":
            due = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
            yield _terms("y = GELU(x) by tanh, as its option says", y, due, np.abs(x))
        else:
            yield _terms(
                "y = x·Φ(x), as its option says", y, 0.5 * x * (1 + np.asarray(erf(x / np.sqrt(2)))), np.abs(x)
            )


def _dropout(view: _View) -> Iterator[Terms]:
    for x, y in view.pairs():
        yield _terms("y = x in evaluation mode", y, x, np.abs(x))


def _cross_entropy(view: _View) -> Iterator[Terms]:
    targets, logits = view.others[0], view.inputs[0]
    if targets is None or logits is None or logits.ndim != 2 or targets.dtype.kind != "i":
        return
    smoothed, weighted = bool(view.options.get("label_smoothing")), "weight" in view.weights
    if view.options.get("reduction", "mean") == "mean" and (targets >= 0).all() and not smoothed and not weighted:
        losses = -log_softmax(_wide(logits), -1)[np.arange(len(targets)), targets]
        yield _terms(
            "L = mean(−log softmax(logits)[target])", _wide(view.outputs[0]), np.asarray(losses.mean()), losses.mean()
        )
    gradient = view.input_gradients[0]
    if gradient is not None:
        yield _terms("Σ_classes ∂logits = 0", _wide(gradient).sum(-1), np.zeros(len(targets)), np.abs(gradient).sum(-1))


def _terms(text: str, value: Array, due: Array, size: Array | float) -> Terms:
    if value.shape != due.shape:
        return text, np.inf, 1.0
    # A float64 result of normal size is exact to 1e-16 of its summands; what is smaller than any of them is no violation.
    return text, float(np.abs(value - due).max(initial=0.0)), float(np.max(size, initial=0.0))


# -------------------------------------------------------------------------------------------------- finite differences


def _finite_difference(scene: Scene, root: Root) -> Iterator[Law]:
    """Both sides' gradients against differences of their own function, in the direction in which they disagree."""
    assert root.reference is not None
    theirs = np.zeros_like(root.reference) if root.candidate is None else root.candidate
    if theirs.shape != root.reference.shape or not np.isfinite(theirs).all():
        return
    disagreement = _wide(theirs) - _wide(root.reference)
    size = float(np.linalg.norm(disagreement))
    if size == 0.0:
        return
    direction = disagreement / size
    slopes = {"reference": float((root.reference * direction).sum()), "candidate": float((theirs * direction).sum())}
    off, holds = {}, {}
    for side in SIDES:
        try:
            slope = _slope(scene, root, side, direction)
        except AlignmentError:
            return
        off[side] = abs(slope - slopes[side]) / size
        holds[side] = off[side] < DIFFERENCE_LIMIT
    yield Law(DERIVATIVE, root.name, off, holds)


def _slope(scene: Scene, root: Root, side: str, direction: Array) -> float:
    def value(step: float) -> float:
        if root.kind == "gradient":
            return _loss(scene, root.name, side, step * direction)
        return _work(scene, root, side, step * direction)

    return (8 * (value(STEP) - value(-STEP)) - (value(2 * STEP) - value(-2 * STEP))) / (12 * STEP)


def _loss(scene: Scene, parameter: str, side: str, change: Array) -> float:
    """A side's own loss with one parameter moved."""
    model = scene.model(side, "float64")
    state = {**scene.state, parameter: _wide(scene.state[parameter]) + change}
    experiment = scene.experiment
    assert experiment.layout is not None
    state |= {slot.name: state[parameter] for slot in experiment.slots if slot.tied_to == parameter}
    state = checkpoints.join(state, experiment.layout)
    if side == "candidate":
        dtypes = {name: str(value.dtype) for name, value in state.items()}
        state = experiment.converted(state, checkpoints.retype(experiment.layout, dtypes))
    framework, _ = experiment.side(side)
    framework.load_state(model, state)
    try:
        loss = experiment.run(side, model, scene.batch, backward=False).get("loss", "loss")
    finally:
        scene.load(side, model, scene.state)
    return float("nan") if loss is None else float(np.sum(loss))


def _work(scene: Scene, root: Root, side: str, change: Array) -> float:
    """What the pieces around one tensor make of it, weighted by the reference's gradients: its slope is the tensor's gradient."""
    flow: Kind = next(flow for flow, gradient in GRADIENT_OF.items() if gradient == root.kind)
    x = scene.reference64.get(flow, root.name)
    trace = scene.forced(given={(flow, root.name): _wide(x) + change}, side=side)
    total = 0.0
    for record in trace.records:
        gradient = scene.reference64.get(GRADIENT_OF[record.kind], record.name) if record.kind in FORWARD else None
        same = gradient is not None and record.value is not None and record.value.shape == gradient.shape
        if same and (record.kind, record.name) != (flow, root.name):
            total += float((_wide(record.value) * gradient).sum())
    loss = trace.get("loss", "loss")
    return total + (0.0 if loss is None else float(np.sum(loss)))


def _rows(value: Array) -> Array:
    return _wide(value).reshape(-1, value.shape[-1])


def _same(one: Array | None, two: Array | None) -> bool:
    return one is not None and two is not None and one.size == two.size and bool((one.ravel() == two.ravel()).all())


def _wide(value: Array | None) -> Array:
    return np.asarray(value, dtype=np.float64)
