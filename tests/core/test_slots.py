"""An index of a group and the address that names it are the same thing said twice."""

from __future__ import annotations

import pytest

from turnout.core.slots import MAX_INDEX, index_of, source_of


@pytest.mark.parametrize("text", ["", "127.0.0.1", "127.47.77.", "127.47.77.x", "127.47.77.256", "127.47.77.-1"])
def test_what_is_no_source_names_no_index(text: str) -> None:
    assert index_of(text) is None


def test_every_index_has_its_source() -> None:
    assert [index_of(source_of(index)) for index in range(MAX_INDEX + 1)] == list(range(256))
    assert source_of(None) == ""
