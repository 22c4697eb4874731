"""The example workflows, step by step, in a clean checkout: a planted regression is held up, its mend passes."""

from __future__ import annotations

import datetime
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.waivers import read_waivers

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "ci"
RIGHT = "self.norm1 = nn.LayerNorm(width, epsilon=1e-12)"
WRONG = "self.norm1 = nn.LayerNorm(width)"


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A clean clone of a repository that holds the example port and what the example workflows need."""
    origin = tmp_path / "origin"
    shutil.copytree(
        ROOT / "examples" / "port", origin / "examples" / "port", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("alignment.toml", "baseline.toml"):
        shutil.copy(EXAMPLES / name, origin)
    day = datetime.date.today() + datetime.timedelta(days=1)
    text = (EXAMPLES / "waivers.toml").read_text(encoding="utf-8")
    (origin / "waivers.toml").write_text(re.sub(r"expires = \S+", f"expires = {day}", text), encoding="utf-8")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(origin)]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "a port"]):
        subprocess.run([*git, *command], check=True)
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(origin), str(clone)], check=True)
    return clone


@pytest.fixture
def environment(tmp_path, checkout) -> dict[str, str]:
    """A runner's: `align` on the path, and the files and variables that GitHub gives a step."""
    programs = tmp_path / "bin"
    programs.mkdir()
    align = programs / "align"
    align.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m alignment "$@"\n')
    align.chmod(0o755)
    (tmp_path / "runner").mkdir()
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "CI": "true",
        "GITHUB_ACTIONS": "true",
        "GITHUB_WORKSPACE": str(checkout),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        "RUNNER_TEMP": str(tmp_path / "runner"),
    }


def run_steps(steps: list[dict[str, Any]], checkout: Path, environment: dict[str, str]) -> tuple[int, str, list[str]]:
    """Run a workflow's steps as a runner does: (status, output, what was used). Nothing is installed: it is there."""
    status, output, used = 0, "", []
    for step in steps:
        if step.get("uses", "").startswith("OWNER/alignment@"):
            action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
            given = {name: str(value.get("default", "")) for name, value in action["inputs"].items()}
            assert set(step.get("with", {})) <= set(given)
            inputs = {**given, **step.get("with", {}), "install": "false"}
            inner = [_with_inputs(one, inputs) for one in action["runs"]["steps"]]
            status, more, inside = run_steps(inner, checkout, environment)
            output, used = output + more, [*used, *inside]
        elif step.get("if", "") in ("", "always()") and "uses" in step:
            used.append(step["uses"])
        elif "run" in step and status == 0 and step.get("if", "") == "":
            done = subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
                cwd=checkout / step.get("working-directory", "."),
                env={**environment, **step.get("env", {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            status, output = done.returncode, output + done.stdout
    return status, output, used


def _with_inputs(step: dict[str, Any], inputs: dict[str, str]) -> dict[str, Any]:
    """A step with its expressions filled in; one whose condition does not hold is left out. `run` may hold none."""
    assert "${{" not in step.get("run", ""), "an input in a script is code: give it by the environment"
    condition = re.fullmatch(r"inputs\.(\w+) == '(\w+)'", step.get("if", ""))
    if condition:
        return {} if inputs[condition[1]] != condition[2] else {**step, "if": ""}
    filled = {
        name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: inputs[m[1]], value)
        for name, value in step.get("env", {}).items()
    }
    folder = {"working-directory": inputs["folder"]} if "working-directory" in step else {}
    return {**step, "env": filled, **folder}


def plant(checkout: Path, old: str, new: str) -> int:
    """Replace the first such line of the port; returns its number."""
    file = checkout / "examples" / "port" / "port.py"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    return text[: text.index(old)].count("\n") + 1


@pytest.mark.slow
def test_the_workflow_for_github_holds_up_a_regression_and_lets_its_mend_pass(checkout, environment, tmp_path) -> None:
    workflow = yaml.safe_load((EXAMPLES / "github.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    environment |= job["env"]
    line = plant(checkout, RIGHT, WRONG)
    status, output, used = run_steps(job["steps"], checkout, environment)
    assert status == 1, output
    notices = [said for said in output.splitlines() if said.startswith("::error ")]
    assert notices[0].startswith(f"::error file=examples/port/port.py,line={line},title=Encoder (port)%3A activation ")
    assert [name.partition("@")[0] for name in used] == ["actions/checkout", "actions/upload-artifact"]
    assert {file.name for file in (tmp_path / "runner" / "alignment").iterdir()} == {
        "doctor.json",
        "report.json",
        "report.html",
        "junit.xml",
    }
    assert "❌ alignment: diverged" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    plant(checkout, WRONG, RIGHT)
    status, output, _ = run_steps(job["steps"], checkout, environment)
    assert status == 0, output
    assert "::error" not in output
    assert "28 waived" in output


@pytest.mark.slow
def test_the_script_for_gitlab_does_likewise(checkout, environment) -> None:
    (job,) = yaml.safe_load((EXAMPLES / "gitlab.yml").read_text(encoding="utf-8")).values()
    script = [command for command in job["script"] if "pip install" not in command]
    assert len(script) == len(job["script"]) - 1
    steps = [{"run": command} for command in script]
    del environment["GITHUB_ACTIONS"]
    plant(checkout, RIGHT, WRONG)
    assert run_steps(steps, checkout, environment)[0] == 1
    assert (checkout / job["artifacts"]["reports"]["junit"]).read_bytes().count(b"<failure ") > 1
    assert all((checkout / file).is_file() for file in job["artifacts"]["paths"])
    plant(checkout, WRONG, RIGHT)
    assert run_steps(steps, checkout, environment)[0] == 0


def test_the_files_of_the_example_are_whole() -> None:
    (waiver,) = read_waivers(EXAMPLES / "waivers.toml")
    assert waiver.stage == "initialization"
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    assert action["runs"]["using"] == "composite"
    assert all(step.get("shell") == "bash" for step in action["runs"]["steps"] if "run" in step)
    assert all(entry["description"] and "default" in entry for entry in action["inputs"].values())
