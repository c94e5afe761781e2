"""Conversations over a control socket: each question gets its own answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from turnout.errors import NotRunningError, TimedOutError
from turnout.system.control import Channel


@pytest.fixture
def channels() -> Iterator[tuple[Channel, Channel]]:
    """Who asks, and who answers."""
    one, other = socket.socketpair()
    asks, answers = Channel(one), Channel(other)
    yield asks, answers
    asks.close()
    answers.close()


def test_an_answer_to_a_question_that_was_given_up_is_not_taken_for_the_next_ones(
    channels: tuple[Channel, Channel],
) -> None:
    asks, answers = channels
    with pytest.raises(TimedOutError):  # or Ctrl-C
        asks.request({"op": "spawn", "id": 1}, timeout_s=0.01)
    answers.send({"ok": True, "re": 1})
    answers.send({"gone": True, "re": 2})
    assert asks.request({"op": "stop", "id": 2}, timeout_s=20)["gone"]


def test_an_answer_that_names_no_question_is_the_answer(channels: tuple[Channel, Channel]) -> None:
    asks, answers = channels
    answers.send({"ok": True})
    assert asks.request({"op": "hello", "id": 7}, timeout_s=20) == {"ok": True}


def test_who_closes_after_a_late_answer_has_not_answered(channels: tuple[Channel, Channel]) -> None:
    asks, answers = channels
    answers.send({"ok": True, "re": 1})
    answers.close()
    with pytest.raises(NotRunningError):
        asks.request({"op": "stop", "id": 2}, timeout_s=20)
