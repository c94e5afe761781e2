"""A verb that failed, with nothing running for it, leaves nothing behind, and no verb claims what it did not do."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import sys

import pytest

from e2e_support import Turnout, ask, line_daemon
from process_support import Started
from support import eventually
from turnout.control.keeper_client import KeeperClient
from turnout.errors import NotRunningError
from turnout.system.process import identify, is_alive
from turnout.testing import free_port

FAILS = [sys.executable, "-c", "import sys; sys.exit('broken on purpose')"]


def no_keeper(turnout: Turnout) -> bool:
    try:
        KeeperClient.connect(turnout.home).close()
    except NotRunningError:
        return True
    return False


def nothing_is_left(turnout: Turnout) -> None:
    eventually(lambda: no_keeper(turnout), why="a keeper is left")
    eventually(lambda: not turnout.processes(), why="a process is left")
    assert not turnout.listening()


def test_a_service_without_a_command_starts_nothing(turnout: Turnout) -> None:
    text = f'[service.default]\nlisten = "127.0.0.1:{turnout.port}"\n'
    (turnout.home.root.parent / "turnout.toml").write_text(text)
    for verb in ("up", "start", "deploy"):
        assert "has no command" in turnout.run(verb, code=4).stderr
        assert not turnout.home.keeper_log.exists(), "not even for a moment"
    nothing_is_left(turnout)


def test_an_attach_to_nothing_leaves_no_keeper_and_no_router(turnout: Turnout) -> None:
    refused = turnout.run("attach", "--listen", f"127.0.0.1:{turnout.port}", f"127.0.0.1:{free_port()}", code=3)
    assert "nothing listens on" in refused.stderr
    nothing_is_left(turnout)
    assert json.loads(turnout.run("status", "--json").stdout)["services"] == [], "it was refused before it began"


def test_a_failed_start_is_named_until_an_operator_stops_the_service(turnout: Turnout) -> None:
    """No operator had stopped it: ``status`` says what failed and why, and its hint works as typed."""
    turnout.configure(FAILS)
    turnout.run("up", code=1)
    failed = turnout.status()["failed_start"]
    assert failed["what"].startswith("the first start failed: the candidate"), failed
    head = turnout.run("status").stdout.split("\n")[0]
    assert "by hand" not in head
    assert f"stopped: {failed['what']}  -> {failed['mend']}" in head
    assert "never got to its switch: the candidate" in turnout.run(*shlex.split(failed["mend"])[1:]).stdout
    turnout.run("down")
    assert turnout.status()["failed_start"] is None
    assert "stopped by hand" in turnout.run("status").stdout


def test_a_failed_start_of_a_stopped_service_is_named(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up", "-q")
    assert turnout.status()["failed_start"] is None
    turnout.run("stop")
    assert turnout.status()["failed_start"] is None
    turnout.configure(FAILS, version="v2")
    turnout.run("up", code=1)
    assert turnout.status()["failed_start"]["what"].startswith("generation 2, a start, failed: the candidate")
    turnout.run("stop")
    assert turnout.status()["failed_start"] is None


def test_a_service_that_is_down_after_a_reboot_is_not_missed(turnout: Turnout) -> None:
    """`down` of a service of which nothing runs counts: what an operator wants down is not asked for."""
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up", "-q")
    for pid in (turnout.keeper_pid(), turnout.router_pid(), turnout.active()["pid"]):
        turnout.kill(pid)
    assert turnout.status()["desired"] == "running"
    assert "is down" in turnout.run("down").stdout
    status = turnout.status()
    assert (status["desired"], status["problems"]) == ("stopped", [])


def test_a_first_up_that_failed_is_over(turnout: Turnout) -> None:
    """The service has never run: neither status nor doctor goes on asking for it."""
    turnout.configure(FAILS)
    assert "broken on purpose" in turnout.run("up", code=1).stderr
    nothing_is_left(turnout)
    status = turnout.status()
    assert (status["desired"], status["problems"]) == ("stopped", [])
    findings = json.loads(turnout.run("doctor", "--json", code=None).stdout)["findings"]
    assert [one for one in findings if one["check"] in {"service", "daemons"} and one["verdict"] != "ok"] == []
    turnout.run("up", code=1)  # as often as it is tried
    assert turnout.status()["problems"] == []
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up", "-q")
    assert turnout.status()["desired"] == "running"
    assert ask(turnout.address) == "v1"


def test_a_first_up_that_failed_beside_another_service_closes_its_address_alone(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up", "-q")
    other = free_port()
    turnout.run("up", "--service", "other", "--listen", f"127.0.0.1:{other}", "--", *FAILS, code=1)
    services = {one["name"]: one for one in json.loads(turnout.run("status", "--json").stdout)["services"]}
    assert (services["other"]["desired"], services["other"]["problems"]) == ("stopped", [])
    with KeeperClient.connect(turnout.home) as keeper:
        assert set(keeper.hello().services) == {"default"}
    assert ask(turnout.address) == "v1"


def test_a_service_that_ran_and_does_not_come_up_again_is_still_missed(turnout: Turnout) -> None:
    """As after a reboot: it should run, and a failed `up` does not change that."""
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up", "-q")
    for pid in (turnout.keeper_pid(), turnout.router_pid(), turnout.active()["pid"]):
        turnout.kill(pid)
    turnout.configure(FAILS, version="v2")
    turnout.run("up", code=1)
    status = turnout.status()
    assert status["desired"] == "running"
    assert status["problems"][0]["severity"] == "bad"


@pytest.mark.parametrize(
    ("verb", "says"), [("stop", "default is stopped; attached-"), ("down", "default is down; attached-")]
)
def test_an_attached_daemon_is_not_said_to_be_stopped(turnout: Turnout, verb: str, says: str) -> None:
    with Started() as started:
        theirs = started.demo()
        turnout.run("attach", "-q", "--listen", f"127.0.0.1:{turnout.port}", f"127.0.0.1:{theirs.port}")
        assert ask(turnout.address) == "v1"
        if verb == "stop":
            assert "which was attached and runs on" in turnout.run("stop", "--dry-run").stdout
        done = turnout.run(verb)
        assert says in done.stdout
        assert "was attached, and runs on" in done.stdout
        assert "stopped attached" not in done.stdout
        assert is_alive(identify(theirs.process.pid))
        assert ask(theirs.address) == "v1"
        theirs.process.send_signal(signal.SIGTERM)


def test_a_failed_up_has_the_daemon_served_that_lost_its_keeper_and_its_router(turnout: Turnout) -> None:
    """The keeper that the failed verb started is the one that serves it: it is not ended with the candidate."""
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up", "-q")
    runs = turnout.active()["pid"]
    for pid in (turnout.keeper_pid(), turnout.router_pid()):
        turnout.kill(pid)
    turnout.configure(FAILS, version="v2")
    assert "still serving generation 1 (v1)" in turnout.run("up", code=1).stderr
    assert ask(turnout.address) == "v1"
    assert turnout.active()["pid"] == runs


def test_a_failed_up_ends_no_daemon_of_another_service_that_lost_its_keeper(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up", "-q")
    runs = turnout.snapshot().active
    for pid in (turnout.keeper_pid(), turnout.router_pid()):
        turnout.kill(pid)
    turnout.run("up", "--service", "other", "--listen", f"127.0.0.1:{free_port()}", "--", *FAILS, code=1)
    turnout.run("up", "-q")
    assert ask(turnout.address) == "v1"
    assert turnout.snapshot().active == runs


def test_a_service_whose_first_up_failed_is_defined_by_no_file_and_claims_no_registry(turnout: Turnout) -> None:
    """The file was wrong: the project moves, or another service gets the registry that it named."""
    turnout.configure(FAILS)
    turnout.tune(registry='"shared.json"')
    file = turnout.home.root.parent / "turnout.toml"
    turnout.run("up", code=1)
    assert not file.with_name("shared.json.claim").exists()
    elsewhere = file.parent / "elsewhere"
    elsewhere.mkdir()
    command = json.dumps(line_daemon("--version", "v1"))
    text = file.read_text().replace(json.dumps(FAILS), command).replace('"shared.json"', '"../shared.json"')
    (elsewhere / "turnout.toml").write_text(text.replace("[service.default]", "[service.second]"))
    turnout.run("up", "-q", cwd=elsewhere)
    assert ask(turnout.address) == "v1"
    turnout.run("down", cwd=elsewhere)
    (elsewhere / "turnout.toml").write_text(text)
    turnout.run("up", "-q", cwd=elsewhere)
    assert ask(turnout.address) == "v1"
    refused = turnout.run("up", code=2).stderr
    assert f"defined in {elsewhere}" in refused, "from here on it is"


def test_a_program_may_ask_again_for_a_service_whose_first_up_failed(turnout: Turnout) -> None:
    """Nothing stopped it: what it lacked the first time may be there the next time."""
    turnout.configure(line_daemon("--version", "v1"))
    with socket.create_server(turnout.address):
        assert "is in use by" in turnout.run("up", "--automatic", code=1).stderr
    turnout.configure(FAILS)
    turnout.run("up", "--automatic", code=1)
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up", "--automatic", "-q")
    assert ask(turnout.address) == "v1"
    turnout.run("stop")
    assert "was stopped" in turnout.run("up", "--automatic", code=3).stderr
