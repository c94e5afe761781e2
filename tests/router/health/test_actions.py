"""What a verb that the router started says of the attempt: which failures count, and which are waited for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from turnout.errors import ConflictError
from turnout.router.health.actions import HealthActions
from turnout.router.health.restarter import NotBegun, Started
from turnout.router.verb_runner import VerbExit


def actions_with(ended: VerbExit) -> HealthActions:
    async def run(*_: str) -> VerbExit:
        return ended

    none = cast("Any", None)
    loop = SimpleNamespace(time=lambda: 0.0)
    service = SimpleNamespace(live=none, registry=none, events=none, loop=loop)
    return HealthActions(cast("Any", service), cast("Any", SimpleNamespace(run=run)), none, lambda: None)


@pytest.mark.parametrize(
    ("ended", "start", "rollback"),
    [
        (VerbExit(0), Started.YES, Started.YES),
        (VerbExit(ConflictError.exit_code), Started.BUSY, Started.BUSY),
        (VerbExit(1, "CandidateError", "it ended"), Started.NO, Started.NO),
        (VerbExit(1, "SpawnError", "no such command"), NotBegun("no such command"), Started.NO),
        (VerbExit(1), NotBegun("the verb ended with exit code 1"), Started.NO),
        (VerbExit(1, "StateUnwritableError", "disk full"), NotBegun("disk full"), NotBegun("disk full")),
        (VerbExit(-9), NotBegun("the verb was killed by signal 9"), NotBegun("the verb was killed by signal 9")),
    ],
)
def test_a_rollback_waits_for_the_machine_alone_and_a_restart_for_its_program_too(
    ended: VerbExit, start: Started | NotBegun, rollback: Started | NotBegun
) -> None:
    """A window has to end: a previous build that cannot be started any more is given up like one that crashes."""

    actions = actions_with(ended)
    assert asyncio.run(actions.start("")) == start
    assert asyncio.run(actions.roll_back()) == rollback
