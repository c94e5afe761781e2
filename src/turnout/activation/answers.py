"""Answers the calls of one daemon that wait: a bind of its serving port goes to the address that turnout gives it.

    the serving port, on loopback or a wildcard ─────────► the fixed address where daemons share it, for IPv4 and for
                                                           both families; else the given port of 127.0.0.1. Each time
    another TCP port that a daemon of its service holds ─► any free port of 127.0.0.1
    anything else ───────────────────────────────────────► as the daemon says

The serving port is the one that is named, else the first that it binds. A socket joins the group at the fixed address
when the daemon listens on it: only then does it mean to accept.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from turnout.activation.exchange import closes_on_exec, is_still, stand_in
from turnout.activation.seccomp import Notifications, WaitingCall, calls_of
from turnout.activation.sockets import (
    LOOPBACK,
    BindAddress,
    address_of,
    bind_in_place,
    is_bound_to,
    is_in_our_network,
    socket_of,
)

AFTER_LAST: Final = 64  # how many calls a keeper may have received after the last one that it noted
_PORTS: Final = 64
_MOST_BACKLOG: Final = 65535
_NO_CALL: Final = WaitingCall(0, 0, 0, (0,) * 6)
_LAYOUT: Final = struct.Struct(f"=Qii6QHHHH{_PORTS}H")


@dataclass(slots=True)
class Memory:
    """What is known of a daemon's binds, in memory that outlives the keeper. Owns its descriptor (memfd_create(2)).

    Args:
        fd: of the memory.
        given: the port of 127.0.0.1 that the serving port becomes, where it does not become the fixed address.
        shares: whether the daemon is to listen at the fixed address itself.
        call: what was received last; None: nothing was.
        serving: the daemon's own port that is answered with the given one; 0: not known yet.
        ports: the TCP ports that it bound as it said, the first 64 of them.
    """

    fd: int
    given: int
    shares: bool = False
    call: WaitingCall | None = None
    serving: int = 0
    ports: tuple[int, ...] = ()

    @classmethod
    def new(cls, given: int, serving: int, *, shares: bool = False) -> Memory:
        """Raises OSError: no descriptor or memory is left."""
        memory = cls(os.memfd_create("turnout-binds", os.MFD_CLOEXEC), given, shares, serving=serving)
        memory.store()
        return memory

    @classmethod
    def of(cls, fd: int) -> Memory:
        """What an earlier keeper stored. Raises OSError: it cannot be read."""
        call_id, thread, number, *rest = _LAYOUT.unpack(os.pread(fd, _LAYOUT.size, 0).ljust(_LAYOUT.size, b"\0"))
        last = WaitingCall(call_id, thread, number, tuple(rest[:6])) if call_id else None
        given, shares, serving, count, *ports = rest[6:]
        return cls(fd, given, bool(shares), last, serving, tuple(ports[:count]))

    def store(self) -> None:
        ports = self.ports[:_PORTS]
        room = (*ports, *[0] * (_PORTS - len(ports)))
        last = self.call or _NO_CALL
        call = (last.id, last.thread, last.number, *last.arguments)
        os.pwrite(self.fd, _LAYOUT.pack(*call, self.given, self.shares, self.serving, len(ports), *room), 0)

    def close(self) -> None:
        os.close(self.fd)


class FixedAddress(Protocol):
    """The fixed address of the daemon's service, where the daemon is to listen itself."""

    def get(self) -> tuple[str, int] | None:
        """None: it cannot be shared."""
        ...

    def processes(self) -> Collection[int]:
        """The daemon's processes, as far as they are known."""
        ...

    def admit(self, sock: socket.socket, backlog: int) -> None:
        """Have a socket that is bound there listen, in the group. It is owned there from now on.

        Raises:
            OSError: it cannot.
        """
        ...


@dataclass(slots=True)
class BindAnswers:
    """Answers what one daemon asks by its binds. Owns nothing: the caller closes the notifications and the memory.

    Args:
        held: whether another daemon of the service holds a port, as far as it is known.
        fixed: where ``memory.shares``, the address.
        log: takes a line.
        trouble: why a bind could not be answered; empty: all were.
    """

    notifications: Notifications
    memory: Memory
    held: Callable[[int], bool]
    fixed: FixedAddress
    log: Callable[[str], None]
    trouble: str = ""
    _logged: dict[int, int] = field(default_factory=dict[int, int])  # by port, what it became: a storm is one line

    def take_over(self) -> None:
        """Answer the calls that an earlier keeper had received and not answered: they are reported no more.

        What those after the noted one are about is not known: they are executed as they stand.
        """
        memory = self.memory
        last = memory.call
        if last is None:
            return
        if self.notifications.is_valid(last.id):
            self._answer(last)
        for call_id in range(last.id + 1, last.id + AFTER_LAST + 1):
            if self.notifications.is_valid(call_id):
                self.notifications.proceed(call_id)
                memory.call = replace(_NO_CALL, id=call_id)  # however many keepers die, the last id is near
                memory.store()

    def turn(self) -> None:
        """Answer one call, which is due. A storm of binds delays what else the keeper does by no more than that."""
        call = self.notifications.receive()
        if call is None:
            return
        try:
            self.memory.call = call
            self.memory.store()
        finally:
            self._answer(call)

    def _answer(self, call: WaitingCall) -> None:
        error: int | None = None
        try:
            if call.number == calls_of().bind:
                error = self._bind(call)
            elif call.number == calls_of().listen and self.memory.shares:
                error = self._listen(call)
        except OSError as failure:
            if failure.errno != errno.EBADF and self.notifications.is_valid(call.id):
                self._note(failure)
        finally:  # the thread of a call that was received and is not answered hangs until SIGKILL
            if error is None:
                self.notifications.proceed(call.id)
            else:
                self.notifications.answer(call.id, error=error)

    def _bind(self, call: WaitingCall) -> int | None:
        """Bind the daemon's socket; 0, or the error that bind(2) returns. None: the kernel is to execute the call.

        Raises OSError: the daemon cannot be looked at.
        """
        address = address_of(call)
        if address is None or not address.port:
            return None
        sock = socket_of(call)
        if sock is None or not self.notifications.is_valid(call.id):
            return None
        with sock:
            port = self._port_for(address) if is_in_our_network(sock) else None
            if port is None:
                return None
            host, fixed = LOOPBACK, None
            if port == self.memory.given and self.memory.shares:
                fixed = self.fixed.get()
            if fixed and sock.family == socket.AF_INET:
                host, port = fixed
            elif fixed and self._exchange(call, sock, address, fixed):
                return 0
            if port and is_bound_to(sock, port, host):
                return 0
            try:
                bind_in_place(sock, port, host)
            except OSError as error:
                return error.errno
            self._say(address, host, sock.getsockname()[1])
            return 0

    def _say(self, address: BindAddress, host: str, became: int) -> None:
        if self._logged.get(address.port) != became:
            self._logged[address.port] = became
            self.log(f"port {address.port} of {address.host} is {host} port {became}")

    def _exchange(self, call: WaitingCall, sock: socket.socket, address: BindAddress, fixed: tuple[str, int]) -> bool:
        """Put a socket that is bound to the fixed address in the place of a dual-stack one; False: it has to stay.

        Raises:
            OSError: the daemon cannot be looked at, or the address cannot be bound.
        """
        replacement = stand_in(call, sock, address.host, self.fixed.processes())
        if replacement is None:
            return False
        with replacement:
            bind_in_place(replacement, fixed[1], fixed[0])
            closes = closes_on_exec(call)
            if not self.notifications.is_valid(call.id) or not is_still(call, sock):  # the latter last: see exchange.py
                return False
            self.notifications.put(call, replacement.fileno(), close_on_exec=closes)
        self._say(address, *fixed)
        return True

    def _listen(self, call: WaitingCall) -> int | None:
        """Have a socket that is bound at the fixed address join the group there; answers as :meth:`_bind`."""
        sock = socket_of(call)
        if sock is None:
            return None
        fixed = self.fixed.get()
        is_shared = fixed is not None and sock.family == socket.AF_INET and is_bound_to(sock, fixed[1], fixed[0])
        if not is_shared or not self.notifications.is_valid(call.id):
            sock.close()
            return None
        backlog = call.arguments[1] & 0xFFFFFFFF
        try:
            self.fixed.admit(sock, min(backlog, _MOST_BACKLOG))  # a negative one is as large as can be (listen(2))
        except OSError as error:
            self._note(error)
            return error.errno or errno.EADDRINUSE
        return 0

    def _port_for(self, address: BindAddress) -> int | None:
        """The port of 127.0.0.1 that a TCP socket gets in the place of its own; 0: any. None: it gets its own."""
        memory = self.memory
        if not memory.serving and address.is_local:
            memory.serving = address.port
            memory.store()
        if address.port == memory.serving and address.is_local:
            return None if address.port == memory.given else memory.given
        if self.held(address.port):
            return 0
        if address.port not in memory.ports and len(memory.ports) < _PORTS:
            memory.ports = (*memory.ports, address.port)
            memory.store()
        return None

    def _note(self, error: OSError) -> None:
        why = error.strerror or str(error)
        if isinstance(error, PermissionError):
            why = "it may not be looked at (ptrace(2)): it runs as another user, or has made itself not dumpable"
        if why != self.trouble:
            self.trouble = why
            self.log(f"a bind cannot be answered: {why}")
