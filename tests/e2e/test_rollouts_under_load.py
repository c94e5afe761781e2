"""A real redis-server behind the fixed address, replaced over and over under load."""

from __future__ import annotations

import pytest

from e2e_support import Turnout
from redis_clients import RedisClients
from support import report, scaled


@pytest.mark.redis
@pytest.mark.timeout(1200)
def test_no_connection_fails_through_deploys_and_refreshes_of_a_real_redis(turnout: Turnout, redis: str) -> None:
    rollouts = scaled(6, 20)
    command = [redis, "--port", "{port}", "--bind", "127.0.0.1", "--save", ""]
    turnout.configure(command, observe="300ms")
    turnout.run("up")
    with RedisClients(turnout.address) as clients:
        for number in range(rollouts):
            if number % 2:
                turnout.run("refresh")
            else:
                turnout.run("deploy", "--version", f"v{number + 2}")
            clients.met(number + 1)
    report("rollouts of a real redis", rollouts=rollouts, connections=clients.connections, errors=len(clients.errors))
    assert clients.errors == []
    assert clients.connections > 10 * rollouts
    assert len(clients.replies) == rollouts + 1, "each rollout brought a process of its own, and each was used"
    assert turnout.snapshot().deployment.generation == rollouts + 1
