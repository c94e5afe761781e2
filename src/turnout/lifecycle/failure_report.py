"""Why a candidate did not become healthy, with how its process ended and the last lines of its log."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from turnout.core.model import Daemon
from turnout.errors import CandidateError, NotBegunError, SpawnError
from turnout.state.service import Service
from turnout.system.daemon_log import tail
from turnout.system.probes.probe import ProbeResult
from turnout.system.signals import signal_name
from turnout.system.spawn_record import read_records

END_RECORD_TIMEOUT_S: Final = 2.0
LOG_TAIL_LINES: Final = 12


def candidate_error(service: Service, daemon: Daemon, result: ProbeResult) -> CandidateError:
    """A candidate that did not become healthy: by its last probe, with how it ended and the end of its log."""
    log = service.home.log(daemon.boot_id)
    detail = log_tail(log)
    if result.found_port:
        keeps = "" if service.settings.activation == "on" else "; with --activation on it keeps its own port"
        return CandidateError(
            f"the daemon listens on port {result.found_port}, not on {daemon.port} as it was told",
            hint="put {port} into its command (for example: --port {port}), or let it read $PORT" + keeps,
            detail=detail,
        )
    if result.owner_hidden:
        return CandidateError(
            f"something listens on port {daemon.port}, but the descriptors of pid {daemon.pid} may not be read, so it"
            " cannot be proven that this is the daemon: it has capabilities or an owner that turnout lacks, or its"
            " program may not be read",
            hint=f"verify_owner = false below [service.{service.name}] in turnout.toml takes whatever listens there for"
            " the daemon",
            detail=detail,
        )
    status = _wait_status(service, daemon) if result.gone else None
    how = f" ({_ending(status)})" if status is not None else ""
    # a daemon that ends well before it served has most likely gone to the background, whether or not that listens now
    hint = "it must stay in the foreground, not daemonize itself; see " if status == 0 else "see "
    return CandidateError(
        f"the candidate did not become healthy: {result.reason}{how}",
        hint=f"{hint}{log}" if daemon.owned else None,
        detail=detail,
    )


def blames_build(error: BaseException | None) -> bool:
    """Whether a start that failed says something against its build, and not of the machine that it was tried on."""
    return isinstance(error, CandidateError | SpawnError) and not isinstance(error, NotBegunError)


def log_tail(path: Path, *, lines: int = LOG_TAIL_LINES, bound_bytes: int = 16384) -> str:
    """The last lines of a log file; empty where there is none."""
    return tail(path, lines=lines, bound_bytes=bound_bytes)


def _wait_status(service: Service, daemon: Daemon) -> int | None:
    """How it ended (wait(2)), which the keeper records a moment after the end; None where that is not known."""
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
    return f"exit code {code}" if code >= 0 else f"signal {signal_name(-code)}"
