"""Pages that are made and not written: one for each cause, the reference, the JSON schema; and files as pages.

Every function gives Markdown. Links in it are those of the repository, seen from the folder `docs` (`../README.md`), as
in a page that is written by hand; `website.links` turns all of them into the site's.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from alignment.causes import FAMILIES, Cause
from alignment.faults import FAULTS
from alignment.views.json import SCHEMA
from mutants.gallery import GALLERY_MUTANTS
from website.ports import difference

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

# What the reference shows: the names that a package exports.
PACKAGES = ("alignment", "checkpoints", "fake_data")

# --------------------------------------------------------------------------------------------------------------- causes


@dataclass(frozen=True)
class Family:
    """A family of causes as docs/causes.md has it. looks_at: from its first table. anchor: of its section."""

    title: str
    anchor: str
    looks_at: str


@cache
def families() -> dict[str, Family]:
    """What docs/causes.md says of each family, by the name of the family's file."""
    text = (DOCS / "causes.md").read_text(encoding="utf-8")
    row = re.compile(r"^\| \[([^]]+)\]\(#([\w-]+)\) \| (.+?) \| `alignment/causes/(\w+)\.py` \|$", re.MULTILINE)
    return {m[4]: Family(m[1], m[2], m[3]) for m in row.finditer(text)}


def cause_file(name: str) -> str:
    """A cause's page, in the folder of the site's pages."""
    return f"causes/{name.replace('/', '-')}.md"


def cause_names() -> list[str]:
    """Every cause that can be named, once, in the order of the families."""
    return list(dict.fromkeys(cause.name for causes in FAMILIES.values() for cause in causes))


def cause_pages() -> dict[str, str]:
    """A page for each cause, by its file."""
    return {cause_file(name): cause_page(name) for name in cause_names()}


def cause_page(name: str) -> str:
    """What a cause is, what to change, where it is looked for, and how often it was found where it had been planted."""
    told: list[str] = []
    parts = [f"# {name}", "[All causes](causes.md) · [how a cause is proved](explain.md#what-proved-means)"]
    for family, causes in FAMILIES.items():
        same = {cause.summary: cause for cause in causes if cause.name == name}
        told += [meaning(families()[family], cause) for cause in same.values()]
    return "\n\n".join([*parts, "\n\n---\n\n".join(told), *in_code(name), *see_it(name), *measured(name)]) + "\n"


def meaning(family: Family, cause: Cause) -> str:
    """One way a cause is tested: a name may stand in several families, and several times in one."""
    return (
        f"**What is wrong:** {cause.summary}.\n\n"
        f"**What to change:** {cause.remedy}.\n\n"
        f"Shows as {', '.join(f'`{record}`' for record in cause.records)}. "
        f"Of the family [{family.title}](causes.md#{family.anchor}): {family.looks_at}."
    )


def in_code(name: str) -> list[str]:
    """The mistake and its correction, in each port of the gallery that was made with it."""
    found = [difference(mutant) for mutant in GALLERY_MUTANTS if mutant.cause == name]
    if not found:
        return []
    told = "In wrong ports of the [gallery](mutants.md#what-is-planted). Layers without `nn.` are its own."
    return ["## In code", told, *(f"```diff\n{lines}\n```" for lines in dict.fromkeys(found))]


def see_it(name: str) -> list[str]:
    """The command that plants the cause, where there is a fault for it."""
    commands = [f"align explain --inject {name}"] if name in FAULTS else []
    commands += [
        f"align explain mutants.gallery:{identifier(mutant.twin)}__{identifier(mutant.name)}"
        for mutant in GALLERY_MUTANTS
        if mutant.cause == name
    ]
    if not commands:
        return []
    return ["## See it", "\n".join(["```console", *(f"$ {command}" for command in commands), "```"])]


def identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)


@cache
def outcomes() -> list[dict[str, Any]]:
    """Every fault that was planted, and what was found."""
    found: list[dict[str, Any]] = orjson.loads((DOCS / "mutants.json").read_bytes())["planted"]
    return found


def measured(name: str) -> list[str]:
    """Where the matrix named the cause, with one proof as it was reported."""
    named = [outcome for outcome in outcomes() if name in outcome["named"]]
    if not named:
        return []
    faults = ", ".join(f"`{fault}`" for fault in dict.fromkeys(outcome["fault"] for outcome in named))
    twins = "; ".join(dict.fromkeys(outcome["twin"] for outcome in named))
    lines = [
        "## Measured",
        f"Named for {len(named)} of the faults in the [matrix](mutants.md): {faults} on {twins}.",
    ]
    alone = (outcome for outcome in named if outcome["named"] == [name] and outcome["proofs"])
    shown = next(alone, None)
    if shown is not None:
        roots = ", ".join(shown["roots"][:3])
        lines.append(f"A root and its proof, of {shown['twin']}:")
        lines.append(f"```text\nroot     {roots}\nproof    {shown['proofs'][0]}\n```")
    return lines


# Written pages that speak of causes by name: there each name leads to its page.
NAMING = ("causes.md", "debugging.md")
NAME = re.compile(r"^ *```.*?^ *```$|(?<!\[)`([^`\n]+)`", re.MULTILINE | re.DOTALL)


def with_links(markdown: str) -> str:
    """Every name of a cause, as inline code, leads to its page."""
    known = set(cause_names())
    return NAME.sub(lambda m: f"[{m[0]}]({cause_file(m[1])})" if m[1] in known else m[0], markdown)


# -------------------------------------------------------------------------------------------------------------- figures

TABLE = re.compile(r"(?<!`)<!-- table: (?P<file>[\w-]+\.md) (?P<head>\|.+?) -->")


def with_tables(markdown: str) -> str:
    """Tables of other pages in the places that ask for them, so that no figure is written twice.

    `<!-- table: mutants.md | tool | -->` stands for the table of docs/mutants.md whose first row begins so.
    """
    return TABLE.sub(lambda m: "\n\n" + table_of(m["file"], m["head"]) + "\n", markdown)


def table_of(file: str, head: str) -> str:
    """The one table of a page whose first row begins with `head`."""
    text = (DOCS / file).read_text(encoding="utf-8")
    found = re.findall(rf"^{re.escape(head)}.*\n(?:\|.*\n)+", text, re.MULTILINE)
    if len(found) != 1:
        raise ValueError(f"{file} has {len(found)} tables that begin with {head}")
    return str(found[0])


# ------------------------------------------------------------------------------------------------------------ reference


def reference_pages() -> dict[str, str]:
    """What the packages export, for mkdocstrings, and the command line, for mkdocs-click."""
    pages = {f"reference/{package}.md": package_page(package) for package in PACKAGES}
    return {**pages, "reference/cli.md": COMMAND_LINE, "reference/json.md": schema_page(SCHEMA.read_bytes())}


def package_page(package: str) -> str:
    """A package's docstring and those of all it exports."""
    module = importlib.import_module(package)
    entries = [f"::: {package}\n    options:\n      members: false\n      heading_level: 1"]
    for name in module.__all__:
        # Where it is defined: alignment.check is a function, and the module that has it.
        defined = getattr(getattr(module, name), "__module__", None)
        known = defined if defined and defined.startswith(package) else package
        entries.append(f"::: {known}.{name}")
    return "\n\n".join(entries) + "\n"


FIELD = re.compile(r"^(?P<names>[a-z_]\w*(?:, [a-z_]\w*)*): +(?P<text>\S.*)$")


def as_list(text: str, fields: Collection[str]) -> str:
    """Lines that tell a field, with the lines that go on with it, as a Markdown list."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        match = FIELD.match(line)
        if match and all(name in fields for name in match["names"].split(", ")):
            names = ", ".join(f"`{name}`" for name in match["names"].split(", "))
            lines += [*([] if inside else [""]), f"- {names}: {match['text']}"]
            inside = True
        elif inside and line.strip():
            lines.append(f"    {line.strip()}")
        else:
            lines.append(line)
            inside = False
    return "\n".join(lines)


COMMAND_LINE = """# Command line

Exit status, of all commands that compare: 0 aligned, 1 diverged, 2 could not decide or could not run
([report.md](report.md#exit-status)). The defaults of `align check` can be put into a
[file](report.md#configuration-file).

::: mkdocs-click
    :module: alignment.cli
    :command: align
    :prog_name: align
    :depth: 1
    :style: plain
    :list_subcommands: True
"""

# --------------------------------------------------------------------------------------------------------------- schema


def schema_page(text: bytes) -> str:
    """The JSON schema of a report: a table for each of its objects, and the schema itself."""
    schema = orjson.loads(text)
    parts = [
        "# JSON report",
        f"{schema['description']} How it is written and read: [report.md](report.md#as-json). No object has other keys than "
        "these, and all of them are there unless a key is said to be optional.",
        "## report",
        "\n".join(rows(schema, {})),
    ]
    for name, definition in schema["$defs"].items():
        told = "\n".join(rows(definition, meanings(name))) if "properties" in definition else f"{kind(definition)}."
        parts += [f"## {name}", told]
    return "\n\n".join([*parts, "## The schema", f"```json\n{text.decode().strip()}\n```"]) + "\n"


def meanings(name: str) -> dict[str, str]:
    """What docs/report.md says of the keys of a twin, a tensor, …; a row may speak of several."""
    text = (DOCS / "report.md").read_text(encoding="utf-8")
    table = re.search(rf"^(?:A|The) {name}\b[^\n]*:\n\n((?:\|[^\n]*\n)+)", text, re.MULTILINE)
    lines = [line.split("|")[1:3] for line in table[1].splitlines()] if table else []
    found = {}
    for keys, told in lines:
        several = f"{keys.strip()}: " if "," in keys else ""
        found |= {key: several + told.strip() for key in re.findall(r"`(\w+)`", keys)}
    return found


def rows(definition: Mapping[str, Any], told: Mapping[str, str]) -> Iterator[str]:
    """A row for each key of an object: its meaning is what the schema says, or else what `told` has."""
    yield from ("| key | type | meaning |", "|---|---|---|")
    for key, value in definition["properties"].items():
        optional = "" if key in definition.get("required", ()) else "optional; "
        yield f"| `{key}` | {kind(value)} | {optional}{value.get('description') or told.get(key, '')} |"


def kind(value: Mapping[str, Any]) -> str:
    """A schema's type in a few words."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name})"
    if "const" in value:
        return f"`{orjson.dumps(value['const']).decode()}`"
    if "enum" in value:
        return ", ".join(f"`{orjson.dumps(one).decode()}`" for one in value["enum"])
    for several in ("anyOf", "oneOf"):
        if several in value:
            return " or ".join(kind(one) for one in value[several])
    if value.get("type") == "array":
        return f"array of {kind(value.get('items', {}))}"
    if value.get("type") == "object" and isinstance(value.get("additionalProperties"), dict):
        return f"object of {kind(value['additionalProperties'])}"
    types = value.get("type", "anything")
    words = " or ".join(types) if isinstance(types, list) else types
    return words + (f" ≥ {value['minimum']}" if "minimum" in value else "")


# ----------------------------------------------------------------------------------------------------- files of the tree

LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json"}


def source_page(path: Path) -> str:
    """A file of the repository that pages link to, or the files of a folder."""
    name = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        files = sorted(file.name for file in path.iterdir() if file.suffix in LANGUAGES)
        return "\n".join([f"# {name}", "", *(f"- [{file}](../{name}/{file})" for file in files)]) + "\n"
    language = LANGUAGES.get(path.suffix, "text")
    return f"# {name}\n\n````{language}\n{path.read_text(encoding='utf-8').rstrip()}\n````\n"
