"""The SO_REUSEPORT group at a fixed address: an array of listeners, of which a program selects one for each connection.

    index:    0        1        2         3                4         5
           daemon   daemon   router's  router's (home)  router's  router's

The kernel's rules (net/core/sock_reuseport.c): who begins to listen is the last, and the last one takes the index of
one that closes or shuts down. The keeper has a copy of every listener, so the death of a daemon closes none. What the
array rests on, in whatever order processes die:

- The router accepts from every listener that no daemon has; ``home`` is the index at which it gets new connections
  while they go to no daemon.
- A daemon's listener joins as the last. Then the router's listener with the lowest index to which nothing is directed
  is shut down, and the daemon has that index, for life. Where there is none at the moment it stays where it is.
- As many of the router's listeners as there are daemons come after home, and home after the last daemon: when daemons
  leave the group, neither home nor another daemon moves, and their connections come to the router.
- The listener of a dead daemon is the router's from then on, with the connections that wait in its queue.

Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Self

from turnout.errors import NotBegunError, ProtocolError, SpawnError
from turnout.reuseport.program import attach, is_shared
from turnout.system.files import undone_on_error
from turnout.system.net.connections import handshakes_at
from turnout.system.net.listener import BACKLOG, bind
from turnout.system.net.sockets import listening_exactly_at
from turnout.system.net.tcp import listens

PLACINGS: Final = 5  # for a listener that joins while others leave
LEADS: Final = 2  # listeners before home, so that a second worker finds one to which nothing was ever directed
LISTENERS_MOST: Final = 180  # a router gets those of a service with one message (control_channel.MAX_FDS)
TICK_S: Final = 0.01  # of the clock by which the kernel knows the age of a handshake, at most
_QUEUED_AT: Final = 24  # tcpi_unacked in struct tcp_info: of a listener, how many wait to be accepted (tcp(7))


@dataclass(slots=True, eq=False)
class Place:
    """What has one index of the group.

    Args:
        inode: of the listener; 0: it is one of those whose indexes are not known.
        sock: the keeper's copy; None: it has none.
        boot_id: the daemon that has it; empty: the router accepts from it, or another program has it.
        used: the version of the group until which routers may direct connections to it; 0: they never did.
        unused_since: when the router said that it directs none to it any more, monotonic seconds; 0: not yet.
    """

    inode: int
    sock: socket.socket | None = None
    boot_id: str = ""
    used: int = 0
    unused_since: float = 0.0

    @property
    def is_routers(self) -> bool:
        return not self.boot_id and self.sock is not None

    @property
    def is_strangers(self) -> bool:
        return not self.boot_id and self.sock is None and self.inode != 0


@dataclass(frozen=True, slots=True)
class GroupState:
    """A group as the keeper described it to a router.

    ``order``: the inode and the daemon of each index; the keeper of 0.1 sent none.
    """

    version: int = 0
    home: int = 0
    order: tuple[tuple[int, str], ...] = ()


class Group:
    """Owns a copy of every listener in it, the first one included.

    Args:
        places: the group as it is; a single one of the router's: no daemon has joined yet.
        home: the index at which the router gets connections that go to no daemon.
        version: counts what changed; above what any router was sent.
        unplaced: listeners whose indexes are not known, by inode; a copy: it is the router's.
    """

    def __init__(
        self,
        places: Sequence[Place],
        home: int = 0,
        version: int = 1,
        unplaced: Mapping[int, socket.socket | None] = MappingProxyType({}),
    ) -> None:
        self.places = list(places)
        self.home = home
        self.version = version
        self._unplaced = dict(unplaced)
        self._bound: dict[int, socket.socket] = {}  # the router's own that no look has seen yet, by inode
        self._selected: Collection[int] = ()
        self._is_open = len(self.places) > 1
        if not self.router_listeners:
            raise ProtocolError("none of the listeners that a router brings is its own")
        self._host, self._port = self.router_listeners[0].getsockname()[:2]

    @classmethod
    def of(cls, listener: socket.socket) -> Self:
        """A group of one listener, the router's, which is owned here from now on."""
        return cls([Place(inode_of(listener), listener)])

    @property
    def address(self) -> tuple[str, int]:
        """As it is bound."""
        return self._host, self._port

    @property
    def router_listeners(self) -> list[socket.socket]:
        """What the router is to accept from; the last ones come first, home among them."""
        unplaced = [sock for sock in self._unplaced.values() if sock]
        return [place.sock for place in reversed(self.places) if place.sock and not place.boot_id] + unplaced

    @property
    def daemon_listeners(self) -> list[socket.socket]:
        """The copies of what daemons accept from, for the router to keep while there is no keeper."""
        return [place.sock for place in self.places if place.sock and place.boot_id]

    @property
    def strangers(self) -> set[int]:
        """Listeners of programs that turnout did not start, by inode."""
        return {place.inode for place in self.places if place.is_strangers}

    @property
    def boots(self) -> set[str]:
        """The daemons that have an index."""
        return {place.boot_id for place in self.places if place.boot_id}

    @property
    def unplaced(self) -> Collection[int]:
        """Listeners whose indexes are not known, by inode."""
        return self._unplaced

    def identify(self, index: int, boot_id: str, sock: socket.socket | None) -> None:
        """A daemon was found at an index of which nothing was known.

        Args:
            index: the index.
            boot_id: the daemon.
            sock: a copy of its listener, owned here from now on; None: it is not known which of its listeners it is.
        """
        place = self.places[index] = Place(0 if sock is None else inode_of(sock), sock, boot_id)
        self._unplaced.pop(place.inode, None)

    def listeners_of(self, boot_id: str) -> list[int]:
        """The inodes of a daemon's listeners, as far as they are known."""
        return [place.inode for place in self.places if place.boot_id == boot_id and place.inode]

    def indexes_of(self, boot_id: str) -> list[int]:
        return [index for index, place in enumerate(self.places) if place.boot_id == boot_id]

    def open(self) -> None:
        """Let others join: from here on a program selects, lest the kernel choose by hash.

        Raises:
            SpawnError: the address is an IPv6 one.
            OSError: the kernel refuses, or gives no socket.
        """
        if self._is_open:
            return
        if ":" in self._host:
            raise SpawnError(
                "an IPv6 address cannot be shared with daemons: most of them listen for IPv4",
                hint='listen on an IPv4 address, or plane = "relay"',
            )
        first = self.router_listeners[0]
        if not is_shared(first):
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            self._pad()
            attach(first, [self.home])
        except OSError:  # the kernel would choose among them by hash, and no router knows them yet
            for place in self.places[1:]:
                if place.sock:
                    self._shut(place.sock)
            del self.places[1:]
            self.home = 0
            raise
        self.version += 1
        self._is_open = True

    def join(self, boot_id: str) -> tuple[socket.socket, int]:
        """A listener for a daemon that is about to be started, and its index; the caller passes it on and closes it.

        Raises:
            SpawnError: it cannot join, and why; NotBegunError where that is no fault of the build. The group is as it
                was.
        """
        try:
            self.open()
            self._sync()
            self._check_room()
            sock = bind(self._host, self._port, shared=True)
            with undone_on_error(sock.close):
                index = self.add(boot_id, sock.dup(), BACKLOG)
        except OSError as error:
            raise self._refused(error) from error
        sock.setblocking(True)  # a daemon that knows nothing of its parent expects it so
        return sock, index

    def add(self, boot_id: str, sock: socket.socket, backlog: int) -> int:
        """Give an index to a daemon's listener, which began to listen this moment; answers the index.

        One that began earlier keeps the index that it has.

        Args:
            boot_id: the daemon.
            sock: a copy of its listener, owned here from now on.
            backlog: of its queue (listen(2)).

        Raises:
            OSError: it is not certain which index it has, or the group cannot be kept in order; it left the group.
        """
        inode = inode_of(sock)
        known = next((index for index, place in enumerate(self.places) if place.inode == inode and place.sock), None)
        if known is not None:
            sock.close()
            self.version += self.places[known].boot_id != boot_id
            self.places[known].boot_id = boot_id
            return known
        with undone_on_error(self._sync), undone_on_error(partial(self._shut, sock)):
            for _ in range(PLACINGS):
                self._sync()
                index = self._settle(inode)
                if index is not None:
                    break
                with contextlib.suppress(OSError):  # another one left or joined at this moment: join again, as the last
                    sock.shutdown(socket.SHUT_RDWR)
                self._sync()
                sock.listen(backlog)
            else:
                raise OSError(errno.EBUSY, "listeners join and leave all the time")
            self.places[index] = Place(inode, sock, boot_id)
        self.version += 1
        return index

    def release(self, boot_id: str, inode: int = 0) -> bool:
        """Give the listeners of a daemon, or the one with this inode, to the router; whether it had any.

        No process may have them any more: the router sets O_NONBLOCK, which is that of all who have a listener.
        """
        found = [place for place in self.places if place.boot_id == boot_id and inode in {0, place.inode}]
        self.version += bool(found)
        for place in found:
            place.boot_id, place.used, place.unused_since = "", self.version, 0.0
            if place.sock:
                place.sock.setblocking(False)
        return bool(found)

    def look(self) -> bool:
        """Find out who left or joined, and have enough of the router's listeners come last; whether anything changed.

        Raises:
            OSError: the kernel cannot be asked, or gives no socket.
            NotBegunError: there are too many listeners.
        """
        if not self._is_open:
            return False
        changed = self._sync()
        changed = self._pad() or changed
        self.version += changed
        return changed

    def description(self) -> dict[str, Any]:
        """What the router is sent beside the listeners.

        ``order`` has the inode and the daemon of each index. ``places`` has the first index and inode of each daemon,
        which is what a router of 0.1 looks at.
        """
        places: dict[str, list[int]] = {}
        for index, place in enumerate(self.places):
            if place.boot_id:
                places.setdefault(place.boot_id, [index, place.inode])
        order = [[place.inode, place.boot_id] for place in self.places]
        return {"version": self.version, "home": self.home, "places": places, "order": order}

    def seen(self, version: int, selected: Collection[int]) -> None:
        """The router that leads knows the group as it was then, and directs new connections to these indexes."""
        self._selected = selected
        now = time.monotonic()
        for index, place in enumerate(self.places):
            if index in selected:
                place.used, place.unused_since = self.version, 0.0
            elif version >= place.used and not place.unused_since:
                place.unused_since = now

    def close(self) -> None:
        """Close the router's listeners, and the copies of the daemons' own; daemons keep what they have."""
        for sock in (*self.router_listeners, *self.daemon_listeners):
            sock.close()
        self.places.clear()
        self._unplaced.clear()

    # -- parts -------------------------------------------------------------------------------------------------------

    def _sync(self) -> bool:
        """Follow what the kernel did since the last look: the last listener has the index of one that left.

        Of several that left it is not known which of the last ones went where, nor where one is that joined meanwhile.
        Answers whether any left or joined.
        """
        here = [found.inode for found in listening_exactly_at(self._host, self._port)]
        known = {place.inode for place in self.places} | self._unplaced.keys()
        new = [inode for inode in reversed(here) if inode not in known]  # the newest is the first to be listed
        gone = [place for place in self.places if place.inode and place.inode not in here and not _listens(place.sock)]
        lost = [inode for inode in self._unplaced if inode not in here]
        if not (new or gone or lost):
            return False
        self.version += 1
        is_certain = len(gone) + len(lost) + bool(new) == 1 and not lost
        for place in gone:
            if place.sock:  # who has it shut it down
                place.sock.close()
            place.inode, place.sock, place.boot_id = 0, None, ""
        for inode in lost:
            sock = self._unplaced.pop(inode)
            if sock:
                sock.close()
        for _ in range(len(gone) + len(lost)):
            last = self.places.pop()
            if last.inode and is_certain:
                self.places[self.places.index(gone[0])] = last
            elif last.inode:
                self._unplaced[last.inode] = last.sock
        for inode in new:
            sock = self._bound.pop(inode, None)
            if is_certain:
                self.places.append(Place(inode, sock))
            else:
                self.places.append(Place(0))
                self._unplaced[inode] = sock
        unknown = [index for index, place in enumerate(self.places) if not place.inode and not place.boot_id]
        if len(unknown) == len(self._unplaced) == 1:  # there is one index that it can have
            inode, sock = self._unplaced.popitem()
            self.places[unknown[0]] = Place(inode, sock, used=self.version)
        return True

    def _pad(self) -> bool:
        """Have enough of the router's listeners behind the last daemon, and home among them; whether any lacked.

        Behind home there is one for each daemon: home must not be the one that moves when they leave.
        """
        others = self._others()
        missing = lacked = self._missing(others)
        while missing > 0:
            self._check_room()
            sock = bind(self._host, self._port, shared=True)
            inode = inode_of(sock)
            self._bound[inode] = sock
            self._sync()  # where it is depends on what left until it listened
            others = self._others()
            missing = self._missing(others)
            if inode in self._unplaced and self._unplaced.keys() - self._own_unplaced():
                break  # others join and leave all the time: the next look goes on
        routers = [index for index in range(len(self.places)) if index not in others]
        most = len(self.places) - 1 - len(others)
        moves = self.home not in routers[1:] or self.home > most
        if moves:
            if self.home in routers:
                before = self.places[self.home]
                before.used, before.unused_since = self.version + 1, 0.0
            self.home = most
        return lacked > 0 or moves

    def _others(self) -> list[int]:
        """The indexes of listeners that are not the router's, or may be another's."""
        are_routers = self._unplaced.keys() == self._own_unplaced()  # then it does not matter which of them is where
        return [
            index
            for index, place in enumerate(self.places)
            if not place.is_routers and not (are_routers and not place.inode and not place.boot_id)
        ]

    def _own_unplaced(self) -> set[int]:
        return {inode for inode, sock in self._unplaced.items() if sock is not None}

    def _missing(self, others: Sequence[int]) -> int:
        """How many listeners of the router's are lacking behind the last of the others."""
        return LEADS + 1 + len(others) - (len(self.places) - 1 - max(others, default=-1))

    def _settle(self, inode: int) -> int | None:
        """Give the newest listener an index that it keeps; None: it is not certain which it has.

        Until others are behind it, it is the last, and the kernel moves it to the index of any daemon that leaves.
        """
        if self.places[-1].inode == inode and not self._move_down():
            return None
        self._pad()
        return next((index for index, place in enumerate(self.places) if place.inode == inode), None)

    def _move_down(self) -> bool:
        """Give the last one the index of the router's first listener to which nothing is directed, if there is one.

        False: another listener left meanwhile, and the places are to be looked at again.
        """
        last = len(self.places) - 1
        index = next((index for index in range(last) if self._is_idle(index)), last)
        lead = self.places[index]
        if index == last or lead.sock is None:
            return True
        self._shut(lead.sock)  # the routers have copies
        here = {found.inode for found in listening_exactly_at(self._host, self._port)}
        if any(place.inode and place is not lead and place.inode not in here for place in self.places):
            return False
        self.places[index] = self.places.pop()
        return True

    def _is_idle(self, index: int) -> bool:
        """Whether no connection is at the router's listener with this index, or on its way there."""
        place = self.places[index]
        if not place.is_routers or place.sock is None or index == self.home or index in self._selected:
            return False
        if place.used:
            since_s = time.monotonic() - place.unused_since - TICK_S
            if not place.unused_since or any(one.age_s > since_s for one in handshakes_at(self._port)):
                return False
        return not _queued(place.sock)

    @staticmethod
    def _shut(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)  # for all who have it: it leaves the group now
        sock.close()

    def _check_room(self) -> None:
        if len(self.places) >= LISTENERS_MOST:
            raise NotBegunError(
                f"{LISTENERS_MOST} listeners share port {self._port} already", hint="stop daemons that drain"
            )

    def _refused(self, error: OSError) -> NotBegunError:
        why = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            why = "a program has it that does not share it, or runs as another user (socket(7), SO_REUSEPORT)"
        return NotBegunError(
            f"no listener for the daemon at {self._host} port {self._port}: {why}", hint='plane = "relay"'
        )


def _listens(sock: socket.socket | None) -> bool:
    return sock is not None and sock.fileno() >= 0 and listens(sock)


def inode_of(sock: socket.socket) -> int:
    """The number by which the kernel lists a socket."""
    return os.fstat(sock.fileno()).st_ino


def _queued(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _QUEUED_AT + 4)
    return int(struct.unpack_from("I", info, _QUEUED_AT)[0])
