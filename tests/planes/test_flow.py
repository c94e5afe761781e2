"""One direction's state machine: its table, and what must hold on every way through it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.planes.flow import TRANSITIONS, Do, FlowEvent, FlowState, step, waits_for

Script = list[tuple[int, FlowEvent]]
STATES = list(FlowState)
EVENTS = list(FlowEvent)
FINAL = {Do.CLOSE, Do.RESET}


@dataclass
class Connection:
    """Two directions, driven by events that their states allow."""

    states: list[FlowState]
    broken: bool = False
    over: Do | None = None

    def meet(self, which: int, event: FlowEvent) -> tuple[Do, ...] | None:
        """None: this event cannot come in this state."""
        if (self.states[which], event) not in TRANSITIONS or self.over:
            return None
        self.states[which], self.broken, do = step(self.states[which], self.states[1 - which], self.broken, event)
        self.over = next((one for one in do if one in FINAL), None)
        return do


moves = st.lists(st.tuples(st.integers(0, 1), st.sampled_from(EVENTS)), max_size=40)


@given(moves)
def test_a_broken_connection_never_ends_in_order_nor_passes_an_end_on(
    script: Script,
) -> None:
    connection = Connection([FlowState.FLOWING, FlowState.FLOWING])
    for which, event in script:
        was_broken = connection.broken
        do = connection.meet(which, event) or ()
        assert connection.broken >= was_broken
        if was_broken:
            assert not {Do.SHUT_DOWN, Do.CLOSE} & set(do)


@given(moves)
def test_an_ended_direction_stays_ended_and_only_both_ends_close(script: Script) -> None:
    connection = Connection([FlowState.FLOWING, FlowState.FLOWING])
    for which, event in script:
        before = list(connection.states)
        do = connection.meet(which, event) or ()
        for was, now in zip(before, connection.states, strict=True):
            assert now is FlowState.ENDED or was is not FlowState.ENDED
        if Do.CLOSE in do:
            assert connection.states == [FlowState.ENDED, FlowState.ENDED]


@given(moves)
def test_an_end_is_passed_on_once_and_only_where_the_source_said_it(
    script: Script,
) -> None:
    connection = Connection([FlowState.FLOWING, FlowState.FLOWING])
    passed = [0, 0]
    for which, event in script:
        do = connection.meet(which, event) or ()
        if Do.SHUT_DOWN in do:
            assert event is FlowEvent.END
            passed[which] += 1
    assert max(passed) <= 1


@given(moves)
def test_a_connection_that_is_not_over_is_never_forgotten(script: Script) -> None:
    """Else it would hang for ever: nothing watched, nothing to be done."""
    connection = Connection([FlowState.FLOWING, FlowState.FLOWING])
    unasked = {0: False, 1: False}
    for which, event in script:
        do = connection.meet(which, event)
        if do is None:
            continue
        unasked[which] = connection.states[which] is FlowState.ORPHANED and (unasked[which] or Do.READ_ON in do)
        other = connection.states[1 - which]
        unasked[1 - which] = other is FlowState.ORPHANED and (unasked[1 - which] or Do.READ_BACK in do)
        if connection.over:
            return
        for one in (0, 1):
            # an orphaned source is never watched: whoever makes it readable again must also have it read
            assert connection.states[one] is not FlowState.ORPHANED or unasked[one]
        assert connection.states != [FlowState.ENDED, FlowState.ENDED], "both have ended, and nobody closes it"


@pytest.mark.parametrize("back", STATES)
@pytest.mark.parametrize("state", STATES)
def test_a_source_is_read_only_while_nothing_waits_for_its_destination(state: FlowState, back: FlowState) -> None:
    readable, writable = waits_for(state, back)
    assert not (readable and state.blocked)
    assert writable == back.blocked


def test_an_event_that_cannot_come_is_an_error_and_no_silence() -> None:
    with pytest.raises(KeyError):
        step(FlowState.ENDED, FlowState.FLOWING, broken=False, event=FlowEvent.END)
