"""What the router makes of a verb that it started: the daemon's failure, the machine's, or another verb at work."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from support import eventually
from traffic import open_fds
from turnout import errors
from turnout.errors import CandidateError, NotBegunError, SpawnError, StateUnwritableError, TurnoutError
from turnout.lifecycle.failure_report import blames_build
from turnout.router import verb_runner
from turnout.router.verb_runner import VerbExit, VerbRunner
from turnout.state.home import Home
from turnout.system.daemon_threads import DaemonThreads
from turnout.system.interpreters import Interpreters

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, TurnoutError)]
DAEMONS_OR_SENSELESS = {"CandidateError", "RolledBackError", "UsageError", "ConfigError", "NoSuchServiceError"}


@pytest.fixture
def threads() -> Iterator[DaemonThreads]:
    found = DaemonThreads("start")
    yield found
    found.shutdown()


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_daemon_that_was_started_and_failed_counts_as_that(kind: type[TurnoutError]) -> None:
    result = VerbExit(kind.exit_code, kind.__name__, "why")
    assert result.began == (kind.__name__ in DAEMONS_OR_SENSELESS)
    assert result.busy == (kind.exit_code == 6)
    assert result.why == "why"


@pytest.mark.parametrize("code", [1, 2, 127, -9, 124])
def test_a_verb_that_ended_without_a_word_has_begun_nothing_and_its_end_is_told(code: int) -> None:
    result = VerbExit(code)
    assert not result.began
    assert str(abs(code)) in result.why


def test_a_new_build_is_tried_again_where_the_machine_failed_and_not_where_its_command_did() -> None:
    machines = {"NotBegunError", "StateUnwritableError", "NotRunningError", "TimedOutError"}
    found = {kind.__name__ for kind in KINDS if VerbExit(kind.exit_code, kind.__name__).blames_machine}
    assert found == machines
    assert VerbExit(-9).blames_machine, "killed"
    assert not VerbExit(0).blames_machine


def test_a_build_is_not_convicted_by_a_machine_without_room() -> None:
    assert blames_build(CandidateError("it ended"))
    assert blames_build(SpawnError("no such command"))
    assert not blames_build(NotBegunError("fork: Resource temporarily unavailable"))
    assert not blames_build(StateUnwritableError("No space left on device"))
    assert not blames_build(None)


def test_a_verb_tells_the_router_the_class_of_its_error_and_not_its_exit_code_alone(
    tmp_path: Path, threads: DaemonThreads
) -> None:
    result = asyncio.run(VerbRunner(Home(tmp_path), "nosuch", Interpreters(), threads, lambda: 60).run("start"))
    assert (result.code, result.error) == (4, "NoSuchServiceError")
    assert "nosuch" in result.message


def test_a_verb_that_cannot_be_run_has_begun_nothing(tmp_path: Path, threads: DaemonThreads) -> None:
    gone = Interpreters(str(tmp_path / "python"))
    result = asyncio.run(VerbRunner(Home(tmp_path), "nosuch", gone, threads, lambda: 60).run("start"))
    assert result.error == "NotBegunError"
    assert "is gone" in result.message


class Hanging(Interpreters):
    """Interpreters in a directory that hangs until ``go`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.go = threading.Event()

    def choose(self) -> str:
        self.asked += 1
        assert self.go.wait(60)
        return super().choose()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads in which verbs were started."""
    found: list[threading.Thread] = []
    popen = subprocess.Popen

    def watched(*args: Any, **more: Any) -> Any:
        found.append(threading.current_thread())
        return popen(*args, **more)

    monkeypatch.setattr(subprocess, "Popen", watched)
    return found


def test_an_interpreter_whose_directory_hangs_stalls_no_client_and_the_verb_runs_when_it_answers(
    tmp_path: Path, threads: DaemonThreads, started: list[threading.Thread]
) -> None:
    hanging = Hanging()

    async def run() -> None:
        verb = asyncio.ensure_future(VerbRunner(Home(tmp_path), "nosuch", hanging, threads, lambda: 60).run("start"))
        while not hanging.asked:  # noqa: ASYNC110  # it is asked in a thread
            await asyncio.sleep(0)  # clients have their turn
        assert not verb.done()
        hanging.go.set()
        assert (await verb).error == "NoSuchServiceError"

    asyncio.run(run())
    assert started
    assert threading.main_thread() not in started


def test_a_verb_that_was_given_up_while_its_interpreter_hung_is_never_started(
    tmp_path: Path, threads: DaemonThreads, started: list[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it was tried: what was queued meanwhile must not start all at once."""
    monkeypatch.setattr(verb_runner, "SLACK_S", 0.0)
    hanging = Hanging()
    before = open_fds()

    async def run() -> None:
        for _ in range(3):
            result = await VerbRunner(Home(tmp_path), "nosuch", hanging, threads, lambda: 0.01).run("start")
            assert result.error == "NotBegunError"
            assert "does not answer" in result.message
        hanging.go.set()
        await asyncio.get_running_loop().run_in_executor(threads, lambda: None)

    asyncio.run(run())
    assert (hanging.asked, started) == (1, [])
    eventually(lambda: open_fds() <= before)


def test_a_verb_that_does_not_end_in_time_is_killed(
    tmp_path: Path, threads: DaemonThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb_runner, "SLACK_S", 0.0)
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    never = Interpreters(str(program))
    before, children = open_fds(), psutil.Process().children()
    result = asyncio.run(VerbRunner(Home(tmp_path), "a", never, threads, lambda: 0.5).run("up"))
    assert (result.code, result.error) == (124, "TimedOutError")
    assert psutil.Process().children() == children, "it was not waited for"
    assert open_fds() == before


def test_an_interpreter_may_be_added_while_another_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreters = Interpreters("/gone")

    def look(path: str) -> bool:
        interpreters.add(f"{path}/newer")
        return True

    monkeypatch.setattr("turnout.system.interpreters.is_executable", look)
    assert interpreters.choose() == "/gone"
