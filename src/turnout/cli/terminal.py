"""What may go to a terminal: colour only where somebody looks at it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def in_colour(wanted: str, stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether to print colours.

    Args:
        wanted: ``always``, ``never`` or ``auto``.
        stream: where it goes.
        environ: NO_COLOR (no-color.org: set and not empty) goes before FORCE_COLOR, and both before the terminal.
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
