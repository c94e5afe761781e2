"""The verbs that look, and those for daemons that something else started."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys

from e2e_support import Turnout, ask, line_daemon, under_load
from support import eventually
from turnout.core.model import Identity
from turnout.system.net.ports import choose_port
from turnout.system.net.sockets import who_listens
from turnout.system.process import is_alive


def test_status_as_json_has_the_stable_shape_with_and_without_a_router(turnout: Turnout) -> None:
    assert json.loads(turnout.run("status", "--json").stdout) == {"schema": 1, "metrics": None, "services": []}
    turnout.run("status", code=3)
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    with socket.create_connection(turnout.address) as sock:
        sock.sendall(b"hello\n")
        answer = sock.makefile().readline()
        service = turnout.status()
        eventually(lambda: turnout.active()["healthy"] is True)
    keys = (
        "name listen strategy desired held restart unwell settings counters troubles router deployment daemons problems"
        " failed_start start_with"
    )
    assert set(service) == set(keys.split(" "))
    assert service["listen"] == [f"127.0.0.1:{turnout.port}"]
    assert service["router"]["alive"] is True
    assert service["router"]["plane"] == "relay"
    assert service["router"]["applied_revision"] == service["deployment"]["revision"]
    (daemon,) = service["daemons"]
    assert (daemon["role"], daemon["connections"], daemon["bytes_in"]) == ("active", 1, 6)
    assert daemon["bytes_out"] == len(answer)
    turnout.run("down")
    gone = turnout.status()
    unknown = ("pid", "plane", "plane_trouble", "applied_revision", "uptime_s", "version")
    assert gone["router"] == dict.fromkeys(unknown) | {"alive": False, "leaving": []}
    assert gone["held"] is None
    assert turnout.run("status").stdout.count("router     none") == 1


def test_errors_are_json_too_where_json_was_asked_for(turnout: Turnout) -> None:
    done = turnout.run("status", "--json", "--service", "nobody", code=4)
    said = json.loads(done.stdout)["error"]
    assert said["exit_code"] == 4
    assert said["type"] == "NoSuchServiceError"
    assert said["hint"]


def test_logs_show_the_active_daemons_output_and_follow_a_switch(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    assert "v1" in turnout.run("logs").stdout
    follow = turnout.begin("logs", "-f", "-n", "1")
    assert follow.stdout is not None
    assert "v1" in follow.stdout.readline()
    turnout.configure(line_daemon("--version", "v2"), version="v2")
    turnout.run("deploy")
    assert "v2" in follow.stdout.readline()
    follow.send_signal(signal.SIGINT)
    follow.communicate(timeout=20)
    assert follow.returncode == 130
    assert "no log of boot never" in turnout.run("logs", "--boot", "never", code=2).stderr
    assert "router" in turnout.run("logs", "--router").stdout
    assert "keeper" in turnout.run("logs", "--keeper").stdout


def test_an_attached_daemon_is_switched_to_and_never_stopped(turnout: Turnout) -> None:
    with choose_port(avoid={turnout.port}) as reserved:
        port = reserved.port
        daemon = [sys.executable, "-P", "-m", "turnout.demo.daemon", "--port", str(port), "--version", "theirs"]
        foreign = subprocess.Popen(daemon, stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: who_listens("127.0.0.1", port))
        turnout.configure(line_daemon("--version", "ours"))
        turnout.run("up")
        turnout.run("attach", f"127.0.0.1:{port}")
        assert ask(turnout.address) == "theirs"
        assert turnout.run("refresh", code=2).stderr.count("hint:") == 1
        eventually(lambda: not turnout.daemons(), why="ours drains and is stopped")
        turnout.run("deploy")
        assert ask(turnout.address) == "ours"
        eventually(lambda: len(turnout.snapshot().daemons) == 1, why="theirs is forgotten once it is drained")
        assert foreign.poll() is None
        turnout.run("attach", f"localhost:{port}")
        turnout.run("detach")
        turnout.run("down")
        assert foreign.poll() is None
        assert ask(("127.0.0.1", port)) == "theirs"
    finally:
        foreign.kill()
        foreign.wait()


def test_attaching_what_does_not_listen_or_is_ourselves_is_refused(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    turnout.run("attach", f"127.0.0.1:{turnout.port}", code=2)
    with choose_port(avoid={turnout.port}) as reserved:
        free = reserved.port
    turnout.run("attach", f"127.0.0.1:{free}", code=3)
    assert ask(turnout.address) == "v1"


def test_the_router_in_the_foreground_serves_and_ends_everything_at_ctrl_c(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.home.create()
    foreground = turnout.begin("router")
    eventually(turnout.home.keeper_sock.exists)
    turnout.run("up")
    assert turnout.keeper_pid() == foreground.pid
    second = turnout.run("router", code=6)
    assert str(foreground.pid) in second.stderr
    assert ask(turnout.address) == "v1"
    foreground.send_signal(signal.SIGINT)
    foreground.communicate(timeout=60)
    assert turnout.processes() == {}
    assert not turnout.listening()


def test_two_homes_never_meet(turnout: Turnout) -> None:
    turnout.run("up", "--listen", f"127.0.0.1:{turnout.port}", "--", *line_daemon("--version", "v1"))
    with choose_port(avoid={turnout.port}) as reserved:
        port = reserved.port
    other = Turnout(turnout.home.root.parent / "other", port)
    try:
        other.run("up", "--listen", f"127.0.0.1:{port}", "--", *line_daemon("--version", "other"))
        assert ask(other.address) == "other"
        other.run("down")
        assert ask(turnout.address) == "v1"
    finally:
        other.end()


def test_a_home_in_a_very_deep_directory_works(turnout: Turnout) -> None:
    """A unix socket's path holds 107 bytes; the directory may be deeper."""
    deep = Turnout(turnout.home.root / ("d" * 60) / ("e" * 60) / "home", turnout.port)
    deep.home.root.mkdir(parents=True)
    try:
        deep.run("up", "--listen", f"127.0.0.1:{turnout.port}", "--", *line_daemon("--version", "deep"))
        assert ask(deep.address) == "deep"
        deep.run("down")
    finally:
        deep.end()


def test_a_silent_router_is_replaced_by_up(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    router = turnout.router_pid()
    turnout.kill(router, signal.SIGSTOP)
    turnout.run("up")
    assert turnout.router_pid() not in {0, router}
    assert ask(turnout.address) == "v1"


def test_a_silent_keeper_is_replaced_by_up_and_no_client_notices(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    keeper, router, daemons = turnout.keeper_pid(), turnout.router_pid(), turnout.daemons()
    with under_load(turnout):
        turnout.kill(keeper, signal.SIGSTOP)
        assert f"replace the keeper (pid {keeper})" in turnout.run("up", "--dry-run").stdout
        turnout.run("up")
        assert turnout.keeper_pid() != keeper
        assert (turnout.router_pid(), turnout.daemons()) == (router, daemons), "they were adopted"
        turnout.run("deploy", "--version", "v2")
    assert not is_alive(Identity(keeper))


def test_down_ends_all_also_where_the_keeper_is_silent(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    turnout.kill(turnout.keeper_pid(), signal.SIGSTOP)
    turnout.run("down")
    assert turnout.processes() == {}


def test_settings_that_the_router_cannot_read_do_not_keep_it_from_switching(turnout: Turnout) -> None:
    """As after an upgrade of the command line beside a running router."""
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    home = turnout.home.service("default")
    turnout.configure(line_daemon("--version", "v2"), version="v2")
    later = home.settings.read_bytes().replace(b'"strategy"', b'"of_a_later_version"')
    deploy = turnout.begin("deploy", "--detach")
    eventually(lambda: turnout.snapshot().deployment.generation == 2, interval_s=0.001)
    home.settings.write_bytes(later)
    _, said = deploy.communicate(timeout=60)
    assert deploy.returncode == 0, said
    eventually(lambda: ask(turnout.address) == "v2")
    turnout.run("down")
