"""Layers that lack tensors, have them otherwise stored, tied or set: told by planning the conversion anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from alignment.causes.structure import CAUSES, StructureSuspect, Tree, structure_suspects
from alignment.experiment import Options, prepare
from alignment.frameworks import ModuleInfo
from checkpoints import NameMap, Rename, Slot
from mutants import gallery

ZERO, ONE = np.zeros(4), np.ones(4)
# (name, kind, shape), and more of a slot
Row = tuple[Any, ...]


def tree(framework: str, *rows: Row, **more: Any) -> Tree:
    slots = []
    for name, kind, shape, *rest in rows:
        path, _, local = name.rpartition(".")
        slots.append(Slot(name, kind, local, shape, "float32", **(rest[0] if rest else {})))
    modules = {}
    for slot in slots:
        path = slot.name.rpartition(".")[0]
        modules[path] = ModuleInfo(path, slot.kind, slot.kind.startswith("My"))
    given = {"rates": {}, "state": {}} | more
    return Tree(framework, tuple(slots), modules, given["rates"], given["state"])


def suspect(name: str, torch: Tree, paddle: Tree, record: str = "parameter", names: NameMap | None = None) -> Any:
    one, two = (next((s for s in side.slots if s.name == name), None) for side in (torch, paddle))
    return StructureSuspect(record, name, one, two, torch, paddle, names or NameMap())


def found(what: StructureSuspect) -> dict[str, bool]:
    return {cause.name: trial.proved for cause in CAUSES for trial in cause.test(what)}


# A layer that is right on both sides, and one that is missing, whose problem no correction may take for its own.
RIGHT = ("head.bias", "Linear", (5,))
MISSING = ("gone.weight", "LayerNorm", (7,))

INSTANCE = tree("torch", RIGHT, MISSING), ("norm.scale", "InstanceNorm2D", (4,)), ("norm.bias", "InstanceNorm2D", (4,))


def instance(scale: np.ndarray, bias: np.ndarray) -> StructureSuspect:
    ours = replace(INSTANCE[0], modules={**INSTANCE[0].modules, "norm": ModuleInfo("norm", "InstanceNorm2d", False)})
    theirs = tree("paddle", RIGHT, *INSTANCE[1:], state={"norm.scale": scale, "norm.bias": bias})
    return suspect("norm.scale", ours, theirs)


def test_instance_norm() -> None:
    assert found(instance(ONE, ZERO)) == {"instance-norm-affine": True}
    (trial,) = (t for cause in CAUSES for t in cause.test(instance(ONE, ZERO)))
    assert (trial.before, trial.after) == (3, 1)


def test_instance_norm_that_changes_something_is_not_proved() -> None:
    assert found(instance(1.1 * ONE, ZERO)) == {"instance-norm-affine": False}
    assert found(instance(ONE, ONE)) == {"instance-norm-affine": False}


def test_another_norm_on_the_reference_side() -> None:
    ours = tree("torch", ("norm.weight", "LayerNorm", (4,)), ("norm.bias", "LayerNorm", (4,)))
    ours = replace(ours, state={"norm.weight": ONE, "norm.bias": ZERO})
    theirs = replace(tree("paddle"), modules={"norm": ModuleInfo("norm", "LayerNorm", False)})
    assert found(suspect("norm.weight", ours, theirs)) == {"norm-affine": True}
    other = replace(theirs, modules={"norm": ModuleInfo("norm", "Linear", False)})
    assert found(suspect("norm.weight", ours, other)) == {}
    # Of a class of the user's own nothing is known but its name.
    own = {"norm": ModuleInfo("norm", "LayerNorm", True)}
    assert found(suspect("norm.weight", replace(ours, modules=own), replace(theirs, modules=own))) == {}


def test_a_correction_that_makes_something_else_worse_is_not_proved() -> None:
    what = instance(ONE, ZERO)
    worse = replace(tree("paddle", ("head.bias", "Linear", (6,))), modules=what.candidate.modules)
    (trial,) = what.trial("leaving out", "norm", candidate=worse)
    assert trial.after < trial.before
    assert not trial.proved


def test_a_bias_on_one_side() -> None:
    ours = tree("torch", ("fc.weight", "Linear", (5, 3)))
    theirs = tree("paddle", ("fc.weight", "Linear", (3, 5)), ("fc.bias", "Linear", (5,)))
    assert found(suspect("fc.bias", ours, theirs)) == {"layer-bias": True}
    wrong = tree("paddle", ("fc.weight", "Linear", (3, 6)), ("fc.bias", "Linear", (6,)))
    assert found(suspect("fc.bias", ours, wrong)) == {"layer-bias": False}


BUFFER = {"role": "buffer"}
NORM = tree(
    "torch",
    ("bn.weight", "BatchNorm2d", (4,)),
    ("bn.bias", "BatchNorm2d", (4,)),
    ("bn.running_mean", "BatchNorm2d", (4,), BUFFER),
    ("bn.running_var", "BatchNorm2d", (4,), BUFFER),
    MISSING,
)


def batch_norm(kind: str, *buffers: str) -> StructureSuspect:
    rows: list[Row] = [("bn.weight", kind, (4,)), ("bn.bias", kind, (4,))]
    rows += [(f"bn.{local}", kind, (4,), BUFFER) for local in buffers]
    return suspect("bn.running_mean", NORM, tree("paddle", *rows), "buffer")


def test_running_statistics_of_other_names() -> None:
    assert found(batch_norm("MyNorm", "_mean", "_variance")) == {"bn-buffers-lost": True}
    both = batch_norm("BatchNorm2D", "_mean", "_variance", "running_mean", "running_var")
    assert found(both) == {"bn-buffers-lost": True}
    assert found(batch_norm("MyNorm", "_mean", "_var")) == {}
    own = replace(NORM, slots=tuple(replace(slot, kind="MyNorm") for slot in NORM.slots))
    assert found(replace(batch_norm("MyNorm", "_mean", "_variance"), reference=own)) == {}


GV = NameMap((Rename(r"(.*weight_g)", r"\1", "reshape"), Rename(r"(.*weight_v)", r"\1", "transpose")))


@pytest.mark.parametrize("names", [GV, None])
def test_weight_norm_along_the_other_axis(names: NameMap | None) -> None:
    ours = tree("torch", ("fc.weight_g", "Linear", (5, 1)), ("fc.weight_v", "Linear", (5, 3)), MISSING)
    theirs = tree("paddle", ("fc.weight_g", "Linear", (3,)), ("fc.weight_v", "Linear", (3, 5)))
    assert found(suspect("fc.weight_g", ours, theirs, names=names)) == {"weight-norm-axis": True}
    right = tree("paddle", ("fc.weight_g", "Linear", (5,)), ("fc.weight_v", "Linear", (3, 5)))
    assert "weight-norm-axis" not in found(suspect("fc.weight_g", ours, right, names=names))
    other = tree("paddle", ("fc.weight_g", "Linear", (4,)), ("fc.weight_v", "Linear", (3, 5)))
    assert "weight-norm-axis" not in found(suspect("fc.weight_g", ours, other, names=names))


ATTENTION = tree(
    "torch",
    ("att.in_proj_weight", "MultiheadAttention", (12, 4)),
    ("att.in_proj_bias", "MultiheadAttention", (12,)),
    ("att.out_proj.weight", "Linear", (4, 4)),
    MISSING,
)


def projections(width: int, *parts: str) -> Tree:
    rows: list[Row] = [("att.out_proj.weight", "Linear", (4, 4))]
    for part in parts:
        rows += [(f"att.{part}.weight", "Linear", (4, width)), (f"att.{part}.bias", "Linear", (width,))]
    return tree("paddle", *rows)


def test_projections_by_the_frameworks_own_names_correspond() -> None:
    assert found(suspect("att.in_proj_weight", ATTENTION, projections(4, "q_proj", "k_proj", "v_proj"))) == {}


@pytest.mark.parametrize("parts", [("query", "key", "value"), ("to_q", "to_k", "to_v")])
def test_a_packed_projection(parts: tuple[str, ...]) -> None:
    theirs = projections(4, *parts)
    for name in ("att.in_proj_weight", f"att.{parts[2]}.bias"):
        assert found(suspect(name, ATTENTION, theirs)) == {"mha-packing": True}
    assert found(suspect(f"att.{parts[1]}", ATTENTION, theirs, "module")) == {"mha-packing": True}
    assert found(suspect("gone.weight", ATTENTION, theirs)) == {}
    assert found(suspect("att.norm.weight", ATTENTION, theirs)) == {}
    assert found(suspect("att", ATTENTION, theirs, "module")) == {"mha-packing": True}


def test_a_packed_projection_of_the_candidate() -> None:
    rows = [(f"att.{part}_proj.weight", "Linear", (4, 4)) for part in "qkv"]
    theirs = tree("paddle", ("att.in_proj_weight", "MyAttention", (12, 4)))
    assert found(suspect("att.in_proj_weight", tree("torch", *rows), theirs)) == {"mha-packing": True}


def test_projections_that_do_not_add_up() -> None:
    assert found(suspect("att.in_proj_weight", ATTENTION, projections(6, "q_proj", "k_proj", "v_proj"))) == {}
    assert found(suspect("att.in_proj_weight", ATTENTION, projections(4, "q_proj", "k_proj", "x_proj"))) == {}


def test_a_matrix_stored_the_other_way_round() -> None:
    ours = tree("torch", ("fc.weight", "Linear", (5, 3)), MISSING)
    assert found(suspect("fc.weight", ours, tree("paddle", ("fc.weight", "MyLinear", (3, 5))))) == {
        "linear-not-transposed": True
    }
    assert found(suspect("fc.weight", ours, tree("paddle", ("fc.weight", "Linear", (5, 3))))) == {
        "linear-not-transposed": True
    }
    assert found(suspect("fc.weight", ours, tree("paddle", ("fc.weight", "MyLinear", (3, 6))))) == {}


def test_a_square_shape_proves_nothing() -> None:
    ours = tree("torch", ("fc.weight", "Linear", (4, 4)))
    assert found(suspect("fc.weight", ours, tree("paddle", ("fc.weight", "MyLinear", (4, 4))))) == {
        "linear-not-transposed": False
    }


def tied(ours: str | None, theirs: str | None, shape: tuple[int, int] = (9, 4)) -> StructureSuspect:
    def rows(tie: str | None, out: tuple[int, int], kind: str) -> list[Row]:
        return [("emb.weight", "Embedding", (9, 4)), ("out.weight", kind, out, {"tied_to": tie})]

    torch = tree("torch", *rows(ours, (9, 4), "Linear"))
    kind = "compat.Linear" if shape == (9, 4) else "Linear"
    return suspect("out.weight", torch, tree("paddle", *rows(theirs, shape, kind)))


def test_ties() -> None:
    assert found(tied("emb.weight", None)) == {"tie-lost": True}
    assert found(tied("emb.weight", None, (4, 9))) == {"tie-lost": True}
    assert found(tied(None, "emb.weight")) == {"tie-added": True}
    assert found(tied(None, None)) == {}
    assert found(tied("emb.weight", "emb.weight")) == {}


def test_dropout_rate() -> None:
    module = {"drop": ModuleInfo("drop", "Dropout", False)}
    ours, theirs = (
        replace(tree(framework), modules=module, rates={"drop": rate})
        for framework, rate in (("torch", 0.1), ("paddle", 0.2))
    )
    assert found(suspect("drop", ours, theirs, "module")) == {"dropout-rate": True}
    assert found(suspect("drop", ours, replace(theirs, rates={"drop": 0.1}), "module")) == {}


def test_a_missing_module_has_no_cause() -> None:
    ours = tree("torch", MISSING)
    assert found(suspect("gone", ours, tree("paddle"), "module")) == {}
    assert found(suspect("gone.weight", ours, tree("paddle"))) == {}


@pytest.mark.parametrize(
    ("mutant", "causes"),
    [
        (
            "norm_net__instance_norm_affine",
            {"instance_norm.scale": "instance-norm-affine", "instance_norm.bias": "instance-norm-affine"},
        ),
        ("tied_net__tie_lost", {"output.weight": "tie-lost"}),
        ("tied_net", {}),
    ],
)
def test_ports_of_another_structure(mutant: str, causes: dict[str, str]) -> None:
    experiment = prepare(getattr(gallery, mutant), Options())
    suspects = {what.name: found(what) for what in structure_suspects(experiment)}
    assert suspects == {name: {cause: True} for name, cause in causes.items()}
