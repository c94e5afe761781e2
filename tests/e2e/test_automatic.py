"""What is deployed without a person's word: a changed configuration or binary, a newer version; never backwards."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from e2e_support import Turnout, ask, line_daemon, under_load
from other_constants import with_constants
from support import eventually
from turnout.core.model import State
from turnout.errors import NotRunningError

PATIENCE_S = 60.0


def configure(turnout: Turnout, *flags: str, version: str = "1.0", observe: str = "600ms", **more: str) -> None:
    """The service as it is configured, in one write: the router may look at any moment."""
    settings = {"auto_deploy": "true", **more}
    turnout.configure(line_daemon("--version", version, *flags), version=version, observe=observe, settings=settings)


def asked(turnout: Turnout) -> int:
    """How often the router had the configuration looked at to an end."""
    return sum(event["event"] == "auto_deploy" for event in turnout.journal())


def until_asked(turnout: Turnout, before: int) -> None:
    eventually(lambda: asked(turnout) > before, timeout_s=PATIENCE_S, why="the router did not notice")


def served_by(turnout: Turnout, version: str) -> None:
    eventually(lambda: ask(turnout.address) == version, timeout_s=PATIENCE_S, why=f"{version} was never deployed")


def up_with_quick_looks(turnout: Turnout) -> None:
    """``turnout up``, with routers that look ten times as often as others: what is tried is what they do then."""
    names = ("turnout.router.auto_deployer.LOOK_S", "turnout.router.auto_deployer.BUSY_AGAIN_S")
    quick = with_constants(turnout.home.root.parent / "constants", dict(zip(names, (0.1, 0.5), strict=True)))
    turnout.run("up", env=turnout.env | quick)


@pytest.fixture
def watched(turnout: Turnout) -> Turnout:
    configure(turnout)
    up_with_quick_looks(turnout)
    until_asked(turnout, 0)  # once at its beginning: something may have changed before
    assert turnout.snapshot().deployment.generation == 1
    return turnout


def test_a_changed_version_in_the_file_is_deployed_observed_and_kept_and_nobody_is_refused(watched: Turnout) -> None:
    with under_load(watched):
        configure(watched, version="1.1")
        served_by(watched, "1.1")
        eventually(lambda: watched.snapshot().deployment.state is State.IDLE, why="its window never ended")
    assert ask(watched.address) == "1.1"
    assert watched.active()["version"] == "1.1"
    eventually(lambda: len(watched.daemons()) == 1, why="the old one is left")


def test_a_version_that_does_not_parse_is_deployed_from_a_changed_file_too(watched: Turnout) -> None:
    configure(watched, version="9f3c2ab")
    served_by(watched, "9f3c2ab")
    configure(watched, version="8e2b1cd")
    served_by(watched, "8e2b1cd")


def test_an_older_version_is_left_to_a_person_but_other_settings_are_taken_over(watched: Turnout) -> None:
    before = asked(watched)
    configure(watched, version="0.9", observe="2s")
    until_asked(watched, before)
    assert ask(watched.address) == "1.0"
    assert watched.snapshot().deployment.generation == 1
    assert b'"observe_s": 2.0' in watched.home.service("default").settings.read_bytes()
    watched.run("up")
    assert ask(watched.address) == "0.9", "a person goes backwards"


def test_a_candidate_that_fails_is_not_tried_again_until_something_changes(watched: Turnout) -> None:
    before = asked(watched)
    configure(watched, "--exit-after", "0", version="1.1")
    until_asked(watched, before)
    assert ask(watched.address) == "1.0"
    generation = watched.snapshot().deployment.generation
    assert generation == 2, "it was tried"
    before = asked(watched)
    watched.kill(watched.router_pid())
    until_asked(watched, before)  # the next router asks as well, and is told that it was considered
    assert watched.snapshot().deployment.generation == generation
    configure(watched, version="1.2")
    served_by(watched, "1.2")


def test_a_build_that_was_rolled_back_is_never_deployed_by_itself_again(watched: Turnout) -> None:
    before = asked(watched)
    configure(watched, version="1.1", observe="60s")
    watched.kill_in_its_window(after=1)
    eventually(lambda: watched.snapshot().deployment.state is State.IDLE, timeout_s=PATIENCE_S)
    assert watched.snapshot().deployment.rollback_reason
    served_by(watched, "1.0")
    watched.until_quarantined()
    until_asked(watched, before)  # to its end, also of the verb that deployed it
    before = asked(watched)
    configure(watched, version="1.1", observe="60s", stop='{ grace = "4s" }')
    until_asked(watched, before)
    assert watched.snapshot().deployment.generation == 2
    said = watched.run("up", "--automatic").stdout
    assert "rolled back" in said
    configure(watched, version="1.2")
    served_by(watched, "1.2")


def test_what_a_person_went_back_from_stays_so(watched: Turnout) -> None:
    configure(watched, version="1.1")
    served_by(watched, "1.1")
    eventually(lambda: watched.snapshot().deployment.state is State.IDLE, timeout_s=PATIENCE_S)
    watched.run("rollback")
    assert ask(watched.address) == "1.0"
    before = asked(watched)
    watched.kill(watched.router_pid())
    until_asked(watched, before)
    assert ask(watched.address) == "1.0"
    command = line_daemon("--version", "1.1")
    said = watched.run("up", "--automatic", "--version", "1.1", "--", *command).stdout
    assert "rolled back by hand" in said
    assert ask(watched.address) == "1.0"


def test_a_watched_binary_that_changes_is_deployed_and_one_that_is_only_touched_is_not(turnout: Turnout) -> None:
    script = turnout.home.root.parent / "server"

    def put(version: str) -> None:
        new = script.with_suffix(".new")
        new.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m turnout.demo.daemon --version {version} "$@"\n')
        new.chmod(0o755)
        new.replace(script)

    put("one")
    turnout.configure(["./server", "--port", "{port}"], version="")
    turnout.tune(auto_deploy="true", watch='["server"]')
    up_with_quick_looks(turnout)
    until_asked(turnout, 0)
    before = asked(turnout)
    os.utime(script)
    until_asked(turnout, before)
    assert turnout.snapshot().deployment.generation == 1, "its contents are the same"
    put("two")
    served_by(turnout, "two")
    eventually(lambda: turnout.snapshot().deployment.state is State.IDLE, timeout_s=PATIENCE_S)
    until_asked(turnout, before + 1)  # to its end, also of the verb that deployed it
    before = asked(turnout)
    script.write_text("#!/bin/sh\nexit 1\n")
    until_asked(turnout, before)
    assert ask(turnout.address) == "two"


def test_nothing_is_deployed_into_a_window_or_a_stopped_service(watched: Turnout) -> None:
    configure(watched, version="1.1", observe="4s")
    eventually(lambda: watched.snapshot().deployment.state is State.SWITCHED, timeout_s=PATIENCE_S)
    configure(watched, version="1.2", observe="600ms")
    served_by(watched, "1.2")
    kinds = [(e["event"], e["generation"]) for e in watched.journal() if e["event"] in {"begin", "finish"}]
    assert kinds.index(("finish", 2)) < kinds.index(("begin", 3)), "the first window was ended, and not superseded"
    watched.run("stop")
    configure(watched, version="1.3")
    done = watched.run("up", "--automatic", code=3)
    assert "was stopped" in done.stderr
    assert watched.daemons() == {}
    watched.run("up")
    assert ask(watched.address) == "1.3"


def test_what_turnout_does_by_itself_starts_no_keeper(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    turnout.kill(turnout.keeper_pid())
    verbs = (("start",), ("up", "--from-router"), ("rollback",), ("down",))
    for verb in verbs:
        turnout.run(*verb, "--automatic", code=3 if verb != ("rollback",) else None)
        with pytest.raises(NotRunningError):
            turnout.keeper_pid()
    assert ask(turnout.address) == "v1"


def test_two_clients_with_different_versions_that_take_turns_switch_once(turnout: Turnout) -> None:
    def client(version: str, *more: str) -> str:
        command = line_daemon("--version", version)
        listen = ("--listen", f"127.0.0.1:{turnout.port}", "--observe", "0s")
        return turnout.run("up", "--automatic", *listen, "--version", version, *more, "--", *command).stdout

    with_first = client("0.6.9")
    assert "started" in with_first
    settings = turnout.home.service("default").settings.read_bytes()
    with under_load(turnout):
        for _ in range(3):
            client("0.6.10")
            assert "older" in client("0.6.9", "--observe", "9s")
            assert "cannot be said" in client("9f3c2ab")
        assert ask(turnout.address) == "0.6.10"
    assert turnout.snapshot().deployment.generation == 2
    assert turnout.home.service("default").settings.read_bytes() == settings, "who is refused changes no settings"
    # with nothing alive the later version is started, whoever asks
    turnout.kill(turnout.router_pid(), signal.SIGSTOP)
    turnout.kill(turnout.snapshot().active.pid)  # type: ignore[union-attr]  # it is there
    assert "ran last" in client("0.6.9")
    assert ask(turnout.address) == "0.6.10"


def test_a_version_that_a_command_tells_is_that_of_the_build(turnout: Turnout) -> None:
    told = turnout.home.root.parent / "VERSION"
    told.write_text("7.4\nmore that is not read\n")
    turnout.configure(line_daemon("--version", "x"), version="")
    turnout.tune(version_command='["cat", "VERSION"]')
    text = (turnout.home.root.parent / "turnout.toml").read_text().replace('version = ""\n', "")
    (turnout.home.root.parent / "turnout.toml").write_text(text)
    turnout.run("up")
    assert turnout.active()["version"] == "7.4"
    told.write_text("7.5\n")
    turnout.run("up")
    assert turnout.active()["version"] == "7.5"
    for broken, why in (('["cat", "/no/such"]', "exit code 1"), ('["true"]', "''"), ('["/no/such"]', "cannot run")):
        turnout.tune(version_command=broken)
        said = turnout.run("up", code=2).stderr
        assert "version_command" in said
        assert why in said
    assert turnout.active()["version"] == "7.5"
