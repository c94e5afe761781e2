"""``turnout registry``: look at the file that says what exists, check it, mend it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from turnout.cli.formatting import examples
from turnout.cli.options import CommonOptions, reading, shown_service
from turnout.core.addresses import format_address
from turnout.core.json_text import json_text
from turnout.core.printable import clean
from turnout.errors import NotRunningError, RegistryDamagedError, UsageError
from turnout.state.home import Home
from turnout.state.registry.decoder import NotARegistry
from turnout.state.registry.encoder import encode
from turnout.state.registry.file import RegistryFile
from turnout.state.registry.inspect import Examined, examine
from turnout.system.files import Files, unwritable

as_json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
file_argument = click.argument("file", required=False, type=click.Path(path_type=Path, readable=False))


EXAMPLES = examples(
    "turnout registry show --json",
    "turnout registry validate /srv/app/registry.json",
    "turnout registry repair --dry-run",
    "turnout registry repair --from registry.json.displaced-20261125T010203",
)


@click.group(epilog=EXAMPLES)
def registry() -> None:
    """Show, check or mend the registry: FILE, or that of the service."""


@registry.command(epilog=EXAMPLES)
@file_argument
@as_json_option
@reading
def show(file: Path | None, *, as_json: bool, common: CommonOptions) -> None:
    """Print what the registry says, as turnout understands it."""
    opened = _open(file, common)
    _must_exist(examine(opened.path))
    read = opened.read()
    if as_json:
        click.echo(json_text(encode(read.snapshot), indent=2))
        return
    block = read.snapshot.deployment
    click.echo(f"{opened.path}  version {read.snapshot.version}")
    click.echo(f"  generation {block.generation}, {block.state}, revision {block.revision}, {block.desired}")
    for daemon in read.snapshot.daemons.values():
        roles = {block.active_boot_id: "active", block.old_boot_id: "warm", block.candidate_boot_id: "candidate"}
        role = roles.get(daemon.boot_id) or ("draining" if daemon.draining else "")
        line = f"  daemon {daemon.boot_id}  {format_address(daemon.host, daemon.port)}  pid {daemon.pid}  {role}"
        click.echo(clean(line.rstrip()))
    for workspace in read.snapshot.workspaces.values():
        click.echo(clean(f"  workspace {workspace.root}  {workspace.boot_id}"))
    for finding in read.report:
        click.echo(clean(f"{finding.where}: {finding.what}"), err=True)


@registry.command(epilog=EXAMPLES)
@file_argument
@as_json_option
@reading
def validate(file: Path | None, *, as_json: bool, common: CommonOptions) -> None:
    """Say what is wrong with the registry and change nothing. Exit code 1 where something is."""
    found = examine(_open(file, common).path)
    _must_exist(found)
    if as_json:
        click.echo(json_text(_told(found)))
    else:
        click.echo(f"{found.path}: {'sound' if found.sound else _verdict(found)}")
        for finding in found.findings:
            click.echo(clean(f"  {finding.where}: {finding.what}"))
        for name in found.aside:
            click.echo(f"  kept aside: {name}")
    click.get_current_context().exit(0 if found.sound else 1)


@registry.command(epilog=EXAMPLES)
@file_argument
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, readable=False),
    help="Take daemons and workspaces from this copy.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@as_json_option
@reading
def repair(file: Path | None, *, source: Path | None, as_json: bool, common: CommonOptions) -> None:
    """Write the registry anew as it is understood; what could not be understood is kept aside.

    The deployment is never set back: it comes from the last good copy where that is newer.
    """
    opened = _open(file, common)
    found = examine(opened.path)
    try:
        content = Files().read(source)[0] if source else None
    except OSError as error:
        raise unwritable("read", source or Path(), error) from error
    _must_exist(found)
    if common.dry_run:
        would = [f"{finding.where}: {finding.what}" for finding in found.findings]
        would += [f"the file: {_verdict(found)}"] if found.damaged or not found.exists else []
    else:
        if file is None:
            Home.find().check_owner()
        try:
            would = list(opened.repair(content).repairs)
        except NotARegistry as error:
            raise UsageError(f"{source} is no registry: {error}", hint="turnout registry validate FILE") from error
        except RegistryDamagedError as error:
            raise RegistryDamagedError(error.message, hint="turnout registry repair --from COPY") from error
    if as_json:
        click.echo(json_text({"path": str(opened.path), "dry_run": common.dry_run, "repairs": would}))
        return
    for line in would:
        click.echo(clean(f"{'would fix' if common.dry_run else 'fixed'}: {line}"))
    if not would:
        click.echo(f"{opened.path}: nothing to mend")


def _open(file: Path | None, common: CommonOptions) -> RegistryFile:
    return shown_service(common).registry if file is None else RegistryFile(file)


def _must_exist(found: Examined) -> None:
    if not found.exists and found.good_revision is None:
        raise NotRunningError(f"there is no registry {found.path}", hint="turnout up -- COMMAND --port {port}")


def _verdict(found: Examined) -> str:
    good = found.good_revision
    stands_in = "; there is no last good copy" if good is None else f"; the last good copy is of revision {good}"
    if not found.exists:
        return f"missing{stands_in}"
    if found.damaged:
        return f"damaged: {found.damaged}{stands_in}"
    return f"readable, with {len(found.findings)} things put right while reading"


def _told(found: Examined) -> dict[str, Any]:
    return {
        "path": str(found.path),
        "sound": found.sound,
        "exists": found.exists,
        "damaged": found.damaged or None,
        "findings": [{"where": finding.where, "what": finding.what} for finding in found.findings],
        "last_good_revision": found.good_revision,
        "kept_aside": list(found.aside),
    }
