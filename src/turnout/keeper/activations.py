"""The activation of the keeper's daemons: each runs under a filter, and the keeper answers its binds in its loop.

    socket pair ◄── the daemon's child sends its notification descriptor, and executes the daemon
    memory      ◄── the keeper notes what it knows of the daemon's binds
    both are held by the daemon's shim: a bind waits while there is no keeper, and the next one answers it

The last process under the filter ends the notifications, and the shim's end those of a daemon without a filter.

Standard library only and single-threaded, as the keeper is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import selectors
import socket
import struct
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from turnout.activation.answers import BindAnswers, Memory
from turnout.activation.obstacle import is_privileged
from turnout.activation.seccomp import Notifications, UnsupportedError, install
from turnout.errors import TurnoutError
from turnout.keeper.daemon_listeners import DaemonListeners
from turnout.system.pidfd import copy_of
from turnout.system.process import is_alive
from turnout.system.spawn_record import SpawnRecord

SERVED_WITHIN_S: Final = 10.0  # for a router to bring the listeners of the service to a new keeper
SERVED_AGAIN_S: Final = 0.1
_MESSAGE_BYTES: Final = 16
_FD: Final = struct.Struct("i")


@dataclass(slots=True)
class _Boot:
    """One daemon. ``line``: where its child sends the descriptor; ``answers`` None: it has not been sent yet.

    ``wait_until``: how long its service's listeners may take to come from a router, monotonic seconds.
    """

    service: str
    line: socket.socket
    memory: Memory
    answers: BindAnswers | None = None
    trouble: str = ""
    wait_until: float = 0.0


@dataclass(frozen=True, slots=True)
class _FixedAddress:
    """The address that the daemons of a service share, for one of them."""

    listeners: DaemonListeners
    service: str
    boot_id: str

    def get(self) -> tuple[str, int] | None:
        with contextlib.suppress(TurnoutError):
            return self.listeners.group_of(self.service).address
        return None

    def processes(self) -> Collection[int]:
        return self.listeners.pids_of(self.boot_id)

    def admit(self, sock: socket.socket, backlog: int) -> None:
        try:
            self.listeners.admit(self.service, self.boot_id, sock, backlog)
        except TurnoutError as error:
            raise OSError(errno.EADDRINUSE, error.message) from error


class Activations:
    """Owns the sockets, the memory and the notification descriptors of the daemons that are activated.

    Args:
        selector: where notifications are waited for.
        listeners: the groups that daemons may join.
        log: takes a line.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        listeners: DaemonListeners,
        after: Callable[[float, Callable[[], None]], None],
        log: Callable[[str], None],
    ) -> None:
        self._selector = selector
        self._listeners = listeners
        self._after = after
        self._log = log
        self._all: dict[str, _Boot] = {}

    def prepare(self, service: str, boot_id: str, *, given: int, serving: int, shares: bool = False) -> tuple[int, ...]:
        """Make what the daemon is started with: the descriptors that its shim holds (:func:`run_under_filter`).

        Args:
            service: its service.
            boot_id: the daemon.
            given: the port of 127.0.0.1 to which its serving port is bound.
            serving: its own port; 0: the first that it binds.
            shares: its serving port is bound to the fixed address, where that can be.

        Raises:
            OSError: no descriptor or memory is left.
        """
        self.forget(boot_id)  # an attempt of the same boot that ended a moment ago
        line, sending = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # it tells of its other end
        try:
            memory = Memory.new(given, serving, shares=shares)
        except OSError:
            line.close()
            sending.close()
            raise
        self._add(boot_id, _Boot(service, line, memory))
        return line.fileno(), sending.detach(), memory.fd

    def started(self, boot_id: str, held: Sequence[int], *, runs: bool) -> None:
        """The start of a daemon is over: what only its child needed is closed, or all of it."""
        os.close(held[1])
        if not runs:
            self.forget(boot_id)

    def adopt(self, record: SpawnRecord) -> None:
        """Answer a daemon that an earlier keeper started, and that may wait since then."""
        shim, copies = record.shim, list[int]()
        if shim is None or record.boot_id in self._all or not is_alive(shim):
            return
        try:
            for fd in record.held_fds:
                copies.append(copy_of(shim.pid, fd))
            if not is_alive(shim):
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
            line_fd, sending, memory_fd = copies
            memory = Memory.of(memory_fd)
            line = socket.socket(fileno=line_fd)  # last: it closes what it owns
        except (OSError, ValueError) as error:
            for fd in copies:
                os.close(fd)
            why = (error.strerror if isinstance(error, OSError) else None) or error
            self._log(f"the binds of {record.boot_id} cannot be answered: {why}")
            return
        os.close(sending)
        self._add(record.boot_id, _Boot(record.service, line, memory, wait_until=time.monotonic() + SERVED_WITHIN_S))

    def binds_of(self, boot_id: str) -> dict[str, Any]:
        """What is known of a daemon's ports: ``serving``, the ``others`` that it bound itself, and any ``trouble``.

        ``indexes``: those that it has in the group at the fixed address.
        """
        boot = self._all.get(boot_id)
        if boot is None:
            return {"serving": 0, "others": [], "trouble": "", "indexes": []}
        trouble = boot.trouble or (boot.answers.trouble if boot.answers else "")
        indexes = self._listeners.indexes_of(boot.service, boot_id)
        serving, others = boot.memory.serving, list(boot.memory.ports)
        return {"serving": serving, "others": others, "trouble": trouble, "indexes": indexes}

    def forget(self, boot_id: str) -> None:
        """Let go of a daemon that was not started, or has ended with all of its processes."""
        boot = self._all.pop(boot_id, None)
        if boot is None:
            return
        with contextlib.suppress(KeyError):
            self._selector.unregister(boot.line)
        boot.line.close()
        boot.memory.close()
        if boot.answers:
            with contextlib.suppress(KeyError):
                self._selector.unregister(boot.answers.notifications.fileno())
            boot.answers.notifications.close()

    def close(self) -> None:
        for boot_id in list(self._all):
            self.forget(boot_id)

    def _add(self, boot_id: str, boot: _Boot) -> None:
        self._all[boot_id] = boot
        try:
            self._selector.register(boot.line, selectors.EVENT_READ, partial(self._begin, boot_id, boot))
        except OSError:  # epoll_ctl(2): ENOSPC, ENOMEM
            self.forget(boot_id)
            raise

    def _begin(self, boot_id: str, boot: _Boot) -> None:
        """The child has sent its descriptor, or why there is none. It stays in the socket, for the next keeper."""
        if self._all.get(boot_id) is not boot:  # it was forgotten in the same round of the loop
            return
        if boot.memory.shares and boot.service not in self._listeners.served and time.monotonic() < boot.wait_until:
            self._selector.unregister(boot.line)
            self._after(SERVED_AGAIN_S, partial(self._begin_again, boot_id, boot))
            return
        flags = socket.MSG_PEEK | socket.MSG_CMSG_CLOEXEC  # socket.recv_fds() passes no flags on
        message, control, _, _ = boot.line.recvmsg(_MESSAGE_BYTES, socket.CMSG_SPACE(_FD.size), flags)
        fds = [_FD.unpack_from(data)[0] for _, _, data in control]
        if not message:  # the shim has ended, and there was no filter
            self.forget(boot_id)
            return
        if message.isdigit():
            boot.line.recv(_MESSAGE_BYTES)
            boot.trouble = f"its filter was refused: {os.strerror(int(message))}"
            self._log(f"{boot_id}: {boot.trouble}")
            return
        if not fds:  # unix(7), MSG_CTRUNC. It stays in the socket, so it is tried again
            boot.trouble = os.strerror(errno.EMFILE)
            raise OSError(errno.EMFILE, boot.trouble)
        held = partial(self._is_held, boot.service, boot_id)
        fixed = _FixedAddress(self._listeners, boot.service, boot_id)
        answers = BindAnswers(
            Notifications(fds[0]), boot.memory, held, fixed, lambda line: self._log(f"{boot_id}: {line}")
        )
        try:
            answers.notifications.wake_in_turn()
            answers.take_over()
            self._selector.register(fds[0], selectors.EVENT_READ, partial(self._turn, boot_id, boot))
        except BaseException:  # epoll_ctl(2): ENOSPC, ENOMEM
            answers.notifications.close()
            raise
        self._selector.unregister(boot.line)
        boot.answers, boot.trouble = answers, ""

    def _begin_again(self, boot_id: str, boot: _Boot) -> None:
        if self._all.get(boot_id) is boot:
            try:
                self._selector.register(boot.line, selectors.EVENT_READ, partial(self._begin, boot_id, boot))
            except OSError:  # epoll_ctl(2): ENOSPC, ENOMEM; the daemon waits
                self._after(SERVED_AGAIN_S, partial(self._begin_again, boot_id, boot))

    def _turn(self, boot_id: str, boot: _Boot) -> None:
        answers = boot.answers
        if answers is None or self._all.get(boot_id) is not boot:
            return
        poller = select.poll()
        poller.register(answers.notifications.fileno(), select.POLLIN)
        events = sum(found for _, found in poller.poll(0))
        if events & select.POLLIN:  # RECV blocks where nothing is due
            answers.turn()
        elif events & select.POLLHUP:  # the last process under the filter has ended
            self.forget(boot_id)

    def _is_held(self, service: str, boot_id: str, port: int) -> bool:
        """Whether another daemon of this service bound that port as its own, and has processes."""
        return any(
            port in boot.memory.ports
            for other, boot in self._all.items()
            if other != boot_id and boot.service == service
        )


def run_under_filter(held: Sequence[int]) -> None:
    """In the child, before it executes the daemon: put it under the filter, and send the keeper its descriptor.

    A filter that is refused is no error: the daemon binds as it says, and the keeper knows why.
    """
    sending = socket.socket(fileno=held[1])
    try:
        fd = install(privileged=is_privileged())
    except UnsupportedError:
        sending.send(b"%d" % errno.ENOSYS)
    except OSError as error:
        sending.send(b"%d" % (error.errno or errno.EINVAL))
    else:
        memory = Memory.of(held[2])
        memory.call = Notifications(fd).first_call()  # a keeper that dies over the next one leaves an id to search from
        memory.store()
        socket.send_fds(sending, [b"f"], [fd])
        os.close(fd)
