"""What the machine allows: descriptors, pipes, the accept queue, ports; and which plane can run here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from turnout.config import Settings
from turnout.config_check import demands
from turnout.doctor.finding import Found, bad, ok, warn
from turnout.doctor.scene import Scene
from turnout.doctor.steering import why_no_better
from turnout.errors import ConfigError
from turnout.listener import BACKLOG
from turnout.planes.choose import Chosen, choose, lacking
from turnout.planes.policy import DIRECT

FEW_DESCRIPTORS = 4096  # two for a client, two for a pipe that is leased
PLENTY = 65536
FULL = 0.8
PIPE_PAGES = 16384  # the kernel's default of fs.pipe-user-pages-soft, pipe(7)
PIPE_BYTES = 65536


def check_descriptors(scene: Scene) -> Iterator[Found]:
    """RLIMIT_NOFILE: of the router that runs, else of the one that would be started from here."""
    routers = scene.router_processes
    if not routers:
        _, hard = scene.nofile
        if 0 <= hard < FEW_DESCRIPTORS:
            yield warn(
                "descriptors",
                f"a router started here could open {hard} files: about {hard // 4} clients",
                f"ulimit -n {PLENTY}",
            )
        else:
            yield ok("descriptors", f"a router started here may open {'any number of' if hard < 0 else hard} files")
    for record in routers:
        pid = record.identity.pid
        limit, used = _limit(scene.proc / str(pid)), _used(scene.proc / str(pid))
        if limit is None:
            yield ok("descriptors", f"the limit of router {pid} cannot be seen from here")
        elif used is not None and used > limit * FULL:
            yield bad(
                "descriptors",
                f"router {pid} has {used} of {limit} files open: it will soon turn clients away",
                f"prlimit --pid {pid} --nofile={max(PLENTY, 2 * limit)}:{max(PLENTY, 2 * limit)}",
            )
        elif limit < FEW_DESCRIPTORS:
            yield warn(
                "descriptors",
                f"router {pid} may open {limit} files: about {limit // 4} clients",
                f"prlimit --pid {pid} --nofile={PLENTY}:{PLENTY}",
            )
        else:
            yield ok("descriptors", f"router {pid} has {used if used is not None else '?'} of {limit} files open")


def check_pipes(scene: Scene) -> Iterator[Found]:
    """Large transfers go through pipes; beyond the limit of a user they shrink to one page (pipe(7))."""
    pages = scene.sysctl("fs.pipe-user-pages-soft")
    largest = scene.sysctl("fs.pipe-max-size")
    if scene.uid != 0 and pages and pages.isdigit() and 0 < int(pages) < PIPE_PAGES:
        yield warn(
            "pipes",
            f"fs.pipe-user-pages-soft is {pages}: pipes shrink after {int(pages) // 16} large transfers at once",
            f"sysctl -w fs.pipe-user-pages-soft={PIPE_PAGES}",
        )
    elif largest and largest.isdigit() and int(largest) < PIPE_BYTES:
        yield warn(
            "pipes", f"fs.pipe-max-size is {largest}: large transfers are slow", f"sysctl -w fs.pipe-max-size={1 << 20}"
        )
    else:
        yield ok("pipes", f"fs.pipe-user-pages-soft is {pages or 'unknown'}")


def check_backlog(scene: Scene) -> Iterator[Found]:
    """net.core.somaxconn cuts the queue in which clients wait while a router is replaced (listen(2))."""
    value = scene.sysctl("net.core.somaxconn")
    if value and value.isdigit() and int(value) < BACKLOG:
        yield warn(
            "backlog",
            f"net.core.somaxconn is {value}: no more clients than that can wait while a router is replaced",
            f"sysctl -w net.core.somaxconn={BACKLOG}",
        )
    else:
        yield ok("backlog", f"net.core.somaxconn is {value or 'unknown'}")


def check_ports(scene: Scene) -> Iterator[Found]:
    """A fixed address in the ephemeral range can be taken by any outgoing connection while turnout is down."""
    span = (scene.sysctl("net.ipv4.ip_local_port_range") or "").split()
    reserved = scene.sysctl("net.ipv4.ip_local_reserved_ports") or ""
    if len(span) != 2 or not all(word.isdigit() for word in span):
        yield ok("ports", "the ephemeral range is unknown here")
        return
    low, high = int(span[0]), int(span[1])
    kept = _ports(reserved)
    open_to_all = sorted(
        {
            address.port
            for subject in scene.subjects
            if subject.settings
            for address in subject.settings.listen
            if low <= address.port <= high and address.port not in kept
        }
    )
    if open_to_all:
        wanted = ",".join([*([reserved] if reserved else []), *map(str, open_to_all)])
        yield warn(
            "ports",
            f"port {', '.join(map(str, open_to_all))} lies in the ephemeral range {low}-{high}: while turnout is down"
            " any outgoing connection may take it",
            f"sysctl -w net.ipv4.ip_local_reserved_ports={wanted}",
        )
    else:
        yield ok("ports", f"no fixed address lies unreserved in the ephemeral range {low}-{high}")


def check_plane(scene: Scene) -> Iterator[Found]:
    """How bytes get to the daemon, and why not in a better way."""
    told: dict[str, dict[str, str]] = scene.router.get("services", {}) if scene.router else {}
    for subject in scene.subjects:
        if subject.settings is None:
            continue
        said = told.get(subject.name, {})
        chosen, trouble = said.get("plane"), said.get("plane_trouble")
        if chosen and trouble:
            yield warn(
                "plane",
                f"plane {chosen} relays at the moment: {trouble}",
                f'look at it: turnout status -v{subject.flag}; if it is to stay so, plane = "relay" says it',
                service=subject.name,
            )
            continue
        try:
            reason = said.get("plane_reason")
            plane = Chosen(chosen, reason) if chosen and reason else _would_be(scene, subject.settings)
        except ConfigError as error:
            mend = f"turnout up{subject.flag} --plane auto, then turnout router --replace"
            yield bad("plane", error.message, mend, service=subject.name)
            continue
        better = why_no_better(scene, subject.settings) if plane.name == "relay" else ""
        splice = "large transfers by splice(2)" if hasattr(os, "splice") else "no splice(2) here: every byte is copied"
        if chosen in DIRECT:
            how = "the kernel hands connections straight to the daemon, and no byte passes the router"
        else:
            how = f"{chosen} carries the bytes; {splice}" if chosen else f"nothing runs; {splice}"
        yield ok("plane", f"{how}, plane = {subject.settings.plane}: {plane.reason}{better}", service=subject.name)


def _would_be(scene: Scene, settings: Settings) -> Chosen:
    """The plane that a router would choose."""
    asked, part = demands(settings), settings.takes_part
    return choose(settings.plane, lacks=lacking(), demands=asked, takes_part=part, tried=scene.group_lacks)


def _ports(text: str) -> set[int]:
    """``1,5-7`` as the kernel writes it (ip-sysctl)."""
    found: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        if low.isdigit():
            found.update(range(int(low), int(high if high.isdigit() else low) + 1))
    return found


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
