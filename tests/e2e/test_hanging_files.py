"""File systems that hang, and what is no regular file: clients go on, and so does what needs none of those files."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import file_calls
from e2e_support import Turnout, ask, line_daemon, under_load
from support import eventually
from turnout.config.settings import load_settings
from turnout.system.process import identify, is_alive
from turnout.testing import free_port


class Watched:
    """A turnout whose routers have their file calls watched."""

    def __init__(self, turnout: Turnout, directory: Path) -> None:
        self.turnout = turnout
        self.directory = directory
        self.env = turnout.env | file_calls.installed(directory)
        self.toml = turnout.home.root.parent / "turnout.toml"

    def calls_on_the_loop(self) -> str:
        path = self.directory / "on_loop"
        return path.read_text() if path.exists() else ""

    def calls(self, part: str) -> int:
        return (self.directory / "calls").read_text().count(part)

    @contextmanager
    def hangs(self, path: Path) -> Iterator[None]:
        """While the block runs no call of the router on this path returns, and at least one is under way."""
        before = self.calls(str(path))
        (self.directory / "hangs").write_text(f"{path}\n")
        try:
            eventually(lambda: self.calls(str(path)) > before, why="the router does not look there")
            yield
        finally:
            (self.directory / "hangs").write_text("")


@pytest.fixture
def watched(turnout: Turnout) -> Watched:
    return Watched(turnout, turnout.home.root.parent / "watched")


def exchange(sock: socket.socket, line: str) -> str:
    sock.sendall(line.encode() + b"\n")
    return sock.makefile().readline()


def test_the_loop_of_a_router_touches_no_file_of_ours(watched: Watched) -> None:
    """Through a whole life: deploys, a changed file, a crash, a drain, metrics, its own replacement."""
    turnout = watched.turnout
    turnout.configure(line_daemon("--version", "v1"), observe="300ms", deadline="1s")
    turnout.tune(watch=f'["{watched.toml}"]', auto_deploy="true")
    turnout.run("up", env=watched.env)
    router = turnout.router_pid()
    turnout.run("pause")
    turnout.run("resume")
    with under_load(turnout):
        turnout.configure(line_daemon("--version", "v2"), version="v2", observe="300ms", deadline="1s")
        turnout.run("up", "--metrics", f"127.0.0.1:{free_port()}")
    turnout.tune(observe='"400ms"')
    settings = turnout.home.service("default").settings

    def is_in_force() -> bool:
        """By the router's look at the file, or by the deploy that it begins, for the file is watched, too."""
        reloaded = "reloaded: observe_s" in turnout.home.router_log.read_text()
        return reloaded or load_settings(settings.read_bytes()).observe_s == 0.4

    eventually(is_in_force)
    turnout.kill(router, signal.SIGHUP)
    turnout.kill(turnout.active()["pid"])
    eventually(lambda: ask(turnout.address) == "v2", why="it was not started again")
    turnout.run("router", "--replace", env=watched.env)
    assert turnout.router_pid() != router
    turnout.run("refresh", env=watched.env)
    assert ask(turnout.address) == "v2"
    for name in ("registry.json", "settings.json", "turnout.toml", "metrics.json", "journal.jsonl", "router.sock"):
        assert watched.calls(name), f"the watch does not work: {name}"
    assert watched.calls_on_the_loop() == ""


def test_a_home_that_hangs_stalls_no_client_and_not_the_exit(watched: Watched) -> None:
    turnout = watched.turnout
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up", env=watched.env)
    router = identify(turnout.router_pid())
    turnout.kill(turnout.keeper_pid())  # which would first start a successor
    with socket.create_connection(turnout.address, 20) as lasting:
        lasting.settimeout(20)
        with watched.hangs(turnout.home.root):
            assert exchange(lasting, "one").startswith("v1")
            assert [ask(turnout.address) for _ in range(20)] == ["v1"] * 20
            turnout.kill(router.pid, signal.SIGTERM)
            assert exchange(lasting, "two").startswith("v1"), "it leaves, and lets its connections end first"
            lasting.close()
            eventually(lambda: not is_alive(router), timeout_s=60, why="a call that hangs keeps it from ending")
    turnout.run("up")
    assert ask(turnout.address) == "v1"


def test_a_directory_of_the_configuration_that_hangs_delays_no_switch(watched: Watched) -> None:
    turnout = watched.turnout
    turnout.configure(line_daemon("--version", "v1"), observe="200ms")
    turnout.tune(watch=f'["{watched.toml}"]', auto_deploy="true")
    turnout.run("up", env=watched.env)
    with watched.hangs(watched.toml):
        turnout.run("deploy", "--version", "v2", "--", *line_daemon("--version", "v2"))
        assert ask(turnout.address) == "v2"
        turnout.run("rollback")
        assert ask(turnout.address) == "v1"
    turnout.tune(hold="{ max = 7 }")
    eventually(lambda: "reloaded: hold_max" in turnout.home.router_log.read_text(), why="it does not look there again")


def put_fifo_at(path: Path) -> Path:
    """In one step: the router puts a registry back that is missing. Answers where the file is kept."""
    kept, fifo = path.with_name("kept"), path.with_name("fifo")
    os.link(path, kept)
    os.mkfifo(fifo)
    fifo.replace(path)
    return kept


def test_a_fifo_in_the_place_of_a_file_stalls_no_client_and_no_verb(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up", "--metrics", f"127.0.0.1:{free_port()}")
    home = turnout.home.service("default")
    records = sorted(home.records.glob("*.json"))
    with socket.create_connection(turnout.address, 20) as lasting:
        lasting.settimeout(20)
        for path in (home.settings, turnout.home.root.parent / "turnout.toml", turnout.home.metrics, *records):
            kept = put_fifo_at(path)
            turnout.run("status", code=None, timeout_s=60)
            assert exchange(lasting, path.name).startswith("v1")
            assert ask(turnout.address) == "v1"
            kept.replace(path)
        for path in (home.registry, home.builds, home.journal):
            kept = put_fifo_at(path)
            for verb in ("status", "why", "doctor"):
                assert "Traceback" not in turnout.run(verb, code=None, timeout_s=60).stderr
            assert exchange(lasting, path.name).startswith("v1")
            kept.replace(path)


def test_a_health_command_on_a_file_system_that_hangs_fails_its_daemon(watched: Watched) -> None:
    """The check has a deadline, which the file system does not keep: such a check has failed, and delays no exit."""
    turnout = watched.turnout
    program = watched.directory / "check.sh"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    command = line_daemon("--version", "v1")
    turnout.configure(command, probe="exec", extra=f', command = ["{program}"]', timeout="200ms")
    turnout.run("up", "-q", env=watched.env)
    eventually(lambda: turnout.active()["healthy"] is True, why="it is not checked")
    with watched.hangs(program):

        def failed() -> bool:
            """On a busy machine a check before this one may have been too slow, for another reason."""
            active = turnout.active()
            return active["healthy"] is False and "hangs" in active["reason"]

        eventually(failed, why="the check that hangs fails nothing")
        assert ask(turnout.address) == "v1"
    eventually(lambda: turnout.active()["healthy"] is True, why="it is not well again")
    with watched.hangs(program):
        router = identify(turnout.router_pid())
        turnout.run("down")
        assert not is_alive(router)
