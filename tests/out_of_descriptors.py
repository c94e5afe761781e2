"""Run the descriptors out in the process of a plane: what is carried goes on, it does not spin, and it recovers."""

from __future__ import annotations

import resource
import socket
import sys
import time
from pathlib import Path

from stage import Stage
from support import eventually


def main(kind: str) -> None:
    stage = Stage(kind)
    daemon = stage.daemon("v1", point=False)
    stage.point_at(daemon, patience_s=0.25)  # as while nothing is on its way: a shortage is waited out all the same
    client, far = stage.pair(daemon)
    used = len(list(Path("/proc/self/fd").iterdir()))
    waiting = [socket.socket() for _ in range(8)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 9, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    for sock in waiting:
        sock.settimeout(20)
        sock.connect(stage.address)  # the kernel completes it; the plane cannot accept it
    eventually(lambda: stage.plane.counters.fd_exhausted > 0)
    eventually(
        lambda: stage.plane.counters.held_now == 1
    )  # there was a descriptor for one client, and none for its daemon
    before = time.process_time()
    client.sendall(b"carried")
    assert far.recv(100) == b"carried"
    time.sleep(0.5)
    assert time.process_time() - before < 0.3, "it spins"
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    for _ in waiting:
        late = daemon.accept()
        late.sendall(b"at last")
        late.close()
    for sock in waiting:
        assert sock.recv(100) == b"at last"
        sock.close()
    stage.close()


if __name__ == "__main__":
    main(sys.argv[1])
