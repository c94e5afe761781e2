"""Waits until a daemon that was started is healthy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

import msgspec

from turnout.core.acceptors import Waited
from turnout.core.model import Daemon
from turnout.system.probes.probe import ProbeResult, ProbeSpec, Proof, probe

ELSEWHERE_AFTER_S: Final = 1.0
CONNECT_AFTER_S: Final = 0.5
LAST_CHECK_S: Final = 0.05  # for the check at the deadline, so that its reason tells of the daemon


def wait_healthy(
    daemon: Daemon,
    spec: ProbeSpec,
    *,
    timeout_s: float,
    interval_s: float = 0.05,
    check_timeout_s: float = 0.5,
    elsewhere_after_s: float = ELSEWHERE_AFTER_S,
    on_attempt: Callable[[ProbeResult], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> ProbeResult:
    """Check until it is well, has ended, or the time is up; returns the last check.

    The daemon is no daemon in service yet, so it has to show that it accepts connections: an inherited listener proves
    nothing, and one that is never accepted from would keep its clients waiting. The kernel shows that as a rule; where
    it does not, a connection is opened, at first after half a second and then less and less often.

    Args:
        daemon: which.
        spec: how.
        timeout_s: seconds until it is given up.
        interval_s: seconds between two checks.
        check_timeout_s: seconds for one check.
        elsewhere_after_s: seconds after which a daemon is given up that listens on another port, and not on its own, or
            whose descriptors may not be read: more time changes neither.
        on_attempt: gets each result.
        clock: seconds that never go back.
        sleep: waits so many seconds.
    """
    deadline = clock() + timeout_s
    elsewhere_since: float | None = None
    connect_at, pause_s = math.inf, CONNECT_AFTER_S
    while True:
        proof = Proof.CONNECTION if clock() >= min(connect_at, deadline) else Proof.KERNEL
        left_s = max(LAST_CHECK_S, deadline - clock())
        result = probe(daemon, spec, timeout_s=min(check_timeout_s, left_s), proof=proof)
        if proof is Proof.CONNECTION:
            connect_at, pause_s = clock() + pause_s, 2 * pause_s
        elif connect_at == math.inf and result.waited in {Waited.NO, Waited.UNKNOWN}:
            connect_at = clock() + (0.0 if result.waited is Waited.UNKNOWN else min(pause_s, timeout_s / 4))
        if on_attempt:
            on_attempt(result)
        now = clock()
        if result.ok or result.gone:
            return result
        if result.found_port is None and not result.owner_hidden:
            elsewhere_since = None
        elif elsewhere_since is None:
            elsewhere_since = now
        elif now - elsewhere_since >= elsewhere_after_s:
            return result
        if now >= deadline:
            reason = f"not healthy within {round(timeout_s, 1):g} s: {result.reason}"
            return msgspec.structs.replace(result, reason=reason)
        sleep(min(interval_s, deadline - now))
