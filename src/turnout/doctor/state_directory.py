"""The state directory: its owner, its modes, the room for it, and the clock."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from turnout.doctor.context import Context
from turnout.doctor.finding import CheckResult, bad, move_aside, ok, quoted, warn
from turnout.state.home import OTHERS
from turnout.system.spawn_record import read_records

LITTLE_BYTES = 16 << 20  # a registry is written twice and synced; logs grow by themselves
SCARCE_BYTES = 256 << 20
AHEAD_S = 60.0
LONG_AGO = 1_704_067_200.0  # 2024-01-01: a clock before that was never set
SHOWN = 5
_ANOTHER = "export TURNOUT_HOME=/a/directory/of/yours"


def check_home(context: Context) -> Iterator[CheckResult]:
    """The directory itself: mode 0700, ours, writable."""
    root = context.home.root
    try:
        state = root.stat()
    except FileNotFoundError:
        if root.is_symlink():
            target = os.path.join(root.parent, os.readlink(root))  # noqa: PTH115, PTH118  # as it is written
            evidence = f"{root} is a symbolic link to {target}, which does not exist"
            yield bad(evidence, f"mkdir -m 700 -p -- {quoted(target)}")
        else:
            yield ok(f"{root} is not there yet; the first turnout up makes it")
        return
    except OSError as error:
        yield bad(f"{root} cannot be looked at: {error.strerror}", _ANOTHER)
        return
    if not stat.S_ISDIR(state.st_mode):
        is_file = stat.S_ISREG(state.st_mode) and not root.is_symlink()
        yield bad(f"{root} is no directory", move_aside(root) if is_file else _ANOTHER)
        return
    if state.st_uid != context.uid:
        yield _of_another_user(context, state.st_uid)
    problem = context.home.looseness()
    if not problem and state.st_mode & stat.S_IRWXU != stat.S_IRWXU:
        problem = f"{root} has mode {stat.S_IMODE(state.st_mode):04o}: its owner cannot use it"
    if problem:
        yield bad(problem, f"chmod 700 -- {quoted(root)}", partial(root.chmod, 0o700))
    elif state.st_uid == context.uid:
        yield ok(f"{root}, mode 0700")


def _of_another_user(context: Context, uid: int) -> CheckResult:
    """Never the advice to give the home away: its owner's turnout would no longer work."""
    user = context.home.owner()
    belongs = f"{context.home.root} belongs to uid {uid}{f' ({user})' if user else ''}, not {context.uid}"
    if context.uid != 0:
        return bad(belongs, _ANOTHER)
    if user:
        evidence = f"{belongs}: as root only verbs that change nothing are allowed"
        return warn(evidence, context.home.as_owner(user, "doctor"))
    evidence = f"{belongs}, which is no user of this machine: what root makes in it is given to uid {uid}"
    return warn(evidence, f"{_ANOTHER}, unless root is the only user of this container")


def check_private(context: Context) -> Iterator[CheckResult]:
    """What may hold secrets, or takes orders, is for its owner alone."""
    files = [context.home.keeper_sock, context.home.router_sock]
    for service in context.services:
        files += [service.home.builds, service.home.journal]
        with suppress(OSError):
            files += sorted(service.home.logs.glob("*.log"))
    loose = [path for path in files if _mode(path) & OTHERS]
    for path in loose[:SHOWN]:
        use = "takes orders from" if path.suffix == ".sock" else "can be read by"
        evidence = f"{path} {use} others: mode {stat.S_IMODE(_mode(path)):04o}"
        yield bad(evidence, f"chmod 600 -- {quoted(path)}", partial(path.chmod, 0o600))
    if not loose:
        yield ok("sockets, builds, journals and logs are for their owner alone")


def check_disk(context: Context) -> Iterator[CheckResult]:
    """Room where registries are written: a full disk keeps every rollout from beginning."""
    places = {_existing(context.home.root), *(_existing(service.registry.parent) for service in context.services)}
    for place in sorted(places):
        try:
            state = os.statvfs(place)
        except OSError as error:
            yield bad(f"{place}: {error.strerror}", f"df -h {quoted(place)}")
            continue
        free = state.f_bavail * state.f_frsize
        evidence = f"{free >> 20} MiB free at {place}"
        if state.f_flag & os.ST_RDONLY:
            yield bad(f"{place} is mounted read-only", f"mount -o remount,rw {quoted(_mount(place))}")
        elif state.f_files and not state.f_favail:
            yield bad(f"no inode is left at {place}", _room(context, place))
        elif free < LITTLE_BYTES:
            yield bad(evidence, _room(context, place))
        elif free < SCARCE_BYTES:
            yield warn(evidence, _room(context, place))
        else:
            yield ok(evidence)


def check_clock(context: Context) -> Iterator[CheckResult]:
    """Time stamps are for people only, windows run on the monotonic clock; but people read them."""
    now = context.clock()
    ahead: dict[Path, float] = {}
    for service in context.services:
        for path in (service.registry, service.home.journal, service.home.settings):
            with suppress(OSError):
                if (lead_s := path.stat().st_mtime - now) > AHEAD_S:
                    ahead[path] = lead_s
    if now < LONG_AGO:
        yield bad("the clock was never set: it is before 2024", "timedatectl set-ntp true")
    elif ahead:
        first = f"{next(iter(ahead))} was written {max(ahead.values()):.0f} s in the future"
        hint = f"timedatectl set-ntp true; touch -- {' '.join(map(quoted, ahead))}"
        yield warn(f"{first}: the clock was set back, or is wrong now", hint)
    else:
        yield ok("nothing was written in the future")


def _mode(path: Path) -> int:
    with suppress(OSError):
        return path.lstat().st_mode if not path.is_symlink() else 0
    return 0


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that is there."""
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _mount(path: Path) -> Path:
    while not path.is_mount():
        path = path.parent
    return path


def _room(context: Context, place: Path) -> str:
    """What to type to make room: the logs of daemons that have ended, if that helps; else where to look."""
    ended: dict[Path, int] = {}
    for service in context.services:
        for record in read_records(service.home.records).values():
            with suppress(OSError):
                if record.ended and (size_bytes := Path(record.log).stat().st_size) > 1 << 20:
                    ended[Path(record.log)] = size_bytes
    if ended:
        return f"rm -- {' '.join(map(quoted, sorted(ended, key=ended.__getitem__, reverse=True)))}"
    return f"du -xh {quoted(_mount(place))} | sort -h | tail -20"
