"""How a docstring tells fields, for mkdocstrings: each field that stands at the start of a line becomes an item of a list."""

from __future__ import annotations

from typing import Any

from griffe import Class, Extension

from website.pages import as_list


class Fields(Extension):
    """`name: what it is` of a class that has such an attribute."""

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        if cls.docstring:
            cls.docstring.value = as_list(cls.docstring.value, cls.members)
