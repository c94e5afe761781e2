"""``turnout schema``: the JSON Schema of what verbs print, and of turnout.toml."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click
import msgspec

from turnout.cli.config_origins import Configuration
from turnout.cli.error_report import ErrorOutput
from turnout.cli.formatting import examples
from turnout.config.file import file_schema
from turnout.doctor.finding import Diagnosis
from turnout.state.journal import Line
from turnout.status.schema import Status

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCHEMAS: Mapping[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "status": ("turnout status --json", lambda: msgspec.json.schema(Status)),
    "history": (
        "a line of turnout history --json; an event's evidence is beside these",
        lambda: msgspec.json.schema(Line),
    ),
    "doctor": ("turnout doctor --json", lambda: msgspec.json.schema(Diagnosis)),
    "config": ("turnout config --json", lambda: msgspec.json.schema(Configuration)),
    "error": ("what any verb prints with --json when it fails", lambda: msgspec.json.schema(ErrorOutput)),
    "file": ("turnout.toml", file_schema),
}


@click.command(
    epilog=examples("turnout schema                    of status --json", "turnout schema file > turnout.schema.json")
)
@click.argument("what", type=click.Choice(list(SCHEMAS)), default="status")
def schema(what: str) -> None:
    """Print the JSON Schema of what --json prints (WHAT: the verb), of an error, or of turnout.toml (file).

    Fields are added to these shapes, never renamed or taken away; what cannot be known is null.
    """
    click.echo(msgspec.json.format(msgspec.json.encode(described(what)), indent=2))


def described(what: str) -> dict[str, Any]:
    """One schema, made from the very structs that the code uses."""
    title, make = SCHEMAS[what]
    return {"$schema": DIALECT, "title": title, **make()}
