"""nginx behind the fixed address, replaced over and over while wrk and a checking client ask it."""

from __future__ import annotations

import hashlib
import http.client
import re
import sys
from pathlib import Path

import pytest

from bulk_daemon import block
from e2e_support import Turnout
from programs import program
from repeated import POLITE, output_of, over_and_over
from support import report, scaled

TESTS = Path(__file__).parent.parent
PAYLOAD = b"".join(block(number) for number in range(4))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    directory = tmp_path / "site"
    directory.mkdir()
    (directory / "payload").write_bytes(PAYLOAD)
    return directory


def requests_of(said: str) -> int:
    """How many requests wrk made; its socket errors and other answers than 200 are no success."""
    assert "Socket errors" not in said, said
    assert "Non-2xx" not in said, said
    found = re.search(r"(\d+) requests in", said)
    assert found, said
    return int(found[1])


@pytest.mark.timeout(900)
def test_wrk_and_downloads_meet_no_error_while_one_nginx_replaces_another(turnout: Turnout, site: Path) -> None:
    nginx, wrk = program("nginx", package="nginx"), program("wrk", package="wrk")
    switches = scaled(2, 30)
    address = f"http://127.0.0.1:{turnout.port}/version"
    argv = [*POLITE, wrk, "-t1", "-c4", "-d1s", "--timeout", "30s"]
    requests: list[int] = []

    def deploy(version: str, verb: str) -> None:
        command = [sys.executable, "-P", str(TESTS / "nginx_daemon.py"), nginx, "{port}", version, str(site)]
        turnout.configure(command, version=version, observe="300ms", deadline="none", stop_signal="QUIT")
        turnout.run(verb)

    def kept_alive() -> None:
        requests.append(requests_of(output_of([*argv, address])))

    def reconnecting() -> None:
        requests.append(requests_of(output_of([*argv, "-H", "Connection: close", address])))

    def download() -> None:
        connection = http.client.HTTPConnection(*turnout.address, timeout=60)
        connection.request("GET", "/payload")
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert answer.status == 200
        assert hashlib.sha256(body).digest() == hashlib.sha256(PAYLOAD).digest()
        seen.add(str(answer.headers["X-Version"]))

    seen: set[str] = set()
    deploy("v0", "up")
    with (
        over_and_over(kept_alive, clients=1) as kept,
        over_and_over(reconnecting, clients=1) as fresh,
        over_and_over(download, clients=1) as downloads,
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
