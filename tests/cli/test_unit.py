"""The units that start turnout at boot: escaped as systemd reads them, and never over somebody else's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from turnout.cli.unit import UnitPlan, systemd_unit
from turnout.cli.unit_file import UnitFile
from turnout.errors import ConflictError, NoSuchServiceError, StateUnwritableError, UsageError

PLAN = UnitPlan(
    python=sys.executable,
    home=Path("/var/lib/turnout"),
    services=("cache",),
    config=Path("/etc/turnout/turnout.toml"),
    path="/usr/bin:/bin",
    user="",
    start_s=60.0,
    stop_s=60.0,
)


def value_of(text: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


def test_systemd_is_told_to_watch_the_keeper_and_to_leave_the_daemons_alone() -> None:
    text = systemd_unit(PLAN)
    for key, value in {
        "Type": "notify",
        "NotifyAccess": "all",
        "KillMode": "process",
        "Restart": "on-failure",
        "OOMPolicy": "continue",
        "TimeoutStopSec": "120",
        "WantedBy": "default.target",
    }.items():
        assert value_of(text, key) == [value]
    assert value_of(text, "User") == []
    assert value_of(text, "ExecStart")[0].endswith(
        '"up" "--recorded" "--service" "cache" "-c" "/etc/turnout/turnout.toml"'
    )


def test_every_service_is_brought_up_and_a_system_unit_names_its_user() -> None:
    text = systemd_unit(msgspec.structs.replace(PLAN, services=("a", "b", "c"), user="www", config=None))
    assert value_of(text, "ExecStart")[0].endswith('"--service" "a"')
    assert [value.rpartition(" ")[2] for value in value_of(text, "ExecStartPost")] == ['"b"', '"c"']
    assert (value_of(text, "User"), value_of(text, "WantedBy")) == (["www"], ["multi-user.target"])


def test_what_systemd_would_expand_is_taken_literally() -> None:
    odd = Path('/srv/100% "safe" $HOME\\dir')
    text = systemd_unit(msgspec.structs.replace(PLAN, home=odd, config=odd / "t.toml"))
    assert value_of(text, "ExecStart")[0].endswith(r'"/srv/100%% \"safe\" $$HOME\\dir/t.toml"')
    assert value_of(text, "Environment")[0] == r'"TURNOUT_HOME=/srv/100%% \"safe\" $HOME\\dir"'


@pytest.mark.parametrize("change", [{"home": Path("/a\nb")}, {"python": "/opt/$x/python"}])
def test_what_no_unit_can_name_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        systemd_unit(msgspec.structs.replace(PLAN, **change))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze to verify units with")
@pytest.mark.parametrize("user", ["", "root"])
def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path, user: str) -> None:
    odd = tmp_path / "100% of $HOME, quoted"
    odd.mkdir()
    python = odd.parent / "py 5%"
    python.symlink_to(sys.executable)
    plan = msgspec.structs.replace(
        PLAN, python=str(python), home=odd, config=odd / "t.toml", services=("a", "b"), user=user
    )
    unit = tmp_path / "turnout-test.service"
    unit.write_text(systemd_unit(plan))
    command = ["systemd-analyze", "verify", "--man=no", *(() if user else ("--user",)), str(unit)]
    env = {"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)
    about_us = [line for line in done.stderr.splitlines() if "turnout-test" in line]
    assert about_us == []
    assert done.returncode == 0, done.stderr


def test_a_unit_that_somebody_else_wrote_is_neither_replaced_nor_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    unit = UnitFile("turnout", system=False)
    with pytest.raises(NoSuchServiceError):
        unit.remove(force=False)
    unit.write(systemd_unit(PLAN), force=False)
    unit.write(systemd_unit(PLAN), force=False)
    assert unit.path == tmp_path / "systemd" / "user" / "turnout.service"
    assert unit.path.stat().st_mode & 0o777 == 0o644
    unit.path.write_text("[Service]\nExecStart=/bin/true\n")
    with pytest.raises(ConflictError):
        unit.write(systemd_unit(PLAN), force=False)
    with pytest.raises(ConflictError):
        unit.remove(force=False)
    assert "/bin/true" in unit.path.read_text()
    unit.write(systemd_unit(PLAN), force=True)
    unit.remove(force=False)
    assert list(unit.path.parent.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "systemd").write_text("a file in the way")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(StateUnwritableError):
        UnitFile("turnout", system=False).write("text", force=False)


@pytest.mark.parametrize(("system", "word"), [(False, "--user enable --now"), (True, "systemctl enable --now")])
def test_what_to_type_next_is_said(system: bool, word: str) -> None:
    steps = UnitFile("turnout", system=system).next_steps(installed=True)
    assert any(word in step for step in steps)
    assert any("daemon-reload" in step for step in steps)
