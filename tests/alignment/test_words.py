"""Messages in plain text: what starts by itself comes first, what merely depends on it is counted."""

from __future__ import annotations

from dataclasses import replace

from alignment import Report, StageResult, TensorResult, TwinResult
from alignment.views.words import described, message, named, telling, unmet


def tensor(name: str, verdict: str = "diverged", **fields) -> TensorResult:
    return TensorResult("activation", name, fields.pop("candidate", name), (2,), verdict, "why", **fields)  # type: ignore[arg-type]


def twin(*tensors: TensorResult) -> TwinResult:
    stages = (StageResult(3, "forward", tensors),)
    return TwinResult("bag", "torch A", "paddle B", stages, {}, ("init",), ("one",), "fake data", 4, notes=("a note",))


GIVEN = twin(
    tensor("later"),
    tensor("nan", "inconclusive"),
    tensor("fine", "aligned"),
    tensor("first", root=True),
    tensor("known", root=True, waived="known"),
    tensor("worse", decided_by="baseline"),
    tensor("worse too", decided_by="baseline"),
    tensor("second", root=True),
)


def test_roots_come_first_and_what_is_waived_is_left_out() -> None:
    assert [one.name for one in unmet(GIVEN)] == ["first", "second", "later", "worse", "worse too", "nan"]
    assert [one.name for one in telling(GIVEN)] == ["first", "second", "worse", "nan"]
    assert [one.name for one in telling(twin(tensor("later"), tensor("last")))] == ["later", "last"]


def test_the_message_of_a_report() -> None:
    lines = message(
        replace(Report((GIVEN, twin(tensor("fine", "aligned")))), problems=("a waiver is over",))
    ).splitlines()
    assert lines == [
        "bag: diverged",
        "  root: activation first [2]",
        "    why",
        "  root: activation second [2]",
        "    why",
        "  diverged: activation worse [2]",
        "    why",
        "  inconclusive: activation nan [2]",
        "    why",
        "  and 2 more, of which 1 became less precise, too",
        "  step 3 forward diverged",
        "  seed 4; weights init; batches one",
        "  note: a note",
        "a waiver is over",
    ]


def test_what_follows_from_the_roots_is_counted() -> None:
    few = Report((twin(tensor("first", root=True), tensor("second"), tensor("third")),))
    assert "  and 2 more, which depend on the roots" in message(few).splitlines()


def test_one_tensor_in_words() -> None:
    given = tensor("fc", candidate="out", root=True, seen=0.5, allowed=1e-12, worst_index=(1, 0), site="port.py:3")
    given = replace(given, weights="init", batch="one", comparisons=4, diverging=("init/one", "init/two"))
    assert named(given) == "activation fc → out"
    assert described(given).splitlines() == [
        "activation fc → out [2]",
        "seen 0.5, allowed 1e-12, worst at [1, 0]",
        "why",
        "init weights, batch one; diverges in 2 of 4",
        "at port.py:3",
    ]
    assert named(replace(given, candidate_name=None)) == "activation fc"
