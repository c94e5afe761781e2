"""Daemons that set SO_REUSEPORT themselves and listen at the fixed address; by the real command."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from direct_support import deploy_under_load, holders, router
from e2e_support import Turnout, ask, under_load
from support import eventually, report, scaled
from turnout.demo.load import Load, line_exchange
from turnout.system.process import descendants

OTHER_USER = (
    "import os, socket, sys, time\n"
    "os.setuid(65534)\n"
    "s = socket.socket()\n"
    "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
    "try:\n    s.bind(('127.0.0.1', int(sys.argv[1])))\n"
    "except OSError as error:\n    print(error, flush=True)\n"
    "time.sleep(float(sys.argv[2]))\n"
)


def configure(turnout: Turnout, version: str, *flags: str, probe: str = "alive", extra: str = "", **more: str) -> None:
    daemon = [sys.executable, "-P", "-m", "turnout.demo.daemon", "--port", "{listen_port}", "--share-port"]
    turnout.configure(
        [*daemon, "--version", version, *flags], version=version, observe="200ms", probe=probe, extra=extra
    )
    turnout.tune(**{"shares_port": "true", "start_timeout": '"30s"', **more})


@pytest.fixture
def sharing(turnout: Turnout) -> Turnout:
    configure(turnout, "v1")
    turnout.run("up")
    assert router(turnout)["plane"] == "reuseport"
    return turnout


def test_deploys_under_load_fail_nobody_and_no_byte_passes_the_router(sharing: Turnout) -> None:
    deploy_under_load(sharing, configure, "shares_port")


def test_a_candidate_is_probed_itself_and_never_the_active_daemon(sharing: Turnout) -> None:
    asks = ', send = "who\\n", match = "v2"'
    configure(sharing, "v2", probe="expect", extra=asks)
    sharing.run("deploy")
    configure(sharing, "v3", probe="expect", extra=asks, start_timeout='"5s"')
    told = sharing.run("deploy", code=None)
    assert told.returncode != 0
    assert "only 'v3 " in told.stderr, "it was the candidate who answered"
    assert ask(sharing.address) == "v2"


def goes_on(load: Load) -> None:
    made = load.made
    eventually(lambda: load.made > made + 50, why="nobody is served")


def test_a_worker_that_is_killed_is_followed_by_one_whose_place_is_found(turnout: Turnout) -> None:
    """What it had accepted or queued ends with it; who comes after waits for the next worker, in the hold."""
    configure(turnout, "v1", "--workers", "1", probe="expect", extra=', send = "HEALTH\\n", match = "ok"')
    turnout.run("up")
    boot_id, master = (turnout.active()[key] for key in ("boot_id", "pid"))
    clients = 3
    kills = scaled(3, 20)
    load = Load(turnout.address, line_exchange, clients=clients)
    load.start()
    try:
        for _ in range(kills):
            goes_on(load)
            (worker,) = descendants(master)
            turnout.kill(worker)
            goes_on(load)
            eventually(lambda: router(turnout)["plane_trouble"] == "")
    finally:
        load.stop()
    report("workers killed", kills=kills, made=load.made, failed=load.failed, clients=clients)
    assert load.failed <= kills * clients + 1, dict(load.errors)  # and the one that stays
    assert turnout.active()["boot_id"] == boot_id, "the daemon itself did not die"
    configure(turnout, "v2", "--workers", "1")
    with under_load(turnout) as load:
        turnout.run("deploy")
        eventually(lambda: load.answered["v2"] > 0)


def test_several_workers_with_a_listener_each_are_refused_in_words(sharing: Turnout) -> None:
    with under_load(sharing):
        configure(sharing, "v2", "--workers", "2")
        told = sharing.run("deploy", code=1).stderr
    assert f"the daemon has 2 listeners at 127.0.0.1 port {sharing.port}" in told
    assert "have it take its listener: {fd}" in told
    assert ask(sharing.address) == "v1"
    eventually(lambda: len(sharing.daemons()) == 1, why="nothing is left of it")
    assert router(sharing)["plane_trouble"] == ""


@pytest.mark.parametrize("stays_s", ["0", "60"])
def test_another_users_daemon_is_refused_with_the_reason(sharing: Turnout, stays_s: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else for a moment")
    with under_load(sharing):
        sharing.configure([sys.executable, "-S", "-E", "-c", OTHER_USER, "{port}", stays_s], version="v2")
        sharing.tune(shares_port="true", start_timeout='"3s"')
        told = sharing.run("deploy", code=1).stderr
    assert "which the kernel allows to listeners of one user alone, here root (uid 0)" in told
    assert ("the daemon runs as nobody (uid 65534)" in told) or stays_s == "0"
    assert ask(sharing.address) == "v1"


def test_a_daemon_that_does_not_set_the_option_is_refused_with_the_reason(sharing: Turnout) -> None:
    daemon = [sys.executable, "-P", "-m", "turnout.demo.daemon", "--port", "{port}"]
    sharing.configure(daemon, version="v2")
    sharing.tune(shares_port="true")
    told = sharing.run("deploy", code=1).stderr
    assert "only where each sets SO_REUSEPORT before bind(2)" in told
    assert ask(sharing.address) == "v1"


def test_under_a_relay_it_has_a_port_of_its_own(turnout: Turnout) -> None:
    configure(turnout, "v1", plane='"relay"')
    turnout.run("up")
    assert router(turnout)["plane"] == "relay"
    assert turnout.active()["port"] != turnout.port
    assert ask(turnout.address) == "v1"


def test_a_killed_keeper_and_router_are_followed_by_ones_that_know_every_place(sharing: Turnout) -> None:
    with under_load(sharing) as load:
        sharing.kill(sharing.keeper_pid())
        for number in range(2, 4):
            configure(sharing, f"v{number}")
            sharing.run("deploy")
        before = sharing.router_pid()
        sharing.kill(before)
        eventually(lambda: router(sharing)["pid"] not in {None, before})
        configure(sharing, "v4")
        sharing.run("deploy")
        eventually(lambda: load.answered["v4"] > 0)
    assert router(sharing)["plane_trouble"] == ""


def test_a_daemon_that_is_killed_is_started_again_and_nobody_else_has_its_listener(sharing: Turnout) -> None:
    before = sharing.active()
    os.kill(before["pid"], signal.SIGKILL)
    eventually(lambda: sharing.snapshot().deployment.active_boot_id not in {"", before["boot_id"]}, timeout_s=60)
    assert ask(sharing.address) == "v1"
    eventually(lambda: router(sharing)["plane_trouble"] == "")
    ours = {sharing.router_pid(), sharing.keeper_pid()}
    pid = sharing.active()["pid"]
    eventually(lambda: all(pids in ({pid}, ours) for pids in holders(sharing.address).values()))
