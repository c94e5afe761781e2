"""``turnout service``: a unit for systemd, or a property list for launchd, so that turnout starts at boot."""

from __future__ import annotations

import getpass
import os

import click

from turnout.config_file import find_file
from turnout.system.home import Home
from turnout.unit import launchd_plist, plan_of, systemd_unit
from turnout.unit_file import UnitFile

EXAMPLES = """
\b
Examples:
  turnout service install --dry-run           the unit, printed
  turnout service install                     for your own service manager; it says what to type next
  sudo turnout service install --system --run-as app
  turnout service uninstall
"""
_where = click.option("--user/--system", "user", default=True, help="Your own service manager (default), or root's.")
_name = click.option("--name", default="turnout", metavar="NAME", help="The unit's name: one a state directory.")
_force = click.option("--force", is_flag=True, help="Also a unit that turnout did not write.")


@click.group(epilog=EXAMPLES)
def service() -> None:
    """Have a service manager start turnout: systemd, or launchd on macOS."""


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
    runs_as = "" if user else run_as or os.environ.get("SUDO_USER") or getpass.getuser()
    home = Home.of_user(runs_as) if runs_as else Home.find()
    plan = plan_of(home, find_file(config), runs_as)
    text = launchd_plist(plan, name) if unit.macos else systemd_unit(plan)
    if dry_run:
        click.echo(text, nl=False)
        click.echo(f"would be {unit.path}", err=True)
        return
    unit.write(text, force=force)
    click.echo(f"wrote {unit.path}")
    steps = ["turnout down   # what runs now does not belong to the unit"] if _runs() else []
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


def _runs() -> bool:
    return Home.find().keeper_sock.exists()
