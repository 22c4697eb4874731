"""Modules and records correspond through the tensors' layout, then by name, then by kind and order."""

from __future__ import annotations

import numpy as np

from alignment.correspondence import correspond, path_of, rename, renamed
from alignment.frameworks import ModuleInfo
from alignment.trace import Record, Trace


def tree(*modules: tuple[str, str]) -> list[ModuleInfo]:
    return [ModuleInfo("", "Net", True), *(ModuleInfo(path, kind, False) for path, kind in modules)]


def test_owners_of_tensors_correspond_and_their_parents_with_them() -> None:
    ours = tree(("body", "Block"), ("body.fc", "Linear"), ("body.act", "GELU"))
    theirs = tree(("trunk", "Block"), ("trunk.dense", "Linear"), ("trunk.gelu", "GELU"))
    found = correspond(ours, theirs, [("body.fc", "trunk.dense")])
    assert found == {"": "", "body": "trunk", "body.fc": "trunk.dense", "body.act": "trunk.gelu"}


def test_what_has_no_counterpart_is_left_out() -> None:
    found = correspond(tree(("a", "GELU"), ("b", "Tanh")), tree(("a", "GELU"), ("c", "ReLU")), [])
    assert found == {"": "", "a": "a"}


def test_children_of_one_kind_pair_in_order() -> None:
    found = correspond(tree(("x", "GELU"), ("y", "GELU")), tree(("p", "GELU"), ("q", "GELU")), [])
    assert found == {"": "", "x": "p", "y": "q"}


def test_labels() -> None:
    labels = ("a.b", "a.b#2", "a.b[1]", "a.b#3[1.0]", "a.b[mask]", "a.b#2[states.hidden]", "a.b[last_state]")
    assert [path_of(label) for label in labels] == ["a.b"] * len(labels)
    assert rename("a.b[mask]", {"a.b": "c"}) == "c[mask]"
    assert rename("a.b#3[1.0]", {"a.b": "c"}) == "c#3[1.0]"
    assert rename("other", {"a.b": "c"}) == "other"


def test_a_trace_is_renamed_but_not_its_parameters() -> None:
    one = np.ones(1)
    trace = Trace(
        "paddle", "float64", (Record("activation", "a#2", one), Record("gradient", "a", one)), {"a#2": "file.py:1"}
    )
    new = renamed(trace, {"a": "b"})
    assert [record.name for record in new.records] == ["b#2", "a"]
    assert new.sites == {"b#2": "file.py:1"}
