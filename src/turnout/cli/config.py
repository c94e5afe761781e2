"""``turnout config``: the settings in force, and where each comes from."""

from __future__ import annotations

import click
from click.core import ParameterSource

from turnout.cli.config_origins import Configuration, Origin, configuration
from turnout.cli.formatting import examples
from turnout.cli.options import FLAGS, CommonOptions, reading, resolve, settings_options
from turnout.core.json_text import json_text
from turnout.core.printable import clean
from turnout.state.definition import definition_of, is_same
from turnout.state.home import Home
from turnout.state.service import Service


@click.command(
    epilog=examples(
        "turnout config                                what holds here, as TOML, with the origin of each value",
        "turnout config --observe 5s --service cache   with a flag on top",
        "turnout config --json | jq '.settings[] | select(.origin != \"default\")'",
    )
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable (turnout schema config).")
@settings_options
@reading
def config(*, as_json: bool, common: CommonOptions) -> None:
    """Print every setting of a service, and whether a flag, the environment, the file or nobody set it.

    Flags win over the environment, that over the file, that over the defaults. Values of env are not shown.
    """
    wanted = resolve(common)
    service = Service.open(Home.find().service(wanted.settings.name), wanted.settings)
    report = configuration(wanted, given=_given(), build=None if wanted.command else service.builds.latest())
    if as_json:
        click.echo(json_text(report))
        return
    known = definition_of(service.home)
    if known and wanted.definition and not is_same(known, wanted.definition):
        where = known.file or f"a command that was typed in {known.directory}"
        click.echo(clean(f"# not in force: service {service.name} is defined by {where}"))
    for line in as_toml(report):
        click.echo(line)


def as_toml(report: Configuration) -> list[str]:
    """The settings as a file would have them, each with its origin behind it."""
    rows: list[tuple[str, str]] = []
    for value in report.settings:
        where = f": {value.where}" if value.where else ""
        if value.value in ("", [], None) and value.origin == "default":
            rows.append((f"# {value.key}", "not set"))
        elif isinstance(value.value, dict):
            inner = ", ".join(f"{json_text(key)} = {json_text(text)}" for key, text in value.value.items())
            rows.append((f"{value.key} = {{{inner}}}", f"{value.origin}{where}"))
        else:
            rows.append((f"{value.key} = {json_text(value.value)}", f"{value.origin}{where}"))
    width = min(60, max(len(left) for left, _ in rows))
    source = f"# {report.source}" if report.source else "# no file"
    return [
        clean(source),
        f"[service.{report.service}]",
        *(clean(f"{left:{width}}  # {right}") for left, right in rows),
    ]


def _given() -> dict[str, tuple[Origin, str]]:
    """Which of the options that stand above the file were given, and how."""
    ctx = click.get_current_context()
    found: dict[str, tuple[Origin, str]] = {}
    for name, (_, variable, _) in FLAGS.items():
        source = ctx.get_parameter_source(name)
        if source is ParameterSource.COMMANDLINE:
            found[name] = "flag", f"--{name}"
        elif source is ParameterSource.ENVIRONMENT:
            found[name] = "environment", variable or ""
    return found
