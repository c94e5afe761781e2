"""Checks once whether a daemon is well: this very process, and before a deadline.

A connection alone proves little: another program may have the port, and a stopped or deadlocked daemon still completes
TCP handshakes, since the kernel does. So each probe first looks at the process and at who owns the listening socket.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Collection, Mapping
from enum import Enum, auto
from typing import Final, Literal

import msgspec

from turnout.core.acceptors import Waited
from turnout.core.addresses import format_address
from turnout.core.model import Daemon
from turnout.system.net.sockets import (
    PortHolder,
    accept_queue,
    accept_queues,
    accepted_at,
    has_any,
    listeners_of,
    listening_at,
    may_be_looked_at,
    who_listens,
)
from turnout.system.probes.accept import QUEUE_LOOK_S, is_accepted, waited
from turnout.system.probes.connect import Door, connect, shut
from turnout.system.probes.exec import run_check
from turnout.system.probes.http import MAX_ANSWER_BYTES, NotHttpError, get, is_within
from turnout.system.probes.http import left as _left
from turnout.system.probes.http import show as _show
from turnout.system.process import is_alive, out_of_sight, provably_dead, state_of, tree_of

QUEUE_WATCH_S: Final = 0.5


class Proof(Enum):
    """How it is shown that a daemon accepts connections, beside its listener and its accept queue."""

    NONE = auto()
    """Not at all: a daemon that is in service may be busy with a client at this moment."""
    KERNEL = auto()
    """The kernel shows a process that waits on its listener. ``tcp`` has a connection of its own, that is accepted."""
    CONNECTION = auto()
    """As ``KERNEL``, else by a connection that is accepted, also with ``alive``."""


class ProbeSpec(msgspec.Struct, frozen=True):
    """How to ask.

    Args:
        kind: ``alive``: the process runs, owns its listener, and waits for connections on it; a connection is opened
            only before a switch, where the kernel does not show the latter. ``listening`` is the same, and opens no
            connection ever. ``tcp`` connects as well. ``expect`` connects, sends and waits for a match. ``http``
            connects and asks for a path. ``exec`` runs a program that judges by its exit code. ``none`` asks only
            whether the process runs.
        send: what ``expect`` sends first.
        match: a regular expression (re), searched in what came so far, 64 KiB at most; with ``http`` in the body, and
            empty matches all.
        verify_owner: whether the listener must belong to the process that was started. False for a daemon of another
            user or in a container: then anything that listens there will do.
        preamble: what every connection to this daemon begins with (a PROXY header), whatever the kind.
        path: what ``http`` asks for.
        host: the Host header of ``http``; empty: the daemon's address and port.
        statuses: the answers of ``http`` that are well, as ranges with both ends.
        command: what ``exec`` runs, with ``{port}`` filled in; it gets TURNOUT_HOST, TURNOUT_PORT, TURNOUT_PID,
            TURNOUT_BOOT_ID and TURNOUT_VERSION.
        cwd: where it runs.
        environ: the environment below that; None: this process's.
        door: how a connection reaches a daemon that shares the fixed address.
    """

    kind: Literal["alive", "listening", "tcp", "expect", "http", "exec", "none"] = "alive"
    send: bytes = b""
    match: bytes = b""
    verify_owner: bool = True
    preamble: bytes = b""
    path: str = "/"
    host: str = ""
    statuses: tuple[tuple[int, int], ...] = ((200, 399),)
    command: tuple[str, ...] = ()
    cwd: str = ""
    environ: Mapping[str, str] | None = None
    door: Door = shut


class ProbeResult(msgspec.Struct, frozen=True):
    """The answer.

    Args:
        ok: it is well.
        reason: why, or why not, for people.
        gone: its process has ended.
        proven: whether a listener that gets what is sent to its address is the daemon's own; None: that was not looked
            at, or is not to be (``verify_owner`` False).
        took_s: how long it took.
        found_port: it listens, but there.
        owner_hidden: something listens at its address, and its own descriptors may not be read.
        waited: whether a process waits on its listener; None: that was not asked.
    """

    ok: bool
    reason: str
    gone: bool = False
    proven: bool | None = None
    took_s: float = 0.0
    found_port: int | None = None
    owner_hidden: bool = False
    waited: Waited | None = None


_WELL: Final = ProbeResult(ok=True, reason="")


def probe(daemon: Daemon, spec: ProbeSpec, *, timeout_s: float, proof: Proof = Proof.NONE) -> ProbeResult:
    """Check once.

    Args:
        daemon: which; without a pid there is no process to look at.
        spec: how.
        timeout_s: seconds for all of it, above 0.
        proof: what shows that it accepts connections, for ``alive``, ``listening`` and ``tcp``; the other kinds need
            an answer.
    """
    began = time.monotonic()
    deadline = began + timeout_s
    result = _process(daemon, spec)
    if result.ok and spec.kind != "none":
        result = look_at_listener(daemon, spec)
        proven = result.proven
        if result.ok and spec.kind in {"alive", "listening"}:
            result = _queue(daemon, min(deadline, began + QUEUE_WATCH_S)) or result
            if result.ok and proof is not Proof.NONE:
                may_connect = proof is Proof.CONNECTION and spec.kind == "alive"
                result = _accepts(daemon, spec, result, deadline, may_connect=may_connect)
        elif result.ok and spec.kind == "exec":
            ok, reason = run_check(spec.command, daemon, spec.cwd, deadline, environ=spec.environ)
            result = ProbeResult(ok=ok, reason=reason)
        elif result.ok:
            result = _talk(daemon, spec, deadline, prove=proof is not Proof.NONE)
        result = msgspec.structs.replace(result, proven=proven)
    return msgspec.structs.replace(result, took_s=time.monotonic() - began)


def _process(daemon: Daemon, spec: ProbeSpec) -> ProbeResult:
    """Whether the process runs and is not stopped, where there is one to look at."""
    identity = daemon.identity
    if identity.pid <= 0:
        return _WELL
    if out_of_sight(identity):
        reason = f"pid {identity.pid} is in another pid namespace and cannot be seen from here (verify_owner = false)"
        return ProbeResult(ok=not spec.verify_owner, reason=reason)
    if not is_alive(identity):
        return _ended(daemon, spec)
    try:
        state = state_of(identity.pid)
    except PermissionError:  # hidepid, proc(5)
        return _WELL
    except ProcessLookupError:
        return _ended(daemon, spec)
    if state == "T":
        return ProbeResult(ok=False, reason=f"pid {identity.pid} is stopped (SIGSTOP)")
    if state == "t":
        return ProbeResult(ok=False, reason=f"pid {identity.pid} is held by a debugger")
    return _WELL


def _ended(daemon: Daemon, spec: ProbeSpec) -> ProbeResult:
    """Its process is gone; it may have gone to the background, and then something of it still listens."""
    pid = daemon.pid
    if not provably_dead(daemon.identity):
        return ProbeResult(ok=False, reason=f"pid {pid} is not to be seen")
    # where it shared the fixed address, there is a listener in any case
    holder = who_listens(daemon.host, daemon.port) if spec.kind != "none" and not daemon.source else None
    if holder is None or not holder.listening:
        return ProbeResult(ok=False, reason=f"pid {pid} has ended", gone=True)
    if not spec.verify_owner:
        return _WELL
    if not daemon.owned:
        reason = f"pid {pid} has ended, and {_name(holder)} listens on port {daemon.port} now, another process"
        return ProbeResult(ok=False, reason=reason, gone=True)
    # It forked away from its session, or never got the port: from here the two look the same.
    reason = f"pid {pid} has ended, while {_name(holder)} listens on port {daemon.port}: it must stay in the foreground"
    return ProbeResult(ok=False, reason=reason, gone=True)


def look_at_listener(daemon: Daemon, spec: ProbeSpec) -> ProbeResult:
    """Whether the daemon listens at its address, found without a connection to it; ``proven`` is set.

    A daemon that lives and whose descriptors may no longer be read (prctl(2), PR_SET_DUMPABLE) proves neither.
    """
    result = _listener(daemon, spec)
    looked = daemon.pid > 0 and spec.verify_owner and not result.owner_hidden
    return msgspec.structs.replace(result, proven=result.ok) if looked else result


def _listener(daemon: Daemon, spec: ProbeSpec) -> ProbeResult:
    """Whether the sockets that get what is sent to its address are its own."""
    port = daemon.port
    inodes = {listener.inode for listener in listening_at(daemon.host, port)}
    if daemon.pid <= 0 or not spec.verify_owner:
        reason = f"something listens on port {port}" if inodes else f"nothing listens on port {port}"
        return ProbeResult(ok=bool(inodes), reason=reason)
    if inodes and has_any(daemon.pid, inodes):
        return ProbeResult(ok=True, reason=f"it listens on port {port}")
    tree = tree_of(daemon.identity)
    if inodes and any(has_any(pid, inodes) for pid in tree):
        return ProbeResult(ok=True, reason=f"it listens on port {port}, by a child of its own")
    holder = who_listens(daemon.host, port) if inodes else None
    if daemon.source and all(map(may_be_looked_at, {daemon.pid, *tree})):
        return ProbeResult(ok=False, reason=f"it has no listener at {daemon.host} port {port} any more")
    if holder is None:
        return _elsewhere(daemon, tree)
    if holder.pid:
        reason = f"port {port} belongs to {_name(holder)}, which is no child of pid {daemon.pid}"
        return ProbeResult(ok=False, reason=reason)
    reason = f"cannot see whether port {port} belongs to pid {daemon.pid} or to {_name(holder)}: verify_owner = false"
    hidden = not all(may_be_looked_at(pid) for pid in {daemon.pid, *tree})
    return ProbeResult(ok=False, reason=reason, owner_hidden=hidden)


def _elsewhere(daemon: Daemon, tree: Collection[int]) -> ProbeResult:
    """It does not listen where it should; the port where it does is named."""
    listeners = listeners_of(tree)
    for listener in listeners:
        if listener.port == daemon.port:
            reason = f"it listens on {listener.host} port {listener.port}, which {daemon.host} does not reach"
            return ProbeResult(ok=False, reason=reason)
    for listener in listeners:
        reason = f"it listens on port {listener.port}, not on port {daemon.port}"
        return ProbeResult(ok=False, reason=reason, found_port=listener.port)
    return ProbeResult(ok=False, reason=f"it does not listen on port {daemon.port}")


def _queue(daemon: Daemon, deadline: float) -> ProbeResult | None:
    """A fault if its accept queue stays full and no connection is accepted, for as long as may be watched.

    A full queue alone is none: a burst fills it for a moment, and a small backlog is full whenever it is busy.
    """
    accepted: frozenset[tuple[str, int]] | None = None
    while True:
        queue = _fullest(daemon)
        if queue is None or queue[0] <= queue[1]:
            return None
        before, accepted = accepted, accepted_at(daemon.port)
        if before is not None and accepted - before:
            return None
        if time.monotonic() + QUEUE_LOOK_S > deadline and before is not None:
            reason = f"{queue[0]} connections wait on port {daemon.port}, and it accepts none"
            return ProbeResult(ok=False, reason=reason)
        time.sleep(QUEUE_LOOK_S)


def _fullest(daemon: Daemon) -> tuple[int, int] | None:
    """Its accept queue, and how much may be in it; at an address that it shares with others, its own if it is full."""
    if not daemon.source:
        return accept_queue(daemon.host, daemon.port)
    full = [queue for queue in accept_queues(daemon.host, daemon.port) if queue.waiting > queue.most]
    # whose it is takes a walk through all descriptors of a daemon, which may have thousands of clients
    own = {listener.inode for listener in listeners_of(tree_of(daemon.identity))} if full else set[int]()
    queues = [(queue.waiting, queue.most) for queue in full if queue.inode in own]
    return max(queues, key=lambda queue: queue[0] - queue[1], default=None)


def _accepts(
    daemon: Daemon, spec: ProbeSpec, result: ProbeResult, deadline: float, *, may_connect: bool
) -> ProbeResult:
    """Whether the kernel shows that the daemon waits on its listener, or a connection is accepted."""
    waits = waited(daemon, verify_owner=spec.verify_owner)
    if waits is Waited.YES:
        return msgspec.structs.replace(result, waited=waits)
    if may_connect:
        connected = _talk(daemon, msgspec.structs.replace(spec, kind="tcp"), deadline, prove=True)
        return msgspec.structs.replace(connected, waited=waits)
    seen = "does not accept connections" if waits is Waited.NO else "was not seen to accept connections"
    return ProbeResult(ok=False, reason=f"it listens on port {daemon.port}, but {seen}", waited=waits)


def _talk(daemon: Daemon, spec: ProbeSpec, deadline: float, *, prove: bool = False) -> ProbeResult:
    """Connect and, for ``expect`` and ``http``, ask and judge the answer; one deadline for all of it.

    ``prove``: with ``tcp`` the connection has to be accepted by a process, and not by the kernel alone.
    """
    received = b""
    try:
        with connect(daemon, _left(deadline), spec.door) as sock:
            if sock.getsockname() == sock.getpeername():  # RFC 9293, 3.5: without a listener, TCP can meet itself
                return ProbeResult(ok=False, reason=f"nothing listens on port {daemon.port}")
            sock.sendall(spec.preamble)
            if spec.kind == "tcp" and prove:
                within = min(deadline, time.monotonic() + QUEUE_WATCH_S)
                accepted = is_accepted(sock, daemon, within, still_listens=lambda: _listener(daemon, spec).ok)
                if accepted is False or (
                    accepted is None and waited(daemon, verify_owner=spec.verify_owner) is Waited.NO
                ):
                    reason = f"it listens on port {daemon.port}, but did not accept a connection"
                    return ProbeResult(ok=False, reason=reason)
            if spec.kind == "tcp":
                return ProbeResult(ok=True, reason=f"port {daemon.port} accepts connections")
            pattern = re.compile(spec.match)
            if spec.kind == "http":
                return _http(sock, daemon, spec, pattern, deadline)
            sock.settimeout(_left(deadline))
            sock.sendall(spec.send)
            while len(received) < MAX_ANSWER_BYTES:
                sock.settimeout(_left(deadline))
                data = sock.recv(MAX_ANSWER_BYTES - len(received))
                received += data
                if pattern.search(received):
                    return ProbeResult(ok=True, reason="it answered as expected")
                if not data:
                    return ProbeResult(ok=False, reason=f"it closed the connection after {_show(received)}")
    except TimeoutError:
        late = f"it did not answer in time, only {_show(received)}"
        if spec.kind == "tcp":
            late = f"it listens on port {daemon.port}, but did not accept a connection in time"
        return ProbeResult(ok=False, reason=late)
    except re.error as error:
        return ProbeResult(ok=False, reason=f"match is no regular expression: {error}")
    except OSError as error:
        return ProbeResult(ok=False, reason=f"port {daemon.port}: {error.strerror or error}")
    return ProbeResult(ok=False, reason=f"no match in {len(received)} bytes, which begin with {_show(received)}")


def _http(
    sock: socket.socket, daemon: Daemon, spec: ProbeSpec, pattern: re.Pattern[bytes], deadline: float
) -> ProbeResult:
    try:
        answer = get(sock, spec.path, spec.host or format_address(daemon.host, daemon.port), deadline)
    except NotHttpError as error:
        return ProbeResult(ok=False, reason=str(error))
    except TimeoutError:
        return ProbeResult(ok=False, reason=f"no whole answer to GET {spec.path} in time")
    if not is_within(answer.status, spec.statuses):
        return ProbeResult(ok=False, reason=f"GET {spec.path} answered {answer.status}: {_show(answer.body)}")
    if not pattern.search(answer.body):
        return ProbeResult(ok=False, reason=f"GET {spec.path}: no match in {_show(answer.body)}")
    return ProbeResult(ok=True, reason=f"GET {spec.path} answered {answer.status}")


def _name(holder: PortHolder) -> str:
    return f"pid {holder.pid} ({holder.command})" if holder.pid else holder.command
