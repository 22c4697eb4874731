"""`align convert` and `align diff` of a twin of one's own: other names, packed attention, a mapping, what it ignores."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.cli import run
from alignment.conversion import join_models
from alignment.frameworks import get_framework
from checkpoints import convert_proved, read, write

pytest.importorskip("torch")
pytest.importorskip("paddle")

MAPPING = '[modules]\n"attn.q_proj" = "attn.a"\n"attn.k_proj" = "attn.b"\n"attn.v_proj" = "attn.c"\n'


@pytest.fixture
def ports(tmp_path, monkeypatch) -> Any:
    """The twins beside a user's files, in the working directory."""
    shutil.copy(Path(__file__).parents[1] / "alignment" / "attention_ports.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import attention_ports

    yield attention_ports
    sys.modules.pop("attention_ports", None)


def state_of(twin: Any, framework: str = "torch", **settings: Any) -> dict[str, np.ndarray]:
    side = twin.reference if twin.reference.framework == framework else twin.candidate
    adapter = get_framework(framework)
    return adapter.read_state(adapter.build(side.target, {**twin.settings, **side.settings, **settings}, 3))


def bits(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: (array.dtype.name, array.shape, array.tobytes()) for name, array in tensors.items()}


def test_other_names_and_packed_tensors_convert_both_ways_without_configuration(ports, capsys) -> None:
    state = state_of(ports.other)
    write("a.pth", state)
    twin = ["--twin", "attention_ports:other"]
    assert run(["convert", "a.pth", "b.pdparams", *twin, "--save-layout", "layout.json"]) == 0
    shown = capsys.readouterr().out
    assert "hold equal tensors, bit for bit" in shown
    assert "parts of packed tensors  6" in shown
    assert "tensors matched: 9 by name, 2 by shape" in shown
    found = read("b.pdparams")
    assert set(found) == set(state_of(ports.other, "paddle"))
    third = np.split(state["attn.in_proj_weight"], 3)
    for part, name in zip(third, ports.OTHER, strict=False):
        assert np.array_equal(found[f"mha.{name}.weight"], part.T)
    assert np.array_equal(found["mha.dense.weight"], state["attn.out_proj.weight"].T)
    for back in (twin, ["--layout", "layout.json"]):
        assert run(["convert", "b.pdparams", "c.pth", *back, "--force"]) == 0
        assert bits(read("c.pth")) == bits(state)
    assert run(["diff", "a.pth", "b.pdparams", *twin]) == 0
    assert "11 with equal bits" in capsys.readouterr().out
    found["mha.key.weight"][0, 1] += 1
    write("b.pdparams", found)
    assert run(["diff", "a.pth", "b.pdparams", *twin]) == 1
    assert "attn.in_proj_weight[k] → mha.key.weight" in capsys.readouterr().out


def test_a_packed_target_is_put_together_from_three_layers(ports) -> None:
    state = state_of(ports.joined)
    live = join_models(ports.joined, ("torch", "paddle"))
    converted, _ = convert_proved(state, live.layout)
    whole = np.concatenate([state[f"attn.{name}.weight"] for name in ports.OTHER[:3]])
    assert np.array_equal(converted["attn.in_proj_weight"], whole)
    back, _ = convert_proved(converted, join_models(ports.joined, ("paddle", "torch")).layout)
    assert bits(back) == bits(state)


def test_what_is_ambiguous_needs_a_mapping_by_file_or_of_the_twin(ports, capsys) -> None:
    state = state_of(ports.silent)
    write("a.pth", state)
    twin = ["--twin", "attention_ports:silent"]
    write("b.npz", state)
    for command in (["convert", "a.pth", "b.pdparams"], ["diff", "a.pth", "b.npz"]):
        assert run([*command, *twin]) == 2
        said = capsys.readouterr().err
        assert "attn.q_proj, attn.k_proj, attn.v_proj, attn.out_proj (Linear [8, 8], [8]): each may be any of" in said
        assert "align map TWIN -o mapping.toml" in said
    Path("mapping.toml").write_text(MAPPING)
    mapped = [*twin, "--mapping", "mapping.toml"]
    assert run(["convert", "a.pth", "b.pdparams", *mapped]) == 0
    found = read("b.pdparams")
    parts = dict(zip("abc", np.split(state["attn.in_proj_weight"], 3), strict=True))
    assert all(np.array_equal(found[f"attn.{name}.weight"], part.T) for name, part in parts.items())
    assert run(["convert", "b.pdparams", "c.pth", *mapped]) == 0
    assert bits(read("c.pth")) == bits(state)
    assert run(["diff", "a.pth", "b.pdparams", *mapped]) == 0
    with Path("attention_ports.py").open("a") as file:
        pairs = {"attn.q_proj": "attn.a", "attn.k_proj": "attn.b", "attn.v_proj": "attn.c"}
        file.write("\nfrom alignment.mapping import ModelMapping\n")
        file.write(
            f'mapped = twin("Packed", "OwnPort", theirs={{"names": SILENT}}, mapping=ModelMapping(modules={pairs}))\n'
        )
    sys.modules.pop("attention_ports")
    assert run(["convert", "a.pth", "d.pdparams", "--twin", "attention_ports:mapped"]) == 0
    assert bits(read("d.pdparams")) == bits(found)
    Path("mapping.toml").write_text('[modules]\n"attn.query" = "attn.a"\n')
    assert run(["convert", "a.pth", "e.pdparams", *mapped]) == 2
    assert "the reference has no module 'attn.query'" in capsys.readouterr().err


def test_what_the_mapping_ignores_is_left_out_only_when_asked_for(ports, capsys) -> None:
    ours, theirs = state_of(ports.spare), state_of(ports.spare, "paddle")
    write("a.pth", ours)
    write("b.pdparams", theirs)
    Path("mapping.toml").write_text('ignore = ["spare", "aux"]\n')
    options = ["--twin", "attention_ports:spare", "--mapping", "mapping.toml"]
    for one, two in (("a.pth", "c.pdparams"), ("b.pdparams", "c.pth")):
        assert run(["convert", one, two, *options]) == 2
        said = capsys.readouterr().err
        assert "spare.weight, spare.bias, aux.weight, aux.bias" in said
        assert "--drop-ignored" in said
        assert not Path(two).exists()
    assert run(["convert", "a.pth", "c.pdparams", *options, "--drop-ignored", "--save-layout", "layout.json"]) == 0
    shown = capsys.readouterr().out
    assert "spare.weight: ignored by the mapping" in shown
    assert "aux.weight: ignored by the mapping, and not in c.pdparams" in shown
    assert "hold equal tensors, bit for bit" in shown
    assert set(read("c.pdparams")) == {name for name in theirs if not name.startswith("aux")}
    assert run(["convert", "b.pdparams", "c.pth", *options, "--drop-ignored"]) == 0
    assert set(read("c.pth")) == {name for name in ours if not name.startswith("spare")}
    # What was left out can't come back.
    assert run(["convert", "c.pdparams", "d.pth", "--layout", "layout.json"]) == 2
    assert "spare.weight: ignored by the mapping; it can't be restored" in capsys.readouterr().err
    # A comparison goes by all that is left.
    write("e.pdparams", {**read("c.pdparams"), "aux.weight": theirs["aux.weight"], "aux.bias": theirs["aux.bias"]})
    assert run(["diff", "a.pth", "e.pdparams", *options]) == 0
    shown = capsys.readouterr().out
    assert "11 tensors, 11 with equal bits" in shown
    assert "aux.weight: ignored by the mapping" in shown


def test_a_file_of_yet_other_names_goes_through_both_maps(ports, capsys) -> None:
    state = state_of(ports.spare)
    Path("mapping.toml").write_text('ignore = ["spare", "aux"]\n')
    Path("names.toml").write_text("drop = ['step']\n[[rename]]\npattern = 'module\\.(.*)'\nreplace = '\\1'\n")
    write("a.pth", {f"module.{name}": array for name, array in state.items()} | {"step": np.arange(3)})
    options = [
        "--twin",
        "attention_ports:spare",
        "--mapping",
        "mapping.toml",
        "--names",
        "names.toml",
        "--drop-ignored",
    ]
    assert run(["convert", "a.pth", "b.pdparams", *options]) == 0
    shown = capsys.readouterr().out
    assert "module.spare.bias: ignored by the mapping" in shown
    assert "step: dropped by the name map" in shown
    assert np.array_equal(read("b.pdparams")["attn.key.weight"], np.split(state["attn.in_proj_weight"], 3)[1].T)
    theirs = state_of(ports.other, "paddle")
    write("c.pdparams", {f"module.{name}": array for name, array in theirs.items()})
    back = ["--twin", "attention_ports:other", "--names", "names.toml"]
    assert run(["convert", "c.pdparams", "d.pth", *back]) == 0
    joined = np.concatenate([theirs[f"mha.{name}.weight"].T for name in ports.OTHER[:3]])
    assert np.array_equal(read("d.pth")["attn.in_proj_weight"], joined)


def test_sizes_are_the_twins_own_or_given(ports, capsys) -> None:
    write("a.pth", state_of(ports.other, classes=5))
    arguments = ["convert", "a.pth", "b.pdparams", "--twin", "attention_ports:other"]
    assert run(arguments) == 2
    said = capsys.readouterr().err
    assert "head.weight: has shape [5, 8], expected [3, 8]" in said
    assert "The models were built with classes=3; give others with --set NAME=VALUE" in said
    assert run([*arguments, "--set", "classes=5"]) == 0
    assert read("b.pdparams")["head.weight"].shape == (8, 5)


def test_options_of_a_twin_mean_nothing_without_one(ports, capsys) -> None:
    write("a.pth", state_of(ports.other))
    for option in (["--mapping", "m.toml"], ["--drop-ignored"]):
        assert run(["convert", "a.pth", "b.pdparams", "--layout", "x.json", *option]) == 2
        assert "go with --twin" in " ".join(capsys.readouterr().err.split())
    assert run(["diff", "a.pth", "a.pth", "--mapping", "m.toml"]) == 2
    assert "--mapping goes with --twin" in capsys.readouterr().err
