"""The kernel's part in direct planes: what it lacks here, and what was left in it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from turnout.doctor.finding import Found, bad, ok, warn
from turnout.doctor.scene import Scene, Subject
from turnout.planes.pins import SYSTEM_BPFFS, Pins, bpffs_of, home_directory

SYS_PTRACE: Final = 19  # CAP_SYS_PTRACE, capabilities(7)


def check_steering(scene: Scene) -> Iterator[Found]:
    """What plane sk_lookup needs, where it was named; and pins that steer what nobody serves."""
    bpffs = bpffs_of(scene.home.root, mounts=scene.proc / "self/mountinfo")
    wanted = [subject for subject in scene.subjects if subject.settings and subject.settings.plane == "sk_lookup"]
    if wanted:
        found = list(_needs(scene, bpffs))
        yield from found or [ok("steering", "plane sk_lookup has all that it needs here")]
    if bpffs is not None:
        yield from _left_over(scene, bpffs, home_directory(bpffs, scene.home.root))


def _needs(scene: Scene, bpffs: Path | None) -> Iterator[Found]:
    lacks = scene.sk_lookup_lacks()
    if lacks:
        yield warn(
            "steering",
            f"plane sk_lookup relays here: {lacks}",
            'run turnout with CAP_BPF and CAP_NET_ADMIN (root has them), or say plane = "relay"',
        )
        return
    if bpffs is None:
        yield warn(
            "steering",
            "no bpf filesystem is mounted, so the kernel steers for as long as the router lives and no longer",
            f"mount -t bpf bpf {SYSTEM_BPFFS}",
        )
    scope = scene.sysctl("kernel.yama.ptrace_scope")
    if scope and scope != "0" and not _may_trace(scene.proc):
        yield warn(
            "steering",
            f"kernel.yama.ptrace_scope is {scope}: the router may not take a daemon's listener, so it relays",
            "sysctl -w kernel.yama.ptrace_scope=0",
        )


def _may_trace(proc: Path) -> bool:
    """Whether this process has CAP_SYS_PTRACE (proc_pid_status(5)), as a router would that it starts."""
    try:
        lines = (proc / "self/status").read_text().splitlines()
        effective = next(line.split()[1] for line in lines if line.startswith("CapEff:"))
    except (OSError, StopIteration):
        return False
    return bool(int(effective, 16) >> SYS_PTRACE & 1)


def _left_over(scene: Scene, bpffs: Path, directory: Path) -> Iterator[Found]:
    known = {Pins.of(bpffs, scene.home.root, subject.name).directory: subject for subject in scene.subjects}
    try:
        there = sorted(entry for entry in directory.iterdir() if entry.is_dir())
    except OSError:
        return
    for entry in there:
        subject = known.get(entry)
        if subject is not None:
            yield from _of_service(scene, subject)
        elif not scene.only:
            yield bad(
                "steering",
                f"{entry} steers connections of a service that is not here any more",
                f"rm -r -- {shlex.quote(str(entry))}",
                fix=partial(Pins(entry).remove),
            )


def _of_service(scene: Scene, subject: Subject) -> Iterator[Found]:
    """A dead router's steering goes on, which is what it is for; but somebody must come who follows the registry."""
    if scene.router_processes:
        return
    yield warn(
        "steering",
        "no router runs, and the kernel goes on handing connections to the daemon that was active last",
        f"turnout up{subject.flag}, or turnout down{subject.flag}",
        service=subject.name,
    )
