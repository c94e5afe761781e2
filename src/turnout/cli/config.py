"""``turnout config``: the settings in force, and where each comes from."""

from __future__ import annotations

import json
from typing import Any

import click
import msgspec
from click.core import ParameterSource

from turnout.cli.options import choice, reading, resolve, shape
from turnout.core.printable import clean
from turnout.origins import Configuration, Origin, configuration
from turnout.service import Service
from turnout.system.home import Home

SHAPED = {"listen": "TURNOUT_LISTEN", "plane": "", "strategy": "", "observe": ""}
EXAMPLES = """
\b
Examples:
  turnout config                                what holds here, as TOML, with the origin of each value
  turnout config --observe 5s --service cache   with a flag on top
  turnout config --json | jq '.settings[] | select(.origin != "default")'
"""


@click.command(epilog=EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable (turnout schema config).")
@shape
@reading
def config(*, as_json: bool, **options: Any) -> None:
    """Print every setting of a service, and whether a flag, the environment, the file or nobody set it.

    Flags win over the environment, that over the file, that over the defaults. Values of env are not shown.
    """
    chosen = choice(options)
    wanted = resolve(chosen)
    service = Service.open(Home.find().service(wanted.settings.name), wanted.settings)
    told = configuration(wanted, given=_given(), build=None if wanted.command else service.builds.latest())
    if as_json:
        click.echo(msgspec.json.encode(told))
        return
    for line in as_toml(told):
        click.echo(line)


def as_toml(told: Configuration) -> list[str]:
    """The settings as a file would have them, each with its origin behind it."""
    rows: list[tuple[str, str]] = []
    for value in told.settings:
        where = f": {value.where}" if value.where else ""
        if value.value in ("", [], None) and value.origin == "default":
            rows.append((f"# {value.key}", "not set"))
        elif isinstance(value.value, dict):
            inner = ", ".join(f"{json.dumps(key)} = {json.dumps(text)}" for key, text in value.value.items())
            rows.append((f"{value.key} = {{{inner}}}", f"{value.origin}{where}"))
        else:
            rows.append((f"{value.key} = {json.dumps(value.value)}", f"{value.origin}{where}"))
    width = min(60, max(len(left) for left, _ in rows))
    source = f"# {told.source}" if told.source else "# no file"
    return [clean(source), f"[service.{told.service}]", *(clean(f"{left:{width}}  # {right}") for left, right in rows)]


def _given() -> dict[str, tuple[Origin, str]]:
    """Which of the options that stand above the file were given, and how."""
    ctx = click.get_current_context()
    found: dict[str, tuple[Origin, str]] = {}
    for name, variable in SHAPED.items():
        source = ctx.get_parameter_source(name)
        if source is ParameterSource.COMMANDLINE:
            found[name] = "flag", f"--{name}"
        elif source is ParameterSource.ENVIRONMENT:
            found[name] = "environment", variable
    return found
