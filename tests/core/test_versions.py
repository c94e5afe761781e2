from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.core.automatic import Wish, judge
from turnout.core.versions import Order, compare

OPPOSITE = {
    Order.NEWER: Order.OLDER,
    Order.OLDER: Order.NEWER,
    Order.SAME: Order.SAME,
    Order.DIFFERENT: Order.DIFFERENT,
}


@pytest.mark.parametrize(
    ("version", "other", "order"),
    [
        ("0.6.10", "0.6.9", Order.NEWER),
        ("v2", "v1", Order.NEWER),
        ("1.0", "1.0.0", Order.SAME),
        ("1.0rc1", "1.0", Order.OLDER),
        ("2!1.0", "99", Order.NEWER),
        ("20261123", "20260101", Order.NEWER),
        ("1.0+abc", "1.0+abd", Order.DIFFERENT),
        ("1.0+abc", "1.0", Order.DIFFERENT),
        ("1.1+abc", "1.0+abd", Order.NEWER),
        ("9f3c2ab", "1.0", Order.DIFFERENT),
        ("9f3c2ab", "9f3c2ab", Order.SAME),
        ("12345a6", "12345a7", Order.DIFFERENT),  # hashes that would parse
        ("1234567b", "1.0", Order.DIFFERENT),
        ("", "1.0", Order.DIFFERENT),
        ("", "", Order.SAME),
        ("nightly", "stable", Order.DIFFERENT),
        ("7.2\n", "7.2", Order.SAME),
    ],
)
def test_versions_are_compared_as_versions_and_what_is_none_only_differs(
    version: str, other: str, order: Order
) -> None:
    assert compare(version, other) is order
    assert compare(other, version) is OPPOSITE[order]


@given(st.text(), st.text())
def test_any_two_texts_compare_and_the_other_way_round_it_is_the_opposite(version: str, other: str) -> None:
    assert compare(version, other) is OPPOSITE[compare(other, version)]


def wish(build: str, version: str = "", *, configured: bool = False, quarantined: str | None = None) -> Wish:
    return Wish(build, version, configured, quarantined)


def test_a_client_deploys_what_is_newer_and_nothing_else() -> None:
    for version, deploys in (("0.6.10", True), ("0.6.9", False), ("0.6.8", False), ("9f3c2ab", False), ("", False)):
        verdict = judge(wish("b", version), build="a", version="0.6.9", considered="")
        assert verdict.deploy is deploys, verdict
        assert verdict.reason


def test_a_changed_configuration_deploys_what_merely_differs_but_nothing_older() -> None:
    for version, deploys in (("0.6.10", True), ("0.6.9", True), ("0.6.8", False), ("9f3c2ab", True), ("", True)):
        verdict = judge(wish("b", version, configured=True), build="a", version="0.6.9", considered="a")
        assert verdict.deploy is deploys, verdict


def test_what_was_considered_once_is_not_deployed_again_whatever_runs_since() -> None:
    assert not judge(wish("b", "2.0", configured=True), build="a", version="1.0", considered="b").deploy


def test_what_runs_already_or_was_rolled_back_is_not_deployed() -> None:
    assert not judge(wish("a", "2.0", configured=True), build="a", version="1.0", considered="").deploy
    bad = wish("b", "2.0", configured=True, quarantined="it died (generation 3)")
    verdict = judge(bad, build="a", version="1.0", considered="")
    assert not verdict.deploy
    assert "it died (generation 3)" in verdict.reason


@given(st.lists(st.sampled_from(["0.6.9", "0.6.10", "1.0", "9f3c2ab", "8e2b1cd", "", "nightly"]), max_size=60))
def test_clients_that_take_turns_switch_at_most_once_for_each_version_there_is(turns: list[str]) -> None:
    """Never ping-pong: what was left is never gone back to, in whatever order they ask and however often."""
    active, deployed = "0.6.9", ["0.6.9"]
    for version in turns:
        if judge(wish(f"build {version}", version), build=f"build {active}", version=active, considered="").deploy:
            assert version not in deployed
            active = version
            deployed.append(version)
