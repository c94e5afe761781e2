"""What the page is sent beside the status."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from registry_support import write_both
from turnout.cli.options import CommonOptions
from turnout.cli.status import look
from turnout.config.settings import Settings, dump_settings, parse_address
from turnout.core.model import Daemon, Deployment, Snapshot
from turnout.dashboard.observer import Observer, View
from turnout.errors import StateUnwritableError
from turnout.state.builds import Build, Rollout
from turnout.state.home import Home
from turnout.state.journal import JournalEvent
from turnout.state.service import Service
from turnout.status.schema import Problem, ServiceStatus, Status
from turnout.system.process import own_identity


class Words:
    """The command line's own look, with problems put in; and words that can be told from the real ones."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.error: Exception | None = None

    def look(self) -> Status:
        if self.error:
            raise self.error
        seen = look(CommonOptions())
        return msgspec.structs.replace(
            seen, services=[msgspec.structs.replace(one, problems=self.problems) for one in seen.services]
        )

    def sentence(self, event: JournalEvent) -> str:
        return f"said of {event.event}"

    def verdict(self, generation: int, events: Sequence[JournalEvent]) -> str:
        return f"{generation} had {len(events)}"

    def rates(self, service: ServiceStatus, now: float) -> dict[str, tuple[float, float]]:
        return {service.name: (now, 0.0)}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


BAD = Problem(severity="bad", what="it burns", hint="run")


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setenv("TURNOUT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TURNOUT_SERVICE", raising=False)
    home = Home.find().service("default")
    home.create()
    settings = Settings(name="default", listen=(parse_address("127.0.0.1:47777"),), observe_s=17.0)
    home.settings.write_bytes(dump_settings(settings))
    opened = Service.open(home, settings)
    write_both(opened.registry.path, Snapshot({}, deployment=Deployment(generation=1)))
    return opened


@pytest.fixture
def words() -> Words:
    return Words()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def observer(service: Service, words: Words, clock: Clock) -> Observer:
    view = View(words.look, words.sentence, words.verdict, words.rates)
    return Observer(Home.find(), view, now=clock, monotonic=clock)


def parts(observer: Observer) -> dict[str, Any]:
    return {name: json.loads(payload) for name, payload in observer.look().items()}


def test_the_status_is_that_of_the_command_line_and_the_settings_stand_beside_it(observer: Observer) -> None:
    seen = parts(observer)["look"]
    assert seen["status"]["services"][0]["name"] == "default"
    beside = seen["beside"]["default"]
    assert (beside["observe_s"], beside["failures"]) == (17.0, 3)
    assert beside["rates"] == {"default": [1000.0, 0.0]}
    assert (seen["ts"], seen["fault"]) == (1000.0, None)


def test_since_when_something_is_wrong_is_known_from_when_it_came(
    observer: Observer, words: Words, clock: Clock
) -> None:
    def beside() -> tuple[float | None, bool]:
        found = parts(observer)["look"]["beside"]["default"]
        return found["since_ts"], found["seen_to_begin"]

    assert beside() == (None, False)
    words.problems, clock.now = [BAD], 1005.0
    assert beside() == (1005.0, True)
    words.problems, clock.now = [msgspec.structs.replace(BAD, what="it burns, 2 in a row")], 1009.0
    assert beside() == (1005.0, True)
    words.problems, clock.now = [], 1010.0
    assert beside()[0] is None
    words.problems, clock.now = [BAD], 1020.0
    assert beside() == (1020.0, True)


def test_no_file_outside_of_the_logs_is_shown_whatever_the_registry_calls_a_daemon(
    observer: Observer, service: Service
) -> None:
    boot_id = "../../../../diary"
    (Home.find().root.parent / "diary.log").write_text("dear diary\n")
    daemon = Daemon(boot_id, port=1, identity=own_identity())
    write_both(service.registry.path, Snapshot({boot_id: daemon}, deployment=Deployment(1, active_boot_id=boot_id)))
    told = parts(observer)
    assert boot_id in json.dumps(told), "it is shown, but for its log"
    assert "dear diary" not in json.dumps(told)


def test_what_was_wrong_at_the_first_look_may_have_begun_before(observer: Observer, words: Words) -> None:
    words.problems = [BAD]
    for _ in range(2):
        beside = parts(observer)["look"]["beside"]["default"]
        assert (beside["since_ts"], beside["seen_to_begin"]) == (1000.0, False)


@pytest.mark.parametrize(
    "error",
    [StateUnwritableError("no way in", hint="chmod"), OSError(5, "gone"), KeyError("pid"), TypeError("None"),
     msgspec.ValidationError("another version")],
)  # fmt: skip
def test_what_cannot_be_told_is_said_and_the_next_look_goes_on(
    observer: Observer, words: Words, error: Exception
) -> None:
    words.error = error
    seen = parts(observer)["look"]
    assert seen["status"] is None
    assert seen["fault"]["message"]
    assert seen["fault"]["hint"]
    words.error = None
    assert parts(observer)["look"]["status"]


def test_the_timeline_goes_on_with_the_journal_and_knows_the_versions(observer: Observer, service: Service) -> None:
    assert parts(observer)["timeline"] == {"default": []}
    build_id = service.builds.remember(Build(("true",), "/", version="v9"))
    service.builds.record_rollout(Rollout(1, build_id, "deploy", 1.0))
    for event in ("begin", "switch"):
        service.journal.write(event, generation=1, revision=1)
        parts(observer)
    (one,) = parts(observer)["timeline"]["default"]
    assert (one["version"], one["text"]) == ("v9", "1 had 2")
    assert [step["text"] for step in one["steps"]] == ["said of begin", "said of switch"]


def test_the_end_of_the_routers_log_comes_clean_and_bounded(observer: Observer) -> None:
    Home.find().router_log.write_text("\n".join(["old"] * 500 + ["\x1b[31mred\x07" + "x" * 3000]))
    (log,) = parts(observer)["logs"]["default"]
    assert log["title"] == "router"
    assert len(log["lines"]) == 60
    assert log["lines"][-1].startswith("\\x1b[31mred\\x07xxx")
    assert len(log["lines"][-1]) < 420


def test_nothing_is_written_by_looking(observer: Observer, service: Service) -> None:
    parts(observer)
    before = {path: path.read_bytes() for path in Home.find().root.rglob("*") if path.is_file()}
    parts(observer)
    assert {path: path.read_bytes() for path in Home.find().root.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "line",
    [
        b'{"ts":1,"event":"x","generation":Infinity,"revision":1}',
        b'{"ts":1,"event":"begin","generation":1,"revision":1,"cause":["x"]}',
        b'{"ts":1,"event":"x","generation":' + b"9" * 5000 + b',"revision":1}',
        b"[" * 100_000,
        b'{"ts":1,"event":"x\\ud800","generation":1,"revision":1,"evidence":"\\udfff"}',
    ],
)
def test_what_another_program_wrote_into_the_journal_ends_no_look(
    observer: Observer, service: Service, line: bytes
) -> None:
    service.journal.path.write_bytes(line + b"\n")
    service.journal.write("switch", generation=1, revision=2, active="a")
    timeline = parts(observer)["timeline"]["default"]
    assert timeline[0]["steps"][-1]["text"] == "said of switch"


def test_a_version_that_no_encoding_has_is_told_as_valid_json(observer: Observer, service: Service) -> None:
    daemon = Daemon("a\ud800", port=1, version="v\udcff\u202e")
    write_both(service.registry.path, Snapshot({daemon.boot_id: daemon}, deployment=Deployment(generation=1)))
    look = observer.look()["look"]
    assert "v\ufffd" in look.decode()  # strictly: no half pairs
    assert "\u202e" not in look.decode()
    assert json.loads(look)["status"]["services"][0]["daemons"][0]["version"] == "v\ufffd\u202e"
