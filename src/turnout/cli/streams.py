"""Standard output and standard error: no control character reaches a terminal, and colour only a terminal."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

import click

from turnout.core.printable import for_terminal

F = TypeVar("F", bound=Callable[..., Any])


class Printable(io.TextIOWrapper):
    """A text stream that escapes control characters, and those the locale's encoding lacks; ``buffer`` is raw."""

    def write(self, text: str, /) -> int:
        super().write(for_terminal(text))
        return len(text)


def guard_streams() -> None:
    """Have both standard streams write through :class:`Printable`."""
    sys.stdout, sys.stderr = _guarded(sys.stdout), _guarded(sys.stderr)


@contextmanager
def drawn_on(stream: TextIO) -> Generator[TextIO]:
    """The terminal behind a standard stream, for a screen that turnout draws itself: cursor movements get through.

    The text on that screen must have been through :func:`for_terminal`.
    """
    stream.flush()
    with open(stream.fileno(), "w", encoding=stream.encoding, errors="backslashreplace", closefd=False) as terminal:
        yield terminal


def _guarded(stream: TextIO) -> TextIO:
    if type(stream) is not io.TextIOWrapper:  # None where it is closed, or a test's own
        return stream
    # in the C locale without UTF-8 mode click would make a stream of its own
    encoding = "utf-8" if stream.encoding.lower() in {"ascii", "us-ascii", "ansi_x3.4-1968"} else stream.encoding
    buffered = stream.line_buffering
    return Printable(stream.detach(), encoding, errors="backslashreplace", line_buffering=buffered)


def in_colour(wanted: str, stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether to print colours.

    ``wanted``: ``always``, ``never`` or ``auto``: then NO_COLOR (no-color.org: set and not empty) goes before
    FORCE_COLOR, and both before the terminal.
    """
    if wanted != "auto":
        return wanted == "always"
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR", "0") not in {"", "0"}:
        return True
    return stream.isatty() and environ.get("TERM") != "dumb"


def coloured(function: F) -> F:
    """The option ``--color``; from then on :func:`click.echo` keeps or strips colours by itself."""

    def decide(ctx: click.Context, _: click.Parameter, value: str) -> None:
        ctx.color = in_colour(value, sys.stdout, os.environ)

    return click.option(
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        expose_value=False,
        callback=decide,
        help="Colour: auto (a terminal, NO_COLOR and FORCE_COLOR), always or never.",
    )(function)
