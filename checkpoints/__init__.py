"""Weights between frameworks: parameter layouts, name maps, and file formats read without trusting the file.

`read` and `write` take checkpoint files as NumPy arrays; `plan` makes a `Layout` of the slots of two live models;
`convert` and `convert_proved` move tensors by it. Nothing here imports a framework.
"""

from checkpoints._dtypes import RAW16
from checkpoints._files import write_aside
from checkpoints.convert import (
    Proof,
    aliases,
    as_stored,
    backwards,
    convert,
    convert_proved,
    fill_aliases,
    holders,
    join,
    opened,
    part_of,
    plan,
    retype,
    reverse,
    split,
    split_slots,
    undo,
    undo_view,
)
from checkpoints.errors import CheckpointError
from checkpoints.formats import (
    FRAMEWORK_OF,
    Checkpoint,
    map_checkpoint,
    open_checkpoint,
    read,
    read_boxed,
    read_checkpoint,
    read_npy,
)
from checkpoints.layout_file import Extra, Layout, Move, Part, label_of
from checkpoints.names import NameMap, Rename
from checkpoints.places import check_destination, existing_shards, parse_size, write
from checkpoints.stored import OpenCheckpoint, Stored
from checkpoints.stream import Streamed, stream
from checkpoints.structure import Slot

__all__ = [
    "FRAMEWORK_OF",
    "RAW16",
    "Checkpoint",
    "CheckpointError",
    "Extra",
    "Layout",
    "Move",
    "NameMap",
    "OpenCheckpoint",
    "Part",
    "Proof",
    "Rename",
    "Slot",
    "Stored",
    "Streamed",
    "aliases",
    "as_stored",
    "backwards",
    "check_destination",
    "convert",
    "convert_proved",
    "existing_shards",
    "fill_aliases",
    "holders",
    "join",
    "label_of",
    "map_checkpoint",
    "open_checkpoint",
    "opened",
    "parse_size",
    "part_of",
    "plan",
    "read",
    "read_boxed",
    "read_checkpoint",
    "read_npy",
    "retype",
    "reverse",
    "split",
    "split_slots",
    "stream",
    "undo",
    "undo_view",
    "write",
    "write_aside",
]
