"""Text that somebody else chose, as it may stand in a line: of a terminal, or of a log."""

from __future__ import annotations


def clean(text: str) -> str:
    """``text`` as it may be printed: what is no printable character is spelled out, a line break too.

    A daemon chooses its version, its name and its log; an escape sequence in one of them must not reach the terminal,
    and a line break must not make a line of its own.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _spelled(char) for char in text)


def _spelled(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
