"""A service remembers where it is defined, and which places are the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from turnout.config.settings import Definition, Settings, dump_settings, parse_address
from turnout.errors import UsageError
from turnout.state.definition import (
    check_definition,
    defined_in,
    definition_of,
    is_same,
    record_definition,
    typed_here,
    working_directory,
)
from turnout.state.home import Home, ServiceHome


@pytest.fixture
def service(tmp_path: Path) -> ServiceHome:
    service = Home(tmp_path / "home").service("web")
    service.create()
    return service


def project(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "turnout.toml").touch()
    return directory / "turnout.toml"


def refusal(service: ServiceHome, wanted: Definition | None, verb: str = "up") -> UsageError:
    with pytest.raises(UsageError) as refused:
        check_definition(service, wanted, verb)
    return refused.value


def test_a_service_of_one_file_is_refused_to_a_file_of_another_directory(service: ServiceHome, tmp_path: Path) -> None:
    ours, theirs = project(tmp_path / "a"), project(tmp_path / "b")
    record_definition(service, defined_in(ours), take_over=False)
    check_definition(service, defined_in(ours), "refresh")
    error = refusal(service, defined_in(theirs), "refresh")
    assert str(ours) in error.message
    assert str(theirs) in error.message
    assert error.hint is not None
    assert f"cd {tmp_path / 'a'} && turnout refresh --service web" in error.hint
    assert "--take-over" in error.hint


def test_a_file_that_was_replaced_by_a_rename_is_the_same_file(service: ServiceHome, tmp_path: Path) -> None:
    file = project(tmp_path / "a")
    record_definition(service, defined_in(file), take_over=False)
    new = file.with_name("new")
    new.write_text("# another inode\n")
    new.replace(file)
    check_definition(service, defined_in(file), "up")


def test_a_file_behind_a_link_that_moved_is_the_same_by_name_and_by_real_path(
    service: ServiceHome, tmp_path: Path
) -> None:
    """``current -> releases/2``: each release has a file of its own, and all of them are one project."""
    first, second = project(tmp_path / "releases/1"), project(tmp_path / "releases/2")
    current = tmp_path / "current"
    current.symlink_to(first.parent)
    record_definition(service, defined_in(current / "turnout.toml"), take_over=False)
    record_definition(service, defined_in(first), take_over=False)  # named without the link, which stays recorded
    current.unlink()
    current.symlink_to(second.parent)
    check_definition(service, defined_in(current / "turnout.toml"), "deploy")
    record_definition(service, defined_in(current / "turnout.toml"), take_over=False)
    check_definition(service, defined_in(second), "deploy")


def test_the_working_directory_keeps_the_link_by_which_it_was_entered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "link")
    monkeypatch.setenv("PWD", str(tmp_path / "link"))
    assert working_directory() == str(tmp_path / "link")
    monkeypatch.setenv("PWD", "/")  # of another process, which did not say where it went
    assert working_directory() == str(tmp_path / "real")
    monkeypatch.delenv("PWD")
    assert working_directory() == str(tmp_path / "real")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setenv("PWD", str(gone))
    gone.rmdir()
    assert working_directory() == ""
    assert typed_here() == Definition()
    os.chdir("/")


def test_a_file_written_where_the_command_was_typed_is_the_same_place_and_one_elsewhere_is_not(
    service: ServiceHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = project(tmp_path / "a"), project(tmp_path / "b")
    monkeypatch.chdir(here.parent)
    monkeypatch.delenv("PWD", raising=False)
    record_definition(service, typed_here(), take_over=False)
    monkeypatch.chdir("/")
    check_definition(service, typed_here(), "deploy")
    error = refusal(service, defined_in(elsewhere))
    assert f"typed in {here.parent}" in error.message
    check_definition(service, defined_in(here), "up")


@pytest.mark.parametrize(
    ("verb", "hinted"),
    [("refresh", "turnout refresh -c prod.toml --service web acts"), ("attach", "attach ADDRESS -c prod.toml")],
)
def test_a_file_of_another_name_is_named_in_what_to_type(
    service: ServiceHome, tmp_path: Path, verb: str, hinted: str
) -> None:
    file = project(tmp_path / "a").rename(tmp_path / "a" / "prod.toml")
    record_definition(service, defined_in(file), take_over=False)
    error = refusal(service, defined_in(project(tmp_path / "b")), verb)
    assert error.hint is not None
    assert f"cd {file.parent} && turnout {verb}" in error.hint
    assert hinted in error.hint


def test_a_command_typed_elsewhere_replaces_no_file_unless_a_client_asks_by_its_version(
    service: ServiceHome, tmp_path: Path
) -> None:
    record_definition(service, defined_in(project(tmp_path / "a")), take_over=False)
    typed = Definition(directory=str(tmp_path))
    error = refusal(service, typed, "deploy")
    assert error.hint is not None
    assert "turnout deploy --service web -- COMMAND" in error.hint
    check_definition(service, typed, "up", automatic=True)
    with pytest.raises(UsageError):
        check_definition(service, defined_in(project(tmp_path / "b")), "up", automatic=True)


def test_a_verb_without_a_file_acts_on_whatever_is_remembered(service: ServiceHome, tmp_path: Path) -> None:
    record_definition(service, defined_in(project(tmp_path / "a")), take_over=False)
    check_definition(service, None, "stop")


def test_a_file_that_was_moved_is_named_with_what_to_type(service: ServiceHome, tmp_path: Path) -> None:
    old = project(tmp_path / "old")
    record_definition(service, defined_in(old), take_over=False)
    old.parent.rename(tmp_path / "new")
    error = refusal(service, defined_in(tmp_path / "new" / "turnout.toml"))
    assert f"{old}, which does not exist any more" in error.message
    assert error.hint is not None
    assert error.hint.startswith("if it was moved: --take-over")
    assert "; cd / && turnout up --service web acts on that service; " in error.hint
    typed = refusal(service, Definition(directory=str(tmp_path)), "deploy")
    assert typed.hint is not None
    assert "cd / &&" not in typed.hint, "a command is refused there as well"
    record_definition(service, defined_in(tmp_path / "new" / "turnout.toml"), take_over=True)
    check_definition(service, defined_in(tmp_path / "new" / "turnout.toml"), "up")


@pytest.mark.parametrize("content", [None, b"", b"[" * 5000, b'{"file": 7}', b"\xff\xfe"])
def test_a_home_of_0_1_is_defined_by_the_file_that_its_settings_name_or_by_nothing(
    service: ServiceHome, tmp_path: Path, content: bytes | None
) -> None:
    """The same where the record is missing or damaged."""
    if content is not None:
        service.definition.write_bytes(content)
    assert definition_of(service) is None
    plain = Settings(name="web", listen=(parse_address("127.0.0.1:1"),))
    service.settings.write_bytes(dump_settings(plain))
    assert definition_of(service) is None
    check_definition(service, defined_in(project(tmp_path / "b")), "up")
    ours = project(tmp_path / "a")
    service.settings.write_bytes(
        dump_settings(Settings(name="web", listen=(parse_address("127.0.0.1:1"),), source=str(ours)))
    )
    assert definition_of(service) == defined_in(ours)
    assert str(ours) in refusal(service, defined_in(project(tmp_path / "b"))).message


def test_paths_that_are_not_utf8_are_recorded_byte_for_byte(service: ServiceHome, tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"d\xff") / "turnout.toml"
    record_definition(service, defined_in(file), take_over=False)
    known = definition_of(service)
    assert known == defined_in(file)
    assert known is not None
    assert is_same(known, defined_in(file))


def test_what_is_recorded_already_is_not_written_again(service: ServiceHome, tmp_path: Path) -> None:
    file = project(tmp_path / "a")
    record_definition(service, defined_in(file), take_over=False)
    before = service.definition.stat().st_ino
    record_definition(service, defined_in(file), take_over=False)
    assert service.definition.stat().st_ino == before
