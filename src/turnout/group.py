"""The SO_REUSEPORT group at a fixed address: router and daemons share it, and the kernel chooses.

    place:    0       1       2       3        4
            home    daemon  spare   daemon   spare
           router's                          router's

Standard library only. How it stays right, whoever dies when (:mod:`turnout.planes.chooser` has the kernel's rules):

- ``home`` is the router's first listener, and the keeper never closes it: its place is the router's, always.
- When a member closes, the last one takes its place. So the last ones are *spares*, listeners of the router too, at
  least as many as there are daemons: whatever daemons die, in whatever order, no other daemon moves, and what would
  have come to a dead one comes to the router.
- A spare before a daemon is a *gap*: it makes room for the next daemon. That one joins as the last, the gap is shut
  down, and the daemon has its place. Only a gap to which nothing is directed any more goes this way: the router that
  leads has said that it knows the group as it is.
- Where a daemon really is, is found out before it runs, by a connection that chooses the place.
- A daemon may also join by itself. It is the last then, until that is seen and spares are put behind it, or it has
  taken the place of a gap; from there on it stays where it is, and that is found out (:mod:`turnout.joining`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Self

from turnout.choosing import LATE_S, choose, comes_from, place_of
from turnout.core.listen import reachable
from turnout.core.model import Identity
from turnout.core.slots import HOME
from turnout.errors import SpawnError
from turnout.joining import Joining, Member
from turnout.listener import bind
from turnout.planes.chooser import attach, is_shared
from turnout.rejoining import taken_by, that_join
from turnout.system.connections import handshakes_at
from turnout.system.process import is_alive
from turnout.system.sockets import listening_at
from turnout.system.spawn_record import SpawnRecord

PLACINGS: Final = 5  # each one that fails takes another daemon that left meanwhile
LISTENERS_MOST: Final = 128  # a router gets those of all services with one message, of 253 at most (unix(7))
TAKEN_S: Final = 1.0  # for a daemon to accept
SEEN_S: Final = 1.0  # for a router to say that it knows of a death: it looks every 0.1 s
TICK_S: Final = 0.01  # of the clock by which the kernel knows the age of a handshake, at most
_QUEUED_AT: Final = 24  # tcpi_unacked in struct tcp_info: of a listener, how many wait to be accepted (tcp(7))


class Group:
    """Owns the spares; ``home`` is the caller's. A daemon's listener is owned by nobody here once it is passed on.

    Args:
        home: the router's listener, alone at its address or the first of its group.
        spares: further listeners of the router in the group, from an earlier keeper.
        members: daemons in the group, by boot, likewise.
        home_slot: the place of ``home``.
        awaited: daemons that join by themselves, there or not, by boot.
    """

    def __init__(
        self,
        home: socket.socket,
        spares: Sequence[socket.socket] = (),
        members: Mapping[str, Member] = MappingProxyType({}),
        home_slot: int = HOME,
        awaited: Mapping[str, Identity] = MappingProxyType({}),
    ) -> None:
        self.home = home
        self._spares = list(spares)  # behind all daemons, in their order
        self._gaps: list[socket.socket] = []
        self.members = dict(members)
        self.version = 1
        self.strangers: set[int] = set()  # listeners that nobody here made, by inode
        self._slot_of_home = home_slot
        self._seen = 0
        self._seen_at = 0.0  # since when nobody is directed to a gap
        self._host, self._port = home.getsockname()[:2]
        self._at = reachable(self._host)
        self.awaited = dict(awaited)
        self.placed: dict[str, Member] = {}  # that joined by themselves, and were found: the caller takes them out
        self._joining = Joining(self)
        self._waits_until: float | None = None

    @classmethod
    def rejoin(cls, address: tuple[str, int], daemons: Mapping[str, SpawnRecord]) -> Self:
        """Have a router's listener again where only daemons are left: all places are other ones now, and found out.

        Args:
            address: of the group.
            daemons: those that may be in it, by boot.

        Raises:
            OSError: it cannot be had.
        """
        home = bind(*address, shared=True)
        try:
            # whoever joins is the last; to try it by accepting would take clients that the old program sends here
            last = len(listening_at(reachable(address[0]), address[1])) - 1
            attach(home, last)
            group = cls(home, home_slot=last, awaited=that_join(daemons.values()))
            group._pad()  # it is the last no longer, so it stays there
            group._find_all(daemons)
            group._pad()
        except BaseException:
            home.close()
            raise
        return group

    @property
    def home_slot(self) -> int:
        """The place of the router's own listener, which it keeps."""
        return self._slot_of_home

    @property
    def spares(self) -> list[socket.socket]:
        """All of them, for the router to accept from."""
        return [*self._gaps, *self._spares]

    @property
    def is_open(self) -> bool:
        """Whether anybody ever joined."""
        return bool(self._gaps or self._spares or self.members or self.awaited)

    @property
    def address(self) -> tuple[str, int]:
        """Where a connection to the group goes."""
        return self._at, self._port

    @property
    def unplaced(self) -> dict[str, Identity]:
        """The daemons that join by themselves and have no place at the moment, by boot."""
        return {boot_id: identity for boot_id, identity in self.awaited.items() if boot_id not in self.members}

    def open(self) -> None:
        """Let daemons join by themselves.

        Raises:
            SpawnError: it cannot be had, and why; the group is as it was.
        """
        if ":" in self._host:
            raise SpawnError(
                "an IPv6 address cannot be shared with daemons: places are chosen by an IPv4 source",
                hint='listen on an IPv4 address, or plane = "relay"',
            )
        try:
            self._open()
            self.look()
        except OSError as error:
            raise self._refused(error) from error

    def join(self, boot_id: str) -> tuple[socket.socket, Member]:
        """A listener for a daemon that is about to be started, in its place; the caller passes it on and closes it.

        Raises:
            SpawnError: it cannot join, and why; the group is as it was.
        """
        self.open()
        try:
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
            SpawnError: there are too many listeners.
        """
        if not self.is_open:
            return False
        here = self._inodes()
        gone = self._forget_gone(here)
        self.awaited = {boot_id: identity for boot_id, identity in self.awaited.items() if is_alive(identity)}
        fresh = self._strangers(here) - self.strangers if self.awaited else set[int]()
        filled = bool(fresh) and self._end_gap()
        if fresh and not filled:
            if self._waits_for_a_gap():
                return gone
            self._keep_behind()
        self._waits_until = None
        changed = self._shrink() or filled
        changed = self._pad(filled=filled and len(fresh) == 1) or changed  # of several, one has the gap's place
        found = self._joining.step(time.monotonic())
        if found:
            self.members |= found
            self.placed |= found
            self._pad()
            changed = True
        self.version += changed
        return changed or gone

    def told(self) -> dict[str, Any]:
        """What the router is to know beside the listeners."""
        places = {boot_id: [member.slot, member.inode] for boot_id, member in self.members.items()}
        return {"version": self.version, "home": self.home_slot, "places": places, "unplaced": list(self.unplaced)}

    def seen(self, version: int, slot: int) -> None:
        """The router that leads knows the group as it was then, and directs new connections to ``slot``."""
        slots = {self.home_slot, *(member.slot for member in self.members.values())}
        before, self._seen = self._seen, version if slot in slots else 0
        if before != self.version == self._seen:
            self._seen_at = time.monotonic()

    def close(self) -> None:
        """Close the spares; daemons keep what they have."""
        self._joining.close()
        for sock in self.spares:
            sock.close()
        self._gaps.clear()
        self._spares.clear()

    def free(self) -> Iterator[int]:
        """Places that may be a new member's: the last one first."""
        taken = {member.slot for member in self.members.values()}
        if self.is_open:
            taken.add(self.home_slot)
        return (slot for slot in reversed(range(len(self._inodes()))) if slot not in taken)

    def secure(self, slot: int) -> None:
        """Have as many spares behind that place as there are daemons. Raises OSError, SpawnError."""
        self._pad(slot)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Let others join. Before the first daemon there is a program, or the kernel would choose by hash."""
        if not self.is_open:
            if not is_shared(self.home):
                self.home.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._spares.append(self._last())
            attach(self.home, self.home_slot)

    def _last(self) -> socket.socket:
        if len(self._inodes()) >= LISTENERS_MOST:
            raise SpawnError(
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
        own = {_inode(sock) for sock in (self.home, *self.spares)}
        return here - own - {member.inode for member in self.members.values()}

    def _pad(self, highest: int = HOME, *, filled: bool = False) -> bool:
        """Have as many spares behind the last daemon as there are others; whether any was missing.

        Args:
            highest: there may be a daemon at this place, too.
            filled: who joined by itself has the place of a gap now.
        """
        here = self._inodes()
        highest = max([highest, self.home_slot, *(member.slot for member in self.members.values())])
        strangers = self._strangers(here)
        most = max(1, len(self.members) + max(len(self.unplaced), len(strangers)))  # so many may leave before a look
        missing = highest + most - (len(here) - 1)
        if strangers - self.strangers and not filled:  # a program of the same user joined, and may be the last
            missing = max(missing, most)
        if self.awaited:  # one of them may be counted among those behind the last daemon
            missing = max(missing, most - len(self._spares))
        self.strangers = strangers
        for _ in range(missing):
            self._spares.append(self._last())
        return missing > 0

    def _waits_for_a_gap(self) -> bool:
        """Whether one that joined stays the last for a moment, until a gap may be closed for it.

        One that dies and joins again at once would else never fill a gap, and places would run out.
        """
        now = time.monotonic()
        if self._waits_until is None:
            self._waits_until = now + SEEN_S
        return bool(self._gaps) and now < self._waits_until

    def _fill(self) -> int:
        """The newest member is the last: give it the place of a gap, or else keep it behind what is there.

        Clients may be directed to a daemon that leaves now, and the last one gets its place: so it is not the last for
        long. Answers its place, if it was not filled and nobody left.
        """
        last = len(self._inodes()) - 1
        if not self._end_gap():
            self._keep_behind()
            self._pad(last)
        return last

    def _keep_behind(self) -> None:
        self._gaps += self._spares
        self._spares.clear()

    def _shrink(self) -> bool:
        """Without daemons there need be no gaps, but for those that keep the router's place; whether one was closed."""
        closed = False
        while not self.members and not self.awaited and self._ends_with_a_spare() and self._end_gap():
            closed = True
        return closed

    def _ends_with_a_spare(self) -> bool:
        """Whether another one than the router's own listener is the last, and stays so when one of them has gone."""
        return len(self._inodes()) - 1 > self.home_slot + 1

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

    def _place(self, boot_id: str, sock: socket.socket, likely: int) -> Member:
        """The newest daemon's place, with spares behind it: from then on it stays, whoever leaves.

        Until then it may be the last listener, and moves to the place of any daemon that leaves.
        """
        sock.setblocking(False)
        for _ in range(PLACINGS):
            self._forget_gone(self._inodes())
            slot = place_of(self.address, sorted(self.free(), key=lambda slot: slot != likely), sock)
            if slot is None:
                continue
            member = self.members[boot_id] = Member(slot, _inode(sock))
            self._pad()
            if comes_from(self.address, [slot], sock, within_s=LATE_S) == slot:
                return member
        raise SpawnError(
            f"the kernel does not choose by place among the listeners of port {self._port}",
            hint='plane = "relay"; is a firewall or a program of another kind attached?',
        )

    def _find_all(self, daemons: Mapping[str, SpawnRecord]) -> None:
        """The places of daemons that run, by who accepts what chooses a place; who accepts nothing is not found."""
        for slot in range(self.home_slot):  # it was the last
            with contextlib.suppress(OSError), choose(self.address, slot) as probe:
                boot_id = taken_by(probe, self._port, daemons, within_s=TAKEN_S)
                if boot_id:
                    self.members[boot_id] = Member(slot, daemons[boot_id].listener_inode)

    def _refused(self, error: OSError) -> SpawnError:
        why = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            why = "somebody has it who does not share it, or runs as another user (socket(7), SO_REUSEPORT)"
        return SpawnError(
            f"no listener for the daemon at {self._host} port {self._port}: {why}", hint='plane = "relay"'
        )


def _inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def _queued(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _QUEUED_AT + 4)
    return int(struct.unpack_from("I", info, _QUEUED_AT)[0])
