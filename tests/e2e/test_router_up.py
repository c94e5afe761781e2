"""``turnout router --up``: one process in the foreground, and every service behind it."""

from __future__ import annotations

import json
import signal

from e2e_support import Turnout, ask, line_daemon
from support import eventually
from turnout.testing import free_port

SERVICE = """
[service.{name}]
listen = "127.0.0.1:{port}"
command = {command}
version = "{name}"
start_timeout = "{start_timeout}"
"""


def two_services(turnout: Turnout, *flags: str) -> dict[str, int]:
    """Write them into the file; ``flags``: of the second one's daemon. Answers their ports."""
    ports = {"one": free_port(), "two": free_port()}
    of_daemon: dict[str, tuple[str, ...]] = {"one": (), "two": flags}
    texts = [
        SERVICE.format(
            name=name,
            port=port,
            command=json.dumps(line_daemon("--version", name, *of_daemon[name])),
            start_timeout="500ms" if of_daemon[name] else "60s",
        )
        for name, port in ports.items()
    ]
    turnout.home.root.parent.joinpath("turnout.toml").write_text("".join(texts))
    return ports


def test_every_service_of_the_file_is_brought_up_and_ends_with_the_keeper(turnout: Turnout) -> None:
    ports = two_services(turnout)
    told = turnout.run("router", "--up", "--dry-run").stdout.splitlines()
    assert told[1:] == ["would run turnout up --service one", "would run turnout up --service two"]
    keeper = turnout.begin("router", "--up")
    for name, port in ports.items():
        turnout.run("wait", "--service", name, "--for", "healthy", "--timeout", "1m")
        assert ask(("127.0.0.1", port)) == name
    keeper.send_signal(signal.SIGTERM)
    assert keeper.wait(60) == 0
    assert not turnout.processes()
    again = turnout.begin("router", "--up", cwd=turnout.home.root)  # there is no file there: as the last time
    turnout.run("wait", "--service", "two", "--for", "healthy", "--timeout", "1m")
    assert again.poll() is None


def test_one_that_does_not_come_up_is_told_and_the_other_is_served(turnout: Turnout) -> None:
    ports = two_services(turnout, "--never-listen")
    with (turnout.home.root.parent / "said").open("w+") as said:
        keeper = turnout.begin("router", "--up", stdout=said, stderr=said)
        turnout.run("wait", "--service", "one", "--for", "healthy", "--timeout", "1m")
        eventually(
            lambda: "not healthy within" in (turnout.home.root.parent / "said").read_text(),
            timeout_s=60,
            why="it is told",
        )
        assert ask(("127.0.0.1", ports["one"])) == "one"
        assert keeper.poll() is None


def test_without_a_service_it_says_so_and_ends(turnout: Turnout) -> None:
    done = turnout.run("router", "--up", code=4)
    assert done.stderr.splitlines()[0] == "turnout: there is no service to start"
    assert not turnout.processes()


def test_a_running_keeper_brings_nothing_up(turnout: Turnout) -> None:
    assert "leave one of them out" in turnout.run("router", "--up", "--replace", code=2).stderr
