"""A router is replaced while clients are connected, come, wait and are drained: none of them is refused or reset."""

from __future__ import annotations

import contextlib
import shlex
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

from e2e_support import Turnout, ask, line_daemon
from other_constants import with_constants
from support import eventually, report, scaled
from turnout.control.keeper_client import KeeperClient
from turnout.core.model import Identity, State
from turnout.demo.load import Load, line_exchange
from turnout.system.process import identify, is_alive

CLIENTS = 6


def leaving(turnout: Turnout) -> list[int]:
    with KeeperClient.connect(turnout.home) as keeper:
        return list(keeper.hello().leaving)


def gated(gate: Path, *flags: str) -> list[str]:
    """The bundled daemon, which begins to listen only when the gate is away."""
    return ["sh", "-c", f"while [ -e {gate} ]; do sleep 0.05; done; exec {shlex.join(line_daemon(*flags))}"]


def speaks(sock: socket.socket, line: str = "hello") -> str:
    """One exchange over a connection that exists; the version that answered."""
    sock.settimeout(30)
    sock.sendall(line.encode() + b"\n")
    answer = b""
    while not answer.endswith(b"\n"):
        more = sock.recv(4096)
        assert more, "the connection ended"
        answer += more
    return answer.decode().split(" ")[0]


def test_replacing_the_router_again_and_again_under_load_refuses_and_resets_nobody(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    load = Load(turnout.address, line_exchange, clients=CLIENTS)
    load.start()
    count = scaled(5, 50)
    pids = {turnout.router_pid()}
    try:
        for _ in range(count):
            goal = load.made + 40
            said = turnout.run("router", "--replace").stdout
            pids.add(turnout.router_pid())
            assert f"router {turnout.router_pid()} leads" in said
            eventually(lambda goal=goal: load.made > goal, why="clients do not get on")  # type: ignore[misc]
        load.let_long_one_go()
    finally:
        load.stop()
    assert (load.failed, dict(load.errors)) == (0, {})
    assert load.long_exchanges["v1"] > 0, "the connection that the first router accepted went on through all of them"
    assert len(pids) == count + 1
    eventually(lambda: len(turnout.processes()) == 2, why="a router that nobody needs is left")
    eventually(lambda: leaving(turnout) == [])
    report("router --replace", replaced=count, exchanges=load.made, failed=load.failed)


def test_an_old_router_ends_with_0_once_its_last_connection_has_ended(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), deadline="none")
    turnout.run("up")
    first = identify(turnout.router_pid())
    with socket.create_connection(turnout.address, 20) as lasting:
        assert speaks(lasting) == "v1"
        turnout.run("router", "--replace")
        assert leaving(turnout) == [first.pid]
        assert is_alive(first)
        eventually(lambda: turnout.status()["router"]["leaving"] == [first.pid])
        assert f"pid {first.pid}" in turnout.run("status").stdout
        eventually(lambda: turnout.active()["connections"] == 1, why="what the old router carries is not counted")
        assert speaks(lasting) == "v1"
    eventually(lambda: not is_alive(first))
    eventually(lambda: leaving(turnout) == [])

    def ended_lines() -> list[str]:
        return [ln for ln in turnout.home.keeper_log.read_text().splitlines() if f"(pid {first.pid}) ended" in ln]

    (ended,) = eventually(ended_lines, why="the keeper does not log it")
    assert ended.endswith("wait status 0")


def test_sigterm_to_the_router_has_a_successor_started_first(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    first = identify(turnout.router_pid())
    load = Load(turnout.address, line_exchange, clients=CLIENTS)
    load.start()
    try:
        goal = load.made + 50
        turnout.kill(first.pid, signal.SIGTERM)
        eventually(lambda: turnout.router_pid() not in {0, first.pid})
        eventually(lambda: load.made > goal)
        load.let_long_one_go()
        eventually(lambda: not is_alive(first))
    finally:
        load.stop()
    assert (load.failed, dict(load.errors)) == (0, {})


def test_a_second_sigterm_does_not_wait_for_the_last_connection(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), deadline="none")
    turnout.run("up")
    first = identify(turnout.router_pid())
    with socket.create_connection(turnout.address, 20) as lasting:
        assert speaks(lasting) == "v1"
        turnout.kill(first.pid, signal.SIGTERM)
        eventually(lambda: leaving(turnout) == [first.pid])
        turnout.kill(first.pid, signal.SIGTERM)
        eventually(lambda: not is_alive(first))
    assert ask(turnout.address) == "v1"


def test_an_old_daemon_is_not_stopped_while_the_old_router_carries_a_connection_to_it(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), deadline="none")
    turnout.run("up")
    old = turnout.active()["boot_id"]
    with socket.create_connection(turnout.address, 20) as lasting:
        assert speaks(lasting) == "v1"
        turnout.run("router", "--replace")
        turnout.configure(line_daemon("--version", "v2"), version="v2", deadline="none")
        turnout.run("deploy")
        eventually(lambda: turnout.snapshot().deployment.state is State.IDLE)
        load = Load(turnout.address, line_exchange)
        load.start()
        eventually(lambda: load.made > 100)
        load.stop()
        assert (load.failed, set(load.answered)) == (0, {"v2"})
        (draining,) = [daemon for daemon in turnout.status()["daemons"] if daemon["role"] == "draining"]
        assert (draining["boot_id"], draining["connections"]) == (old, 1)
        assert speaks(lasting) == "v1"
    eventually(lambda: old not in turnout.daemons(), why="it is drained now")


def test_the_deadline_of_an_old_daemon_cuts_what_the_old_router_carries_to_it(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), deadline="none")
    turnout.run("up")
    old = turnout.active()["boot_id"]
    with socket.create_connection(turnout.address, 20) as lasting:
        lasting.sendall(b"a line without an end: its client may wait for an answer")
        turnout.run("router", "--replace")
        turnout.configure(line_daemon("--version", "v2"), version="v2", deadline="2s")
        turnout.run("deploy")
        eventually(lambda: old not in turnout.daemons(), why="the deadline is over")
        lasting.settimeout(30)
        with contextlib.suppress(ConnectionResetError):
            assert lasting.recv(1) == b""
    eventually(lambda: leaving(turnout) == [])


def test_clients_that_the_old_router_holds_are_served_by_it(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    turnout.run("pause")
    first = turnout.router_pid()
    with socket.create_connection(turnout.address, 20) as held:
        eventually(lambda: turnout.status()["held"] == 1)
        turnout.run("router", "--replace")
        assert leaving(turnout) == [first]
        with socket.create_connection(turnout.address, 20) as younger:
            eventually(lambda: turnout.status()["held"] == 1, why="the new router holds as well")
            turnout.run("resume")
            assert (speaks(held), speaks(younger)) == ("v1", "v1")
    eventually(lambda: leaving(turnout) == [])


SUPPORT = Path(__file__).parents[1] / "support"


def proxied(turnout: Turnout) -> None:
    """Have a daemon configured that serves nobody without a PROXY header."""
    turnout.configure([sys.executable, str(SUPPORT / "proxy_daemon.py"), "{port}"])
    turnout.tune(proxy_protocol='"v2"', env=f'{{ PYTHONPATH = "{SUPPORT}" }}')


def test_clients_that_a_leaving_router_holds_are_introduced_to_the_daemon_that_comes(turnout: Turnout) -> None:
    """Also to one that was started while it left, and with the address of the client, not with the router's."""
    proxied(turnout)
    turnout.run("up")
    turnout.run("pause")
    first = turnout.router_pid()
    with socket.create_connection(turnout.address, 20) as held:
        eventually(lambda: turnout.status()["held"] == 1)
        turnout.run("router", "--replace")
        assert leaving(turnout) == [first]
        turnout.run("refresh")
        turnout.run("resume")
        host, port = held.getsockname()
        assert speaks(held, "who am I?") == f"{host}:{port}\n"
    eventually(lambda: leaving(turnout) == [])


def test_a_new_router_introduces_nobody_to_a_daemon_that_was_started_before_the_setting(turnout: Turnout) -> None:
    """A changed setting goes with the daemons that come after it, whichever router serves them."""
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    before = turnout.active()["boot_id"]
    turnout.tune(proxy_protocol='"v2"')
    turnout.run("up")
    turnout.run("router", "--replace")
    assert turnout.active()["boot_id"] == before
    assert ask(turnout.address) == "v1"
    router = turnout.router_pid()
    turnout.kill(router)
    eventually(lambda: turnout.router_pid() not in {0, router}, why="no new router")
    assert ask(turnout.address) == "v1"


def test_a_replacement_while_a_dead_daemon_is_started_again_turns_nobody_away(turnout: Turnout) -> None:
    gate = turnout.home.root.parent / "gate"
    turnout.configure(gated(gate, "--version", "v1"))
    turnout.run("up")
    dead = turnout.active()
    gate.touch()
    turnout.kill(dead["pid"])
    eventually(lambda: turnout.snapshot().deployment.in_flight, why="nobody starts it again")
    with socket.create_connection(turnout.address, 20) as held:
        eventually(lambda: turnout.status()["held"] == 1)
        turnout.run("router", "--replace")
        with socket.create_connection(turnout.address, 20) as younger:
            eventually(lambda: turnout.status()["held"] == 1, why="the new router holds as well")
            gate.unlink()
            assert (speaks(held), speaks(younger)) == ("v1", "v1")
    assert turnout.active()["pid"] != dead["pid"]
    eventually(lambda: len(turnout.processes()) == 2, why="one router and one daemon")


def test_two_replacements_at_once_are_one(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    load = Load(turnout.address, line_exchange, clients=CLIENTS)
    load.start()
    try:
        both = [turnout.begin("router", "--replace") for _ in range(2)]
        said = [process.communicate(timeout=60) for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        goal = load.made + 50
        eventually(lambda: load.made > goal)
        load.let_long_one_go()
    finally:
        load.stop()
    assert (load.failed, dict(load.errors)) == (0, {})
    eventually(lambda: len(turnout.processes()) == 2, why="one router and one daemon")


def test_a_deploy_with_replacements_in_it_goes_through(turnout: Turnout) -> None:
    gate = turnout.home.root.parent / "gate"
    turnout.configure(line_daemon("--version", "v1"), observe="3s")
    turnout.run("up")
    load = Load(turnout.address, line_exchange, clients=CLIENTS)
    load.start()
    try:
        gate.touch()
        turnout.configure(gated(gate, "--version", "v2"), version="v2", observe="3s")
        deploy = turnout.begin("deploy")
        eventually(lambda: turnout.snapshot().candidate, timeout_s=60)
        turnout.run("router", "--replace")
        assert turnout.snapshot().deployment.state is State.STARTING
        gate.unlink()
        # on a slow machine the window may be over before it is looked at: then the second one comes after it
        eventually(lambda: turnout.snapshot().active and ask(turnout.address) == "v2", timeout_s=60)
        turnout.run("router", "--replace")
        _, said = deploy.communicate(timeout=90)
        assert deploy.returncode == 0, said
        goal = load.made + 20
        eventually(lambda: load.made > goal)
        load.let_long_one_go()
    finally:
        load.stop()
    assert (load.failed, dict(load.errors)) == (0, {})
    assert ask(turnout.address) == "v2"
    eventually(lambda: len(turnout.processes()) == 2, why="the old daemon and the old routers end")


def test_a_new_router_that_cannot_serve_leaves_the_present_one_where_it_is(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    within = {"turnout.keeper.routers.SUCCESSOR_TIMEOUT_S": 5.0}  # or the test would wait for 20 s
    turnout.run("up", env=turnout.env | with_constants(turnout.home.root.parent / "constants", within))
    first = turnout.router_pid()
    settings = turnout.home.service("default").settings
    good = settings.read_bytes()
    settings.write_bytes(b"not what any version wrote")
    done = turnout.run("router", "--replace", code=1)
    assert "did not come up" in done.stderr
    assert "hint:" in done.stderr
    settings.write_bytes(good)
    assert turnout.router_pid() == first
    assert ask(turnout.address) == "v1"
    turnout.run("router", "--replace")
    assert turnout.router_pid() != first


def test_a_router_that_hangs_is_replaced_by_force(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    first = identify(turnout.router_pid())
    turnout.kill(first.pid, signal.SIGSTOP)
    turnout.run("router", "--replace")
    assert not is_alive(first)
    assert ask(turnout.address) == "v1"


def test_a_dry_run_tells_what_would_be_done_and_does_nothing(turnout: Turnout) -> None:
    said = turnout.run("router", "--dry-run").stdout
    assert said == f"would run the keeper of {turnout.home.root} in this terminal, with a router as its child\n"
    assert not turnout.home.root.exists()
    turnout.run("router", "--replace", "--dry-run", code=3)
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    keeper, before = turnout.keeper_pid(), turnout.processes()
    said = turnout.run("router", "--replace", "--dry-run").stdout
    assert said == f"would start a router beside router {turnout.router_pid()}, which then lets its connections go\n"
    assert f"pid {keeper}" in turnout.run("router", "--dry-run", code=6).stderr
    assert (turnout.processes(), turnout.keeper_pid()) == (before, keeper)


def test_replacing_what_does_not_run_says_so(turnout: Turnout) -> None:
    assert "hint" in turnout.run("router", "--replace", code=3).stderr


def test_a_keeper_killed_in_the_middle_of_a_replacement_leaves_one_router_that_leads(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    load = Load(turnout.address, line_exchange, clients=CLIENTS)
    load.start()
    load.let_long_one_go()
    try:
        for _ in range(scaled(3, 20)):
            before = set(turnout.processes())
            keeper = identify(turnout.keeper_pid())
            replace = turnout.begin("router", "--replace")
            eventually(partial(_is_beyond, turnout, before), interval_s=0.001)
            turnout.kill(keeper.pid)
            replace.communicate(timeout=60)
            eventually(lambda gone=keeper: not is_alive(gone))  # type: ignore[misc]
            turnout.run("up")
            eventually(lambda: len(turnout.processes()) == 2, why="one router and one daemon")
            goal = load.made + 20
            eventually(lambda goal=goal: load.made > goal)  # type: ignore[misc]
    finally:
        load.stop()
    assert (load.failed, dict(load.errors)) == (0, {})


def _is_beyond(turnout: Turnout, before: set[str]) -> bool:
    """A second router has been started."""
    return bool(set(turnout.processes()) - before)


def test_without_a_keeper_a_router_that_is_told_to_end_lets_its_connections_go_and_ends(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), deadline="none")
    turnout.run("up")
    first = identify(turnout.router_pid())
    with socket.create_connection(turnout.address, 20) as lasting:
        assert speaks(lasting) == "v1"
        keeper = Identity(turnout.keeper_pid())
        turnout.kill(keeper.pid)
        eventually(lambda: not is_alive(keeper))
        turnout.kill(first.pid, signal.SIGTERM)
        eventually(lambda: not turnout.listening())
        assert speaks(lasting) == "v1"
    eventually(lambda: not is_alive(first))
    turnout.run("up")
    assert ask(turnout.address) == "v1"


def test_a_second_router_for_a_home_refuses_and_names_the_first(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    first = turnout.router_pid()
    command = [sys.executable, "-P", "-m", "turnout.router", str(turnout.home.root)]
    second = subprocess.run(command, env=turnout.env, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 6
    assert f"a router already runs for {turnout.home.root}: pid {first}" in second.stderr
    assert turnout.status()["router"]["pid"] == first
    assert ask(turnout.address) == "v1"
