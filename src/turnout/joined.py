"""A verb waits for a candidate that joins the group at the fixed address by itself, and says why it does not."""

from __future__ import annotations

import os
import pwd
import time
from dataclasses import replace
from typing import Final

from turnout.candidate_error import candidate_error, log_tail
from turnout.core.model import Daemon
from turnout.core.slots import source_of
from turnout.errors import CandidateError
from turnout.service import Service
from turnout.system.probe import ProbeResult
from turnout.system.process import is_alive, tree_of, user_of
from turnout.system.sockets import listeners_of
from turnout.system.spawn_record import read_records

LOOK_S: Final = 0.02
UNPLACED: Final = (
    "it listens, but was not seen to accept and keep a connection that sends nothing, so its place is not known"
)
IN_USE: Final = "in use"  # EADDRINUSE, strerror(3)


def wait_joined(service: Service, daemon: Daemon, *, timeout_s: float) -> Daemon:
    """Wait until the keeper has found the daemon's place in the group; answers the daemon with it.

    Args:
        service: the daemon's.
        daemon: it was started a moment ago.
        timeout_s: seconds until it is given up.

    Raises:
        CandidateError: it has ended, runs as another user, has several listeners, or listens elsewhere or nowhere.
    """
    deadline = time.monotonic() + timeout_s
    other = ""
    while True:
        record = read_records(service.home.records).get(daemon.boot_id)
        if record and record.listener_inode:
            return replace(daemon, source=source_of(record.slot))
        ended = not is_alive(daemon.identity) or (record is not None and record.ended is not None)
        other = other or _another_user(daemon)
        check_joined(service, daemon)
        if ended:
            raise _ended(service, daemon, other)
        if time.monotonic() > deadline:
            raise _late(service, daemon, other, timeout_s)
        time.sleep(LOOK_S)


def check_joined(service: Service, daemon: Daemon) -> None:
    """See to it that the daemon has no more than one listener at the fixed address. Raises CandidateError: it has."""
    count = len(_inodes(daemon))
    if count > 1:
        raise CandidateError(
            f"the daemon has {count} listeners at {daemon.host} port {daemon.port}: new connections are directed to one"
            " listener of a daemon, and the workers behind the others would idle",
            hint="have it open one for all of its workers (one worker does); or have it take its listener: {fd}",
            detail=log_tail(service.home.log(daemon.boot_id)),
        )


def _inodes(daemon: Daemon) -> set[int]:
    found = listeners_of(tree_of(daemon.identity))
    return {listener.inode for listener in found if (listener.host, listener.port) == (daemon.host, daemon.port)}


def _another_user(daemon: Daemon) -> str:
    """Who else than we runs part of it; empty: nobody else does."""
    own = os.geteuid()
    for pid in sorted(tree_of(daemon.identity)):
        uid = user_of(pid)
        if uid not in {None, own}:
            return _name(uid or 0)
    return ""


def _name(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _of_one_user(service: Service, daemon: Daemon, other: str) -> CandidateError:
    runs = f"the daemon runs as {other}" if other else "the daemon could not listen there"
    return CandidateError(
        f"{runs}: at {daemon.host} port {daemon.port} it shares with the router, which the kernel allows to listeners"
        f" of one user alone, here {_name(os.geteuid())}, and only where each sets SO_REUSEPORT before bind(2)"
        " (socket(7))",
        hint="have it listen before it becomes another user, and set SO_REUSEPORT; else shares_port = false",
        detail=log_tail(service.home.log(daemon.boot_id)),
    )


def _ended(service: Service, daemon: Daemon, other: str) -> CandidateError:
    if other or IN_USE in log_tail(service.home.log(daemon.boot_id)).lower():
        return _of_one_user(service, daemon, other)
    return candidate_error(service, daemon, ProbeResult(ok=False, reason=f"pid {daemon.pid} has ended", gone=True))


def _late(service: Service, daemon: Daemon, other: str, timeout_s: float) -> CandidateError:
    within = f"not healthy within {timeout_s:g} s"
    if _inodes(daemon):
        return candidate_error(service, daemon, ProbeResult(ok=False, reason=f"{within}: {UNPLACED}"))
    if other:
        return _of_one_user(service, daemon, other)
    elsewhere = next(iter(listeners_of(tree_of(daemon.identity))), None)
    where = f", but at {elsewhere.host} port {elsewhere.port}" if elsewhere else ""
    reason = f"{within}: it does not listen at {daemon.host} port {daemon.port}{where}"
    return candidate_error(service, daemon, ProbeResult(ok=False, reason=reason))
