"""Scripts that show one divergence alone: whatever a module is called with and returns, and what no script can be made of."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from alignment import AlignmentError, Options, Side, Twin, run_check
from alignment.cli import run
from alignment.expressions import address_of, call_text
from alignment.repro import refuse_unnamed, write_repros

IDS = np.arange(12).reshape(3, 4) % 7
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=bool)

# The same text for both frameworks, but for what differs between them.
MODEL = """
from dataclasses import dataclass
from typing import NamedTuple

import {framework} as f

nn = f.nn
Base = nn.{base}


@dataclass
class Memory:
    states: list
    scale: float
    note: dict | None = None


class Flags(NamedTuple):
    mask: object
    causal: bool


class Attend(Base):
    def __init__(self, width, fault):
        super().__init__()
        self.fault = fault
        self.key = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x, *, flags, memory, dtype, causal=None):
        y = self.key(x) * memory.scale * memory.states[0]
        y = y * flags.mask.{cast}(dtype).unsqueeze(-1)
        if self.fault == "tanh":
            y = f.tanh(y)
        hidden = self.out(y)
        best = hidden.argmin(-1) if self.fault == "best" else hidden.argmax(-1)
        held = hidden.detach() if self.fault == "detached" else hidden
        return {{"hidden": hidden, "best": best, "parts": (held * 2, None, flags.causal)}}


class Net(Base):
    def __init__(self, width=6, fault=""):
        super().__init__()
        self.fault = fault
        self.embed = nn.Embedding(7, width)
        self.scale = {parameter}
        self.attend = Attend(width, fault)
        self.head = nn.Linear(width, 3)

    def forward(self, ids, *, mask):
        x = self.embed(ids) * self.scale
        shown = mask.logical_not() if self.fault == "mask" else mask
        for times in (1.0, 0.5):
            if self.fault == "second" and times == 0.5:
                x = x + 1.0
            memory = Memory([x, {{"unused": [None, 2]}}], times, {{"text": "a b"}})
            found = self.attend(x, flags=Flags(shown, True), memory=memory, dtype=x.dtype)
            x = x + found["hidden"] + found["parts"][0]
        scores = self.head(x)
        if self.fault == "output":
            scores = scores * 1.5
        return {{"scores": scores, "best": found["best"]}}


def squared(output, targets):
    return (output["scores"] ** 2).mean()


def wrong(output, targets):
    return (output["scores"] ** 2).sum()
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder, importable from, with `net_torch` and `net_paddle`."""
    weight = {
        "torch": "nn.Parameter(f.ones(width))",
        "paddle": "self.create_parameter([width], default_initializer=nn.initializer.Constant(1.0))",
    }
    for framework, base in (("torch", "Module"), ("paddle", "Layer")):
        text = MODEL.format(
            framework=framework, base=base, parameter=weight[framework], cast="to" if base == "Module" else "astype"
        )
        (tmp_path / f"net_{framework}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for framework in ("torch", "paddle"):
        sys.modules.pop(f"net_{framework}", None)


def twin(fault: str, **changes: Any) -> Twin:
    one, two = (
        Side(name, f"net_{name}:Net", {"fault": fault} if name == "paddle" else {}) for name in ("torch", "paddle")
    )
    return Twin(
        "net", "nested", one, two, {"width": 6}, **{"inputs": [{"ids": IDS, "mask": MASK}], "loss": "outputs"} | changes
    )


DRIVER = """
import runpy, sys
for script in sys.argv[1:]:
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        print("status", end.code)
"""


def run_scripts(scripts: list[Path], folder: Path) -> list[tuple[int, list[float]]]:
    """Status and figures of each script, run where nothing of this toolkit can be imported."""
    hidden = folder / "elsewhere" / "alignment"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('a script needs no toolkit')")
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *scripts],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=hidden.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(hidden.parent), str(folder)))},
    )
    assert done.returncode == 0, done.stderr
    found: list[tuple[int, list[float]]] = []
    figures: list[float] = []
    for line in done.stdout.splitlines():
        if "relative L2" in line:
            figures.append(float(line.rpartition(" ")[2]))
        elif line.startswith("status "):
            found.append((int(line.split()[1]), figures))
            figures = []
    return found


@pytest.mark.parametrize(
    ("fault", "stems"),
    [
        ("mask", {"input_attend_flags_0", "input_attend_2_flags_0"}),
        ("best", {"activation_attend_best", "activation_attend_2_best"}),
        ("second", {"input_attend_2", "input_attend_2_memory_states_0"}),
        ("detached", {"activation_gradient_attend_out", "activation_gradient_attend_out_2"}),
    ],
)
def test_scripts_call_modules_as_the_models_do(models: Path, fault: str, stems: set[str]) -> None:
    scripts = {one.stem: one for one in write_repros(run_check(twin(fault), Options(steps=(3, 4, 5))), models)}
    assert set(scripts) - {"input_head"} == stems
    for (status, (ours, theirs, apart)), stem in zip(
        run_scripts([scripts[stem] for stem in stems], models), stems, strict=True
    ):
        assert status == 1, stem
        assert max(ours, theirs) < 1e-9, stem
        assert apart > 1e-3, stem


def test_a_script_of_the_models_own_loss_and_outputs(models: Path) -> None:
    sides = [replace(side, loss=f"{side.target.partition(':')[0]}:{loss}") for side, loss in
             zip((twin("output").reference, twin("output").candidate), ("squared", "wrong"), strict=True)]  # fmt: skip
    given = twin("output", loss="function", inputs=[({"ids": IDS, "mask": MASK}, np.zeros(3))])
    given = replace(given, reference=sides[0], candidate=sides[1], mode="train")
    scripts = write_repros(run_check(given, Options(steps=(3, 4))), models)
    assert {script.stem for script in scripts} == {"output_output_scores", "loss_loss"}
    for status, (ours, theirs, apart) in run_scripts(scripts, models):
        assert (status, max(ours, theirs) < 1e-9, apart > 1e-3) == (1, True, True)


def test_a_script_agrees_once_the_port_is_mended(models: Path) -> None:
    (script, *_) = write_repros(run_check(twin("mask"), Options(steps=(3,))), models)
    script.write_text(script.read_text().replace("'fault': 'mask'", "'fault': ''"))
    ((status, (*_, apart)),) = run_scripts([script], models)
    assert (status, apart) == (0, 0.0)


# ------------------------------------------------------------------------------------------------ what can't be written


def build() -> torch.nn.Module:
    return torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reference": Side("torch", torch.nn.Linear(2, 2))}, "the reference (Linear) was handed over in Python"),
        ({"candidate": Side("paddle", lambda: None)}, "the candidate"),
        ({"candidate": Side("paddle", "__main__:Net")}, 'Side("paddle", "package.module:make_model")'),
        ({"loss": "function"}, "the reference's loss was handed over"),
        ({"dropout": "seeded"}, "frozen dropout"),
    ],
)
def test_what_has_no_name_is_refused_with_what_to_do(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(AlignmentError, match=re.escape(said)):
        refuse_unnamed(replace(twin(""), **changes), Options())


def test_a_class_or_function_of_a_module_has_a_name() -> None:
    assert refuse_unnamed(replace(twin(""), reference=Side("torch", torch.nn.Linear)), Options()) is None
    assert address_of(torch.nn.Linear) == "torch.nn.modules.linear:Linear"
    assert address_of(lambda: None) is None
    assert address_of(torch.nn.Linear(1, 1)) is None


def test_align_explain_refuses_before_it_checks(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (models / "live.py").write_text(
        "import numpy, torch\nfrom alignment.twins import twin_of\n"
        "net = torch.nn.Linear(2, 2)\nmine = twin_of(net, net, numpy.ones((1, 2)))\n"
    )
    assert run(["explain", "live:mine", "--repro", str(models / "repro")]) == 2
    assert "a script can't name it" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ calls in writing


class Color(Enum):
    RED = 1


class Point(NamedTuple):
    x: object
    y: object


@dataclass
class Box:
    size: object


def test_a_call_in_writing_makes_the_same_call() -> None:
    tensor = torch.ones(2)
    arguments = (tensor, None, [1, (2.5, float("inf"), tensor)], Point(tensor, "a'b"), slice(1, None), np.float32(0.5))
    keywords = {"mask": tensor, "box": Box({"deep": tensor}), "kind": Color.RED, "to": torch.float64, "make": build}
    text = call_text(arguments, keywords, lambda value: isinstance(value, torch.Tensor))
    assert re.findall(r"given\('([^']*)'\)", text) == [
        "0",
        "2.1.2",
        "3.0",
        "mask",
        "box.size.deep",
    ]

    def load(address: str) -> Any:
        module, _, name = address.partition(":")
        return reduce(getattr, name.split("."), sys.modules[module])

    def filled(address: str, parts: dict[str, Any]) -> Any:
        return load(address)(**parts)

    names = {"given": lambda _: tensor, "load": load, "filled": filled, "made": lambda at, parts: load(at)(*parts)}
    again, named = eval(f"({text})", names | {"np": np, "torch": torch})
    assert again == arguments
    assert named == keywords


def test_what_no_text_can_make_says_what_it_is() -> None:
    assert (
        call_text((object(),), {"f": lambda: 0}, lambda _: False) == "(missing('object'),), {'f': missing('function')}"
    )
