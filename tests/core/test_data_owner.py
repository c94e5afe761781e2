from __future__ import annotations

import pytest

from turnout.core.data_owner import owns_its_data


@pytest.mark.parametrize(
    "command",
    [
        ["postgres", "-D", "data", "-p", "{port}"],
        ["/usr/lib/postgresql/15/bin/postgres"],
        ["pg_ctl", "start"],
        ["redis-server"],
        ["redis-server", "--port", "{port}"],
        ["redis-server", "/etc/redis/redis.conf"],
        ["redis-server", "/etc/redis/redis.conf", "--save", ""],
        ["redis-server", "--save", "60 1000"],
        ["redis-server", "--save", "", "--appendonly", "yes"],
        ["valkey-server", "--port", "{port}"],
        ["sudo", "-u", "redis", "redis-server", "--port", "{port}"],
        ["sh", "-c", "exec redis-server --port {port}"],
        ["env", "X=1", "postgres"],
    ],
)
def test_a_daemon_that_owns_its_data_is_recognised(command: list[str]) -> None:
    assert owns_its_data(command)


@pytest.mark.parametrize(
    "command",
    [
        ["redis-server", "--port", "{port}", "--save", ""],
        ["redis-server", "--port", "{port}", "--save", "", "--appendonly", "no"],
        ["sh", "-c", "exec redis-server --port {port} --save ''"],
        ["python", "-m", "http.server", "{port}"],
        ["nginx", "-g", "daemon off;"],
        ["./postgres-exporter"],
        ["cat", "it's"],
    ],
)
def test_others_may_run_side_by_side(command: list[str]) -> None:
    assert owns_its_data(command) is None


@pytest.mark.parametrize(
    ("command", "stop_signal"),
    [(["postgres", "-D", "data"], "INT"), (["postmaster"], "INT"), (["redis-server"], "TERM")],
)
def test_it_is_stopped_by_the_signal_that_ends_it_soon_and_in_order(command: list[str], stop_signal: str) -> None:
    owner = owns_its_data(command)
    assert owner
    assert owner.stop_signal == stop_signal
