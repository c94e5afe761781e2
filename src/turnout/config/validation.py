"""Whether resolved settings make sense together."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Collection
from operator import attrgetter
from typing import Final

from turnout.config.keys import DEFAULT_LISTEN, KEYS
from turnout.config.settings import Address, Health, Settings
from turnout.core.addresses import exposure_problem, overlap
from turnout.core.connection_policy import DIRECT, Policy, needs_relay, networks
from turnout.errors import UsageError
from turnout.system.probes.http import parse_statuses

# Variables that turnout sets whatever the operator says. PORT is not among these: many programs know that name, so the
# operator's value stays, and {port} can be said in another variable.
OWN_VARIABLES: Final[frozenset[str]] = frozenset({"TURNOUT_PORT", "TURNOUT_BOOT_ID"})
LISTENER_VARIABLES: Final[frozenset[str]] = frozenset({"LISTEN_FDS", "LISTEN_PID"})


def check(settings: Settings) -> None:
    """Hold resolved settings to what makes sense together. Raises UsageError: a value out of its range."""
    if not settings.listen:
        raise UsageError("listen names no address", hint=f'for example listen = "{DEFAULT_LISTEN}"')
    both = overlap([(address.host, address.port) for address in settings.listen])
    if both:
        raise UsageError(f"listen names {Address(*both[0])} and {Address(*both[1])}, which are one", hint="drop one")
    problem = exposure_problem(
        [address.host for address in settings.listen],
        settings.expose,
        proxy_protocol=settings.proxy_protocol != "none",
    )
    if problem:
        raise UsageError(problem[0], hint=problem[1])
    if not hasattr(signal, f"SIG{settings.stop_signal}"):
        raise UsageError(f"there is no signal {settings.stop_signal!r}", hint="for example TERM, INT or QUIT")
    for key in KEYS.values():
        if key.kind.least is not None:
            key.check(attrgetter(key.field)(settings))
    if settings.start_timeout_s <= 0:
        raise UsageError("start_timeout must be more than zero", hint='for example start_timeout = "30s"')
    needed_s = settings.stop_grace_s + settings.start_timeout_s
    if settings.strategy == "recreate" and settings.hold_timeout_s <= needed_s:
        raise UsageError(
            f"strategy recreate: hold.timeout ({settings.hold_timeout_s:g} s) must outlast stop.grace"
            f" ({settings.stop_grace_s:g} s) plus start_timeout ({settings.start_timeout_s:g} s), for clients are held"
            " while the old daemon stops and the new one starts",
            hint=f'hold = {{ timeout = "{math.ceil(needed_s) + 10}s" }}, or a shorter stop.grace or start_timeout',
        )
    try:
        networks(settings.allow)
    except ValueError as error:
        raise UsageError(f"allow: {error}", hint='for example allow = ["10.0.0.0/8", "::1"]') from error
    if settings.plane in DIRECT and (asked := demands(settings)):
        raise UsageError(
            f"plane {settings.plane} beside {' and '.join(asked)}: only a relay can enforce that",
            hint='plane = "relay", or "auto"',
        )
    if settings.health.probe == "expect" and not settings.health.match:
        raise UsageError(
            "probe = expect needs a match", hint='for example health = { probe = "expect", match = "PONG" }'
        )
    if settings.health.match:
        try:
            re.compile(settings.health.match)
        except re.error as error:
            raise UsageError(
                f"health.match is no regular expression: {error}",
                hint="as in Python's re; a literal ( is \\\\( in TOML",
            ) from error
    _check_asking(settings.health)


def check_env(env: Collection[str], *, takes_listener: bool) -> None:
    """Hold the names of the daemon's variables to those that turnout leaves alone.

    Raises:
        UsageError: turnout sets one of them itself, so the daemon would get another value.
    """
    own = OWN_VARIABLES | (LISTENER_VARIABLES if takes_listener else frozenset[str]())
    taken = sorted(own.intersection(env))
    if taken:
        raise UsageError(
            f"env sets {', '.join(taken)}, which turnout sets itself",
            hint="give the variable another name, or leave it out",
        )


def demands(settings: Settings) -> tuple[str, ...]:
    """The settings that only a plane can enforce through which the bytes pass; empty: there are none."""
    policy = Policy(
        connections=settings.connections,
        idle_timeout_s=settings.idle_timeout_s,
        user_timeout_s=settings.user_timeout_s,
        allow=networks(settings.allow),
    )
    header = ("proxy_protocol",) if settings.proxy_protocol != "none" else ()
    # a program that checks a daemon knows its port, and at the fixed address reaches the active one
    program = ("health.probe = exec",) if settings.takes_part and settings.health.probe == "exec" else ()
    several = ("several listen addresses",) if settings.takes_part and len(settings.listen) > 1 else ()
    six = ("an IPv6 listen address",) if settings.takes_part and any(":" in one.host for one in settings.listen) else ()
    return (*needs_relay(policy), *header, *program, *several, *six)


def _check_asking(health: Health) -> None:
    """What the probes http and exec need."""
    try:
        parse_statuses(health.status)
    except ValueError as error:
        raise UsageError(f"health.status: {error}", hint='for example "200-399", "200" or "200,204"') from error
    if not health.path.startswith("/") or re.search(r"[^!-~]", health.path):
        raise UsageError(
            f"health.path: {health.path!r} is no path of a request", hint='for example "/healthz"; no blanks'
        )
    if re.search(r"[^!-~]", health.host):
        raise UsageError(f"health.host: {health.host!r} is no host name", hint='for example "example.org"')
    if health.probe == "exec" and not (health.command and health.command[0]):
        raise UsageError(
            "probe = exec needs a command",
            hint='for example health = { probe = "exec", command = ["pg_isready", "-p", "{port}"] }',
        )
