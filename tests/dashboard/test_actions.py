"""Verbs as child processes: one at a time, fenced, bounded, and ended with the dashboard."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from support import eventually
from turnout.dashboard.actions import LINES_KEPT, MOST_PREVIEWS, VERBS, Actions
from turnout.errors import ConflictError, UsageError

# A verb that plays what its service's name says; it tells its arguments and its pid in a file.
VERB = """
import json, os, signal, sys, time
where = sys.argv[1]
argv = sys.argv[2:]
kind = argv[argv.index("--service") + 1]
def undo(*_):
    open(where + ".undone", "w").close()
    print("undone", flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, signal.SIG_IGN if kind == "deaf" else undo)
with open(where + ".tmp", "w") as file:
    json.dump([os.getpid(), argv], file)
os.rename(where + ".tmp", where)
print("[ 0.01s] begin", file=sys.stderr, flush=True)
if kind == "good":
    print("switched")
elif kind == "bad":
    print("  | its last words", file=sys.stderr)
    print("turnout: the candidate died", file=sys.stderr)
    print("hint: see its log", file=sys.stderr)
    sys.exit(1)
elif kind == "chatty":
    for number in range(5000):
        print(f"line {number} " + "x" * 5000)
else:
    while True:
        signal.pause()
"""

# the environment is the one that the service was deployed with, not that of the dashboard
DEPLOY_FLAGS = ["-c", "its.toml", "--service", "good", "--detach", "--recorded"]


class Stage:
    """Actions with a verb that is a script; what they publish, and what the verb said of itself."""

    def __init__(self, directory: Path, *, deadline_s: float = 60.0) -> None:
        self.note = directory / "note"
        self.published: list[dict[str, Any]] = []
        self._changed = asyncio.Event()
        self.actions = Actions(
            [sys.executable, "-P", "-c", VERB, str(self.note)],
            common=("-c", "its.toml"),
            deadline_s=lambda _: deadline_s,
            publish=self._publish,
        )

    def _publish(self, payload: bytes) -> None:
        self.published.append(json.loads(payload))
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def newest(self, service: str) -> dict[str, Any]:
        found: dict[str, Any] = self.published[-1][service]
        return found

    def ended(self, service: str) -> Callable[[], bool]:
        return lambda: bool(self.published) and self.newest(service)["state"] != "running"

    def said(self, service: str, line: str) -> Callable[[], bool]:
        return lambda: bool(self.published) and line in self.newest(service)["lines"]

    @property
    def pid(self) -> int:
        return int(json.loads(self.note.read_text())[0])

    @property
    def argv(self) -> list[str]:
        found: list[str] = json.loads(self.note.read_text())[1]
        return found


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(90):
            await scenario()

    asyncio.run(bounded())


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_verb_is_fenced_by_the_generation_that_was_seen_and_its_words_are_shown(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path)
        async with stage.actions.running():
            stage.actions.begin("good", "deploy", 7)
            await stage.until(stage.ended("good"))
        assert stage.argv == ["deploy", *DEPLOY_FLAGS, "--if-generation", "7"]
        done = stage.newest("good")
        assert (done["state"], done["fault"]) == ("done", None)
        assert done["lines"] == ["[ 0.01s] begin", "switched"]
        assert done["ended_ts"] >= done["began_ts"]

    run(scenario)


def test_a_failure_is_told_with_its_hint(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path)
        async with stage.actions.running():
            stage.actions.begin("bad", "rollback", 1)
            await stage.until(stage.ended("bad"))
        failed = stage.newest("bad")
        assert failed["state"] == "failed"
        assert failed["fault"] == {"message": "the candidate died", "hint": "see its log"}
        assert failed["lines"] == ["[ 0.01s] begin", "  | its last words"]

    run(scenario)


def test_two_clicks_start_one_verb(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path)
        async with stage.actions.running():
            stage.actions.begin("slow", "deploy", 1)
            for _ in range(2):
                with pytest.raises(ConflictError, match="deploy is under way for slow"):
                    stage.actions.begin("slow", "pause", 1)
                await stage.until(stage.said("slow", "[ 0.01s] begin"))
            stage.actions.begin("good", "pause", 1)
            await stage.until(stage.ended("good"))

    run(scenario)


def test_one_that_has_ended_is_in_nobodys_way(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path)
        async with stage.actions.running():
            for number in (1, 2):
                stage.actions.begin("good", "pause", 1)
                await stage.until(lambda number=number: stage.newest("good")["number"] == number)  # type: ignore[misc]
                await stage.until(stage.ended("good"))
                await asyncio.sleep(0)

    run(scenario)


def test_a_verb_ends_with_the_dashboard_and_undoes_its_work(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path)
        async with stage.actions.running():
            stage.actions.begin("slow", "deploy", 1)
            await stage.until(stage.said("slow", "[ 0.01s] begin"))
        assert not lives(stage.pid)
        assert stage.note.with_suffix(".undone").exists()
        with pytest.raises(ConflictError, match="about to end"):
            stage.actions.begin("good", "deploy", 1)

    run(scenario)


def test_a_verb_that_takes_too_long_is_interrupted(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path, deadline_s=1.0)
        async with stage.actions.running():
            stage.actions.begin("slow", "deploy", 1)
            await stage.until(stage.ended("slow"))
        assert stage.newest("slow")["fault"]["message"] == "not done within 1 s, and interrupted"
        assert not [one for one in psutil.Process().children() if str(stage.note) in one.cmdline()]

    run(scenario)


def test_one_that_ignores_its_interrupt_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnout.dashboard.actions.UNDO_S", 0.1)

    async def scenario() -> None:
        stage = Stage(tmp_path)
        async with stage.actions.running():
            stage.actions.begin("deaf", "deploy", 1)
            await stage.until(stage.said("deaf", "[ 0.01s] begin"))
        eventually(lambda: not lives(stage.pid))

    run(scenario)


def test_what_a_verb_says_is_kept_within_bounds(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path)
        async with stage.actions.running():
            stage.actions.begin("chatty", "drain", 1)
            await stage.until(stage.ended("chatty"))
        lines = stage.newest("chatty")["lines"]
        assert len(lines) == LINES_KEPT
        assert lines[-1].startswith("line 4999 ")
        assert max(map(len, lines)) <= 400

    run(scenario)


def test_a_preview_changes_nothing_and_starts_no_action(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path)
        async with stage.actions.running():
            told = await stage.actions.preview("good", "deploy", 3)
        assert stage.argv[-1] == "--dry-run"
        assert (told.lines[-1], told.fault) == ("switched", None)
        assert stage.published == []

    run(scenario)


def test_previews_are_bounded_in_number(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path)
        async with stage.actions.running():
            waiting = [asyncio.create_task(stage.actions.preview("slow", "deploy", 1)) for _ in range(MOST_PREVIEWS)]
            await asyncio.sleep(0)
            with pytest.raises(ConflictError, match="other previews"):
                await stage.actions.preview("slow", "deploy", 1)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    run(scenario)


@pytest.mark.parametrize("verb", ["down", "stop", "up", "deploy --force", "--help", "", "attach", "demo"])
def test_only_a_few_verbs_can_be_had(tmp_path: Path, verb: str) -> None:
    assert verb not in VERBS

    async def scenario() -> None:
        stage = Stage(tmp_path)
        async with stage.actions.running():
            with pytest.raises(UsageError):
                stage.actions.begin("good", verb, 1)
            with pytest.raises(UsageError):
                await stage.actions.preview("good", verb, 1)

    run(scenario)
