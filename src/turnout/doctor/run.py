"""All checks, in the order in which a person asks: can it run here, is it sound, does it run, who is in its way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from turnout.doctor.addresses import check_addresses
from turnout.doctor.files import (
    check_builds,
    check_configuration,
    check_journal,
    check_registry,
    check_settings,
    check_writers,
)
from turnout.doctor.finding import Diagnosis, Found, bad, worst
from turnout.doctor.homes import check_clock, check_disk, check_home, check_private
from turnout.doctor.machine import check_backlog, check_descriptors, check_pipes, check_plane, check_ports
from turnout.doctor.metrics import check_metrics
from turnout.doctor.processes import (
    check_daemons,
    check_keeper,
    check_locks,
    check_router,
    check_services,
    check_strays,
)
from turnout.doctor.scene import Scene
from turnout.doctor.steering import check_steering
from turnout.errors import TurnoutError

Check = Callable[[Scene], Iterator[Found]]
CHECKS: Mapping[str, Check] = {
    "home": check_home,
    "modes": check_private,
    "disk": check_disk,
    "clock": check_clock,
    "descriptors": check_descriptors,
    "pipes": check_pipes,
    "backlog": check_backlog,
    "ports": check_ports,
    "configuration": check_configuration,
    "settings": check_settings,
    "registry": check_registry,
    "builds": check_builds,
    "journal": check_journal,
    "writers": check_writers,
    "keeper": check_keeper,
    "router": check_router,
    "plane": check_plane,
    "steering": check_steering,
    "service": check_services,
    "daemons": check_daemons,
    "strays": check_strays,
    "locks": check_locks,
    "address": check_addresses,
    "metrics": check_metrics,
}


def diagnose(scene: Scene) -> list[Found]:
    """Run every check; one that cannot be made is a finding too, and the others go on."""
    found: list[Found] = []
    for name, check in CHECKS.items():
        try:
            found.extend(check(scene))
        except (OSError, TurnoutError, ValueError) as error:
            why = error.message if isinstance(error, TurnoutError) else f"{type(error).__name__}: {error}"
            found.append(bad(name, f"this could not be looked at: {why}", "see whether the home can be read: ls -la"))
    return found


def fix(found: list[Found]) -> list[str]:
    """Do what is safe; answers a line for each thing that was done, or why it was not."""
    done: list[str] = []
    for one in found:
        if one.fix is None:
            continue
        try:
            one.fix()
        except (OSError, TurnoutError, ValueError) as error:
            done.append(f"NOT mended: {one.finding.evidence}: {error}")
        else:
            done.append(f"{one.finding.mend} ({one.finding.evidence})")
    return done


def diagnosis(found: list[Found], fixed: list[str]) -> Diagnosis:
    """The answer as ``--json`` gives it."""
    findings = [one.finding for one in found]
    return Diagnosis(schema=1, verdict=worst(findings), fixed=fixed, findings=findings)
