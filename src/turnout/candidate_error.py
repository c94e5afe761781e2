"""Why a candidate did not become healthy, with how its process ended and the last lines of its log."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

from turnout.core.model import Daemon
from turnout.errors import CandidateError
from turnout.service import Service
from turnout.system.daemon_log import tail
from turnout.system.probe import ProbeResult
from turnout.system.spawn_record import read_records

END_RECORD_TIMEOUT_S: Final = 2.0
LOG_TAIL_LINES: Final = 12


def candidate_error(service: Service, daemon: Daemon, result: ProbeResult) -> CandidateError:
    """A candidate that did not become healthy: by its last probe, with how it ended and the end of its log."""
    if result.found_port:
        return CandidateError(
            f"the daemon listens on port {result.found_port}, not on {daemon.port} as it was told",
            hint="put {port} into its command (for example: --port {port}), or let it read $PORT",
            detail=log_tail(service.home.log(daemon.boot_id)),
        )
    status = _wait_status(service, daemon) if result.gone else None
    how = f" ({_ending(status)})" if status is not None else ""
    # who ends well before it ever served has most likely gone to the background, whether or not that listens by now
    hint = "it must stay in the foreground, not daemonize itself; see " if status == 0 else "see "
    return CandidateError(
        f"the candidate did not become healthy: {result.reason}{how}",
        hint=f"{hint}{service.home.log(daemon.boot_id)}" if daemon.owned else None,
        detail=log_tail(service.home.log(daemon.boot_id)),
    )


def log_tail(path: Path, *, lines: int = LOG_TAIL_LINES, bound_bytes: int = 16384) -> str:
    """The last lines of a log file; empty where there is none."""
    return tail(path, lines=lines, bound_bytes=bound_bytes)


def _wait_status(service: Service, daemon: Daemon) -> int | None:
    """How it ended (wait(2)), which the keeper records a moment after the end; None where nobody could know."""
    deadline = time.monotonic() + END_RECORD_TIMEOUT_S
    while daemon.owned and time.monotonic() < deadline:
        record = read_records(service.home.records).get(daemon.boot_id)
        if record and record.ended:
            return record.ended.status
        time.sleep(0.01)
    return None


def _ending(status: int) -> str:
    """A wait status (wait(2)) in words."""
    code = os.waitstatus_to_exitcode(status)
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
