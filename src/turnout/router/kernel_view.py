"""What a direct plane asks of the machine: the listeners and connections of daemons, by their boot.

The kernel knows every connection on the fixed addresses, but not whose it is; that is found among the descriptors of
the daemons' processes, once for each connection. How long a look takes decides how often one is made: it never costs
more than a tenth of the router's time.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from turnout.core.addresses import format_address
from turnout.core.model import Daemon
from turnout.core.slots import SOURCE_PREFIX
from turnout.errors import SteeringError
from turnout.planes.plane import ConnectionInfo, Upstream
from turnout.router.socket_owners import Address, Holder, Owners, Processes
from turnout.system.net import connections, sockets
from turnout.system.net.connections import Connection, connections_at, handshakes_at, is_answered
from turnout.system.net.sockets import Queue
from turnout.system.net.tcp import is_loopback
from turnout.system.pidfd import socket_of
from turnout.system.process import is_suspended, out_of_sight

FRESH_S: Final = 0.05
LISTENERS_AGAIN_S: Final = 0.25
LISTENERS_SHARE: Final = 100  # likewise for whose a listener is
LOOK_SHARE: Final = 10  # a look is good for so many times as long as it took
UNCLAIMED_S: Final = 1.0  # for a call of accept(2) to give a process what it took from the queue
ROOM_AGAIN: Final = 0.5  # a queue that was full has room again once it is filled to no more than this


@dataclass(slots=True)
class _Known:
    """One connection as it was at the last look."""

    boot_id: str
    since: float
    last: Connection
    answered: bool


@dataclass(frozen=True, slots=True)
class SharedAddress:
    """What the router knows of an address that it shares with daemons.

    Args:
        listeners_of: answers the inodes of the listeners that a daemon has there, as far as they are known.
        relays: answers how many connections of a daemon the plane relays.
        relayed_from: answers from where the plane is connected to daemons there: it counts those.
    """

    listeners_of: Callable[[str], Collection[int]] = lambda _boot_id: ()
    relays: Callable[[str], int] = lambda _boot_id: 0
    relayed_from: Callable[[], Collection[Address]] = tuple


NOT_SHARED: Final = SharedAddress()


class KernelView:
    """The kernel as one service's plane sees it (:class:`turnout.planes.direct.steering.Kernel`). Owns no descriptor.

    Args:
        shared: of a fixed address at which daemons listen themselves.
        fresh_s: for so many seconds a look is good at least; 0: each question is a look of its own.
    """

    def __init__(
        self,
        addresses: Callable[[], Sequence[Address]],
        daemons: Callable[[], Mapping[str, Daemon]],
        *,
        owners: Owners | None = None,
        shared: SharedAddress = NOT_SHARED,
        fresh_s: float = FRESH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._addresses = addresses
        self._daemons = daemons
        self._owners = owners or Processes(daemons)
        self._shared = shared
        self._clock = clock
        self._fresh_s = fresh_s
        self._fresh_until = -1.0
        self._failed = ""
        self._known: dict[int, _Known] = {}  # by cookie
        self._unaccepted = 0
        self._relayed_waiting = 0  # for daemons that share the address
        self._others: set[int] = set()  # connections that no daemon has: the router's own, mostly
        self._unclaimed: dict[int, float] = {}  # without a known holder: by cookie, since when
        self._hides: dict[str, bool] = {}  # by boot, at this look
        self._looked_at = self._looked_before = -1.0  # when the last look began, and the one before it
        self._full: set[str] = set()  # boots whose accept queue was full
        self._listeners: dict[int, str] = {}  # whose a listener at a shared address is, by inode
        self._listeners_at = -1.0

    # -- listeners ---------------------------------------------------------------------------------------------------

    def listener_of(self, upstream: Upstream) -> socket.socket:
        """A copy of the socket by which a daemon listens at its address, the caller's to close.

        Raises:
            SteeringError: its process is not known or may not be traced, or does not listen there.
            OSError: the kernel is too old, or no descriptors are left.
        """
        daemon = self._daemons().get(upstream.boot_id)
        if daemon is None or daemon.pid <= 0:
            raise SteeringError("the daemon's process is not known")
        if out_of_sight(daemon.identity):
            raise SteeringError("the daemon's process is in another pid namespace")
        inodes = {found.inode for found in sockets.listening_at(upstream.host, upstream.port)}
        for holders in self._owners.of(inodes).values():
            for boot_id, pid, fd in holders:
                if boot_id == upstream.boot_id:
                    return _listener(pid, fd, inodes)
        raise SteeringError(
            f"the daemon does not listen at {upstream.host} port {upstream.port}, or that may not be seen"
        )

    def is_there(self, upstream: Upstream) -> bool:
        """Whether a daemon that shares the fixed address still listens there, as the kernel has it this moment.

        Keeper and router have copies of its listeners, so these outlive it, and what it closes stays open.
        """
        daemon = self._daemons().get(upstream.boot_id)
        if daemon is None:
            return False
        try:
            inodes = {found.inode for found in sockets.listening_at(upstream.host, upstream.port)}
        except OSError:
            return True
        given = self._shared.listeners_of(upstream.boot_id)
        own = inodes.intersection(given) if given else inodes
        if not own:
            return False
        # one that may not be looked at is believed
        return self._owners.has(upstream.boot_id, own) or (bool(given) and self._owners.hides(upstream.boot_id))

    def room(self, upstream: Upstream) -> int | None:
        """How many connections a daemon's accept queue takes before it is full; None: the system does not say.

        Of several listeners the kernel chooses one for each connection, so together they may take fewer. A daemon on
        another host is in no table of ours.
        """
        if not is_loopback(upstream.host):
            return None
        daemon = self._daemons().get(upstream.boot_id)
        try:
            queues = self._queues(daemon) if daemon else []
        except OSError:
            return None
        return sum(max(0, queue.most + 1 - queue.waiting) for queue in queues) if queues else None

    def not_accepting_reason(self, boot_id: str) -> str:
        daemon = self._daemons().get(boot_id)
        if daemon is None:
            return ""
        if is_suspended(daemon.pid):
            return "the daemon is stopped (SIGSTOP) or held by a debugger"
        try:
            queues = self._queues(daemon)
        except OSError:
            return ""
        # it is full when more wait than may, and it is not steered to again before there is room for some
        room = ROOM_AGAIN if boot_id in self._full else 1.0
        full = max((queue.waiting for queue in queues if queue.waiting > queue.most * room), default=0)
        if not full:
            self._full.discard(boot_id)
            return ""
        self._full.add(boot_id)
        return f"the daemon accepts too slowly: {full} connections wait"

    def pending(self, boot_id: str, older_s: float) -> bool:
        daemon = self._daemons().get(boot_id)
        try:
            if daemon and any(queue.waiting for queue in self._queues(daemon)):
                return True
            handshakes = [handshake for port in self._ports() for handshake in handshakes_at(port)]
        except OSError:
            return True  # it does not tell, and the drain has a deadline
        return any(handshake.age_s > older_s for handshake in handshakes)

    def queued(self, boot_id: str) -> int:
        self._look()
        daemon = self._daemons().get(boot_id)
        if daemon is None or not self._unaccepted:
            return 0
        try:
            waiting = sum(queue.waiting for queue in self._queues(daemon))
        except OSError:
            return self._unaccepted  # they may all be its own
        waiting -= self._not_steered(daemon) if waiting else 0
        return max(0, min(self._unaccepted, waiting))

    def _not_steered(self, daemon: Daemon) -> int:
        """How many wait for a daemon that came through the router, which its plane counts, or to its own port."""
        if (daemon.host, daemon.port) in self._addresses():
            return min(self._relayed_waiting, self._shared.relays(daemon.boot_id))
        try:
            return sockets.unaccepted_at(daemon.host, daemon.port)
        except OSError:
            return 0

    def _queues(self, daemon: Daemon) -> list[Queue]:
        """The accept queues of one daemon; at an address that it shares with others, of its own listeners alone.

        Raises:
            OSError: the kernel does not tell.
        """
        queues = sockets.accept_queues(daemon.host, daemon.port)
        if (daemon.host, daemon.port) not in self._addresses():
            return queues
        given = self._shared.listeners_of(daemon.boot_id)
        here = {queue.inode for queue in queues}
        if here.intersection(given):  # to look among the descriptors of a daemon with thousands of clients costs much
            return [queue for queue in queues if queue.inode in given]
        self._listeners = {inode: self._listeners.get(inode, "") for inode in here}
        now = self._clock()
        if now >= self._listeners_at:  # the router's own stays without a boot: not to be asked for with every look
            unknown = {inode for inode, boot_id in self._listeners.items() if not boot_id}
            self._listeners |= {inode: holders[0][0] for inode, holders in self._owners.of(unknown).items()}
            took_s = self._clock() - now
            self._listeners_at = now + max(LISTENERS_AGAIN_S, LISTENERS_SHARE * took_s)
        return [queue for queue in queues if self._listeners[queue.inode] == daemon.boot_id]

    def _ports(self) -> set[int]:
        return {port for _, port in self._addresses()}

    # -- connections -------------------------------------------------------------------------------------------------

    def boots(self) -> Collection[str]:
        return self._daemons().keys()

    def served(self, boot_id: str, *, peers: bool = False) -> Sequence[ConnectionInfo] | None:
        self._look()
        if self._failed or (any(self._lasting()) and self._may_hide(boot_id)):
            return None
        now = self._clock()
        return [_carried(known, now, peers=peers) for known in self._known.values() if known.boot_id == boot_id]

    def settled(self, since: float) -> bool:
        """Two looks, for a connection that only the last one has may be new, and end before it is found whose it is.

        What stays unclaimed is a stranger's, or that of a daemon which hides what it has: :meth:`served` says so.
        """
        if self._failed or self._looked_before <= since:
            return False
        now = self._clock()
        if all(now - first >= UNCLAIMED_S for first in self._lasting()):
            return True
        return any(map(self._may_hide, self._daemons()))

    def _lasting(self) -> Iterator[float]:
        """Since when connections are unclaimed that an earlier look than the last one had, too."""
        return (first for first in self._unclaimed.values() if first <= self._looked_before)

    def _may_hide(self, boot_id: str) -> bool:
        found = self._hides.get(boot_id)
        if found is None:
            found = self._hides[boot_id] = self._owners.hides(boot_id)
        return found

    def cut(self, boot_id: str, ids: Collection[int] | None) -> int:
        self._fresh_until = -1.0
        self._look()
        self._fresh_until = -1.0
        chosen = [
            known.last
            for cookie, known in self._known.items()
            if known.boot_id == boot_id and (ids is None or -cookie in ids)
        ]
        if not chosen:
            return 0
        holders = self._owners.of({row.inode for row in chosen})  # a child may have it by now, and not its parent
        end = connections.reset if ids is None else connections.end
        return sum(end(row, [holder[1:] for holder in holders.get(row.inode, ())]) for row in chosen)

    def _look(self) -> None:
        began = self._clock()
        if began < self._fresh_until:
            return
        addresses = self._addresses()
        try:
            rows = [row for port in self._ports() for row in connections_at(port)]
            self._failed = ""
        except OSError as error:
            self._failed = error.strerror or str(error)
            rows = []
        self._take_in(connections.at_addresses(rows, addresses), began)
        self._looked_before = -1.0 if self._failed else self._looked_at
        self._looked_at = -1.0 if self._failed else began
        took_s = self._clock() - began
        self._fresh_until = began + (max(self._fresh_s, LOOK_SHARE * took_s) if self._fresh_s else 0.0)

    def _take_in(self, rows: Iterable[Connection], now: float) -> None:
        # what the router itself connects to a daemon that shares the address, its plane counts
        rows = list(rows)
        own = self._shared.relayed_from()
        self._relayed_waiting = sum(1 for row in rows if row.peer in own and not row.inode)
        rows = [row for row in rows if row.peer not in own and not row.peer[0].startswith(SOURCE_PREFIX)]
        everybody = len(rows)
        rows = [row for row in rows if row.inode]  # a connection that is not accepted belongs to no process yet
        self._unaccepted = everybody - len(rows)
        fresh = [row for row in rows if row.cookie not in self._known and row.cookie not in self._others]
        owned: Mapping[int, Sequence[Holder]] = self._owners.of({row.inode for row in fresh}) if fresh else {}
        self._others &= {row.cookie for row in rows}
        if fresh:
            mine = {inode for inode, _ in sockets.descriptors_of(os.getpid())}
            self._others |= {row.cookie for row in fresh if row.inode in mine and row.inode not in owned}
        self._hides.clear()
        self._unclaimed = {
            row.cookie: self._unclaimed.get(row.cookie, now)
            for row in fresh
            if row.inode not in owned and row.cookie not in self._others
        }
        known: dict[int, _Known] = {}
        for row in rows:
            before = self._known.get(row.cookie)
            if before is not None:
                answered = is_answered(row, before.last, known=before.answered)
                known[row.cookie] = _Known(before.boot_id, before.since, row, answered)
            elif row.inode in owned:
                answered = is_answered(row, None, known=False)
                known[row.cookie] = _Known(owned[row.inode][0][0], now, row, answered)
        self._known = known


def _listener(pid: int, fd: int, inodes: Collection[int]) -> socket.socket:
    try:
        inode = sockets.inode_of(pid, fd)
        if inode in inodes:
            return socket_of(pid, fd, inode)
    except ProcessLookupError:
        pass
    except OSError as error:
        if error.errno in {errno.EPERM, errno.EACCES}:
            raise SteeringError(
                f"process {pid} may not be traced, so its listener cannot be had (ptrace(2))",
                hint="run turnout as the daemon's user, or with CAP_SYS_PTRACE; see kernel.yama.ptrace_scope",
            ) from error
        raise
    raise SteeringError(f"process {pid} has closed its listener this moment")


def _carried(known: _Known, now: float, *, peers: bool) -> ConnectionInfo:
    row = known.last
    peer = format_address(*row.peer) if peers else ""
    return ConnectionInfo(
        -row.cookie,
        peer,
        now - known.since,
        row.bytes_in,
        row.bytes_out,
        answered=known.answered,
        half_sent=row.unread > 0 or row.unsent > 0,
    )
