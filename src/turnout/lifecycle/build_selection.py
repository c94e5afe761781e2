"""Selects the build of a verb: the named build, the last good build, the build to go back to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from turnout.config.build_stamp import contents
from turnout.config.settings import Address, ServiceRequest
from turnout.core.model import Daemon, Snapshot, State
from turnout.errors import NoSuchServiceError, UsageError
from turnout.state.builds import Build, Rollout
from turnout.state.service import Service

UP_A_COMMAND: Final = "turnout up -- COMMAND --port {port}"


def start_hint(service: Service, verb: str = "start") -> str:
    """What to type so that a daemon of the service is started: the verb alone works where a build is known."""
    return f"turnout {verb}" if service.settings.source or service.builds.has_any() else UP_A_COMMAND


def attach_again(daemon: Daemon) -> str:
    """What to type once a daemon that turnout did not start runs again."""
    return f"turnout attach {Address(daemon.host, daemon.port)}"


def named_build(wanted: ServiceRequest) -> Build | None:
    """The build that the command line or the file names; None: it names no command.

    Its directory is the one that symbolic links lead to now: a link that moves afterwards moves no build.
    """
    if not wanted.command:
        return None
    cwd = os.path.realpath(wanted.cwd or Path.cwd())
    return Build(wanted.command, cwd, wanted.env, wanted.version, wanted.watched)


def wanted_build(service: Service, wanted: ServiceRequest, *, required: bool) -> Build | None:
    """The build that the command line or the file names; else the one remembered (None where that may be).

    A version without a command is the remembered build by another version.

    Raises:
        NoSuchServiceError: it is required, and there is none.
    """
    named = named_build(wanted)
    if named or not (required or wanted.version):
        return named
    build = service.builds.latest()
    if build is None and required:
        hint = UP_A_COMMAND
        active = service.registry.read().snapshot.active
        if active and not active.owned:
            hint = f"start the attached daemon again, then: {attach_again(active)}; or: {hint}"
        raise NoSuchServiceError(f"service {service.name} has no command", hint=hint)
    return msgspec.structs.replace(build, version=wanted.version) if build and wanted.version else build


def build_to_deploy(service: Service, wanted: ServiceRequest) -> Build:
    """The build that a deploy is about: the one that is named, else the remembered one as its files are now.

    That is: with the version that is given, the watched files as they are, and in the directory that its name leads to
    now, where it was deployed from within a directory like ``current``, a symbolic link.

    Raises:
        NoSuchServiceError: none is named, and none remembered.
        ConfigError: a watched file cannot be read.
    """
    build = wanted_build(service, wanted, required=True)
    assert build is not None
    if wanted.command:
        return build
    remembered = service.builds.latest()
    context = service.context_of(remembered.id) if remembered else None
    if context and context.directory and Path(context.directory).is_dir():
        build = msgspec.structs.replace(build, cwd=os.path.realpath(context.directory))
    watch = service.settings.watch
    return msgspec.structs.replace(build, watched=contents(watch) if watch else build.watched)


def has_run(service: Service) -> bool:
    """Whether a build of the service was ever active: then that is what `start` starts, whatever the file names."""
    return service.builds.previous("") is not None


def unnoted_switch(service: Service, snapshot: Snapshot) -> Rollout | None:
    """The rollout that is active and not noted as such: its verb was killed between its switch and that note."""
    block, active = snapshot.deployment, snapshot.active
    if block.in_flight or active is None or not active.build:
        return None
    for rollout in reversed(service.builds.rollouts()):
        if rollout.generation == block.generation:
            began_it = rollout.build == active.build and active.start_ts >= rollout.ts
            return rollout if began_it and not rollout.result else None
    return None


def last_good_build(service: Service, wanted: ServiceRequest, snapshot: Snapshot | None = None) -> Build:
    """The build that was active last and is not in quarantine, or else is; where there is none, the wanted one.

    With ``snapshot`` also a build whose switch was not noted.

    Raises:
        NoSuchServiceError: there is none at all.
    """
    builds = service.builds
    unnoted = unnoted_switch(service, snapshot) if snapshot else None
    rollouts = reversed(builds.rollouts())
    good = [rollout.build for rollout in rollouts if rollout.result == "active" or rollout == unnoted]
    for build_id in sorted(
        good, key=lambda build: builds.quarantined(build) is not None
    ):  # sorted keeps the order else
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
        raise UsageError("there is no earlier build to go back to", hint="turnout deploy -- COMMAND --port {port}")
    return build
