from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_header import Told, decode
from turnout.core.model import Daemon
from turnout.core.proxy_protocol import LOCAL_HEADER, expects_header, header

PORTS = st.integers(0, 65535)
V4, V6 = st.ip_addresses(v=4), st.ip_addresses(v=6)


@given(st.one_of(st.tuples(V4, V4), st.tuples(V6, V6)), PORTS, PORTS)
def test_what_a_header_says_is_read_back_by_an_independent_decoder(
    hosts: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...], port: int, other: int
) -> None:
    told, rest = decode(header((str(hosts[0]), port), (str(hosts[1]), other)) + b"the first bytes")
    assert rest == b"the first bytes"
    assert told.command == "PROXY"
    assert told.source is not None
    assert told.destination is not None
    assert (ipaddress.ip_address(told.source[0]), told.source[1]) == (hosts[0], port)
    assert (ipaddress.ip_address(told.destination[0]), told.destination[1]) == (hosts[1], other)


def test_a_known_header_is_what_the_specification_says_byte_for_byte() -> None:
    assert header(("192.0.2.1", 4660), ("127.0.0.1", 443)).hex() == (
        "0d0a0d0a000d0a515549540a2111000cc00002017f000001123401bb"
    )
    assert LOCAL_HEADER.hex() == "0d0a0d0a000d0a515549540a20000000"
    assert decode(LOCAL_HEADER) == (Told("LOCAL", None, None), b"")


def test_addresses_of_two_families_are_refused() -> None:
    with pytest.raises(ValueError, match="family"):
        header(("127.0.0.1", 1), ("::1", 2))


@pytest.mark.parametrize(
    ("daemon", "configured", "expects"),
    [
        (None, "v2", True),
        (None, "none", False),
        (Daemon("a"), "v2", True),
        (Daemon("a", proxy_protocol="none"), "v2", False),
        (Daemon("a", proxy_protocol="v2"), "none", True),
    ],
)
def test_a_header_is_expected_as_the_daemon_was_started_and_else_as_the_settings_say(
    daemon: Daemon | None, configured: str, *, expects: bool
) -> None:
    assert expects_header(daemon, configured) is expects
