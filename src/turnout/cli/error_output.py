"""Every error the same way: one line that says what and why, then ``hint:``; as JSON where JSON was asked for."""

from __future__ import annotations

import os
import re
import shlex
import sys
from contextlib import suppress
from typing import Final

import click

from turnout.core.printable import clean
from turnout.errors import REPORT_FD, TurnoutError, UsageError

# the verbs that take --service and -c
_COMMAND: Final = re.compile(
    r"\bturnout (?:up|down|start|stop|refresh|deploy|rollback|attach|detach|pause|resume|drain"
    r"|status|wait|logs|history|why|doctor|config)\b"
)
_CHOSEN: Final = ("--service", " -c ", "cd ", "TURNOUT_HOME=")


def wants_json(argv: list[str]) -> bool:
    """Whether the command line asks for JSON; what follows ``--`` is the daemon's."""
    own = argv[: argv.index("--")] if "--" in argv else argv
    return "--json" in own


def complain(error: TurnoutError, *, as_json: bool) -> None:
    """Tell a person on stderr, or a program on stdout: ``{"error": {...}}`` in one line.

    A router that started this verb gets the report also on the descriptor that it passed
    (:mod:`turnout.router.verb_runner`).
    """
    if REPORT_FD in os.environ:
        with suppress(OSError, ValueError):
            os.write(int(os.environ[REPORT_FD]), _as_json(error).encode())
    if as_json:
        click.echo(_as_json(error))
        return
    if error.detail:
        print(*(f"  | {clean(line)}" for line in error.detail.expandtabs().splitlines()), sep="\n", file=sys.stderr)
    print(f"turnout: {clean(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"hint: {clean(error.hint)}", file=sys.stderr)


def _as_json(error: TurnoutError) -> str:
    from turnout.cli.error_report import ErrorOutput, ErrorReport  # noqa: PLC0415  # --help and most errors do without
    from turnout.core.json_text import json_text  # noqa: PLC0415

    report = ErrorReport(
        type=type(error).__name__,
        message=error.message,
        hint=error.hint,
        detail=error.detail or None,
        exit_code=error.exit_code,
    )
    return json_text(ErrorOutput(error=report))


def from_click(error: click.ClickException) -> UsageError:
    """What click found wrong, in our own words, with the nearest verb or option that exists."""
    path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "turnout"
    hint = f"{path} --help"
    message = error.format_message()
    near: list[str] = getattr(error, "possibilities", None) or []
    if near or isinstance(error, click.NoSuchOption):
        message = error.message
    if isinstance(error, click.NoSuchOption):
        message = f"{path} has no option {error.option_name}"
    if near:
        hint = f"did you mean {near[0]}? See also: {hint}"
    message = message.rstrip(".")
    return UsageError(f"{message[:1].lower()}{message[1:]}", hint=hint)


def hint_for(hint: str, *, service: str | None, config: str | None) -> str:
    """Give the commands in a hint the options that chose the service.

    A hint that chooses a service, a file, a directory or a home by itself stays as it is. ``service`` and ``config``:
    the values of ``--service`` and ``-c`` on the command line; None: the option was not typed.
    """
    flags = f" -c {shlex.quote(config)}" if config else ""
    flags += f" --service {shlex.quote(service)}" if service else ""
    if any(mark in hint for mark in _CHOSEN):
        return hint
    return _COMMAND.sub(lambda command: f"{command[0]}{flags}", hint)
