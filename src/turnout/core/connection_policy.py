"""What the operator demands of the connections of a service, whatever moves their bytes."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

import msgspec

DIRECT: Final = ("reuseport", "sk_lookup")  # planes in which the kernel hands a connection straight to the daemon
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Policy(msgspec.Struct, frozen=True):
    """One service's policy. It may change while connections exist; what they were set up with stays with them.

    Args:
        hold_max: how many connections may wait for a daemon at most, 0 or more; a further one is reset at once.
        hold_timeout_s: how long a connection may wait at most for a daemon that refuses or takes nothing, seconds.
        connections: how many may be open at once, held ones included; 0: no limit. Those beyond it wait in the
            kernel's accept queue, as with HAProxy's ``maxconn``.
        idle_timeout_s: a connection without a byte in either direction for so many seconds is ended; None: never.
        user_timeout_s: seconds that sent bytes may stay unacknowledged (TCP_USER_TIMEOUT, tcp(7)); None: the system's
            own. It also ends a live peer that merely stops reading.
        allow: networks that clients may come from; empty: all of them.
    """

    hold_max: int = 1024
    hold_timeout_s: float = 70.0
    connections: int = 0
    idle_timeout_s: float | None = None
    user_timeout_s: float | None = None
    allow: tuple[Network, ...] = ()

    def admits(self, host: str) -> bool:
        """Whether a client at this numeric address may come in."""
        address = ipaddress.ip_address(host)
        return any(address in network for network in self.allow)

    def user_timeout_ms(self) -> int:
        """As TCP_USER_TIMEOUT takes it; 0: the system's own."""
        return 0 if self.user_timeout_s is None else max(1, round(self.user_timeout_s * 1000))


DEFAULT_POLICY = Policy()


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """``10.0.0.0/8``, ``::1``, … as networks. Raises ValueError: one of them is none, or has host bits set."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def needs_relay(policy: Policy) -> tuple[str, ...]:
    """The settings of this policy that only a plane can enforce through which the bytes pass; empty: there are none."""
    demands = {
        "limits.connections": policy.connections > 0,
        "limits.idle_timeout": policy.idle_timeout_s is not None,
        "limits.user_timeout": policy.user_timeout_s is not None,
        "allow": bool(policy.allow),
    }
    return tuple(name for name, asked in demands.items() if asked)
