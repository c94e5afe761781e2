"""``turnout bench``: what it says, what it leaves alone, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e_support import Turnout, line_daemon
from other_constants import with_constants
from support import eventually


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the verb makes its own home."""
    path = tmp_path / "temp"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    return path


@pytest.fixture
def short(turnout: Turnout, tmp_path: Path, temp: Path) -> dict[str, str]:
    """An environment in which it does not measure for as long as it takes for figures that mean something."""
    shorter = {"turnout.demo.timing.PHASE_S": 1.0, "turnout.demo.comparison.SWITCHES_S": 2.0}
    return turnout.env | with_constants(tmp_path / "constants", shorter)


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a daemon that reads, and never says or ends anything."""
    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    kept.append(listener.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield "{}:{}".format(*listener.getsockname())
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(20)
    for sock in kept:
        sock.close()


def mentions(path: Path) -> list[str]:
    """Every process whose command names the path."""
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        try:
            line = entry.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(path) in line:
            found.append(line)
    return found


def test_with_no_service_the_bundled_daemon_is_measured_and_nothing_is_left(
    turnout: Turnout, temp: Path, short: dict[str, str]
) -> None:
    said = json.loads(turnout.run("bench", "--json", env=short).stdout)
    assert (said["schema"], said["plane"]) == (1, "relay")
    for row in said["rows"]:
        assert row["daemon"] == "bundled"
        assert 0 < row["direct"]["p50_us"] <= row["direct"]["p99_us"]
        assert 0 < row["through"]["p50_us"] <= row["through"]["p99_us"]
        assert row["direct"]["count"] == row["through"]["count"] > 0
    seen = said["switches"]
    assert seen["count"] > 0
    assert seen["connections"] > 0
    assert (seen["failed"], seen["errors"]) == (0, {})
    assert list(temp.iterdir()) == []
    eventually(lambda: not mentions(temp), why="processes are left")
    assert not turnout.home.service_names()


def test_a_running_service_is_measured_at_its_daemon_and_left_as_it_was(
    turnout: Turnout, temp: Path, short: dict[str, str]
) -> None:
    turnout.configure(
        line_daemon("--version", "v1"), probe="expect", extra=', send = "hello\\n", match = "v1"', interval="60s"
    )
    turnout.run("up")
    daemon = turnout.active()
    before = turnout.registry.path.read_bytes()
    done = turnout.run("bench", env=short)
    assert f"127.0.0.1:{daemon['port']} with the relay plane" in done.stdout
    assert "connect, exchange, end, p50" in done.stdout  # what its probe sends is what is exchanged
    assert "0 failed" in done.stdout
    assert turnout.registry.path.read_bytes() == before
    assert turnout.active()["pid"] == daemon["pid"]
    assert list(temp.iterdir()) == []


def test_a_daemon_that_answers_nothing_is_an_error_that_says_what_to_give(
    turnout: Turnout, tmp_path: Path, temp: Path, silent: str
) -> None:
    env = turnout.env | with_constants(tmp_path / "constants", {"turnout.demo.timing.TIMEOUT_S": 1.0})
    done = turnout.run("bench", "--against", silent, code=1, env=env)
    assert "does not end a connection whose client has ended" in done.stderr
    assert "hint: --send TEXT" in done.stderr
    done = turnout.run("bench", "--against", silent, "--send", r"hi\r\n", code=1, env=env)
    assert r"does not answer b'hi\r\n'" in done.stderr
    assert list(temp.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--against", "127.0.0.1:1"), 3, "nothing listens on 127.0.0.1:1"),
        (("--against", "nowhere"), 2, "'nowhere' is no address"),
        (("--plane", "warp"), 2, "there is no plane 'warp'"),
        (("--send", "\\x4"), 2, "--send"),
    ],
)
def test_bad_input_is_one_line_and_starts_nothing(
    turnout: Turnout, temp: Path, arguments: tuple[str, ...], code: int, told: str
) -> None:
    done = turnout.run("bench", *arguments, code=code)
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert list(temp.iterdir()) == []


def test_interrupted_it_leaves_nothing(turnout: Turnout, temp: Path) -> None:
    process = turnout.begin("bench", env=turnout.env | {"TMPDIR": str(temp)})
    eventually(lambda: len(mentions(temp)) > 1, timeout_s=60, why="keeper and router are not up")
    os.kill(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    eventually(lambda: not mentions(temp), timeout_s=60, why="processes are left")
    assert list(temp.iterdir()) == []
