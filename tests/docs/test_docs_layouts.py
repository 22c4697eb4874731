"""The table of layouts in docs/checkpoints.md is what the live layers of both frameworks say.

    python -m tests.docs.test_docs_layouts

writes it anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import paddle
import torch

from alignment.frameworks import get_framework
from checkpoints import Extra, Layout, Move, plan
from checkpoints.layouts import TABLES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md"
BEGIN, END = "<!-- layouts of live layers -->\n", "<!-- end of layouts -->\n"

# torch's layer and Paddle's, as one writes them after `nn.`
LAYERS = (
    ("Linear(3, 5)", "Linear(3, 5)"),
    ("Linear(3, 5)", "compat.Linear(3, 5)"),
    ("Embedding(7, 3)", "Embedding(7, 3)"),
    ("Conv2d(3, 5, 2)", "Conv2D(3, 5, 2)"),
    ("ConvTranspose2d(3, 5, 2)", "Conv2DTranspose(3, 5, 2)"),
    ("LayerNorm([3, 4])", "LayerNorm([3, 4])"),
    ("GroupNorm(2, 4)", "GroupNorm(2, 4)"),
    ("BatchNorm2d(4)", "BatchNorm2D(4)"),
    ("InstanceNorm2d(4, affine=True)", "InstanceNorm2D(4)"),
    ("PReLU(4)", "PReLU(4)"),
    ("Bilinear(3, 4, 5)", "Bilinear(3, 4, 5)"),
    ("LSTM(3, 5)", "LSTM(3, 5)"),
    ("GRU(3, 5, bidirectional=True)", 'GRU(3, 5, direction="bidirect")'),
    ("RNN(3, 5, num_layers=2)", "SimpleRNN(3, 5, num_layers=2)"),
    ("LSTM(3, 5, proj_size=2)", "LSTM(3, 5, proj_size=2)"),
    ("LSTMCell(3, 5)", "LSTMCell(3, 5)"),
    ("GRUCell(3, 5)", "GRUCell(3, 5)"),
    ("RNNCell(3, 5, bias=False)", "SimpleRNNCell(3, 5, bias_ih_attr=False, bias_hh_attr=False)"),
    ("MultiheadAttention(4, 2)", "MultiHeadAttention(4, 2)"),
    ("MultiheadAttention(4, 2, kdim=3, vdim=6)", "MultiHeadAttention(4, 2, kdim=3, vdim=6)"),
    ("MultiheadAttention(4, 2)", "compat.MultiheadAttention(4, 2)"),
    ("TransformerEncoderLayer(4, 2, 8)", "TransformerEncoderLayer(4, 2, 8)"),
    ("TransformerDecoderLayer(4, 2, 8)", "TransformerDecoderLayer(4, 2, 8)"),
)


def layout_of(ours: str, theirs: str) -> Layout:
    reference = eval(ours, vars(torch.nn).copy())
    candidate = eval(theirs, {**vars(paddle.nn), "compat": paddle.compat.nn})
    slots = get_framework("torch").slots(reference), get_framework("paddle").slots(candidate)
    return plan(*slots, "torch", "paddle")


def table() -> str:
    lines = ["| torch | Paddle | tensor | becomes | by |", "|---|---|---|---|---|"]
    for ours, theirs in LAYERS:
        first = f"| `{ours}` | `{theirs}` "
        for row in rows(layout_of(ours, theirs)):
            lines.append(f"{first}| {' | '.join(row)} |")
            first = "| | "
    return "\n".join(lines) + "\n"


def rows(layout: Layout) -> list[tuple[str, str, str]]:
    """What is not simply the same; of queries, keys and values the queries, and of directions and layers the first."""
    found = [row(move) for move in layout.moves if not same(move) and not again(move.label + " " + move.target)]
    found += [(told(extra), "nothing", f"drop: {extra.reason}") for extra in layout.dropped]
    found += [("nothing", told(extra), f"fill with zeros: {extra.reason}") for extra in layout.filled]
    found += [
        (f"`{first}`", f"`{first}`, and again `{'`, `'.join(more)}`", "copy")
        for first, *more in layout.target_ties
        if first.startswith("weight_ih")
    ]
    rest = any(same(move) for move in layout.moves)
    return [*found, *([("all else" if found else "all", "the same", "copy")] if rest else [])]


def same(move: Move) -> bool:
    return (move.operation, move.label, move.shape_from) == ("copy", move.target, move.shape_to)


def again(names: str) -> bool:
    return re.search(r"\[[kv]\]|\b[kv]_proj", names) is not None


def row(move: Move) -> tuple[str, str, str]:
    by = move.operation
    if by == "copy":
        by = "split" if move.part_from else "rename"
    elif move.part_from:
        by = f"split, {by}"
    return f"`{move.label}` of {list(move.shape_from)}", f"`{move.target}` {list(move.shape_to)}", by


def told(extra: Extra) -> str:
    return f"`{extra.name}` {list(extra.shape)}"


def test_the_table_is_current() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == table().strip()


def test_the_table_has_every_kind_there_is() -> None:
    for column, framework in enumerate(("torch", "paddle")):
        table = TABLES[framework]
        shown = [names[column].partition("(")[0] for names in LAYERS]
        assert families(table[kind].kind for kind in shown if kind in table) == families(x.kind for x in table.values())


def families(kinds: Iterable[str]) -> set[str]:
    """One for all numbers of dimensions."""
    return {re.sub(r"\dd$", "", kind) for kind in kinds}


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + table() + "\n" + END + rest.partition(END)[2], encoding="utf-8")
