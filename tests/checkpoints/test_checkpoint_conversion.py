"""Planning, name maps, layout files: nothing is left over, nothing is guessed, every problem is listed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from checkpoints import (
    CheckpointError,
    Layout,
    NameMap,
    Rename,
    Slot,
    as_stored,
    convert,
    convert_proved,
    plan,
    retype,
    reverse,
)


def linear(path: str, out: int, into: int, framework: str = "torch", kind: str = "Linear") -> list[Slot]:
    shape = (out, into) if framework == "torch" else (into, out)
    return [
        Slot(f"{path}.weight", kind, "weight", shape, "float32"),
        Slot(f"{path}.bias", kind, "bias", (out,), "float32"),
    ]


def values(slots: list[Slot]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {slot.name: rng.standard_normal(slot.shape).astype(np.float32) for slot in slots}


def test_all_problems_are_listed_at_once() -> None:
    source = [*linear("a", 3, 2), *linear("b", 2, 2), *linear("only", 1, 1)]
    target = [
        *linear("a", 2, 2, "paddle"),
        replace(linear("b", 2, 2, "paddle")[0], dtype="float16"),
        *linear("new", 1, 1),
    ]
    with pytest.raises(CheckpointError) as caught:
        plan(source, target, "torch", "paddle")
    message = str(caught.value)
    assert "no layout from torch to paddle: 8 problems" in message
    for part in (
        "a.weight: Linear of the source has shape [3, 2] (transpose: [2, 3]), Linear of the target expects [2, 2]",
        "a.bias: Linear of the source has shape [3], Linear of the target expects [2]",
        "b.weight: the source has dtype float32, the target expects float16",
        "b.bias: Linear's parameter float32 [2] of the source has no counterpart in the target",
        "only.weight: ",
        "new.weight: Linear's parameter float32 [1, 1] of the target is filled by nothing",
        "new.bias: ",
    ):
        assert part in message


def test_kinds_that_differ_are_not_matched_by_shape() -> None:
    source, target = linear("a", 2, 2), linear("a", 2, 2, "paddle", kind="Embedding")
    with pytest.raises(CheckpointError, match=r"a\.weight: belongs to Linear in torch and to Embedding in paddle"):
        plan(source, target, "torch", "paddle")
    with pytest.raises(CheckpointError, match=r"belongs to Linear in torch and to OwnDense in paddle"):
        plan(source, linear("a", 2, 2, "paddle", kind="OwnDense"), "torch", "paddle")
    # A name map may say what no table can.
    names = NameMap((Rename(r"(.*)\.weight", r"\1.weight", "transpose"),))
    own = plan(source, linear("a", 2, 2, "paddle", kind="OwnDense"), "torch", "paddle", names)
    assert [move.operation for move in own.moves] == ["transpose", "copy"]


def test_bare_parameters_of_own_classes_are_copied() -> None:
    source = [Slot("pool.query", "Pool", "query", (3, 3), "float32"), Slot("scale", "Model", "scale", (), "float32")]
    target = [Slot("scale", "Net", "scale", (), "float32"), Slot("pool.query", "Pooler", "query", (3, 3), "float32")]
    layout = plan(source, target, "torch", "paddle")
    assert [(move.target, move.operation) for move in layout.moves] == [("pool.query", "copy"), ("scale", "copy")]


def test_both_sides_may_be_one_framework() -> None:
    slots = linear("a", 3, 2, "paddle")
    assert {move.operation for move in plan(slots, slots, "paddle", "paddle").moves} == {"copy"}
    compat = linear("a", 3, 2, "torch", kind="compat.Linear")
    assert plan(slots, compat, "paddle", "paddle").moves[0].operation == "transpose"


def test_an_unknown_framework_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"no layout table for 'jax'; there are torch, paddle"):
        plan([], [], "jax", "paddle")


def test_one_name_twice_is_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"a\.weight: two tensors of the source are named this"):
        plan(linear("a", 1, 1) * 2, linear("a", 1, 1, "paddle"), "torch", "paddle")


# ---- name maps ---------------------------------------------------------------------------------------------------------


def test_names_are_mapped_by_groups_in_order(tmp_path: Path) -> None:
    (tmp_path / "names.toml").write_text(
        """
        drop = ['head\\..*']
        [[rename]]
        pattern = 'bert\\.(.*)'
        replace = '\\1'
        [[rename]]
        pattern = 'layer(\\d+)\\.(?P<rest>.*)'
        replace = 'blocks.\\1.\\g<rest>'
        """
    )
    names = NameMap.load(tmp_path / "names.toml")
    as_json = {
        "drop": list(names.drop),
        "rename": [{"pattern": r.pattern, "replace": r.replace} for r in names.renames],
    }
    (tmp_path / "names.json").write_text(json.dumps(as_json))
    assert NameMap.load(tmp_path / "names.json") == names

    source = [*linear("bert.layer0", 2, 3), *linear("bert.layer12", 3, 2), *linear("head", 1, 1)]
    target = [*linear("blocks.12", 3, 2, "paddle"), *linear("blocks.0", 2, 3, "paddle")]
    layout = plan(source, target, "torch", "paddle", names)
    assert {move.source: move.target for move in layout.moves}["bert.layer12.weight"] == "blocks.12.weight"
    assert [(extra.name, extra.reason) for extra in layout.dropped] == [
        ("head.weight", "dropped by the name map"),
        ("head.bias", "dropped by the name map"),
    ]
    tensors = values(source)
    converted, proof = convert_proved(tensors, layout)
    assert proof.dropped == 2
    assert np.array_equal(converted["blocks.0.weight"], tensors["bert.layer0.weight"].T)
    with pytest.raises(CheckpointError, match=r"head\.weight: dropped by the name map; it can't be restored"):
        reverse(layout)


def test_a_pattern_matches_whole_names_only() -> None:
    names = NameMap((Rename("a", "b"),), drop=("head",))
    assert names.rename("aa") is not None
    assert names.rename("aa").changed is False  # type: ignore[union-attr]
    assert names.rename("header") is not None
    assert names.rename("head") is None


def test_renaming_reaches_tensors_whose_local_names_differ_between_frameworks() -> None:
    source = [Slot("old.running_mean", "BatchNorm1d", "running_mean", (2,), "float32")]
    target = [Slot("new._mean", "BatchNorm1D", "_mean", (2,), "float32")]
    for replacement in ("new.running_mean", "new._mean"):
        names = NameMap((Rename(r"old\.running_mean", replacement),))
        assert plan(source, target, "torch", "paddle", names).moves[0].target == "new._mean"


def test_two_sources_for_one_target_are_an_error() -> None:
    source, target = [*linear("a", 2, 2), *linear("b", 2, 2)], linear("c", 2, 2, "paddle")
    names = NameMap((Rename(r"[ab]\.(.*)", r"c.\1"),))
    with pytest.raises(CheckpointError) as caught:
        plan(source, target, "torch", "paddle", names)
    assert "c.weight: filled twice, by a.weight and by b.weight" in str(caught.value)
    assert "c.bias: filled twice, by a.bias and by b.bias" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rename = 3", "list of tables"),
        ("drop = 'head'", "list of patterns"),
        ("other = []", "nothing else"),
        ("[[rename]]\npattern = 'a'", "pattern, replace"),
        ("[[rename]]\npattern = 'a'\nreplace = 'b'\nmore = 'c'", "pattern, replace"),
        ("[[rename]]\npattern = 'a'\nreplace = 3", "strings"),
        ("[[rename]]\npattern = 'a'\nreplace = 'b'\noperation = 'rotate'", "'rotate' is none of"),
        ("[[rename]]\npattern = '('\nreplace = 'b'", "no regular expression"),
        ("[[rename]]\npattern = '(a)'\nreplace = '\\2'", "invalid group reference"),
        ("[[rename]]\npattern = '(?P<n>a)'\nreplace = '\\g<m>'", "unknown group"),
        ("drop = ['[']", "no regular expression"),
        ("= ", "not a name map"),
    ],
)
def test_a_bad_name_map_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "names.toml"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=rf"names\.toml: .*{message}"):
        NameMap.load(path)


def test_an_absent_or_odd_name_map_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.toml: can't read the name map"):
        NameMap.load(tmp_path / "absent.toml")
    (tmp_path / "names.yaml").write_text("a: b")
    with pytest.raises(CheckpointError, match=r"a \.toml or \.json file"):
        NameMap.load(tmp_path / "names.yaml")


def test_a_file_with_other_names_takes_its_kinds_from_the_live_model() -> None:
    live = [*linear("fc", 2, 2), Slot("again.weight", "Linear", "weight", (2, 2), "float32", tied_to="fc.weight")]
    names = NameMap((Rename(r"old_(.*)", r"\1"),), drop=("step",))
    tensors = values(live)
    tensors["again.weight"] = tensors["fc.weight"]
    stored = {f"old_{name}": array for name, array in tensors.items()} | {"step": np.array(3)}
    slots = as_stored(live, stored, names)
    assert [(slot.name, slot.kind, slot.tied_to) for slot in slots] == [
        ("old_fc.weight", "Linear", None),
        ("old_fc.bias", "Linear", None),
        ("old_again.weight", "Linear", "old_fc.weight"),
        ("step", "tensor", None),
    ]
    target = [*linear("fc", 2, 2, "paddle"), Slot("again.weight", "Linear", "weight", (2, 2), "float32")]
    converted = convert(stored, plan(slots, target, "torch", "paddle", names))
    assert np.array_equal(converted["again.weight"], tensors["fc.weight"].T)


# ---- converting --------------------------------------------------------------------------------------------------------


def simple() -> tuple[dict[str, np.ndarray], Layout]:
    source = linear("a", 3, 2)
    return values(source), plan(source, linear("a", 3, 2, "paddle"), "torch", "paddle")


def test_results_share_no_memory_with_the_source() -> None:
    tensors, layout = simple()
    converted = convert(tensors, layout)
    for array in converted.values():
        assert array.flags.owndata
        assert array.flags.c_contiguous
        array[:] = 0
    assert all(array.any() for array in tensors.values())


def test_every_misfit_of_a_checkpoint_is_listed() -> None:
    tensors, layout = simple()
    with pytest.raises(CheckpointError) as caught:
        convert({"a.weight": tensors["a.weight"].T, "x": np.zeros(1, np.float32)}, layout)
    assert "3 problems" in str(caught.value)
    assert "a.weight: has shape [2, 3], expected [3, 2]" in str(caught.value)
    assert "a.bias: missing; expected float32 [3]" in str(caught.value)
    assert "x: float32 [1] is not in the layout" in str(caught.value)


def test_sixteen_raw_bits_are_bfloat16_only_where_the_layout_says_so() -> None:
    tensors, layout = simple()
    brain = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}
    to_brain = retype(layout, dict.fromkeys(brain, "bfloat16"))
    expected = convert(brain, to_brain)
    assert {array.dtype.name for array in expected.values()} == {"bfloat16"}
    for raw in ("uint16", "V2"):
        stored = {name: array.view(raw) for name, array in brain.items()}
        found = convert(stored, to_brain)
        assert {k: (v.dtype, v.tobytes()) for k, v in found.items()} == {
            k: (v.dtype, v.tobytes()) for k, v in expected.items()
        }
        with pytest.raises(CheckpointError, match="sixteen raw bits may be bfloat16"):
            convert(stored, layout)
    integers = replace(layout, moves=tuple(replace(move, dtype="uint16") for move in layout.moves))
    found = convert({name: array.view("uint16") for name, array in brain.items()}, integers)
    assert {array.dtype.name for array in found.values()} == {"uint16"}


def test_only_a_floating_dtype_replaces_a_floating_dtype() -> None:
    _, layout = simple()
    assert retype(layout, {"a.weight": "int64", "a.bias": "uint16"}) == layout
    assert [move.dtype for move in retype(layout, {"a.bias": "float16"}).moves] == ["float32", "float16"]


def tied() -> tuple[list[Slot], list[Slot]]:
    first = [Slot("0.q.weight", "Linear", "weight", (1, 3), "float32")]
    again = [Slot(f"{i}.q.weight", "Linear", "weight", (1, 3), "float32", tied_to="0.q.weight") for i in (1, 2)]
    source = first + again
    return source, [replace(slot, shape=(3, 1)) for slot in source]


def test_tied_names_are_each_written_and_must_agree() -> None:
    layout = plan(*tied(), "torch", "paddle")
    assert layout.source_ties == (("0.q.weight", "1.q.weight", "2.q.weight"),)
    one = np.array([[1, np.nan, -0.0]], np.float32)
    tensors = {name: one.copy() for name in layout.source_ties[0]}
    converted, proof = convert_proved(tensors, layout)
    assert len(converted) == 3
    assert proof.tied == 2
    tensors["2.q.weight"][0, 2] = 0.0  # the sign of a zero is a difference
    with pytest.raises(CheckpointError, match=r"2\.q\.weight: differs from 0\.q\.weight, yet the model ties them"):
        convert(tensors, layout)


def test_an_absent_tied_name_is_read_from_its_twin() -> None:
    layout = plan(*tied(), "torch", "paddle")
    one = np.array([[1, 2, 3]], np.float32)
    for present in layout.source_ties[0]:
        converted = convert({present: one}, layout)
        assert {name: array.tobytes() for name, array in converted.items()} == dict.fromkeys(
            layout.source_ties[0], one.tobytes()
        )
    with pytest.raises(CheckpointError, match="3 problems"):
        convert({}, layout)


def test_values_that_differ_do_not_fit_a_target_that_ties_them() -> None:
    source, target = tied()
    untied = [replace(slot, tied_to=None) for slot in source]
    layout = plan(untied, target, "torch", "paddle")
    tensors = values(untied)
    with pytest.raises(CheckpointError, match=r"1\.q\.weight: would differ from 0\.q\.weight"):
        convert(tensors, layout)
    same = dict.fromkeys(tensors, tensors["0.q.weight"])
    assert len(convert(same, layout)) == 3


def test_the_proof_notices_a_conversion_that_loses_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, layout = simple()
    module = sys.modules["checkpoints.convert"]  # the package shows the function of this name
    original = vars(module)["_apply"]
    monkeypatch.setattr(module, "_apply", lambda array, move: original(array, move) + np.float32(0))
    tensors["a.bias"][0] = -0.0
    with pytest.raises(CheckpointError, match=r"a\.bias: there and back is not bit-identical"):
        convert_proved(tensors, layout)


# ---- layout files ------------------------------------------------------------------------------------------------------


def rich() -> Layout:
    source = [
        *linear("a", 3, 2),
        Slot("n.num_batches_tracked", "BatchNorm1d", "num_batches_tracked", (), "int64", "buffer"),
    ]
    source += [replace(slot, name=f"t.{slot.local}", tied_to=slot.name) for slot in source[:2]]
    target = [*linear("a", 3, 2, "paddle"), *linear("t", 3, 2, "paddle")]
    return plan(source, target, "torch", "paddle")


def test_a_layout_file_gives_the_layout_again(tmp_path: Path) -> None:
    for layout in (rich(), reverse(rich()), simple()[1]):
        layout.save(tmp_path / "layout.json")
        assert Layout.load(tmp_path / "layout.json") == layout
    text = (tmp_path / "layout.json").read_text()
    assert '{"source": "a.weight", "target": "a.weight", "operation": "transpose"' in text
    assert len(text.splitlines()) == 13


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d.pop("moves"), "exactly the keys"),
        (lambda d: d.update(more=1), "exactly the keys"),
        (lambda d: d.update(schema="checkpoints.layout/9"), '"schema" must be'),
        (lambda d: d.update(moves={}), "moves must be a list"),
        (lambda d: d.update(source_framework=3), "must be a string"),
        (lambda d: d["moves"].append(7), r"moves\[4\] must be an object"),
        (lambda d: d["moves"][0].pop("dtype"), r"moves\[0\] must have exactly the keys"),
        (lambda d: d["moves"][0].update(operation="rotate"), r"moves\[0\]: operation must be one of"),
        (lambda d: d["moves"][0].update(dtype="object"), r"moves\[0\]: dtype must be one of"),
        (lambda d: d["moves"][0].update(operation=["copy"]), r"moves\[0\]: operation must be one of"),
        (lambda d: d["moves"][0].update(dtype=["float32"]), r"moves\[0\]: dtype must be one of"),
        (lambda d: d["dropped"][0].update(dtype={}), r"dropped\[0\]: dtype must be one of"),
        (lambda d: d["moves"][0].update(source=""), r"moves\[0\]: source must be a string"),
        (lambda d: d["moves"][0].update(shape_to=[3, 2]), r"transpose does not make \[3, 2\] of \[3, 2\]"),
        (lambda d: d["moves"][0].update(shape_to=[True, 2]), "list of sizes"),
        (lambda d: d["moves"][0].update(shape_to=[2**40, 2**40]), "list of sizes"),
        (lambda d: d["moves"][0].update(shape_to=[2**62] * 50_000), "list of sizes"),
        (lambda d: d["moves"].append(d["moves"][0]), r"source names a\.weight stand more than once"),
        (lambda d: d["moves"][1].update(target="a.weight", shape_to=[3]), "target names a.weight stand more than once"),
        (lambda d: d["dropped"][0].update(restored="yes"), "restored must be true or false"),
        (lambda d: d["source_ties"].append(["a.weight", "nobody"]), "source_ties"),
        (lambda d: d["source_ties"].append([1, 2]), "source_ties"),
        (
            lambda d: d["filled"].append(d["dropped"][0] | {"shape": [2**50]}),
            "no more can be filled with zeros than is moved",
        ),
    ],
)
def test_a_layout_file_is_checked_strictly(tmp_path: Path, spoil: object, message: str) -> None:
    path = tmp_path / "layout.json"
    rich().save(path)
    data = json.loads(path.read_text())
    spoil(data)  # type: ignore[operator]
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=rf"layout\.json: not a layout file: .*{message}"):
        Layout.load(path)


def packed() -> Layout:
    """Attention that packs on one side, a recurrent layer that names its tensors twice on the other, zeros that don't train."""
    source = [
        Slot("a.in_proj_weight", "MultiheadAttention", "in_proj_weight", (6, 2), "float32"),
        Slot("r.weight_ih_l0", "RNN", "weight_ih_l0", (3, 2), "float32"),
    ]
    target = [
        *(
            Slot(f"a.{part}_proj.weight", "Linear", "weight", (2, 2), "float32", within=((MHA, f"{part}_proj.weight"),))
            for part in "qkv"
        ),
        Slot("r.weight_ih_l0", "SimpleRNN", "weight_ih_l0", (3, 2), "float32"),
        Slot(
            "r.0.cell.weight_ih", "SimpleRNNCell", "weight_ih", (3, 2), "float32", tied_to="r.weight_ih_l0", within=CELL
        ),
        Slot("r.0.cell.bias_ih", "SimpleRNNCell", "bias_ih", (3,), "float32", "buffer", within=BIAS),
    ]
    return plan(source, target, "torch", "paddle")


MHA = "MultiHeadAttention"
CELL, BIAS = ((("SimpleRNN", f"0.cell.{local}"),) for local in ("weight_ih", "bias_ih"))


def test_parts_second_names_and_frozen_zeros_are_in_the_file(tmp_path: Path) -> None:
    for layout in (packed(), reverse(packed())):
        layout.save(tmp_path / "layout.json")
        assert Layout.load(tmp_path / "layout.json") == layout
    packed().save(tmp_path / "layout.json")
    data = json.loads((tmp_path / "layout.json").read_text())
    assert [move.get("part_from") for move in data["moves"]] == [
        *({"word": word, "index": index, "count": 3} for index, word in enumerate("qkv")),
        None,
    ]
    assert all("part_to" not in move for move in data["moves"])
    assert data["target_ties"] == [["r.weight_ih_l0", "r.0.cell.weight_ih"]]
    assert [extra["zero"] for extra in data["filled"]] == [True]


def test_a_packed_tensor_is_split_and_joined() -> None:
    rng = np.random.default_rng(0)
    whole, rnn = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 2), (3, 2)))
    tensors = {"a.in_proj_weight": whole, "r.weight_ih_l0": rnn}
    converted, proof = convert_proved(tensors, packed())
    assert (proof.moved, proof.parts, proof.transposed, proof.tied, proof.filled) == (4, 3, 3, 1, 1)
    for index, part in enumerate("qkv"):
        assert converted[f"a.{part}_proj.weight"].tobytes() == whole[2 * index : 2 * index + 2].T.tobytes()
    assert converted["r.0.cell.weight_ih"].tobytes() == rnn.tobytes()
    assert not converted["r.0.cell.bias_ih"].any()
    back = convert(converted, reverse(packed()))
    assert {name: array.tobytes() for name, array in back.items()} == {n: a.tobytes() for n, a in tensors.items()}


def test_a_second_name_may_be_absent_and_must_agree() -> None:
    layout, rng = reverse(packed()), np.random.default_rng(0)
    whole = {
        "a.in_proj_weight": rng.standard_normal((6, 2)).astype(np.float32),
        "r.weight_ih_l0": np.ones((3, 2), np.float32),
    }
    given = convert(whole, packed())
    for absent in ("r.weight_ih_l0", "r.0.cell.weight_ih"):
        returned = convert({name: array for name, array in given.items() if name != absent}, layout)
        assert returned["r.weight_ih_l0"].tobytes() == whole["r.weight_ih_l0"].tobytes()
    with pytest.raises(
        CheckpointError, match=r"r\.0\.cell\.weight_ih: differs from r\.weight_ih_l0, yet the model ties them"
    ):
        convert(given | {"r.0.cell.weight_ih": np.zeros((3, 2), np.float32)}, layout)
    with pytest.raises(CheckpointError, match=r"r\.0\.cell\.weight_ih: has shape \[2, 3\], expected \[3, 2\]"):
        convert(given | {"r.0.cell.weight_ih": np.ones((2, 3), np.float32)}, layout)
    with pytest.raises(
        CheckpointError, match=r"r\.0\.cell\.bias_ih: has values other than zero, and the target has no place"
    ):
        convert(given | {"r.0.cell.bias_ih": np.ones(3, np.float32)}, layout)


def test_what_does_not_split_or_is_taken_twice_is_told() -> None:
    odd = Slot("a.in_proj_weight", "MultiheadAttention", "in_proj_weight", (7, 2), "float32")
    with pytest.raises(CheckpointError, match=r"a\.in_proj_weight: \[7, 2\] of the source has no 3 equal parts"):
        plan([odd], [], "torch", "paddle")
    three = [replace(odd, shape=(6, 2))]
    lacking = [Slot("a.q_proj.weight", "Linear", "weight", (2, 2), "float32", within=((MHA, "q_proj.weight"),))]
    with pytest.raises(
        CheckpointError, match=r"a\.in_proj_weight\[k\]: MultiheadAttention's parameter float32 \[2, 2\]"
    ):
        plan(three, lacking, "torch", "paddle")
    # The whole of a packed tensor by a name map, and one of its parts by its own name.
    compat = [replace(odd, kind="compat.MultiheadAttention", shape=(6, 2))]
    both = [
        replace(three[0], name="b.in_proj_weight"),
        replace(three[0], local="q_proj_weight", name="a.q_proj_weight"),
    ]
    names = NameMap((Rename(r"b\.(.*)", r"a.\1"),))
    for source in (both, both[::-1]):
        with pytest.raises(CheckpointError, match="filled twice"):
            plan(source, compat, "torch", "paddle", names)


def test_a_name_map_may_say_the_second_name() -> None:
    source = [Slot("rnn", "Own", "rnn", (3, 2), "float32")]
    target = [
        Slot("r.weight_ih_l0", "SimpleRNN", "weight_ih_l0", (3, 2), "float32"),
        Slot(
            "r.0.cell.weight_ih", "SimpleRNNCell", "weight_ih", (3, 2), "float32", tied_to="r.weight_ih_l0", within=CELL
        ),
    ]
    for name in ("r.weight_ih_l0", "r.0.cell.weight_ih"):
        layout = plan(source, target, "torch", "paddle", NameMap((Rename("rnn", name, "copy"),)))
        assert [(move.source, move.target) for move in layout.moves] == [("rnn", "r.weight_ih_l0")]
        assert set(convert({"rnn": np.ones((3, 2), np.float32)}, layout)) == {slot.name for slot in target}


def test_a_second_name_without_its_tensor_is_no_second_name() -> None:
    layers = [
        Slot("r.0.cell.weight_ih", "SimpleRNNCell", "weight_ih", (3, 2), "float32", tied_to="elsewhere", within=CELL)
    ]
    with pytest.raises(CheckpointError, match=r"r\.0\.cell\.weight_ih: .* of the target is filled by nothing"):
        plan([], layers, "torch", "paddle")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d["moves"].pop(0), "a.in_proj_weight: its parts must be moved once each"),
        (lambda d: d["moves"][0]["part_from"].update(index=1), "a.in_proj_weight: its parts must be moved once each"),
        (lambda d: d["moves"][0]["part_from"].update(index=3), "index must be below count"),
        (lambda d: d["moves"][0]["part_from"].update(count=0, index=0), "index must be below count"),
        (lambda d: d["moves"][0]["part_from"].update(count=4), "has no such parts"),
        (lambda d: d["moves"][0]["part_from"].update(word=""), "word must be a string"),
        (lambda d: d["moves"][0]["part_from"].update(index=True), "index must be below count"),
        (lambda d: d["moves"][0].update(part_from=7), "must be an object"),
        (lambda d: d["moves"][0].update(part_to={"word": "q", "index": 0, "count": 2}), "transpose does not make"),
        (lambda d: d["moves"][0].update(dtype="float16"), "its parts must be moved once each"),
        (lambda d: d["moves"].append({**d["moves"][0], "part_from": None, "target": "x"}), "must be an object"),
        (lambda d: d["filled"][0].update(shape=[1000]), "no more can be filled with zeros than is moved"),
        (lambda d: d["filled"][0].update(zero="yes"), "zero must be true or false"),
        (lambda d: d["target_ties"].append(["r.weight_ih_l0", "again"]), "target_ties"),
        (lambda d: d["target_ties"].append(["no one", "nobody"]), "target_ties"),
        (lambda d: d["target_ties"].append(["a.q_proj.weight", "a.q_proj.weight"]), "target_ties"),
    ],
)
def test_a_layout_file_of_parts_is_checked_strictly(tmp_path: Path, spoil: object, message: str) -> None:
    path = tmp_path / "layout.json"
    packed().save(path)
    data = json.loads(path.read_text())
    spoil(data)  # type: ignore[operator]
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=rf"layout\.json: not a layout file: .*{message}"):
        Layout.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1, "a": 2}', "[" * 100_000, "\x00"])
def test_what_is_no_layout_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "layout.json").write_text(text)
    with pytest.raises(CheckpointError, match="not a layout file"):
        Layout.load(tmp_path / "layout.json")
    with pytest.raises(CheckpointError, match=r"absent\.json: can't read the layout"):
        Layout.load(tmp_path / "absent.json")
