"""Direct planes at full speed: the kernel is told anew again and again, and the order of things is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from activated_flips import Told, ask, flip, judge
from process_support import Started, line_of
from stage import Stage
from support import report, scaled
from turnout.core.model import Daemon as Registered
from turnout.planes.plane import Upstream
from turnout.system.process import identify

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture
def started() -> Iterator[Started]:
    with Started() as found:
        yield found


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


def test_a_connection_that_met_the_daemon_before_would_be_found_out() -> None:
    told: list[Told] = [(1.0, 2.0, "a"), (5.0, 6.0, "b")]
    assert judge(told, [(2.1, 4.9, "a"), (6.1, 7.0, "b"), (1.5, 2.5, "b"), (4.0, 5.5, "b")]) == (2, 0)
    assert judge(told, [(2.1, 4.9, "b"), (6.1, 7.0, "a")]) == (2, 2)


@pytest.mark.parametrize("kind", ["reuseport", "sk_lookup"], indirect=True)
@pytest.mark.timeout(900)
def test_flips_at_full_speed_lose_nobody_and_the_next_connection_always_meets_the_new_daemon(
    stage: Stage, started: Started
) -> None:
    flips = scaled(200, 2000)
    daemons = daemons_of(stage, started)
    figures = flip(stage, daemons, flips, ask)
    report("flips at full speed", **{**figures, "errors": len(figures["errors"])})
    assert figures["errors"] == []
    assert figures["wrong"] == 0
    assert figures["judged"] > 0
    assert figures["fewest"] > 0
    assert figures["relayed"] == 0, "some went through the relay"


@pytest.mark.parametrize(
    "cookies", ["", "0", "1", "2"], ids=lambda value: f"tcp_syncookies {value}" if value else "here"
)
@pytest.mark.timeout(900)
def test_flips_between_two_daemons_with_one_hard_coded_port_lose_nobody_either(cookies: str) -> None:
    flips = scaled(50 if cookies else 200, 2000)
    script = [sys.executable, str(SUPPORT / "activated_flips.py"), str(flips)]
    if cookies:
        namespace = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]
        script = [*namespace, "sh", "-c", 'ip link set lo up; exec "$0" "$@"', *script, cookies]
    done = subprocess.run(script, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    report("flips of activated daemons", cookies=cookies, **{**figures, "errors": len(figures["errors"])})
    assert figures["errors"] == []
    assert figures["wrong"] == 0
    assert figures["judged"] > 0
    assert figures["fewest"] > 0
    assert figures["relayed"] == 0, "some went through the relay"
