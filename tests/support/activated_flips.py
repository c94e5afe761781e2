"""Flips between two daemons with one hard-coded port, under load: ``activated_flips.py FLIPS [SYNCOOKIES]``.

A plane reuseport on a loop of this process, and the keeper's answers to both daemons' calls. It prints figures as JSON.
``SYNCOOKIES`` is set first (tcp(7), tcp_syncookies), for a network namespace of its own.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import sys
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from filtered import Filtered
from stage import Stage
from turnout.activation.answers import BindAnswers, Memory
from turnout.core.model import Daemon
from turnout.core.slots import source_of
from turnout.planes.plane import Upstream
from turnout.reuseport.group import Group
from turnout.system.process import identify
from turnout.testing import free_port

THREADS: Final = 4
DEADLINE_S: Final = 60.0
Told = tuple[float, float, str]  # when a flip was begun, when it was done, and to whom
DAEMON: Final = (
    "import sys; sys.argv = {argv!r}; import runpy; runpy.run_module('turnout.demo.daemon', run_name='__main__')"
)


class Fixed:
    """The fixed address of the stage, for one daemon."""

    def __init__(self, group: Group, boot_id: str) -> None:
        self._group = group
        self._boot_id = boot_id

    def get(self) -> tuple[str, int]:
        self._group.open()
        return self._group.address

    def processes(self) -> tuple[()]:
        return ()

    def admit(self, sock: socket.socket, backlog: int) -> None:
        sock.listen(backlog)
        self._group.add(self._boot_id, sock, backlog)


@contextlib.contextmanager
def activated(stage: Stage, boot_id: str, own_port: int) -> Iterator[Upstream]:
    """A daemon that binds ``own_port``, and listens at the stage's address."""
    group = stage.group
    assert group
    argv = ["daemon", "--port", str(own_port), "--version", boot_id]
    with Filtered(DAEMON.format(argv=argv)) as daemon:
        memory = Memory.new(free_port(), own_port, shares=True)
        answers = BindAnswers(
            daemon.notifications, memory, lambda _port: False, Fixed(group, boot_id), lambda _line: None
        )
        poller = select.poll()
        poller.register(daemon.notifications.fileno(), select.POLLIN)
        deadline = time.monotonic() + DEADLINE_S
        while not group.indexes_of(boot_id):
            assert time.monotonic() < deadline
            assert poller.poll(DEADLINE_S * 1000)
            answers.turn()
        stage.take_notice()
        (index,) = group.indexes_of(boot_id)
        inode = group.places[index].inode
        identity, source = identify(daemon.process.pid), source_of(index)
        stage.stand.daemons[boot_id] = Daemon(boot_id, *stage.address, identity=identity, source=source)
        stage.stand.boots[inode] = boot_id
        yield Upstream(boot_id, *stage.address, source=source)
        daemon.process.kill()
        memory.close()


def judge(told: list[Told], answered: list[tuple[float, float, str]]) -> tuple[int, int]:
    """How many connections began after a flip and were made before the next one began; how many met another daemon."""
    done = [moment for _, moment, _ in told]
    sure = wrong = 0
    for began, made, who in answered:
        last = bisect_right(done, began) - 1
        if last >= 0 and (last + 1 == len(told) or made < told[last + 1][0]):
            sure += 1
            wrong += who != told[last][2]
    return sure, wrong


def flip(stage: Stage, daemons: list[Upstream], flips: int, ask: Callable[[tuple[str, int]], str]) -> dict[str, Any]:
    """Flip under load; what the clients say in the end."""
    script = str(Path(__file__).with_name("flip_clients.py"))
    stage.call(lambda: stage.plane.set_upstream(daemons[0], patience_s=20.0))
    argv = [sys.executable, script, str(stage.address[1]), str(THREADS)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as load:
        assert load.stdout
        assert load.stdout.readline() == "running\n"
        told: list[Told] = []
        for number in range(1, flips + 1):
            daemon = daemons[number % 2]
            began = time.monotonic()
            stage.call(partial(stage.plane.set_upstream, daemon, patience_s=20.0))
            told.append((began, time.monotonic(), daemon.boot_id))
            assert stage.plane.degraded_reason == ""
            assert ask(stage.address) == daemon.boot_id, "the next connection met the daemon before"
        said = json.loads(load.communicate("\n", timeout=120)[0])
    sure, wrong = judge(told, said["answered"])
    by_daemon = Counter(who for _, _, who in said["answered"])
    return {
        "flips": flips,
        "connections": by_daemon.total(),
        "fewest": min(by_daemon[daemon.boot_id] for daemon in daemons),
        "judged": sure,
        "wrong": wrong,
        "errors": said["errors"],
        "relayed": stage.plane.counters.accepted,
    }


def ask(address: tuple[str, int]) -> str:
    with socket.create_connection(address, 20) as sock, sock.makefile("rb") as lines:
        sock.sendall(b"who\n")
        return lines.readline().decode().split()[0]


def main() -> None:
    flips, *cookies = map(int, sys.argv[1:])
    for value in cookies:
        Path("/proc/sys/net/ipv4/tcp_syncookies").write_text(f"{value}\n")
    own_port = free_port()
    stage = Stage("reuseport")
    try:
        with contextlib.ExitStack() as opened:
            daemons = [opened.enter_context(activated(stage, boot_id, own_port)) for boot_id in ("v0", "v1")]
            print(json.dumps(flip(stage, daemons, flips, ask)), flush=True)
    finally:
        stage.close()
    assert threading.active_count() == 1


if __name__ == "__main__":
    main()
