"""Logs the router's decisions for one service: a line in its log, and an entry in the service's journal."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Protocol

import msgspec

from turnout.core.model import Deployment
from turnout.core.outcome import Outcome
from turnout.router.follow.registry import RegistryFollower
from turnout.router.follow.settings import SettingsFollower

log = logging.getLogger("turnout.router")


class DaemonEvents(Protocol):
    """Where events that concern one daemon are logged."""

    def daemon_event(self, event: str, boot_id: str, **evidence: object) -> None: ...


class DeploymentEvents(Protocol):
    """Where the router's own writes are logged."""

    def deployment_event(self, event: str, outcome: Outcome, **evidence: object) -> None: ...


class EventLog(msgspec.Struct, frozen=True):
    """The log and the journal of one service. Owns nothing; ``thread`` writes one entry after the other."""

    thread: Executor
    live: SettingsFollower
    registry: RegistryFollower

    def deployment_event(self, event: str, outcome: Outcome, **evidence: object) -> None:
        """Log a write of this router, applied or refused."""
        block = outcome.deployment
        fields = _texts(evidence) | {"outcome": outcome.reason.value}
        log.info("%s: %s generation %d %s", self.live.service.name, event, block.generation, fields)
        self._write(event, block, fields)

    def daemon_event(self, event: str, boot_id: str, **evidence: object) -> None:
        """Log an event that concerns one daemon, at the revision that is applied."""
        fields = _texts(evidence)
        log.info("%s: %s %s %s", self.live.service.name, event, boot_id, fields or "")
        self._write(event, self.registry.snapshot.deployment, {"boot_id": boot_id, **fields})

    def _write(self, event: str, block: Deployment, fields: Mapping[str, str]) -> None:
        write = partial(self.live.service.journal.write, event)
        self.thread.submit(write, generation=block.generation, revision=block.revision, **fields)


def _texts(evidence: Mapping[str, object]) -> dict[str, str]:
    return {key: str(value) for key, value in evidence.items()}
