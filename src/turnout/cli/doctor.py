"""``turnout doctor``: what is wrong, on what evidence, and what to type."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from turnout.cli.figures import counted
from turnout.cli.options import choice, reading
from turnout.cli.status_text import COLOURS
from turnout.cli.terminal import coloured
from turnout.config_file import find_file, load_file
from turnout.core.printable import clean
from turnout.doctor.finding import GRAVITY, Diagnosis, Finding
from turnout.doctor.run import diagnose, diagnosis, fix
from turnout.doctor.scene import Scene
from turnout.errors import TurnoutError
from turnout.system.home import Home

EXAMPLES = """
\b
Examples:
  turnout doctor                    works with nothing running, and on a broken home
  turnout doctor -v                 also what is well
  turnout doctor --fix              mend what can be mended without harm: modes, registry, strays
  turnout doctor --json | jq -r '.findings[] | select(.verdict == "bad") | .mend'

Exit code 1: something is bad.
"""


@click.command(epilog=EXAMPLES)
@click.option("--fix", "mend", is_flag=True, help="Do what is marked as safe, then look again.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable (turnout schema doctor).")
@click.option("-v", "--verbose", is_flag=True, help="Also what is well.")
@coloured
@reading
def doctor(*, mend: bool, as_json: bool, verbose: bool, **options: Any) -> None:
    """Look at machine, home and services, and say what is wrong, why, and what to type.

    Changes nothing without --fix.
    """
    chosen = choice(options)
    found = diagnose(_scene(chosen.config, chosen.service))
    fixed: list[str] = []
    if mend:
        fixed = fix(found)
        found = diagnose(_scene(chosen.config, chosen.service))
    told = diagnosis(found, fixed)
    if as_json:
        click.echo(msgspec.json.encode(told))
    else:
        _print(told, verbose=verbose)
    click.get_current_context().exit(1 if told.verdict == "bad" else 0)


def _scene(config: str | None, service: str | None) -> Scene:
    home, only = Home.find(), service or ""
    try:
        path = find_file(config)
        return Scene(home, configured=load_file(path) if path else {}, only=only)
    except TurnoutError as error:
        return Scene(home, misconfigured=error, only=only)


def _print(told: Diagnosis, *, verbose: bool) -> None:
    for line in told.fixed:
        click.echo(f"mended  {clean(line)}")
    shown = [finding for finding in told.findings if verbose or finding.verdict != "ok"]
    for finding in sorted(shown, key=lambda finding: GRAVITY.index(finding.verdict)):
        _print_one(finding)
    counts = {verdict: sum(finding.verdict == verdict for finding in told.findings) for verdict in GRAVITY}
    click.echo(
        f"{counted(len(told.findings), 'finding')}: {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}"
    )


def _print_one(finding: Finding) -> None:
    verdict = click.style(f"{finding.verdict:4}", fg=COLOURS[finding.verdict], bold=finding.verdict == "bad")
    service = f"{finding.service}: " if finding.service else ""
    click.echo(f"{verdict}  {finding.check:13} {clean(service + finding.evidence)}")
    if finding.mend:
        fixable = "  (doctor --fix does it)" if finding.fixable else ""
        click.echo(f"      {'':13} -> {clean(finding.mend)}{fixable}")
