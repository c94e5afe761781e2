"""Whether a way to choose among listeners really works here: tried with connections, not guessed from a version."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from turnout.system.net.tcp import NO_RESOURCES

TIMEOUT_S: Final = 1.0
MEMBERS: Final = 2
_MIGRATES: Final = Path("/proc/sys/net/ipv4/tcp_migrate_req")  # Linux 5.14


def group_works(attach: Callable[[socket.socket, Sequence[int]], None]) -> str:
    """Make a small SO_REUSEPORT group on loopback, and connect once to each of its members by choice.

    Args:
        attach: has new connections to a listener's group go to the member with this index; raises OSError.

    Returns:
        Why it does not work here; empty where each connection came to the member that was chosen.

    Raises:
        OSError: no descriptor or no memory is left, so the trial shows nothing.
    """
    with contextlib.suppress(OSError):
        if _MIGRATES.read_text(encoding="ascii").strip() == "1":
            return (
                "net.ipv4.tcp_migrate_req is 1: the kernel gives what waits for a listener that closes to any other one"
            )
    try:
        with contextlib.ExitStack() as opened:
            members: list[socket.socket] = []
            for _ in range(MEMBERS):
                sock = opened.enter_context(socket.socket())
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                sock.bind(members[0].getsockname() if members else ("127.0.0.1", 0))
                sock.listen(1)
                sock.settimeout(TIMEOUT_S)
                members.append(sock)
            for index in reversed(range(MEMBERS)):
                attach(members[0], [index])
                if not _comes_to(members[index]):
                    return f"member {index} of a group was chosen, and another one got the connection"
    except OSError as error:
        if error.errno in NO_RESOURCES:
            raise
        return f"a group of listeners cannot be made: {error.strerror or error}"
    return ""


def _comes_to(member: socket.socket) -> bool:
    """Whether a connection to the group's address comes to this member."""
    with socket.create_connection(member.getsockname(), TIMEOUT_S) as client:
        try:
            far, peer = member.accept()
        except TimeoutError:
            return False
        far.close()
        return bool(peer == client.getsockname())
