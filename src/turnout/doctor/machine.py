"""What the machine allows: descriptors, pipes, the accept queue, ports; and which plane can run here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from turnout.config.settings import Settings
from turnout.config.validation import demands
from turnout.core.addresses import ephemeral_range
from turnout.core.connection_policy import DIRECT
from turnout.doctor.context import Context, ServiceContext
from turnout.doctor.direct_planes import why_no_better
from turnout.doctor.finding import CheckResult, bad, ok, warn
from turnout.errors import ConfigError
from turnout.planes.selection import SelectedPlane, lacking, select_plane
from turnout.system.net.listener import BACKLOG

FEW_DESCRIPTORS = 4096  # two for a client, two for a pipe that is leased
PLENTY = 65536
FULL = 0.8
PIPE_PAGES = 16384  # the kernel's default of fs.pipe-user-pages-soft, pipe(7)
PIPE_BYTES = 65536


def check_descriptors(context: Context) -> Iterator[CheckResult]:
    """RLIMIT_NOFILE: of the router that runs, else of a router that would be started from here."""
    if not context.router_processes:
        hard = context.nofile[1]
        if 0 <= hard < FEW_DESCRIPTORS:
            yield warn(
                f"a router started here could open {hard} files: about {hard // 4} clients", f"ulimit -n {PLENTY}"
            )
        else:
            yield ok(f"a router started here may open {'any number of' if hard < 0 else hard} files")
    for record in context.router_processes:
        pid = record.identity.pid
        limit, used = _limit(context.proc / str(pid)), _used(context.proc / str(pid))
        if limit is None:
            yield ok(f"the limit of router {pid} cannot be seen from here")
        elif used is not None and used > limit * FULL:
            more = max(PLENTY, 2 * limit)
            evidence = f"router {pid} has {used} of {limit} files open: it will soon turn clients away"
            yield bad(evidence, f"prlimit --pid {pid} --nofile={more}:{more}")
        elif limit < FEW_DESCRIPTORS:
            evidence = f"router {pid} may open {limit} files: about {limit // 4} clients"
            yield warn(evidence, f"prlimit --pid {pid} --nofile={PLENTY}:{PLENTY}")
        else:
            yield ok(f"router {pid} has {used if used is not None else '?'} of {limit} files open")


def check_pipes(context: Context) -> Iterator[CheckResult]:
    """Large transfers go through pipes; beyond the limit of a user they shrink to one page (pipe(7))."""
    pages = context.sysctl("fs.pipe-user-pages-soft")
    largest = context.sysctl("fs.pipe-max-size")
    if context.uid != 0 and pages and pages.isdigit() and 0 < int(pages) < PIPE_PAGES:
        evidence = f"fs.pipe-user-pages-soft is {pages}: pipes shrink after {int(pages) // 16} large transfers at once"
        yield warn(evidence, f"sysctl -w fs.pipe-user-pages-soft={PIPE_PAGES}")
    elif largest and largest.isdigit() and int(largest) < PIPE_BYTES:
        evidence = f"fs.pipe-max-size is {largest}: large transfers are slow"
        yield warn(evidence, f"sysctl -w fs.pipe-max-size={1 << 20}")
    else:
        yield ok(f"fs.pipe-user-pages-soft is {pages or 'unknown'}")


def check_backlog(context: Context) -> Iterator[CheckResult]:
    """net.core.somaxconn cuts the queue in which clients wait while a router is replaced (listen(2))."""
    value = context.sysctl("net.core.somaxconn")
    if value and value.isdigit() and int(value) < BACKLOG:
        evidence = f"net.core.somaxconn is {value}: no more clients than that can wait while a router is replaced"
        yield warn(evidence, f"sysctl -w net.core.somaxconn={BACKLOG}")
    else:
        yield ok(f"net.core.somaxconn is {value or 'unknown'}")


def check_ports(context: Context) -> Iterator[CheckResult]:
    """A fixed address in the ephemeral range can be taken by any outgoing connection while turnout is down."""
    ephemeral = ephemeral_range(context.sysctl("net.ipv4.ip_local_port_range") or "")
    reserved = context.sysctl("net.ipv4.ip_local_reserved_ports") or ""
    if ephemeral is None:
        yield ok("the ephemeral range is unknown here")
        return
    low, high = ephemeral
    listen = {address.port for service in context.services if service.settings for address in service.settings.listen}
    unreserved = [str(port) for port in sorted(listen - _ports(reserved)) if low <= port <= high]
    if unreserved:
        wanted = ",".join([*([reserved] if reserved else []), *unreserved])
        lies = f"port {', '.join(unreserved)} lies in the ephemeral range {low}-{high}"
        evidence = f"{lies}: while turnout is down any outgoing connection may take it"
        yield warn(evidence, f"sysctl -w net.ipv4.ip_local_reserved_ports={wanted}")
    else:
        yield ok(f"no fixed address lies unreserved in the ephemeral range {low}-{high}")


def check_plane(context: Context, service: ServiceContext) -> Iterator[CheckResult]:
    """How bytes get to the daemon, and why not in a better way."""
    if service.settings is None:
        return
    routed = context.routed(service.name)
    chosen, trouble = routed.get("plane"), routed.get("plane_trouble")
    if chosen and trouble:
        hint = f'look at it: turnout status -v{service.flag}; if it is to stay so, plane = "relay" says it'
        yield warn(f"plane {chosen} relays at the moment: {trouble}", hint)
        return
    try:
        reason = routed.get("plane_reason")
        plane = SelectedPlane(chosen, reason) if chosen and reason else _would_be(context, service.settings)
    except ConfigError as error:
        yield bad(error.message, f"turnout up{service.flag} --plane auto, then turnout router --replace")
        return
    better = why_no_better(context, service.settings) if plane.name == "relay" else ""
    splice = "large transfers by splice(2)" if hasattr(os, "splice") else "no splice(2) here: every byte is copied"
    if chosen in DIRECT:
        how = "the kernel hands connections straight to the daemon, and no byte passes the router"
    else:
        how = f"{chosen} carries the bytes; {splice}" if chosen else f"nothing runs; {splice}"
    yield ok(f"{how}, plane = {service.settings.plane}: {plane.reason}{better}")


def _would_be(context: Context, settings: Settings) -> SelectedPlane:
    """The plane that a router would choose."""
    asked, part = demands(settings), settings.takes_part
    return select_plane(settings.plane, lacks=lacking(), demands=asked, takes_part=part, tried=context.group_lacks)


def _ports(text: str) -> set[int]:
    """``1,5-7`` as the kernel writes it (ip-sysctl)."""
    ports: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        if low.isdigit():
            ports.update(range(int(low), int(high if high.isdigit() else low) + 1))
    return ports


def _limit(process: Path) -> int | None:
    try:
        lines = (process / "limits").read_text().splitlines()
    except OSError:
        return None
    soft = next((line.split()[3] for line in lines if line.startswith("Max open files")), "")
    return int(soft) if soft.isdigit() else None


def _used(process: Path) -> int | None:
    try:
        return sum(1 for _ in (process / "fd").iterdir())
    except OSError:
        return None
