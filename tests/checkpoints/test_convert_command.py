"""`align convert`: every twin both ways, with live models; what it refuses; what it prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from alignment.cli import run
from alignment.frameworks import get_framework
from alignment.twins import TWINS
from checkpoints import Layout, read, write

pytest.importorskip("torch")
pytest.importorskip("paddle")

SMALL: dict[str, dict[str, Any]] = {
    "fastformer-classifier": {
        "vocab_size": 11, "num_classes": 3, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 3,
        "intermediate_size": 12, "max_position_embeddings": 6, "pooler_count": 2,
    },
    "fast-transformer": {
        "num_tokens": 13, "dim": 8, "depth": 3, "max_seq_len": 7, "heads": 3, "dim_head": 8, "ff_mult": 2,
        "absolute_pos_emb": True,
    },
    "fast-transformer rotary": {
        "num_tokens": 13, "dim": 8, "depth": 2, "max_seq_len": 7, "heads": 2, "dim_head": 4, "ff_mult": 3,
        "absolute_pos_emb": False,
    },
    "fast-transformer-classifier": {
        "num_classes": 4, "num_tokens": 13, "dim": 8, "depth": 2, "max_seq_len": 7, "heads": 2, "dim_head": 4,
        "ff_mult": 2, "absolute_pos_emb": True,
    },
    "fastformer-text-classifier": {"vocab_size": 9, "num_classes": 3, "embed": 8, "num_attention_heads": 2},
}  # fmt: skip


def state_of(case: str, framework: str = "torch", seed: int = 3) -> dict[str, np.ndarray]:
    twin = TWINS[case.removesuffix(" rotary")]
    side = next(side for side in (twin.reference, twin.candidate) if side.framework == framework)
    adapter = get_framework(framework)
    return adapter.read_state(adapter.build(side.target, twin.settings | SMALL[case], seed))


def bits(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: (array.dtype.name, array.shape, array.tobytes()) for name, array in tensors.items()}


@pytest.mark.parametrize("case", list(SMALL))
def test_every_twin_converts_both_ways_without_being_told_its_sizes(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = TWINS[case.removesuffix(" rotary")]
    state = state_of(case)
    there, away, back, again = (tmp_path / name for name in ("a.pth", "b.pdparams", "c.safetensors", "d.pth"))
    write(there, state)
    layout = tmp_path / "layout.json"
    assert run(["convert", str(there), str(away), "--twin", twin.name, "--save-layout", str(layout)]) == 0
    printed = capsys.readouterr().out
    assert "torch → paddle" in printed
    assert re.search(r"there and back\s+bit-identical", printed)
    assert re.search(r"live models\s+hold equal tensors, bit for bit", printed)
    assert re.search(rf"tensors moved\s+{len(state)} ", printed)
    assert run(["convert", str(away), str(back), "--twin", twin.name, "--to", "torch"]) == 0
    assert bits(read(back)) == bits(state)
    # The saved layout does without the models, and backwards where the files say so.
    assert run(["convert", str(away), str(again), "--layout", str(layout)]) == 0
    assert bits(read(again)) == bits(state)

    # Both live models, filled by their own frameworks' loaders, hold the same tensors.
    paddle = get_framework("paddle")
    model = paddle.build(twin.candidate.target, twin.settings | SMALL[case], 5)
    paddle.load_state(model, read(away))
    held = paddle.read_state(model)
    transposed = {move.target for move in Layout.load(layout).moves if move.operation == "transpose"}
    assert {name: (array.T if name in transposed else array).tobytes() for name, array in held.items()} == {
        name: array.tobytes() for name, array in state.items()
    }
    assert 0 < len(transposed) < len(state)


def test_a_square_linear_weight_is_transposed(tmp_path: Path) -> None:
    state = state_of("fastformer-text-classifier")
    write(tmp_path / "a.pth", state)
    arguments = [
        "convert",
        str(tmp_path / "a.pth"),
        str(tmp_path / "b.pdparams"),
        "--twin",
        "fastformer-text-classifier",
    ]
    assert run(arguments) == 0
    found = read(tmp_path / "b.pdparams")
    assert np.array_equal(found["query.weight"], state["query.weight"].T)
    assert not np.array_equal(found["query.weight"], state["query.weight"])
    assert np.array_equal(found["embedding.weight"], state["embedding.weight"])


def test_half_precision_stays_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = state_of("fastformer-text-classifier")
    twin = ["--twin", "fastformer-text-classifier"]
    for dtype in ("float16", "bfloat16"):
        half = {
            name: array.astype(dtype if dtype == "float16" else ml_dtypes.bfloat16) for name, array in state.items()
        }
        there, away, back = (tmp_path / f"{dtype}{suffix}" for suffix in (".pth", ".pdparams", "_back.pth"))
        write(there, half)
        assert run(["convert", str(there), str(away), *twin]) == 0
        assert "not compared: other dtypes or names than the models'" in capsys.readouterr().out
        if dtype == "bfloat16":
            assert run(["convert", str(away), str(back), *twin]) == 2
            assert "sixteen raw bits may be bfloat16" in capsys.readouterr().err
            assert not back.exists()
        assert run(["convert", str(away), str(back), *twin, "--bfloat16"]) == 0
        assert bits(read(back)) == bits(half)

    full = tmp_path / "full.json"
    write(tmp_path / "full.pth", state)
    assert (
        run(["convert", str(tmp_path / "full.pth"), str(tmp_path / "y.pdparams"), *twin, "--save-layout", str(full)])
        == 0
    )
    assert run(["convert", str(away), str(back), "--layout", str(full), "--force"]) == 2
    assert run(["convert", str(away), str(back), "--layout", str(full), "--force", "--bfloat16"]) == 0
    assert bits(read(back)) == bits(half)


def test_other_names_come_through_a_name_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = state_of("fast-transformer")
    published = {f"module.{name}": array for name, array in state.items()} | {"module.position_ids": np.arange(4)}
    write(tmp_path / "a.pth", published)
    (tmp_path / "names.toml").write_text(
        "drop = ['module\\.position_ids']\n[[rename]]\npattern = 'module\\.(.*)'\nreplace = '\\1'\n"
    )
    arguments = ["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.pdparams"), "--twin", "fast-transformer"]
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert "does not tell all sizes of fast-transformer (it has no " in error
    assert "--set num_tokens=VALUE" in error
    assert "--names FILE" in error
    assert run([*arguments, "--names", str(tmp_path / "names.toml")]) == 0
    assert "module.position_ids: dropped by the name map" in capsys.readouterr().out
    found = read(tmp_path / "b.pdparams")
    assert set(found) == set(state)
    assert np.array_equal(found["layers.1.0.fn.to_qkv.weight"], state["layers.1.0.fn.to_qkv.weight"].T)


def test_sizes_may_be_given_and_must_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.pth", state_of("fastformer-text-classifier"))
    arguments = [
        "convert",
        str(tmp_path / "a.pth"),
        str(tmp_path / "b.pdparams"),
        "--twin",
        "fastformer-text-classifier",
    ]
    assert run([*arguments, "--set", "num_classes=4"]) == 2
    error = capsys.readouterr().err
    assert "a.pth: this checkpoint does not fit the layout from torch to paddle: 2 problems" in error
    assert "fc.weight: has shape [3, 8], expected [4, 8]" in error
    assert run([*arguments, "--set", "classes=4"]) == 2
    assert run([*arguments, "--set", "num_classes=3"]) == 0


def test_tied_values_that_differ_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = state_of("fast-transformer")
    state["layers.2.0.fn.to_q_attn_logits.weight"] = state["layers.2.0.fn.to_q_attn_logits.weight"] + 1
    write(tmp_path / "a.pth", state)
    assert run(["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.pdparams"), "--twin", "fast-transformer"]) == 2
    error = capsys.readouterr().err
    assert "layers.2.0.fn.to_q_attn_logits.weight: differs from layers.0.0.fn.to_q_attn_logits.weight" in error
    assert not (tmp_path / "b.pdparams").exists()


def test_a_checkpoint_without_the_further_tied_names_is_complete(tmp_path: Path) -> None:
    state = state_of("fast-transformer")
    lean = {name: array for name, array in state.items() if not re.match(r"layers\.[12].*attn_logits", name)}
    assert len(lean) == len(state) - 4
    for dtype in ("float32", "float16"):
        there, away = tmp_path / f"{dtype}.pth", tmp_path / f"{dtype}.pdparams"
        write(there, {name: array.astype(dtype) for name, array in lean.items()})
        assert run(["convert", str(there), str(away), "--twin", "fast-transformer"]) == 0
        assert {name: array.dtype.name for name, array in read(away).items()} == dict.fromkeys(state, dtype)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --twin NAME or --layout FILE"),
        (["--twin", "fast-transformer", "--layout", "x.json"], "give --twin NAME or --layout FILE"),
        (["--layout", "x.json", "--set", "a=1"], "--mapping and --drop-ignored go with --twin"),
        (["--twin", "nobody"], "unknown twin 'nobody'; built in: "),
        (["--twin", "fast-transformer", "--to", "jax"], "'jax' is not one of"),
        (["--layout", "absent.json"], "can't read the layout"),
        (["--twin", "fast-transformer", "--names", "absent.toml"], "can't read the name map"),
        (["--twin", "fast-transformer", "--entry", "ema"], "no state dict under 'ema'"),
    ],
)
def test_misuse_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    write(tmp_path / "a.pth", state_of("fast-transformer"))
    assert run(["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.pdparams"), *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "b.pdparams").exists()


def test_files_that_are_there_or_cannot_be_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, destination, twin = tmp_path / "a.pth", tmp_path / "b.pdparams", ["--twin", "fast-transformer"]
    write(source, state_of("fast-transformer"))

    def error(*arguments: str) -> str:
        assert run(["convert", *arguments, *twin]) == 2
        return capsys.readouterr().err

    destination.write_bytes(b"precious")
    assert "exists; choose another name, or overwrite it with --force" in error(str(source), str(destination))
    assert destination.read_bytes() == b"precious"
    assert run(["convert", str(source), str(destination), *twin, "--force"]) == 0
    assert "is the source itself" in error(str(source), str(source), "--force")
    assert "there is no folder" in error(str(source), str(tmp_path / "no" / "b.pdparams"))
    assert "the suffix must be one of" in error(str(source), str(tmp_path / "b.onnx"))
    assert "can't be read: No such file" in error(str(tmp_path / "absent.pth"), str(tmp_path / "c.pdparams"))
    told = error(str(source), str(tmp_path / "b.safetensors"))
    assert "b.safetensors: the suffix does not tell the framework; give --to torch or paddle" in told
    layout = tmp_path / "layout.json"
    layout.write_text("precious")
    assert "exists" in error(str(source), str(tmp_path / "c.pdparams"), "--save-layout", str(layout))
    assert layout.read_text() == "precious"
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.pth", "b.pdparams", "layout.json"}


def test_a_layout_of_another_direction_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = state_of("fast-transformer")
    write(tmp_path / "a.pth", state)
    layout = ["--layout", str(tmp_path / "layout.json")]
    there = ["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.pth"), "--twin", "fast-transformer"]
    assert run([*there, "--to", "paddle", "--save-layout", layout[1]]) == 0
    assert run(["convert", str(tmp_path / "a.pth"), str(tmp_path / "c.pth"), *layout]) == 2
    assert (
        "the layout goes from torch to paddle, but the files or options say torch to torch" in capsys.readouterr().err
    )
    assert run(["convert", str(tmp_path / "a.pth"), str(tmp_path / "c.npz"), *layout]) == 0


def test_within_one_framework_only_the_format_changes(tmp_path: Path) -> None:
    state = state_of("fast-transformer", "paddle")
    write(tmp_path / "a.pdparams", state)
    arguments = ["convert", str(tmp_path / "a.pdparams"), str(tmp_path / "b.safetensors"), "--twin", "fast-transformer"]
    assert run([*arguments, "--to", "paddle"]) == 0
    assert bits(read(tmp_path / "b.safetensors")) == bits(state)


def test_the_recorded_originals_load_through_the_converter(reference_dir: Path, tmp_path: Path) -> None:
    names = {
        "fastformer_official_rich": "fastformer-classifier",
        "fast_transformer_absolute_rich": "fast-transformer",
        "fast_transformer_rotary_rich": "fast-transformer",
        "fast_transformer_pooled_rich": "fast-transformer-classifier",
        "fastformer_single_rich": "fastformer-text-classifier",
    }
    for name, twin in names.items():
        recorded = read(reference_dir / f"{name}.safetensors")
        state = {key.removeprefix("weight."): a for key, a in recorded.items() if key.startswith("weight.")}
        there, away, back = (tmp_path / f"{name}{suffix}" for suffix in (".pth", ".pdparams", "_back.pth"))
        write(there, state)
        assert run(["convert", str(there), str(away), "--twin", twin]) == 0, name
        assert run(["convert", str(away), str(back), "--twin", twin]) == 0, name
        assert bits(read(back)) == bits(state)


def test_interrupting_leaves_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.pth", state_of("fast-transformer"))

    def interrupted(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("checkpoints._files.os.fsync", interrupted)
    assert run(["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.pdparams"), "--twin", "fast-transformer"]) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pth"]


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", "--help"]) == 0
    shown = capsys.readouterr().out
    for option in (
        "--twin",
        "--set",
        "--layout",
        "--save-layout",
        "--from",
        "--to",
        "--names",
        "--entry",
        "--bfloat16",
        "--shard-size",
    ):
        assert option in shown


def test_no_output_may_be_an_input_or_the_other_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, destination = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write(source, state_of("fastformer-text-classifier"))
    before = source.read_bytes()
    common = ["--twin", "fastformer-text-classifier", "--from", "torch", "--to", "paddle", "--force", "--save-layout"]
    for layout in (source, destination):
        assert run(["convert", str(source), str(destination), *common, str(layout)]) == 2
        assert "named twice" in capsys.readouterr().err
    assert run(["convert", str(source), str(destination), *common, str(tmp_path / "no" / "layout.json")]) == 2
    assert source.read_bytes() == before
    assert not destination.exists()


def test_shards_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = state_of("fast-transformer")
    source, index, layout = tmp_path / "a.pth", tmp_path / "b.safetensors.index.json", tmp_path / "layout.json"
    write(source, state)
    there = ["convert", str(source), str(index), "--to", "paddle"]
    assert run([*there, "--twin", "fast-transformer", "--shard-size", "4kB", "--save-layout", str(layout)]) == 0
    assert re.search(r"live models\s+hold equal tensors, bit for bit", capsys.readouterr().out)
    shards = sorted(tmp_path.glob("b-*.safetensors"))
    assert len(shards) > 2
    back = ["convert", str(index), str(tmp_path / "c.pth"), "--layout", str(layout)]
    assert run(back) == 0
    assert bits(read(tmp_path / "c.pth")) == bits(state)
    # What is there is not overwritten, a shard no more than the index; and a part of the source never.
    index.unlink()
    assert run([*there, "--layout", str(layout)]) == 2
    assert f"{shards[0].name}: exists" in capsys.readouterr().err.replace("\n", "")
    assert run([*there, "--layout", str(layout), "--shard-size", "nothing"]) == 2
    single = ["convert", str(source), str(tmp_path / "d.pdparams"), "--layout", str(layout), "--shard-size", "1GB"]
    assert run(single) == 2
    assert "only an index has shards" in capsys.readouterr().err
    assert run([*there, "--layout", str(layout), "--force", "--shard-size", "4kB"]) == 0
    assert [path.name for path in sorted(tmp_path.glob("b-*.safetensors"))] == [path.name for path in shards]
