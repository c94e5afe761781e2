"""How a keeper that was told to end does what ``turnout down`` does: by that verb, a process for each service.

Standard library only: the registry is beyond the keeper. Where a verb fails, it stops the daemon by the daemon's terms.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from turnout.system.home import Home, ServiceHome


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
        settings: dict[str, Any] = json.loads(home.settings.read_bytes())
        grace_s = max(0.0, float(settings["stop_grace_s"]))
        drain_s = max(0.0, float(settings["drain_grace_s"]))
        return StopTerms(signal.Signals[f"SIG{settings['stop_signal']}"], grace_s, grace_s + drain_s)
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_TERMS


class DownVerb:
    """One ``turnout down``, ended or not. Owns its pidfd; the keeper reaps it like any other child."""

    def __init__(self, home: Home, service: str) -> None:
        """Raises OSError: no process or no descriptor to be had."""
        argv = [sys.executable, "-P", "-m", "turnout", "down", "--automatic", "--quiet", "--service", service]
        env = {**os.environ, "TURNOUT_HOME": str(home.root)}
        # what it says goes to the keeper's log; a session of its own, so that a second Ctrl-C is the keeper's alone
        pid = os.posix_spawn(
            sys.executable, argv, env, setsid=True, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)], setsigmask=()
        )
        self.fd = os.pidfd_open(pid)

    def close(self) -> None:
        os.close(self.fd)


class GoingDown:
    """All services on their way down.

    Args:
        home: the state directory.
        services: their names.
        watch: has a descriptor watched: called with it and what to do when it is readable.
        forget: ends that.
        over: called once, when the last verb has ended.
        say: takes a line for the log.
    """

    def __init__(
        self,
        home: Home,
        services: list[str],
        watch: Callable[[int, Callable[[], None]], object],
        forget: Callable[[int], object],
        over: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._forget = forget
        self._over = over
        self._verbs: set[DownVerb] = set()
        for service in services:
            try:
                verb = DownVerb(home, service)
            except OSError as error:
                say(f"cannot run turnout down for {service}: {error.strerror}")
                continue
            self._verbs.add(verb)
            watch(verb.fd, partial(self._ended, verb))
        if not self._verbs:
            over()

    def _ended(self, verb: DownVerb) -> None:
        self._verbs.discard(verb)
        self._forget(verb.fd)
        verb.close()
        if not self._verbs:
            self._over()
