"""The SO_REUSEPORT group at a fixed address: router and daemons share it, and the kernel chooses.

    place:    0       1       2       3        4
           router  daemon  spare   daemon   spare
                           router's         router's

Standard library only. How it stays right, whoever dies when (:mod:`turnout.reuseport.program` has the kernel's rules):

- ``router_listener`` is the router's first listener, and the keeper never closes it: its place is the router's, always.
- When a member closes, the last one takes its place. So the last ones are *spares*, listeners of the router too, at
  least as many as there are daemons: whatever daemons die, in whatever order, no other daemon moves, and what would
  have come to a dead one comes to the router.
- A spare before a daemon is a *gap*: it makes room for the next daemon. That one joins as the last, the gap is shut
  down, and the daemon has its place. Only a gap to which nothing is directed any more goes this way: the router that
  leads has said that it knows the group as it is.
- Where a daemon really is, is found out before it runs, by a connection that chooses the place.
- A listener that turnout did not make may join, of a program of the same user. Spares are put behind it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Self

from turnout.core.addresses import reachable
from turnout.core.slots import ROUTER_INDEX
from turnout.errors import NotBegunError, SpawnError
from turnout.reuseport.placement import LATE_S, connect_to_index, locate_listener, probe_indices
from turnout.reuseport.program import attach, is_shared
from turnout.reuseport.recovery import taken_by
from turnout.system.net.connections import handshakes_at
from turnout.system.net.listener import bind
from turnout.system.net.sockets import listening_at
from turnout.system.spawn_record import SpawnRecord

PLACINGS: Final = 5  # each one that fails takes another daemon that left meanwhile
LISTENERS_MOST: Final = 128  # a router gets those of all services with one message, of 253 at most (unix(7))
TAKEN_S: Final = 1.0  # for a daemon to accept
ALL_TAKEN_S: Final = 3.0  # for all of them: the keeper answers no verb meanwhile
TAKEN_LEAST_S: Final = 0.02  # for each when that is over: who accepts does so at once, mostly
TICK_S: Final = 0.01  # of the clock by which the kernel knows the age of a handshake, at most
_QUEUED_AT: Final = 24  # tcpi_unacked in struct tcp_info: of a listener, how many wait to be accepted (tcp(7))


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A daemon in the group: its place, and the inode of the listener that it has there."""

    slot: int
    inode: int


class Group:
    """Owns the spares; ``router_listener`` is the caller's, as is a daemon's listener once it is passed on.

    Args:
        router_listener: alone at its address or the first of its group.
        spares: further listeners of the router in the group, from an earlier keeper.
        members: daemons in the group, by boot, likewise.
        router_index: the place of ``router_listener``.
    """

    def __init__(
        self,
        router_listener: socket.socket,
        spares: Sequence[socket.socket] = (),
        members: Mapping[str, GroupMember] = MappingProxyType({}),
        router_index: int = ROUTER_INDEX,
    ) -> None:
        self.router_listener = router_listener
        self._spares = list(spares)  # behind all daemons, in their order
        self._gaps: list[socket.socket] = []
        self.members = dict(members)
        self.version = 1
        self.strangers: set[int] = set()  # listeners that nobody here made, by inode
        self.router_index = router_index  # which it keeps
        self._seen = 0
        self._seen_at = 0.0  # since when nobody is directed to a gap
        self._host, self._port = router_listener.getsockname()[:2]
        self._at = reachable(self._host)

    @classmethod
    def rejoin(cls, address: tuple[str, int], daemons: Mapping[str, SpawnRecord]) -> Self:
        """Have a router's listener again where only daemons are left: all places are other ones now, and found out.

        Args:
            address: of the group.
            daemons: those that may be in it, by boot.

        Raises:
            OSError: it cannot be had.
        """
        listener = bind(*address, shared=True)
        try:
            # whoever joins is the last; to try it by accepting would take clients that the old program sends here
            last = len(listening_at(reachable(address[0]), address[1])) - 1
            attach(listener, last)
            group = cls(listener, router_index=last)
            group._pad()  # it is the last no longer, so it stays there
            group._find_all(daemons)
            group._pad()
        except BaseException:
            listener.close()
            raise
        return group

    @property
    def spares(self) -> list[socket.socket]:
        """All of them, for the router to accept from."""
        return [*self._gaps, *self._spares]

    @property
    def is_open(self) -> bool:
        """Whether anybody ever joined."""
        return bool(self._gaps or self._spares or self.members)

    @property
    def address(self) -> tuple[str, int]:
        """Where a connection to the group goes."""
        return self._at, self._port

    def join(self, boot_id: str) -> tuple[socket.socket, GroupMember]:
        """A listener for a daemon that is about to be started, in its place; the caller passes it on and closes it.

        Raises:
            SpawnError: it cannot join, and why; NotBegunError where that is no fault of the build. The group is as it
                was.
        """
        if ":" in self._host:
            raise SpawnError(
                "an IPv6 address cannot be shared with daemons: places are chosen by an IPv4 source",
                hint='listen on an IPv4 address, or plane = "relay"',
            )
        try:
            self._open()
            self.look()
            sock = self._last()
        except OSError as error:
            raise self._refused(error) from error
        try:
            member = self._place(boot_id, sock, self._fill())
        except BaseException as error:
            self.members.pop(boot_id, None)
            sock.close()
            self.look()
            if isinstance(error, OSError):
                raise self._refused(error) from error
            raise
        sock.setblocking(True)  # a daemon that knows nothing of its parent expects it so
        self.version += 1
        return sock, member

    def look(self) -> bool:
        """Find out who left or joined, and see to it that enough spares come last; True if the router is to be told.

        Raises:
            OSError: the kernel cannot be asked, or gives no socket.
            NotBegunError: there are too many listeners.
        """
        if not self.is_open:
            return False
        gone = self._forget_gone(self._inodes())
        changed = self._shrink()
        changed = self._pad() or changed
        self.version += changed
        return changed or gone

    def told(self) -> dict[str, Any]:
        """What the router is to know beside the listeners."""
        places = {boot_id: [member.slot, member.inode] for boot_id, member in self.members.items()}
        return {"version": self.version, "home": self.router_index, "places": places}

    def seen(self, version: int, slot: int) -> None:
        """The router that leads knows the group as it was then, and directs new connections to ``slot``."""
        slots = {self.router_index, *(member.slot for member in self.members.values())}
        before, self._seen = self._seen, version if slot in slots else 0
        if before != self.version == self._seen:
            self._seen_at = time.monotonic()

    def close(self) -> None:
        """Close the spares; daemons keep what they have."""
        for sock in self.spares:
            sock.close()
        self._gaps.clear()
        self._spares.clear()

    def free(self) -> Iterator[int]:
        """Places that may be a new member's: the last one first."""
        taken = {member.slot for member in self.members.values()}
        if self.is_open:
            taken.add(self.router_index)
        return (slot for slot in reversed(range(len(self._inodes()))) if slot not in taken)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Let others join. Before the first daemon there is a program, or the kernel would choose by hash."""
        if not self.is_open:
            if not is_shared(self.router_listener):
                self.router_listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._spares.append(self._last())
            attach(self.router_listener, self.router_index)

    def _last(self) -> socket.socket:
        if len(self._inodes()) >= LISTENERS_MOST:
            raise NotBegunError(
                f"{LISTENERS_MOST} listeners share port {self._port} already", hint="stop daemons that drain"
            )
        return bind(self._host, self._port, shared=True)

    def _forget_gone(self, here: set[int]) -> bool:
        """Let go of the daemons that left; whether any did."""
        gone = [boot_id for boot_id, member in self.members.items() if member.inode not in here]
        for boot_id in gone:
            del self.members[boot_id]
            if self._spares:  # the last one has its place now
                self._gaps.append(self._spares.pop())
        self.version += bool(gone)  # from here on, what the router has seen is not the group as it is
        return bool(gone)

    def _inodes(self) -> set[int]:
        return {found.inode for found in listening_at(self._at, self._port)}

    def _strangers(self, here: set[int]) -> set[int]:
        own = {_inode(sock) for sock in (self.router_listener, *self.spares)}
        return here - own - {member.inode for member in self.members.values()}

    def _pad(self, highest: int = ROUTER_INDEX) -> bool:
        """Have as many spares behind the last daemon as there are others; whether any was missing.

        ``highest``: there may be a daemon at this place, too.
        """
        here = self._inodes()
        highest = max([highest, self.router_index, *(member.slot for member in self.members.values())])
        strangers = self._strangers(here)
        most = max(1, len(self.members) + len(strangers))  # so many may leave before a look
        missing = highest + most - (len(here) - 1)
        if strangers - self.strangers:  # a program of the same user joined, and may be the last
            missing = max(missing, most)
        self.strangers = strangers
        for _ in range(missing):
            self._spares.append(self._last())
        return missing > 0

    def _fill(self) -> int:
        """The newest member is the last: give it the place of a gap, or else keep it behind what is there.

        Clients may be directed to a daemon that leaves now, and the last one gets its place: so it is not the last for
        long. Answers its place, if it was not filled and nobody left.
        """
        last = len(self._inodes()) - 1
        if not self._end_gap():
            self._gaps += self._spares
            self._spares.clear()
            self._pad(last)
        return last

    def _shrink(self) -> bool:
        """Without daemons there need be no gaps, but for those that keep the router's place; whether one was closed."""
        closed = False
        while not self.members and self._ends_with_a_spare() and self._end_gap():
            closed = True
        return closed

    def _ends_with_a_spare(self) -> bool:
        """Whether another one than the router's own listener is the last, and stays so when one of them has gone."""
        return len(self._inodes()) - 1 > self.router_index + 1

    def _end_gap(self) -> bool:
        """Shut a gap down, whose place the last listener takes; False: there is none with which that is safe."""
        if self._seen != self.version:
            return False
        since_s = time.monotonic() - self._seen_at - TICK_S
        if any(one.age_s > since_s for one in handshakes_at(self._port)):
            return False
        gap = next((sock for sock in self._gaps if not _queued(sock)), None)
        if gap is None:
            return False
        self._gaps.remove(gap)
        gap.shutdown(socket.SHUT_RDWR)  # for all who have it: it leaves the group now
        gap.close()
        return True

    def _place(self, boot_id: str, sock: socket.socket, likely: int) -> GroupMember:
        """The newest daemon's place, with spares behind it: from then on it stays, whoever leaves.

        Until then it may be the last listener, and moves to the place of any daemon that leaves.
        """
        sock.setblocking(False)
        for _ in range(PLACINGS):
            self._forget_gone(self._inodes())
            slot = locate_listener(self.address, sorted(self.free(), key=lambda slot: slot != likely), sock)
            if slot is None:
                continue
            member = self.members[boot_id] = GroupMember(slot, _inode(sock))
            self._pad()
            if probe_indices(self.address, [slot], sock, within_s=LATE_S) == slot:
                return member
        raise NotBegunError(
            f"the kernel does not choose by place among the listeners of port {self._port}",
            hint='plane = "relay"; is a firewall or a program of another kind attached?',
        )

    def _find_all(self, daemons: Mapping[str, SpawnRecord]) -> None:
        """The places of daemons that run, by who accepts what chooses a place; who accepts nothing is not found."""
        deadline = time.monotonic() + ALL_TAKEN_S
        for slot in range(self.router_index):  # it was the last
            with contextlib.suppress(OSError), connect_to_index(self.address, slot) as probe:
                within_s = max(TAKEN_LEAST_S, min(TAKEN_S, deadline - time.monotonic()))
                boot_id = taken_by(probe, self._port, daemons, within_s=within_s)
                if boot_id:
                    self.members[boot_id] = GroupMember(slot, daemons[boot_id].listener_inode)

    def _refused(self, error: OSError) -> NotBegunError:
        why = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            why = "somebody has it who does not share it, or runs as another user (socket(7), SO_REUSEPORT)"
        return NotBegunError(
            f"no listener for the daemon at {self._host} port {self._port}: {why}", hint='plane = "relay"'
        )


def _inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def _queued(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _QUEUED_AT + 4)
    return int(struct.unpack_from("I", info, _QUEUED_AT)[0])
