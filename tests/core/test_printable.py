"""Text of others on a terminal and in JSON."""

from __future__ import annotations

import json
import re
import unicodedata

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import scaled
from turnout.core.json_text import json_text
from turnout.core.printable import clean, clean_lines, for_terminal, valid

ANY_TEXT = st.text(st.characters(exclude_categories=())) | st.text("\x1b[]0;m\x07\r\n\t\x9b\u202e\ud800\udcff31")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=10,
)


def acted_on(text: str) -> list[str]:
    """What a terminal would act on: controls, formats, surrogates, and separators other than a space."""
    return [c for c in text if c not in "\n\t " and unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}]


@settings(max_examples=scaled(100, 2000), deadline=None)
@given(ANY_TEXT)
def test_a_clean_line_is_one_line_that_a_terminal_only_shows(text: str) -> None:
    assert clean(text).isprintable()


@settings(max_examples=scaled(100, 2000), deadline=None)
@given(ANY_TEXT)
def test_clean_lines_hold_nothing_that_a_terminal_acts_on(text: str) -> None:
    cleaned = clean_lines(text)
    assert acted_on(cleaned) == []
    assert cleaned.count("\n") == text.count("\n")


@settings(max_examples=scaled(100, 2000), deadline=None)
@given(ANY_TEXT)
def test_output_keeps_our_colours_and_no_other_escape(text: str) -> None:
    out = for_terminal(text)
    rest = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert not [c for c in rest if c not in "\n\t" and unicodedata.category(c) in {"Cc", "Cs"}]
    assert "\u202e" not in out
    out.encode()


def test_colours_of_ours_stay_and_a_title_does_not() -> None:
    assert for_terminal("\x1b[31mred\x1b[0m\n") == "\x1b[31mred\x1b[0m\n"
    assert for_terminal("\x1b]0;title\x07") == r"\x1b]0;title\x07"
    assert for_terminal("no\xa0break \u3042") == "no\xa0break \u3042"


def test_a_line_end_of_another_system_is_a_line_end() -> None:
    assert clean_lines("one\r\ntwo\rthree\n") == "one\ntwo\\x0dthree\n"


@settings(max_examples=scaled(100, 2000), deadline=None)
@given(JSON)
def test_any_value_is_valid_json_that_a_terminal_only_shows(value: object) -> None:
    text = json_text(value)
    assert acted_on(text) == []
    msgspec.json.decode(text.encode())  # strict: RFC 8259, UTF-8, no half pairs


@settings(max_examples=scaled(100, 2000), deadline=None)
@given(ANY_TEXT, st.sampled_from([None, 2]))
def test_a_text_comes_back_from_json_except_for_half_pairs(text: str, indent: int | None) -> None:
    assert json.loads(json_text({"a": text}, indent=indent)) == {"a": valid(text)}


@pytest.mark.parametrize(("value", "told"), [("\udcff", '"\ufffd"'), (float("nan"), "null"), (1 << 70, str(1 << 70))])
def test_what_json_has_not_is_spelled_by_one_rule(value: object, told: str) -> None:
    assert json_text(value) == told
    assert json_text([value, "\udcff"]) == f'[{told}, "\ufffd"]'
