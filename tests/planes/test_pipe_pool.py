"""Pipes are leased within a bound; one that still has bytes in it never reaches another connection."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from traffic import open_fds
from turnout.planes.pipe_pool import Pipe, PipePool


@pytest.fixture
def pool() -> Iterator[PipePool]:
    found = PipePool(max_pipes=2, max_idle=1)
    yield found
    found.close()


def is_open(pipe: Pipe) -> bool:
    try:
        os.fstat(pipe.read_fd)
    except OSError:
        return False
    return True


def leased(pool: PipePool) -> Pipe:
    pipe = pool.lease()
    assert pipe is not None
    return pipe


def test_beyond_the_bound_there_is_none_until_one_is_given_back(pool: PipePool) -> None:
    first, second = leased(pool), leased(pool)
    assert (pool.lease(), pool.denied, pool.leased) == (None, 1, 2)
    pool.give_back(first)
    assert leased(pool) is first
    for pipe in (first, second):
        pool.give_back(pipe)


def test_of_idle_pipes_only_so_many_are_kept(pool: PipePool) -> None:
    first, second = leased(pool), leased(pool)
    pool.give_back(first)
    pool.give_back(second)
    assert (is_open(first), is_open(second), pool.leased) == (True, False, 0)
    pool.close()
    assert not is_open(first)


def test_a_pipe_with_bytes_in_it_is_closed_and_not_leased_again(pool: PipePool) -> None:
    pipe = leased(pool)
    os.write(pipe.write_fd, b"another client's")
    pipe.held = 16
    pool.give_back(pipe)
    assert not is_open(pipe)
    fresh = leased(pool)
    with pytest.raises(BlockingIOError):
        os.read(fresh.read_fd, 1)
    pool.give_back(fresh)


def test_a_pipe_that_the_user_may_not_have_large_enough_is_not_used(
    pool: PipePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcntl.fcntl", lambda _fd, _command, _size=0: 4096)
    before = open_fds()
    assert (pool.lease(), pool.denied, pool.leased) == (None, 1, 0)
    assert open_fds() == before, "it was left open"
