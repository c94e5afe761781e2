"""How a keeper that got SIGTERM does what ``turnout down`` does: by that verb, a process for each service.

Standard library only: the registry is beyond the keeper. Where a verb fails, it stops the daemon by the daemon's terms.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from turnout.config.keys import stored_values
from turnout.state.home import Home, ServiceHome
from turnout.system.own_log import log_line
from turnout.system.verb_process import start_verb, verb_argv


@dataclass(frozen=True, slots=True)
class StopTerms:
    """How a service's daemon wants to be stopped; ``patience_s``: what its drain and its stop may take together."""

    signal: int
    grace_s: float
    patience_s: float


DEFAULT_TERMS: Final = StopTerms(signal.SIGTERM, 5.0, 5.0)


def stop_terms(home: ServiceHome) -> StopTerms:
    """From the settings that are in force; the defaults where they cannot be read."""
    try:
        name, *times = stored_values(home.read_settings()[0], "stop.signal", "stop.grace", "drain.grace")
        grace_s, drain_s = (max(0.0, float(time_s)) for time_s in times)
        return StopTerms(signal.Signals[f"SIG{name}"], grace_s, grace_s + drain_s)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return DEFAULT_TERMS


def start_down_verb(home: Home, interpreter: str, service: str) -> int:
    """Start ``turnout down`` for a service; answers its pidfd. The keeper reaps it like any other child.

    Raises:
        OSError: no process or no descriptor to be had, or the interpreter is gone.
    """
    argv = verb_argv(interpreter, "down", "--automatic", "--quiet", "--service", service)
    pid = start_verb(argv, home.root)
    try:
        return os.pidfd_open(pid)
    except OSError:  # unwatched it would run on beside the keeper's own end
        os.kill(pid, signal.SIGKILL)  # our own child, not waited for: the number is still its own
        raise


def run_down_verbs(
    start: Callable[[str], int],
    services: list[str],
    watch: Callable[[int, Callable[[], None]], object],
    unwatch: Callable[[int], object],
    done: Callable[[], None],
) -> None:
    """Take all services down at once.

    Args:
        start: starts the verb of a service; answers its pidfd.
        services: their names.
        watch: calls an action when a descriptor is readable.
        unwatch: ends that.
        done: called once, when the last verb has ended.
    """
    running: set[int] = set()

    def ended(pidfd: int) -> None:
        running.discard(pidfd)
        unwatch(pidfd)
        os.close(pidfd)
        if not running:
            done()

    for service in services:
        try:
            pidfd = start(service)
        except OSError as error:
            log_line(f"cannot run turnout down for {service}: {error.strerror}")
            continue
        running.add(pidfd)
        try:
            watch(pidfd, partial(ended, pidfd))
        except OSError as error:  # epoll_ctl(2): ENOSPC, ENOMEM
            log_line(f"cannot watch turnout down for {service}: {error.strerror}")
            running.discard(pidfd)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
    if not running:
        done()
