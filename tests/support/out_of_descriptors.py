"""Run the descriptors out in the process of a plane: what is carried goes on, it does not spin, and it recovers."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
import time
from pathlib import Path

from stage import Stage
from support import eventually


def main(kind: str, what: str) -> None:
    stage = Stage(kind)
    try:
        {"run out": run_out, "hold": hold}[what](stage)
    finally:
        stage.close()


def run_out(stage: Stage) -> None:
    daemon = stage.daemon("v1", point=False)
    stage.set_upstream(daemon, patience_s=0.25)  # as while nothing is on its way: a shortage is waited out all the same
    client, far = stage.pair(daemon)
    waiting = [socket.socket() for _ in range(8)]
    filling = leave_one(stage)
    for sock in waiting:
        sock.settimeout(20)
        sock.connect(stage.address)  # the kernel completes it; the plane cannot accept it
    eventually(lambda: stage.plane.counters.fd_exhausted > 0)
    # who cannot have the descriptor towards the daemon is not accepted
    assert stage.plane.counters.held_now == 0
    assert stage.call(stage.plane.connections) == stage.plane.counters.accepted <= 2
    before = time.process_time()
    client.sendall(b"carried")
    assert far.recv(100) == b"carried"
    time.sleep(0.5)
    assert time.process_time() - before < 0.3, "it spins"
    for fd in filling:
        os.close(fd)
    for _ in waiting:
        late = daemon.accept()
        late.sendall(b"at last")
        late.close()
    for sock in waiting:
        assert sock.recv(100) == b"at last"
        sock.close()


def hold(stage: Stage) -> None:
    """Clients wait for a daemon, and meanwhile every other descriptor is taken: each of them still gets through."""
    stage.set_upstream(None)
    held = [stage.client() for _ in range(20)]
    eventually(lambda: stage.plane.counters.held_now == len(held))
    daemon = stage.daemon("v1", point=False)
    dead = stage.daemon("dead", point=False)
    dead.listener.close()
    filling = leave_one(stage)
    stage.set_upstream(dead)  # a connect that is refused must not cost a client its descriptor
    eventually(lambda: stage.plane.counters.connect_failed > 2)
    stage.set_upstream(daemon)
    eventually(lambda: stage.call(stage.plane.connections) == len(held))
    for fd in filling:
        os.close(fd)
    for sock in held:
        with daemon.accept() as far:
            far.sendall(b"at last")
        assert sock.recv(100) == b"at last"


def leave_one(stage: Stage) -> list[int]:
    """Take every descriptor that the process may have but one; also those that the plane's loop has yet to close."""
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    filling: list[int] = []
    for _ in range(5):
        with contextlib.suppress(OSError):
            while True:
                filling.append(os.dup(1))
        stage.call(lambda: None)
    os.close(filling.pop())
    return filling


if __name__ == "__main__":
    main(*sys.argv[1:])
