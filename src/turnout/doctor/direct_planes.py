"""The kernel's part in direct planes: what it lacks here, and what was left in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from turnout.activation.obstacle import obstacle
from turnout.config.settings import Settings
from turnout.config.validation import demands
from turnout.core.model import Desired
from turnout.doctor.context import Context, ServiceContext
from turnout.doctor.finding import CheckResult, bad, ok, quoted, warn
from turnout.errors import SteeringError
from turnout.planes.direct.bpf_pins import (
    OWN_BPFFS,
    SYSTEM_BPFFS,
    Pins,
    all_bpffs,
    home_directory,
    is_ours,
    pins_of,
    unfinished,
)
from turnout.planes.direct.sk_lookup import NO_RIGHT
from turnout.system.process import own_status, provably_dead

# capabilities(7); CAP_SYS_ADMIN does for CAP_BPF
_NET_ADMIN: Final = 1 << 12
_SYS_PTRACE: Final = 1 << 19
_BPF: Final = 1 << 39 | 1 << 21
_NO_ATTACH: Final = "3"  # kernel.yama.ptrace_scope: no process may trace, and it stays so until the next boot
_OR_RELAY: Final = 'or say plane = "relay"'


def check_steering(context: Context) -> Iterator[CheckResult]:
    """What a direct plane needs, where one was named; and pins that steer what no router serves."""
    places = all_bpffs(context.home.root, mounts=context.proc / "self/mountinfo")
    bpffs = places[0] if places else None
    named = [(service, service.settings.plane) for service in context.services if service.settings]
    if any(plane == "sk_lookup" for _, plane in named):
        results = list(_needs(context, bpffs)) or [
            result for service, plane in named if plane == "sk_lookup" for result in _pinned(context, bpffs, service)
        ]
        yield from results or [ok("plane sk_lookup has all that it needs here")]
    if any(service.settings and service.settings.activation == "on" for service in context.services):
        lacks = obstacle("")
        if lacks:
            yield warn(f'activation = "on" does nothing here: {lacks}', 'activation = "off", and {port} in the command')
        else:
            yield ok("activation has all that it needs here")
    if any(plane == "reuseport" for _, plane in named):
        lacks = context.group_lacks()
        if lacks:
            yield warn(f"plane reuseport relays here: {lacks}", 'say plane = "relay", or "auto"')
        else:
            yield ok("plane reuseport has all that it needs here")
    for place in places:
        yield from _left_over(context, place, home_directory(place, context.home.root))


def why_no_better(context: Context, settings: Settings) -> str:
    """What it would take to reach a daemon without the relay that ``auto`` chose; empty: nothing would do."""
    if settings.plane != "auto" or settings.takes_part or demands(settings):
        return ""
    lacks = context.sk_lookup_lacks()
    other = f"sk_lookup cannot run here: {lacks}" if lacks else 'plane = "sk_lookup" can run here, with any daemon'
    return f"; with no proxy at all: reuseport, for a daemon that is given its listener ({{fd}}); {other}"


def _needs(context: Context, bpffs: Path | None) -> Iterator[CheckResult]:
    lacks = context.sk_lookup_lacks()
    if lacks:
        yield warn(f"plane sk_lookup relays here: {lacks}", _way_to_a_program(context.proc, lacks))
        return
    if bpffs is None:
        replace = " && turnout router --replace" if context.router_processes else ""
        evidence = "no bpf filesystem is mounted, so the kernel steers for as long as the router lives and no longer"
        yield warn(evidence, f"mount -t bpf bpf {SYSTEM_BPFFS}{replace}")
    else:
        yield from _no_place(context, bpffs)
    scope = context.sysctl("kernel.yama.ptrace_scope")
    evidence = f"kernel.yama.ptrace_scope is {scope}: the router may not take a daemon's listener, so it relays"
    if scope == _NO_ATTACH:
        yield warn(evidence, f"set it to 0 in /etc/sysctl.d, for it stays till the next boot; {_OR_RELAY}")
    elif scope and scope != "0" and not _capable(context.proc) & _SYS_PTRACE:
        yield warn(evidence, "sysctl -w kernel.yama.ptrace_scope=0")


def _way_to_a_program(proc: Path, lacks: str) -> str:
    """What to do where no program can be linked: rights, or a filter that lets it through, or another kernel."""
    if NO_RIGHT not in lacks:
        return f"it takes Linux 5.9, and a container whose seccomp filter lets bpf(2) through; {_OR_RELAY}"
    has = _capable(proc)
    missing = [name for name, bits in (("CAP_BPF", _BPF), ("CAP_NET_ADMIN", _NET_ADMIN)) if not has & bits]
    if missing:
        return f"run turnout with {' and '.join(missing)} as well (root has them), {_OR_RELAY}"
    filtered = own_status(proc).get("Seccomp", "0") != "0"
    by = "the seccomp filter that is in force" if filtered else "a security module or the user namespace"
    return f"the rights are there, so {by} forbids it: let bpf(2) through, {_OR_RELAY}"


def _no_place(context: Context, bpffs: Path) -> Iterator[CheckResult]:
    """A bpf filesystem that is there, and where this user may pin nothing."""
    directory = home_directory(bpffs, context.home.root)
    unpinned = "so nothing is pinned, and steering ends with the router"
    try:
        is_ours(directory)
    except (FileNotFoundError, PermissionError):
        if not os.access(bpffs, os.W_OK | os.X_OK):
            own = quoted(context.home.root / OWN_BPFFS)
            hint = f"as root: mkdir -p {own} && mount -t bpf bpf {own} && chown {_owner(context)} {own}"
            yield warn(f"{bpffs} may not be written, {unpinned}", hint)
    except SteeringError as error:
        yield warn(f"{error.message}, {unpinned}", f"rm -r -- {quoted(directory)}")


def _owner(context: Context) -> int:
    """Whose router pins: root may look at the home of another user."""
    try:
        return context.home.root.stat().st_uid if context.uid == 0 else context.uid
    except OSError:
        return context.uid


def _pinned(context: Context, bpffs: Path | None, service: ServiceContext) -> Iterator[CheckResult]:
    """Whether what a router steers by outlives it."""
    routed = context.routed(service.name)
    if bpffs is None or routed.get("plane") != "sk_lookup" or routed.get("plane_trouble"):
        return
    steers = service.snapshot is not None and service.snapshot.active is not None
    pins = pins_of(context.home.root, service.name, mounts=context.proc / "self/mountinfo")
    if steers and not (pins and pins.exist()):
        evidence = f"what the router steers by is not pinned in {bpffs}: it began before it could be, and ends with it"
        yield warn(evidence, "turnout router --replace", service=service.name)


def _capable(proc: Path) -> int:
    """The effective capabilities of this process, as bits: a router that it starts has the same."""
    try:
        return int(own_status(proc).get("CapEff", "0"), 16)
    except ValueError:
        return 0


def _left_over(context: Context, bpffs: Path, directory: Path) -> Iterator[CheckResult]:
    known: dict[Path, ServiceContext] = {}
    for service in context.services:
        pins = Pins.of(bpffs, context.home.root, service.name)
        known |= {pins.directory: service, unfinished(pins.directory): service}
    try:
        there = sorted(entry for entry in directory.iterdir() if entry.is_dir())
    except OSError:
        return
    for entry in there:
        if entry in known:
            yield from _of_service(context, known[entry], entry)
        elif not context.only:
            evidence = f"{entry} steers connections of a service that is not here any more"
            yield bad(evidence, f"rm -r -- {quoted(entry)}", Pins(entry).remove)


def _of_service(context: Context, service: ServiceContext, entry: Path) -> Iterator[CheckResult]:
    """A dead router's steering goes on, which is what it is for; but a router must come that follows the registry."""
    if context.router_processes:
        return
    if _serves(service):
        evidence = "no router runs, and the kernel goes on handing connections to the daemon that was active last"
        yield warn(evidence, f"turnout up{service.flag}", service=service.name)
    else:
        evidence = f"{entry} was left by a router that died, and no daemon is to get connections"
        yield warn(evidence, f"rm -r -- {quoted(entry)}", Pins(entry).remove, service=service.name)


def _serves(service: ServiceContext) -> bool:
    """Whether a daemon is to get connections, as far as it is known: in doubt, one is."""
    snapshot = service.snapshot
    if snapshot is None:
        return True
    active, stopped = snapshot.active, snapshot.deployment.desired is Desired.STOPPED
    return active is not None and not stopped and not provably_dead(active.identity)
