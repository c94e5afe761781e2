"""One file with every key: what it means, what the verbs print of it, and what turnout 0.1.0 made of it.

``every_key/`` has that file and what is expected of it; ``/srv`` stands there for the directory of the file.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from turnout.cli import cli
from turnout.cli.init import written
from turnout.config.file import load_file
from turnout.config.settings import Settings, dump_settings, ignored_settings, load_settings

EXPECTED = Path(__file__).parent / "every_key"
REMOVED = "shares_port"  # a setting of 0.1.0
SINCE = {"activation": "on", "port": 6379}  # settings that 0.1.0 did not have, as the file has them


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with the file in it and a home that nobody used."""
    shutil.copy(EXPECTED / "turnout.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TURNOUT_HOME", str(tmp_path / "home"))
    for name in ("TURNOUT_LISTEN", "TURNOUT_CONFIG", "TURNOUT_SERVICE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def printed(directory: Path, *args: str) -> str:
    done = CliRunner().invoke(cli, args)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout.replace(str(directory), "/srv")


def settings(directory: Path) -> Settings:
    return load_file(directory / "turnout.toml")["cache"].settings


def test_the_file_means_what_it_meant_to_0_1_0(directory: Path) -> None:
    stored = json.loads((EXPECTED / "settings.json").read_text())
    del stored[REMOVED]
    found = json.loads(dump_settings(settings(directory)).decode().replace(str(directory), "/srv"))
    assert found == stored | SINCE | {"takes_part": True}, "a daemon that is activated can share the address"


def test_settings_without_a_new_key_are_stored_as_0_1_0_reads_them(directory: Path) -> None:
    """It refuses a file with a name that it does not know, and somebody may go back to it."""
    known = json.loads((EXPECTED / "settings.json").read_text()).keys()
    database = load_file(directory / "turnout.toml")["database"].settings
    assert json.loads(dump_settings(database)).keys() <= known
    assert load_settings(dump_settings(database)) == database


def test_the_settings_that_0_1_0_stored_are_read_whole(directory: Path) -> None:
    stored = (EXPECTED / "settings.json").read_bytes().replace(b"/srv", str(directory).encode())
    known = msgspec.structs.replace(settings(directory), activation="auto", port=0, takes_part=False)
    assert load_settings(stored) == known
    assert not ignored_settings(stored)


@pytest.mark.parametrize("service", ["cache", "database"])
def test_config_prints_every_key_as_the_file_has_it_or_its_default(directory: Path, service: str) -> None:
    found = printed(directory, "config", "--service", service)
    assert re.sub(r" {2,}#", "  #", found) == (EXPECTED / f"{service}.toml").read_text()


def test_the_schema_of_the_file_stays(directory: Path) -> None:
    assert printed(directory, "schema", "file") == (EXPECTED / "schema.json").read_text()


def test_init_writes_the_defaults_as_comments() -> None:
    assert written([], []) == (EXPECTED / "init.toml").read_text()
