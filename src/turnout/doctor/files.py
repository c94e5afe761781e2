"""What lies on the disk of a service: registry, settings, builds, journal, and what writers without the lock did."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec

from turnout.config.build_stamp import is_version_pending, stamped
from turnout.config.command_check import check_command
from turnout.config.settings import ServiceRequest
from turnout.control.removed_settings import removed_settings, restoring_command
from turnout.doctor.context import Context, ServiceContext
from turnout.doctor.finding import CheckResult, bad, move_aside, ok, quoted, warn
from turnout.errors import RegistryUnsupportedError, SpawnError, TurnoutError, UsageError
from turnout.lifecycle.build_selection import named_build
from turnout.state.builds import Builds
from turnout.state.definition import defined_in, definition_of, is_same
from turnout.state.exec_context import Contexts
from turnout.state.journal import Journal
from turnout.state.registry.commit import good_copy
from turnout.state.registry.file import RegistryFile
from turnout.state.registry.inspect import Examined, examine, read_or_none
from turnout.system.command import resolve_command
from turnout.system.files import Files

DAY_S = 86400.0
NEWEST = 2000  # events of the journal that are looked through


def check_configuration(context: Context) -> Iterator[CheckResult]:
    """The file that the next verb would read."""
    if context.misconfigured:
        yield bad(context.misconfigured.message, context.misconfigured.hint or "turnout init --stdout")
        return
    if not context.configured:
        yield ok("there is no file; flags and what was remembered are used")
        return
    sources = {wanted.source for wanted in context.configured.values()}
    yield ok(f"{', '.join(sorted(sources))}: {', '.join(sorted(context.configured))}")
    for name, wanted in sorted(context.configured.items()):
        if context.only not in {"", name}:
            continue
        known = definition_of(context.home.service(name))
        if known and not is_same(known, defined_in(Path(wanted.source))):
            where = known.file or f"a command that was typed in {known.directory}"
            evidence = f"{wanted.source} is not in force: the service is defined by {where}"
            yield warn(evidence, f"rename [service.{name}] in {wanted.source}", service=name)
        try:
            check_command(wanted, os.environ)
        except (UsageError, SpawnError) as error:
            yield bad(error.message, error.hint or f"correct it in {wanted.source}", service=name)


def check_settings(context: Context, service: ServiceContext) -> Iterator[CheckResult]:
    """What the router reads: written by the last verb."""
    if service.unreadable:
        yield bad(service.unreadable, f"rm -- {quoted(service.home.settings)} && turnout up{service.flag}")
    elif service.name in context.home.services_without_settings():
        yield bad(removed_settings(service.home), restoring_command(context.home, service.name))


def check_registry(_context: Context, service: ServiceContext) -> Iterator[CheckResult]:
    """The one source of truth: whole, understood, and with a last good copy."""
    try:
        examined = examine(service.registry)
    except RegistryUnsupportedError as error:
        yield bad(error.message, "pip install --upgrade turnout")
    except TurnoutError as error:
        hint = _access(service.registry)
        if hint.startswith("mv") and good_copy(service.registry).is_file():
            hint = f"{hint} && turnout registry repair {quoted(service.registry)}"
        yield bad(error.message, hint)
    else:
        yield from _judge(service.registry, examined)


def _judge(path: Path, examined: Examined) -> Iterator[CheckResult]:
    repair = f"turnout registry repair {quoted(path)}"

    def fix() -> None:
        RegistryFile(path).repair()

    if examined.aside:
        copies = f"{len(examined.aside)} kept aside beside {path}: {', '.join(examined.aside)}"
        remove = f"rm -- {' '.join(quoted(path.with_name(name)) for name in examined.aside)}"
        yield warn(f"{copies}; look at them, then remove them", remove, check="kept copies")
    good, damaged = examined.good_revision, f"{path} is damaged ({examined.damaged})"
    if examined.damaged and good is not None:
        yield bad(f"{damaged}; the last good copy is of revision {good}", repair, fix)
    elif examined.damaged:
        usable = (path.with_name(name) for name in reversed(examined.aside))
        copy = next((copy for copy in usable if read_or_none(copy)), None)
        yield bad(
            f"{damaged}, without a last good copy", f"{repair} --from {quoted(copy)}" if copy else move_aside(path)
        )
    elif not examined.exists and good is not None:
        yield bad(f"{path} is missing; the last good copy is of revision {good}", repair, fix)
    elif examined.findings:
        shown = "; ".join(f"{finding.where}: {finding.what}" for finding in examined.findings[:3])
        more = f" and {len(examined.findings) - 3} more" if len(examined.findings) > 3 else ""
        yield warn(f"{path}: {shown}{more}", repair, fix)
    elif examined.exists:
        yield ok(f"{path} is sound")


def check_builds(_context: Context, service: ServiceContext) -> Iterator[CheckResult]:
    """Whether what would be started again can be started: after a crash no person is there to see the error."""
    path = service.home.builds
    try:
        json.loads(Files().read(path)[0])
    except FileNotFoundError:
        return
    except OSError as error:
        yield bad(f"{path} cannot be read: {error.strerror}", _access(path))
    except (ValueError, RecursionError):
        yield bad(f"{path} is damaged: the history of builds is lost", move_aside(path))
    else:
        yield from _startable(service)


def _startable(service: ServiceContext) -> Iterator[CheckResult]:
    builds = Builds(service.home.builds)
    active = service.snapshot.active if service.snapshot else None
    try:
        build = builds.get(active.build) if active and active.build else builds.latest()
        barred = _quarantine(builds, service.configured) if service.configured else None
    except TurnoutError as error:
        yield bad(error.message, error.hint or _access(service.home.builds))
        return
    if build and build.cwd and not Path(build.cwd).is_dir():
        evidence = f"a daemon that dies could not be started again: there is no directory {build.cwd}"
        yield bad(evidence, f"mkdir -p -- {quoted(build.cwd)}")
    elif build:
        try:
            rollout = builds.context_of(build.id)
            recorded = Contexts(service.home.contexts).load(rollout.context) if rollout else None
            env, program = (recorded.env, recorded.program) if recorded else (os.environ, "")
            resolve_command(build.command, build.cwd, {**env, **build.env}, program=program)
        except TurnoutError as error:
            hint = error.hint if error.hint and error.hint.startswith("chmod") else ""
            evidence = f"a daemon that dies could not be started again: {error.message}"
            yield bad(evidence, hint or f"turnout deploy{service.flag} -- CMD")
        else:
            yield ok(f"{build.command[0]} can be started again")
    if barred:
        evidence = f"the configured build was rolled back and is in quarantine: {barred}"
        yield warn(evidence, f"turnout deploy{service.flag} --force", check="quarantine")


def _quarantine(builds: Builds, configured: ServiceRequest) -> str | None:
    """Why the configured build is in quarantine; None: it is not.

    doctor only looks and does not run ``version_command``: the version that was deployed last stands in for its answer.
    """
    wanted = stamped(configured, run=False)
    build = named_build(wanted)
    if build is None:
        return None
    latest = builds.latest()
    if latest and is_version_pending(wanted):
        build = msgspec.structs.replace(build, version=latest.version)
    return builds.quarantined(build.id)


def check_journal(_context: Context, service: ServiceContext) -> Iterator[CheckResult]:
    """Whether decisions are recorded."""
    path = service.home.journal
    try:
        state = path.lstat()
    except OSError:
        return
    if not stat.S_ISREG(state.st_mode):
        yield bad(f"{path} is no regular file: decisions are not written down", move_aside(path))
    elif not state.st_mode & stat.S_IWUSR:
        evidence = f"{path} cannot be written: decisions are not written down"
        yield bad(evidence, f"chmod 600 -- {quoted(path)}", partial(path.chmod, 0o600))
    for part, count in Journal(path).unreadable().items():
        lines = "1 line of it is no event and is" if count == 1 else f"{count} lines of it are no events and are"
        yield warn(f"another program has written into {part}: {lines} left out", move_aside(part))


def check_writers(context: Context, service: ServiceContext) -> Iterator[CheckResult]:
    """Programs that rewrite the registry without its lock and lose what they do not know."""
    since = context.clock() - DAY_S
    events = Journal(service.home.journal).read(NEWEST)
    repairs = [event for event in events if event.event == "repair" and event.ts >= since]
    if repairs:
        count = f"{len(repairs)} times in a day another program's write of {service.registry} was put right"
        yield warn(
            f"{count}, last: {repairs[-1].evidence.get('what', '?')}",
            f"find it with: fuser -v {quoted(service.registry)}; let it use turnout.Registry, or keep the keys that it"
            " does not know",
        )


def _access(path: Path) -> str:
    """What to type about a file that cannot be read."""
    try:
        state = path.stat()
    except OSError:
        return f"ls -ld {quoted(path)}"
    if not stat.S_ISREG(state.st_mode) or os.access(path, os.R_OK | os.W_OK):
        return move_aside(path)
    if state.st_uid == os.geteuid():
        return f"chmod u+rw -- {quoted(path)}"
    if path.parent.stat().st_uid == os.geteuid():
        return f"sudo chown {os.geteuid()} -- {quoted(path)}"
    return f"ls -ld -- {quoted(path.parent)} {quoted(path)}"  # the other user's, and stays that
