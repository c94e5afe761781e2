"""Real daemons that no proxy stands before, deployed under their own load generators: nobody fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from direct_support import router
from e2e_support import Turnout
from programs import program, wheel
from repeated import POLITE, output_of, over_and_over
from support import report, scaled
from wrk import Wrk, fetched

SUPPORT = Path(__file__).parents[1] / "support"
SWITCHES = scaled(2, 20)


def version_at(address: tuple[str, int]) -> str:
    """Who answers a connection of its own."""
    body, _ = fetched(address, "/version")
    return body.decode().strip()


class Web:
    """A web server that takes its listener, version after version."""

    def __init__(self, turnout: Turnout, directory: Path) -> None:
        self.turnout = turnout
        self._directory = directory

    def nginx(self, version: str) -> None:
        """As it does it for its own upgrade: NGINX names the descriptors (ngx_add_inherited_sockets)."""
        nginx = program("nginx", package="nginx")
        script = str(SUPPORT / "nginx_daemon.py")
        command = [sys.executable, "-P", script, nginx, "{listen_port}", version, str(self._directory), "on"]
        self.turnout.configure(
            command, version=version, observe="300ms", deadline="none", draining=30, stop_signal="QUIT"
        )
        self.turnout.tune(env='{ NGINX = "{fd};" }')

    def uvicorn(self, version: str) -> None:
        """asyncio's loop on an inherited socket; its lifespan is not what is tried here."""
        wheel("uvicorn")
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(SUPPORT), "--fd", "{fd}", "--lifespan", "off"]
        command += ["--log-level", "warning", "--no-access-log", "asgi_app:app"]
        self.turnout.configure(command, version=version, observe="300ms", deadline="none", draining=30)
        self.turnout.tune(env=f'{{ VERSION = "{version}" }}')


@pytest.mark.timeout(600)
@pytest.mark.parametrize("server", ["nginx", "uvicorn"])
def test_a_web_server_takes_its_listener_and_is_deployed_under_wrk(
    turnout: Turnout, tmp_path: Path, server: str
) -> None:
    configure = getattr(Web(turnout, tmp_path), server)
    configure("v0")
    turnout.run("up")
    assert router(turnout)["plane"] == "reuseport"
    load = Wrk(turnout.address, "/version")
    with load.run() as kinds:
        for number in range(1, SWITCHES + 1):
            configure(f"v{number}")
            turnout.run("deploy")
            assert version_at(turnout.address) == f"v{number}"
            for clients in kinds:
                clients.again()
    report(f"{server} by reuseport under wrk", switches=SWITCHES, requests=load.requests, errors=len(load.errors))
    assert load.errors == [], turnout.logs()
    assert turnout.status()["counters"]["accepted"] == 0, "some went through the relay"


@pytest.mark.redis
@pytest.mark.timeout(600)
def test_an_untouched_redis_is_deployed_under_redis_benchmark(home_with_bpffs: Turnout, redis: str) -> None:
    turnout = home_with_bpffs
    benchmark = program("redis-benchmark", package="redis-tools")
    argv = [*POLITE, benchmark, "-h", "127.0.0.1", "-p", str(turnout.port), "-c", "4", "-t", "set,get", "--csv"]

    def run(*flags: str) -> None:
        said = output_of([*argv, *flags])
        assert '"GET"' in said, said
        assert "rror" not in said, said

    command = [redis, "--port", "{port}", "--bind", "127.0.0.1", "--save", ""]
    turnout.configure(command, version="v0", observe="300ms", deadline="none", draining=30)
    turnout.tune(plane='"sk_lookup"')
    turnout.run("up")
    with (
        over_and_over(lambda: run("-n", "2000"), clients=1) as kept,
        over_and_over(lambda: run("-n", "200", "-k", "0"), clients=1) as fresh,
    ):
        for number in range(1, SWITCHES + 1):
            turnout.run("deploy", "--version", f"v{number}")
            for clients in (kept, fresh):
                clients.again()
    errors = kept.errors + fresh.errors
    report("redis by sk_lookup under redis-benchmark", switches=SWITCHES, runs=kept.times + fresh.times, errors=errors)
    assert errors == [], turnout.logs()
    assert turnout.status()["counters"]["accepted"] == 0, "some went through the relay"
