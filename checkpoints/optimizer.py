"""An optimizer's state between frameworks: each of its tensors lies as the parameter's does, so it moves like the weights.

torch saves ``optimizer.state_dict()``, in which parameters are numbers; Paddle saves a .pdopt, in which they have names that
the process gave them, and keeps powers of Adam's betas in place of a count of updates. Read off torch 2.13
(torch/optim/optimizer.py) and Paddle 3.3.1 (paddle/optimizer/optimizer.py), and the files they write.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints import _torch_file, _zip
from checkpoints._dtypes import DTYPES, Spec, name_of, same_bits
from checkpoints._files import write_aside
from checkpoints.convert import apply_view, backwards, holders
from checkpoints.errors import CheckpointError
from checkpoints.formats import read_tree
from checkpoints.layout_file import Layout

Slots = Mapping[str, Mapping[str, np.ndarray]]

# slot -> (torch's word, Paddle's)
WORDS = {
    "momentum": ("momentum_buffer", "velocity"),
    "first moment": ("exp_avg", "moment1"),
    "second moment": ("exp_avg_sq", "moment2"),
    "largest second moment": ("max_exp_avg_sq", "moment2_max"),
    "mean square": ("square_avg", "mean_square"),
}
POWERS = ("beta1_pow_acc", "beta2_pow_acc")
NAME_TABLE = "StructuredToParameterName@@"
# How far a power of beta that was multiplied up in float32 may lie from one, in steps of its exponent.
NEAR = 0.4
# Below this float32 has no full precision, and the power no longer tells its exponent.
SMALLEST = 1e-37


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer keeps.

    slots: ``"momentum"``, ``"first moment"``, ``"second moment"``, ``"largest second moment"`` or ``"mean square"`` ->
    parameter -> array in the parameter's layout. updates: parameter -> how often it was updated; 1 where the optimizer does
    not count (SGD). settings: what the file says of the first group of parameters (torch's words). schedule: Paddle's
    ``LR_Scheduler``, if there is one.
    """

    slots: Slots
    updates: Mapping[str, int]
    settings: Mapping[str, Any] = field(default_factory=dict)
    schedule: Mapping[str, Any] | None = None


def convert_optimizer(state: OptimizerState, layout: Layout) -> OptimizerState:
    """The state for the parameters of the layout's target; there and back is proved bit-identical.

    Raises:
        CheckpointError: the state is of parameters that the layout does not move, has another shape than theirs, or belongs
            to parts of one tensor that were updated a different number of times.
    """
    result = OptimizerState(
        {slot: _carried(tensors, layout, slot) for slot, tensors in state.slots.items()},
        _counts(state.updates, layout),
        state.settings,
        state.schedule,
    )
    way_back = backwards(layout)
    for slot, tensors in state.slots.items():
        back = _carried(result.slots[slot], way_back, slot)
        wrong = [m.source for m, held in holders(layout, tensors) if not same_bits(back[m.source], tensors[held])]
        if wrong:
            raise CheckpointError(f"{slot} of {', '.join(wrong)}: there and back is not bit-identical")
    return result


def _carried(tensors: Mapping[str, np.ndarray], layout: Layout, slot: str) -> dict[str, np.ndarray]:
    moves = holders(layout, tensors)
    taken = {held for _, held in moves}
    left = [name for name in tensors if name not in taken]
    if left:
        raise CheckpointError(f"{slot} of {', '.join(left)}: the layout does not move these parameters")
    result: dict[str, np.ndarray] = {}
    parts: dict[str, dict[int, np.ndarray]] = {}
    counts: dict[str, int] = {}
    for move, held in moves:
        array = tensors[held]
        if array.shape != move.shape_from:
            raise CheckpointError(
                f"{slot} of {held} has shape {list(array.shape)}, and the parameter {list(move.shape_from)}"
            )
        moved = np.array(apply_view(array, move), order="C", copy=True)
        if move.part_to is None:
            result[move.target] = moved
        else:
            parts.setdefault(move.target, {})[move.part_to.index] = moved
            counts[move.target] = move.part_to.count
    for name, found in parts.items():
        if len(found) != counts[name]:
            raise CheckpointError(
                f"{slot} of {name}: some of its parts were updated and others not, so it has no state"
            )
        result[name] = np.concatenate([found[index] for index in range(counts[name])])
    return result


def _counts(updates: Mapping[str, int], layout: Layout) -> dict[str, int]:
    found: dict[str, set[int]] = {}
    for move, held in holders(layout, updates):
        found.setdefault(move.target, set()).add(updates[held])
    uneven = [name for name, counts in found.items() if len(counts) > 1]
    if uneven:
        raise CheckpointError(f"{', '.join(uneven)}: parts of one tensor that were updated a different number of times")
    return {name: counts.pop() for name, counts in found.items()}


@contextmanager
def _damage(path: str | Path) -> Iterator[None]:
    """What the reader's own checks let through is still no traceback."""
    try:
        yield
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path}: not the state of an optimizer: {str(error)[:200]}") from error


# ---- torch ---------------------------------------------------------------------------------------------------------


def read_torch_optimizer(path: str | Path, parameters: Sequence[str]) -> OptimizerState:
    """What ``torch.save(optimizer.state_dict(), path)`` wrote; also as the one such entry of a larger file.

    parameters: the model's, in its order, for a file that does not name them (``param_names``).

    Raises:
        CheckpointError: no such file, or none that tells which parameter is which.
    """
    with _damage(path):
        return _read_torch(path, parameters)


def _read_torch(path: str | Path, parameters: Sequence[str]) -> OptimizerState:
    content = _entry(path)
    groups = content["param_groups"]
    if not isinstance(groups, list) or not groups or not all(isinstance(group, dict) for group in groups):
        raise CheckpointError(f"{path}: its param_groups are no list of groups")
    numbers = [number for group in groups for number in group.get("params", ())]
    names = [name for group in groups for name in group.get("param_names", ())]
    if not names and len(groups) > 1:
        raise CheckpointError(
            f"{path}: has {len(groups)} groups of parameters and no names, so which is which can't be known; make the "
            "optimizer of named parameters: torch.optim.Adam(model.named_parameters())"
        )
    names = names or list(parameters)
    if len(names) != len(numbers):
        raise CheckpointError(f"{path}: is of {len(numbers)} parameters, and the model has {len(names)}")
    named = dict(zip(numbers, names, strict=True))
    words = {torch: slot for slot, (torch, _) in WORDS.items()}
    slots: dict[str, dict[str, np.ndarray]] = {}
    updates: dict[str, int] = {}
    for number, held in content["state"].items():
        if number not in named or not isinstance(held, dict):
            raise CheckpointError(f"{path}: has a state of parameter {number}, which is in no group")
        name = named[number]
        updates[name] = 1
        for word, value in held.items():
            if word == "step":
                updates[name] = int(value)
            elif isinstance(value, np.ndarray) and word in words:
                slots.setdefault(words[word], {})[name] = np.array(value, order="C")
            elif value is not None:
                raise CheckpointError(f"{path}: {word} of {name}: of an optimizer whose state is not known here")
    settings = {word: value for word, value in groups[0].items() if word not in ("params", "param_names")}
    return OptimizerState(slots, updates, settings)


def _entry(path: str | Path) -> dict[str, Any]:
    content = read_tree(path)
    candidates = [content, *(content.values() if isinstance(content, dict) else ())]
    found = [c for c in candidates if isinstance(c, dict) and {"state", "param_groups"} <= set(c)]
    if len(found) != 1:
        raise CheckpointError(
            f"{path}: holds {len(found) or 'no'} optimizer states; save one with torch.save(optimizer.state_dict(), …)"
        )
    return found[0]


def write_torch_optimizer(
    path: str | Path, state: OptimizerState, groups: Sequence[tuple[Mapping[str, Any], Sequence[str]]]
) -> None:
    """A file for ``optimizer.load_state_dict(torch.load(path))``.

    groups: of each group of parameters its settings (``lr``, ``betas`` …, plain values) and its parameters' names, in the order
    of the optimizer's.
    """
    names = [name for _, group in groups for name in group]
    numbers = {name: number for number, name in enumerate(names)}
    counts = any("moment" in slot for slot in state.slots)
    held: dict[int, dict[str, Any]] = {}
    for name, count in sorted(state.updates.items(), key=lambda entry: numbers[entry[0]]):
        entry: dict[str, Any] = {"step": np.array(float(count), np.float32)} if counts else {}
        entry |= {WORDS[slot][0]: tensors[name] for slot, tensors in state.slots.items() if name in tensors}
        held[numbers[name]] = entry
    content = {
        "state": held,
        "param_groups": [
            {**settings, "params": [numbers[name] for name in group], "param_names": list(group)}
            for settings, group in groups
        ],
    }
    _write_torch_tree(Path(path), content)


def _write_torch_tree(path: Path, content: Any) -> None:
    arrays: list[np.ndarray] = []
    pickled = b"\x80\x02" + _opcodes(content, arrays) + b"."
    specs = {str(key): Spec(name_of(array.dtype), array.shape) for key, array in enumerate(arrays)}
    archive = _torch_file.lay_out_pickled(pickled, specs)
    sums = {key: _zip.crc(memoryview(arrays[int(key)].tobytes())) for key in specs}
    parts = [*archive.pieces(sums), *((at, arrays[int(key)].tobytes()) for key, at in archive.tensor_offsets().items())]
    with write_aside(path) as file:
        for _, part in sorted(parts, key=lambda part: (part[0], len(part[1]))):
            file.write(part)


def _opcodes(value: Any, arrays: list[np.ndarray]) -> bytes:
    """Plain values and arrays as torch pickles them; the arrays are collected, in the order of their storages."""
    if isinstance(value, np.ndarray):
        made = np.asarray(value, DTYPES[name_of(value.dtype)], order="C")
        arrays.append(made)
        return _torch_file.tensor_opcodes(str(len(arrays) - 1), Spec(name_of(made.dtype), made.shape))
    if isinstance(value, Mapping):
        return b"}(" + b"".join(_opcodes(k, arrays) + _opcodes(v, arrays) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(_opcodes(part, arrays) for part in value) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(_opcodes(part, arrays) for part in value) + b"t"
    # A plain value's pickle of protocol 2, without its head and its end.
    return pickle.dumps(value, 2)[2:-1]


# ---- Paddle --------------------------------------------------------------------------------------------------------


def paddle_names(path: str | Path) -> dict[str, str] | None:
    """Parameter -> the name that its process gave it, as a .pdparams of Paddle's own says it; None where it does not."""
    content = read_tree(path)
    table = content.get(NAME_TABLE) if isinstance(content, dict) else None
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        return None
    return {str(structured): name for structured, name in table.items()}


def read_paddle_optimizer(
    path: str | Path, names: Mapping[str, str], betas: tuple[float, float] = (0.9, 0.999)
) -> OptimizerState:
    """What ``paddle.save(optimizer.state_dict(), path)`` wrote.

    names: parameter -> the name that its process gave it (`paddle_names`). betas: Adam's, which the file does not say.

    Raises:
        CheckpointError: no such file, of other parameters, of half-precision training with master weights, or the powers of
            the betas are none of these betas.
    """
    with _damage(path):
        return _read_paddle(path, names, betas)


def _read_paddle(path: str | Path, names: Mapping[str, str], betas: tuple[float, float]) -> OptimizerState:
    content = read_tree(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not the state of an optimizer")
    if "master_weights" in content:
        raise CheckpointError(f"{path}: has master weights of half-precision training, which are not converted")
    words = {paddle: slot for slot, (_, paddle) in WORDS.items()}
    known = "|".join(map(re.escape, sorted((*words, *POWERS), key=len, reverse=True)))
    own = {unique: structured for structured, unique in names.items()}
    slots: dict[str, dict[str, np.ndarray]] = {}
    powers: dict[str, dict[str, float]] = {}
    for key, value in content.items():
        if not isinstance(value, np.ndarray):
            continue
        match = re.fullmatch(rf"(.+?)_({known})_\d+", str(key))
        if match is None or match[1] not in own:
            raise CheckpointError(
                f"{path}: {str(key)[:200]} belongs to no parameter of the model; the file and the weights must be of one run"
            )
        name, word = own[match[1]], match[2]
        if word in words:
            slots.setdefault(words[word], {})[name] = np.array(value, order="C")
        else:
            powers.setdefault(name, {})[word] = float(value.reshape(-1)[0])
    updates = {name: 1 for tensors in slots.values() for name in tensors}
    updates |= {name: _exponent(path, name, [held.get(p, 0.0) for p in POWERS], betas) for name, held in powers.items()}
    updates = {name: count for name, count in updates.items() if count > 0}  # set up, and never updated
    kept = {slot: {name: a for name, a in tensors.items() if name in updates} for slot, tensors in slots.items()}
    schedule = content.get("LR_Scheduler")
    return OptimizerState(kept, updates, {"betas": betas}, schedule if isinstance(schedule, dict) else None)


def _exponent(path: str | Path, name: str, powers: Sequence[float], betas: Sequence[float]) -> int:
    """How often a parameter was updated: the powers of its betas are one ahead."""
    found = None
    for power, beta in zip(powers, betas, strict=True):
        if beta > 0.0 and power > SMALLEST:
            exact = math.log(power) / math.log(beta)
            if abs(exact - round(exact)) > NEAR or (found is not None and abs(exact - found) > 1 + 1e-3 * found):
                raise CheckpointError(
                    f"{path}: {name}: {power:g} is no power of {beta:g}; say the optimizer's betas with a recipe"
                )
            found = round(exact) if found is None else found
    if found is None:
        raise CheckpointError(f"{path}: {name}: updated so often that the powers of its betas no longer tell how often")
    return found - 1


def power_of(beta: float, updates: int, dtype: np.dtype) -> np.ndarray:
    """What Paddle's Adam holds [1] after so many updates of a parameter of `dtype`: multiplied up, and rounded each time."""
    kind = np.float64 if dtype == np.float64 else np.float32
    return np.full(updates + 1, beta, kind).cumprod(dtype=kind)[-1:]


def write_paddle_optimizer(
    path: str | Path,
    state: OptimizerState,
    names: Mapping[str, str],
    parameters: Mapping[str, np.ndarray],
    betas: tuple[float, float] = (0.9, 0.999),
) -> None:
    """A file for ``optimizer.set_state_dict(paddle.load(path))``, before the optimizer's first step.

    names: parameter -> the name that the process which loads it gives it. parameters: the model's, by whose shapes and dtypes
    those without a state get an empty one, as Paddle wants it.
    """
    content: dict[str, Any] = {}
    counts = any("moment" in slot for slot in state.slots)
    for name, array in parameters.items():
        for slot, tensors in state.slots.items():
            held = tensors.get(name)
            made = np.zeros(array.shape, array.dtype) if held is None else held
            content[f"{names[name]}_{WORDS[slot][1]}_0"] = (
                made.view(np.uint16) if made.dtype.name == "bfloat16" else made
            )
        for power, beta in zip(POWERS, betas, strict=True) if counts else ():
            content[f"{names[name]}_{power}_0"] = power_of(beta, state.updates.get(name, 0), array.dtype)
    if state.schedule is not None:
        content["LR_Scheduler"] = dict(state.schedule)
    with write_aside(Path(path)) as file:
        pickle.dump(content, file, protocol=4)


__all__ = [
    "OptimizerState",
    "convert_optimizer",
    "paddle_names",
    "power_of",
    "read_paddle_optimizer",
    "read_torch_optimizer",
    "write_paddle_optimizer",
    "write_torch_optimizer",
]
