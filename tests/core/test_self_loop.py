from __future__ import annotations

import pytest

from turnout.core.addresses import names_own_port


@pytest.mark.parametrize(
    "command",
    [
        ["redis-server", "--port", "47777"],
        ["server", "--listen=127.0.0.1:47777"],
        ["server", "localhost:47777"],
        ["server", "[::1]:47777"],
        ["server", "--port=47777"],
        ["server", "-p47777"],
        ["server", ":47777"],
    ],
)
def test_a_command_that_names_the_fixed_port_is_found_whatever_host_it_names(command: list[str]) -> None:
    assert names_own_port(command, {1, 47777}) == 47777


@pytest.mark.parametrize(
    "command",
    [
        ["server", "--port", "{port}", "--peer", "127.0.0.1:47777"],
        ["server", "--port", "47778"],
        ["server", "x47777"],
        ["server", "147777"],
        ["server", ""],
        ["server", "٤٧٧٧٧"],
        [],
    ],
)
def test_others_are_not(command: list[str]) -> None:
    assert names_own_port(command, {47777}) is None
