"""Dataclasses and enumerations that take and refuse the values that the official package's do."""

from __future__ import annotations

import copy
import dataclasses
import enum
import sys
from collections.abc import Callable
from typing import Any, ClassVar

from mlperf_jax.errors import UserError

Int32 = int


class Choice(enum.Enum):
    """One of an enumeration: `int` gives its number, which it is not equal to."""

    def __int__(self) -> int:
        return int(self.value)

    def __hash__(self) -> int:
        return int(self.value)

    __index__ = __int__


class FieldTypeError(UserError, TypeError):
    """A value that a field does not take."""


class TypedFields:
    """The base of a dataclass whose fields raise `FieldTypeError` when a value of a wrong type is assigned.

    A field is of a type in `_CONVERSIONS`, or of a `Choice` or another such dataclass of the same module;
    of those a copy is kept.
    """

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __setattr__(self, name: str, value: Any) -> None:
        field = self.__dataclass_fields__.get(name)
        if field is not None:
            convert, wanted = _conversion(type(self), str(field.type))
            try:
                value = convert(value)
            except (TypeError, ValueError, OverflowError):
                text = f"{type(self).__name__}.{name} is {value!r}; give {wanted}."
                raise FieldTypeError(text) from None
        object.__setattr__(self, name, value)


def as_text(value: Any) -> str:
    """Text, or what bytes say in UTF-8; a path is neither, as in the official package.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(value, bytes | bytearray):
        return value.decode(errors="surrogateescape")
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text.")
    return str(value)


def _whole(value: Any, bounds: range) -> int:
    """Any number but `float`, without what follows the point, as the official package takes it."""
    whole = int(_number(value, "__int__", "__index__"))
    if isinstance(value, float) or whole not in bounds:
        raise TypeError
    return whole


def _number(value: Any, *methods: str) -> Any:
    """`value` if its type has one of the `methods`: no text is taken for the number in it."""
    if not any(method in vars(kind) for kind in type(value).__mro__ for method in methods):
        raise TypeError
    return value


_CONVERSIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "int": (lambda value: _whole(value, range(1 << 64)), "a whole number from 0 to 2**64 - 1"),
    "Int32": (lambda value: _whole(value, range(-1 << 31, 1 << 31)), "a whole number of 32 bits"),
    "float": (lambda value: float(_number(value, "__float__", "__index__")), "a number"),
    "bool": (lambda value: bool(_number(value, "__bool__")), "True or False"),
    "str": (as_text, "text"),
}  # declared type -> (how a value is taken over, what to ask for instead)


def _conversion(owner: type, declared: str) -> tuple[Callable[[Any], Any], str]:
    if declared in _CONVERSIONS:
        return _CONVERSIONS[declared]
    kind = vars(sys.modules[owner.__module__])[declared]

    def convert(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return copy.copy(value)

    return convert, f"a {declared}"
