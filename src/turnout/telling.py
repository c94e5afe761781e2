"""What the router says of one service while it decides: a line in its log, and an entry in the service's journal."""

from __future__ import annotations

import logging
from concurrent.futures import Executor

from turnout.core.outcome import Outcome
from turnout.following import Following
from turnout.live_settings import LiveSettings

log = logging.getLogger("turnout.router")


class Telling:
    """Owns nothing; ``scribe`` writes one entry after the other, off the loop."""

    def __init__(self, scribe: Executor, live: LiveSettings, following: Following) -> None:
        self._scribe = scribe
        self._live = live
        self._following = following

    def journal(self, event: str, outcome: Outcome, **evidence: object) -> None:
        """A write of ours, applied or refused."""
        block = outcome.deployment
        told = {key: str(value) for key, value in evidence.items()} | {"outcome": outcome.reason.value}
        log.info("%s: %s generation %d %s", self._live.service.name, event, block.generation, told)
        self._scribe.submit(
            lambda: self._live.service.journal.write(
                event, generation=block.generation, revision=block.revision, **told
            )
        )

    def say(self, event: str, boot_id: str, **evidence: object) -> None:
        """Something that concerns one daemon, at the revision that is applied."""
        block = self._following.snapshot.deployment
        told = {key: str(value) for key, value in evidence.items()}
        log.info("%s: %s %s %s", self._live.service.name, event, boot_id, told or "")
        self._scribe.submit(
            lambda: self._live.service.journal.write(
                event, generation=block.generation, revision=block.revision, boot_id=boot_id, **told
            )
        )
