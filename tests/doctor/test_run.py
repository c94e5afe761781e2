"""All checks are made, named and mended, whatever one of them does; the checks are fakes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from turnout.config.settings import ServiceRequest, Settings, parse_address
from turnout.doctor import run
from turnout.doctor.context import Context, ServiceContext
from turnout.doctor.finding import CheckResult, bad, move_aside, ok, quoted, warn, worst
from turnout.doctor.run import Check, diagnose, diagnosis, fix
from turnout.errors import TurnoutError
from turnout.state.home import Home


def context(directory: Path, *names: str, only: str = "") -> Context:
    listen = (parse_address("127.0.0.1:1"),)
    configured = {name: ServiceRequest(settings=Settings(name=name, listen=listen)) for name in names}
    return Context(Home(directory / "home"), configured=configured, only=only)


def checks(monkeypatch: pytest.MonkeyPatch, table: Mapping[str, Check]) -> None:
    monkeypatch.setattr(run, "CHECKS", table)


def check_fine(_context: Context) -> Iterator[CheckResult]:
    yield ok("all is well")


def check_broken(_context: Context) -> Iterator[CheckResult]:
    yield warn("half of it", "look")
    raise TurnoutError("the file is a directory")


def check_of_service(_context: Context, service: ServiceContext) -> Iterator[CheckResult]:
    yield ok(f"looked at {service.name}")
    yield bad("its copy", "rm", check="kept copies")


def test_a_check_that_fails_is_a_finding_after_what_it_found_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks(monkeypatch, {"broken": check_broken, "fine": check_fine})
    results = diagnose(context(tmp_path))
    assert [(result.check, result.verdict) for result in results] == [
        ("broken", "warn"),
        ("broken", "bad"),
        ("fine", "ok"),
    ]
    assert results[1].evidence == "this could not be looked at: the file is a directory"


def test_a_check_of_a_service_is_made_of_each_and_its_findings_name_the_service_and_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks(monkeypatch, {"disk": run._each(check_of_service)})
    results = diagnose(context(tmp_path, "b", "a"))
    assert [(result.check, result.service) for result in results] == [
        ("disk", "a"),
        ("kept copies", "a"),
        ("disk", "b"),
        ("kept copies", "b"),
    ]
    assert [result.service for result in diagnose(context(tmp_path, "b", "a", only="b"))] == ["b", "b"]


def test_only_what_can_be_mended_is_and_what_fails_is_told() -> None:
    mended: list[str] = []

    def refuse() -> None:
        raise PermissionError(1, "Operation not permitted")

    done = fix([ok("fine"), bad("loose", "chmod 600 f", lambda: mended.append("f")), bad("held", "kill 7", refuse)])
    assert mended == ["f"]
    assert done[0] == "chmod 600 f (loose)"
    assert done[1].startswith("NOT fixed: held: ")


def test_the_diagnosis_has_the_gravest_verdict_and_says_what_can_be_fixed() -> None:
    told = diagnosis([ok("fine"), warn("loose", "chmod 600 f", lambda: None)], ["done"])
    assert (told.verdict, told.fixed) == ("warn", ["done"])
    assert [(finding.hint, finding.fixable) for finding in told.findings] == [(None, False), ("chmod 600 f", True)]
    assert worst([]) == "ok"


def test_paths_in_commands_are_quoted() -> None:
    assert quoted(Path("/a b/c")) == "'/a b/c'"
    assert move_aside(Path("/a b/c")) == "mv -- '/a b/c' '/a b/c'.aside"
