"""A command in a hint acts on the service that was typed."""

from __future__ import annotations

import pytest

from turnout.cli.error_output import hint_for


@pytest.mark.parametrize(
    ("hint", "fits"),
    [
        ("turnout up", "turnout up --service cache"),
        ("turnout up -- COMMAND --port {port}", "turnout up --service cache -- COMMAND --port {port}"),
        ("turnout down, then turnout up", "turnout down --service cache, then turnout up --service cache"),
        ("turnout upstream", "turnout upstream"),
        ("turnout router --replace", "turnout router --replace"),
        ("turnout status --service other", "turnout status --service other"),
        ("cd /srv && turnout up acts on that service", "cd /srv && turnout up acts on that service"),
        ("TURNOUT_HOME=/home/a turnout status", "TURNOUT_HOME=/home/a turnout status"),
    ],
)
def test_the_service_that_was_typed_stands_in_the_commands_of_a_hint(hint: str, fits: str) -> None:
    assert hint_for(hint, service="cache", config=None) == fits
    assert hint_for(hint, service=None, config=None) == hint


def test_the_configuration_file_that_was_typed_stands_in_the_commands_of_a_hint() -> None:
    assert hint_for("turnout start", service=None, config="my file.toml") == "turnout start -c 'my file.toml'"
    assert hint_for("turnout start", service="a", config="b.toml") == "turnout start -c b.toml --service a"
