from __future__ import annotations

import pytest

from turnout.core.addresses import (
    CLIENTS_LOOK_LOCAL,
    ephemeral_range,
    exposure_problem,
    format_address,
    overlap,
    reachable,
)


@pytest.mark.parametrize(
    ("addresses", "meet"),
    [
        ([("127.0.0.1", 1), ("127.0.0.1", 1)], True),
        ([("127.0.0.1", 1), ("0.0.0.0", 1)], True),
        ([("0.0.0.0", 1), ("10.0.0.1", 1)], True),
        ([("::", 1), ("::1", 1)], True),
        ([("::", 1), ("0.0.0.0", 1)], False),
        ([("127.0.0.1", 1), ("127.0.0.1", 2)], False),
        ([("127.0.0.1", 1), ("127.0.0.2", 1)], False),
    ],
)
def test_addresses_that_cannot_be_bound_side_by_side_are_found(addresses: list[tuple[str, int]], meet: bool) -> None:
    assert (overlap(addresses) is not None) is meet


@pytest.mark.parametrize(
    ("hosts", "expose", "proxy", "fine"),
    [
        (["127.0.0.1", "::1", "127.9.9.9"], False, False, True),
        (["127.0.0.1", "10.0.0.1"], False, False, False),
        (["10.0.0.1"], False, True, False),
        (["10.0.0.1"], True, False, False),
        (["10.0.0.1"], True, True, True),
        (["0.0.0.0", "::"], CLIENTS_LOOK_LOCAL, False, True),
        (["127.0.0.1"], True, False, True),
    ],
)
def test_beyond_loopback_needs_exposure_and_that_the_daemon_is_told_or_a_second_word(
    hosts: list[str], expose: bool | str, proxy: bool, fine: bool
) -> None:
    problem = exposure_problem(hosts, expose, proxy_protocol=proxy)
    assert (problem is None) is fine
    if problem:
        assert problem[1], "it comes with a hint"


def test_a_wildcard_is_reached_on_loopback() -> None:
    assert [reachable(host) for host in ("0.0.0.0", "::", "127.0.0.1", "10.1.1.1")] == [
        "127.0.0.1",
        "::1",
        "127.0.0.1",
        "10.1.1.1",
    ]


@pytest.mark.parametrize(("host", "text"), [("127.0.0.1", "127.0.0.1:80"), ("::1", "[::1]:80"), ("", ":80")])
def test_an_ipv6_host_is_written_in_brackets(host: str, text: str) -> None:
    assert format_address(host, 80) == text


@pytest.mark.parametrize(
    ("text", "found"),
    [("32768\t60999\n", (32768, 60999)), ("", None), ("1024", None), ("a b", None), ("1 2 3", None), ("-1 5", None)],
)
def test_the_ephemeral_range_is_what_the_kernel_says_or_unknown(text: str, found: tuple[int, int] | None) -> None:
    assert ephemeral_range(text) == found
