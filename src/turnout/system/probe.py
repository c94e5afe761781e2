"""Is this daemon well? Asked of this very process, and answered before a deadline.

A connection alone proves little: another program may have the port, and a stopped or deadlocked daemon still completes
TCP handshakes, since the kernel does. So each probe first looks at the process and at who owns the listening socket.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from turnout.core.model import Daemon
from turnout.system.probe_exec import run_check
from turnout.system.probe_http import MAX_ANSWER_BYTES, NotHttpError, get, is_within
from turnout.system.probe_http import left as _left
from turnout.system.probe_http import show as _show
from turnout.system.process import is_alive, out_of_sight, provably_dead, state_of, tree_of
from turnout.system.sockets import (
    Holder,
    accept_queue,
    accept_queues,
    accepted_at,
    has_any,
    listeners_of,
    listening_at,
    who_listens,
)

ELSEWHERE_AFTER_S: Final = 1.0
QUEUE_LOOK_S: Final = 0.02
QUEUE_WATCH_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """How to ask.

    Args:
        kind: ``alive`` opens no connection: the process runs, owns its listener, and accepts. ``tcp`` connects as well.
            ``expect`` connects, sends and waits for a match. ``http`` connects and asks for a path. ``exec`` runs a
            program that judges by its exit code. ``none`` asks only whether the process runs.
        send: what ``expect`` sends first.
        match: a regular expression (re), searched in what came so far, 64 KiB at most; with ``http`` in the body, and
            empty matches all.
        verify_owner: whether the listener must belong to the process that was started. False for a daemon of another
            user or in a container: then anything that listens there will do.
        preamble: what every connection to this daemon begins with (a PROXY header), whatever the kind.
        path: what ``http`` asks for.
        host: the Host header of ``http``; empty: the daemon's address and port.
        statuses: the answers of ``http`` that are well, as ranges with both ends.
        command: what ``exec`` runs, with ``{port}`` filled in; it is told TURNOUT_HOST, TURNOUT_PORT, TURNOUT_PID,
            TURNOUT_BOOT_ID and TURNOUT_VERSION.
        cwd: where it runs.
    """

    kind: Literal["alive", "tcp", "expect", "http", "exec", "none"] = "alive"
    send: bytes = b""
    match: bytes = b""
    verify_owner: bool = True
    preamble: bytes = b""
    path: str = "/"
    host: str = ""
    statuses: tuple[tuple[int, int], ...] = ((200, 399),)
    command: tuple[str, ...] = ()
    cwd: str = ""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The answer.

    Args:
        ok: it is well.
        reason: why, or why not, for people.
        gone: its process has ended.
        took_s: how long it took.
        found_port: it listens, but there.
    """

    ok: bool
    reason: str
    gone: bool = False
    took_s: float = 0.0
    found_port: int | None = None


_WELL: Final = ProbeResult(ok=True, reason="")


def probe(daemon: Daemon, spec: ProbeSpec, *, timeout_s: float) -> ProbeResult:
    """Check once.

    Args:
        daemon: which; without a pid there is no process to look at.
        spec: how.
        timeout_s: seconds for all of it, above 0.
    """
    began = time.monotonic()
    deadline = began + timeout_s
    result = _process(daemon, spec)
    if result.ok and spec.kind != "none":
        result = _listener(daemon, spec)
        if result.ok and spec.kind == "alive":
            result = _queue(daemon, min(deadline, began + QUEUE_WATCH_S)) or result
        elif result.ok and spec.kind == "exec":
            ok, reason = run_check(spec.command, _told(daemon), daemon.port, spec.cwd, deadline)
            result = ProbeResult(ok=ok, reason=reason)
        elif result.ok:
            result = _talk(daemon, spec, deadline)
    return replace(result, took_s=time.monotonic() - began)


def wait_healthy(
    daemon: Daemon,
    spec: ProbeSpec,
    *,
    timeout_s: float,
    interval_s: float = 0.05,
    check_timeout_s: float = 0.5,
    elsewhere_after_s: float = ELSEWHERE_AFTER_S,
    on_attempt: Callable[[ProbeResult], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> ProbeResult:
    """Check until it is well, has ended, or the time is up; answers the last check.

    Args:
        daemon: which.
        spec: how.
        timeout_s: seconds until it is given up.
        interval_s: seconds between two checks.
        check_timeout_s: seconds for one check.
        elsewhere_after_s: seconds after which one that listens on another port, and not on its own, is given up.
        on_attempt: told each answer.
        clock: seconds that never go back.
        sleep: waits so many seconds.
    """
    deadline = clock() + timeout_s
    elsewhere_since: float | None = None
    while True:
        result = probe(daemon, spec, timeout_s=max(0.001, min(check_timeout_s, deadline - clock())))
        if on_attempt:
            on_attempt(result)
        now = clock()
        if result.ok or result.gone:
            return result
        if result.found_port is None:
            elsewhere_since = None
        elif elsewhere_since is None:
            elsewhere_since = now
        elif now - elsewhere_since >= elsewhere_after_s:
            return result
        if now >= deadline:
            return replace(result, reason=f"not healthy within {round(timeout_s, 1):g} s: {result.reason}")
        sleep(min(interval_s, deadline - now))


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
    # where it shared the fixed address, somebody listens in any case
    holder = who_listens(daemon.host, daemon.port) if spec.kind != "none" and not daemon.source else None
    if holder is None or not holder.listening:
        return ProbeResult(ok=False, reason=f"pid {pid} has ended", gone=True)
    if not spec.verify_owner:
        return _WELL
    # It forked away from its session, or never got the port: from here the two look the same.
    reason = f"pid {pid} has ended, while {_name(holder)} listens on port {daemon.port}: it must stay in the foreground"
    return ProbeResult(ok=False, reason=reason, gone=True)


def _listener(daemon: Daemon, spec: ProbeSpec) -> ProbeResult:
    """Whether the sockets that get what is sent to its address are its own."""
    port = daemon.port
    heard = {listener.inode for listener in listening_at(daemon.host, port)}
    if daemon.pid <= 0 or not spec.verify_owner:
        reason = f"something listens on port {port}" if heard else f"nothing listens on port {port}"
        return ProbeResult(ok=bool(heard), reason=reason)
    if heard and has_any(daemon.pid, heard):
        return ProbeResult(ok=True, reason=f"it listens on port {port}")
    tree = tree_of(daemon.identity)
    if heard and any(has_any(pid, heard) for pid in tree):
        return ProbeResult(ok=True, reason=f"it listens on port {port}, by a child of its own")
    holder = who_listens(daemon.host, port) if heard else None
    if holder:
        return ProbeResult(ok=False, reason=_not_its_own(daemon, holder))
    return _elsewhere(daemon, tree)


def _not_its_own(daemon: Daemon, holder: Holder) -> str:
    if holder.pid:
        return f"port {daemon.port} belongs to {_name(holder)}, which is no child of pid {daemon.pid}"
    return (
        f"cannot see whether port {daemon.port} belongs to pid {daemon.pid} or to {_name(holder)}: verify_owner = false"
    )


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
    """A fault if its accept queue stays full and nobody is accepted, for as long as may be watched.

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
            return ProbeResult(
                ok=False, reason=f"{queue[0]} connections wait on port {daemon.port}, and it accepts none"
            )
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


def _talk(daemon: Daemon, spec: ProbeSpec, deadline: float) -> ProbeResult:
    """Connect and, for ``expect`` and ``http``, ask and judge the answer; one deadline for all of it."""
    heard = b""
    try:
        source = (daemon.source, 0) if daemon.source else None
        with socket.create_connection((daemon.host, daemon.port), _left(deadline), source) as sock:
            if sock.getsockname() == sock.getpeername():  # RFC 9293, 3.5: with nobody listening, TCP can meet itself
                return ProbeResult(ok=False, reason=f"nothing listens on port {daemon.port}")
            sock.sendall(spec.preamble)
            if spec.kind == "tcp":
                return ProbeResult(ok=True, reason=f"port {daemon.port} accepts connections")
            pattern = re.compile(spec.match)
            if spec.kind == "http":
                return _http(sock, daemon, spec, pattern, deadline)
            sock.settimeout(_left(deadline))
            sock.sendall(spec.send)
            while len(heard) < MAX_ANSWER_BYTES:
                sock.settimeout(_left(deadline))
                data = sock.recv(MAX_ANSWER_BYTES - len(heard))
                heard += data
                if pattern.search(heard):
                    return ProbeResult(ok=True, reason="it answered as expected")
                if not data:
                    return ProbeResult(ok=False, reason=f"it closed the connection after {_show(heard)}")
    except TimeoutError:
        return ProbeResult(ok=False, reason=f"it did not answer in time, only {_show(heard)}")
    except re.error as error:
        return ProbeResult(ok=False, reason=f"match is no regular expression: {error}")
    except OSError as error:
        return ProbeResult(ok=False, reason=f"port {daemon.port}: {error.strerror or error}")
    return ProbeResult(ok=False, reason=f"no match in {len(heard)} bytes, which begin with {_show(heard)}")


def _http(
    sock: socket.socket, daemon: Daemon, spec: ProbeSpec, pattern: re.Pattern[bytes], deadline: float
) -> ProbeResult:
    try:
        answer = get(sock, spec.path, spec.host or _authority(daemon), deadline)
    except NotHttpError as error:
        return ProbeResult(ok=False, reason=str(error))
    except TimeoutError:
        return ProbeResult(ok=False, reason=f"no whole answer to GET {spec.path} in time")
    if not is_within(answer.status, spec.statuses):
        return ProbeResult(ok=False, reason=f"GET {spec.path} answered {answer.status}: {_show(answer.body)}")
    if not pattern.search(answer.body):
        return ProbeResult(ok=False, reason=f"GET {spec.path}: no match in {_show(answer.body)}")
    return ProbeResult(ok=True, reason=f"GET {spec.path} answered {answer.status}")


def _authority(daemon: Daemon) -> str:
    host = f"[{daemon.host}]" if ":" in daemon.host else daemon.host
    return f"{host}:{daemon.port}"


def _told(daemon: Daemon) -> Mapping[str, str]:
    """What a check that is a program learns of the daemon, beside its port."""
    return {
        "TURNOUT_HOST": daemon.host,
        "TURNOUT_PID": str(daemon.pid),
        "TURNOUT_BOOT_ID": daemon.boot_id,
        "TURNOUT_VERSION": daemon.version,
    }


def _name(holder: Holder) -> str:
    return f"pid {holder.pid} ({holder.command})" if holder.pid else holder.command
