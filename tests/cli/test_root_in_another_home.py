"""Root in the home of another user: what would lock that user out is refused, what only looks makes nothing root's."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from registry_support import write_both
from turnout.config.settings import Settings, dump_settings, parse_address
from turnout.core.model import Deployment, Desired, Snapshot
from turnout.errors import StateUnwritableError
from turnout.state.home import Home
from turnout.state.lifecycle_lock import is_free
from turnout.state.registry.file import RegistryFile
from turnout.system.files import Files, write_durably
from turnout.testing import free_port

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to act in another user's home")
OTHER = next(entry for entry in pwd.getpwall() if entry.pw_uid not in {0, os.geteuid()})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home of another user, with a service that is stopped."""
    home = Home(tmp_path / "home")
    service = home.service("default")
    service.create()
    settings = Settings(name="default", listen=(parse_address(f"127.0.0.1:{free_port()}"),))
    write_durably(Files(), service.settings, dump_settings(settings))
    write_both(service.registry, Snapshot(deployment=Deployment(generation=4, revision=20, desired=Desired.STOPPED)))
    for path in (home.root, *home.root.rglob("*")):
        os.chown(path, OTHER.pw_uid, OTHER.pw_gid)
    return home


def owners(home: Home) -> dict[str, int]:
    return {str(path.relative_to(home.root)): path.stat().st_uid for path in (home.root, *home.root.rglob("*"))}


def turnout(home: Home, *words: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TURNOUT_")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "turnout", *words],
        env=kept | {"TURNOUT_HOME": str(home.root), "XDG_CONFIG_HOME": str(home.root.parent / "no-config")},
        cwd=home.root.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "words",
    [
        ("up", "--service", "new", "--", sys.executable, "-m", "http.server", "{port}"),
        ("down",),
        ("doctor", "--fix"),
        ("registry", "repair"),
        ("router", "--replace"),
    ],
    ids=" ".join,
)
def test_a_verb_that_changes_something_is_refused_and_names_the_command_that_works(
    home: Home, words: tuple[str, ...]
) -> None:
    before = owners(home)
    done = turnout(home, *words)
    assert done.returncode == 1, done.stdout
    assert f"{home.root} is the state directory of user {OTHER.pw_name}" in done.stderr
    assert f"-u {OTHER.pw_name}" in done.stderr
    assert " ".join(words[:2]) in done.stderr
    assert owners(home) == before


def test_verbs_that_look_leave_every_file_as_it_is_and_make_none(home: Home) -> None:
    before = owners(home)
    for words in (("status",), ("status", "--json"), ("history",), ("why",), ("config",), ("registry", "show")):
        assert turnout(home, *words).returncode in {0, 3}, words
    turnout(home, "registry", "validate")
    doctor = turnout(home, "doctor")
    assert "chown" not in doctor.stdout
    assert f"belongs to uid {OTHER.pw_uid} ({OTHER.pw_name}), not 0" in doctor.stdout
    assert is_free(home.service("default").root)
    assert owners(home) == before


def test_a_home_of_a_uid_without_a_user_is_named_and_not_given_to_root(home: Home) -> None:
    for path in (home.root, *home.root.rglob("*")):
        os.chown(path, 47110, 47110)
    doctor = turnout(home, "doctor")
    assert "uid 47110, not 0, which is no user of this machine" in doctor.stdout
    assert "chown" not in doctor.stdout
    assert home.owner() == ""
    home.check_owner()


def test_a_home_that_does_not_exist_is_not_made_in_another_users_directory(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root with the HOME of that user (sudo -E, su): .local/state would be root's."""
    new = Home(home.root / "state" / "turnout")
    monkeypatch.delenv("TURNOUT_HOME", raising=False)
    with pytest.raises(StateUnwritableError, match=f"state directory of user {OTHER.pw_name}"):
        new.create()
    assert not new.root.parent.exists()
    monkeypatch.setenv("TURNOUT_HOME", str(new.root))  # root asks for just this one
    new.create()
    assert new.root.stat().st_uid == 0


def test_the_lock_of_a_users_registry_stays_usable_for_that_user(tmp_path: Path) -> None:
    path = tmp_path / "registry.json"
    write_both(path, Snapshot())
    os.chown(path, OTHER.pw_uid, OTHER.pw_gid)
    RegistryFile(path).repair()
    RegistryFile(path).settle()
    assert path.with_name("registry.json.lock").stat().st_uid == OTHER.pw_uid
