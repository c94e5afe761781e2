"""Ends a rollout whose owner is provably dead: without that its candidate would run on until the next verb.

Where the rollout has retired the active daemon, nothing serves, and clients are held: the restarter starts one instead.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from turnout.core.deployment import abort_deploy
from turnout.core.model import Daemon, Deployment, Snapshot
from turnout.core.outcome import Outcome, Reason, refuse
from turnout.router.followed_service import FollowedService
from turnout.router.health.restarter import Restarter
from turnout.state.rollout_owner import abandoned, is_abandoned

OWNER_LOOK_S: Final = 0.25


class AbandonedRollouts(msgspec.Struct, frozen=True):
    """Watches the owner of one service's rollout. Its one task belongs to the caller of :meth:`run`."""

    service: FollowedService
    restarter: Restarter

    async def run(self) -> None:
        """Look at the owner of the rollout under way, until cancelled."""
        loop = self.service.loop
        while True:
            await asyncio.sleep(OWNER_LOOK_S)
            block = self.service.registry.snapshot.deployment
            if not block.in_flight:
                continue
            home = self.service.live.service.home  # whether its lock is held is asked of the file system
            if not await loop.run_in_executor(self.service.files.writing, is_abandoned, block, home):
                continue
            if block != self.service.registry.snapshot.deployment:
                continue
            if block.active_boot_id:
                await self._abort_abandoned(block)
            else:
                daemon = self.service.registry.snapshot.old or self.service.registry.snapshot.candidate
                lost = daemon or Daemon(block.candidate_boot_id, owned=True)
                self.restarter.on_exit(lost, f"the rollout of generation {block.generation} lost its owner")

    async def _abort_abandoned(self, block: Deployment) -> None:
        generation, reason = block.generation, abandoned(block)

        def end(snap: Snapshot) -> Outcome:
            if not snap.deployment.active_boot_id:  # retired a moment before the death, and not seen here yet
                return refuse(snap, Reason.ACTIVE_CHANGED)
            return abort_deploy(snap, generation, reason=reason)

        outcome = await self.service.registry.update(end)
        if outcome.applied:
            self.service.events.deployment_event("abort", outcome, reason=reason, owner_pid=block.owner.pid)
            await self.service.write_file(lambda: self.service.live.service.builds.set_result(generation, "aborted"))
