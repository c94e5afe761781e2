"""The kernel's part in direct planes: what it lacks here, and what was left in it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from turnout.config import Settings
from turnout.config_check import demands
from turnout.core.model import Desired
from turnout.doctor.finding import Found, bad, ok, warn
from turnout.doctor.scene import Scene, Subject
from turnout.errors import SteeringError
from turnout.planes.pins import OWN_BPFFS, SYSTEM_BPFFS, Pins, all_bpffs, home_directory, is_ours, pins_of
from turnout.planes.sk_lookup import NO_RIGHT
from turnout.system.process import provably_dead

# capabilities(7); CAP_SYS_ADMIN does for CAP_BPF
_NET_ADMIN: Final = 1 << 12
_SYS_PTRACE: Final = 1 << 19
_BPF: Final = 1 << 39 | 1 << 21
_NO_ATTACH: Final = "3"  # kernel.yama.ptrace_scope: nobody may trace, and it stays so until the next boot
_OR_RELAY: Final = 'or say plane = "relay"'


def check_steering(scene: Scene) -> Iterator[Found]:
    """What a direct plane needs, where one was named; and pins that steer what nobody serves."""
    places = all_bpffs(scene.home.root, mounts=scene.proc / "self/mountinfo")
    bpffs = places[0] if places else None
    named = [(subject, subject.settings.plane) for subject in scene.subjects if subject.settings]
    if any(plane == "sk_lookup" for _, plane in named):
        found = list(_needs(scene, bpffs))
        if not found:
            found = [one for subject, plane in named if plane == "sk_lookup" for one in _pinned(scene, bpffs, subject)]
        yield from found or [ok("steering", "plane sk_lookup has all that it needs here")]
    if any(plane == "reuseport" for _, plane in named):
        lacks = scene.group_lacks()
        if lacks:
            yield warn("steering", f"plane reuseport relays here: {lacks}", 'say plane = "relay", or "auto"')
        else:
            yield ok("steering", "plane reuseport has all that it needs here")
    for place in places:
        yield from _left_over(scene, place, home_directory(place, scene.home.root))


def why_no_better(scene: Scene, settings: Settings) -> str:
    """What it would take to reach a daemon without the relay that ``auto`` chose; empty: nothing would do."""
    if settings.plane != "auto" or settings.takes_part or demands(settings):
        return ""
    lacks = scene.sk_lookup_lacks()
    other = f"sk_lookup cannot run here: {lacks}" if lacks else 'plane = "sk_lookup" can run here, with any daemon'
    takes = "reuseport, for a daemon that is given its listener ({fd}) or sets SO_REUSEPORT itself (shares_port)"
    return f"; with no proxy at all: {takes}; {other}"


def _needs(scene: Scene, bpffs: Path | None) -> Iterator[Found]:
    lacks = scene.sk_lookup_lacks()
    if lacks:
        yield warn("steering", f"plane sk_lookup relays here: {lacks}", _way_to_a_program(scene.proc, lacks))
        return
    if bpffs is None:
        anew = " && turnout router --replace" if scene.router_processes else ""
        yield warn(
            "steering",
            "no bpf filesystem is mounted, so the kernel steers for as long as the router lives and no longer",
            f"mount -t bpf bpf {SYSTEM_BPFFS}{anew}",
        )
    else:
        yield from _no_place(scene, bpffs)
    scope = scene.sysctl("kernel.yama.ptrace_scope")
    what = f"kernel.yama.ptrace_scope is {scope}: the router may not take a daemon's listener, so it relays"
    if scope == _NO_ATTACH:
        yield warn("steering", what, f"set it to 0 in /etc/sysctl.d, for it stays till the next boot; {_OR_RELAY}")
    elif scope and scope != "0" and not _capable(scene.proc) & _SYS_PTRACE:
        yield warn("steering", what, "sysctl -w kernel.yama.ptrace_scope=0")


def _way_to_a_program(proc: Path, lacks: str) -> str:
    """What to do where no program can be linked: rights, or a filter that lets it through, or another kernel."""
    if NO_RIGHT not in lacks:
        return f"it takes Linux 5.9, and a container whose seccomp filter lets bpf(2) through; {_OR_RELAY}"
    has = _capable(proc)
    missing = [name for name, bits in (("CAP_BPF", _BPF), ("CAP_NET_ADMIN", _NET_ADMIN)) if not has & bits]
    if missing:
        return f"run turnout with {' and '.join(missing)} as well (root has them), {_OR_RELAY}"
    filtered = _status(proc).get("Seccomp", "0") != "0"
    by = "the seccomp filter that is in force" if filtered else "a security module or the user namespace"
    return f"the rights are there, so {by} forbids it: let bpf(2) through, {_OR_RELAY}"


def _no_place(scene: Scene, bpffs: Path) -> Iterator[Found]:
    """A bpf filesystem that is there, and where this user may pin nothing."""
    directory = home_directory(bpffs, scene.home.root)
    unpinned = "so nothing is pinned, and steering ends with the router"
    try:
        is_ours(directory)
    except (FileNotFoundError, PermissionError):
        if not os.access(bpffs, os.W_OK | os.X_OK):
            own = shlex.quote(str(scene.home.root / OWN_BPFFS))
            mend = f"as root: mkdir -p {own} && mount -t bpf bpf {own} && chown {scene.uid} {own}"
            yield warn("steering", f"{bpffs} may not be written, {unpinned}", mend)
    except SteeringError as error:
        yield warn("steering", f"{error.message}, {unpinned}", f"rm -r -- {shlex.quote(str(directory))}")


def _pinned(scene: Scene, bpffs: Path | None, subject: Subject) -> Iterator[Found]:
    """Whether what a router steers by outlives it."""
    services: dict[str, dict[str, str]] = scene.router.get("services", {}) if scene.router else {}
    told = services.get(subject.name, {})
    if bpffs is None or told.get("plane") != "sk_lookup" or told.get("plane_trouble"):
        return
    steers = subject.snapshot is not None and subject.snapshot.active is not None
    pins = pins_of(scene.home.root, subject.name, mounts=scene.proc / "self/mountinfo")
    if steers and not (pins and pins.exist()):
        what = f"what the router steers by is not pinned in {bpffs}: it began before it could be, and ends with it"
        yield warn("steering", what, "turnout router --replace", service=subject.name)


def _status(proc: Path) -> Mapping[str, str]:
    """What proc_pid_status(5) says of this process, whose rights a router has that it starts; empty: unknown."""
    try:
        lines = (proc / "self/status").read_text().splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _capable(proc: Path) -> int:
    """The effective capabilities, as bits."""
    try:
        return int(_status(proc).get("CapEff", "0"), 16)
    except ValueError:
        return 0


def _left_over(scene: Scene, bpffs: Path, directory: Path) -> Iterator[Found]:
    known: dict[Path, Subject] = {}
    for subject in scene.subjects:
        pins = Pins.of(bpffs, scene.home.root, subject.name)
        known |= {pins.directory: subject, pins.unfinished: subject}
    try:
        there = sorted(entry for entry in directory.iterdir() if entry.is_dir())
    except OSError:
        return
    for entry in there:
        if entry in known:
            yield from _of_service(scene, known[entry], entry)
        elif not scene.only:
            yield bad(
                "steering",
                f"{entry} steers connections of a service that is not here any more",
                f"rm -r -- {shlex.quote(str(entry))}",
                fix=partial(Pins(entry).remove),
            )


def _of_service(scene: Scene, subject: Subject, entry: Path) -> Iterator[Found]:
    """A dead router's steering goes on, which is what it is for; but somebody must come who follows the registry."""
    if scene.router_processes:
        return
    if _serves(subject):
        yield warn(
            "steering",
            "no router runs, and the kernel goes on handing connections to the daemon that was active last",
            f"turnout up{subject.flag}",
            service=subject.name,
        )
    else:
        yield warn(
            "steering",
            f"{entry} was left by a router that died, and nobody is to get connections",
            f"rm -r -- {shlex.quote(str(entry))}",
            service=subject.name,
            fix=partial(Pins(entry).remove),
        )


def _serves(subject: Subject) -> bool:
    """Whether somebody is to get connections, as far as it is known: in doubt, somebody is."""
    snapshot = subject.snapshot
    if snapshot is None:
        return True
    active, stopped = snapshot.active, snapshot.deployment.desired is Desired.STOPPED
    return active is not None and not stopped and not provably_dead(active.identity)
