"""Finds keepers and routers whose home was removed; no verb finds them, since verbs begin at the home."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from turnout.doctor.context import Context
from turnout.doctor.finding import CheckResult, ok, warn
from turnout.system.process import descendants

KINDS = {"turnout.keeper": "keeper", "turnout.router": "router"}


class HomeProcess(msgspec.Struct, frozen=True):
    """A keeper or a router, by its command line; ``lost``: its home was removed."""

    pid: int
    kind: str
    root: Path
    lost: bool


def home_processes(uid: int, proc: Path) -> Iterator[HomeProcess]:
    """The keepers and routers of one user that name their home on the command line, as turnout starts them."""
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if entry.stat().st_uid != uid:
                continue
            words = [os.fsdecode(word) for word in (entry / "cmdline").read_bytes().split(b"\0")]
        except OSError:  # it has ended
            continue
        for module, root in itertools.pairwise(words):
            if module in KINDS and root.startswith("/") and words[words.index(module) - 1] == "-m":
                yield HomeProcess(int(entry.name), KINDS[module], Path(root), _is_lost(entry, Path(root)))
                break


def check_lost_homes(context: Context) -> Iterator[CheckResult]:
    """Report the keepers and routers of this user that still run, and hold addresses, for a removed home."""
    lost = [process for process in home_processes(context.uid, context.proc) if process.lost]
    keepers = {process.pid for process in lost if process.kind == "keeper"}
    below = {pid for keeper in keepers for pid in descendants(keeper)}
    for process in lost:
        if process.pid in below:
            continue  # its keeper ends it
        ends = "with its daemons" if process.kind == "keeper" else "once its connections have ended"
        runs = f"the {process.kind} of {process.root} (pid {process.pid}) runs, and that home was removed"
        yield warn(f"{runs}: no verb reaches it; SIGTERM ends it {ends}", f"kill {process.pid}")
    if not lost:
        yield ok("no process of a home that was removed")


def _is_lost(entry: Path, root: Path) -> bool:
    """Whether the process finds nothing by that name, or has a directory of that name open that was removed.

    Asked through /proc/PID/root: it may see other mounts than this process (a container).
    """
    try:
        (entry / "root" / str(root).lstrip("/")).stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    removed = f"{root} (deleted)"  # proc_pid_fd(5)
    try:
        links = [entry / "cwd", *(entry / "fd").iterdir()]
    except OSError:
        return False
    return any(_leads_to(link) == removed for link in links)


def _leads_to(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""
