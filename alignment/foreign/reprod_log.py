"""Files of the reprod_log package: one dictionary of arrays a stage, as np.save pickles it.

The package's own loader trusts the file (``allow_pickle``); this one does not (`checkpoints.read_boxed`).
"""

from __future__ import annotations

from pathlib import Path

import checkpoints
from alignment.foreign.dumps import Dump, DumpKey

# How the usual file names begin -> stage and kind of record.
STEMS = (
    ("structure", 1, "parameter"),
    ("init", 2, "parameter"),
    ("loss", 4, "loss"),
    ("metric", 4, "metric"),
    ("bp", 5, "gradient"),
    ("backward", 5, "gradient"),
)
KINDS = {"logits": "logits", "out": "logits", "output": "logits", "loss": "loss"}


def read_reprod_log(path: Path) -> Dump:
    """A .npy file of `ReprodLogger.save`, its stage told by the file's name (``forward_torch.npy`` …); else it is forward.

    Raises:
        CheckpointError: it is no such file, is damaged, or holds anything but arrays.
    """
    held = checkpoints.read_boxed(path)
    step, record = next(((s, r) for stem, s, r in STEMS if path.stem.startswith(stem)), (3, "activation"))
    tensors = {}
    for name, value in held.tensors.items():
        kind, own = record, name
        if step == 5 and name.endswith((".gradient", ".update")):
            own, _, kind = name.rpartition(".")
        elif step == 3:
            kind = "logits" if KINDS.get(name) == "logits" else record
        elif step == 5 and name == "loss":
            kind = "loss"
        tensors[DumpKey(4 if kind == "loss" else step, kind, own)] = value
    return Dump("reprod_log", path, tensors, notes=held.notes)
