"""What mkdocs calls: adds the pages that are made, and brings the links of every page to the site's."""

from __future__ import annotations

import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from website.links import BESIDE, ROOT, page_of, rewrite, targets
from website.pages import NAMING, cause_pages, reference_pages, source_page, with_links, with_tables

STYLE = "site.css"
PICTURE = re.compile(r"!\[[^]]*\]\((images/[\w-]+\.svg)\)")


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    made = {page: (ROOT / path).read_text(encoding="utf-8") for path, page in BESIDE.items()}
    made |= cause_pages() | reference_pages()
    todo = {file.src_uri: file.content_string for file in files.documentation_pages()} | made
    while todo:
        page, text = todo.popitem()
        linked = {page_of(path): ROOT / path for path in targets(text, page)}
        new = {at for at, path in linked.items() if at.startswith("source/") and at not in made and path.exists()}
        sources = {at: source_page(linked[at]) for at in new}
        made |= sources
        todo |= sources
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, STYLE, abs_src_path=str(ROOT / "website" / STYLE)))
    config.nav = present(config.nav, files)
    return files


def present(entry: Any, files: Files) -> Any:
    """The menu without pages that are not there."""
    if isinstance(entry, list):
        return [one for one in (present(item, files) for item in entry) if one]
    if isinstance(entry, dict):
        return {title: one for title, item in entry.items() if (one := present(item, files))}
    return entry if files.get_file_from_path(entry) else None


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    name = page.file.src_uri
    markdown = with_tables(markdown)
    if name in NAMING:
        markdown = with_links(markdown)
    return PICTURE.sub(inlined, rewrite(markdown, name))


def inlined(picture: re.Match[str]) -> str:
    """A picture as a part of the page, so that it has the page's colours."""
    text = (ROOT / "docs" / picture[1]).read_text(encoding="utf-8")
    return f"<div>{text.strip()}</div>"


def on_post_page(output: str, page: Page, **_: Any) -> str:
    return output.replace('<html lang="en"', '<html lang="zh-CN"', 1) if page.file.src_uri.startswith("zh/") else output
