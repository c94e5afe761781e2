"""Conversations over a control socket: each question gets its own answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from turnout.errors import NotRunningError, ProtocolError, TimedOutError
from turnout.system.control_channel import Channel


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


def test_a_question_that_the_peer_does_not_read_is_given_up_at_its_deadline(channels: tuple[Channel, Channel]) -> None:
    asks, _ = channels
    with pytest.raises(TimedOutError, match="no answer to 'spawn'"):
        asks.request({"op": "spawn", "id": 1, "env": "x" * (1 << 20)}, timeout_s=0.2)


def test_a_send_that_may_not_wait_ends_where_the_peer_does_not_read(channels: tuple[Channel, Channel]) -> None:
    sends, _ = channels
    message = {"long": "x" * 10000}

    def send_many() -> None:
        for _ in range(10000):
            sends.send(message, wait=False)

    with pytest.raises(BlockingIOError):
        send_many()
    with pytest.raises(BlockingIOError):
        sends.send(message, [0], wait=False)


def test_what_a_peer_has_no_room_for_is_kept_and_bounded(channels: tuple[Channel, Channel]) -> None:
    offers, takes = channels
    message = {"long": "x" * (1 << 20)}
    assert not any(offers.offer(message) for _ in range(3))
    with pytest.raises(ProtocolError):
        offers.offer({"long": "x" * (2 << 20)})
    whole: list[dict[str, object]] = []
    while not offers.flush():
        whole += [got for got, _ in takes.receive()]
    whole += [got for got, _ in takes.receive()]
    assert [got["long"] for got in whole] == ["x" * (1 << 20)] * len(whole)
    assert len(whole) >= 3
