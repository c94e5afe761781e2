"""A verb that is typed where another file defines a service of that name changes nothing of the one that runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

from click.testing import CliRunner

from e2e_support import Turnout, ask, line_daemon, under_load
from turnout.cli import cli
from turnout.errors import TurnoutError, UsageError
from turnout.testing import free_port

CHANGING = (
    ("up",),
    ("deploy",),
    ("refresh",),
    ("start",),
    ("stop",),
    ("rollback",),
    ("pause",),
    ("resume",),
    ("drain",),
    ("attach", "127.0.0.1:1"),
    ("detach",),
    ("down",),
)


def other_project(turnout: Turnout) -> tuple[Path, Path]:
    """A directory whose file defines a service of the same name, with a check that leaves a mark; and that mark."""
    directory = turnout.home.root.parent / "other"
    directory.mkdir()
    mark = directory / "RAN"
    check = ["sh", "-c", f"touch {mark}"]
    (directory / "turnout.toml").write_text(
        f'[service.default]\nlisten = "127.0.0.1:{free_port()}"\nobserve = "0s"\n'
        f"command = {json.dumps(line_daemon('--version', 'other'))}\n"
        f'health = {{ probe = "exec", command = {json.dumps(check)} }}\n'
        f"version_command = {json.dumps(['sh', '-c', f'touch {mark}; echo 1'])}\n"
    )
    return directory, mark


def type_in(directory: Path, turnout: Turnout, *args: str) -> tuple[str, TurnoutError | None]:
    """Run a verb in this process, in ``directory``: what it prints, and its error."""
    unset: dict[str, str | None] = {key: None for key in os.environ if key.startswith("TURNOUT_")}
    before = Path.cwd()
    os.chdir(directory)
    try:
        done = CliRunner().invoke(cli, args, env=unset | turnout.env)
    finally:
        os.chdir(before)
    error = done.exception
    assert error is None or isinstance(error, (TurnoutError, SystemExit)), done.exc_info
    return done.stdout, error if isinstance(error, TurnoutError) else None


def test_every_changing_verb_is_refused_where_another_file_defines_the_service(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "ours"))
    turnout.run("up")
    directory, mark = other_project(turnout)
    settings = turnout.home.service("default").settings.read_bytes()
    before = turnout.snapshot()
    with under_load(turnout):
        for verb in (*CHANGING, ("deploy", "--dry-run")):
            _, error = type_in(directory, turnout, *verb)
            assert isinstance(error, UsageError), verb
            assert str(turnout.home.root.parent / "turnout.toml") in error.message
            assert str(directory / "turnout.toml") in error.message
            assert error.hint is not None
            assert error.hint.startswith(f"cd {turnout.home.root.parent} && turnout {verb[0]}")
            assert "--take-over" in error.hint
    assert turnout.snapshot() == before
    assert turnout.home.service("default").settings.read_bytes() == settings
    assert not mark.exists()
    # in its own directory, by its file's name, and where no file says anything, the verbs are as ever
    turnout.run("refresh", "-c", str(turnout.home.root.parent / "turnout.toml"), cwd=directory)
    turnout.run("stop", cwd="/")
    turnout.run("start")
    assert ask(turnout.address) == "ours"


def test_take_over_makes_the_service_that_of_the_other_file_and_then_the_first_one_is_refused(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "ours"), observe="0s")
    turnout.run("up")
    directory, _ = other_project(turnout)
    turnout.run("up", "--take-over", cwd=directory)
    _, error = type_in(turnout.home.root.parent, turnout, "up")
    assert error is not None
    assert str(directory) in error.message
    assert turnout.active()["version"] == "1"


def test_a_failed_take_over_and_a_failed_first_up_define_nothing(turnout: Turnout) -> None:
    directory, _ = other_project(turnout)
    listen = ("--listen", f"127.0.0.1:{turnout.port}")
    turnout.run("up", *listen, "--", "sh", "-c", "exit 3", code=1)
    turnout.configure(line_daemon("--version", "ours"), observe="0s")
    turnout.run("up")
    file = directory / "turnout.toml"
    file.write_text(f'[service.default]\nlisten = "127.0.0.1:{turnout.port}"\ncommand = ["sh", "-c", "exit 3"]\n')
    turnout.run("deploy", "--take-over", cwd=directory, code=1)
    turnout.run("up")
    assert ask(turnout.address) == "ours"


def test_a_verb_that_only_looks_shows_the_service_whatever_the_other_file_says(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "ours"))
    turnout.tune(registry='"here.json"')
    turnout.run("up")
    directory, mark = other_project(turnout)
    file = directory / "turnout.toml"
    file.write_text(f'{file.read_text()}registry = "there.json"\n')
    assert "here.json" in type_in(directory, turnout, "registry", "show")[0]
    assert "switched" in type_in(directory, turnout, "why")[0]
    assert "healthy" in type_in(directory, turnout, "wait")[0]
    for verb in ("status", "history", "logs"):
        assert type_in(directory, turnout, verb)[1] is None
    said = type_in(directory, turnout, "config")[0]
    assert f"# not in force: service default is defined by {turnout.home.root.parent / 'turnout.toml'}" in said
    found = json.loads(type_in(directory, turnout, "doctor", "--json")[0])["findings"]
    (elsewhere,) = [one for one in found if "is not in force" in one["evidence"]]
    assert elsewhere["verdict"] == "warn"
    unit = turnout.run("service", "install", "--dry-run", cwd=directory)
    assert f"first: turnout up --take-over --service default -c {file}" in unit.stderr
    assert not mark.exists()


def test_a_verb_that_only_looks_executes_nothing_of_the_directory(turnout: Turnout) -> None:
    directory, mark = other_project(turnout)
    turnout.home.create()
    for args in (
        *(["status", *more] for more in ([], ["-v"], ["--json"])),
        *(["doctor", *more] for more in ([], ["--json"])),
        *([verb] for verb in ("config", "why", "history", "logs")),
        ["wait", "--timeout", "10ms"],
        ["drain", "--explain"],
        *([verb, "--dry-run"] for verb in ("up", "deploy", "refresh", "start")),
        ["attach", f"127.0.0.1:{turnout.port}", "--dry-run"],
        ["up", "--dry-run", "--take-over"],
        ["service", "install", "--dry-run"],
        ["router", "--up", "--dry-run"],
        ["registry", "show"],
        ["registry", "validate"],
    ):
        type_in(directory, turnout, *args)
        assert not mark.exists(), args


def test_a_dry_run_says_that_the_version_is_not_known_and_what_then_stays(turnout: Turnout) -> None:
    directory, mark = other_project(turnout)
    before, _ = type_in(directory, turnout, "up", "--dry-run")
    assert "for the version, which is not known yet" in before
    assert "would begin generation 1 (start)" in before
    assert not mark.exists()
    turnout.run("up", cwd=directory)
    mark.unlink()
    again, _ = type_in(directory, turnout, "up", "--dry-run")
    assert "if the version is still '1', and otherwise:" in again
    assert "would begin generation 2 (deploy)" in again
    assert "for the version" in type_in(directory, turnout, "deploy", "--dry-run")[0]
    assert not mark.exists()


def test_a_service_that_is_down_does_nothing_to_the_one_that_has_its_registry_file_meanwhile(
    turnout: Turnout,
) -> None:
    turnout.configure(line_daemon("--version", "theirs"), observe="0s")
    turnout.tune(registry='"shared.json"')
    turnout.run("up", "-q")
    file = turnout.home.root.parent / "turnout.toml"
    other = free_port()
    second = file.read_text().replace("[service.default]", "[service.second]").replace(str(turnout.port), str(other))
    file.write_text(f"{file.read_text()}{second}")
    turnout.run("down", "-q", "--service", "default")
    turnout.run("up", "-q", "--service", "second")
    before = turnout.home.root.with_name("shared.json").read_bytes()
    for verb in ("pause", "resume", "drain", "stop", "start", "refresh"):
        for more in ((), ("--dry-run",)):
            assert (
                "is the registry of service second" in turnout.run(verb, *more, "--service", "default", code=2).stderr
            )
    turnout.run("down", "--dry-run", "--service", "default")
    turnout.run("down", "--service", "default")
    assert turnout.home.root.with_name("shared.json").read_bytes() == before
    assert ask(("127.0.0.1", other)) == "theirs"
    turnout.run("down", "-q", "--service", "second")


def test_two_services_of_one_registry_file_are_refused_until_the_first_one_is_down(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "ours"), observe="0s")
    turnout.tune(registry='"shared.json"')
    turnout.run("up")
    file = turnout.home.root.parent / "turnout.toml"
    second = file.read_text().replace("[service.default]", "[service.second]")
    second = second.replace(str(turnout.port), str(free_port()))
    file.write_text(f"{file.read_text()}{second}")
    for verb in (("up",), ("up", "--dry-run"), ("deploy",)):
        _, error = type_in(file.parent, turnout, *verb, "--service", "second")
        assert isinstance(error, UsageError), verb
        assert "shared.json is the registry of service default:" in error.message
    assert ask(turnout.address) == "ours"
    assert not turnout.home.service("second").settings.exists()
    turnout.run("down", "--service", "default")
    assert "begin generation" in type_in(file.parent, turnout, "up", "--service", "second", "--dry-run")[0]
