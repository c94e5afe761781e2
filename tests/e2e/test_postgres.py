"""A real PostgreSQL behind the fixed address: one data directory, one server at a time, no client turned away."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e_support import Turnout
from postgres_support import Pgbench, Postgres, readable_copy
from support import eventually, report, scaled
from turnout.testing import free_port


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with readable_copy() as directory:
        yield Postgres(directory)


def up(turnout: Turnout, *command: str, strategy: str | None = None, plane: str = "auto", own_port: int = 0) -> str:
    named = ["--plane", plane, *([] if strategy is None else ["--strategy", strategy])]
    named += ["--activation", "on", "--port", str(own_port)] if own_port else []
    listen = f"127.0.0.1:{turnout.port}"
    return turnout.run("up", "--listen", listen, "--observe", "300ms", *named, "--", *command).stderr


@pytest.mark.timeout(600)
@pytest.mark.parametrize("plane", ["relay", "sk_lookup", "reuseport"])
def test_refreshes_and_a_failing_deploy_under_pgbench_refuse_nobody_and_lose_no_acknowledged_write(
    request: pytest.FixtureRequest, postgres: Postgres, tmp_path: Path, plane: str
) -> None:
    """Without a proxy too: while the one server stops and the next one starts, the router's listener holds them.

    With reuseport the port stands in the server's own command.
    """
    turnout: Turnout = request.getfixturevalue("home_with_bpffs" if plane == "sk_lookup" else "turnout")
    own_port = free_port() if plane == "reuseport" else 0

    def command(*options: str) -> list[str]:
        return [word.replace("{port}", str(own_port or "{port}")) for word in postgres.command(*options)]

    said = up(turnout, *command(), plane=plane, own_port=own_port)
    assert "PostgreSQL owns its data directory" in said
    assert "strategy recreate and stop signal INT" in said
    postgres.query(turnout.address, "CREATE TABLE written (id serial PRIMARY KEY)")
    refreshes = scaled(2, 10)
    with Pgbench(postgres, turnout.address, tmp_path) as load:
        eventually(lambda: load.processed > 0, timeout_s=60)
        for _ in range(refreshes):
            turnout.run("refresh")
        bad = command("-c", "no_such_parameter=1")
        failed = turnout.run("deploy", "--version", "bad", "--", *bad, code=1)
        before = load.processed
        eventually(lambda: load.processed > before, timeout_s=60, why="clients do not get on")
    assert "no_such_parameter" in failed.stderr
    assert "still serving generation" in failed.stderr
    assert load.trouble == []
    there = int(postgres.query(turnout.address, "SELECT count(*) FROM written"))
    told = turnout.status()["router"]
    assert (told["plane"], told["plane_trouble"]) == (plane, "")
    report(
        f"postgres on plane {plane} under pgbench -C",
        refreshes=refreshes,
        failing_deploys=1,
        transactions=load.processed,
        there=there,
    )
    assert there == load.processed
    assert "was not properly shut down" not in _logs(turnout)
    assert len(turnout.daemons()) == 1


def test_a_client_that_stays_does_not_keep_postgres_from_stopping_for_its_signal_is_int(
    turnout: Turnout, postgres: Postgres
) -> None:
    """TERM is the smart shutdown, which waits for the client, here one that goes past the fixed address."""
    up(turnout, *postgres.command())
    past = turnout.active()["port"]
    stays = subprocess.Popen(
        postgres.client("psql", ("127.0.0.1", past), "-d", "postgres", "-X", "-c", "SELECT pg_sleep(600)"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"
        eventually(lambda: postgres.query(turnout.address, sleeping) == "1", timeout_s=60)
        done = turnout.run("refresh")
        assert "KILL" not in done.stderr
        assert postgres.query(turnout.address, "SELECT 1") == "1"
        assert "was not properly shut down" not in _logs(turnout)
    finally:
        stays.kill()
        stays.wait()


def test_a_second_postgres_on_one_data_directory_exits_1_and_the_first_serves_on(
    turnout: Turnout, postgres: Postgres
) -> None:
    """What blue-green does to it, where somebody insists: an explicit strategy wins."""
    said = up(turnout, *postgres.command(), strategy="blue-green")
    assert "recreate" not in said
    pid = turnout.active()["pid"]
    failed = turnout.run("deploy", "--", *postgres.command(), code=1)
    assert "exit code 1" in failed.stderr
    assert "postmaster.pid" in failed.stderr
    assert "still serving generation 1" in failed.stderr
    assert turnout.active()["pid"] == pid
    assert postgres.query(turnout.address, "SELECT 1") == "1"


def _logs(turnout: Turnout) -> str:
    directory = turnout.home.service("default").logs
    return "\n".join(path.read_text(errors="replace") for path in directory.glob("*.log"))
