"""Weights between frameworks: parameter layouts, name maps, and file formats read without trusting the file.

`read` and `write` take checkpoint files as NumPy arrays; `plan` makes a `Layout` of the slots of two live models;
`convert` and `convert_proved` move tensors by it. Nothing here imports a framework.
"""

from checkpoints._dtypes import RAW16
from checkpoints._files import write_aside
from checkpoints.convert import (
    Proof,
    as_stored,
    convert,
    convert_proved,
    fill_aliases,
    join,
    part_of,
    plan,
    retype,
    reverse,
    split,
    split_slots,
    undo,
)
from checkpoints.errors import CheckpointError
from checkpoints.formats import FRAMEWORK_OF, Checkpoint, check_destination, read, read_checkpoint, write
from checkpoints.layout_file import Extra, Layout, Move, Part
from checkpoints.names import NameMap, Rename
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
    "Part",
    "Proof",
    "Rename",
    "Slot",
    "as_stored",
    "check_destination",
    "convert",
    "convert_proved",
    "fill_aliases",
    "join",
    "part_of",
    "plan",
    "read",
    "read_checkpoint",
    "retype",
    "reverse",
    "split",
    "split_slots",
    "undo",
    "write",
    "write_aside",
]
