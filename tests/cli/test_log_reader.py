"""Reading a log on: through renames, truncations and a change of the daemon."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from turnout.cli.log_reader import LogReader, SpelledOut
from turnout.system.daemon_log import bound


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\ntwo\nthree\n")
    return path


@pytest.fixture
def reader(path: Path) -> Iterator[LogReader]:
    with LogReader(path) as reader:
        yield reader


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def all_of(reader: LogReader) -> bytes:
    parts = []
    while part := reader.read():
        parts.append(part)
    return b"".join(parts)


def test_the_tail_ends_where_reading_on_begins(reader: LogReader, path: Path) -> None:
    assert reader.tail(2, bound_bytes=65536) == b"two\nthree\n"
    assert reader.read() == b""
    append(path, b"four\n")
    assert reader.read() == b"four\n"


def test_a_log_that_was_only_renamed_is_read_on_since_its_daemon_writes_on(reader: LogReader, path: Path) -> None:
    reader.tail(1, bound_bytes=65536)
    aside = path.rename(path.with_name("a.log.1"))
    append(aside, b"four\n")
    assert all_of(reader) == b"four\n"
    append(aside, b"five\n")
    assert all_of(reader) == b"five\n"


def test_the_rest_of_a_renamed_log_comes_before_its_successor(reader: LogReader, path: Path) -> None:
    reader.tail(1, bound_bytes=65536)
    aside = path.rename(path.with_name("a.log.1"))
    append(aside, b"four\n")
    path.write_bytes(b"five\n")
    assert all_of(reader) == b"four\nfive\n"
    append(path, b"six\n")
    assert all_of(reader) == b"six\n"


def test_a_log_that_is_gone_and_comes_again_is_read_from_its_beginning(reader: LogReader, path: Path) -> None:
    reader.skip()
    path.unlink()
    assert all_of(reader) == b""
    path.write_bytes(b"again\n")
    assert all_of(reader) == b"again\n"


def test_a_log_that_was_cut_is_read_from_its_beginning(reader: LogReader, path: Path) -> None:
    assert all_of(reader) == b"one\ntwo\nthree\n"
    bound(path, bound_bytes=5, kept_bytes=5)
    append(path, b"four\n")
    assert all_of(reader) == b"four\n"
    bound(path, bound_bytes=1, kept_bytes=5)
    assert reader.tail(1, bound_bytes=65536) == b"four\n", "what was cut a moment ago is part of the tail"


def test_a_long_log_is_read_whole(path: Path) -> None:
    data = os.urandom(300_000)
    path.write_bytes(data)
    with LogReader(path) as reader:
        assert all_of(reader) == data


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        LogReader(tmp_path / "fifo")


def test_text_for_a_terminal_is_spelled_out_whatever_parts_it_comes_in() -> None:
    data = "A\x1b]0;OWNED\x07\x1b[31mB\x9b\u202eC\u3042\r\nD\rE\tF".encode() + b"\xff\r\n"
    told = "A\\x1b]0;OWNED\\x07\\x1b[31mB\\x9b\\u202eC\u3042\nD\\x0dE\tF\\xff\n"
    for size in (1, 2, 3, 5, 1000):
        spelled = SpelledOut()
        assert "".join(spelled.feed(data[at : at + size]) for at in range(0, len(data), size)) == told
