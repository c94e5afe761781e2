"""One JSON object read field by field: what is bad falls to its default and is told, what is unknown is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final, TypeVar, cast

MAX_INT: Final = 2**63 - 1
E = TypeVar("E", bound=Enum)


class Fields:
    """One JSON object while it is read: what was not asked for is unknown, and kept."""

    def __init__(self, where: str, raw: Mapping[str, Any], say: Callable[[str, str], None]) -> None:
        self._where = where
        self._raw = dict(raw)
        self._say = say

    def take(self, key: str) -> Any:  # noqa: ANN401  # whatever JSON holds
        return self._raw.pop(key, None)

    def rest(self) -> dict[str, Any]:
        return self._raw

    def text(self, key: str, default: str = "") -> str:
        return cast("str", self._typed(key, default, lambda value: value if isinstance(value, str) else None))

    def flag(self, key: str) -> bool:
        return cast("bool", self._typed(key, False, lambda value: value if isinstance(value, bool) else None))

    def count(self, key: str, default: int = 0) -> int:
        return cast("int", self._typed(key, default, _count))

    def port(self, key: str) -> int:
        return cast("int", self._typed(key, 0, _port))

    def number(self, key: str) -> float:
        return cast("float", self._typed(key, 0.0, _number))

    def enum(self, key: str, kind: type[E], default: E) -> E:
        return cast("E", self._typed(key, default, lambda value: _member(kind, value)))

    def maybe_text(self, key: str) -> str | None:
        return self.text(key) or None if self._raw.get(key) is not None else self.take(key)

    def maybe_count(self, key: str) -> int | None:
        return self.count(key) or None if self._raw.get(key) is not None else self.take(key)

    def maybe_port(self, key: str) -> int | None:
        return self.port(key) or None if self._raw.get(key) is not None else self.take(key)

    def _typed(self, key: str, default: Any, coerce: Callable[[Any], Any]) -> Any:  # noqa: ANN401  # as wide as JSON
        if key not in self._raw:
            return default
        value = self._raw.pop(key)
        good = coerce(value)
        if good is None:
            self._say(f"{self._where}.{key}", f"{short(value)} became {short(default)}")
            return default
        return good


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
