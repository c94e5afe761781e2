"""The state directory: whose it is, who may look into it, whether there is room, what time it is there."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from turnout.doctor.finding import Found, bad, ok, warn
from turnout.doctor.scene import Scene
from turnout.system.home import OTHERS
from turnout.system.spawn_record import read_records

LITTLE_BYTES = 16 << 20  # a registry is written twice and synced; logs grow by themselves
SCARCE_BYTES = 256 << 20
AHEAD_S = 60.0
LONG_AGO = 1_704_067_200.0  # 2024-01-01: a clock before that was never set
SHOWN = 5


def check_home(scene: Scene) -> Iterator[Found]:
    """The directory itself: mode 0700, ours, writable."""
    root = scene.home.root
    quoted = shlex.quote(str(root))
    try:
        state = root.stat()
    except FileNotFoundError:
        yield ok("home", f"{root} is not there yet; the first turnout up makes it")
        return
    except OSError as error:
        yield bad("home", f"{root} cannot be looked at: {error.strerror}", "export TURNOUT_HOME=/a/directory/of/yours")
        return
    if not stat.S_ISDIR(state.st_mode):
        yield bad("home", f"{root} is no directory", f"mv -- {quoted} {quoted}.aside")
        return
    if state.st_uid != scene.uid:
        mend = f"chown -R 0 -- {quoted}" if scene.uid == 0 else "export TURNOUT_HOME=/a/directory/of/yours"
        yield bad("home", f"{root} belongs to uid {state.st_uid}, not {scene.uid}", mend)
    if loose := scene.home.looseness():
        yield bad(
            "home",
            loose,
            f"chmod 700 -- {quoted}",
            fix=partial(root.chmod, 0o700),
        )
    elif state.st_mode & stat.S_IRWXU != stat.S_IRWXU:
        yield bad(
            "home",
            f"{root} has mode {stat.S_IMODE(state.st_mode):04o}: its owner cannot use it",
            f"chmod 700 -- {quoted}",
            fix=partial(root.chmod, 0o700),
        )
    elif state.st_uid == scene.uid:
        yield ok("home", f"{root}, mode 0700")


def check_private(scene: Scene) -> Iterator[Found]:
    """What may hold secrets, or takes orders, is for its owner alone."""
    files = [scene.home.keeper_sock, scene.home.router_sock]
    for subject in scene.subjects:
        files += [subject.home.builds, subject.home.journal, *_logs(subject.home.logs)]
    loose = [path for path in files if _mode(path) & OTHERS]
    for path in loose[:SHOWN]:
        what = "takes orders from" if path.suffix == ".sock" else "can be read by"
        yield bad(
            "modes",
            f"{path} {what} others: mode {stat.S_IMODE(_mode(path)):04o}",
            f"chmod 600 -- {shlex.quote(str(path))}",
            fix=partial(path.chmod, 0o600),
        )
    if not loose:
        yield ok("modes", "sockets, builds, journals and logs are for their owner alone")


def check_disk(scene: Scene) -> Iterator[Found]:
    """Room where registries are written: a full disk keeps every rollout from beginning."""
    places = {_existing(scene.home.root), *(_existing(subject.registry.parent) for subject in scene.subjects)}
    for place in sorted(places):
        try:
            state = os.statvfs(place)
        except OSError as error:
            yield bad("disk", f"{place}: {error.strerror}", f"df -h {shlex.quote(str(place))}")
            continue
        free = state.f_bavail * state.f_frsize
        told = f"{free >> 20} MiB free at {place}"
        if state.f_flag & os.ST_RDONLY:
            yield bad("disk", f"{place} is mounted read-only", f"mount -o remount,rw {shlex.quote(str(_mount(place)))}")
        elif free < LITTLE_BYTES or (state.f_files and not state.f_favail):
            yield bad("disk", told if state.f_favail else f"no inode is left at {place}", _room(scene, place))
        elif free < SCARCE_BYTES:
            yield warn("disk", told, _room(scene, place))
        else:
            yield ok("disk", told)


def check_clock(scene: Scene) -> Iterator[Found]:
    """Time stamps are for people only, windows run on the monotonic clock; but people read them."""
    now = scene.clock()
    ahead: list[Path] = []
    for subject in scene.subjects:
        for path in (subject.registry, subject.home.journal, subject.home.settings):
            try:
                if path.stat().st_mtime > now + AHEAD_S:
                    ahead.append(path)
            except OSError:
                continue
    if now < LONG_AGO:
        yield bad("clock", "the clock was never set: it is before 2024", "timedatectl set-ntp true")
    elif ahead:
        lead_s = max(path.stat().st_mtime for path in ahead) - now
        named = " ".join(shlex.quote(str(path)) for path in ahead)
        yield warn(
            "clock",
            f"{ahead[0]} was written {lead_s:.0f} s in the future: the clock was set back, or is wrong now",
            f"timedatectl set-ntp true; touch -- {named}",
        )
    else:
        yield ok("clock", "nothing was written in the future")


def _mode(path: Path) -> int:
    try:
        return path.lstat().st_mode if not path.is_symlink() else 0
    except OSError:
        return 0


def _logs(directory: Path) -> list[Path]:
    try:
        return sorted(directory.glob("*.log"))
    except OSError:
        return []


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that is there."""
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _mount(path: Path) -> Path:
    while not path.is_mount():
        path = path.parent
    return path


def _room(scene: Scene, place: Path) -> str:
    """What to type to make room: the logs of daemons that have ended, if that helps; else where to look."""
    ended = [
        Path(record.log)
        for subject in scene.subjects
        for record in read_records(subject.home.records).values()
        if record.ended and _size(Path(record.log)) > 1 << 20
    ]
    if ended:
        return f"rm -- {' '.join(shlex.quote(str(path)) for path in sorted(ended, key=_size, reverse=True))}"
    return f"du -xh {shlex.quote(str(_mount(place)))} | sort -h | tail -20"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
