from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.core.auto_deploy import BuildRequest, decide
from turnout.core.versions import VersionOrder, compare

OPPOSITE = {
    VersionOrder.NEWER: VersionOrder.OLDER,
    VersionOrder.OLDER: VersionOrder.NEWER,
    VersionOrder.SAME: VersionOrder.SAME,
    VersionOrder.DIFFERENT: VersionOrder.DIFFERENT,
}


@pytest.mark.parametrize(
    ("version", "other", "order"),
    [
        ("0.6.10", "0.6.9", VersionOrder.NEWER),
        ("v2", "v1", VersionOrder.NEWER),
        ("1.0", "1.0.0", VersionOrder.SAME),
        ("1.0rc1", "1.0", VersionOrder.OLDER),
        ("2!1.0", "99", VersionOrder.NEWER),
        ("20261123", "20260101", VersionOrder.NEWER),
        ("1.0+abc", "1.0+abd", VersionOrder.DIFFERENT),
        ("1.0+abc", "1.0", VersionOrder.DIFFERENT),
        ("1.1+abc", "1.0+abd", VersionOrder.NEWER),
        ("9f3c2ab", "1.0", VersionOrder.DIFFERENT),
        ("9f3c2ab", "9f3c2ab", VersionOrder.SAME),
        ("12345a6", "12345a7", VersionOrder.DIFFERENT),  # hashes that would parse
        ("1234567b", "1.0", VersionOrder.DIFFERENT),
        ("", "1.0", VersionOrder.DIFFERENT),
        ("", "", VersionOrder.SAME),
        ("nightly", "stable", VersionOrder.DIFFERENT),
        ("7.2\n", "7.2", VersionOrder.SAME),
    ],
)
def test_versions_are_compared_as_versions_and_what_is_none_only_differs(
    version: str, other: str, order: VersionOrder
) -> None:
    assert compare(version, other) is order
    assert compare(other, version) is OPPOSITE[order]


@given(st.text(), st.text())
def test_any_two_texts_compare_and_the_other_way_round_it_is_the_opposite(version: str, other: str) -> None:
    assert compare(version, other) is OPPOSITE[compare(other, version)]


def request(build: str, version: str = "", *, configured: bool = False, quarantined: str | None = None) -> BuildRequest:
    return BuildRequest(build, version, configured, quarantined)


def test_a_client_deploys_what_is_newer_and_nothing_else() -> None:
    for version, deploys in (("0.6.10", True), ("0.6.9", False), ("0.6.8", False), ("9f3c2ab", False), ("", False)):
        decision = decide(request("b", version), build="a", version="0.6.9", considered="")
        assert decision.deploy is deploys, decision
        assert decision.reason


def test_a_changed_configuration_deploys_what_merely_differs_but_nothing_older() -> None:
    for version, deploys in (("0.6.10", True), ("0.6.9", True), ("0.6.8", False), ("9f3c2ab", True), ("", True)):
        decision = decide(request("b", version, configured=True), build="a", version="0.6.9", considered="a")
        assert decision.deploy is deploys, decision


def test_what_was_considered_once_is_not_deployed_again_whatever_runs_since() -> None:
    assert not decide(request("b", "2.0", configured=True), build="a", version="1.0", considered="b").deploy


def test_what_runs_already_or_was_rolled_back_is_not_deployed() -> None:
    assert not decide(request("a", "2.0", configured=True), build="a", version="1.0", considered="").deploy
    bad = request("b", "2.0", configured=True, quarantined="it died (generation 3)")
    decision = decide(bad, build="a", version="1.0", considered="")
    assert not decision.deploy
    assert "it died (generation 3)" in decision.reason


@given(st.lists(st.sampled_from(["0.6.9", "0.6.10", "1.0", "9f3c2ab", "8e2b1cd", "", "nightly"]), max_size=60))
def test_clients_that_take_turns_switch_at_most_once_for_each_version_there_is(turns: list[str]) -> None:
    """Never ping-pong: what was left is never gone back to, in whatever order they ask and however often."""
    active, deployed = "0.6.9", ["0.6.9"]
    for version in turns:
        if decide(request(f"build {version}", version), build=f"build {active}", version=active, considered="").deploy:
            assert version not in deployed
            active = version
            deployed.append(version)
