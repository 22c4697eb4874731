"""A script for a root divergence: it runs the one module on both sides, on the reference's own values, and shows what differs.

It needs the two frameworks, NumPy and the two models; not this toolkit, unless a fault was planted by it.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import checkpoints
from alignment.check import Checked
from alignment.correspondence import path_of
from alignment.faults import FAULTS
from alignment.localise import Root, Scene, row_of
from alignment.twins import TWINS
from checkpoints import write_aside
from checkpoints.layouts import Operation


def write_repros(checked: Checked, folder: Path) -> list[Path]:
    """Write `NAME.py` and `NAME.npz` for every root that was found by running the models; returns the scripts."""
    written = []
    seen = set()
    for scene in checked.scenes:
        for root in scene.roots:
            here = {root.owner, *([] if root.kind == "gradient" else [path_of(root.name)])} <= set(
                scene.experiment.paths
            )
            if row_of(root) in seen or root.candidate is None or root.reference is None or not here:
                continue
            seen.add(row_of(root))
            stem = re.sub(r"\W+", "_", f"{root.kind} {root.name}").strip("_")
            with write_aside(folder / f"{stem}.npz") as file:
                file.write(_arrays(scene, root))
            with write_aside(folder / f"{stem}.py") as file:
                file.write(_script(scene, root, stem, str(checked.report.twins[0].options["twin"])).encode())
            written.append(folder / f"{stem}.py")
    return written


def _arrays(scene: Scene, root: Root) -> bytes:
    owner, call = root.owner, _call(root)
    arrays: dict[str, Any] = {"reference": root.reference, "candidate": root.candidate}
    prefix = f"{owner}." if owner else ""
    assert scene.experiment.layout is not None
    state = scene.experiment.weights[scene.weights]
    converted = checkpoints.convert(state, scene.experiment.layout)
    for move in scene.moves.values():
        if move.source.startswith(prefix):
            arrays[f"reference_weight/{move.source}"] = state[move.source]
            arrays[f"candidate_weight/{move.target}"] = converted[move.target]
    for index, value in _inputs(scene, owner, call):
        arrays[f"input/{index}"] = value
    for record in scene.reference64.records:
        if record.kind == "activation gradient" and record.name.partition("[")[0] == call and record.value is not None:
            arrays[f"output_gradient/{_index(record.name)}"] = record.value
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _call(root: Root) -> str:
    """The call of the owner in which the root was seen; a parent's is taken to be its first."""
    return root.name.partition("[")[0] if path_of(root.name) == root.owner else root.owner


def _inputs(scene: Scene, owner: str, call: str) -> Iterable[tuple[int, Any]]:
    if not owner:
        batch = scene.batch
        targets = [] if batch.targets is None or scene.experiment.twin.loss == "criterion" else [batch.targets]
        yield from enumerate((*batch.inputs.values(), *targets))
        return
    for record in scene.reference64.records:
        if record.kind == "input" and record.name.partition("[")[0] == call and record.value is not None:
            yield _index(record.name), record.value


def _index(label: str) -> int:
    match = re.search(r"\[(\d+)[\d.]*\]$", label)
    return int(match[1]) if match else 0


def _script(scene: Scene, root: Root, stem: str, address: str) -> str:
    experiment = scene.experiment
    twin = experiment.twin
    operation: Operation = "copy"
    name = candidate_name = root.name
    part = candidate_part = None
    if root.kind == "gradient" and root.name in scene.moves:
        move = scene.moves[root.name]
        operation, name, candidate_name = move.operation, move.source, move.target
        part, candidate_part = ((p.index, p.count) if p else None for p in (move.part_from, move.part_to))
    child = root.owner if root.kind == "gradient" else path_of(root.name)
    faults = [
        (fault.name, one if isinstance(one, str) else _address(fault, fault.plant, FAULTS))
        for one, fault in zip(experiment.options.faults, experiment.faults, strict=True)
        if fault.plant is not None
    ]
    twin_address = address if ":" in address else _address(twin, twin.inputs, TWINS)
    named = [at for _, at in faults if at is not None] if twin_address else []
    return TEMPLATE.format(
        what=f"{root.kind} of {root.name}" if "gradient" in root.kind else f"{root.kind} {root.name}",
        stem=stem,
        kind=root.kind,
        label=name,
        part=part,
        candidate_part=candidate_part,
        candidate_label=candidate_name,
        reference_target=twin.reference.target,
        candidate_target=twin.candidate.target,
        reference_settings=dict(experiment.settings) | dict(twin.reference.settings),
        candidate_settings=dict(experiment.settings) | dict(twin.candidate.settings),
        reference_framework=experiment.reference.name,
        candidate_framework=experiment.candidate.name,
        owner=root.owner,
        candidate_owner=experiment.paths[root.owner],
        child=child,
        candidate_child=experiment.paths[child],
        transpose=operation == "transpose",
        planted=named,
        unnamed=[name for name, at in faults if at not in named],
        twin=twin_address,
        criterion=twin.loss == "criterion",
    )


def _address(value: object, code: object, built_in: Mapping[str, object]) -> str | None:
    """What a script can call a fault or twin that was given as an object: its name, or its place beside its own code."""
    for name, known in built_in.items():
        if known is value:
            return name
    module = str(getattr(code, "__module__", ""))
    for name, known in vars(sys.modules.get(module)).items() if module in sys.modules and module != "__main__" else ():
        if known is value:
            return f"{module}:{name}"
    return None


TEMPLATE = '''"""One divergence alone: {what}.

Runs the module {owner!r} of both models on the values that the reference's was given, in float64, and compares.
Needs the two frameworks, NumPy and the two models. Exit status: 1 while the two differ, 0 once they agree, 2 where it can't run.
"""

import importlib
import sys
from functools import partial
from pathlib import Path

import numpy as np
import paddle
import torch

DATA = np.load(Path(__file__).resolve().with_name("{stem}.npz"))
KIND, LABEL = {kind!r}, {label!r}
PLANTED = {planted!r}  # faults that alignment planted on the candidate; none in a real port
UNNAMED = {unnamed!r}  # faults it planted that were handed over as objects: no script can name them
if UNNAMED:
    print(
        "can't plant " + ", ".join(UNNAMED) + ": a fault or twin that is an attribute of no module has no name here, and "
        "without it the two models agree. Give it as package.module:attribute, and write this script again.",
        file=sys.stderr,
    )
    sys.exit(2)


def build(target, settings):
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)(**settings)


def arguments(tensor):
    """The inputs of the module by position; what was no tensor is left as None."""
    given = {{int(key.partition("/")[2]): DATA[key] for key in DATA.files if key.startswith("input/")}}
    return [tensor(given[i]) if i in given else None for i in range(max(given, default=-1) + 1)]


def index_of(label):
    return int(label.rpartition("[")[2][:-1]) if label.endswith("]") else 0


def widen(framework, model):
    """The model in float64. Paddle's recurrent layers can't be cast as they are, and have gradients in training mode alone."""
    if framework == "torch":
        model.double()
        return
    layers = model.sublayers(include_self=True)
    states = [(layer, layer._buffers.pop("_dropout_state", None)) for layer in layers]
    model.to(dtype="float64")
    for layer, state in states:
        if state is not None:
            layer._buffers["_dropout_state"] = state
            layer.training, layer.dropout = True, 0.0
        if isinstance(layer, paddle.nn.RNNCellBase):
            layer.get_initial_states = partial(layer.get_initial_states, dtype="float64")


def cut(value, part):
    """One of several equal parts of a tensor that holds them one after another; part: (which, of how many) or None."""
    return value if part is None else np.split(value, part[1])[part[0]]


def run(framework, model, owner, child, prefix, parameter):
    """The tensor in question, as this side computes it."""
    is_torch = framework == "torch"
    tensor = torch.from_numpy if is_torch else paddle.to_tensor
    modules = dict(model.named_modules() if is_torch else model.named_sublayers(include_self=True))
    state = model.state_dict()
    with torch.no_grad(), paddle.no_grad():
        for key in DATA.files:
            if key.startswith(prefix):
                own, value = state[key.removeprefix(prefix)], DATA[key]
                given = tensor(value)
                own.copy_(given) if is_torch else own.set_value(given.astype(own.dtype))
    seen = {{}}

    def before(_module, given):
        seen.setdefault("input", given)

    def after(_module, _given, output):
        seen.setdefault("output", output)

    if child != owner:
        modules[child].register_forward_pre_hook(before)
        (modules[child].register_forward_hook if is_torch else modules[child].register_forward_post_hook)(after)
    inputs = arguments(tensor)
    for value in inputs:
        if value is not None and (value.is_floating_point()):
            value.requires_grad_() if is_torch else setattr(value, "stop_gradient", False)
    output = modules[owner](*inputs)
    if KIND == "input":
        return seen["input"][index_of(LABEL)].detach().numpy()
    several = output if isinstance(output, (tuple, list)) else [output]
    if KIND in ("activation", "logits", "loss"):
        return several[index_of(LABEL)].detach().numpy()
    if "output" in seen and not is_torch:
        seen["output"].retain_grads()
    elif "output" in seen:
        seen["output"].retain_grad()
    total = sum(
        (several[int(key.partition("/")[2])] * tensor(DATA[key])).sum()
        for key in DATA.files
        if key.startswith("output_gradient/")
    )
    (several[0].sum() if isinstance(total, int) else total).backward()
    if KIND == "gradient":
        return dict(model.named_parameters())[parameter].grad.numpy()
    if KIND == "activation gradient":
        return seen["output"].grad.numpy()
    return inputs[index_of(LABEL)].grad.numpy()


def relative(one, two):
    one, two = np.asarray(one, dtype=np.float64), np.asarray(two, dtype=np.float64)
    return float(np.linalg.norm(one - two) / max(np.linalg.norm(two), 1e-300))


reference = build({reference_target!r}, {reference_settings!r})
candidate = build({candidate_target!r}, {candidate_settings!r})
if {criterion!r}:
    reference.criterion, candidate.criterion = torch.nn.CrossEntropyLoss(), paddle.nn.CrossEntropyLoss()
for model in (reference, candidate):
    model.eval()
widen({reference_framework!r}, reference)
widen({candidate_framework!r}, candidate)
if PLANTED:
    from alignment.faults import get_fault
    from alignment.frameworks import get_framework
    from alignment.twins import get_twin

    for name in PLANTED:
        get_fault(name).plant(get_framework({candidate_framework!r}), candidate, get_twin({twin!r}))

ours = run({reference_framework!r}, reference, {owner!r}, {child!r}, "reference_weight/", LABEL)
theirs = run(
    {candidate_framework!r}, candidate, {candidate_owner!r}, {candidate_child!r}, "candidate_weight/", {candidate_label!r}
)
ours, theirs = cut(ours, {part!r}), cut(theirs, {candidate_part!r})
theirs = theirs.T if {transpose!r} else theirs
print("{what}")
print("reference now against the reference as recorded: relative L2", relative(ours, DATA["reference"]))
print("candidate now against the candidate as recorded: relative L2", relative(theirs, DATA["candidate"]))
print("candidate now against the reference now:         relative L2", relative(theirs, ours))
print("reference:", ours.ravel()[:5], "candidate:", theirs.ravel()[:5])
# Element by element: what a mask fills in must not hide what stands beside it.
size = np.abs(ours).astype(np.float64)
sys.exit(int(np.any(np.abs(theirs - ours.astype(np.float64)) > 1e-9 * (size + np.median(size)))))
'''
