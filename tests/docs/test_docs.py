"""The documentation is true: links resolve, examples run, commands parse, tables are complete, pasted reports hold.

Run as a script, it renews the tables of causes, and the pasted reports from real runs:

    python tests/docs/test_docs.py
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import orjson
import pytest

from alignment import AlignmentError, Keep, Options, capture_reference, check, explain
from alignment.capture_file import HEADER
from alignment.causes import CAUSES, FAMILIES
from alignment.cli import align
from alignment.faults import FAULTS, get_fault
from alignment.frameworks import reserve_threads
from alignment.report import TwinResult
from alignment.twins import DEFAULT_TWIN, TWINS, get_twin, parse_settings
from alignment.views.json import SCHEMA
from alignment.views.terminal import SHOWN, SHOWN_ROOTS
from checkpoints import read_checkpoint
from mutants.gallery import GALLERY

ROOT = Path(__file__).resolve().parents[2]
BESIDE = ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = [*(ROOT / name for name in BESIDE), *sorted((ROOT / "docs").glob("**/*.md"))]
WIDTH = 110

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
PASTED = re.compile(r"<!-- output of: (?P<command>[^\n]+?) -->\n```text\n(?P<text>.*?)```", re.DOTALL)
EXCERPT = re.compile(r"<!-- from the output of: (?P<command>[^\n]+?) -->\n```text\n(?P<text>.*?)```", re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: .+ -->\s*$")
# What stands for something else in a command: `align check --step N`, `[TWIN]`, `NAME=VALUE`, `package.module:twin`, `…`.
PLACEHOLDER = re.compile(r"…|\.\.\.|\[|\bN\b|\bTWIN\b|\bNAME\b|\bDIR\b|\bpackage\.module\b")
STEP_SCRIPT = re.compile(r"python alignment/(check_step(\d)\.py)(.*)")


def script_options(script: Path) -> set[str]:
    """The options of a script of its own: a benchmark, or a module of mutants."""
    return set(re.findall(r'"(--[a-z][a-z-]+)"', script.read_text(encoding="utf-8")))


SCRIPT_OPTIONS = {
    option
    for folder in ("benchmarks", "mutants", "pytest_alignment")
    for script in (ROOT / folder).glob("*.py")
    for option in script_options(script)
}


@dataclass(frozen=True)
class Block:
    """One fenced block. before: the text in front of it."""

    page: Path
    line: int
    language: str
    text: str
    before: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    source = page.read_text(encoding="utf-8")
    found = [
        Block(page, source.count("\n", 0, m.start()) + 2, m["language"], m["text"], source[: m.start()])
        for m in FENCE.finditer(source)
    ]
    return [block for block in found if block.language in languages]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


each_page = pytest.mark.parametrize("page", PAGES, ids=page_id)


# ---------------------------------------------------------------------------------------------------------------- links


def anchors(page: Path) -> set[str]:
    """The ids a renderer gives the headings: lower case, punctuation gone, spaces as hyphens, numbers for repeats."""
    found: dict[str, int] = {}
    result: set[str] = set()
    for heading in re.findall(r"^#+ (.+?) *#*$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        result.add(f"{slug}-{found[slug]}" if slug in found else slug)
        found[slug] = found.get(slug, 0) + 1
    return result


@each_page
def test_relative_links_resolve(page):
    bad = []
    for target in (m["target"] for m in LINK.finditer(prose(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            bad.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(file):
            bad.append(f"{target}: no such heading; there are {', '.join(sorted(anchors(file)))}")
    assert not bad, "\n".join(bad)


def test_every_page_is_reached_from_the_index():
    linked = {m["target"].partition("#")[0] for m in LINK.finditer(prose(ROOT / "docs" / "index.md"))}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"} <= linked


@each_page
def test_fences_are_closed_and_told(page):
    source = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^ *```", source, re.MULTILINE)) == 2 * len(list(FENCE.finditer(source)))
    untold = [str(block) for block in blocks(page, "")]
    assert not untold, f"fences without a language: {untold}"


# ------------------------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=page_id)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"example_{page.stem.replace('-', '_').lower()}"
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    for block in blocks(page, "python"):
        if NOT_RUN.search(block.before):
            continue
        # Padded, so that a traceback shows the page's own line.
        source = "\n" * (block.line - 1) + block.text
        with contextlib.redirect_stdout(None):
            exec(compile(source, page, "exec"), module.__dict__)


# ------------------------------------------------------------------------------------------------------------- commands


def commands(page: Path) -> list[tuple[str, bool]]:
    """Every command line: in console and bash blocks, indented blocks, and (True) inline code that stands for itself."""
    found = []
    for block in blocks(page, "console", "bash"):
        text = block.text.replace("\\\n", " ")
        lines = text.splitlines()
        if block.language == "console":
            lines = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
        found += [line.strip() for line in lines]
    found += re.findall(r"^ {4}((?:align|make|python) .+)$", prose(page), re.MULTILINE)
    inline = [code for code in CODE.findall(prose(page)) if re.match(r"(align|make|python) \S", code)]
    found += [m["command"] for m in PASTED.finditer(page.read_text(encoding="utf-8"))]
    lines = [line.partition("  #")[0].strip() for line in found if line and not line.startswith("#")]
    return [(line, False) for line in lines] + [(code, True) for code in inline if not PLACEHOLDER.search(code)]


def check_command(command: str, inline: bool) -> None:
    """Raise for a command that would not start; in a sentence `align convert` alone names a command."""
    step = STEP_SCRIPT.match(command)
    if step:
        assert (ROOT / "alignment" / step[1]).is_file(), f"there is no {step[1]}"
        command = f"align check --step {step[2]}{step[3]}"
    words = shlex.split(command)
    if words[0] == "align" and len(words) == 2 and inline:
        assert align.get_command(click.Context(align), words[1]) is not None, f"there is no align {words[1]}"
    elif words[0] == "align":
        parse(words[1:])
    elif words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets), f"{command}: make knows {targets}"
    elif words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file(), f"there is no {words[1]}"
    elif words[:2] == ["python", "-m"]:
        script = ROOT / (words[2].replace(".", "/") + ".py")
        assert script.is_file(), f"there is no {words[2]}"
        unknown = {word for word in words[3:] if word.startswith("--")} - script_options(script)
        assert not unknown, f"{words[2]} has no {unknown}"


def parse(arguments: list[str]) -> None:
    """Build click's contexts down to the command, without running it; then look at names that click leaves open."""
    command: click.Command = align
    context = align.make_context("align", list(arguments))
    while isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command = found
        context = command.make_context(name, rest, parent=context)
    given = context.params
    for fault in given.get("faults") or ():
        get_fault(fault)
    twin = given.get("twin") or given.get("name")
    if twin and twin.endswith((".json", ".safetensors")):
        return  # a saved report, or captures
    if command.name in ("check", "explain") or twin or given.get("assignments"):
        parse_settings(get_twin(twin or DEFAULT_TWIN), given.get("assignments") or ())


@each_page
def test_commands_parse(page, monkeypatch):
    # A configuration file in the working directory would give defaults.
    monkeypatch.chdir(ROOT / "docs")
    bad = []
    for command, inline in commands(page):
        try:
            check_command(command, inline)
        except click.exceptions.Exit:
            pass  # --help, --version
        except (click.ClickException, AlignmentError, AssertionError) as error:
            message = error.format_message() if isinstance(error, click.ClickException) else str(error)
            bad.append(f"{command}\n    {message}")
    assert not bad, "\n".join(bad)


def known_options() -> set[str]:
    found = {"--help", "--version"}
    context = click.Context(align)
    todo = [align.get_command(context, name) for name in align.list_commands(context)]
    while todo:
        command = todo.pop()
        assert command is not None
        found |= {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        if isinstance(command, click.Group):
            todo += command.commands.values()
    return found


@each_page
def test_options_mentioned_exist(page):
    mentioned = {word for code in CODE.findall(prose(page)) for word in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", code)}
    assert mentioned <= known_options() | SCRIPT_OPTIONS


def test_every_fault_and_twin_is_documented():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in (*FAULTS, *TWINS) if f"{name}" not in CODE.findall(text) and f" {name}" not in text] == []
    for fault in FAULTS.values():
        (page,) = (ROOT / "docs").glob(f"step{fault.stage}-*.md")
        assert fault.name in page.read_text(encoding="utf-8"), f"{page.name} does not mention {fault.name}"


@each_page
def test_hyphenated_names_exist(page):
    """Faults, causes, twins, commands, extras and configuration keys are words with hyphens; nothing else here is."""
    mentioned = {code for code in CODE.findall(prose(page)) if re.fullmatch(r"[a-z]+(-[a-z]+)+", code)}
    named = {option.lstrip("-") for option in known_options()}
    named |= {cause.name for family in CAUSES.values() for cause in family}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = set(re.findall(r"^([a-z-]+) = \[", project, re.MULTILINE))
    known = {*FAULTS, *TWINS, *GALLERY, *named, *extras, *align.list_commands(click.Context(align)), "lint-imports"}
    assert mentioned <= known


# --------------------------------------------------------------------------------------------------------------- tables


def first_column(page: Path, after: str) -> set[str]:
    """The names in code in the first column of the first table behind a line."""
    lines = page.read_text(encoding="utf-8").partition(f"\n{after}\n")[2].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(line.split("|")[1])
    return {name for row in rows for name in CODE.findall(row)}


def test_tables_of_json_keys_are_complete():
    schema = orjson.loads(SCHEMA.read_bytes())
    page = ROOT / "docs" / "report.md"
    assert first_column(page, "A twin:") == set(schema["$defs"]["twin"]["properties"])
    tensor = "A tensor, one for each record and name, with the figures of its worst comparison:"
    assert first_column(page, tensor) == set(schema["$defs"]["tensor"]["properties"])
    (record,) = (line for line in page.read_text().splitlines() if line.startswith("| `record`"))
    words = record.split("|")[2].replace(";", ",").partition(":")[0]
    assert {word.strip() for word in words.split(",")} == set(schema["$defs"]["tensor"]["properties"]["record"]["enum"])
    assert first_column(page, "A finding, one for each cause:") == set(schema["$defs"]["finding"]["properties"])
    assert first_column(page, "The effect, of the whole twin:") == set(schema["$defs"]["effect"]["properties"])
    for name, words in (("trajectory", "A trajectory, of"), ("track", "A track, of")):
        (line,) = (line for line in page.read_text().splitlines() if line.startswith(words))
        assert first_column(page, line) == set(schema["$defs"][name]["properties"])
    assert first_column(page, "A module of a tree:") == set(schema["$defs"]["module"]["properties"])
    (detail,) = (line for line in page.read_text().splitlines() if line.startswith("A detail, kept with"))
    assert first_column(page, detail) == set(schema["$defs"]["detail"]["properties"])
    row = next(line for line in page.read_text().splitlines() if line.startswith("| `stages`"))
    assert set(CODE.findall(row)) == {"stages", *schema["$defs"]["stage"]["properties"]}
    top = next(line for line in page.read_text().splitlines() if line.startswith("Top level:"))
    assert set(CODE.findall(top)) == set(schema["properties"])


def test_the_header_of_a_capture_is_described(tmp_path):
    page, file = ROOT / "docs" / "capture-format.md", tmp_path / "capture.safetensors"
    options = Options(
        settings={"vocab_size": 20, "embed": 8, "num_attention_heads": 2}, data="fake", batch_size=2, length=4
    )
    capture_reference("fastformer-text-classifier", file, options, Keep("statistics"))
    header = orjson.loads(read_checkpoint(file).metadata[HEADER])
    assert first_column(page, "## Header") == set(header)
    run = header["runs"][0]
    assert first_column(page, "A run:") == set(run)
    fields = {key for run in header["runs"] for record in run["records"] for key in record} | {"dtype"}
    described = page.read_text(encoding="utf-8").partition("| a record has | when |")[2].partition("\n\n")[0]
    assert fields == {"kind", "name", *(line.split("|")[1].strip(" `") for line in described.splitlines()[2:])}
    assert f"This is schema version {header['schema_version']}." in page.read_text(encoding="utf-8")


def test_no_key_is_listed_twice():
    tables = re.split(r"\n\n", (ROOT / "docs" / "report.md").read_text(encoding="utf-8"))
    for table in tables:
        rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
        assert len(rows) == len(set(rows)), table


def test_configuration_keys_are_complete():
    text = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("Keys:"))
    command = align.get_command(click.Context(align), "check")
    assert command is not None
    names = {max(parameter.opts, key=len).lstrip("-") for parameter in command.params}
    assert set(CODE.findall(line)) == names - {"config"}


def test_the_configuration_example_is_accepted(tmp_path, monkeypatch):
    (example,) = (block.text for block in blocks(ROOT / "docs" / "report.md", "toml"))
    (tmp_path / "alignment.toml").write_text(example)
    monkeypatch.chdir(tmp_path)
    command = align.get_command(click.Context(align), "check")
    assert command is not None
    given = command.make_context("check", []).params
    assert (given["twin"], given["seed"], given["steps"], given["threads"]) == (
        "fastformer-classifier",
        7,
        (1, 2, 3),
        2,
    )
    assert parse_settings(get_twin(given["twin"]), given["assignments"])["hidden_size"] == 32


def test_tables_name_what_is_there():
    """Extras and folders of the README, options of the pages on checkpoints."""
    readme = ROOT / "README.md"
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"^([a-z-]+) = \[", project.partition("[project.optional-dependencies]")[2], re.MULTILINE)
    listed = first_column(readme, "## Extras")
    assert listed == set(extras[: extras.index("all") + 1])
    assert [name for name in first_column(readme, "## What is where") if not (ROOT / name).is_dir()] == []


# --------------------------------------------------------------------------------------------------------------- causes

CAUSES_PAGE = ROOT / "docs" / "causes.md"


def causes_table(family: str) -> str:
    """A row for each distinct (name, summary) of a family, between the marks that say who writes it."""
    rows: dict[tuple[str, str], str] = {}
    for cause in FAMILIES[family]:
        rows.setdefault((cause.name, cause.summary), cause.remedy)
    lines = [f"| `{name}` | {summary} | {remedy} |" for (name, summary), remedy in rows.items()]
    table = "\n".join(["| cause | what is wrong | what to change |", "|---|---|---|", *lines])
    return f"{causes_mark(family)}\n\n{table}\n\n<!-- end of causes -->"


def causes_mark(family: str) -> str:
    return f"<!-- causes of {family}: written by tests/docs/test_docs.py -->"


def with_causes(source: str) -> str:
    """The page of causes with its tables as the code has them."""
    for family in FAMILIES:
        pattern = re.escape(causes_mark(family)) + r".*?<!-- end of causes -->"
        source, count = re.subn(pattern, lambda _: causes_table(family), source, flags=re.DOTALL)  # noqa: B023
        assert count == 1, f"{CAUSES_PAGE.name} has {count} places for the causes of {family}"
    return source


def test_every_cause_belongs_to_a_family():
    """The tables are made from the families, what is tried from CAUSES: neither may have what the other has not."""
    tried = {id(cause) for causes in CAUSES.values() for cause in causes}
    assert tried == {id(cause) for causes in FAMILIES.values() for cause in causes}


def test_tables_of_causes_are_current():
    source = CAUSES_PAGE.read_text(encoding="utf-8")
    assert source == with_causes(source), "renew the tables with python tests/docs/test_docs.py"


def test_the_matrix_finds_its_places():
    """`make mutants` writes between these marks."""
    source = (ROOT / "docs" / "mutants.md").read_text(encoding="utf-8")
    marks = [f"<!-- {name}: written by make mutants -->" for name in ("tables", "missed")]
    for mark, end in zip(marks, ("<!-- end of tables -->", "<!-- end of missed -->"), strict=True):
        assert (source.count(mark), source.count(end)) == (1, 1)
        assert source.index(mark) < source.index(end)


# ------------------------------------------------------------------------------------------------------- pasted reports

SMALL: dict[str, dict[str, Any]] = {
    "fast-transformer-classifier": {
        "num_tokens": 40, "depth": 2, "dim": 16, "heads": 2, "dim_head": 8, "max_seq_len": 12, "ff_mult": 2,
    },
}  # fmt: skip


def pasted() -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for page in PAGES:
        for match in PASTED.finditer(page.read_text(encoding="utf-8")):
            found.setdefault(match["command"], []).append(page)
    return found


def run_small(command: str) -> TwinResult:
    """What a pasted command finds with small sizes."""
    name, *arguments = shlex.split(command)[1:]
    given = align.get_command(click.Context(align), name).make_context(name, arguments).params  # type: ignore[union-attr]
    twin = given["twin"] or DEFAULT_TWIN
    steps = tuple(given.get("steps") or (1, 2, 3, 4, 5))
    asked = Options(steps, SMALL[twin], "fake", batch_size=3, length=8, faults=given["faults"])
    (result,) = (explain if name == "explain" else check)(twin, asked).twins
    return result


@pytest.mark.parametrize("command", pasted())
def test_pasted_reports_hold(command, monkeypatch):
    """Verdicts, roots and findings are those of a run with small sizes, and the same on every page."""
    monkeypatch.chdir(ROOT / "docs")
    texts = {
        m["text"]
        for page in pasted()[command]
        for m in PASTED.finditer(page.read_text(encoding="utf-8"))
        if m["command"] == command
    }
    assert len(texts) == 1, "the same command shows different reports; renew them with python tests/docs/test_docs.py"
    (text,) = texts
    result = run_small(command)
    assert shown(text) == expected(result)
    roots = [tensor for stage in result.stages for tensor in [t for t in stage.tensors if t.root][:SHOWN]]
    assert text.count("ROOT") == len(roots)
    for tensor in roots:
        assert f"ROOT{tensor.name[:20]}" in flat(text)
    assert shown_findings(text) == [
        (finding.cause or "unexplained", named_roots(finding.roots), finding.side) for finding in result.findings
    ]
    assert ("effect on training" in text) == (result.effect is not None)


def test_excerpts_are_of_pasted_reports():
    outputs = {
        m["command"]: m["text"].splitlines()
        for page in PAGES
        for m in PASTED.finditer(page.read_text(encoding="utf-8"))
    }
    for page in PAGES:
        for match in EXCERPT.finditer(page.read_text(encoding="utf-8")):
            lacking = [line for line in match["text"].splitlines() if line not in outputs[match["command"]]]
            assert not lacking, f"{page.name} shows lines that the pasted report has not: {lacking}"


def flat(text: str) -> str:
    return re.sub(r"\s", "", text)


def shown_findings(text: str) -> list[tuple[str, str, str]]:
    """(cause, roots without spaces, side) of each finding of a pasted report."""
    found = re.findall(
        r"finding(?: \d+ of \d+)?: (\S+)\n.*?^ +root +(.*?)^ +side +(\w+):", text, re.DOTALL | re.MULTILINE
    )
    return [(cause, flat(roots), side) for cause, roots, side in found]


def named_roots(roots: tuple[str, ...]) -> str:
    more = f" and {len(roots) - SHOWN_ROOTS} more" if len(roots) > SHOWN_ROOTS else ""
    return flat(", ".join(roots[:SHOWN_ROOTS]) + more)


def shown(text: str) -> list[tuple[int, str]]:
    return [(int(step), verdict.lower()) for step, verdict in re.findall(r"step (\d) \w+ +([A-Z]{6,})\b", text)]


def expected(result: TwinResult) -> list[tuple[int, str]]:
    return [(stage.step, stage.verdict) for stage in result.stages]


def renew() -> None:
    """Write the tables of causes, run every pasted command and put its output in place."""
    CAUSES_PAGE.write_text(with_causes(CAUSES_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    align_program = Path(sys.executable).with_name("align")
    environment = {**os.environ, "COLUMNS": str(WIDTH), "NO_COLOR": "1"}
    for command, pages in pasted().items():
        print(command, flush=True)
        done = subprocess.run(
            [align_program, *shlex.split(command)[1:]],
            capture_output=True,
            text=True,
            cwd=ROOT,  # so that lines of source are named from here
            env=environment,
            check=False,
        )
        if done.returncode not in (0, 1) or not done.stdout.strip():
            sys.exit(f"{command}: status {done.returncode}\n{done.stderr}")
        report = "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())
        block = f"<!-- output of: {command} -->\n```text\n{report}\n```"
        for page in set(pages):
            source = page.read_text(encoding="utf-8")
            old = [m[0] for m in PASTED.finditer(source) if m["command"] == command]
            for text in old:
                source = source.replace(text, block)
            page.write_text(source, encoding="utf-8")


if __name__ == "__main__":
    reserve_threads()
    renew()
