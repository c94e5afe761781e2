"""What listen addresses go together, and what it takes to listen beyond loopback."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Collection, Sequence
from typing import Final

EPHEMERAL_DEFAULT: Final = (32768, 60999)  # Linux' own, ip(7)
# Behind a relay every client comes from 127.0.0.1, and many daemons trust that (redis protected-mode, pg_hba.conf).
CLIENTS_LOOK_LOCAL: Final = "clients-look-local"


def overlap(addresses: Sequence[tuple[str, int]]) -> tuple[tuple[str, int], tuple[str, int]] | None:
    """Two of these that cannot both be bound: the same twice, or a wildcard and an address that it contains."""
    for first, second in itertools.combinations(addresses, 2):
        hosts = ipaddress.ip_address(first[0]), ipaddress.ip_address(second[0])
        meet = hosts[0].version == hosts[1].version  # IPv6 listeners take no IPv4 (IPV6_V6ONLY)
        if first[1] == second[1] and meet and (hosts[0] == hosts[1] or any(host.is_unspecified for host in hosts)):
            return first, second
    return None


def ephemeral_range(text: str) -> tuple[int, int] | None:
    """The lowest and the highest port that an outgoing connection may get by itself; None: ``text`` does not say.

    ``text``: the content of ``/proc/sys/net/ipv4/ip_local_port_range`` (ip(7)).
    """
    words = text.split()
    return (int(words[0]), int(words[1])) if len(words) == 2 and all(word.isdecimal() for word in words) else None


def format_address(host: str, port: int) -> str:
    """``host:port``, with an IPv6 host in brackets (RFC 3986, 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable(host: str) -> str:
    """Where a program on this machine connects to what listens on ``host``: a wildcard is no destination."""
    address = ipaddress.ip_address(host)
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if isinstance(address, ipaddress.IPv4Address) else "::1"


def exposure_problem(hosts: Sequence[str], expose: bool | str, *, proxy_protocol: bool) -> tuple[str, str] | None:
    """What forbids to listen on these numeric hosts, and a hint; None: nothing does.

    Args:
        hosts: the listen addresses.
        expose: False: loopback only. True: beyond it, if the daemon gets its clients' addresses.
            :data:`CLIENTS_LOOK_LOCAL`: beyond it, although every client looks local to the daemon.
        proxy_protocol: the daemon gets them.
    """
    beyond = next((host for host in hosts if not ipaddress.ip_address(host).is_loopback), None)
    if beyond is None or isinstance(expose, str):
        return None
    if not expose:
        return f"listen address {beyond} lies beyond loopback", (
            'expose = true with proxy_protocol = "v2" in turnout.toml, if others are to reach it'
        )
    if not proxy_protocol:
        return f"exposed on {beyond}, every client would look local to the daemon, which may trust it", (
            f'proxy_protocol = "v2" if the daemon reads it; else expose = "{CLIENTS_LOOK_LOCAL}", ideally with allow'
        )
    return None


def names_own_port(command: Sequence[str], ports: Collection[int]) -> int | None:
    """The port of the fixed address that a command without ``{port}`` names, whatever host stands before it.

    Args:
        command: the words of the command.
        ports: those where the service listens.
    """
    if any("{port}" in word for word in command):
        return None
    for word in command:
        text = word.rpartition("=")[2].rpartition(":")[2]
        # a word like -p5432 glues a flag and its value together
        digits = text[len(text.rstrip("0123456789")) :]
        if digits.isascii() and digits and text in {digits, f"-p{digits}", f"-P{digits}"} and int(digits) in ports:
            return int(digits)
    return None
