"""What lies on the disk of a service: registry, settings, builds, journal, and what writers without the lock did."""

from __future__ import annotations

import json
import os
import shlex
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from turnout.build_stamp import stamped
from turnout.core.codec import NotARegistry, loads
from turnout.doctor.finding import Found, bad, ok, warn
from turnout.doctor.scene import Scene, Subject
from turnout.errors import RegistryUnsupportedError, SpawnError, TurnoutError, UsageError
from turnout.ground import check_command
from turnout.system.builds import Build, Builds
from turnout.system.commit import good_copy
from turnout.system.examine import Examined, examine
from turnout.system.files import Files
from turnout.system.journal import Journal
from turnout.system.registry import RegistryFile
from turnout.system.spawn import resolve_command

DAY_S = 86400.0
NEWEST = 2000  # events of the journal that are looked through


def check_configuration(scene: Scene) -> Iterator[Found]:
    """The file that the next verb would read."""
    if scene.misconfigured:
        yield bad("configuration", scene.misconfigured.message, scene.misconfigured.hint or "turnout init --stdout")
    elif scene.configured:
        sources = {wanted.source for wanted in scene.configured.values()}
        yield ok("configuration", f"{', '.join(sorted(sources))}: {', '.join(sorted(scene.configured))}")
        for name, wanted in sorted(scene.configured.items()):
            if scene.only not in {"", name}:
                continue
            try:
                check_command(wanted)
            except (UsageError, SpawnError) as error:
                yield bad("configuration", error.message, error.hint or f"mend it in {wanted.source}", service=name)
    else:
        yield ok("configuration", "there is no file; flags and what was remembered are used")


def check_settings(scene: Scene) -> Iterator[Found]:
    """What the router reads: written by the last verb."""
    for subject in scene.subjects:
        if subject.unreadable:
            yield bad(
                "settings",
                subject.unreadable,
                f"rm -- {shlex.quote(str(subject.home.settings))} && turnout up{subject.flag}",
                service=subject.name,
            )


def check_registry(scene: Scene) -> Iterator[Found]:
    """The one source of truth: whole, understood, and with a last good copy."""
    for subject in scene.subjects:
        try:
            found = examine(subject.registry)
        except RegistryUnsupportedError as error:
            yield bad("registry", error.message, "pip install --upgrade turnout", service=subject.name)
            continue
        except TurnoutError as error:
            mend = _access(subject.registry)
            if mend.startswith("mv") and good_copy(subject.registry).is_file():
                mend = f"{mend} && turnout registry repair {shlex.quote(str(subject.registry))}"
            yield bad("registry", error.message, mend, service=subject.name)
            continue
        yield from _judge(subject, found)


def _judge(subject: Subject, found: Examined) -> Iterator[Found]:
    path, name = subject.registry, subject.name
    repair = f"turnout registry repair {shlex.quote(str(path))}"

    def mend() -> None:
        RegistryFile(path).repair()

    if found.aside:
        copies = [path.with_name(one) for one in found.aside]
        yield warn(
            "kept copies",
            f"{len(copies)} kept aside beside {path}: {', '.join(found.aside)}; look at them, then remove them",
            f"rm -- {' '.join(shlex.quote(str(copy)) for copy in copies)}",
            service=name,
        )
    good = found.good_revision
    if found.damaged and good is not None:
        what = f"{path} is damaged ({found.damaged}); the last good copy is of revision {good}"
        yield bad("registry", what, repair, service=name, fix=mend)
    elif found.damaged:
        copy = _usable_copy(path, found.aside)
        mending = (
            f"{repair} --from {shlex.quote(str(copy))}"
            if copy
            else f"mv -- {shlex.quote(str(path))} {shlex.quote(str(path))}.aside"
        )
        yield bad("registry", f"{path} is damaged ({found.damaged}), without a last good copy", mending, service=name)
    elif not found.exists and good is not None:
        what = f"{path} is missing; the last good copy is of revision {good}"
        yield bad("registry", what, repair, service=name, fix=mend)
    elif found.findings:
        told = "; ".join(f"{finding.where}: {finding.what}" for finding in found.findings[:3])
        more = f" and {len(found.findings) - 3} more" if len(found.findings) > 3 else ""
        yield warn("registry", f"{path}: {told}{more}", repair, service=name, fix=mend)
    elif found.exists:
        yield ok("registry", f"{path} is sound", service=name)


def check_builds(scene: Scene) -> Iterator[Found]:
    """Whether what would be started again can be started: after a crash nobody is there to see the error."""
    for subject in scene.subjects:
        path = subject.home.builds
        try:
            text = path.read_bytes()
            json.loads(text)
        except FileNotFoundError:
            continue
        except OSError as error:
            yield bad("builds", f"{path} cannot be read: {error.strerror}", _access(path), service=subject.name)
            continue
        except (ValueError, RecursionError):
            quoted = shlex.quote(str(path))
            what = f"{path} is damaged: the history of builds is lost"
            yield bad("builds", what, f"mv -- {quoted} {quoted}.aside", service=subject.name)
            continue
        yield from _startable(subject)


def _startable(subject: Subject) -> Iterator[Found]:
    builds = Builds(subject.home.builds)
    active = subject.snapshot.active if subject.snapshot else None
    try:
        build = builds.get(active.build) if active and active.build else builds.latest()
        barred = builds.quarantined(_configured(subject).id) if subject.configured else None
    except TurnoutError as error:
        yield bad("builds", error.message, error.hint or _access(subject.home.builds), service=subject.name)
        return
    if build and build.cwd and not Path(build.cwd).is_dir():
        what = f"a daemon that dies could not be started again: there is no directory {build.cwd}"
        yield bad("builds", what, f"mkdir -p -- {shlex.quote(build.cwd)}", service=subject.name)
    elif build:
        try:
            resolve_command(build.command, build.cwd, {**os.environ, **build.env})
        except TurnoutError as error:
            what = f"a daemon that dies could not be started again: {error.message}"
            mend = (
                error.hint if error.hint and error.hint.startswith("chmod") else f"turnout deploy{subject.flag} -- CMD"
            )
            yield bad("builds", what, mend, service=subject.name)
        else:
            yield ok("builds", f"{build.command[0]} can be started again", service=subject.name)
    if barred:
        what = f"the configured build was rolled back and is in quarantine: {barred}"
        yield warn("quarantine", what, f"turnout deploy{subject.flag} --force", service=subject.name)


def _configured(subject: Subject) -> Build:
    assert subject.configured is not None
    wanted = stamped(subject.configured)
    return Build(wanted.command, wanted.cwd, wanted.env, wanted.version, wanted.watched)


def check_journal(scene: Scene) -> Iterator[Found]:
    """Whether decisions can be told later."""
    for subject in scene.subjects:
        path = subject.home.journal
        try:
            state = path.lstat()
        except OSError:
            continue
        quoted = shlex.quote(str(path))
        if not stat.S_ISREG(state.st_mode):
            what = f"{path} is no regular file: decisions are not written down"
            yield bad("journal", what, f"mv -- {quoted} {quoted}.aside", service=subject.name)
        elif not state.st_mode & stat.S_IWUSR:
            what = f"{path} cannot be written: decisions are not written down"
            yield bad(
                "journal",
                what,
                f"chmod 600 -- {quoted}",
                service=subject.name,
                fix=partial(path.chmod, 0o600),
            )


def check_writers(scene: Scene) -> Iterator[Found]:
    """Programs that rewrite the registry without its lock and lose what they do not know."""
    for subject in scene.subjects:
        since = scene.clock() - DAY_S
        events = Journal(subject.home.journal).read(NEWEST)
        repairs = [event for event in events if event.event == "repair" and event.ts >= since]
        if repairs:
            last = repairs[-1]
            yield warn(
                "writers",
                f"{len(repairs)} times in a day another program's write of {subject.registry} was put right, last:"
                f" {last.evidence.get('what', '?')}",
                f"find it with: fuser -v {shlex.quote(str(subject.registry))}; let it use turnout.Registry, or keep the"
                " keys that it does not know",
                service=subject.name,
            )


def _usable_copy(path: Path, aside: tuple[str, ...]) -> Path | None:
    """The newest copy beside it that is a registry."""
    for name in reversed(aside):
        try:
            loads(Files().read(path.with_name(name))[0])
        except (OSError, NotARegistry, RegistryUnsupportedError):
            continue
        return path.with_name(name)
    return None


def _access(path: Path) -> str:
    """What to type about a file that cannot be read."""
    quoted = shlex.quote(str(path))
    try:
        state = path.stat()
    except OSError:
        return f"ls -ld {quoted}"
    if stat.S_ISREG(state.st_mode) and not os.access(path, os.R_OK | os.W_OK):
        return f"chmod u+rw -- {quoted}" if state.st_uid == os.geteuid() else f"chown {os.geteuid()} -- {quoted}"
    return f"mv -- {quoted} {quoted}.aside"
