"""A real Redis that keeps its data: what it acknowledged survives each rollout, and two never share a directory."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Self

import pytest

from e2e_support import Turnout
from support import eventually, report, scaled

pytestmark = pytest.mark.redis


class Setters:
    """Clients that connect, set one key, and close. Owns its threads."""

    def __init__(self, address: tuple[str, int], clients: int = 6) -> None:
        self._address = address
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.acknowledged: list[str] = []
        self.errors: list[str] = []
        self._threads = [threading.Thread(target=self._work, args=(n,), daemon=True) for n in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)

    def _work(self, client: int) -> None:
        number = 0
        while not self._stop.wait(0.01):
            number += 1
            key = f"k{client}-{number}"
            try:
                answer = redis_says(self._address, f"SET {key} 1")
            except OSError as error:
                answer = repr(error)
            with self._lock:
                (self.acknowledged if answer == "+OK" else self.errors).append(key if answer == "+OK" else answer)


def redis_says(address: tuple[str, int], line: str) -> str:
    with socket.create_connection(address, 80) as sock:
        sock.sendall(line.encode() + b"\r\n")
        return sock.makefile("rb").readline().decode().strip()


def keys(address: tuple[str, int]) -> int:
    return int(redis_says(address, "DBSIZE").removeprefix(":"))


def up(turnout: Turnout, *command: str, strategy: str | None = None) -> str:
    named = [] if strategy is None else ["--strategy", strategy]
    listen = f"127.0.0.1:{turnout.port}"
    return turnout.run("up", "--listen", listen, "--observe", "300ms", *named, "--", *command).stderr


@pytest.mark.timeout(600)
def test_refreshes_and_a_failing_deploy_of_a_redis_with_an_append_only_file_lose_no_acknowledged_write(
    turnout: Turnout, redis: str, tmp_path: Path
) -> None:
    command = [redis, "--port", "{port}", "--bind", "127.0.0.1", "--appendonly", "yes", "--dir", str(tmp_path)]
    said = up(turnout, *command)
    assert "strategy recreate" in said
    assert "with persistence owns its files" in said
    refreshes = scaled(2, 10)
    with Setters(turnout.address) as load:
        for _ in range(refreshes):
            turnout.run("refresh")
        failed = turnout.run("deploy", "--version", "bad", "--", *command, "--no-such-option", "1", code=1)
        goal = len(load.acknowledged) + 50
        eventually(lambda: len(load.acknowledged) > goal, why="clients do not get on")
    assert "no-such-option" in failed.stderr
    assert "still serving generation" in failed.stderr
    assert load.errors == []
    there = keys(turnout.address)
    acknowledged = len(load.acknowledged)
    report("redis with appendonly", refreshes=refreshes, failing_deploys=1, writes=acknowledged, there=there)
    assert there == acknowledged


def test_a_second_redis_on_one_directory_would_start_without_the_unsaved_keys_so_the_first_is_stopped_before(
    turnout: Turnout, redis: str, tmp_path: Path
) -> None:
    """The first half is what goes wrong side by side, where somebody insists on that."""
    command = [redis, "--port", "{port}", "--bind", "127.0.0.1", "--save", "3600", "1", "--dir", str(tmp_path)]
    up(turnout, *command, strategy="blue-green")
    assert redis_says(turnout.address, "SET unsaved 1") == "+OK"
    turnout.run("deploy", "--detach")
    assert redis_says(turnout.address, "GET unsaved") == "$-1", "the second one starts, and knows nothing of the key"
    turnout.run("down")
    (tmp_path / "dump.rdb").unlink(missing_ok=True)

    up(turnout, *command, strategy="recreate")
    assert redis_says(turnout.address, "SET unsaved 1") == "+OK"
    turnout.run("deploy")
    assert redis_says(turnout.address, "GET unsaved") == "$1"
    assert redis_says(turnout.address, "SET newer 1") == "+OK"
    turnout.run("refresh")
    assert keys(turnout.address) == 2, "and no older dump was written over the newer one"
    assert len(turnout.daemons()) == 1


def test_a_redis_that_listens_while_it_is_loading_its_data_is_not_switched_to_yet(
    turnout: Turnout, redis: str, tmp_path: Path
) -> None:
    slow = ["--key-load-delay", "500"]  # microseconds for each of these keys
    up(turnout, redis, "--port", "{port}", "--appendonly", "yes", "--dir", str(tmp_path), *slow)
    count = 3000  # it answers while loading after each thousand
    with socket.create_connection(turnout.address, 80) as sock:
        sock.sendall(b"".join(b"SET k%d 1\r\n" % number for number in range(count)))
        answers = sock.makefile("rb")
        assert {answers.readline() for _ in range(count)} == {b"+OK\r\n"}
    with Setters(turnout.address, clients=3) as load:
        eventually(lambda: load.acknowledged)
        turnout.run("refresh")
        goal = len(load.acknowledged) + 10
        eventually(lambda: len(load.acknowledged) > goal)
    assert load.errors == []
    assert keys(turnout.address) == count + len(load.acknowledged)
