"""A changed turnout.toml and SIGHUP, with a router that runs; and what a keeper does when it is told to end."""

from __future__ import annotations

import shlex
import signal
import socket
import time

import pytest

from e2e_support import Turnout, ask, line_daemon
from support import eventually
from turnout.core.model import Desired
from turnout.demo.load import Load, line_exchange
from turnout.system.flock import hold, holder_pid
from turnout.system.process import identify, is_alive


def test_a_changed_file_is_taken_over_and_what_cannot_be_is_in_status(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), deadline="10m")
    turnout.run("up")
    assert turnout.status()["settings"] == {"later": [], "error": ""}
    router = turnout.router_pid()
    toml = turnout.home.root.parent / "turnout.toml"
    text = toml.read_text()
    turnout.tune(hold='{ max = 7, timeout = "9s" }', plane='"stream"')
    later = eventually(lambda: turnout.status()["settings"]["later"])
    assert later == ["plane: turnout up, then turnout router --replace"]
    assert "later      plane: turnout up" in turnout.run("status", "-v").stdout
    eventually(lambda: "reloaded: hold_max, hold_timeout_s" in turnout.home.router_log.read_text())
    toml.write_text("this is no TOML")
    assert str(toml) in eventually(lambda: turnout.status()["settings"]["error"])
    assert ask(turnout.address) == "v1", "a broken file disturbs nobody"
    toml.write_text(text)
    eventually(lambda: turnout.status()["settings"] == {"later": [], "error": ""})
    assert turnout.router_pid() == router


def test_sighup_to_router_and_keeper_reloads_and_ends_neither(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    keeper, router = turnout.keeper_pid(), turnout.router_pid()

    def reloads() -> int:
        return turnout.home.router_log.read_text().count("reloaded:")

    for pid in (router, keeper):
        before = reloads()
        turnout.kill(pid, signal.SIGHUP)
        eventually(lambda before=before: reloads() > before)  # type: ignore[misc]
    assert (turnout.keeper_pid(), turnout.router_pid()) == (keeper, router)
    assert ask(turnout.address) == "v1"


def test_sigterm_to_the_keeper_is_down_connections_get_their_grace(turnout: Turnout) -> None:
    # so long that the look at the daemon falls into the grace on a busy machine, too
    turnout.configure(line_daemon("--version", "v1"), settings={"drain": '{ grace = "3s", deadline = "none" }'})
    turnout.run("up")
    keeper = identify(turnout.keeper_pid())
    with socket.create_connection(turnout.address, 20) as lasting:
        lines = lasting.makefile("rw")
        lines.write("hello\n")
        lines.flush()
        assert lines.readline().startswith("v1 ")
        began = time.monotonic()
        turnout.kill(keeper.pid, signal.SIGTERM)
        eventually(lambda: turnout.snapshot().deployment.desired is Desired.STOPPED)
        assert turnout.daemons(), "the grace of its connection is not over"
        lasting.settimeout(60)
        assert lasting.recv(1) == b""
        assert time.monotonic() - began >= 3.0, "drain.grace of this service"
    eventually(lambda: not is_alive(keeper), timeout_s=60)
    assert turnout.processes() == {}
    assert not turnout.listening()
    assert [event["reason"] for event in turnout.journal() if event["event"] == "deactivate"] == ["down"]


def test_a_second_sigterm_to_the_keeper_does_not_wait(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), deadline="none")
    toml = turnout.home.root.parent / "turnout.toml"
    toml.write_text(toml.read_text().replace('grace = "1s"', 'grace = "10m"'))
    turnout.run("up")
    keeper = identify(turnout.keeper_pid())
    with socket.create_connection(turnout.address, 20) as lasting:
        lasting.sendall(b"no line yet")
        turnout.kill(keeper.pid, signal.SIGTERM)
        eventually(lambda: turnout.snapshot().deployment.desired is Desired.STOPPED)
        turnout.kill(keeper.pid, signal.SIGTERM)
        eventually(lambda: not is_alive(keeper), timeout_s=60)
    assert turnout.processes() == {}
    lock = turnout.home.service("default").root / "lifecycle.lock"
    eventually(lambda: holder_pid(lock) is None, timeout_s=60, why="the verb waits on, for daemons that are dead")


@pytest.mark.parametrize("times", [1, 2])
def test_where_its_verb_cannot_the_keeper_ends_daemons_by_their_own_signal_and_grace(
    turnout: Turnout, times: int
) -> None:
    """Once: the verb does not get the lock. Twice: nobody waits for the verb. TERM would leave a PostgreSQL waiting."""
    heard = turnout.home.root.parent / "heard"
    traps = " ".join(f"trap 'echo {name} >> {heard}; [ {name} = TERM ] || exit 0' {name};" for name in ("INT", "TERM"))
    daemon = shlex.join(line_daemon("--version", "v1"))
    turnout.configure(["sh", "-c", f"{traps} {daemon} & while :; do wait; done"], stop_signal="INT")
    turnout.run("up", env={**turnout.env, "TURNOUT_LOCK_TIMEOUT": "0.1" if times == 1 else "60"})
    keeper = identify(turnout.keeper_pid())
    with hold(turnout.home.service("default").root / "lifecycle.lock", timeout_s=20, guarded="the service"):
        for number in range(times):
            turnout.kill(keeper.pid, signal.SIGTERM)
            said = ("going down", "shutting down")[number]
            eventually(lambda said=said: said in turnout.home.keeper_log.read_text())  # type: ignore[misc]
        eventually(lambda: not is_alive(keeper), timeout_s=60)
    assert heard.read_text() == "INT\n"
    assert turnout.processes() == {}


def test_a_keeper_that_goes_down_starts_nothing_new(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), deadline="none")
    turnout.run("up")
    keeper = identify(turnout.keeper_pid())
    with socket.create_connection(turnout.address, 20) as lasting:
        lasting.sendall(b"no line yet")
        turnout.kill(keeper.pid, signal.SIGTERM)
        eventually(lambda: turnout.snapshot().deployment.desired is Desired.STOPPED)
        turnout.run("router", "--replace", code=3)
    eventually(lambda: not is_alive(keeper), timeout_s=60)
    assert turnout.processes() == {}


def test_load_during_a_reload_notices_nothing(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    load = Load(turnout.address, line_exchange)
    load.start()
    try:
        for number in range(5):
            turnout.configure(line_daemon("--version", "v1"), observe=f"{number + 1}s")
            turnout.kill(turnout.router_pid(), signal.SIGHUP)
            goal = load.made + 20
            eventually(lambda goal=goal: load.made > goal)  # type: ignore[misc]
    finally:
        load.stop()
    assert (load.failed, dict(load.errors)) == (0, {})
