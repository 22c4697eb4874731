"""A script for a root divergence: it runs the one module on both sides, on the reference's own values, and shows what differs.

It needs the two frameworks, NumPy and the two models; not this toolkit, unless a fault was planted by it.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.check import Checked
from alignment.correspondence import path_of
from alignment.errors import AlignmentError
from alignment.experiment import SIDES, Options
from alignment.expressions import address_of, call_text
from alignment.faults import FAULTS
from alignment.localise import END, Root, Scene, row_of
from alignment.structures import leaves, restore
from alignment.trace import Kind, Trace
from alignment.twins import TWINS, Twin
from checkpoints import write_aside
from checkpoints.layouts import Operation


def write_repros(checked: Checked, folder: Path) -> list[Path]:
    """Write `NAME.py` and `NAME.npz` for every root that was found by running the models; returns the scripts.

    Raises:
        AlignmentError: no script can build the models; see `refuse_unnamed`.
    """
    written = []
    seen = set()
    for scene in checked.scenes:
        for root in scene.roots:
            named = {root.owner} if root.kind in (*END, "gradient") else {root.owner, path_of(root.name)}
            here = named <= set(scene.experiment.paths)
            if row_of(root) in seen or root.candidate is None or root.reference is None or not here:
                continue
            refuse_unnamed(scene.experiment.twin, scene.experiment.options)
            seen.add(row_of(root))
            stem = re.sub(r"\W+", "_", f"{root.kind} {root.name}").strip("_")
            with write_aside(folder / f"{stem}.npz") as file:
                file.write(_arrays(scene, root))
            with write_aside(folder / f"{stem}.py") as file:
                file.write(_script(scene, root, stem, str(checked.report.twins[0].options["twin"])).encode())
            written.append(folder / f"{stem}.py")
    return written


def refuse_unnamed(twin: Twin, options: Options) -> None:
    """Refuse what no script can do by itself.

    Raises:
        AlignmentError: a model or a loss was handed over and has no name under which a script finds what makes it; or dropout
            is seeded, whose masks a script has not.
    """
    if "seeded" in (options.dropout, twin.dropout):
        raise AlignmentError("a script has not the masks of seeded dropout: write it of a check with frozen dropout")
    for name, side in zip(SIDES, (twin.reference, twin.candidate), strict=True):
        if _named(side.target) is None:
            raise AlignmentError(
                f"the {name} ({side.name}) was handed over in Python, and a script can't name it: give the class or a function "
                f'that builds it by name, Side("{side.framework}", "package.module:make_model"), in a module that can be '
                "imported"
            )
        if twin.loss == "function" and _named(side.loss) is None:
            raise AlignmentError(
                f"the {name}'s loss was handed over in Python, and a script can't name it: give a function of a module that "
                'can be imported, Side(…, loss="package.module:my_loss")'
            )


def _named(target: Any) -> str | None:
    """``"module:name"`` of a class or function; None where a script finds none under it."""
    if not isinstance(target, str):
        return address_of(target)
    return None if target.partition(":")[0] in ("__main__", "__mp_main__") else target


@dataclass(frozen=True)
class _Call:
    """One call of the owner: its label (``"enc#2"``), and which of the child's calls in it is meant."""

    label: str
    occurrence: int = 0


def _calls(scene: Scene, root: Root) -> list[_Call]:
    """The calls of the owner that a script makes: all of them for a parameter's gradient, which is a sum over them."""
    began, child = list(scene.reference64.calls), root.name.partition("[")[0]
    if root.owner and root.kind == "gradient":
        return [_Call(label) for label in began if path_of(label) == root.owner]
    if child not in began or path_of(child) == root.owner:
        return [_Call(child if root.owner else "")]
    before = began[: began.index(child)]
    label = next((label for label in reversed(before) if path_of(label) == root.owner), "")
    inside = before[before.index(label) :] if label else before
    return [_Call(label, sum(path_of(one) == path_of(child) for one in inside))]


class _Place(str):
    """Stands for a tensor of the batch, by its name there, in the model's own call."""


def _own_call(scene: Scene) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Arguments, keywords and targets of a call of the whole model, with a `_Place` for every tensor."""
    batch = scene.batch
    names = {name: _Place(name) for name in batch.inputs}
    targets: Any = None if batch.targets is None else _Place("targets")
    arguments: list[Any] = list(names.values())
    keywords: dict[str, Any] = {}
    if batch.structure is not None:
        arguments, keywords, nested = restore(batch.structure, names)
        targets = nested if targets is None else targets
    if scene.experiment.twin.loss == "model" and targets is not None:
        arguments = [*arguments, targets]
    return tuple(arguments), keywords, targets


def _is_place(value: Any) -> bool:
    return isinstance(value, _Place)


def _call_texts(scene: Scene, calls: list[_Call], trace: Trace) -> list[str]:
    """What the owner is called with, as source text; by this side's run, or the reference's where that has no such call."""
    if calls[0].label:
        return [trace.calls.get(call.label) or scene.reference64.calls[call.label] for call in calls]
    arguments, keywords, _ = _own_call(scene)
    return [call_text(arguments, keywords, _is_place)]


def _arrays(scene: Scene, root: Root) -> bytes:
    arrays: dict[str, Any] = {"reference": root.reference, "candidate": root.candidate}
    experiment = scene.experiment
    state = experiment.weights[scene.weights]
    owners = (root.owner, experiment.paths[root.owner])
    for side, own, owner in zip(SIDES, (state, experiment.converted(state)), owners, strict=True):
        prefix = f"{owner}." if owner else ""
        arrays |= {f"{side}_weight/{name}": value for name, value in own.items() if name.startswith(prefix)}
    for number, call in enumerate(_calls(scene, root)):
        for place, value in _inputs(scene, call.label):
            arrays[place.replace("input/", f"input/{number}/", 1)] = value
        for place, value in _places(scene.reference64, "activation gradient", call.label):
            arrays[f"output_gradient/{number}/{place}"] = value
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _inputs(scene: Scene, call: str) -> Iterator[tuple[str, NDArray]]:
    """``"input/PLACE"`` and its value of all that the owner is given; ``"candidate_input/PLACE"`` of what is its own."""
    if not call:
        batch = scene.batch
        given = batch.inputs if batch.targets is None else {**batch.inputs, "targets": batch.targets}
        arguments, keywords, targets = _own_call(scene)
        for place, leaf in (*leaves(arguments), *leaves({**keywords, "targets": targets})):
            if _is_place(leaf):
                yield f"input/{place}", given[leaf]
        return
    ours = dict(_places(scene.reference64, "input", call))
    yield from ((f"input/{place}", value) for place, value in ours.items())
    for place, value in _places(scene.forced_run, "input", call):
        known = ours.get(place)
        # As in a forced run: what the reference has no value of the same form for stays.
        if known is None or known.shape != value.shape or (known.dtype.kind == "f") != (value.dtype.kind == "f"):
            yield f"candidate_input/{place}", value


def _places(trace: Trace, kind: Kind, call: str) -> Iterator[tuple[str, NDArray]]:
    """(place, value) of the tensors of one kind of a call: ``"0"``, ``"mask"``, ``"1.past.0"``; an output alone is at ``""``."""
    for record in trace.records:
        if record.kind == kind and record.name.partition("[")[0] == call and record.value is not None:
            yield _place(kind, record.name), record.value


def _place(kind: str, name: str) -> str:
    _, bracket, place = name.partition("[")
    return place[:-1] if bracket else "0" if kind in ("input", "input gradient") else ""


def _script(scene: Scene, root: Root, stem: str, address: str) -> str:
    experiment = scene.experiment
    twin = experiment.twin
    operation: Operation = "copy"
    parameter = candidate_parameter = None
    part = candidate_part = None
    if root.kind == "gradient" and root.name in scene.moves:
        move = scene.moves[root.name]
        operation, parameter, candidate_parameter = move.operation, move.source, move.target
        part, candidate_part = ((p.index, p.count) if p else None for p in (move.part_from, move.part_to))
    child = root.owner if root.kind in (*END, "gradient") else path_of(root.name)
    calls = _calls(scene, root)
    faults = [
        (fault.name, one if isinstance(one, str) else _address(fault, fault.plant, FAULTS))
        for one, fault in zip(experiment.options.faults, experiment.faults, strict=True)
        if fault.plant is not None
    ]
    twin_address = address if ":" in address else _address(twin, twin.inputs, TWINS)
    named = [at for _, at in faults if at is not None] if twin_address else []
    _, _, targets = _own_call(scene)
    losses = [_named(side.loss) if twin.loss == "function" else None for side in (twin.reference, twin.candidate)]
    return TEMPLATE.format(
        what=f"{root.kind} of {root.name}" if "gradient" in root.kind else f"{root.kind} {root.name}",
        stem=stem,
        kind=root.kind,
        place=_place(root.kind, root.name),
        occurrence=calls[0].occurrence,
        part=part,
        candidate_part=candidate_part,
        parameter=parameter,
        candidate_parameter=candidate_parameter,
        reference_target=_named(twin.reference.target),
        candidate_target=_named(twin.candidate.target),
        reference_settings=_keywords({**experiment.settings, **twin.reference.settings}),
        candidate_settings=_keywords({**experiment.settings, **twin.candidate.settings}),
        reference_framework=experiment.reference.name,
        candidate_framework=experiment.candidate.name,
        reference_calls=_lambdas(_call_texts(scene, calls, scene.reference64)),
        candidate_calls=_lambdas(_call_texts(scene, calls, scene.forced_run)),
        targets=_lambdas([call_text((), {"targets": targets}, _is_place)]),
        reference_loss=losses[0],
        candidate_loss=losses[1],
        loss=twin.loss,
        mode=experiment.mode,
        owner=root.owner,
        candidate_owner=experiment.paths[root.owner],
        child=child,
        candidate_child=experiment.paths[child],
        transpose=operation == "transpose",
        planted=named,
        unnamed=[name for name, at in faults if at not in named],
        twin=twin_address,
    )


def _keywords(settings: Mapping[str, Any]) -> str:
    """Constructor keywords as source text."""
    return call_text((), settings, lambda _: False).removeprefix("(), ")


def _lambdas(texts: list[str]) -> str:
    return "[" + ", ".join(f"lambda given: ({text})" for text in texts) + "]"


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

import dataclasses
import importlib
import sys
from functools import partial, reduce
from pathlib import Path

import numpy as np
import paddle
import torch

DATA = np.load(Path(__file__).resolve().with_name("{stem}.npz"))
KIND, PLACE, OCCURRENCE = {kind!r}, {place!r}, {occurrence!r}  # what is compared; which output or argument; of which call
LOSS, MODE = {loss!r}, {mode!r}
PLANTED = {planted!r}  # faults that alignment planted on the candidate; none in a real port
UNNAMED = {unnamed!r}  # faults it planted that were handed over as objects: no script can name them


def stop(why):
    print(why, file=sys.stderr)
    sys.exit(2)


if UNNAMED:
    stop(
        "can't plant " + ", ".join(UNNAMED) + ": a fault or twin that is an attribute of no module has no name here, and "
        "without it the two models agree. Give it as package.module:attribute, and write this script again."
    )


# ------------------------------------------------------------------------- what the module is called with, on either side


def load(address):
    module, _, name = address.partition(":")
    return reduce(getattr, name.split("."), importlib.import_module(module))


def made(address, parts):
    return load(address)(*parts)


def filled(address, parts):
    "A dataclass or a kind of dict with these parts, whatever its own constructor asks for."
    cls = load(address)
    value = cls.__new__(cls)
    for key, part in parts.items():
        value.__setitem__(key, part) if isinstance(value, dict) else object.__setattr__(value, key, part)
    return value


def missing(kind):
    stop(f"the module is given a {{kind}}, and no script can write that: put in its place below what makes one.")


REFERENCE = {{
    "framework": {reference_framework!r},
    "target": {reference_target!r},
    "settings": lambda: {reference_settings},
    "owner": {owner!r},
    "child": {child!r},
    "parameter": {parameter!r},
    "loss": {reference_loss!r},
    "calls": {reference_calls},
}}
CANDIDATE = {{
    "framework": {candidate_framework!r},
    "target": {candidate_target!r},
    "settings": lambda: {candidate_settings},
    "owner": {candidate_owner!r},
    "child": {candidate_child!r},
    "parameter": {candidate_parameter!r},
    "loss": {candidate_loss!r},
    "calls": {candidate_calls},
}}
TARGETS = {targets}


# ------------------------------------------------------------------------------------------------------------- the tools


def leaves(value, path=""):
    "Place -> leaf of nested tuples, lists, dicts and dataclasses; the value itself is at ''."
    if isinstance(value, (tuple, list)):
        parts = enumerate(value)
    elif isinstance(value, dict):
        parts = value.items()
    elif dataclasses.is_dataclass(value):
        parts = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    else:
        return {{path: value}}
    return {{at: leaf for key, part in parts for at, leaf in leaves(part, f"{{path}}.{{key}}" if path else str(key)).items()}}


def pick(value, place):
    "The tensor at a place; where only one is compared of several (attention), the first."
    found = leaves(value)
    return found[place] if place in found else next(iter(found.values()))


def is_tensor(value):
    return isinstance(value, (torch.Tensor, paddle.Tensor))


def tensor_of(framework, array):
    array = array.astype(np.float64) if array.dtype.kind == "f" else array
    return torch.from_numpy(array.copy()) if framework == "torch" else paddle.to_tensor(array)


def modules_of(framework, model):
    return dict(model.named_modules() if framework == "torch" else model.named_sublayers(include_self=True))


def freeze(framework, model):
    "Dropout lets everything pass, in training mode too."
    for module in modules_of(framework, model).values():
        if any("Dropout" in base.__name__ for base in type(module).__mro__):
            module.eval()
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0


def widen(framework, model):
    "The model in float64. Paddle's recurrent layers can't be cast as they are, and have gradients in training mode alone."
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
    "One of several equal parts of a tensor that holds them one after another; part: (which, of how many) or None."
    return value if part is None else np.split(value, part[1])[part[0]]


def build(side):
    model = load(side["target"])(**side["settings"]())
    if LOSS == "criterion" and not hasattr(model, "criterion"):
        model.criterion = torch.nn.CrossEntropyLoss() if side["framework"] == "torch" else exact_cross_entropy
    model.train() if MODE == "train" else model.eval()
    freeze(side["framework"], model)
    widen(side["framework"], model)
    return model


def exact_cross_entropy(logits, targets):
    "Paddle's own takes no probability to be below exp(-64) on a CPU."
    shifted = logits - logits.max(-1, keepdim=True).detach()
    return (shifted.exp().sum(-1).log() - shifted.take_along_axis(targets[:, None], 1)[:, 0]).mean()


def ends(side, model, output, targets):
    "What the model returned, and the loss of it."
    if LOSS == "model" and targets is not None:
        return output[1], output[0]
    if LOSS == "criterion" and targets is not None:
        return output, model.criterion(output.flatten(0, -2), targets.flatten())
    if LOSS == "function":
        return output, load(side["loss"])(output, targets)
    found = [leaf for leaf in leaves(output).values() if is_tensor(leaf) and leaf.is_floating_point()]
    sizes = [np.random.default_rng(i).standard_normal(tuple(leaf.shape)) for i, leaf in enumerate(found)]
    fixed = [tensor_of(side["framework"], np.asarray(one / np.sqrt(max(1, one.size)))) for one in sizes]
    return output, sum((leaf * one).sum() for leaf, one in zip(found, fixed, strict=True))


def run(side, model, prefix):
    "The tensor in question, as this side computes it."
    framework = side["framework"]
    is_torch, tensor = framework == "torch", partial(tensor_of, framework)
    modules, state = modules_of(framework, model), model.state_dict()
    with torch.no_grad(), paddle.no_grad():
        for key in DATA.files:
            if key.startswith(f"{{prefix}}_weight/"):
                own, value = state[key.partition("/")[2]], tensor(DATA[key])
                own.copy_(value) if is_torch else own.set_value(value.astype(own.dtype))
    seen_inputs, seen_outputs = [], []

    def before(_module, given, keywords=None):
        seen_inputs.append({{**leaves(tuple(given)), **leaves(dict(keywords or {{}}))}})

    def after(_module, _given, output):
        if "gradient" in KIND:
            for leaf in leaves(output).values():
                if is_tensor(leaf) and (leaf.requires_grad if is_torch else not leaf.stop_gradient):
                    leaf.retain_grad() if is_torch else leaf.retain_grads()
        seen_outputs.append(output)

    if side["child"] != side["owner"]:
        child = modules[side["child"]]
        child.register_forward_pre_hook(before, with_kwargs=True)
        (child.register_forward_hook if is_torch else child.register_forward_post_hook)(after)
    totals = []
    for number, call in enumerate(side["calls"]):
        kept = {{}}

        def given(place, number=number, kept=kept):
            names = [f"candidate_input/{{number}}/{{place}}"] if prefix == "candidate" else []
            key = next(key for key in (*names, f"input/{{number}}/{{place}}") if key in DATA.files)
            kept[place] = tensor(DATA[key])
            if "gradient" not in KIND or not kept[place].is_floating_point():
                return kept[place]
            kept[place].requires_grad_() if is_torch else setattr(kept[place], "stop_gradient", False)
            return kept[place].clone() if is_torch else paddle.assign(kept[place])

        arguments, keywords = call(given)
        output = modules[side["owner"]](*arguments, **keywords)
        if KIND == "input":
            return seen_inputs[OCCURRENCE][PLACE].detach().numpy()
        if KIND == "activation":
            return pick(output, PLACE).detach().numpy()
        if not side["owner"]:
            output, loss = ends(side, model, output, TARGETS[0](given)[1]["targets"])
            if KIND in ("logits", "output", "loss"):
                return (loss if KIND == "loss" else pick(output, PLACE)).detach().numpy()
            after(None, None, output)
            totals.append(loss.sum())
            continue
        flows = [key for key in DATA.files if key.startswith(f"output_gradient/{{number}}/")]
        totals += [(pick(output, key.split("/", 2)[2]) * tensor(DATA[key])).sum() for key in flows]
        if not flows:
            floating = (leaf for leaf in leaves(output).values() if is_tensor(leaf) and leaf.is_floating_point())
            totals.append(next(floating).sum())
    sum(totals).backward()
    if KIND == "gradient" and side["parameter"]:
        return dict(model.named_parameters())[side["parameter"]].grad.numpy()
    if KIND == "input gradient":
        return kept[PLACE].grad.numpy()
    return pick(seen_outputs[OCCURRENCE if side["owner"] or KIND != "gradient" else -1], PLACE).grad.numpy()


def relative(one, two):
    return float(np.linalg.norm(one - two) / max(np.linalg.norm(two), 1e-300))


reference, candidate = build(REFERENCE), build(CANDIDATE)
if PLANTED:
    from alignment.faults import get_fault
    from alignment.frameworks import get_framework
    from alignment.twins import get_twin

    for name in PLANTED:
        get_fault(name).plant(get_framework({candidate_framework!r}), candidate, get_twin({twin!r}))

ours = cut(run(REFERENCE, reference, "reference"), {part!r}).astype(np.float64)
theirs = cut(run(CANDIDATE, candidate, "candidate"), {candidate_part!r}).astype(np.float64)
theirs = theirs.T if {transpose!r} else theirs
print("{what}")
print("reference now against the reference as recorded: relative L2", relative(ours, DATA["reference"].astype(np.float64)))
print("candidate now against the candidate as recorded: relative L2", relative(theirs, DATA["candidate"].astype(np.float64)))
print("candidate now against the reference now:         relative L2", relative(theirs, ours))
print("reference:", ours.ravel()[:5], "candidate:", theirs.ravel()[:5])
# Element by element: what a mask fills in must not hide what stands beside it.
size = np.abs(ours)
sys.exit(int(np.any(np.abs(theirs - ours) > 1e-9 * (size + np.median(size)))))
'''
