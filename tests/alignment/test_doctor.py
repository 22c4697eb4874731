"""The doctor: what it sees, how bad that is, and that no state of a machine keeps it from an answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from alignment import AlignmentError, Options, check, doctor
from alignment.cli import run
from alignment.conditions import Condition
from alignment.frameworks import get_framework

ROOT = Path(__file__).resolve().parents[2]


def found(conditions, name: str) -> Condition:
    (one,) = (one for one in conditions if one.name == name)
    return one


def inputs() -> np.ndarray:
    return np.ones((2, 3), dtype=np.float32)


def models():
    import paddle
    import torch

    return {"reference": torch.nn.Linear(3, 2), "candidate": paddle.nn.Linear(3, 2), "inputs": inputs()}


def test_a_machine_that_is_fine_has_no_warning(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert run(["doctor", "--json", str(tmp_path / "d.json")]) == 0
    data = json.loads((tmp_path / "d.json").read_text())
    versions = {one["subject"]: one["value"] for one in data["conditions"] if one["name"] == "version"}
    import paddle
    import torch

    assert versions == {"torch": str(torch.__version__), "paddle": paddle.__version__}
    assert data["worst"] in ("ok", "note")
    assert all(one["why"] and one["remedy"] for one in data["conditions"] if one["severity"] != "ok")
    out = capsys.readouterr().out
    assert "float32 matmul precision  highest" in out


def test_a_missing_framework_is_a_finding(monkeypatch, capsys) -> None:
    monkeypatch.setitem(
        doctor.FRAMEWORKS, "paddle", ("alignment.frameworks.paddle", "no_such_package", "pip install it")
    )
    (one,) = doctor.conditions_here("paddle")
    assert (one.value, one.severity, one.remedy) == ("not installed", "error", "pip install it")


def broken(tmp_path, monkeypatch, code: str) -> None:
    (tmp_path / "paddle").mkdir()
    (tmp_path / "paddle" / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ImportError('libgomp.so.1: no such file')", "libgomp.so.1: no such file"),
        ("import os\nos.abort()", "killed by signal SIGABRT"),
        ("import sys\nsys.exit(0)", "paddle"),
    ],
)
def test_a_framework_that_does_not_import_is_a_finding_and_exits_1(tmp_path, monkeypatch, capsys, code, said) -> None:
    broken(tmp_path, monkeypatch, code)
    monkeypatch.setenv("COLUMNS", "400")
    assert run(["doctor", "paddle"]) == 1
    out = capsys.readouterr().out
    assert "error: paddle: version: does not import" in out
    assert said in out
    assert "torch" not in out.partition("\n\n")[0].replace("machine", "")


def test_one_that_hangs_is_a_finding(tmp_path, monkeypatch) -> None:
    broken(tmp_path, monkeypatch, "import time\ntime.sleep(60)")
    monkeypatch.setattr(doctor, "TIMEOUT", 3.0)
    one = found(doctor.examine(("paddle",)), "version")
    assert (one.value, one.severity) == ("does not import", "error")
    assert "no answer after" in one.why


@pytest.mark.parametrize(
    ("variable", "value", "severity"),
    [
        ("OMP_NUM_THREADS", None, "note"),
        ("OMP_NUM_THREADS", "1", "ok"),
        ("OMP_NUM_THREADS", "4096", "warning"),
        ("OMP_NUM_THREADS", "many", "warning"),
        ("OMP_WAIT_POLICY", "active", "warning"),
        ("OMP_WAIT_POLICY", "passive", "ok"),
        ("NVIDIA_TF32_OVERRIDE", "1", "warning"),
        ("NVIDIA_TF32_OVERRIDE", None, "ok"),
    ],
)
def test_the_environment_is_judged(monkeypatch, variable, value, severity) -> None:
    if value is None:
        monkeypatch.delenv(variable, raising=False)
    else:
        monkeypatch.setenv(variable, value)
    assert found(doctor.machine(), variable).severity == severity


def parts(**said: str) -> list[Condition]:
    machine = {"numpy", "processor"}
    split = {name: ("machine", name) if name in machine else tuple(name.split("_")) for name in said}
    return [Condition(split[name][0], split[name][1], value) for name, value in said.items()]


@pytest.mark.parametrize(
    ("given", "name", "severity"),
    [
        ({"numpy": "2.1.0", "paddle_version": "2.6.2"}, "numpy 2", "error"),
        ({"numpy": "2.1.0", "torch_version": "2.2.1+cpu"}, "numpy 2", "error"),
        ({"numpy": "1.26.4", "paddle_version": "2.5.0"}, "age", "error"),
        ({"processor": "AuthenticAMD AMD EPYC", "torch_BLAS": "MKL"}, "MKL on AMD", "note"),
        ({"torch_device": "cpu", "paddle_device": "gpu:0"}, "devices", "warning"),
    ],
)
def test_combinations_that_are_known_to_be_bad(monkeypatch, given, name, severity) -> None:
    monkeypatch.delenv("MKL_CBWR", raising=False)
    assert found(doctor.combinations(parts(**given)), name).severity == severity


@pytest.mark.parametrize(
    "given",
    [
        {"numpy": "2.4.6", "paddle_version": "3.3.1", "torch_version": "2.13.0+cpu"},
        {"numpy": "1.26.4", "paddle_version": "2.6.2", "torch_version": "2.2.0"},
        {"processor": "GenuineIntel Xeon", "torch_BLAS": "MKL"},
        {"processor": "AuthenticAMD AMD EPYC", "torch_BLAS": "another than MKL"},
        {"torch_device": "cuda:0", "paddle_device": "gpu:0"},
    ],
)
def test_combinations_that_are_fine(given) -> None:
    assert list(doctor.combinations(parts(**given))) == []


def test_settings_of_torch_are_seen_where_they_are_set() -> None:
    import torch

    torch.set_float32_matmul_precision("medium")
    try:
        conditions = get_framework("torch").conditions()
        report = check(**models())
    finally:
        torch.set_float32_matmul_precision("highest")
    assert found(conditions, "float32 matmul precision").severity == "warning"
    assert [note for note in report.twins[0].notes if note.startswith("torch: float32 matmul precision is medium: ")]
    assert not check(**models()).twins[0].notes


def test_settings_of_paddle_are_seen_where_they_are_set() -> None:
    import paddle

    paddle.set_default_dtype("float64")
    try:
        assert found(get_framework("paddle").conditions(), "default dtype").severity == "warning"
    finally:
        paddle.set_default_dtype("float32")
    paddle.enable_static()
    try:
        assert found(get_framework("paddle").conditions(), "mode").severity == "error"
    finally:
        paddle.disable_static()
    assert all(one.severity in ("ok", "note") for one in get_framework("paddle").conditions())


def test_a_check_that_fails_says_what_may_be_behind_it() -> None:
    import torch

    torch.set_grad_enabled(False)
    try:
        assert found(get_framework("torch").conditions(), "gradients").severity == "error"
        with pytest.raises(AlignmentError, match=r"note: torch: gradients is False: nothing can go backward"):
            check(**models(), options=Options(steps=(5,)))
    finally:
        torch.set_grad_enabled(True)


def test_bad_arguments_exit_2(capsys) -> None:
    assert run(["doctor", "jax"]) == 2
    assert run(["doctor", "--json", "no/such/folder/d.json"]) == 2
    assert "no/such/folder/d.json" in capsys.readouterr().err


def test_the_doctor_is_at_hand_without_a_framework() -> None:
    """Its modules import neither: on a machine that lacks one they must run."""
    import subprocess

    said = "import sys, alignment.commands.doctor; sys.exit(bool({'torch', 'paddle'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", said], cwd=ROOT, check=False).returncode == 0
