"""A registry file belongs to one service: who has it, how that is proven, and how it gets free."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from turnout.config.settings import Settings, dump_settings, parse_address
from turnout.control.registry_claim import check_claim, claim_file, claimed, release_claim
from turnout.errors import UsageError
from turnout.state.home import Home
from turnout.system.process import own_identity
from turnout.system.spawn_record import SpawnRecord, write_record


class Stage:
    """Two homes with a service each, and a registry file outside both."""

    def __init__(self, root: Path) -> None:
        self.shared = root / "app" / "registry.json"
        self.one, self.two = Home(root / "one"), Home(root / "two")

    def bring_up(self, home: Home, name: str, registry: Path | None = None) -> None:
        """Claim the file and write the settings, as a verb does."""
        service = home.service(name)
        service.create()
        path = registry or self.shared
        settings = Settings(name=name, listen=(parse_address("127.0.0.1:1"),), registry=str(path))
        with claimed(home, service, path):
            service.settings.write_bytes(dump_settings(settings))

    def refused(self, home: Home, name: str, registry: Path | None = None) -> UsageError:
        with pytest.raises(UsageError) as refused:
            self.bring_up(home, name, registry)
        return refused.value


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_a_second_service_of_the_home_is_refused_and_the_first_one_is_named(stage: Stage) -> None:
    stage.bring_up(stage.one, "a")
    stage.bring_up(stage.one, "a")
    error = stage.refused(stage.one, "b")
    assert error.exit_code == 2
    assert "is the registry of service a:" in error.message
    assert error.hint is not None
    assert error.hint.endswith("turnout down --service a")
    assert not stage.one.service("b").settings.exists()


def test_a_service_of_another_home_is_refused_whatever_its_name_and_the_name_of_the_file(
    stage: Stage, tmp_path: Path
) -> None:
    stage.bring_up(stage.one, "a")
    link = tmp_path / "link.json"
    link.symlink_to(stage.shared)
    for name in ("a", "b"):
        error = stage.refused(stage.two, name, link)
        assert f"service a of the state directory {stage.one.root}" in error.message
        assert error.hint is not None
        assert f"TURNOUT_HOME={stage.one.root} turnout down --service a" in error.hint
        assert f"rm -- {claim_file(stage.shared)}" in error.hint


def test_the_registry_in_the_directory_of_a_service_belongs_to_it_without_a_claim(stage: Stage) -> None:
    service = stage.one.service("a")
    service.create()
    service.settings.write_bytes(dump_settings(Settings(name="a", listen=(parse_address("127.0.0.1:1"),))))
    with claimed(stage.one, service, service.registry):
        pass
    assert not claim_file(service.registry).exists()
    assert "service a of the state directory" in stage.refused(stage.two, "b", service.registry).message
    assert "service a:" in stage.refused(stage.one, "b", service.registry).message


@pytest.mark.parametrize("end", ["down", "other registry", "home moved", "claim removed", "claim damaged"])
def test_a_claim_ends_with_what_proves_it(stage: Stage, end: str) -> None:
    stage.bring_up(stage.one, "a")
    if end == "down":
        release_claim(stage.one, stage.one.service("a"), stage.shared)
    elif end == "other registry":
        stage.bring_up(stage.one, "a", stage.shared.with_name("other.json"))
    elif end == "home moved":
        stage.one.root.rename(stage.one.root.with_name("moved"))
    elif end == "claim removed":
        claim_file(stage.shared).unlink()
    else:
        claim_file(stage.shared).write_bytes(b"[" * 5000)
    stage.bring_up(stage.two, "b")
    assert json.loads(claim_file(stage.shared).read_bytes()) == {"home": str(stage.two.root), "service": "b"}


def test_the_end_of_one_service_leaves_the_claim_of_another(stage: Stage) -> None:
    stage.bring_up(stage.one, "a")
    release_claim(stage.two, stage.two.service("b"), stage.shared)
    assert claim_file(stage.shared).exists()


def test_a_claimant_whose_settings_cannot_be_read_still_has_the_file(stage: Stage) -> None:
    """Another user's home, or one of another version."""
    stage.bring_up(stage.one, "a")
    stage.one.service("a").settings.write_bytes(b'{"of": "another version"}')
    stage.refused(stage.two, "b")


def test_a_running_service_that_turnout_0_1_brought_up_has_its_file_without_a_claim(stage: Stage) -> None:
    stage.bring_up(stage.one, "a")
    claim_file(stage.shared).unlink()
    service = stage.one.service("a")
    check_claim(stage.one, stage.one.service("b"), stage.shared)  # nothing of it runs
    record = SpawnRecord("boot", "a", own_identity(), str(service.log("boot")), 1.0)
    write_record(service.record("boot"), record)
    assert "service a:" in stage.refused(stage.one, "b").message


def test_a_claim_that_is_there_already_is_not_written_again(stage: Stage) -> None:
    stage.bring_up(stage.one, "a")
    before = claim_file(stage.shared).stat().st_ino
    stage.bring_up(stage.one, "a")
    assert claim_file(stage.shared).stat().st_ino == before
