"""Files written by each framework are read without it, files written here are read by each framework: bit for bit."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from checkpoints import CheckpointError, check_destination, read, read_checkpoint, write

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pdparams", ".npz")


def bits(array: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return array.shape, array.tobytes()


def sample() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    odd = np.array([0x7FC00001, 0xFFC12345, 0x7F800001, 0x80000000, 0, 1], np.uint32).view(np.float32)
    return {
        "weight": rng.standard_normal((3, 5)).astype(np.float32),
        "odd bits": odd,
        "half": np.array([0x7E01, 0x8000, 0x0001], np.uint16).view(np.float16),
        "brain": np.array([0x7FC1, 0x8000, 0x0001, 0x3F80], np.uint16).view(ml_dtypes.bfloat16).reshape(2, 2),
        "double": rng.standard_normal((2, 1, 4)),
        "count": np.array(7, np.int64),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
        "bytes": np.arange(5, dtype=np.uint8),
        "größe.μ": rng.standard_normal(3).astype(np.float32),
        "columns": np.asfortranarray(rng.standard_normal((4, 3)).astype(np.float32)),
        "every other": np.arange(10, dtype=np.int32)[::2],
        "big-endian": np.array([1.5, -2.5], ">f4"),
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read_again(tmp_path: Path, suffix: str) -> None:
    tensors = sample()
    write(tmp_path / f"a{suffix}", tensors)
    found = read(tmp_path / f"a{suffix}")
    assert set(found) == set(tensors)
    for name, array in tensors.items():
        native = array.astype(array.dtype.newbyteorder("<"))
        assert bits(found[name]) == bits(native), name
        assert found[name].flags.c_contiguous
        assert found[name].flags.writeable
        if name != "brain":
            assert found[name].dtype == native.dtype, name


def test_bfloat16_is_named_where_the_format_has_a_word_for_it(tmp_path: Path) -> None:
    tensors = {"a": np.ones(2, ml_dtypes.bfloat16)}
    names = {}
    for suffix in SUFFIXES:
        write(tmp_path / f"a{suffix}", tensors)
        names[suffix] = read(tmp_path / f"a{suffix}")["a"].dtype.name
    assert names == {
        ".safetensors": "bfloat16",
        ".pth": "bfloat16",
        ".pt": "bfloat16",
        ".bin": "bfloat16",
        ".pdparams": "uint16",
        ".npz": "void16",
    }


def test_torch_reads_what_is_written_here(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = sample() | {
        "u16": np.arange(3, dtype=np.uint16),
        "u64": np.array([2**64 - 1], np.uint64),
        "f8": np.array([1, 2], ml_dtypes.float8_e4m3fn),
        "c": np.array([1 + 2j], np.complex64),
    }
    write(tmp_path / "a.pth", tensors)
    for options in ({}, {"mmap": True}):
        found = torch.load(tmp_path / "a.pth", weights_only=True, **options)
        assert list(found) == list(tensors)
        for name, array in tensors.items():
            raw = found[name].contiguous().reshape(-1).view(torch.uint8).numpy()
            assert raw.tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes(), name
            assert tuple(found[name].shape) == array.shape
    assert found["brain"].dtype == torch.bfloat16
    assert found["u16"].dtype == torch.uint16
    assert found["f8"].dtype == torch.float8_e4m3fn


def test_odd_strides_of_axes_of_size_one_are_not_written(tmp_path: Path) -> None:
    one = np.arange(6, dtype=np.float32).reshape(1, 6)[::-1]
    wide = np.lib.stride_tricks.as_strided(np.arange(3, dtype=np.float32), (3, 1), (4, 400))
    state = {"a": one, "b": wide, "c": np.empty((2, 0, 3), np.float32)}
    write(tmp_path / "a.pth", state)
    assert {name: bits(array) for name, array in read(tmp_path / "a.pth").items()} == {
        name: bits(array) for name, array in state.items()
    }
    torch = pytest.importorskip("torch")
    assert torch.load(tmp_path / "a.pth", weights_only=True)["a"].stride() == (6, 1)


def test_storages_start_where_torch_can_map_them(tmp_path: Path) -> None:
    write(tmp_path / "a.pth", {"a": np.ones(3, np.float32), "long name " * 9: np.ones(5)})
    data = (tmp_path / "a.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            name_length, extra_length = np.frombuffer(data, "<u2", 2, info.header_offset + 26)
            assert (info.header_offset + 30 + int(name_length) + int(extra_length)) % 64 == 0


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older format"])
def test_torch_files_are_read_without_torch(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32)
    tied = torch.nn.Parameter(torch.randn(3, 2))
    content = OrderedDict(
        slice=base[4:10],
        transposed=base.reshape(4, 6).t(),
        strided=base[::5],
        first=tied,
        second=tied,
        half=torch.randn(4).half(),
        brain=torch.randn(4).bfloat16(),
        scalar=torch.tensor(3),
        empty=torch.zeros(0, 3),
        flag=torch.tensor([True, False]),
        wide=torch.ones(2, dtype=torch.float64),
        complex=torch.ones(2, dtype=torch.complex64),
    )
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read(tmp_path / "a.pth")
    assert list(found) == list(content)
    for name, tensor in content.items():
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert bits(found[name]) == (tuple(tensor.shape), raw), name
        assert found[name].dtype.name == str(tensor.dtype).removeprefix("torch."), name


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_s_lazy_conjugate_and_negative_are_not_read_as_other_values(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    values = torch.tensor([1 + 2j, 3 - 4j])
    for tensor, flag in ((values.conj(), "conj"), (values.conj().imag, "neg")):
        torch.save({"w": tensor}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=rf"a\.pth: a tensor with torch's flag '{flag}'.*resolve_{flag}"):
            read(path)
    torch.save({"w": values.conj().resolve_conj()}, path, _use_new_zipfile_serialization=zipped)
    assert read(path)["w"].tolist() == [1 - 2j, 3 + 4j]


@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_leaves_beside_the_weights_is_no_obstacle(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    weight = torch.arange(4.0)
    marked = weight.clone()
    marked.note = "an attribute"
    beside = {
        "random": np.random.default_rng(7).bit_generator.state | {"more": 2**2000},
        "seen": Counter("hello"),
        "lists": defaultdict(list, {"a": [1]}),
        "tensors": defaultdict(torch.Tensor),
        "device": torch.device("cuda", 1),
        "cpu": torch.device("cpu"),
        "name": np.str_("résumé"),
        "nothing": np.str_(""),
        "long": np.str_("x" * 1000),
    }
    state = {"w": weight, "marked": marked, "mask": torch.ones(1).expand(3, 5), np.str_("key"): weight}
    torch.save(beside | state, path, _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(path)
    assert {name: array.tolist() for name, array in checkpoint.tensors.items()} == {
        name: tensor.tolist() for name, tensor in state.items()
    }
    assert [note.split()[2] for note in checkpoint.notes] == list(beside)
    torch.save(beside | {"model": state}, path, _use_new_zipfile_serialization=zipped)
    assert list(read(path)) == list(state)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_empty_tensor_of_paddle_is_read(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "a.pdparams"
    path.write_bytes(pickle.dumps({"w": np.ones(2), "e": np.empty((0, 3), np.float32)}, protocol))
    assert read(path)["e"].shape == (0, 3)


def test_the_state_dict_of_a_torch_module_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    torch.save(model.state_dict(), tmp_path / "a.pt")
    assert {name: bits(array) for name, array in read(tmp_path / "a.pt").items()} == {
        name: bits(tensor.numpy()) for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_paddle_files_are_read_without_paddle(tmp_path: Path, protocol: int) -> None:
    paddle = pytest.importorskip("paddle")
    model = paddle.nn.Sequential(paddle.nn.Linear(3, 4), paddle.nn.BatchNorm1D(4))
    state = model.state_dict() | {"brain": paddle.ones([2], dtype="bfloat16"), "scalar": paddle.to_tensor(3)}
    for content, name in ((state, "flat"), (state | {"epoch": 3}, "pairs")):
        paddle.save(content, str(tmp_path / f"{name}.pdparams"), protocol=protocol)
        found = read(tmp_path / f"{name}.pdparams")
        assert {key: bits(array) for key, array in found.items()} == {
            key: bits(tensor.numpy()) for key, tensor in state.items()
        }


def test_paddle_reads_what_is_written_here(tmp_path: Path) -> None:
    paddle = pytest.importorskip("paddle")
    tensors = {name: array for name, array in sample().items() if name != "big-endian"}
    write(tmp_path / "a.pdparams", tensors)
    found = paddle.load(str(tmp_path / "a.pdparams"))
    assert set(found) == set(tensors)
    for name, array in tensors.items():
        assert bits(found[name].numpy()) == bits(np.ascontiguousarray(array).reshape(array.shape)), name
    assert found["brain"].dtype == paddle.bfloat16
    model = paddle.nn.Linear(2, 3)
    wanted = {"weight": np.full((2, 3), 7, np.float32), "bias": np.arange(3, dtype=np.float32)}
    write(tmp_path / "b.pdparams", wanted)
    assert model.set_state_dict(paddle.load(str(tmp_path / "b.pdparams"))) == ([], [])
    assert bits(model.weight.numpy()) == bits(wanted["weight"])


def test_large_paddle_arrays_in_slices_are_joined(tmp_path: Path) -> None:
    whole = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = {
        "a": np.ones(2, np.float32),
        "w@@.0": whole.reshape(-1)[:4],
        "w@@.1": whole.reshape(-1)[4:],
        "UnpackBigParamInfor@@": {"w": {"OriginShape": (2, 3), "slices": ["w@@.0", "w@@.1"]}},
    }
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps(content, 2))
    found = read(tmp_path / "a.pdparams")
    assert set(found) == {"a", "w"}
    assert bits(found["w"]) == bits(whole)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_pickled_in_any_order_are_read(tmp_path: Path, protocol: int) -> None:
    content = {
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "swapped": np.arange(3, dtype=">i4"),
        "strided": np.arange(8, dtype=np.int16)[::3],
        "brain": np.ones(2, ml_dtypes.bfloat16),
        "best": np.float32(0.5),
    }
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps(content, protocol))
    checkpoint = read_checkpoint(tmp_path / "a.pdparams")
    assert checkpoint.notes == ("left out: best (float32, no tensor)",)
    assert set(checkpoint.tensors) == {"columns", "swapped", "strided", "brain"}
    for name, array in checkpoint.tensors.items():
        assert np.array_equal(array, content[name])
        assert array.flags.c_contiguous
        assert array.dtype.isnative


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_that_numpy_writes_are_read(tmp_path: Path, save: Callable[..., None]) -> None:
    content = {
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "swapped": np.arange(3, dtype=">i4"),
        "scalar": np.array(3.5, np.float16),
        "in/a/folder": np.arange(8)[::3],
    }
    save(tmp_path / "a.npz", **content)
    found = read(tmp_path / "a.npz")
    assert list(found) == list(content)
    for name, array in found.items():
        assert np.array_equal(array, content[name]), name
        assert array.flags.c_contiguous
        assert array.dtype.isnative
    write(tmp_path / "b.npz", content)
    with np.load(tmp_path / "b.npz", allow_pickle=False) as theirs:
        assert {name: theirs[name].tolist() for name in theirs} == {name: a.tolist() for name, a in content.items()}


def test_safetensors_agree_with_the_format_s_own_library(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    tensors = {name: np.array(array, array.dtype.newbyteorder("<"), order="C") for name, array in sample().items()}
    write(tmp_path / "ours.safetensors", tensors, {"format": "pt"})
    theirs = library.load_file(tmp_path / "ours.safetensors")
    assert {name: bits(array) for name, array in theirs.items()} == {name: bits(a) for name, a in tensors.items()}
    library.save_file(tensors, tmp_path / "theirs.safetensors", {"format": "np"})
    checkpoint = read_checkpoint(tmp_path / "theirs.safetensors")
    assert checkpoint.metadata == {"format": "np"}
    assert {name: bits(a) for name, a in checkpoint.tensors.items()} == {name: bits(a) for name, a in tensors.items()}


def test_safetensors_are_read_by_both_frameworks(tmp_path: Path) -> None:
    torch_library = pytest.importorskip("safetensors.torch")
    paddle = pytest.importorskip("paddle")
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float16)}
    write(tmp_path / "a.safetensors", tensors)
    assert {k: bits(v.numpy()) for k, v in torch_library.load_file(tmp_path / "a.safetensors").items()} == {
        k: bits(v) for k, v in tensors.items()
    }
    found = paddle.load(str(tmp_path / "a.safetensors"), safetensors=True)
    assert {k: bits(v.numpy()) for k, v in found.items()} == {k: bits(v) for k, v in tensors.items()}


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    tensors = {"a": np.ones(2), "b": np.zeros(3), "c": np.arange(4)}
    write(tmp_path / "model-1.safetensors", {"a": tensors["a"], "c": tensors["c"]})
    write(tmp_path / "model-2.safetensors", {"b": tensors["b"]})
    where = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    found = read(index)
    assert list(found) == ["a", "b", "c"]
    assert all(np.array_equal(found[name], array) for name, array in tensors.items())

    index.write_text(json.dumps({"weight_map": where | {"d": "model-2.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"does not hold what the index says: d"):
        read(index)
    index.write_text(json.dumps({"weight_map": {"a": "../model-1.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"refused: '../model-1.safetensors'"):
        read(index)
    index.write_text(json.dumps({"weight_map": {"a": "model-9.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"model-9.safetensors: can't be read: No such file"):
        read(index)


@pytest.mark.parametrize("suffix", [".pth", ".pdparams"])
def test_a_state_dict_nested_once_is_taken_and_said(tmp_path: Path, suffix: str) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / f"a{suffix}"

    def save(content: object) -> None:
        if suffix == ".pth":
            torch.save(content, path)
        else:
            path.write_bytes(pickle.dumps(content, 4))

    one = torch.ones(2) if suffix == ".pth" else np.ones(2)
    save({"epoch": 3, "state_dict": {"w": one}, "optimizer": {"state": {0: {"avg": one}}, "lr": 0.1}})
    checkpoint = read_checkpoint(path)
    assert list(checkpoint.tensors) == ["w"]
    assert checkpoint.notes == ("the state dict is the entry 'state_dict'; left out: epoch (int), optimizer (dict)",)

    save({"model": {"w": one}, "ema": {"w": one * 2}, "epoch": 1})
    with pytest.raises(CheckpointError, match=r"several state dicts.*model \(dict\), ema \(dict\), epoch \(int\)"):
        read(path)
    assert read(path, "ema")["w"].tolist() == [2, 2]
    with pytest.raises(CheckpointError, match="no state dict under 'epoch'"):
        read(path, "epoch")

    save({"w": one, "epoch": 4, "name": "x", "lr": 0.5})
    notes = read_checkpoint(path).notes
    assert [note.split(" (")[0] for note in notes] == ["left out: epoch", "left out: name", "left out: lr"]

    save({"w": one, "other": {"v": one}})
    with pytest.raises(CheckpointError, match="side by side"):
        read(path)
    save({"epoch": 4})
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read(path)
    save([one])
    with pytest.raises(CheckpointError, match="holds a list, not a state dict"):
        read(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_absent_empty_and_odd_paths_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with pytest.raises(CheckpointError, match=rf"a\{suffix}: can't be read: No such file"):
        read(path)
    path.touch()
    with pytest.raises(CheckpointError, match=rf"a\{suffix}: is empty"):
        read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="is a directory"):
        read(path)
    with pytest.raises(CheckpointError, match="is a directory"):
        write(path, {"a": np.ones(1)})
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="is not an ordinary file"):
        read(path)


def test_a_wrong_suffix_is_refused_with_the_right_ones(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.onnx: the suffix must be one of \.safetensors, .*\.npz"):
        read(tmp_path / "a.onnx")
    with pytest.raises(CheckpointError, match=r"the suffix must be one of"):
        write(tmp_path / "a.json", {})
    write(tmp_path / "a.pth", {"a": np.ones(1)})
    (tmp_path / "a.pth").rename(tmp_path / "a.pdparams")
    with pytest.raises(CheckpointError, match=r"a\.pdparams: is a zip archive, as torch writes"):
        read(tmp_path / "a.pdparams")
    write(tmp_path / "a.npz", {"a": np.ones(1)})
    (tmp_path / "a.npz").rename(tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"not one that torch\.save wrote"):
        read(tmp_path / "b.pth")


def test_destinations_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no folder"):
        write(tmp_path / "absent" / "a.pth", {"a": np.ones(1)})
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.access(closed, os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(CheckpointError, match="can't be written to"):
        check_destination(closed / "a.pth")


@pytest.mark.parametrize(
    ("suffix", "tensors", "message"),
    [
        (".pth", {"a": np.array([None])}, "dtype object"),
        (".pth", {"a": np.array(["x"])}, "dtype <U1"),
        (".pth", {"": np.ones(1)}, "not a name"),
        (".pth", {"a": [1, 2]}, "not a name with a NumPy array"),
        (".pth", {"\ud800": np.ones(1)}, "not valid text"),
        (".pdparams", {"a": np.ones(1, np.uint16)}, "paddle reads it as bfloat16"),
        (".pdparams", {"a": np.ones(1, np.uint64)}, "can't hold uint64"),
        (".npz", {"a": np.ones(1, ml_dtypes.float8_e5m2)}, "can't hold float8_e5m2"),
        (".npz", {"../a": np.ones(1)}, "can't hold a tensor of this name"),
        (".safetensors", {"a": np.ones(1, np.complex128)}, "can't hold complex128"),
    ],
)
def test_what_a_format_cannot_say_is_refused(tmp_path: Path, suffix: str, tensors: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        write(tmp_path / f"a{suffix}", {"fine": np.ones(2)} | tensors)
    assert list(tmp_path.iterdir()) == []


def test_metadata_goes_into_safetensors_only(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", {"a": np.ones(1)}, {"note": "kept"})
    assert read_checkpoint(tmp_path / "a.safetensors").metadata == {"note": "kept"}
    with pytest.raises(CheckpointError, match=r"only \.safetensors carries metadata"):
        write(tmp_path / "a.pth", {"a": np.ones(1)}, {"note": "lost"})


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError, MemoryError])
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, failure: type[BaseException]
) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, {"a": np.zeros(3)})
    before = path.read_bytes()

    def interrupted(_descriptor: int) -> None:
        raise failure

    monkeypatch.setattr("checkpoints._files.os.fsync", interrupted)
    with pytest.raises((failure, CheckpointError)):
        write(path, {"a": np.ones(3)})
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before
    with pytest.raises((failure, CheckpointError)):
        write(tmp_path / f"new{suffix}", {"a": np.ones(3)})
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_new_file_gets_the_usual_rights(tmp_path: Path) -> None:
    write(tmp_path / "a.npz", {"a": np.ones(1)})
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.npz").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_reading_needs_no_framework(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pth")
    code = (
        "import sys; sys.modules['torch'] = sys.modules['paddle'] = None\n"
        f"import checkpoints; t = checkpoints.read({str(tmp_path / 'a.pth')!r}); assert t['w'].sum() == 2\n"
        f"checkpoints.write({str(tmp_path / 'b.pdparams')!r}, t)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert read(tmp_path / "b.pdparams")["w"].tolist() == [1, 1]
