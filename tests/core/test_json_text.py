"""JSON for other programs: always valid, always printable."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.core.json_text import json_text


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_any_value_is_read_back_as_it_was_but_for_halves_of_surrogate_pairs(value: object) -> None:
    text = json_text(value)
    assert text.encode().isascii() or text.isprintable()
    if "\\ufffd" not in json.dumps(value) and not any(0xD800 <= ord(char) < 0xE000 for char in str(value)):
        assert json.loads(text) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\x1b[31mb", '"a\\u001b[31mb"'),
        ("\u202eabc", '"\\u202eabc"'),
        ("\U000e0001", '"\\udb40\\udc01"'),
        ("caf\u00e9", '"caf\u00e9"'),
        ("\udcff", '"\ufffd"'),
        ({"k": [2**70, float("inf")]}, '{"k":[1180591620717411303424,null]}'),
    ],
)
def test_what_a_terminal_acts_on_is_escaped_and_what_utf_8_cannot_hold_is_replaced(value: Any, text: str) -> None:
    assert json_text(value) == text


def test_indented_text_has_a_line_for_each_key() -> None:
    assert json_text({"a": 1, "b": 2}, indent=2) == '{\n  "a": 1,\n  "b": 2\n}'
