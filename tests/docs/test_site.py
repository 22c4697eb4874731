"""The pages that are made for the site: complete, true, and linked; the build itself is `make site`."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from xml.etree import ElementTree

import orjson
import pytest

from alignment.causes import CAUSES, FAMILIES
from alignment.views.json import SCHEMA
from mutants import with_padiff
from mutants.gallery import GALLERY_MUTANTS, GalleryMutant
from tests.docs.test_docs import anchors, blocks, check_command, prose
from website.links import BESIDE, page_of, rewrite, targets
from website.pages import (
    DOCS,
    NAMING,
    PACKAGES,
    ROOT,
    TABLE,
    as_list,
    cause_file,
    cause_pages,
    families,
    reference_pages,
    source_page,
    table_of,
    with_links,
    with_tables,
)
from website.ports import difference

TRIED = {cause for causes in CAUSES.values() for cause in causes}
WRITTEN = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in DOCS.glob("**/*.md")}

# --------------------------------------------------------------------------------------------------------------- causes


def test_every_cause_has_its_page():
    """All that a finding can be called, with everything that may be wrong under that name."""
    pages = cause_pages()
    assert len(pages) == len({cause.name for cause in TRIED})
    for cause in TRIED:
        page = pages[cause_file(cause.name)]
        assert page.startswith(f"# {cause.name}\n")
        assert f"**What is wrong:** {cause.summary}." in page
        assert f"**What to change:** {cause.remedy}." in page


def test_families_are_those_of_the_page():
    headings = anchors(DOCS / "causes.md")
    assert {family.anchor for family in families().values()} <= headings
    assert families().keys() == FAMILIES.keys()


def test_commands_of_causes_start(monkeypatch):
    monkeypatch.chdir(DOCS)
    commands = {m for page in cause_pages().values() for m in re.findall(r"^\$ (.+)$", page, re.MULTILINE)}
    assert "align explain mutants.gallery:conv_net__avgpool_padding" in commands
    for command in commands:
        check_command(command, False)


def test_a_page_shows_a_real_proof():
    page = cause_pages()["causes/avgpool-padding.md"]
    (outcome,) = (
        o for o in orjson.loads((DOCS / "mutants.json").read_bytes())["planted"] if o["fault"] == "avgpool-padding"
    )
    assert outcome["proofs"][0] in page


def test_a_page_shows_the_mistake_in_code():
    assert difference(mutant("conv-net", "avgpool-padding")).splitlines()[1:3] == [
        "-self.pool = nn.AvgPool2D(4, stride=2, padding=1)",
        "+self.pool = nn.AvgPool2D(4, stride=2, padding=1, exclusive=False)",
    ]
    assert difference(mutant("attention-net", "mask-ignored")).splitlines()[1:] == [
        "-return scores",
        "+return scores.masked_fill(~mask, -1000000000.0)",
    ]
    pages = cause_pages()
    for one in GALLERY_MUTANTS:
        lines = difference(one)
        assert {line[0] for line in lines.splitlines()} & {"-", "+"}, one
        assert f"```diff\n{lines}\n```" in pages[cause_file(one.cause)]


def mutant(twin: str, name: str) -> GalleryMutant:
    return next(one for one in GALLERY_MUTANTS if (one.twin, one.name) == (twin, name))


def test_names_of_causes_lead_to_their_pages():
    assert with_links("| `gelu-form` | `no-cause` |\n") == "| [`gelu-form`](causes/gelu-form.md) | `no-cause` |\n"
    assert with_links("```text\n`gelu-form`\n```\n") == "```text\n`gelu-form`\n```\n"
    for name in NAMING:
        rows = re.findall(r"^\|.*`[a-z0-9-]+`.*$", WRITTEN[name], re.MULTILINE)
        assert rows
    assert with_links(WRITTEN["causes.md"]).count("(causes/") >= len(TRIED) - 20  # names that stand in several tables


def test_likely_causes_are_causes():
    """What docs/debugging.md puts down to a cause has that name."""
    known = {cause.name for cause in TRIED}
    rows = re.findall(r"^\| .+? \| (.+?) \|", WRITTEN["debugging.md"], re.MULTILINE)
    names = {name for cell in rows for name in re.findall(r"`([^`]+)`", cell)}
    assert len(names) > 60
    assert names <= known


# -------------------------------------------------------------------------------------------------------- the flow chart


def test_the_chart_and_its_page_agree(monkeypatch):
    monkeypatch.chdir(DOCS)
    texts = ElementTree.parse(DOCS / "images" / "flow.svg").iter("{http://www.w3.org/2000/svg}text")
    said = [(text.get("class"), text.text or "") for text in texts]
    numbers = [text.split()[0] for kind, text in said if kind == "strong" and text[0].isdigit()]
    assert numbers == re.findall(r"^## (\d) ", WRITTEN["debugging.md"], re.MULTILINE)
    options = {"--train-steps": "--train-steps 1 --side reference -o file.safetensors fast-transformer"}
    for kind, text in said:
        if kind == "command":
            command = text
            for option, whole in options.items():
                command = command.replace(option, whole)
            check_command(command, len(command.split()) == 2)


# ---------------------------------------------------------------------------------------------------------------- links


def test_links_serve_both():
    text = "[README](../README.md) [here](#a) [explain.md](explain.md#b) [out](https://a.b/c.md) "
    text += "`[x](y.md)` [p](../examples/port)"
    assert rewrite(text, "tutorial.md") == (
        "[README](readme.md) [here](#a) [Explaining a divergence](explain.md#b) [out](https://a.b/c.md) "
        "`[x](y.md)` [p](source/examples/port.md)"
    )
    assert rewrite("[a](docs/step1-structure.md)", "readme.md") == "[a](step1-structure.md)"
    assert rewrite("[a](causes.md#masks)", "causes/mask-inverted.md") == "[a](../causes.md#masks)"
    assert rewrite("```text\n[a](b.md)\n```", "index.md") == "```text\n[a](b.md)\n```"


def test_every_link_has_a_page():
    made = {**cause_pages(), **reference_pages()}
    beside = {page: (ROOT / path).read_text(encoding="utf-8") for path, page in BESIDE.items()}
    known = {*WRITTEN, *made, *beside}
    for page, text in {**WRITTEN, **made, **beside}.items():
        for path in targets(text, page):
            assert page_of(path) in known or (ROOT / path).exists(), f"{page}: {path}"


def test_a_file_that_is_linked_to_is_shown():
    assert "class Tagger" in source_page(ROOT / "examples" / "port" / "reference.py")
    assert "(../examples/port/twins.py)" in source_page(ROOT / "examples" / "port")


def test_the_menu_has_every_page():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = set(re.findall(r"([\w/-]+\.md)$", menu, re.MULTILINE))
    assert {*WRITTEN, *reference_pages(), *BESIDE.values()} <= listed


# -------------------------------------------------------------------------------------------------------------- figures


def test_figures_are_taken_from_their_pages():
    marks = list(TABLE.finditer(WRITTEN["comparison.md"]))
    assert len(marks) == 4
    for mark in marks:
        table = table_of(mark["file"], mark["head"])
        assert table in WRITTEN[mark["file"]]
        assert table.count("\n") > 3
    assert "<!-- table" not in with_tables(WRITTEN["comparison.md"])
    assert with_tables("`<!-- table: FILE.md | a -->`") == "`<!-- table: FILE.md | a -->`"


def test_a_table_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="0 tables"):
        table_of("mutants.md", "| no such | table |")


def test_figures_of_padiff_are_those_that_were_measured():
    outcomes = orjson.loads((DOCS / "padiff.json").read_bytes())
    assert with_padiff.table(outcomes) in WRITTEN["comparison.md"]
    assert {(o["twin"], o["fault"]) for o in outcomes} == set(with_padiff.pairs())


# ------------------------------------------------------------------------------------------------------------ reference


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_has_what_is_exported(package):
    module = importlib.import_module(package)
    shown = re.findall(r"^::: (\S+)$", reference_pages()[f"reference/{package}.md"], re.MULTILINE)[1:]
    assert len(shown) == len(module.__all__)
    for path, name in zip(shown, module.__all__, strict=True):
        defined, _, last = path.rpartition(".")
        assert last == name
        # A module of that name is what the reference would show.
        assert not (ROOT / path.replace(".", "/")).with_suffix(".py").exists(), path
        assert getattr(importlib.import_module(defined), name) is getattr(module, name)


def test_the_schema_page_has_every_key():
    page = reference_pages()["reference/json.md"]
    schema = orjson.loads(SCHEMA.read_bytes())
    for name, definition in {"report": schema, **schema["$defs"]}.items():
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(definition.get("properties", ()))
    assert "| `strain` | [figure](#figure) | seen over allowed" in page
    assert "| `proof` | string | the correction and how far the difference fell" in page  # from docs/report.md


def test_fields_of_a_docstring_become_a_list():
    text = "What it is.\n\nsteps: which.\n    And more.\nother: not a field."
    assert as_list(text, {"steps"}) == "What it is.\n\n\n- `steps`: which.\n    And more.\n    other: not a field."


# --------------------------------------------------------------------------------------------------------- translations

TRANSLATED = {"README.md": "README.zh-CN.md", "docs/tutorial.md": "docs/zh/tutorial.md"}


@pytest.mark.parametrize("page", TRANSLATED)
def test_code_is_the_same_in_both_languages(page):
    """A block that is changed in one language turns this red until the other has it, too."""
    ours, theirs = ROOT / page, ROOT / TRANSLATED[page]
    assert fenced(ours)
    assert fenced(theirs) == fenced(ours)
    assert levels(theirs) == levels(ours)


def fenced(page: Path) -> list[tuple[str, str, str]]:
    """Language and text of each fenced block, and the comment before it."""
    found = blocks(page, "text", "console", "python", "toml", "bash", "json")
    return [(block.language, block.text, (block.before.splitlines() or [""])[-1].strip()) for block in found]


def levels(page: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"^(#+) ", text, re.MULTILINE)


@pytest.mark.parametrize("page", TRANSLATED)
def test_figures_and_links_are_the_same_in_both_languages(page):
    ours, theirs = ROOT / page, ROOT / TRANSLATED[page]
    assert figures(ours)
    assert figures(theirs) == figures(ours)
    assert linked(theirs, ours) == linked(ours, theirs)


def figures(page: Path) -> list[str]:
    """Every number of the text, in what order a language has them."""
    text = re.sub(r"\]\([^)]+\)", "", prose(page))
    return sorted(re.findall(r"(?<![\w.])\d+(?:[.,]\d+)*(?:e-?\d+)?", text, re.ASCII))


def linked(page: Path, other: Path) -> list[Path]:
    """Every file that a page links to, but for the page in the other language."""
    found = re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose(page))
    files = [(page.parent / target).resolve() for target in found if not re.match(r"[a-z]+:", target)]
    return sorted(file for file in files if file != other)


@pytest.mark.parametrize("page", TRANSLATED)
def test_languages_link_to_each_other(page):
    ours, theirs = ROOT / page, ROOT / TRANSLATED[page]
    for here, there in ((ours, theirs), (theirs, ours)):
        top = here.read_text(encoding="utf-8")[:400]
        linked = {(here.parent / target).resolve() for target in re.findall(r"\]\(([^)#]+)\)", top)}
        assert there in linked
