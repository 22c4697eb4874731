"""Attention of a framework's own beside one written by hand: by the names of its projections, or by a mapping, never by shape."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignment import AlignmentError, Options, check, explain, explain_traces, run_check, save_traces
from alignment.mapping import ModelMapping
from alignment.report import Report
from checkpoints import Rename

pytest.importorskip("torch")
pytest.importorskip("paddle")

QUICK = Options(batch_size=3, length=5, steps=(1, 3, 4, 5))
PARTS = {"q": "a", "k": "b", "v": "c"}


@pytest.fixture
def ports(tmp_path, monkeypatch) -> Any:
    """The models, as a user's own would be found."""
    shutil.copy(Path(__file__).with_name("attention_ports.py"), tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import attention_ports

    yield attention_ports
    sys.modules.pop("attention_ports", None)


def stages(report: Report) -> dict[str, Any]:
    return {stage.name: stage for stage in report.twins[0].stages}


def compared(report: Report, stage: str, record: str) -> dict[str, str]:
    return {row.name: row.candidate_name for row in stages(report)[stage].tensors if row.record == record}


def roots(report: Report) -> set[tuple[str, str]]:
    return {(root.record, root.name) for root in report.twins[0].roots}


@pytest.mark.parametrize(("names", "at"), [("USUAL", "attn"), ("OTHER", "mha")])
def test_torch_packs_what_a_port_by_hand_has_in_three_layers(ports, names, at) -> None:
    names = getattr(ports, names)
    report = check(ports.twin("Packed", "OwnPort", theirs={"names": names, "at": at}), QUICK)
    assert report.verdict == "aligned"
    # Every part is judged by itself, what it is trained by, too.
    expected = {
        f"attn.in_proj_{what}[{part}]": f"{at}.{name}.{what}"
        for what in ("weight", "bias")
        for part, name in zip("qkv", names, strict=False)
    }
    for record in ("gradient", "update"):
        found = compared(report, "backward", record)
        assert expected.items() <= found.items()
        assert found["attn.out_proj.weight"] == f"{at}.{names[3]}.weight"
    assert compared(report, "forward", "activation")["attn"] == at
    inside = ", ".join(f"{at}.{name}" for name in sorted(names))
    assert f"inside a boundary: 4 of 20 tensors ({inside})" in "\n".join(stages(report)["structure"].notes)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("names", ["USUAL", "OTHER"])
def test_a_reference_by_hand_is_ported_to_a_layer_of_paddles_own(ports, names, packed) -> None:
    names = getattr(ports, names)
    report = check(ports.twin("Own", "LayerPort", ours={"names": names}, theirs={"packed": packed}), QUICK)
    assert report.verdict == "aligned"
    told = compared(report, "structure", "parameter")
    key, dense = ("attn.in_proj_weight" if packed else "attn.k_proj.weight"), "attn.out_proj.weight"
    assert (told[f"attn.{names[1]}.weight"], told[f"attn.{names[3]}.weight"]) == (key, dense)


def test_names_that_do_not_tell_queries_from_keys_are_an_error_that_lists_them(ports) -> None:
    with pytest.raises(AlignmentError) as caught:
        check(ports.silent, QUICK)
    choices = (
        "attn.q_proj, attn.k_proj, attn.v_proj, attn.out_proj (Linear [8, 8], [8]): each may be any of attn.a, attn.b"
    )
    assert choices in str(caught.value)


def by_tensors() -> ModelMapping:
    return ModelMapping(
        tensors={
            f"attn.in_proj_{what}[{part}]": f"attn.{name}.{what}"
            for what in ("weight", "bias")
            for part, name in PARTS.items()
        }
    )


def by_rules() -> ModelMapping:
    rules = [Rename(rf"(.*)\.in_proj_(.*)\[{part}\]", rf"\1.{name}.\2") for part, name in PARTS.items()]
    return ModelMapping((Rename(r"attn\.out_proj\.(.*)", r"attn.d.\1"), *rules))


@pytest.mark.parametrize(
    "mapping",
    [
        ModelMapping(modules={f"attn.{part}_proj": f"attn.{name}" for part, name in PARTS.items()}),
        by_tensors(),
        by_rules(),
    ],
    ids=["modules", "tensors", "rules"],
)
def test_a_mapping_says_which_is_which(ports, mapping) -> None:
    report = check(ports.silent, replace(QUICK, mapping=mapping))
    assert report.verdict == "aligned"
    assert compared(report, "backward", "update")["attn.in_proj_weight[v]"] == "attn.c.weight"


@pytest.mark.parametrize("order", ["bac", "acb"])
def test_a_wrong_mapping_diverges_at_the_attention(ports, order) -> None:
    mapping = ModelMapping(
        modules={f"attn.{part}_proj": f"attn.{name}" for part, name in zip("qkv", order, strict=True)}
    )
    report = check(ports.silent, replace(QUICK, mapping=mapping))
    assert stages(report)["structure"].verdict == "aligned"
    assert ("activation", "attn") in roots(report)
    assert not {name for record, name in roots(report) if record == "activation"} - {"attn"}


def test_parts_of_a_target_are_mapped_as_those_of_a_source(ports) -> None:
    twin = ports.twin("Own", "LayerPort", ours={"names": ports.SILENT}, theirs={"packed": True})
    pairs = {new: old for old, new in by_tensors().tensors.items()}
    assert check(twin, replace(QUICK, mapping=ModelMapping(tensors=pairs))).verdict == "aligned"


def test_what_such_an_attention_gives_beside_its_output_is_not_compared(ports) -> None:
    report = check(ports.twin("Packed", "OwnPort", theirs={"names": ports.OTHER, "weights": True}), QUICK)
    assert report.verdict == "aligned"
    assert compared(report, "forward", "activation")["attn"] == "attn"


def test_a_fault_inside_is_found_at_its_boundary_live_and_from_traces(ports, tmp_path) -> None:
    twin = ports.twin("Packed", "OwnPort", theirs={"names": ports.OTHER, "at": "mha", "fault": "scale"})
    assert ("activation", "attn") in roots(explain(twin, QUICK))
    checked = run_check(twin, QUICK)
    # Nothing is said of what it is given: one side has three arguments, the other has one.
    judged = {name for kind, name in checked.scenes[0].points() if kind == "input gradient"}
    assert "head" in judged
    assert not {name for name in judged if name.startswith("attn")}
    saved = explain_traces(*save_traces(checked, tmp_path))
    assert ("activation", "attn") in roots(saved)


def test_a_layer_of_layers_corresponds_to_a_block_by_hand(ports) -> None:
    twin = ports.twin("Encoder", "EncoderPort")
    mapping = ModelMapping(ignore=(r"layer\.dropout\d?",))
    report = check(twin, replace(QUICK, mapping=mapping))
    assert report.verdict == "aligned"
    told = compared(report, "forward", "activation")
    assert (told["layer"], told["layer.self_attn"], told["layer.norm2"]) == (
        "block",
        "block.attention",
        "block.norm2",
    )
