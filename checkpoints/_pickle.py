"""A pickle machine that can make tensors and plain values, and nothing else.

It knows the opcodes that torch.save, paddle.save and NumPy emit (protocols 2 to 5) and resolves no name by importing: a
global is a word that must stand in a table of the caller's, and calling it runs that table's function. What it makes is
bounded by the file: no length is believed before it is compared with the bytes that are there.

Source of the facts: CPython's pickletools; NumPy's ``ndarray.__reduce__``; read off files written by NumPy 2.4.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from checkpoints._dtypes import DTYPES
from checkpoints.errors import CheckpointError

# A tensor takes about forty opcodes; a file with more is not a checkpoint but an attempt to exhaust memory.
MAX_OPCODES = 4_000_000
MAX_NAME = 200
MAX_AXES = 64
# What is read may be this many times as large as the file or the storage it comes from, and small things larger.
MAX_EXPANSION = 100
SMALL = 1 << 26
# Sizes beyond this are lies; products of many such numbers take hours.
MAX_SIZE = 2**63 - 1

Call = Callable[..., Any]


class Word:
    """A global, by name only: what it names is never imported."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Array:
    """A NumPy array under construction (a pickle makes it empty, then gives it its state).

    content: of an array of one Python object and no axes, as np.save makes of a dictionary; only where `BOX_WORDS` are known.
    """

    __slots__ = ("content", "value")

    def __init__(self) -> None:
        self.value: np.ndarray | None = None
        self.content: Any = None


class _DType:
    """A NumPy dtype under construction."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "<"

    def value(self) -> np.dtype:
        if self.code in DTYPES:
            return DTYPES[self.code]
        return np.dtype(self.code).newbyteorder(">" if self.order == ">" else "<")


class _Objects(_DType):
    """The dtype of Python objects under construction."""


class _Text:
    """The dtype of a NumPy text scalar (``np.str_``) under construction."""

    __slots__ = ("length", "order")

    def __init__(self, length: int) -> None:
        self.length = length
        self.order = "<"


class _Mark:
    """Where an opcode's arguments begin on the stack."""


_MARK = _Mark()


def load(
    data: memoryview,
    start: int,
    words: Mapping[str, Call | None],
    persistent: Callable[[Any], Any] | None = None,
) -> tuple[Any, int]:
    """Run the pickle in `data` from `start`: the object, and where the pickle ends.

    words: the globals that may appear, as ``"module.name"``; those with a function may be called. Arrays come back as
    `Array`, byte strings as memoryviews of `data`. CheckpointError on anything else; ValueError, IndexError, KeyError,
    TypeError or struct.error where the pickle is damaged.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    at = start

    def take(count: int) -> memoryview:
        nonlocal at
        if count < 0 or count > len(data) - at:
            raise CheckpointError(
                f"ends too early: {count} bytes are announced, {len(data) - at} are left; is the file truncated?"
            )
        at += count
        return data[at - count : at]

    def number(form: str) -> int:
        return int(struct.unpack(form, take(struct.calcsize(form)))[0])

    def line() -> str:
        nonlocal at
        text = bytes(data[at : at + MAX_NAME])
        end = text.find(b"\n")
        if end < 0:
            raise CheckpointError("a pickle global without an end to its name")
        at += end + 1
        return text[:end].decode()

    def word(module: Any, name: Any) -> Word:
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > MAX_NAME:
            raise CheckpointError("refused: a pickle global whose name is no name")
        full = canonical(module, name)
        if full not in words:
            raise CheckpointError(
                f"refused: the file asks for {module}.{name}, which is neither a tensor nor a plain value; "
                "nothing was executed"
            )
        return Word(full)

    def marked() -> list[Any]:
        for index in range(len(stack) - 1, -1, -1):
            if stack[index] is _MARK:
                items = stack[index + 1 :]
                del stack[index:]
                return items
        raise ValueError("a mark is missing")

    def fill(target: Any, pairs: Sequence[Any]) -> None:
        if type(target) is not dict or len(pairs) % 2:
            raise ValueError("items for what is no dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # Only flat keys: hashing a tuple nested a million deep would end the process.
            if type(key) not in (str, int, float, bool, type(None)):
                raise CheckpointError(f"refused: a dictionary key of type {type(key).__name__}")
            if key in target:
                raise CheckpointError(f"the key {str(key)[:MAX_NAME]!r} stands twice")
            target[key] = value

    for _ in range(MAX_OPCODES):
        op = bytes(take(1))
        if op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op in _NUMBERS:
            stack.append(number(_NUMBERS[op]))
        elif op in _TEXTS:
            stack.append(str(take(number(_TEXTS[op])), "utf-8", "surrogatepass"))
        elif op in _BYTES:
            stack.append(take(number(_BYTES[op])))
        elif op in _OLD_STRINGS:
            stack.append(str(take(number(_OLD_STRINGS[op])), "latin1"))
        elif op in _PUTS:
            memo[number(_PUTS[op])] = stack[-1]
        elif op in _GETS:
            stack.append(memo[number(_GETS[op])])
        elif op in _TUPLES:
            size = _TUPLES[op]
            if len(stack) < size:
                raise ValueError("the stack is too short")
            stack[len(stack) - size :] = [tuple(stack[len(stack) - size :])]
        elif op == b"\x94":  # MEMOIZE
            memo[len(memo)] = stack[-1]
        elif op == b"G":  # BINFLOAT
            stack.append(struct.unpack(">d", take(8))[0])
        elif op == b"\x8a":  # LONG1
            stack.append(int.from_bytes(take(number("<B")), "little", signed=True))
        elif op == b"t":  # TUPLE
            stack.append(tuple(marked()))
        elif op == b"]":  # EMPTY_LIST
            stack.append([])
        elif op == b"}":  # EMPTY_DICT
            stack.append({})
        elif op == b"a":  # APPEND
            item = stack.pop()
            _list(stack[-1]).append(item)
        elif op == b"e":  # APPENDS
            items = marked()
            _list(stack[-1]).extend(items)
        elif op == b"s":  # SETITEM
            value, key = stack.pop(), stack.pop()
            fill(stack[-1], (key, value))
        elif op == b"u":  # SETITEMS
            items = marked()
            fill(stack[-1], items)
        elif op == b"0":  # POP
            stack.pop()
        elif op == b"1":  # POP_MARK
            marked()
        elif op == b"c":  # GLOBAL
            module = line()
            stack.append(word(module, line()))
        elif op == b"\x93":  # STACK_GLOBAL
            name, module = stack.pop(), stack.pop()
            stack.append(word(module, name))
        elif op == b"R":  # REDUCE
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(words, function, arguments))
        elif op == b"b":  # BUILD
            state = stack.pop()
            _build(stack[-1], state)
        elif op == b"Q":  # BINPERSID
            if persistent is None:
                raise CheckpointError("refused: a reference to an object outside the file (BINPERSID)")
            stack.append(persistent(stack.pop()))
        elif op in (b"\x80", b"\x95"):  # PROTO, FRAME: the bytes are all here already
            take(1 if op == b"\x80" else 8)
        elif op == b".":  # STOP
            if len(stack) != 1:
                raise ValueError("the pickle ends with values left over")
            return stack[0], at
        elif op == b"i":  # INST
            module = line()
            word(module, line())
            raise CheckpointError("refused: pickle opcode INST")
        else:
            raise CheckpointError(f"refused: pickle opcode {_REFUSED.get(op, op.hex())} at byte {at - 1}")
    raise CheckpointError(f"refused: a pickle of more than {MAX_OPCODES} opcodes")


def canonical(module: str, name: str) -> str:
    """``"module.name"`` with Python 2's and NumPy 1's module names in today's words."""
    if module == "__builtin__":
        module = "builtins"
    if module.startswith("numpy.core."):
        module = "numpy._core." + module.removeprefix("numpy.core.")
    return f"{module}.{name}"


_CONSTANTS: dict[bytes, Any] = {b"(": _MARK, b"N": None, b"\x88": True, b"\x89": False, b")": ()}
_NUMBERS = {b"K": "<B", b"M": "<H", b"J": "<i"}
_TEXTS = {b"\x8c": "<B", b"X": "<I", b"\x8d": "<Q"}
_BYTES = {b"C": "<B", b"B": "<I", b"\x8e": "<Q", b"\x96": "<Q"}
_OLD_STRINGS = {b"U": "<B", b"T": "<i"}
_PUTS = {b"q": "<B", b"r": "<I"}
_GETS = {b"h": "<B", b"j": "<I"}
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
_REFUSED = {
    b"o": "OBJ",
    b"\x81": "NEWOBJ",
    b"\x92": "NEWOBJ_EX",
    b"\x82": "EXT1",
    b"\x83": "EXT2",
    b"\x84": "EXT4",
    b"P": "PERSID",
    b"2": "DUP",
    b"\x8b": "LONG4",
    b"\x8f": "EMPTY_SET",
    b"\x91": "FROZENSET",
    b"\x97": "NEXT_BUFFER",
}


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise ValueError("items for what is no list")
    return value


def _call(words: Mapping[str, Call | None], function: Any, arguments: Any) -> Any:
    if not isinstance(function, Word) or type(arguments) is not tuple:
        raise CheckpointError("refused: a pickle that calls what is no known function (REDUCE)")
    call = words[function.name]
    if call is None:
        raise CheckpointError(f"refused: a pickle that calls {function.name}")
    return call(*arguments)


def _build(target: Any, state: Any) -> None:
    if isinstance(target, (_DType, _Text)):
        order = state[1]
        if order not in ("<", ">", "|") or any(part is not None for part in state[2:5]):
            raise CheckpointError("refused: a NumPy dtype with fields")
        target.order = order
    elif isinstance(target, Array):
        _, shape, dtype, fortran, raw = state
        if isinstance(dtype, _Objects) and shape == () and type(raw) is list and len(raw) == 1:
            target.content = raw[0]
            return
        target.value = array(dtype, shape, raw, "F" if fortran else "C")
    elif type(target) is not dict:  # torch hangs _metadata on its OrderedDict: left out
        raise CheckpointError("refused: a pickle that sets the state of what is no array (BUILD)")


def array(dtype: Any, shape: Any, raw: Any, order: Any) -> np.ndarray:
    """A view of `raw` as a NumPy array; CheckpointError where the number of bytes is not exactly right."""
    if isinstance(dtype, _Text):
        raise CheckpointError("refused: an array whose dtype is no plain number")
    if isinstance(dtype, _Objects):
        raise CheckpointError("refused: an array of Python objects")
    if not isinstance(dtype, _DType) or type(shape) is not tuple or not are_sizes(shape):
        raise ValueError("an array without a dtype and a shape")
    if isinstance(raw, list):
        raise CheckpointError("refused: an array of Python objects")
    data = raw.encode("latin1") if isinstance(raw, str) else raw
    kind = dtype.value()
    if not isinstance(data, (bytes, memoryview)) or len(data) != math.prod(shape) * kind.itemsize:
        raise CheckpointError(f"an array of shape {list(shape)} and dtype {kind} does not fit its bytes")
    return np.frombuffer(data, kind).reshape(shape, order="F" if order == "F" else "C")


def are_sizes(numbers: Sequence[Any]) -> bool:
    """Whether `numbers` may be a shape: few enough and small enough to be multiplied."""
    return len(numbers) <= MAX_AXES and all(type(n) is int and 0 <= n <= MAX_SIZE for n in numbers)


def _reconstruct(kind: Any, *_: Any) -> Array:
    if not isinstance(kind, Word) or kind.name != "numpy.ndarray":
        raise CheckpointError("refused: an array of a class other than numpy.ndarray")
    return Array()


def _dtype(code: Any, *_: Any) -> _DType | _Text:
    if isinstance(code, Word) and code.name.startswith("ml_dtypes."):
        return _DType(code.name.removeprefix("ml_dtypes."))
    if isinstance(code, str) and re.fullmatch(r"[<>=]?U[0-9]{1,9}", code):
        return _Text(int(code.lstrip("<>=")[1:]))
    if not isinstance(code, str) or code.lstrip("<>|=") not in _CODES:
        raise CheckpointError(
            "refused: an array of Python objects"
            if isinstance(code, str) and code.lstrip("|")[:1] == "O"
            else "refused: an array whose dtype is no plain number"
        )
    return _DType(code.lstrip("<>|="))


_CODES = frozenset(["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1", "c8", "c16", "V2"])


def _dtype_or_objects(code: Any, *more: Any) -> _DType | _Text:
    return _Objects(code) if code in ("O8", "O") else _dtype(code, *more)


def _scalar(dtype: Any, raw: Any) -> Any:
    if isinstance(dtype, _Text):
        if not isinstance(raw, (bytes, memoryview)) or len(raw) != 4 * dtype.length:
            raise CheckpointError(f"a text of {dtype.length} characters does not fit its bytes")
        # A long one stays what it is, a view: decoded a million times over, it would fill the memory.
        return str(raw, "utf-32-be" if dtype.order == ">" else "utf-32-le") if dtype.length <= MAX_NAME else raw
    return array(dtype, (), raw, "C")[()]


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any) -> Array:
    made = Array()
    made.value = array(dtype, shape, raw, order)
    return made


def _encode(text: Any, codec: Any) -> bytes:
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise CheckpointError("refused: a pickle that encodes with a codec other than latin1")
    return text.encode("latin1")


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    if type(pairs) not in (tuple, list) or (pairs and type(pairs) is tuple):
        raise CheckpointError("refused: an OrderedDict of what is no list")
    for key, value in pairs:
        if type(key) is not str or key in made:
            raise CheckpointError("refused: an OrderedDict whose keys are not names, each once")
        made[key] = value
    if made:
        pairs.clear()  # Python 2 writes a list for the purpose; one list must not make many dictionaries
    return made


def _counter(counts: Any = None) -> dict[Any, Any]:
    if counts is not None and type(counts) is not dict:
        raise CheckpointError("refused: a Counter of what is no dictionary")
    return {} if counts is None else counts


def _default_dict(factory: Any = None, *more: Any) -> dict[Any, Any]:
    # The factory is a word of the table; it is forgotten, so it can't be called.
    if more or (factory is not None and not isinstance(factory, Word)):
        raise CheckpointError("refused: a defaultdict of what is no known type")
    return {}


def _no_bytes(*more: Any) -> bytes:
    if more:
        raise CheckpointError("refused: a pickle that calls builtins.bytes")
    return b""


def _tuple(items: Any = ()) -> tuple[Any, ...]:
    if type(items) not in (tuple, list) or len(items) > MAX_AXES:
        raise CheckpointError("refused: a tuple of what is no short list")
    return tuple(items)


# The globals of a pickle of NumPy arrays and plain values.
NUMPY_WORDS: dict[str, Call | None] = {
    "builtins.tuple": _tuple,
    "builtins.bytes": _no_bytes,  # protocol 2 writes b"" as the call bytes()
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,
    "collections.defaultdict": _default_dict,
    **dict.fromkeys(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "set", "str")),
    "_codecs.encode": _encode,
    "numpy.ndarray": None,
    "numpy.dtype": _dtype,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _frombuffer,
    "ml_dtypes.bfloat16": None,
    "ml_dtypes.float8_e4m3fn": None,
    "ml_dtypes.float8_e5m2": None,
}

# The same, and one Python object in an array without axes: a dictionary that np.save was given.
BOX_WORDS: dict[str, Call | None] = {**NUMPY_WORDS, "numpy.dtype": _dtype_or_objects}
