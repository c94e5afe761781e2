"""The journal of a service."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from turnout.state.journal import Journal, Position


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl")


def write(journal: Journal, revision: int) -> None:
    journal.write("switch", generation=1, revision=revision)


def revisions(journal: Journal, limit: int = 1000) -> list[int]:
    return [event.revision for event in journal.read(limit)]


def test_an_event_is_one_line_with_its_evidence(journal: Journal) -> None:
    journal.write("rollback", generation=3, revision=9, boot_id="b", streak=3, ratio=0.5, warm=True, restore=None)
    line = journal.path.read_text()
    assert line.count("\n") == 1
    assert json.loads(line).keys() >= {"ts", "event", "generation", "revision", "boot_id"}
    (event,) = journal.read(10)
    assert (event.event, event.generation, event.revision) == ("rollback", 3, 9)
    assert event.evidence == {"boot_id": "b", "streak": 3, "ratio": 0.5, "warm": True, "restore": None}
    assert journal.path.stat().st_mode & 0o777 == 0o600


def test_the_newest_events_are_read_oldest_first(journal: Journal) -> None:
    assert journal.read(5) == ()
    for revision in range(10):
        write(journal, revision)
    assert revisions(journal, 3) == [7, 8, 9]
    assert revisions(journal, 0) == []


def test_a_torn_line_loses_itself_alone(journal: Journal) -> None:
    write(journal, 1)
    whole = journal.path.read_bytes()
    for length in range(1, len(whole)):
        journal.path.write_bytes(whole + whole[:length])
        write(journal, 3)
        found = revisions(journal)
        assert found in ([1, 3], [1, 1, 3]), length  # all but the line's end is all of the event
        assert found == [1, 3] or length == len(whole) - 1


@pytest.mark.parametrize("line", [b"[]", b"5", b'{"ts": 1}', b'{"ts": "x", "event": 1, "generation": 1}', b"\xff\0"])
def test_lines_that_are_no_events_are_skipped(journal: Journal, line: bytes) -> None:
    journal.path.write_bytes(line + b"\n")
    write(journal, 2)
    assert revisions(journal) == [2]


def test_a_full_journal_becomes_the_older_one_and_one_is_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", rotate_bytes=1000)
    for revision in range(60):
        write(journal, revision)
    assert sorted(p.name for p in tmp_path.iterdir() if "lock" not in p.name) == ["journal.jsonl", "journal.jsonl.1"]
    found = revisions(journal)
    assert found == list(range(found[0], 60))
    assert 10 < len(found) < 60
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 2500


def test_writers_at_once_keep_their_lines_apart_and_lose_none_at_a_rotation(tmp_path: Path) -> None:
    def record(first: int) -> None:
        journal = Journal(tmp_path / "journal.jsonl", rotate_bytes=8000)
        for revision in range(first, first + 30):
            write(journal, revision)

    threads = [threading.Thread(target=record, args=(n * 100,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal = Journal(tmp_path / "journal.jsonl")
    assert (tmp_path / "journal.jsonl.1").exists()
    assert sorted(revisions(journal)) == [n * 100 + i for n in range(4) for i in range(30)]


def test_what_cannot_be_written_is_counted_and_never_raised(tmp_path: Path) -> None:
    missing = Journal(tmp_path / "nowhere" / "journal.jsonl")
    write(missing, 1)
    write(missing, 2)
    assert missing.lost == 2
    assert missing.read(5) == ()
    (tmp_path / "d").mkdir()
    directory = Journal(tmp_path / "d")
    write(directory, 1)
    assert directory.lost == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_an_error_of_the_disk_is_counted_and_never_raised(tmp_path: Path, code: int) -> None:
    def fail(_fd: int, _data: bytes) -> int:
        raise OSError(code, os.strerror(code))

    journal = Journal(tmp_path / "journal.jsonl", append=fail)
    write(journal, 1)
    assert journal.lost == 1


def test_a_line_that_the_disk_had_room_for_only_in_part_is_counted(journal: Journal) -> None:
    short = Journal(journal.path, append=lambda fd, data: os.write(fd, data[:10]))
    write(short, 1)
    assert short.lost == 1
    write(journal, 2)
    assert revisions(journal) == [2]


def test_a_link_in_its_place_is_not_followed(journal: Journal, tmp_path: Path) -> None:
    journal.path.symlink_to(tmp_path / "elsewhere")
    write(journal, 1)
    assert journal.lost == 1
    assert not (tmp_path / "elsewhere").exists()


def test_numbers_that_json_has_not_and_endless_texts_do_no_harm(journal: Journal) -> None:
    journal.write("x", generation=1, revision=1, bad=float("nan"), long="y" * 10**6, ts=5)
    (event,) = journal.read(1)
    assert event.evidence["bad"] == "nan"
    assert len(str(event.evidence["long"])) == 2048
    assert event.ts > 5


def test_what_is_new_is_read_on_across_a_rotation_and_nothing_twice(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", rotate_bytes=600)
    seen: list[int] = []
    position = Position()
    for number in range(60):
        journal.write("e", generation=number, revision=0)
        if number % 3 == 0:
            events, position = journal.since(position)
            seen += [event.generation for event in events]
    events, position = journal.since(position)
    assert seen + [event.generation for event in events] == list(range(60))
    assert journal.since(position) == ((), position)


def test_half_a_line_is_left_until_it_is_whole(journal: Journal) -> None:
    journal.write("one", generation=1, revision=1)
    events, position = journal.since(Position())
    assert len(events) == 1
    line = b'{"ts": 1, "event": "two", "generation": 2, "revision": 2}\n'
    with journal.path.open("ab") as file:
        file.write(line[:20])
        file.flush()
        assert journal.since(position) == ((), position)
        file.write(line[20:])
    assert [event.event for event in journal.since(position)[0]] == ["two"]


def test_a_journal_that_is_not_there_yet_has_nothing_new(tmp_path: Path) -> None:
    assert Journal(tmp_path / "none.jsonl").since(Position()) == ((), Position())


EVENT = b'{"ts": 1.5, "event": "probe", "generation": 1, "revision": 2%s}'
NO_EVENTS = {
    "infinity": EVENT.replace(b'"generation": 1', b'"generation": Infinity') % b"",
    "no number": EVENT.replace(b"1.5", b"NaN") % b"",
    "a huge time": EVENT.replace(b"1.5", b"1e300") % b"",
    "a time before all times": EVENT.replace(b"1.5", b"-1e18") % b"",
    "a time in words": EVENT.replace(b"1.5", b'"now"') % b"",
    "an event that is an object": EVENT.replace(b'"probe"', b'{"a": 1}') % b"",
    "a generation of 5000 digits": EVENT.replace(b'"generation": 1', b'"generation": ' + b"9" * 5000) % b"",
    "a generation beyond 64 bits": EVENT.replace(b'"generation": 1', b'"generation": ' + b"9" * 30) % b"",
    "a negative generation": EVENT.replace(b'"generation": 1', b'"generation": -1') % b"",
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep evidence": EVENT % (b', "a": ' + b"[" * 100_000),
    "no UTF-8": b'{"event": "\xff"}',
    "random": bytes(range(11, 256)),
    "without end": EVENT % (b', "a": "' + b"x" * (1 << 19) + b'"'),
}


@pytest.mark.parametrize("line", NO_EVENTS.values(), ids=list(NO_EVENTS))
def test_a_line_that_is_no_event_is_left_out_and_counted(journal: Journal, line: bytes) -> None:
    write(journal, 1)
    with journal.path.open("ab") as file:
        file.write(line + b"\n")
    write(journal, 3)
    assert revisions(journal) == [1, 3]
    assert [event.revision for event in journal.since(Position())[0]] == [1, 3]
    assert journal.unreadable() == {journal.path: 1}


@pytest.mark.parametrize("value", [b"[1]", b"{}", b'{"a": [1]}', b"NaN", b"-Infinity", b"9" * 4000, b"1e999"])
def test_evidence_that_is_none_is_absent_and_the_event_is_there(journal: Journal, value: bytes) -> None:
    journal.path.write_bytes(EVENT % (b', "reason": ' + value + b', "ok": true') + b"\n")
    (event,) = journal.read(5)
    assert (event.event, event.evidence) == ("probe", {"ok": True})
    assert hash(tuple(event.evidence.values()))
    assert journal.unreadable() == {}


def test_a_torn_line_is_no_fault_of_another_program(journal: Journal) -> None:
    write(journal, 1)
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + whole[:40] + b"\n" + whole)
    assert revisions(journal) == [1, 1]
    assert journal.unreadable() == {}


def test_a_file_without_a_line_end_is_read_over_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", rotate_bytes=1000)
    journal.path.write_bytes(b"x" * 5000)
    position = Position()
    for _ in range(3):
        events, position = journal.since(position)
        assert events == ()
    assert position.offset >= 4000
    assert journal.read(5) == ()


@pytest.mark.parametrize("kind", ["fifo", "directory", "device"])
def test_what_is_no_regular_file_is_neither_read_nor_waited_for(journal: Journal, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(journal.path)
    elif kind == "directory":
        journal.path.mkdir()
    else:
        journal.path.symlink_to("/dev/zero")
    for _ in range(3):
        write(journal, 1)
    assert journal.lost == 3
    assert journal.read(5) == ()
    assert journal.since(Position()) == ((), Position())
    assert journal.unreadable() == {}
