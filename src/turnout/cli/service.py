"""``turnout service``: a unit for systemd, so that turnout starts at boot."""

from __future__ import annotations

import getpass
import os
import shlex

import click

from turnout.cli.formatting import examples
from turnout.cli.unit import plan_of, systemd_unit
from turnout.cli.unit_file import UnitFile
from turnout.config.file import find_file
from turnout.errors import UsageError
from turnout.state.definition import is_elsewhere
from turnout.state.home import Home

EXAMPLES = examples(
    "turnout service install --dry-run           the unit, printed",
    "turnout service install                     for your own service manager; it says what to type next",
    "sudo turnout service install --system --run-as app",
    "turnout service uninstall",
)
_where = click.option("--user/--system", "user", default=True, help="Your own service manager (default), or root's.")
_name = click.option("--name", default="turnout", metavar="NAME", help="The unit's name: one a state directory.")
_force = click.option("--force", is_flag=True, help="Also a unit that turnout did not write.")


@click.group(epilog=EXAMPLES)
def service() -> None:
    """Have systemd start turnout at boot."""


@service.command(epilog=EXAMPLES)
@_where
@_name
@_force
@click.option("--run-as", metavar="USER", help="With --system: whose processes; default: who called sudo, else you.")
@click.option("--dry-run", is_flag=True, help="Print it, and write nothing.")
@click.option("-c", "--config", envvar="TURNOUT_CONFIG", metavar="FILE", help="Configuration file.")
def install(*, user: bool, name: str, force: bool, run_as: str | None, dry_run: bool, config: str | None) -> None:
    """Write the unit. It brings up every service of the file or, without one, those that turnout remembers."""
    unit = UnitFile(name, system=not user)
    runs_as = "" if user else run_as or os.environ.get("SUDO_USER") or _user_name()
    home = Home.of_user(runs_as) if runs_as else Home.find()
    plan = plan_of(home, find_file(config), runs_as)
    text = systemd_unit(plan)
    steps = [
        f"turnout up --take-over --service {name} -c {shlex.quote(str(plan.config))}   # another file defines it now"
        for name in plan.services
        if plan.config and is_elsewhere(home.service(name), plan.config)
    ]
    if dry_run:
        click.echo(text, nl=False)
        click.echo("\n".join([f"would be {unit.path}", *(f"first: {step}" for step in steps)]), err=True)
        return
    unit.write(text, force=force)
    click.echo(f"wrote {unit.path}")
    steps += ["turnout down   # what runs now does not belong to the unit"] if Home.find().keeper_sock.exists() else []
    click.echo("\n".join(["next:", *(f"  {step}" for step in [*steps, *unit.next_steps(installed=True)])]))


@service.command(epilog=EXAMPLES)
@_where
@_name
@_force
@click.option("--dry-run", is_flag=True, help="Say what would be removed.")
def uninstall(*, user: bool, name: str, force: bool, dry_run: bool) -> None:
    """Remove the unit. What runs goes on running until it is stopped."""
    unit = UnitFile(name, system=not user)
    if dry_run:
        click.echo(f"would remove {unit.path}")
        return
    unit.remove(force=force)
    click.echo("\n".join([f"removed {unit.path}", "next:", *(f"  {s}" for s in unit.next_steps(installed=False))]))


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        what = f"no user of this machine has uid {os.geteuid()}, so the unit has no user to name"
        raise UsageError(what, hint="--run-as USER") from None
