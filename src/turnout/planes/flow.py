"""One direction of a connection as a state machine: what to do on stall, end and reset. No socket, no system call.

A connection is two directions, and neither knows of bytes here: only whether some wait in between, the state of its
source, and what that means for the other direction. The pump asks :func:`step` whenever something other than
"read all, sent all" happens, and does what it answers; :data:`TRANSITIONS` is the whole of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum, auto
from functools import cache
from typing import Final, NamedTuple


class FlowState(IntEnum):
    """The state of one direction. "The rest" is what was taken from the source and not yet taken by the destination.

    Numbers, for the hash of a plain Enum member is a call into Python.
    """

    FLOWING = auto()  # nothing waits; the source is watched and read
    BLOCKED = auto()  # the rest waits for the destination; the source is not read, but still heard
    ORPHANED = auto()  # the source is dead and no longer watched; what it had sent is read to its end, unasked
    ORPHANED_BLOCKED = auto()  # the same, and the rest waits
    ENDED = auto()  # nothing more goes this way: the end of stream was passed on, or the destination is dead

    # derived once: these are asked for every event
    blocked: bool
    readable: bool


for _state in FlowState:
    _state.blocked = _state in {FlowState.BLOCKED, FlowState.ORPHANED_BLOCKED}
    _state.readable = _state in {FlowState.FLOWING, FlowState.ORPHANED}


class FlowEvent(IntEnum):
    """What a call, or a report of the kernel, has shown of one direction."""

    STALLED = auto()  # the destination did not take all of it
    DRAINED = auto()  # it has taken the rest
    EMPTY = auto()  # the source has nothing at the moment
    END = auto()  # the source said end of stream
    SOURCE_RESET = auto()  # reading met an error
    SOURCE_DEAD = auto()  # the kernel reports an error or hang-up of a source that is not read
    DESTINATION_LOST = auto()  # writing met an error


class Do(Enum):
    """The actions of the pump."""

    WATCH = auto()  # wait for what both sources and both destinations are now waited for
    UNWATCH = auto()  # take the source out of the watch: epoll would report it with each wait
    SHUT_DOWN = auto()  # pass the end of stream on: shutdown(SHUT_WR) of the destination
    READ_ON = auto()  # read this source again without an event
    READ_BACK = auto()  # read the other direction's source again without an event
    CLOSE = auto()  # both directions have ended in order
    RESET = auto()  # end both by a reset: an orderly close would tell that a truncated stream was whole


class FlowStep(NamedTuple):
    """The new state, whether the connection is broken now, and what to do, in this order."""

    state: FlowState
    broken: bool
    do: tuple[Do, ...]


F, B, O, OB, E = FlowState  # noqa: E741  # one letter a state keeps the table a table
_OVER: Final = (Do.RESET,)

# (state, event) -> (state, what to do). What depends on the other direction is decided in step().
TRANSITIONS: Final[Mapping[tuple[FlowState, FlowEvent], tuple[FlowState, tuple[Do, ...]]]] = {
    (F, FlowEvent.STALLED): (B, (Do.WATCH,)),
    (O, FlowEvent.STALLED): (OB, (Do.WATCH,)),
    (B, FlowEvent.STALLED): (B, ()),
    (OB, FlowEvent.STALLED): (OB, ()),
    (B, FlowEvent.DRAINED): (F, (Do.WATCH,)),
    (OB, FlowEvent.DRAINED): (O, (Do.WATCH, Do.READ_ON)),
    (F, FlowEvent.EMPTY): (F, ()),
    (O, FlowEvent.EMPTY): (E, _OVER),  # a dead source has no more to come, and never said its end
    (F, FlowEvent.END): (E, (Do.SHUT_DOWN, Do.WATCH)),
    (O, FlowEvent.END): (E, (Do.SHUT_DOWN, Do.WATCH)),
    (F, FlowEvent.SOURCE_RESET): (E, _OVER),
    (O, FlowEvent.SOURCE_RESET): (E, _OVER),
    (B, FlowEvent.SOURCE_DEAD): (OB, (Do.UNWATCH,)),
    # it had said its end before; being dead now means that what goes to it cannot arrive
    (E, FlowEvent.SOURCE_DEAD): (E, _OVER),
    **{(state, FlowEvent.DESTINATION_LOST): (E, (Do.WATCH, Do.READ_BACK)) for state in FlowState},
}


@cache  # there are a few hundred questions, and two or three are asked for every connection
def step(state: FlowState, back: FlowState, broken: bool, event: FlowEvent) -> FlowStep:
    """Decide what an event of one direction means.

    Args:
        state: of this direction.
        back: of the other direction of the same connection.
        broken: one side was reset before; however the connection ends, it then ends as a reset.
        event: what was met.

    Raises:
        KeyError: the event cannot come in this state, a fault of the caller.
    """
    following, do = TRANSITIONS[state, event]
    if event is FlowEvent.DESTINATION_LOST:
        # what the dead destination had said before is still read, and then the reset is passed on
        if back is FlowState.ENDED:
            return FlowStep(following, True, _OVER)
        return FlowStep(following, True, do if back.readable else (Do.WATCH,))
    if broken and event in {FlowEvent.END, FlowEvent.EMPTY}:
        # the error was taken by the send that met it: what the read sees after it looks like an end, and is none
        return FlowStep(FlowState.ENDED, True, _OVER)
    if event is FlowEvent.END and back is FlowState.ENDED:
        return FlowStep(following, broken, (Do.SHUT_DOWN, Do.CLOSE))
    return FlowStep(following, broken, do)


def waits_for(state: FlowState, back: FlowState) -> tuple[bool, bool]:
    """Whether this direction's source, the other one's destination, is watched to be readable, and to be writable.

    Errors are always reported (epoll_ctl(2)).
    """
    return state is FlowState.FLOWING, back.blocked
