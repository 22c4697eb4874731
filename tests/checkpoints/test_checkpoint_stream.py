"""From file to file: the same bytes as in memory, in little memory, in shards, and on after a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoints._tiles as tiles
from alignment.checkpoint_diff import compare_checkpoints
from checkpoints import (
    CheckpointError,
    Extra,
    Layout,
    Move,
    Part,
    convert_proved,
    open_checkpoint,
    parse_size,
    read,
    read_checkpoint,
    reverse,
    stream,
    write,
)

SUFFIXES = [".safetensors", ".safetensors.index.json", ".pth", ".pdparams", ".npz"]


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs of 4 KiB, so that small tensors have many."""
    monkeypatch.setattr(tiles, "SLAB", 1 << 12)
    monkeypatch.setattr(tiles, "_WIDTH", 1 << 7)


def sample() -> tuple[dict[str, np.ndarray], Layout]:
    rng = np.random.default_rng(0)
    tensors = {
        "wide": rng.standard_normal((37, 211)).astype(np.float32),
        "square": rng.standard_normal((64, 64)).astype(np.float64),
        "half": rng.standard_normal((129, 33)).astype(np.float16),
        "brain": rng.standard_normal((5, 300)).astype(ml_dtypes.bfloat16),
        "conv": rng.standard_normal((19, 7, 3, 3)).astype(np.float32),
        "long": rng.standard_normal(5000).astype(np.float32),
        "nan": np.array([np.nan, -np.nan, -0.0, np.inf], np.float32),
        "bias": rng.standard_normal(6).astype(np.float32),
        "count": np.array(7, np.int64),
        "empty": np.empty((0, 3), np.float32),
        "mask": rng.random((9, 9)) < 0.5,
    }
    moves = []
    for name, array in tensors.items():
        if name == "count":
            continue
        operation = "transpose" if array.ndim == 2 else "reshape" if name == "bias" else "copy"
        shape = array.shape[::-1] if operation == "transpose" else (1, 6) if name == "bias" else array.shape
        moves.append(Move(name, f"to.{name}", operation, array.shape, shape, array.dtype.name))
    layout = Layout(
        "torch",
        "paddle",
        tuple(moves),
        dropped=(Extra("count", (), "int64", "a count", restored=True),),
        filled=(Extra("to.filled", (), "int64", "a count", restored=True),),
    )
    return tensors, layout


def bits(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    raw = {name: array.view(np.uint16) if array.dtype.itemsize == 2 else array for name, array in tensors.items()}
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in raw.items()}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("source", SUFFIXES)
@pytest.mark.parametrize("target", SUFFIXES)
def test_a_streamed_file_is_the_one_made_in_memory(tmp_path: Path, source: str, target: str) -> None:
    tensors, layout = sample()
    if "index" not in source:
        write(tmp_path / f"a{source}", tensors)
    else:
        write(tmp_path / f"a{source}", tensors, shard_size=20_000)
    done = stream(open_checkpoint(tmp_path / f"a{source}"), tmp_path / f"b{target}", layout)
    expected, proof = convert_proved(tensors, layout)
    assert (done.proof, done.kept) == (proof, 0)
    (tmp_path / "memory").mkdir()
    write(tmp_path / "memory" / f"b{target}", expected)
    made = files(tmp_path / "memory")
    assert {name: content for name, content in files_of(tmp_path).items() if name in made} == made
    assert bits(read(tmp_path / f"b{target}")) == bits(expected)
    # And back, from what a foreign reader would find.
    stream(open_checkpoint(tmp_path / f"b{target}"), tmp_path / f"c{source}", reverse(layout))
    back = read(tmp_path / f"c{source}")
    assert back.pop("count") == 0
    del tensors["count"]
    assert bits(back) == bits(tensors)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.permutations(range(4)),
    st.sampled_from(["u1", "f2", "f4", "f8", "c16"]),
)
def test_any_strides_are_written_and_compared(shape: list[int], order: list[int], dtype: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    axes = [axis for axis in order if axis < len(shape)]
    array = np.random.default_rng(0).integers(0, 99, shape).astype(dtype).transpose(axes)
    with ThreadPoolExecutor(2) as pool, open(os.devnull) as _:  # noqa: PTH123
        descriptor = os.memfd_create("x")
        tiles.write_at(pool, descriptor, 5, array, lambda _: None)
        content = os.pread(descriptor, array.nbytes + 10, 5)
        os.close(descriptor)
        assert content == array.tobytes()
        other = np.array(array, order="C")
        assert tiles.equal_bits(pool, array, other, lambda _: None)
        other.reshape(-1)[-1] += 1
        assert not tiles.equal_bits(pool, array, other, lambda _: None)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz", ".pdparams"])
def test_memory_stays_below_the_largest_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(tiles, "SLAB", 1 << 18)
    monkeypatch.setattr(tiles, "_WIDTH", 1 << 11)
    array = np.arange(3 << 20, dtype=np.float32).reshape(3 << 10, 1 << 10)
    write(tmp_path / f"a{suffix}", {"w": array, "v": array + 1})
    moves = tuple(Move(n, n, "transpose", array.shape, array.shape[::-1], "float32") for n in "wv")
    tracemalloc.start()
    opened = open_checkpoint(tmp_path / f"a{suffix}")
    stream(opened, tmp_path / f"b{suffix}", Layout("torch", "paddle", moves))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 << 20
    assert np.array_equal(read(tmp_path / f"b{suffix}")["v"], array.T + 1)


def test_opening_reads_no_tensor(tmp_path: Path) -> None:
    tensors, _ = sample()
    for suffix in SUFFIXES:
        write(tmp_path / f"a{suffix}", tensors)
        tracemalloc.start()
        opened = open_checkpoint(tmp_path / f"a{suffix}")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 600_000
        assert {name: held.shape for name, held in opened.tensors.items()} == {n: a.shape for n, a in tensors.items()}
        for name, held in opened.tensors.items():
            array = held.read()
            assert (array.shape, array.dtype) == (held.shape, held.dtype)
            assert array.tobytes() == tensors[name].tobytes()
            assert not array.flags.writeable or not array.size
        opened.release()
        assert opened.tensors["wide"].read().tobytes() == tensors["wide"].tobytes()


def packed() -> tuple[dict[str, np.ndarray], Layout]:
    """A packed tensor whose three parts are transposed apart, beside a second name of it, and one that must be zero."""
    rng = np.random.default_rng(0)
    whole = rng.standard_normal((96, 40)).astype(np.float32)
    tensors = {"in": whole, "again": whole, "zeros": np.zeros(3, np.float32)}
    moves = tuple(
        Move("in", f"{word}.w", "transpose", (96, 40), (40, 32), "float32", Part(word, index, 3))
        for index, word in enumerate("qkv")
    )
    dropped = (Extra("zeros", (3,), "float32", "never trained", restored=True, zero=True),)
    return tensors, Layout("torch", "paddle", moves, dropped, source_ties=(("in", "again"),))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_parts_second_names_and_zeros(tmp_path: Path, suffix: str) -> None:
    tensors, layout = packed()
    write(tmp_path / f"a{suffix}", tensors)
    done = stream(open_checkpoint(tmp_path / f"a{suffix}"), tmp_path / f"b{suffix}", layout)
    expected, proof = convert_proved(tensors, layout)
    assert done.proof == proof
    assert bits(read(tmp_path / f"b{suffix}")) == bits(expected)
    stream(open_checkpoint(tmp_path / f"b{suffix}"), tmp_path / f"c{suffix}", reverse(layout))
    assert bits(read(tmp_path / f"c{suffix}")) == bits(tensors)
    for pair in ("ab", "ba"):
        found = compare_checkpoints(*(tmp_path / f"{name}{suffix}" for name in pair), layout)
        assert found.verdict == "equal"
        assert len(found.tensors) == 3
    write(tmp_path / f"a{suffix}", tensors | {"zeros": np.ones(3, np.float32)})
    with pytest.raises(CheckpointError, match="zeros: has values other than zero"):
        stream(open_checkpoint(tmp_path / f"a{suffix}"), tmp_path / f"d{suffix}", layout)
    lacking = replace(reverse(layout), moves=reverse(layout).moves[:2])
    write(tmp_path / f"b{suffix}", {name: array for name, array in expected.items() if name != "v.w"})
    with pytest.raises(CheckpointError, match="in: not all of its parts are filled"):
        stream(open_checkpoint(tmp_path / f"b{suffix}"), tmp_path / f"d{suffix}", lacking)


# ---- interruption --------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import checkpoints._tiles as tiles
from alignment.checkpoint_diff import compare_checkpoints
from checkpoints import Layout, open_checkpoint, stream
tiles.SLAB, left = 1 << 12, int(sys.argv[4])
plain = os.pwrite
def pwrite(*arguments):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*arguments)
os.pwrite = pwrite
size = int(sys.argv[5]) or None
stream(open_checkpoint(sys.argv[1]), sys.argv[2], Layout.load(sys.argv[3]), shard_size=size)
"""


def kill_after(
    tmp_path: Path, source: Path, destination: Path, layout: Layout, writes: int, shard_size: int = 0
) -> int:
    layout.save(tmp_path / "layout.json")
    arguments = [source, destination, tmp_path / "layout.json", writes, shard_size]
    return subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], timeout=120, check=False).returncode


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_killed_conversion_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    tensors, layout = sample()
    source, whole, out = tmp_path / "a.pth", tmp_path / "whole", tmp_path / "out"
    whole.mkdir()
    out.mkdir()
    write(source, tensors)
    shard_size = 20_000 if "index" in suffix else 0
    stream(open_checkpoint(source), whole / f"b{suffix}", layout, shard_size=shard_size or None)
    for writes in (3, 12, 12):  # each continues what the last one left
        assert kill_after(tmp_path, source, out / f"b{suffix}", layout, writes, shard_size) == -signal.SIGKILL
        left = list(out.iterdir())
        assert left
        assert all(path.name.endswith(".part") for path in left)
    written = []
    plain = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda *a: written.append(len(a[1])) or plain(*a))
    done = stream(open_checkpoint(source), out / f"b{suffix}", layout, shard_size=shard_size or None)
    assert 3 < done.kept < len(layout.moves) + 1
    assert sum(written) < done.proof.bytes * 0.8
    assert files(out) == files(whole)
    assert done.proof == convert_proved(tensors, layout)[1]


def test_what_a_dead_process_left_is_proved_and_not_trusted(tmp_path: Path) -> None:
    tensors, layout = sample()
    source, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write(source, tensors)
    stream(open_checkpoint(source), out, layout)
    good = out.read_bytes()
    out.unlink()
    assert kill_after(tmp_path, source, out, layout, 20) == -signal.SIGKILL
    (part,) = tmp_path.glob(".b.safetensors.*.part")
    damaged = bytearray(part.read_bytes())
    for at in range(0, len(damaged), 997):
        damaged[at] ^= 255
    part.write_bytes(damaged)
    assert stream(open_checkpoint(source), out, layout).kept < 5
    assert out.read_bytes() == good
    assert not part.exists()


def test_a_source_that_changed_starts_anew(tmp_path: Path) -> None:
    tensors, layout = sample()
    source, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write(source, tensors)
    assert kill_after(tmp_path, source, out, layout, 20) == -signal.SIGKILL
    changed = tensors | {"long": tensors["long"] + 1}
    write(source, changed)
    assert stream(open_checkpoint(source), out, layout).kept == 0
    assert bits(read(out)) == bits(convert_proved(changed, layout)[0])
    assert not list(tmp_path.glob(".*.part"))
    # Another layout is another conversion, too.
    out.unlink()
    assert kill_after(tmp_path, source, out, layout, 20) == -signal.SIGKILL
    renamed = replace(layout, moves=(replace(layout.moves[0], target="other"), *layout.moves[1:]))
    assert stream(open_checkpoint(source), out, renamed).kept == 0
    assert not list(tmp_path.glob(".*.part"))


def test_two_at_once_do_not_write_one_file(tmp_path: Path) -> None:
    tensors, layout = sample()
    source, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write(source, tensors)

    def meanwhile(_: Any) -> None:
        with pytest.raises(CheckpointError, match=r"b\.safetensors: another process is writing it"):
            stream(open_checkpoint(source), out, layout)

    stream(open_checkpoint(source), out, layout, accept=meanwhile)
    assert bits(read(out)) == bits(convert_proved(tensors, layout)[0])


@pytest.mark.parametrize("failure", [KeyboardInterrupt, CheckpointError, OSError])
def test_any_other_failure_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    tensors, layout = sample()
    write(tmp_path / "a.pth", tensors)

    def refuse(_: Any) -> None:
        raise failure("no")

    for name in ("b.safetensors", "b.safetensors.index.json"):
        with pytest.raises((failure, CheckpointError)):
            stream(open_checkpoint(tmp_path / "a.pth"), tmp_path / name, layout, accept=refuse)
    assert list(files(tmp_path)) == ["a.pth"]


def test_a_wrong_write_is_noticed_by_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, layout = sample()
    write(tmp_path / "a.pth", tensors)
    plain = os.pwrite

    def flipped(descriptor: int, content: Any, at: int) -> int:
        wrong = bytearray(content)
        wrong[len(wrong) // 2] ^= 1
        return plain(descriptor, wrong, at)

    monkeypatch.setattr(os, "pwrite", flipped)
    with pytest.raises(CheckpointError, match="there and back is not bit-identical"):
        stream(open_checkpoint(tmp_path / "a.pth"), tmp_path / "b.pth", layout)
    assert list(files(tmp_path)) == ["a.pth"]


def test_a_full_disk_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, layout = sample()
    write(tmp_path / "a.pth", tensors)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(CheckpointError, match=r"b\.pth: needs [\d,]+ more bytes, and the disk has 1,000 left"):
        stream(open_checkpoint(tmp_path / "a.pth"), tmp_path / "b.pth", layout)
    assert list(files(tmp_path)) == ["a.pth"]


def test_every_problem_of_a_source_that_does_not_fit_is_told(tmp_path: Path) -> None:
    tensors, layout = sample()
    write(tmp_path / "a.pth", {**tensors, "wide": tensors["wide"].T.copy(), "odd": np.ones(1)})
    with pytest.raises(
        CheckpointError, match=r"a\.pth: this checkpoint does not fit.*2 problems\n.*wide: has shape.*\n.*odd"
    ):
        stream(open_checkpoint(tmp_path / "a.pth"), tmp_path / "b.pth", layout)
    tied = replace(layout, source_ties=(("wide", "square"),))
    write(tmp_path / "a.pth", tensors)
    with pytest.raises(CheckpointError, match=r"a\.pth: square: differs from wide"):
        stream(open_checkpoint(tmp_path / "a.pth"), tmp_path / "b.pth", tied)
    tied = replace(layout, target_ties=(("to.wide", "to.square"),))
    with pytest.raises(CheckpointError, match=r"a\.pth: to\.square would differ from to\.wide"):
        stream(open_checkpoint(tmp_path / "a.pth"), tmp_path / "b.pth", tied)
    assert list(files(tmp_path)) == ["a.pth"]


# ---- shards --------------------------------------------------------------------------------------------------------


def test_shards_are_of_the_size_asked_for_and_read_by_others(tmp_path: Path) -> None:
    tensors = {f"w{i}": np.full((10, i + 1), i, np.float32) for i in range(20)}
    index = tmp_path / "model.safetensors.index.json"
    write(index, tensors, shard_size=2000)
    content = json.loads(index.read_text())
    held = Counter(content["weight_map"].values())
    assert content["metadata"] == {"total_size": sum(array.nbytes for array in tensors.values())}
    assert sorted(held) == [f"model-{i:05}-of-{len(held):05}.safetensors" for i in range(1, len(held) + 1)]
    for shard in held:
        part = read(tmp_path / shard)
        assert sum(array.nbytes for array in part.values()) <= 2000 or len(part) == 1
    assert {name: array.tolist() for name, array in read(index).items()} == {n: a.tolist() for n, a in tensors.items()}
    torch_library = pytest.importorskip("safetensors.torch")
    for shard in held:
        assert set(torch_library.load_file(tmp_path / shard)) <= set(tensors)
    write(tmp_path / "one.safetensors.index.json", {"w": np.ones(3)})
    assert (tmp_path / "one-00001-of-00001.safetensors").exists()
    with pytest.raises(CheckpointError, match=r"only an index has shards; name it MODEL\.safetensors\.index\.json"):
        write(tmp_path / "x.safetensors", tensors, shard_size=5)


def test_an_index_that_lies_is_refused(tmp_path: Path) -> None:
    index = tmp_path / "m.safetensors.index.json"
    write(tmp_path / "a.safetensors", {"a": np.ones(2), "b": np.ones(3)})
    write(tmp_path / "b.safetensors", {"b": np.ones(3)})
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "a.safetensors", {"a": np.ones(2)})

    def told(where: Any, **more: Any) -> str:
        index.write_text(json.dumps({"weight_map": where, **more}))
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(index)
        return str(caught.value)

    for name in (
        "sub/a.safetensors",
        "../a.safetensors",
        str(tmp_path / "a.safetensors"),
        "sub\\a.safetensors",
        "a.pth",
        "",
    ):
        assert "refused: " in told({"a": name})
    assert "does not hold what the index says: b" in told({"a": "a.safetensors"})
    assert "does not hold what the index says: b" in told({"a": "a.safetensors", "b": "b.safetensors"})  # b in both
    assert "does not hold what the index says: c" in told({"b": "b.safetensors", "c": "b.safetensors"})
    assert "c.safetensors: can't be read: No such file" in told({"c": "c.safetensors"})
    assert 'no "weight_map"' in told({"a": 3})
    assert 'no "weight_map"' in told([])
    index.write_text('{"weight_map": {"b": "b.safetensors", "b": "a.safetensors"}}')
    with pytest.raises(CheckpointError, match="stands twice"):
        open_checkpoint(index)
    data = (tmp_path / "b.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(data[:-1])
    assert "b.safetensors: " in told({"b": "b.safetensors"})
    (tmp_path / "b.safetensors").write_bytes(data)
    index.write_text(json.dumps({"metadata": {"total_size": 7}, "weight_map": {"b": "b.safetensors"}}))
    assert read_checkpoint(index).notes == ("the index announces 7 bytes of tensors; its shards hold 24",)


def test_shards_do_not_overwrite_their_source(tmp_path: Path) -> None:
    write(tmp_path / "m.safetensors.index.json", {"w": np.ones(3)})
    before = files(tmp_path)
    same = Layout("torch", "paddle", (Move("w", "w", "copy", (3,), (3,), "float64"),))
    source = open_checkpoint(tmp_path / "m.safetensors.index.json")
    with pytest.raises(CheckpointError, match="is the source itself"):
        stream(source, tmp_path / "m.safetensors.index.json", same)
    with pytest.raises(CheckpointError, match="is the source itself"):
        stream(source, tmp_path / "m-00001-of-00001.safetensors", same)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("500MB", 5 * 10**8), ("2GiB", 2**31), ("1.5 kb", 1500), ("3B", 3)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "0", "1XB", "0.5", "1e9", "1 000"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(repr(text))):
        parse_size(text)


def test_a_slow_conversion_reports_its_progress(tmp_path: Path) -> None:
    tensors, layout = sample()
    write(tmp_path / "a.pth", tensors)
    told: list[tuple[str, int | None, int | None]] = []
    stream(open_checkpoint(tmp_path / "a.pth"), tmp_path / "b.npz", layout, progress=lambda *a: told.append(a))
    done = [entry[1] or 0 for entry in told]
    assert done == sorted(done)
    assert {entry[2] for entry in told} == {sum(a.nbytes for a in convert_proved(tensors, layout)[0].values())}
    assert "converting to.wide" in [entry[0] for entry in told]
