"""``history`` and ``why``: decisions in sentences, for every event that turnout writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import turnout as package
from e2e_support import Turnout, line_daemon
from turnout.cli import cli
from turnout.cli.journal_text import SENTENCES, sentence, verdict
from turnout.config.settings import Settings, dump_settings, parse_address
from turnout.state.home import Home
from turnout.state.journal import Journal, JournalEvent

SOURCE = Path(package.__file__).parent


def event(kind: str, **evidence: str | float | bool) -> JournalEvent:
    return JournalEvent(1_700_000_000.0, kind, 3, 9, evidence)


def test_every_event_that_is_written_has_a_sentence() -> None:
    """Whoever adds an event adds what people read."""
    text = "\n".join(path.read_text() for path in SOURCE.rglob("*.py"))
    calls = r"(?:journal\.write|\.daemon_event|\.deployment_event)\(\s*\"(\w+)\""
    written = set(re.findall(calls, text))
    assert {"begin", "switch", "rollback", "repair", "cut"} <= written, "the search finds nothing any more"
    assert written <= SENTENCES.keys(), written - SENTENCES.keys()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (event("begin", candidate="b2", cause="deploy", owner_pid=77), "a deploy was begun by pid 77, candidate b2"),
        (
            event("probe", candidate="b2", ok=True, step="probe", after_s=0.25, reason="it listens on port 4"),
            "b2 was found healthy after 0.25 s: it listens on port 4",
        ),
        (
            event("probe", candidate="b2", ok=False, step="re-probe", after_s=0.01, reason="pid 4 has ended"),
            "once more right before the switch, b2 was found NOT healthy after 0.01 s: pid 4 has ended",
        ),
        (event("switch", active="b2"), "switched: b2 is active"),
        (
            event("health_failure", boot_id="b2", evidence="no answer", streak="2", outcome="applied"),
            "a check of b2 failed, 2 in a row: no answer",
        ),
        (event("rollback", boot_id="b2", evidence="no answer"), "rolled back from b2: no answer"),
        (event("cut", boot_id="b1", connections="3", left="2"), "3 connections of b1 were cut, 2 left"),
        (
            event("died", boot_id="b1", evidence="signal KILL", restarts="0"),
            "the active daemon b1 died: signal KILL; it is started again (0 restarts before)",
        ),
        (event("repair", what="the block was put back"), "the registry was repaired: the block was put back"),
        (event("later_version", a="1", b=2), "later_version (a=1, b=2)"),
        (
            event("finish", outcome="stale_generation"),
            "the observe window is over: it stays (outcome=stale_generation)",
        ),
        (event("rollback", boot_id="\x1b[2J", evidence="a\nb"), "rolled back from \\x1b[2J: a\\x0ab"),
        (event("switch"), "switched: ? is active"),
    ],
)
def test_an_event_is_a_sentence_with_its_evidence(told: JournalEvent, said: str) -> None:
    assert sentence(told) == said


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([event("begin", cause="deploy"), event("switch"), event("finish")],
         "a deploy, was switched to and passed its observe window"),
        ([event("begin", cause="deploy"), event("switch"), event("rollback", evidence="no answer")],
         "a deploy, was switched to and put back: no answer"),
        ([event("begin", cause="refresh"), event("abort", reason="it never listened")],
         "a refresh, never got to its switch: it never listened"),
        ([event("begin", cause="start"), event("switch")], "a start, was switched to"),
        ([event("begin", cause="deploy")], "a deploy, has no end yet"),
        ([event("switch_active", reason="")], "a rollout, was switched to"),
    ],
)  # fmt: skip
def test_a_rollout_has_a_verdict(events: list[JournalEvent], said: str) -> None:
    assert verdict(3, events) == f"generation 3, {said}"


def test_the_story_of_a_rollback_is_told_from_begin_to_end(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    turnout.configure(line_daemon("--version", "bad"), version="bad", observe="60s")
    code, said = turnout.deploy_that_dies()
    assert code == 5, said
    turnout.journaled("gone")
    lines = turnout.run("why", "2").stdout.splitlines()
    assert lines[0].startswith("generation 2, a deploy, was switched to and put back: ")
    told = [line.split("gen 2  ")[1] for line in lines[1:]]
    parts: tuple[str, ...] = ("a deploy was begun", "was found healthy after", "once more right before", "switched: ")
    parts += ("failed, 1 in a row", "failed, 2 in a row", "failed, 3 in a row", "rolled back from ", "is gone")
    at = -1
    for part in parts:
        found = next((i for i, line in enumerate(told) if i > at and part in line), None)
        assert found is not None, (part, told)
        at = found
    assert turnout.run("why").stdout.splitlines()[0] == lines[0], "the newest, where none is named"
    assert "did not stay" in turnout.run("status").stdout.splitlines()[0]
    assert "turnout why 2" in turnout.run("status").stdout.splitlines()[0]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    home = Home(tmp_path / "home").service("default")
    home.create()
    settings = Settings(name="default", listen=(parse_address("127.0.0.1:47777"),))
    home.settings.write_bytes(dump_settings(settings))
    made = Journal(home.journal)
    for generation in (5, 6, 7):
        made.write("begin", generation=generation, revision=generation * 3, cause="deploy", candidate="c", owner_pid=1)
        made.write("switch", generation=generation, revision=generation * 3 + 1, active="c\x1b[31m")
    return made


def run(journal: Journal, *args: str) -> tuple[int, str, BaseException | None]:
    done = CliRunner().invoke(cli, list(args), env={"TURNOUT_HOME": str(journal.path.parents[2])})
    return done.exit_code, done.output, done.exception


@pytest.mark.parametrize("verb", ["history", "why"])
def test_a_generation_that_never_was_is_said_with_the_newest(journal: Journal, verb: str) -> None:
    _, _, error = run(journal, verb, "99")
    assert str(error) == "there is no generation 99 of default: the newest is 7"
    _, _, error = run(journal, verb, "2")
    assert str(error) == "nothing is recorded of generation 2 of default: the journal has 5 to 7"


def test_json_has_the_evidence_as_it_was_written_and_text_spells_it_out(journal: Journal) -> None:
    code, output, _ = run(journal, "history", "6", "--json")
    assert code == 0
    begin, switch = map(json.loads, output.splitlines())
    assert (begin["event"], begin["generation"], begin["cause"]) == ("begin", 6, "deploy")
    assert switch["active"] == "c\x1b[31m"
    _, output, _ = run(journal, "history", "6")
    assert "\x1b" not in output
    assert "c\\x1b[31m is active" in output
    _, output, _ = run(journal, "history", "-n", "1")
    assert output.count("\n") == 1
    assert "gen 7  switched" in output
