"""What a direct plane is made of beside its relay: a way to steer, and what the machine tells of what was steered."""

from __future__ import annotations

import socket
from collections.abc import Collection, Sequence
from typing import ClassVar, Protocol

from turnout.errors import SteeringError
from turnout.planes.plane import Carried, Target


def in_words(error: OSError | SteeringError) -> str:
    """Why it could not be had, for people: without the number."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class Steering(Protocol):
    """One way to make the kernel hand new connections on the fixed addresses straight to a daemon's own listener.

    What it holds itself to, whatever fails:

    - Once :meth:`steer` has returned, no connection that begins later reaches another daemon than that one: a verb is
      told then that the switch is done. One that the kernel does not place comes to the router's own listener.
    - It keeps no descriptor of a daemon's listener beyond a call: while a copy is open, a daemon's death does not close
      the listener, and clients pile up in a queue that nobody accepts from.
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

    def steer(self, target: Target | None) -> None:
        """Hand new connections to this daemon; None: to nobody, so all of them come to the router.

        Raises:
            SteeringError: this daemon cannot be reached so, and why.
            OSError: the kernel refused.

        After either the caller says ``steer(None)``, and where that fails too, :meth:`close`. It is also said where
        nothing was ever steered: what a dead router left behind must not go on steering then.
        """
        ...

    def stands(self) -> bool:
        """Whether the kernel still has what it was told last; False once that daemon has closed its listener."""
        ...

    def leave(self) -> None:
        """Another router leads from now on: give back what is ours; what it may take over goes on. Never raises."""
        ...

    def close(self) -> None:
        """Steer nothing any more, and leave nothing behind in the kernel. Never raises; may be called twice.

        A :meth:`steer` after it begins anew, for the listeners that are known.
        """
        ...


class Kernel(Protocol):
    """What a direct plane asks of the machine, for daemons by their boot: the router passes it in."""

    def boots(self) -> Collection[str]:
        """The daemons that may have connections."""
        ...

    def served(self, boot_id: str, *, peers: bool = False) -> Sequence[Carried] | None:
        """The connections on the fixed addresses that this daemon has accepted; None: it cannot be told.

        So it is where the kernel does not tell which there are, and where some may be the daemon's and its descriptors
        may not be looked at.

        Their numbers are below zero, so that none is one of a relay's.
        """
        ...

    def queued(self, boot_id: str) -> int:
        """How many connections came to the fixed addresses and wait in its accept queue, as far as can be told.

        What came through the router waits there too, and is not among them: the relay counts that.
        """
        ...

    def pending(self, boot_id: str, older_s: float) -> bool:
        """Whether anything is on its way to this daemon's listener that would be reset if it closed now.

        That is whoever waits in its accept queue, and handshakes that began more than ``older_s`` seconds ago: the
        listener that got the SYN keeps them.
        """
        ...

    def settled(self, since: float) -> bool:
        """Whether what :meth:`served` tells was looked at after that moment, and nothing in it is nobody's yet.

        A look is good for a while, and a connection is the kernel's for a moment between its listener and who accepts
        it: neither may look like a daemon without connections.

        Args:
            since: monotonic seconds.
        """
        ...

    def cut(self, boot_id: str, ids: Collection[int] | None) -> int:
        """End connections of that daemon, as :meth:`Plane.cut`; answers how many, 0 where the kernel forbids it."""
        ...

    def deaf(self, boot_id: str) -> str:
        """Why this daemon accepts nobody at the moment (stopped, a full accept queue); empty where it does."""
        ...
