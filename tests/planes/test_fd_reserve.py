"""What planes leave to the rest of a router when descriptors run out; in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os, resource, socket, sys
from turnout.planes.fd_reserve import FdReserve
from turnout.planes.pipe_pool import PipePool

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
room, pool = FdReserve(), PipePool()
pipe = pool.make()
assert pipe is not None
pipe.close()
filling = []
try:
    while True:
        filling.append(room.admit(socket.socket()))
except OSError as error:
    said = error.strerror
assert not room.recovered(0)
assert pool.make() is None
left = []
try:
    while True:
        left.append(os.dup(0))
except OSError:
    pass
print(len(left), said, sep=", ")
for fd in left:
    os.close(fd)
resource.setrlimit(resource.RLIMIT_NOFILE, (2 * limit, hard))
assert room.recovered(0), "prlimit(1) raises it for who runs"
room.admit(socket.socket()).close()
"""


@pytest.mark.parametrize(("limit", "kept"), [(1024, 64), (128, 16)])
def test_some_are_left_and_one_that_is_raised_is_seen(limit: int, kept: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(limit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == (f"{kept}, Too many open files", "")
