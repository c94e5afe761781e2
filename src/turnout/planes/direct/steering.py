"""What a direct plane is made of beside its relay: a way to steer, and a view of the connections that were steered."""

from __future__ import annotations

import socket
from collections.abc import Collection, Sequence
from typing import ClassVar, Protocol

from turnout.errors import SteeringError
from turnout.planes.plane import ConnectionInfo, Upstream


def in_words(error: OSError | SteeringError) -> str:
    """Why it could not be had, for people: without the number."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class Steering(Protocol):
    """One way to make the kernel hand new connections on the fixed addresses straight to a daemon's own listener.

    What it holds itself to, whatever fails:

    - Once :meth:`steer` has returned, no connection that begins later reaches another daemon than that one: a verb then
      hears that the switch is done. One that the kernel does not place comes to the router's own listener.
    - It keeps no descriptor of a daemon's listener beyond a call: while a copy is open, a daemon's death does not close
      the listener, and clients pile up in a queue that no process accepts from.
    - Before the first :meth:`listen` it touches nothing, for until then another router leads.

    Only the loop's thread calls, and nothing may block.
    """

    name: ClassVar[str]

    def listen(self, sock: socket.socket) -> None:
        """The router accepts on this listener from now on: steer its address as well. It stays the caller's.

        Raises:
            SteeringError: not to be had here, and why; it is noted all the same, for the next :meth:`steer`.
            OSError: the kernel refused; likewise.
        """
        ...

    def unlisten(self, address: tuple[str, int]) -> None:
        """Steer this host and port no more. Raises as :meth:`listen`."""
        ...

    def steer(self, upstream: Upstream | None) -> None:
        """Hand new connections to this daemon; None: to none, so all of them come to the router.

        Raises:
            SteeringError: this daemon cannot be reached so, and why.
            OSError: the kernel refused.

        After either the caller calls ``steer(None)``, and where that fails too, :meth:`close`. It also does so where
        nothing was ever steered: what a dead router left behind must not go on steering then.
        """
        ...

    def is_in_effect(self) -> bool:
        """Whether the kernel still does what :meth:`steer` set last; False once that daemon's listener is closed."""
        ...

    def release(self) -> None:
        """Another router leads from now on: give back what is ours; what it may take over goes on. Never raises."""
        ...

    def close(self) -> None:
        """Steer nothing any more, and leave nothing behind in the kernel. Never raises; may be called twice.

        A later :meth:`steer` begins again, for the listeners that are known.
        """
        ...


class Kernel(Protocol):
    """What a direct plane asks of the machine, for daemons by their boot: the router passes it in."""

    def boots(self) -> Collection[str]:
        """The daemons that may have connections."""
        ...

    def served(self, boot_id: str, *, peers: bool = False) -> Sequence[ConnectionInfo] | None:
        """The connections on the fixed addresses that this daemon has accepted, numbered below zero.

        None where that cannot be known: the kernel does not list them, or some may be the daemon's and its descriptors
        may not be looked at.
        """
        ...

    def queued(self, boot_id: str) -> int:
        """How many connections came to the fixed addresses and wait in its accept queue, as far as can be known.

        What came through the router waits there too, and is not among them: the relay counts that.
        """
        ...

    def pending(self, boot_id: str, older_s: float) -> bool:
        """Whether anything is on its way to this daemon's listener that would be reset if it closed now.

        That is what waits in its accept queue, and handshakes that began more than ``older_s`` seconds ago: the
        listener that got the SYN keeps them.
        """
        ...

    def settled(self, since: float) -> bool:
        """Whether the table behind :meth:`served` was read after that moment, and each connection in it has its daemon.

        It is good for a while, and a connection is the kernel's for a moment between its listener and the process that
        accepts it: neither may look like a daemon without connections. ``since``: monotonic seconds.
        """
        ...

    def cut(self, boot_id: str, ids: Collection[int] | None) -> int:
        """End connections of that daemon, as :meth:`Plane.cut`; answers how many, 0 where the kernel forbids it."""
        ...

    def not_accepting_reason(self, boot_id: str) -> str:
        """Why this daemon accepts nothing at the moment (stopped, a full accept queue); empty where it does."""
        ...
