"""``turnout doctor``: what is wrong, on what evidence, and what to type."""

from __future__ import annotations

import click

from turnout.cli.formatting import counted
from turnout.cli.options import CommonOptions, reading, unknown_service
from turnout.cli.status_text import COLOURS
from turnout.cli.streams import coloured
from turnout.config.file import find_file, load_file
from turnout.core.json_text import json_text
from turnout.core.printable import clean
from turnout.doctor.context import Context
from turnout.doctor.finding import GRAVITY, Diagnosis, Finding
from turnout.doctor.run import diagnose, diagnosis, fix
from turnout.errors import TurnoutError
from turnout.state.home import Home, check_name

EXAMPLES = """
\b
Examples:
  turnout doctor                    works with nothing running, and on a broken home
  turnout doctor -v                 also what is well
  turnout doctor --fix              fix what can be fixed without harm: modes, registry, strays
  turnout doctor --json | jq -r '.findings[] | select(.verdict == "bad") | .mend'

Exit code 1: something is bad.
"""


@click.command(epilog=EXAMPLES)
@click.option("--fix", "mend", is_flag=True, help="Do what is marked as safe, then look again.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable (turnout schema doctor).")
@click.option("-v", "--verbose", is_flag=True, help="Also what is well.")
@coloured
@reading
def doctor(*, mend: bool, as_json: bool, common: CommonOptions) -> None:
    """Look at machine, home and services, and say what is wrong, why, and what to type.

    Changes nothing without --fix.
    """
    context = _context(common.config, common.service)
    if common.service and not context.services and context.misconfigured is None:
        raise unknown_service(check_name(common.service), context.home.service_names())
    found = diagnose(context)
    fixed: list[str] = []
    if mend:
        Home.find().check_owner()
        fixed = fix(found)
        found = diagnose(_context(common.config, common.service))
    report = diagnosis(found, fixed)
    if as_json:
        click.echo(json_text(report))
    else:
        _print(report, verbose=common.verbose)
    click.get_current_context().exit(1 if report.verdict == "bad" else 0)


def _context(config: str | None, service: str | None) -> Context:
    home, only = Home.find(usable=False), service or ""
    try:
        path = find_file(config)
        return Context(home, configured=load_file(path) if path else {}, only=only)
    except TurnoutError as error:
        return Context(home, misconfigured=error, only=only)


def _print(report: Diagnosis, *, verbose: bool) -> None:
    for line in report.fixed:
        click.echo(f"fixed  {clean(line)}")
    shown = [finding for finding in report.findings if verbose or finding.verdict != "ok"]
    for finding in sorted(shown, key=lambda finding: GRAVITY.index(finding.verdict)):
        _print_one(finding)
    counts = {verdict: sum(finding.verdict == verdict for finding in report.findings) for verdict in GRAVITY}
    click.echo(
        f"{counted(len(report.findings), 'finding')}: {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}"
    )


def _print_one(finding: Finding) -> None:
    verdict = click.style(f"{finding.verdict:4}", fg=COLOURS[finding.verdict], bold=finding.verdict == "bad")
    service = f"{finding.service}: " if finding.service else ""
    click.echo(f"{verdict}  {finding.check:13} {clean(service + finding.evidence)}")
    if finding.hint:
        fixable = "  (doctor --fix does it)" if finding.fixable else ""
        click.echo(f"      {'':13} -> {clean(finding.hint)}{fixable}")
