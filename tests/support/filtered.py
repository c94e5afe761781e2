"""A program under the activation filter, and the notification descriptor that the keeper would have."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from types import TracebackType
from typing import Final, Self

from turnout.activation.seccomp import Notifications, WaitingCall

DEADLINE_S: Final = 60.0
_CHILD: Final = """
import os, socket, sys
from turnout.activation import seccomp
line = socket.socket(fileno=int(sys.argv[1]))
fd = seccomp.install(privileged=False)
first = seccomp.Notifications(fd).first_call()
socket.send_fds(line, [b"%d" % first.id], [fd])
os.close(fd)
assert line.recv(1) == b"g"
exec(sys.argv[2])
"""


class Filtered:
    """``code``, run by Python under the filter; :meth:`printed` is what it prints. Owns process and descriptors."""

    def __init__(self, code: str) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _CHILD, str(theirs.fileno()), code],
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
            theirs.close()
            ours.settimeout(DEADLINE_S)
            said, fds, _, _ = socket.recv_fds(ours, 32, 1)
            self.notifications = Notifications(fds[0])
            self.first_call = WaitingCall(int(said), 0, 0, (0,) * 6)
            ours.send(b"g")

    def next_call(self) -> WaitingCall:
        """The next call that waits for its answer."""
        poller = select.poll()
        poller.register(self.notifications.fileno(), select.POLLIN)
        assert poller.poll(DEADLINE_S * 1000), "no call comes"
        call = self.notifications.receive()
        assert call
        return call

    def printed(self) -> str:
        """All that it wrote, once it has ended well."""
        said, _ = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0
        return said

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.notifications.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
