"""All checks, in the order in which a person asks: can it run here, is it sound, does it run, what is in its way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec

from turnout.doctor import addresses, direct_planes, files, lost_homes, machine, processes, state_directory
from turnout.doctor.context import Context, ServiceContext
from turnout.doctor.finding import CheckResult, Diagnosis, bad, worst
from turnout.errors import TurnoutError

Check = Callable[[Context], Iterator[CheckResult]]


def _each(check: Callable[[Context, ServiceContext], Iterator[CheckResult]]) -> Check:
    """The check of one service, made of all services."""
    return lambda context: (
        msgspec.structs.replace(result, service=service.name)
        for service in context.services
        for result in check(context, service)
    )


CHECKS: Mapping[str, Check] = {
    "home": state_directory.check_home,
    "modes": state_directory.check_private,
    "disk": state_directory.check_disk,
    "clock": state_directory.check_clock,
    "descriptors": machine.check_descriptors,
    "pipes": machine.check_pipes,
    "backlog": machine.check_backlog,
    "ports": machine.check_ports,
    "configuration": files.check_configuration,
    "settings": _each(files.check_settings),
    "registry": _each(files.check_registry),
    "builds": _each(files.check_builds),
    "journal": _each(files.check_journal),
    "writers": _each(files.check_writers),
    "homes": lost_homes.check_lost_homes,
    "keeper": processes.check_keeper,
    "router": processes.check_router,
    "plane": _each(machine.check_plane),
    "steering": direct_planes.check_steering,
    "service": _each(processes.check_service),
    "daemons": _each(processes.check_daemons),
    "strays": _each(processes.check_strays),
    "copied": processes.check_copied,
    "locks": _each(processes.check_locks),
    "address": _each(addresses.check_addresses),
    "metrics": addresses.check_metrics,
}


def diagnose(context: Context) -> list[CheckResult]:
    """Run every check; one that cannot be made is a finding too, and the others go on."""
    results: list[CheckResult] = []
    for name, check in CHECKS.items():
        try:
            results.extend(msgspec.structs.replace(result, check=result.check or name) for result in check(context))
        except (OSError, TurnoutError, ValueError) as error:
            why = error.message if isinstance(error, TurnoutError) else f"{type(error).__name__}: {error}"
            hint = "see whether the home can be read: ls -la"
            results.append(bad(f"this could not be looked at: {why}", hint, check=name))
    return results


def fix(results: list[CheckResult]) -> list[str]:
    """Do what is safe; returns a line for each thing that was done, or why it was not."""
    done: list[str] = []
    for result in results:
        if result.fix is None:
            continue
        try:
            result.fix()
        except (OSError, TurnoutError, ValueError) as error:
            done.append(f"NOT fixed: {result.evidence}: {error}")
        else:
            done.append(f"{result.hint} ({result.evidence})")
    return done


def diagnosis(results: list[CheckResult], fixed: list[str]) -> Diagnosis:
    """The answer as ``--json`` gives it."""
    findings = [result.finding for result in results]
    return Diagnosis(schema=1, verdict=worst(findings), fixed=fixed, findings=findings)
