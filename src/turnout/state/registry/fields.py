"""Reads a JSON object field by field: a bad field falls to its default and is reported, unknown fields are kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, TypeVar

MAX_INT: Final = 2**63 - 1
E = TypeVar("E", bound=Enum)
T = TypeVar("T")


class Fields:
    """One JSON object while it is read: what was not asked for is unknown, and kept. Takes ``raw`` over."""

    def __init__(self, where: str, raw: dict[str, Any], say: Callable[[str, str], None]) -> None:
        self._where = where
        self._raw = raw
        self._say = say

    def take(self, key: str) -> Any:  # noqa: ANN401  # whatever JSON holds
        return self._raw.pop(key, None)

    def rest(self) -> dict[str, Any]:
        return self._raw

    # What is as it should be takes the first way out of each: a registry of thousands of daemons has many fields.

    def text(self, key: str, default: str = "") -> str:
        value = self._raw.pop(key, default)
        return value if type(value) is str else self._bad(key, value, default)

    def flag(self, key: str) -> bool:
        value = self._raw.pop(key, False)
        return value if type(value) is bool else self._bad(key, value, False)

    def count(self, key: str, default: int = 0) -> int:
        value = self._raw.pop(key, default)
        if type(value) is int and 0 <= value <= MAX_INT:
            return value
        return self._coerced(key, value, default, _count)

    def port(self, key: str) -> int:
        value = self._raw.pop(key, 0)
        if type(value) is int and 0 <= value < 65536:
            return value
        return self._coerced(key, value, 0, _port)

    def number(self, key: str) -> float:
        value = self._raw.pop(key, 0.0)
        if type(value) is float and -math.inf < value < math.inf:
            return value
        return self._coerced(key, value, 0.0, _number)

    def enum(self, key: str, kind: type[E], default: E) -> E:
        if key not in self._raw:
            return default
        return self._coerced(key, self._raw.pop(key), default, lambda value: _member(kind, value))

    def maybe_text(self, key: str) -> str | None:
        return self.text(key) or None if self._raw.get(key) is not None else self.take(key)

    def maybe_count(self, key: str) -> int | None:
        return self.count(key) or None if self._raw.get(key) is not None else self.take(key)

    def maybe_port(self, key: str) -> int | None:
        return self.port(key) or None if self._raw.get(key) is not None else self.take(key)

    def _coerced(self, key: str, value: object, default: T, coerce: Callable[[object], T | None]) -> T:
        good = coerce(value)
        return self._bad(key, value, default) if good is None else good

    def _bad(self, key: str, value: object, default: T) -> T:
        self._say(f"{self._where}.{key}", f"{short(value)} became {short(default)}")
        return default


def _count(value: object) -> int | None:
    """A whole number from 0; also as text or as a float without fraction, as other languages write them."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        value = int(value)
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and 0 <= value <= MAX_INT else None


def _port(value: object) -> int | None:
    number = _count(value)
    return number if number is not None and number < 65536 else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _member(kind: type[E], value: object) -> E | None:
    try:
        return kind(value.lower() if isinstance(value, str) else value)
    except ValueError:
        return None


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
