"""The private file of what a service runs and ran."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from faulty_files import FaultyFiles, UnsyncedFiles
from support import scaled
from turnout.errors import StateUnwritableError
from turnout.state.builds import KEPT_ROLLOUTS, NO_CONTEXT, Build, Builds, Rollout

BUILD = Build(("redis-server", "--port", "{port}", "--save", ""), "/srv", {"SECRET": "s3cret"}, "7.0.15")


@pytest.fixture
def builds(tmp_path: Path) -> Builds:
    return Builds(tmp_path / "builds.json", files=UnsyncedFiles())


def numbered(number: int) -> Build:
    return Build(("daemon", str(number)), "/")


def rolled_out(builds: Builds, build: Build, generation: int, result: str) -> str:
    build_id = builds.remember(build)
    builds.record_rollout(Rollout(generation, build_id, "deploy", 1.0))
    builds.set_result(generation, result)
    return build_id


def test_nothing_is_remembered_at_first_and_asking_writes_nothing(builds: Builds) -> None:
    assert builds.latest() is None
    assert builds.get("0" * 12) is None
    assert builds.rollouts() == ()
    assert builds.previous("") is None
    assert builds.quarantined("x") is None
    builds.pardon("x")
    builds.set_result(1, "active")
    assert not builds.path.exists()


def test_a_build_comes_back_as_it_was(builds: Builds) -> None:
    build_id = builds.remember(BUILD)
    assert Builds(builds.path).get(build_id) == builds.latest() == BUILD
    assert builds.path.stat().st_mode & 0o777 == 0o600


def test_bytes_that_are_no_text_come_back(builds: Builds) -> None:
    odd = msgspec.structs.replace(BUILD, command=(os.fsdecode(b"/bin/\xff"),), env={os.fsdecode(b"K\xfe"): "\u20ac"})
    assert builds.get(builds.remember(odd)) == odd


@pytest.mark.parametrize(
    "other",
    [
        msgspec.structs.replace(BUILD, command=("redis-server",)),
        msgspec.structs.replace(BUILD, command=("redis-server", "--port", "{port}", "--save ")),
        msgspec.structs.replace(BUILD, cwd="/"),
        msgspec.structs.replace(BUILD, env={}),
        msgspec.structs.replace(BUILD, version=""),
    ],
)
def test_a_build_is_all_of_it(other: Build) -> None:
    assert other.id != BUILD.id


def test_the_id_is_twelve_digits_and_knows_no_order_of_the_environment() -> None:
    one = msgspec.structs.replace(BUILD, env={"A": "1", "B": "2"})
    assert one.id == msgspec.structs.replace(BUILD, env={"B": "2", "A": "1"}).id
    assert len(bytes.fromhex(one.id)) == 6


def test_latest_is_the_one_remembered_last_even_if_known(builds: Builds) -> None:
    rolled_out(builds, numbered(1), 1, "active")
    rolled_out(builds, numbered(2), 2, "active")
    builds.remember(numbered(1))
    assert builds.latest() == numbered(1)


def test_a_build_is_the_latest_only_from_its_switch_on(builds: Builds) -> None:
    rolled_out(builds, numbered(1), 1, "active")
    builds.record_rollout(Rollout(2, numbered(2).id, "deploy", 1.0, context="c2"), numbered(2))
    assert (builds.get(numbered(2).id), builds.latest()) == (numbered(2), numbered(1))
    builds.set_result(2, "aborted")
    assert builds.latest() == numbered(1)
    assert builds.context_of() is None, "the context of a rollout that failed is not used"
    builds.record_rollout(Rollout(3, numbered(2).id, "deploy", 1.0, context="c3"), numbered(2))
    builds.set_result(3, "active")
    assert builds.latest() == numbered(2)


def test_a_builds_context_is_that_of_its_newest_rollout_that_became_active(builds: Builds) -> None:
    results = [("a", "c1", "active"), ("b", "c2", "active"), ("a", "c3", "active"), ("a", "c4", "rolled_back")]
    results += [("a", NO_CONTEXT, "active"), ("b", "", "active")]
    for generation, (build, context, result) in enumerate(results, 1):
        builds.record_rollout(Rollout(generation, build, "deploy", 1.0, result, context))
    found = [builds.context_of(build) for build in ("a", "b", "", "c")]
    assert [rollout.context if rollout else None for rollout in found] == ["c3", "c2", "c3", None]


def test_a_list_of_an_earlier_version_has_no_contexts(builds: Builds) -> None:
    builds.path.write_text(
        '{"format": 1, "latest": "b", "considered": "", "builds": {"b": {"command": ["d"], "cwd": "/", "env": {},'
        ' "version": "", "watched": ""}}, "rollouts": [{"generation": 1, "build": "b", "cause": "start", "ts": 1.0,'
        ' "result": "active"}], "quarantine": {}}'
    )
    assert builds.latest() == Build(("d",), "/")
    assert builds.context_of("b") is None


def test_the_way_back_is_the_newest_other_build_that_stayed_active(builds: Builds) -> None:
    first = rolled_out(builds, numbered(1), 1, "active")
    second = rolled_out(builds, numbered(2), 2, "active")
    rolled_out(builds, numbered(3), 3, "rolled_back")
    rolled_out(builds, numbered(4), 4, "aborted")
    rolled_out(builds, numbered(5), 5, "")
    assert builds.previous(second) == numbered(1)
    assert builds.previous(first) == numbered(2)
    assert builds.previous("") == numbered(2)


def test_a_result_goes_to_its_generation_the_newest_one_should_there_be_two(builds: Builds) -> None:
    build_id = builds.remember(BUILD)
    for _ in range(2):
        builds.record_rollout(Rollout(7, build_id, "deploy", 1.0))
    builds.set_result(7, "active")
    assert [rollout.result for rollout in builds.rollouts()] == ["", "active"]
    with pytest.raises(ValueError, match="no result"):
        builds.set_result(7, "fine")


def test_a_quarantine_says_why_until_it_is_lifted(builds: Builds) -> None:
    build_id = rolled_out(builds, BUILD, 3, "rolled_back")
    builds.quarantine(build_id, "3 failed checks", 3)
    assert builds.quarantined(build_id) == "3 failed checks (generation 3)"
    builds.pardon(build_id)
    assert builds.quarantined(build_id) is None


def test_the_history_is_bounded_and_keeps_what_it_takes_to_go_back(builds: Builds) -> None:
    good = [rolled_out(builds, numbered(n), n, "active") for n in (1, 2, 3)]
    for generation in range(4, KEPT_ROLLOUTS + 10):
        builds.record_rollout(Rollout(generation, good[2], "deploy", 1.0, "aborted"))
    assert [rollout.generation for rollout in builds.rollouts()][:3] == [2, 3, 10]
    assert len(builds.rollouts()) == KEPT_ROLLOUTS + 2
    assert builds.get(good[0]) is None
    assert builds.previous(good[2]) == numbered(2)


def test_builds_that_nothing_names_go_with_their_quarantine(builds: Builds) -> None:
    lost = builds.remember(numbered(1))
    builds.quarantine(lost, "bad", 1)
    builds.remember(numbered(2))
    assert builds.get(lost) is None
    assert builds.quarantined(lost) is None


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    each = scaled(10, 45)

    def record(first: int) -> None:
        builds = Builds(tmp_path / "builds.json", files=UnsyncedFiles())
        for generation in range(first, first + each):
            builds.record_rollout(Rollout(generation, "b", "deploy", 1.0))

    threads = [threading.Thread(target=record, args=(n * 1000,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Builds(tmp_path / "builds.json").rollouts()) == 4 * each


@pytest.mark.parametrize("damage", [b"", b"{", bytes(50), b"[]", b'{"rollouts": 5}', b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("ask", [Builds.latest, lambda builds: builds.remember(BUILD)], ids=["read", "write"])
def test_a_damaged_file_is_moved_aside_and_said_so_once(
    builds: Builds, damage: bytes, ask: Callable[[Builds], object]
) -> None:
    builds.path.write_bytes(damage)
    with pytest.raises(StateUnwritableError, match=r"damaged .* moved to builds\.json\.damaged-") as caught:
        ask(builds)
    assert caught.value.hint
    assert [kept.read_bytes() for kept in builds.path.parent.glob("*.damaged-*")] == [damage]
    ask(builds)


def test_a_later_format_is_refused_untouched(builds: Builds) -> None:
    builds.path.write_text('{"format": 2, "builds": []}')
    with pytest.raises(StateUnwritableError, match="later version"):
        builds.remember(BUILD)
    assert builds.path.read_text() == '{"format": 2, "builds": []}'


def test_a_failed_write_leaves_what_was(builds: Builds) -> None:
    builds.remember(BUILD)
    before = builds.path.read_bytes()

    def strike(_number: int, name: str) -> None:
        if name == "write":
            raise OSError(28, "No space left on device")

    with pytest.raises(StateUnwritableError, match="No space"):
        Builds(builds.path, files=FaultyFiles(strike)).remember(numbered(1))
    assert builds.path.read_bytes() == before
    assert builds.latest() == BUILD


def test_a_directory_in_its_place_is_a_clear_error(builds: Builds) -> None:
    builds.path.mkdir()
    with pytest.raises(StateUnwritableError, match="Is a directory"):
        builds.latest()


def test_a_look_whether_there_is_a_build_leaves_a_damaged_file_where_it_is(tmp_path: Path) -> None:
    builds = Builds(tmp_path / "builds.json")
    assert not builds.has_any()
    for damaged in (b"{", b"[" * 100_000, b'{"format": 99}', b"\xff"):
        builds.path.write_bytes(damaged)
        assert builds.has_any()
        assert builds.path.read_bytes() == damaged
