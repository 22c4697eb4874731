"""Links as the repository has them, turned into the site's: one text serves both.

A link of a page names a file of the repository, relative to the page. On the site the pages of `docs/` keep their places,
the texts beside it (README, CHANGELOG, …) become pages, and any other file that is linked to becomes one that shows it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Texts beside docs/ -> their pages.
BESIDE = {
    "README.md": "readme.md",
    "README.zh-CN.md": "zh/readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}

# Fenced blocks and inline code, which hold no links; and what a link points to.
CODE_OR_LINK = re.compile(
    r"(?P<code>^ *(?P<fence>`{3,})[^\n]*\n.*?^ *(?P=fence)$|`[^`\n]+`)|(?P<link>(?P<text>\[[^]\n]*)?\]\((?P<target>[^)\s]+)\))",
    re.MULTILINE | re.DOTALL,
)


def page_of(path: str) -> str:
    """The site's page that shows a file or folder of the repository, both by their paths."""
    if path in BESIDE:
        return BESIDE[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"source/{path}.md"


def path_of(page: str) -> str:
    """Where a page's links count from: its place in the repository, or for a page that is made, the folder docs."""
    for path, beside in BESIDE.items():
        if page == beside:
            return path
    return f"docs/{page}" if (ROOT / "docs" / page).is_file() else f"docs/{posixpath.basename(page)}"


def targets(markdown: str, page: str) -> Iterator[str]:
    """Paths of the repository that a page links to."""
    for match in CODE_OR_LINK.finditer(markdown):
        if match["link"] and (path := repository_path(match["target"], page)):
            yield path


def rewrite(markdown: str, page: str) -> str:
    """A page's Markdown with links between pages of the site, relative to it."""

    def rewritten(match: re.Match[str]) -> str:
        path = repository_path(match["target"], page) if match["link"] else ""
        if not path:
            return match[0]
        file, hash_, anchor = match["target"].partition("#")
        to = posixpath.relpath(page_of(path), posixpath.dirname(page) or ".")
        text = match["text"] or ""
        if text == f"[{file}" and (title := title_of(ROOT / path)):
            text = f"[{title}"
        return f"{text}]({to}{hash_}{anchor})"

    return CODE_OR_LINK.sub(rewritten, markdown)


@cache
def title_of(path: Path) -> str:
    """The heading of a page that is written; what a link says that says the file's name."""
    if path.suffix != ".md" or not path.is_file():
        return ""
    found = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else ""


def repository_path(target: str, page: str) -> str:
    """What a link's target is in the repository; "" for another site, and for a place in the page itself."""
    path = target.partition("#")[0]
    if not path or re.match(r"[a-z]+:", target):
        return ""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path_of(page)), path))
