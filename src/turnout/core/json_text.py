"""Writes JSON for other programs: always valid UTF-8, with every unprintable character escaped."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, cast

import msgspec

from turnout.core.printable import valid

_PLAIN: Final = re.compile(rb"[ -~\n]*")


def json_text(value: object, *, indent: int | None = None) -> str:
    r"""A value as JSON (RFC 8259); what is no printable character is escaped in it.

    Half a surrogate pair, which is also how Python holds a byte that is no UTF-8, becomes U+FFFD: parsers refuse an
    escape such as ``\udcff``. A number that is none becomes null.

    Args:
        value: anything that msgspec encodes.
        indent: spaces for each level; None: one line.
    """
    try:
        data = msgspec.json.encode(value)
        if indent is not None:
            data = msgspec.json.format(data, indent=indent)
    except (UnicodeEncodeError, OverflowError):  # a number beyond 64 bits
        data = json.dumps(_plain(msgspec.to_builtins(value)), indent=indent, ensure_ascii=False).encode()
    if _PLAIN.fullmatch(data):
        return data.decode()
    text = data.decode()
    # json.dumps spells a character as a number of 16 bits, or as two of them (RFC 8259, section 7)
    return "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)


def _plain(value: Any) -> Any:  # noqa: ANN401  # JSON
    if isinstance(value, str):
        return valid(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        table = cast("dict[Any, Any]", value)  # type: ignore[redundant-cast]  # pyright knows less of it than mypy
        return {valid(str(key)): _plain(item) for key, item in table.items()}
    if isinstance(value, list | tuple):
        items = cast("list[Any]", value)  # type: ignore[redundant-cast, unused-ignore]  # as above
        return [_plain(item) for item in items]
    return value
