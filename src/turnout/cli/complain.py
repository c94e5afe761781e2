"""Every error the same way: one line that says what and why, then ``hint:``; as JSON where JSON was asked for."""

from __future__ import annotations

import sys

import click

from turnout.core.printable import clean
from turnout.errors import TurnoutError, UsageError


def wants_json(argv: list[str]) -> bool:
    """Whether the command line asks for JSON; what follows ``--`` is the daemon's."""
    own = argv[: argv.index("--")] if "--" in argv else argv
    return "--json" in own


def complain(error: TurnoutError, *, as_json: bool) -> None:
    """Tell a person on stderr, or a program on stdout: ``{"error": {...}}`` in one line."""
    if as_json:
        import msgspec  # noqa: PLC0415  # --help and most errors do without

        from turnout.cli.error_report import ErrorOutput, ErrorReport  # noqa: PLC0415

        report = ErrorReport(
            type=type(error).__name__,
            message=error.message,
            hint=error.hint,
            detail=error.detail or None,
            exit_code=error.exit_code,
        )
        click.echo(msgspec.json.encode(ErrorOutput(error=report)))
        return
    if error.detail:
        print(*(f"  | {clean(line)}" for line in error.detail.expandtabs().splitlines()), sep="\n", file=sys.stderr)
    print(f"turnout: {clean(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"hint: {clean(error.hint)}", file=sys.stderr)


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
