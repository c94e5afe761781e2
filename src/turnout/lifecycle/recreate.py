"""A rollout of a daemon that owns its data: the old one is gone before the new one starts, and clients wait meanwhile.

    begin ─ hold ─ end ─ stop ─ spawn ─ probe until healthy ─ mark ─ re-probe ─ switch ─ unlock ─ (the router observes)

From hold to switch nothing is active, and the registry says so. What fails after the stop brings the previous build
back, in a rollout of its own that takes over in one write, so that no held client is turned away in between.
A verb that dies in here leaves a rollout without an owner: the router then has the last good build started, as after a
crash.

No daemon is started while another one that turnout started for this service may still run.
"""

from __future__ import annotations

import contextlib
import time
from typing import Final

from turnout.core.model import Cause, Daemon, Snapshot
from turnout.core.rollout_step import RolloutStep
from turnout.errors import CandidateError, NotBegunError, NotRunningError, TimedOutError, TurnoutError, UsageError
from turnout.lifecycle.failure_report import blames_build
from turnout.lifecycle.launch_context import Launches
from turnout.lifecycle.naming import daemon_name, new_boot_id
from turnout.lifecycle.rollout import RolloutRun
from turnout.system.boot_processes import Boot, processes_of
from turnout.system.probes.probe import ProbeResult
from turnout.system.process import is_alive, provably_dead
from turnout.system.spawn_record import read_records

LOOK_S: Final = 0.02
END_SLACK_S: Final = 0.5  # the router's clock for the same seconds starts a moment later
STOP_SLICE_S: Final = 1.0
STOP_SLACK_S: Final = 10.0
SLOW_FIRST_S: Final = 5.0


def check_can_make_room(active: Daemon | None) -> None:
    """Raises UsageError: the active daemon was attached, and so cannot be stopped for its successor."""
    if active and not active.owned and not provably_dead(active.identity):
        raise UsageError(
            f"{daemon_name(active)} was not started by turnout, so it cannot be stopped for its successor",
            hint="turnout detach, stop it yourself, then deploy",
        )


class RecreateRun(RolloutRun):
    """One rollout with ``strategy = "recreate"``."""

    _previous: Daemon | None = None
    _was_dead = False
    _stopping = False
    _held_at: float | None = None
    _hold_reported = False

    def _make_room(self, begun: Snapshot) -> None:
        check_can_make_room(begun.active)
        self._previous = active = begun.active
        if active:
            self._was_dead = not is_alive(active.identity)
            self._progress.step(RolloutStep.HOLD, f"new connections, {active.boot_id} makes room")
            self._held_at = time.monotonic()
            self._retire(active, "its successor cannot run beside it")
            self._progress.step(RolloutStep.END, active.boot_id)
            self._end_connections(active)
        self._progress.step(RolloutStep.STOP, daemon_name(active) if active else "whatever is left")
        self._stopping = True
        self._stop_everything(active)

    def _end_connections(self, active: Daemon) -> None:
        """The router cuts them at quiet moments, and then all; the daemon itself ends what is left as it stops."""
        deadline = time.monotonic() + self._service.settings.retire_s + END_SLACK_S
        while time.monotonic() < deadline and is_alive(active.identity):
            if self._is_drained(active.boot_id):
                return
            time.sleep(LOOK_S)

    def _is_drained(self, boot_id: str) -> bool:
        """Whether the router has found that the daemon has no connection left, and that none is on its way to it.

        On a direct plane the connections outlive their router: its successor tells.
        """
        try:
            service = self._router.status(timeout_s=1.0)["services"].get(self._service.name, {})
        except (NotRunningError, TimedOutError, OSError):
            return False
        return boot_id in service.get("drained", ())

    def _stop_everything(self, first: Daemon | None) -> None:
        """Stop every daemon of this service that may run: two on one directory destroy its data."""
        home = self._service.home
        running = [first.boot_id] if first else []
        running += [boot for boot, record in read_records(home.records).items() if record.has_processes]
        known = self._registry.read().snapshot.daemons
        running += [boot for boot, daemon in known.items() if daemon.owned and is_alive(daemon.identity)]
        for boot_id in dict.fromkeys(running):
            self._stop_and_wait(boot_id)

    def _stop_and_wait(self, boot_id: str) -> None:
        """Have the daemon stopped: its stop signal, the grace, KILL. Returns only when it is gone.

        Raises:
            NotBegunError: it is still there.
        """
        settings = self._service.settings
        began = time.monotonic()
        report_after_s = min(settings.stop_grace_s / 2, SLOW_FIRST_S)
        while not self._bootstrap.stop(boot_id, wait_s=STOP_SLICE_S):
            waited_s = time.monotonic() - began
            if waited_s > settings.stop_grace_s + STOP_SLACK_S:
                break
            if waited_s >= report_after_s:
                report_after_s = 2 * waited_s
                self._progress.slow(self._slow_stop(boot_id, waited_s))
        self._must_be_gone(boot_id)

    def _slow_stop(self, boot_id: str, waited_s: float) -> str:
        settings = self._service.settings
        kill_in_s = max(0.0, settings.stop_grace_s - waited_s)
        text = (
            f"{boot_id} has not stopped {waited_s:.0f} s after {settings.stop_signal}, KILL comes in {kill_in_s:.0f} s"
        )
        if self._held_at is None:
            return text
        left_s = max(0.0, settings.hold_timeout_s - (time.monotonic() - self._held_at))
        return f"{text}; clients are held for {left_s:.0f} s more"

    def _must_be_gone(self, boot_id: str) -> None:
        record = read_records(self._service.home.records).get(boot_id)
        known = self._registry.read().snapshot.daemons.get(boot_id)
        identities = [found.identity for found in (record, known) if found]
        left = [identity.pid for identity in identities if is_alive(identity)]
        if record and record.shim and not left:
            with contextlib.closing(processes_of(Boot(boot_id, None, record.shim))) as found:
                left = [handle.identity.pid for handle in found.handles] if record.has_remains else []
        if left:
            raise NotBegunError(
                f"{boot_id} (pid {left[0]}) cannot be stopped, so nothing may be started on its data",
                hint=f"end pid {left[0]}, then turnout up",
            )

    def _attempted(self, result: ProbeResult) -> None:
        """Warn in good time that the hold runs out."""
        if self._held_at is None or self._hold_reported or result.ok:
            return
        hold_s = self._service.settings.hold_timeout_s
        held_s = time.monotonic() - self._held_at
        if held_s > hold_s * 0.75:
            self._hold_reported = True
            self._progress.slow(
                f"the first clients have been held for {held_s:.0f} s, and are reset after {hold_s:g} s;"
                f" the daemon is not there yet: {result.reason}"
            )

    def _give_up(self, boot_id: str, build_id: str, error: BaseException) -> str:
        previous = self._previous
        block = self._registry.read().snapshot.deployment
        if not self._stopping:  # the old daemon has no stop signal yet: it goes on serving
            running = previous is not None and is_alive(previous.identity)
            self._abort(boot_id, build_id, error, restore=block.retired_boot_id if running else "")
            return ""
        again = previous is not None and self._was_dead and build_id == previous.build
        if previous is None or again or block.active_boot_id == boot_id:  # again: it died, and the restarter counts
            self._abort(boot_id, build_id, error)
            return ""
        self._service.builds.set_result(self._generation, "aborted")
        if isinstance(error, TurnoutError) and blames_build(error) and build_id != previous.build:
            self._service.builds.quarantine(build_id, error.message, self._generation)
        return self._bring_back(previous, boot_id, build_id, error)

    def _bring_back(self, previous: Daemon, boot_id: str, build_id: str, error: BaseException) -> str:
        """The build of ``previous`` again, under a rollout that takes over from the failed one.

        What interrupts this leaves the rollout to its owner's death, and so to the router, for clients are held.
        """
        build = self._service.builds.get(previous.build)
        if build is None:
            self._abort(boot_id, build_id, error)
            return "the previous build is not recorded"
        self._progress.step(RolloutStep.RETURN, f"to {previous.version or previous.boot_id}")
        reason = error.message if isinstance(error, TurnoutError) else type(error).__name__
        revision = self._registry.read().snapshot.deployment.revision
        self._service.journal.write(
            "bring_back", generation=self._generation, revision=revision, boot_id=boot_id, reason=reason
        )
        back_id = boot_id
        try:
            self._stop_everything(None)
            back_id = new_boot_id()
            begun = self._begin(back_id, Cause.ROLLBACK, supersede=True)
            launch = Launches(self._service, from_router=True).choose(build, Cause.ROLLBACK)
            self._record(build, launch, launch.context_id or self._service.contexts.save(launch.context), begun)
            daemon = self._candidate(back_id).start(build, launch.context)
            self._switch(daemon, window=False)
        except TurnoutError as second:
            self._abort(back_id, previous.build, CandidateError(f"{reason}; then {second.message}"))
            return f"the previous build did not come back either: {second.message}"
        return f"the previous build was started again as generation {self._generation}"
