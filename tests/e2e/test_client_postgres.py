"""PostgreSQL behind the fixed address: psql and pgbench over switches between servers with data of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e_support import Turnout
from postgres_support import readable_copy
from repeated import POLITE, output_of, over_and_over
from support import report, scaled

SUPPORT = Path(__file__).parents[1] / "support"
NOBODY = 65534
ACCOUNTS = 100_000  # pgbench -i -s 1


@dataclass(frozen=True)
class Installed:
    """A PostgreSQL, and the data directory that each server begins with a copy of."""

    root: Path
    template: Path

    def tool(self, name: str) -> str:
        return str(self.root / "bin" / name)

    def client(self, turnout: Turnout) -> dict[str, Any]:
        """How a client is told where to go."""
        here = {"PGHOST": "127.0.0.1", "PGPORT": str(turnout.port), "PGUSER": "postgres", "PGDATABASE": "postgres"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return {"env": kept | here | {"PGCONNECT_TIMEOUT": "60"}}


@pytest.fixture
def postgres() -> Iterator[Installed]:
    with readable_copy() as directory:
        installed = Installed(directory / "pgserver" / "pginstall", directory / "data" / "template")
        (directory / "data").mkdir()
        other: dict[str, Any] = {"cwd": directory}
        if os.geteuid() == 0:
            os.chown(directory / "data", NOBODY, NOBODY)
            other |= {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        data = str(installed.template)
        initdb = [installed.tool("initdb"), "-D", data, "-U", "postgres", "--auth=trust", "--no-sync"]
        output_of([*initdb, "--wal-segsize=1", "--encoding=UTF8", "--locale=C"], **other)
        server = [installed.tool("pg_ctl"), "-D", data, "-w", "-t", "120", "-l", f"{data}/log"]
        subprocess.run(
            [*server, "-o", f"-h '' -k {directory}/data -c fsync=off", "start"],
            stdout=subprocess.DEVNULL,
            timeout=150,
            check=True,
            **other,
        )
        try:
            output_of([installed.tool("pgbench"), "-i", "-q", "-h", f"{directory}/data", "-U", "postgres", "postgres"])
        finally:
            output_of([*server, "-m", "fast", "stop"], **other)
        yield installed


def transactions_of(said: str, *, wanted: int) -> None:
    assert f"number of transactions actually processed: {wanted}/{wanted}" in said, said
    failed = re.search(r"number of failed transactions: (\d+)", said)
    assert failed, said
    assert failed[1] == "0", said


@pytest.fixture(params=["relay", "sk_lookup"])
def behind(request: pytest.FixtureRequest) -> tuple[str, Turnout]:
    """A plane's name, and a home where it runs."""
    needs = {"relay": "turnout", "sk_lookup": "home_with_bpffs"}
    return request.param, request.getfixturevalue(needs[request.param])


@pytest.mark.timeout(900)
def test_psql_and_pgbench_meet_no_error_over_switches_between_two_servers(
    postgres: Installed, behind: tuple[str, Turnout]
) -> None:
    plane, turnout = behind
    switches = scaled(2, 20)
    here = postgres.client(turnout)
    question = "select extract(epoch from pg_postmaster_start_time()), count(*), sum(aid) from pgbench_accounts"
    answer = f"|{ACCOUNTS}|{ACCOUNTS * (ACCOUNTS + 1) // 2}"
    servers: set[str] = set()  # by when they were started: behind sk_lookup all have the fixed port

    def deploy(version: str, verb: str) -> None:
        script = str(SUPPORT / "postgres_daemon.py")
        command = [sys.executable, "-P", script, str(postgres.root), str(postgres.template), "{port}"]
        turnout.configure(command, version=version, observe="300ms", deadline="none", stop_signal="INT", draining=30)
        turnout.tune(plane=f'"{plane}"')
        turnout.run(verb)

    def bench(*flags: str, transactions: int) -> None:
        argv = [*POLITE, postgres.tool("pgbench"), "-n", "-S", "-c", "2", "-t", str(transactions), *flags]
        transactions_of(output_of(argv, **here), wanted=2 * transactions)

    def psql() -> None:
        server, rest = output_of([postgres.tool("psql"), "-XAtc", question], **here).strip().split("|", 1)
        assert f"|{rest}" == answer
        servers.add(server)

    deploy("v0", "up")
    session = subprocess.Popen(
        [postgres.tool("psql"), "-XAtq"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, **here
    )
    with session:
        assert session.stdin
        assert session.stdout

        def asked() -> str:
            assert session.stdin
            assert session.stdout
            session.stdin.write(f"{question};\n")
            return str(session.stdout.readline()).strip()

        try:
            first = asked()
            assert first.endswith(answer)
            with (
                over_and_over(lambda: bench("-C", transactions=10), clients=1) as reconnecting,
                over_and_over(lambda: bench(transactions=500), clients=1) as lasting,
                over_and_over(psql, clients=1) as short,
            ):
                for number in range(1, switches + 1):
                    deploy(f"v{number}", "deploy")
                    assert asked() == first, f"the session left its server: {turnout.logs()}"
                    for clients in (reconnecting, lasting, short):
                        clients.again()
            session.stdin.write("\\q\n")
            assert session.wait(60) == 0
        finally:
            session.kill()
    errors = reconnecting.errors + lasting.errors + short.errors
    runs = {"pgbench_with_reconnects": reconnecting.times, "pgbench": lasting.times, "psql": short.times}
    report(f"postgres on plane {plane}", switches=switches, **runs, errors=len(errors))
    assert errors == []
    assert (turnout.status()["counters"]["accepted"] == 0) == (plane == "sk_lookup"), "who had them"
    assert len(servers) >= switches, "each switch brought a server of its own, and it was asked"
