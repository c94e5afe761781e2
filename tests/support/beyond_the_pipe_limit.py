"""Bulk connections of a user who may not have as many pipes (fs.pipe-user-pages-soft, pipe(7)): ``… KIND``.

Every byte must arrive, some of them spliced, the rest copied, and the refusals counted.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading

from bulk_daemon import BLOCK, expected, take_in
from stage import Stage
from support import eventually
from traffic import End

CONNECTIONS = 600
SIZE = BLOCK // 2
NOBODY = 65534


def main() -> None:
    stage = Stage(sys.argv[1])
    daemon = stage.daemon("v1")
    first = End("client", stage.client(), "daemon")  # whatever is imported late is imported now
    far = daemon.accept()
    first.send(10)
    assert far.recv(10)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    pairs = [stage.pair(daemon) for _ in range(CONNECTIONS)]
    ends = [End("client", client, "daemon") for client, _ in pairs]
    for _ in range(2):  # every one of them is in the middle of a burst before any of them goes on
        for end in ends:
            end.send(SIZE // 4)
    eventually(lambda: _moved(stage) >= CONNECTIONS * SIZE // 2, why="the first halves do not arrive")
    denied, spliced = stage.plane.counters.pipes_denied, stage.plane.counters.spliced_bytes
    sender = threading.Thread(target=_send_the_rest, args=(ends,))
    sender.start()
    for number, (_, far) in enumerate(pairs):
        assert take_in(far, SIZE) == expected(SIZE), f"wrong bytes on connection {number}"
    sender.join()
    if stage.splices:
        assert denied > 0, "the limit was never met"
        assert spliced > 0
        assert stage.plane.counters.copied_bytes > CONNECTIONS * SIZE // 4
    with contextlib.suppress(OSError):
        far.close()
    stage.close()


def _send_the_rest(ends: list[End]) -> None:
    for end in ends:
        end.send(SIZE // 2)


def _moved(stage: Stage) -> int:
    return stage.call(stage.plane.traffic)["v1"].bytes_in or 0


if __name__ == "__main__":
    main()
