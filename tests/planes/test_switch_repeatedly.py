"""Direct planes at full speed: the kernel is told anew again and again, and the order of things is kept."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from process_support import Started, line_of
from stage import Stage
from support import report, scaled
from turnout.core.model import Daemon as Registered
from turnout.planes.plane import Upstream
from turnout.system.process import identify

SUPPORT = Path(__file__).parents[1] / "support"
THREADS = 4
Told = tuple[float, float, str]  # when a flip was begun, when it was done, and to whom


@pytest.fixture
def started() -> Iterator[Started]:
    with Started() as found:
        yield found


def set_upstream(stage: Stage, target: Upstream) -> None:
    stage.call(lambda: stage.plane.set_upstream(target, patience_s=20.0))


def daemons_of(stage: Stage, started: Started) -> list[Upstream]:
    """Two, in processes of their own, which listen on ports of theirs or at the fixed address with the plane."""
    targets: list[Upstream] = []
    for version in ("v0", "v1"):
        if stage.group:
            listener, target = stage.joined(version)
            with listener:
                fd = listener.fileno()
                process = started.run(
                    sys.executable, str(SUPPORT / "fd_daemon.py"), version, "--fd", str(fd), pass_fds=[fd]
                )
            assert line_of(process).startswith(version.encode())
            daemon = Registered(version, *stage.address, identity=identify(process.pid), source=target.source)
        else:
            running = started.demo(version=version)
            target = Upstream(version, "127.0.0.1", running.port)
            daemon = replace(running.daemon, boot_id=version)
        stage.stand.daemons[version] = daemon
        targets.append(target)
    return targets


def ask(address: tuple[str, int]) -> str:
    with socket.create_connection(address, 20) as sock, sock.makefile("rb") as lines:
        sock.sendall(b"who\n")
        return lines.readline().decode().split()[0]


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


def test_a_connection_that_met_the_daemon_before_would_be_found_out() -> None:
    told = [(1.0, 2.0, "a"), (5.0, 6.0, "b")]
    assert judge(told, [(2.1, 4.9, "a"), (6.1, 7.0, "b"), (1.5, 2.5, "b"), (4.0, 5.5, "b")]) == (2, 0)
    assert judge(told, [(2.1, 4.9, "b"), (6.1, 7.0, "a")]) == (2, 2)


@pytest.mark.parametrize("kind", ["reuseport", "sk_lookup"], indirect=True)
@pytest.mark.timeout(900)
def test_flips_at_full_speed_lose_nobody_and_the_next_connection_always_meets_the_new_daemon(
    stage: Stage, started: Started
) -> None:
    flips = scaled(200, 2000)
    daemons = daemons_of(stage, started)
    set_upstream(stage, daemons[0])
    script = str(SUPPORT / "flip_clients.py")
    argv = [sys.executable, script, str(stage.address[1]), str(THREADS)]
    load = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with load:
        assert load.stdout
        assert load.stdout.readline() == "running\n"
        told: list[Told] = []
        for number in range(1, flips + 1):
            daemon = daemons[number % 2]
            began = time.monotonic()
            set_upstream(stage, daemon)
            told.append((began, time.monotonic(), daemon.boot_id))
            assert stage.plane.degraded_reason == ""
            assert ask(stage.address) == daemon.boot_id, "the next connection met the old daemon"
        said = json.loads(load.communicate("\n", timeout=120)[0])
    sure, wrong = judge(told, said["answered"])
    counted = Counter(who for _, _, who in said["answered"])
    figures = {"connections": counted.total(), "judged": sure, "wrong": wrong, "errors": len(said["errors"])}
    report("flips at full speed", flips=flips, **figures)
    assert said["errors"] == []
    assert wrong == 0
    assert sure > 0
    assert min(counted["v0"], counted["v1"]) > 0
    assert stage.plane.counters.accepted == 0, "some went through the relay"
