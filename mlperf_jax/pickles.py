"""Reads pickles without running anything that is in them, at a cost that goes with their size.

A pickle is a program for a stack machine that may call any function by name. Here `pickletools` decodes it, which
runs nothing, and a stack of our own keeps plain values, and a note of each name and call.
"""

from __future__ import annotations

import dataclasses
import pickletools
from collections.abc import Callable
from typing import IO, Any, Protocol, cast

from mlperf_jax.errors import Refused

MOST_BYTES = 64 * 2**20
MOST_STEPS = 2_000_000

# Nothing is ever called. But a file that names these was made to harm who reads it, and is not taken apart further.
_HARMFUL = {
    "os",
    "posix",
    "nt",
    "subprocess",
    "sys",
    "importlib",
    "runpy",
    "shutil",
    "socket",
    "ctypes",
    "pty",
    "code",
}
_HARMFUL_NAMES = {
    "torch.load",
    "torch.serialization.load",
    "torch.hub.load",
    "pathlib.Path",
    "pathlib._local.Path",
}
_BUILTINS = {
    "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "long", "object", "range",
    "set", "slice", "str", "tuple", "unicode", "xrange",
}  # fmt: skip


@dataclasses.dataclass(eq=False)
class Note:
    """A name that the pickle asks for, or what a call of it would have made.

    Attributes:
        name: with its module.
        arguments: of the call, None where it is the name alone.
        state: what would then be set.
        items: what would be put in under texts, where it is some kind of dict.
    """

    name: str
    arguments: Any = None
    state: Any = None
    items: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def attribute(self) -> str:
        """The name without its module."""
        return self.name.rpartition(".")[2]


class Stored(Protocol):
    """What stands for an object that the pickle keeps elsewhere."""

    def __call__(self, identity: Any) -> Any: ...


class _Bounded:
    """A file of which `most` bytes can be read, and never more at once than there are."""

    def __init__(self, file: IO[bytes], most: int = MOST_BYTES) -> None:
        self._file, self._left = file, most

    def read(self, size: int) -> bytes:
        if size > self._left:
            raise Refused("its pickle is too large, or ends inside a value")
        return self._counted(self._file.read(size))

    def readline(self) -> bytes:
        return self._counted(self._file.readline(self._left))

    def tell(self) -> int:
        return self._file.tell()

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data


def interpret(
    file: IO[bytes], stored: Stored | None = None, *, most: int = MOST_BYTES, steps: int = MOST_STEPS
) -> Any:
    """What the next pickle of a file describes: numbers, texts, bytes, tuples, lists, dicts and notes.

    Sets are lists. Of a dict only what has a text as its key is kept: the hash of other keys can be made to take
    for ever.

    Args:
        file: read up to the pickle's end.
        stored: given the identity of what the pickle keeps elsewhere, what stands for it.
        most: bytes that it may have.
        steps: that it may have.

    Raises:
        Refused: it is damaged, too large, or made to do harm.
    """
    machine = _Machine(stored)
    try:
        for count, (opcode, argument, _) in enumerate(
            pickletools.genops(cast(IO[bytes], _Bounded(file, most)))
        ):
            if opcode.name == "STOP":
                return machine.stack.pop()
            if count >= steps:
                raise Refused("its pickle has too many steps")
            machine.step(opcode.name, argument)
    except Refused:
        raise
    except Exception as error:  # whatever a damaged file makes of the stack
        raise Refused(f"its pickle is damaged ({type(error).__name__})") from None
    raise Refused("its pickle has no end")


_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list,
}  # fmt: skip
_MARKED: dict[str, Callable[[list[Any]], Any]] = {
    "TUPLE": tuple, "LIST": list, "FROZENSET": list, "DICT": lambda values: _pairs(values),
}  # fmt: skip


class _Machine:
    """The stack since the last mark, the stacks below the marks, and what was put aside by number."""

    def __init__(self, stored: Stored | None) -> None:
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._stored = stored

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self._memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._put(argument)
        elif name == "MEMOIZE":
            self._put(len(self._memo))
        elif name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            if len(stack) < count:
                raise Refused("its pickle is damaged (a stack that is empty)")
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "MARK":
            self._below.append(stack)
            self.stack = []
        elif name in _MARKED:
            values = self._since_mark()
            self.stack.append(_MARKED[name](values))
        elif name not in ("PROTO", "FRAME"):
            self._build(name, argument)

    def _build(self, name: str, argument: Any) -> None:
        """The steps that name, call or fill something."""
        if name in ("APPEND", "APPENDS", "ADDITEMS"):
            values = [self.stack.pop()] if name == "APPEND" else self._since_mark()
            if not isinstance(self.stack[-1], Note):
                _of(list, self.stack[-1]).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = [self.stack.pop(), self.stack.pop()][::-1] if name == "SETITEM" else self._since_mark()
            filled = self.stack[-1]
            (filled.items if isinstance(filled, Note) else _of(dict, filled)).update(_pairs(values))
        elif name == "GLOBAL":
            self.stack.append(_named(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            attribute, module = _of(str, self.stack.pop()), _of(str, self.stack.pop())
            self.stack.append(_named(f"{module}.{attribute}"))
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            if name == "NEWOBJ_EX":
                self.stack.pop()  # arguments by name
            arguments = _of(tuple, self.stack.pop())
            self.stack.append(_called(_of(Note, self.stack.pop()), arguments))
        elif name == "INST":
            self.stack.append(_called(_named(argument.replace(" ", ".")), tuple(self._since_mark())))
        elif name == "OBJ":
            kind, *rest = self._since_mark()
            self.stack.append(_called(_of(Note, kind), tuple(rest)))
        elif name == "BUILD":
            state = self.stack.pop()
            if isinstance(self.stack[-1], Note):
                self.stack[-1].state = state  # a dict's attributes are let go: nothing here needs them
        elif name in ("BINPERSID", "PERSID") and self._stored is not None:
            self.stack.append(self._stored(self.stack.pop() if name == "BINPERSID" else argument))
        elif name == "POP" and not self.stack:
            self._since_mark()
        elif name == "POP":
            self.stack.pop()
        elif name == "POP_MARK":
            self._since_mark()
        elif name == "DUP":
            self.stack.append(self.stack[-1])
        else:
            raise Refused(f"its pickle uses {name}, which is not read")

    def _put(self, place: int) -> None:
        if not 0 <= place <= MOST_BYTES:
            raise Refused("its pickle is damaged (a place in memory)")
        self._memo[place] = self.stack[-1]

    def _since_mark(self) -> list[Any]:
        values, self.stack = self.stack, self._below.pop()
        return values


def _pairs(values: list[Any]) -> dict[str, Any]:
    return {key: value for key, value in zip(values[::2], values[1::2], strict=True) if type(key) is str}


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise Refused(f"its pickle has a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _named(name: str) -> Note:
    package, _, rest = name.partition(".")
    is_builtin = package in ("builtins", "__builtin__")
    if package in _HARMFUL or name in _HARMFUL_NAMES or (is_builtin and rest not in _BUILTINS):
        raise Refused(f"it asks for {name}, which a state dict does not need")
    return Note(name)


def _called(function: Note, arguments: tuple[Any, ...]) -> Any:
    if function.name in ("collections.OrderedDict", "collections.defaultdict") and len(arguments) < 2:
        return {}
    return Note(function.name, arguments)
