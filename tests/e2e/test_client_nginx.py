"""nginx behind the fixed address, replaced over and over while wrk and a checking client ask it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from bulk_daemon import block
from e2e_support import Turnout, edit, retarget
from programs import program
from repeated import POLITE, output_of, over_and_over
from support import eventually, report, scaled
from turnout.system.net.ports import choose_port
from turnout.system.net.sockets import who_listens
from wrk import fetched, requests_of

SUPPORT = Path(__file__).parents[1] / "support"
PAYLOAD = b"".join(block(number) for number in range(4))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    directory = tmp_path / "site"
    directory.mkdir()
    (directory / "payload").write_bytes(PAYLOAD)
    return directory


def download(address: tuple[str, int]) -> str:
    """The whole payload, every byte right; the version of the nginx that gave it."""
    body, headers = fetched(address, "/payload")
    assert hashlib.sha256(body).digest() == hashlib.sha256(PAYLOAD).digest()
    return str(headers["X-Version"])


@pytest.mark.timeout(900)
def test_wrk_and_downloads_meet_no_error_while_one_nginx_replaces_another(turnout: Turnout, site: Path) -> None:
    nginx, wrk = program("nginx", package="nginx"), program("wrk", package="wrk")
    switches = scaled(2, 30)
    address = f"http://127.0.0.1:{turnout.port}/version"
    argv = [*POLITE, wrk, "-t1", "-c4", "-d1s", "--timeout", "30s"]
    requests: list[int] = []

    def deploy(version: str, verb: str) -> None:
        command = [sys.executable, "-P", str(SUPPORT / "nginx_daemon.py"), nginx, "{port}", version, str(site)]
        turnout.configure(command, version=version, observe="300ms", deadline="none", stop_signal="QUIT")
        turnout.run(verb)

    def kept_alive() -> None:
        requests.append(requests_of(output_of([*argv, address])))

    def reconnecting() -> None:
        requests.append(requests_of(output_of([*argv, "-H", "Connection: close", address])))

    seen: set[str] = set()
    deploy("v0", "up")
    with (
        over_and_over(kept_alive, clients=1) as kept,
        over_and_over(reconnecting, clients=1) as fresh,
        over_and_over(lambda: seen.add(download(turnout.address)), clients=1) as downloads,
    ):
        downloads.again()
        for number in range(1, switches + 1):
            deploy(f"v{number}", "deploy")
            downloads.again(times=2)
            kept.again()
            fresh.again()
    errors = kept.errors + fresh.errors + downloads.errors
    report("wrk at nginx", switches=switches, requests=sum(requests), downloads=downloads.times, errors=len(errors))
    assert errors == []
    assert seen == {f"v{number}" for number in range(switches + 1)}


@pytest.mark.timeout(1200)
def test_wrk_meets_no_error_and_downloads_are_whole_over_50_switches_between_two_nginx(
    turnout: Turnout, site: Path
) -> None:
    """By the file, as another program switches: as fast as the router follows."""
    nginx, wrk = program("nginx", package="nginx"), program("wrk", package="wrk")
    switches = scaled(50, 1000)
    daemon = [sys.executable, "-P", str(SUPPORT / "nginx_daemon.py"), nginx]
    with choose_port(avoid={turnout.port}) as reserved:
        port = reserved.port
    turnout.configure([*daemon, "{port}", "ours", str(site)], version="ours")
    turnout.run("up")
    ours = turnout.active()["boot_id"]
    theirs = subprocess.Popen([*daemon, str(port), "theirs", str(site)])
    argv = [*POLITE, wrk, "-t1", "-c4", "-d1s", "--timeout", "30s", "-H", "Connection: close"]
    requests: list[int] = []

    def reconnecting() -> None:
        requests.append(requests_of(output_of([*argv, f"http://127.0.0.1:{turnout.port}/version"])))

    try:
        eventually(lambda: who_listens("127.0.0.1", port), why="their nginx does not listen")
        with over_and_over(reconnecting, clients=1) as load:
            for number in range(switches):
                there = "ours" if number % 2 else "theirs"
                edit(turnout.registry.path, retarget(ours) if number % 2 else retarget("theirs", port))
                eventually(lambda there=there: download(turnout.address) == there, why=f"switch {number}")  # type: ignore[misc]  # bound by default
            load.again()
    finally:
        theirs.kill()
        theirs.wait(20)
    report("switches by the file under wrk", switches=switches, requests=sum(requests), errors=len(load.errors))
    assert load.errors == []
