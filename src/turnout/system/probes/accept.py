"""Checks whether a daemon accepts connections: a process waits on its listener, or has accepted a connection."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Final

from turnout.core.acceptors import Waited
from turnout.core.model import Daemon
from turnout.system.net.acceptors import waited_on
from turnout.system.net.sock_diag import SYN_RECV
from turnout.system.net.sockets import holders_of, listeners_of, listening_at, server_end
from turnout.system.process import tree_of

QUEUE_LOOK_S: Final = 0.02
_RESET: Final = b"\0reset"  # longer than what is peeked at


def waited(daemon: Daemon, *, verify_owner: bool) -> Waited:
    """Whether the kernel shows a process that waits on the listeners which get the daemon's connections.

    Args:
        daemon: which; without a pid every process that holds the listener counts.
        verify_owner: whether only the daemon's own processes count.
    """
    inodes = {listener.inode for listener in listening_at(daemon.host, daemon.port)}
    if daemon.pid > 0 and verify_owner:
        pids = tree_of(daemon.identity)
        # a shared address has listeners of others beside the daemon's
        inodes &= {listener.inode for listener in listeners_of(pids)}
    elif daemon.source:
        return Waited.UNKNOWN
    else:
        pids = holders_of(inodes)
    return waited_on(inodes, pids)


def is_accepted(
    sock: socket.socket, daemon: Daemon, deadline: float, *, still_listens: Callable[[], bool]
) -> bool | None:
    """Whether a process takes this connection from the daemon's accept queue; None: the system does not tell.

    Args:
        sock: a connection to the daemon; it is non-blocking from here on.
        daemon: which.
        deadline: monotonic seconds.
        still_listens: answers whether the daemon has its listener; asked after a reset, which a daemon sends that did
            not read all that came, and the kernel where the listener was closed.
    """
    host, port = sock.getsockname()[:2]
    sock.setblocking(False)
    while True:
        came = _peek(sock)
        if came == _RESET:
            return still_listens()
        end = server_end(daemon.port, (host, port))
        if came is not None or (end and end.inode):
            return True
        if time.monotonic() + QUEUE_LOOK_S > deadline:
            return None if end is None or end.state == SYN_RECV else False
        time.sleep(QUEUE_LOOK_S)


def _peek(sock: socket.socket) -> bytes | None:
    """The first byte that came, which stays there; empty: the end of the stream. None: nothing came yet."""
    try:
        return sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return None
    except ConnectionError:
        return _RESET
