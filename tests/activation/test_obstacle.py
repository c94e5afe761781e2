"""What forbids an activation before the daemon is started."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from turnout.activation import obstacle as module
from turnout.activation.obstacle import obstacle
from turnout.activation.seccomp import UnsupportedError


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program, started by a process without CAP_SYS_ADMIN."""
    monkeypatch.setattr(module, "is_privileged", lambda: False)
    true = shutil.which("true")
    assert true
    return Path(shutil.copy(true, tmp_path / "program"))


def test_nothing_is_in_the_way_of_a_common_program(program: Path) -> None:
    assert obstacle(str(program)) == ""
    assert obstacle("") == ""
    assert obstacle("/does/not/exist") == "", "its start says that better"


def test_what_no_new_privs_would_take_from_a_program_is_named(program: Path) -> None:
    program.chmod(0o4755)
    assert "setuid" in obstacle(str(program))
    program.chmod(0o2755)
    assert "setuid or setgid" in obstacle(str(program))
    program.chmod(0o2644)  # mandatory locking, once: no program
    assert obstacle(str(program)) == ""


def test_file_capabilities_are_an_obstacle(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getxattr", lambda _path, name: b"caps" if name == "security.capability" else b"")
    assert "file capabilities" in obstacle(str(program))


def test_with_the_capability_no_new_privs_is_not_needed(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program.chmod(0o4755)
    monkeypatch.setattr(module, "is_privileged", lambda: True)
    assert obstacle(str(program)) == ""


def test_a_machine_that_cannot_is_named_first(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks() -> None:
        raise UnsupportedError(errno.EINVAL, "it takes Linux 5.19")

    monkeypatch.setattr(module, "check_supported", lacks)
    assert obstacle(str(program)) == "it takes Linux 5.19"
