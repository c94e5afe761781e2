"""A daemon that is told to listen where its own clients come; pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def names_own_port(command: Sequence[str], ports: Collection[int]) -> int | None:
    """The port of the fixed address that a command without ``{port}`` names, whatever host stands before it.

    Args:
        command: the words of the command.
        ports: those where the service listens.
    """
    if any("{port}" in word for word in command):
        return None
    for word in command:
        text = word.rpartition("=")[2].rpartition(":")[2]
        # a word like -p5432 glues a flag and its value together
        digits = text[len(text.rstrip("0123456789")) :]
        if digits.isascii() and digits and text in {digits, f"-p{digits}", f"-P{digits}"} and int(digits) in ports:
            return int(digits)
    return None
