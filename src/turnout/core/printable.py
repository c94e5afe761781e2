"""Escapes text from outside for a line of a terminal, a log or a JSON document."""

from __future__ import annotations

import re
from typing import Final

# What a terminal acts on, or shows as something else: C0 but for newline and tab, DEL, C1 (ECMA-48), line separators,
# the marks and overrides of the bidirectional algorithm (UAX 9), and halves of surrogate pairs, which no encoding has.
_ACTED_ON: Final = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_OUR_COLOUR: Final = re.compile("\x1b\\[[0-9;]{0,20}m")  # ECMA-48, SGR
_SURROGATES: Final = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    """``text`` as it may be printed: what is no printable character is spelled out, a line break too.

    A daemon chooses its version, its name and its log; an escape sequence in one of them must not reach the terminal,
    and a line break must not make a line of its own.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _spelled(char) for char in text)


def clean_lines(text: str) -> str:
    """Text of several lines as a terminal may get it: line breaks and tabs stay, all else is as in :func:`clean`."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join("\t".join(clean(part) for part in line.split("\t")) for line in lines)


def for_terminal(text: str) -> str:
    """``text`` without what a terminal acts on, except for line breaks, tabs and colours: the last look at any output.

    Text of others was spelled out before (:func:`clean`), its colours included; those that are left are ours.
    """
    if _ACTED_ON.search(text) is None:
        return text
    parts: list[str] = []
    at = 0
    for colour in _OUR_COLOUR.finditer(text):
        parts += (_without(text[at : colour.start()]), colour.group())
        at = colour.end()
    return "".join((*parts, _without(text[at:])))


def valid(text: str) -> str:
    """``text`` as UTF-8 can hold it: half a surrogate pair, or a byte that was no UTF-8, becomes U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)


def _without(text: str) -> str:
    return _ACTED_ON.sub(lambda match: _spelled(match.group()), text)


def _spelled(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
