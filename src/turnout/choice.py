"""Which build a verb means: the one asked for, the one that worked last, the one to go back to."""

from __future__ import annotations

from pathlib import Path

from turnout.config import Wanted
from turnout.core.model import Snapshot, State
from turnout.errors import NoSuchServiceError, UsageError
from turnout.service import Service
from turnout.system.builds import Build


def wanted_build(service: Service, wanted: Wanted, *, required: bool) -> Build | None:
    """The build that the command line or the file names; else the one remembered (None where that may be).

    Raises:
        NoSuchServiceError: it is required, and there is none.
    """
    if wanted.command:
        cwd = wanted.cwd or str(Path.cwd())
        return Build(wanted.command, cwd, wanted.env, wanted.version, wanted.watched)
    if not required:
        return None
    build = service.builds.latest()
    if build is None:
        raise NoSuchServiceError(f"service {service.name} has no command", hint="turnout up -- COMMAND --port {port}")
    return build


def last_good_build(service: Service, wanted: Wanted) -> Build:
    """The one that was active last and is not in quarantine, or else is; where there is none, the wanted one.

    Raises:
        NoSuchServiceError: there is none at all.
    """
    builds = service.builds
    good = [rollout.build for rollout in reversed(builds.rollouts()) if rollout.result == "active"]
    for build_id in sorted(good, key=lambda one: builds.quarantined(one) is not None):  # sorted keeps the order else
        build = builds.get(build_id)
        if build:
            return build
    build = wanted_build(service, wanted, required=True)
    assert build is not None
    return build


def build_to_return_to(service: Service, snapshot: Snapshot, generation: int | None) -> Build:
    """The build of ``generation``, or else the one before that which is active.

    Raises:
        UsageError: it is not recorded.
    """
    builds = service.builds
    if generation is not None:
        for rollout in reversed(builds.rollouts()):
            build = builds.get(rollout.build) if rollout.generation == generation else None
            if build:
                return build
        raise UsageError(f"no build is recorded for generation {generation}", hint="turnout history")
    in_window = snapshot.old if snapshot.deployment.state is State.SWITCHED else None
    build = builds.get(in_window.build) if in_window else None
    build = build or builds.previous(snapshot.active.build if snapshot.active else "")
    if build is None:
        raise UsageError("there is no earlier build to go back to", hint="turnout deploy -- COMMAND")
    return build
