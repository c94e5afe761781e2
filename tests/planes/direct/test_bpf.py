"""Programs as the kernel reads them, and what its answers mean; the system call is a fake."""

from __future__ import annotations

import errno
import os
import struct
from typing import Any

import pytest

from turnout.errors import SteeringError
from turnout.planes.direct import bpf
from turnout.planes.direct.bpf import Op, assemble

MAP_LOOKUP, MAP_DELETE, PROG_LOAD = 1, 3, 5


class FakeCalls:
    """Answers bpf(2). ``answers``: by command, one after the other: a descriptor, or an errno below zero."""

    def __init__(self) -> None:
        self.answers: dict[int, list[int]] = {}
        self.made: list[tuple[int, int, bytes]] = []

    def syscall(self, number: int, command: int, buffer: Any, size: int) -> int:
        self.made.append((number, command, buffer.raw))
        assert len(buffer.raw) == size
        answer = self.answers.get(command, [0]).pop(0)
        if answer < 0:
            self.errno = -answer
            return -1
        return answer


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> FakeCalls:
    found = FakeCalls()
    monkeypatch.setattr(bpf, "_libc", lambda: found)
    monkeypatch.setattr("ctypes.get_errno", lambda: found.errno)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return found


def test_a_jump_goes_to_its_label_whatever_lies_between() -> None:
    code = assemble([Op(bpf.JUMP, to="end"), Op(bpf.LOAD_64, dst=1, src=bpf.MAP_FD, imm=7), "end", Op(bpf.EXIT)])
    assert len(code) == 8 * 4, "a load of 64 bits is two instructions"
    assert code[:8] == bytes([bpf.JUMP, 0, 2, 0, 0, 0, 0, 0])


def test_a_constant_of_32_bits_keeps_its_sign_bit() -> None:
    assert assemble([Op(bpf.JUMP32_NE_K, dst=1, imm=0xFFFFFFFE, off=1)])[4:] == b"\xfe\xff\xff\xff"


def test_a_jump_to_nowhere_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError):
        assemble([Op(bpf.JUMP, to="nowhere")])


def test_each_call_is_the_machines_with_zeroes_behind_what_it_uses(calls: FakeCalls) -> None:
    assert bpf.make_socket_map() == 0
    ((number, command, attr),) = calls.made
    assert (number, command) == (321, 0)
    assert struct.unpack_from("=IIII", attr) == (15, 4, 8, 1)
    assert not attr[44:].strip(b"\0")


def test_a_call_that_fails_says_what_it_was_for(calls: FakeCalls) -> None:
    calls.answers[0] = [-errno.EPERM]
    with pytest.raises(PermissionError, match="cannot make a map: Operation not permitted"):
        bpf.make_socket_map()


def test_a_machine_whose_call_is_not_known_is_named_and_nothing_is_called(
    calls: FakeCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "vax")
    with pytest.raises(SteeringError, match="vax"):
        bpf.make_socket_map()
    assert not calls.made


def test_a_load_that_a_signal_interrupts_is_repeated_and_given_up_in_the_end(calls: FakeCalls) -> None:
    """The verifier gives up with EAGAIN where a signal is pending."""
    calls.answers[PROG_LOAD] = [-errno.EAGAIN] * 4 + [9]
    assert bpf.load_sk_lookup(assemble([Op(bpf.EXIT)])) == 9
    calls.answers[PROG_LOAD] = [-errno.EAGAIN] * 5 + [9]
    with pytest.raises(BlockingIOError):
        bpf.load_sk_lookup(assemble([Op(bpf.EXIT)]))


def test_a_program_that_the_verifier_refuses_is_loaded_once_more_for_its_log(calls: FakeCalls) -> None:
    calls.answers[PROG_LOAD] = [-errno.EINVAL, -errno.EINVAL]
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        bpf.load_sk_lookup(assemble([Op(bpf.EXIT)]))
    without, with_log = [struct.unpack_from("=IIQQIIQ", attr) for _, _, attr in calls.made]
    assert (without[4:], with_log[4:6], with_log[6] != 0) == ((0, 0, 0), (1, 1 << 16), True)


def test_a_load_without_the_right_is_not_repeated(calls: FakeCalls) -> None:
    calls.answers[PROG_LOAD] = [-errno.EPERM]
    with pytest.raises(PermissionError):
        bpf.load_sk_lookup(assemble([Op(bpf.EXIT)]))
    assert len(calls.made) == 1


@pytest.mark.parametrize(
    ("delete", "look", "fails"),
    [
        (0, (), False),
        (-errno.ENOENT, (), False),
        (-errno.EINVAL, (-errno.ENOENT,), False),
        (-errno.EINVAL, (0,), True),
        (-errno.EINVAL, (-errno.EOPNOTSUPP,), True),
        (-errno.EPERM, (), True),
    ],
    ids=["emptied", "was empty", "was empty, as older kernels have it", "not emptied", "not known", "forbidden"],
)
def test_an_empty_map_stays_empty_and_a_map_that_cannot_be_emptied_is_an_error(
    calls: FakeCalls, delete: int, look: tuple[int, ...], fails: bool
) -> None:
    calls.answers = {MAP_DELETE: [delete], MAP_LOOKUP: list(look)}
    if fails:
        with pytest.raises(OSError, match="cannot empty a map"):
            bpf.take_socket_out(3)
    else:
        bpf.take_socket_out(3)
    assert len(calls.made) == 1 + len(look)
