"""What a daemon inherits beside its build: taken from a shell, kept in a private file, compared."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from faulty_files import FaultyFiles, UnsyncedFiles
from turnout.errors import SpawnError, StateUnwritableError, UsageError
from turnout.state import exec_context
from turnout.state.builds import Build
from turnout.state.exec_context import (
    Contexts,
    ExecContext,
    capture,
    changed_files,
    derive,
    difference,
    file_states,
    session_free,
    swapped_directory,
)
from turnout.system.limits import own_limits

CONTEXT = ExecContext("/bin/d", {"A": "1", "TOKEN": "s3cret"}, 0o027, {"nofile": (300, 4096)})


def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def contexts(tmp_path: Path) -> Contexts:
    return Contexts(tmp_path / "contexts", files=UnsyncedFiles())


# -- taking one --------------------------------------------------------------------------------------------------------


def test_what_belongs_to_a_login_session_is_no_part_of_a_deploy() -> None:
    session = [
        *(
            "TERM",
            "COLORTERM",
            "SSH_AUTH_SOCK",
            "SSH_CONNECTION",
            "SSH_TTY",
            "DISPLAY",
            "WAYLAND_DISPLAY",
            "XAUTHORITY",
        ),
        *("XDG_SESSION_ID", "TMUX", "TMUX_PANE", "STY", "WINDOWID", "SUDO_USER", "SHLVL", "OLDPWD", "PWD", "_"),
        *("LS_COLORS", "GPG_TTY", "INVOCATION_ID", "JOURNAL_STREAM", "TURNOUT_HOME", "LISTEN_FDS", "NOTIFY_SOCKET"),
    ]
    names = ("PATH", "HOME", "LANG", "DATABASE_URL", "XDG_RUNTIME_DIR", "TERMINUS", "SSHD", "PORT")
    deploy = dict.fromkeys(names, "x")
    assert session_free({**dict.fromkeys(session, "x"), **deploy}) == deploy


def test_a_context_is_that_of_this_process(tmp_path: Path) -> None:
    there = program(tmp_path / "bin" / "d")
    before = os.umask(0o031)
    try:
        context = capture(Build(("d",), "/"), environ={"PATH": str(there.parent), "A": "1"})
    finally:
        os.umask(before)
    assert context == ExecContext(
        str(there), {"PATH": str(there.parent), "A": "1"}, 0o031, own_limits(), "", context.files
    )
    assert list(context.files) == [str(there)]


def test_the_path_of_the_builds_own_environment_counts(tmp_path: Path) -> None:
    there = program(tmp_path / "bin" / "d")
    assert capture(Build(("d",), "/", {"PATH": str(there.parent)}), environ={}).program == str(there)
    with pytest.raises(SpawnError, match="no such command: d"):
        capture(Build(("d",), "/"), environ={"PATH": "/nowhere"})


def test_a_program_below_a_link_is_that_of_the_release_and_keeps_its_own_name(tmp_path: Path) -> None:
    program(tmp_path / "releases" / "1" / "bin" / "d-1.0")
    (tmp_path / "releases" / "1" / "bin" / "d").symlink_to("d-1.0")
    (tmp_path / "current").symlink_to("releases/1")
    context = capture(Build((str(tmp_path / "current" / "bin" / "d"),), "/"))
    assert context.program == str(tmp_path / "releases" / "1" / "bin" / "d")


def test_the_script_of_an_interpreter_and_watched_files_are_among_its_files(tmp_path: Path) -> None:
    script, watched = tmp_path / "server.py", tmp_path / "asset"
    script.write_text("1")
    watched.write_text("2")
    context = capture(Build(("sh", "-e", "server.py", "asset", "x" * 5000), str(tmp_path)), watch=[str(watched)])
    assert list(context.files) == [context.program, str(script), str(watched)]


def test_another_build_gets_the_recorded_environment_and_a_program_of_its_own(tmp_path: Path) -> None:
    there = program(tmp_path / "e")
    derived = derive(CONTEXT, Build((str(there),), "/"))
    assert derived == msgspec.structs.replace(CONTEXT, program=str(there), files=derived.files)
    assert list(derived.files) == [str(there)]


# -- its directory -----------------------------------------------------------------------------------------------------


@pytest.fixture
def releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``current`` leads to releases/1, and the shell stands in current/app."""
    for number in "12":
        (tmp_path / "releases" / number / "app").mkdir(parents=True)
    (tmp_path / "current").symlink_to("releases/1")
    monkeypatch.chdir(tmp_path / "current" / "app")
    monkeypatch.setenv("PWD", str(tmp_path / "current" / "app"))
    return tmp_path


def swap(directory: Path) -> None:
    (directory / "new").symlink_to("releases/2")
    (directory / "new").replace(directory / "current")


def test_the_name_of_a_directory_is_kept_where_a_link_leads_there(releases: Path) -> None:
    build = Build(("sh",), str(releases / "releases" / "1" / "app"))
    assert capture(build).directory == str(releases / "current" / "app")
    assert capture(msgspec.structs.replace(build, cwd="/")).directory == ""
    assert swapped_directory() is None
    swap(releases)
    assert capture(build).directory == "", "the name leads elsewhere by now"


def test_a_shell_that_stands_in_a_release_of_yesterday_is_found(releases: Path) -> None:
    swap(releases)
    old, new = (str(releases / "releases" / number / "app") for number in "12")
    assert swapped_directory() == (old, new)


def test_a_program_that_was_given_another_directory_is_in_no_release(
    releases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(releases)
    assert swapped_directory() is None
    monkeypatch.setenv("PWD", str(releases / "gone"))
    assert swapped_directory() is None


# -- its files ---------------------------------------------------------------------------------------------------------


def test_a_file_is_another_by_its_content_and_not_by_its_time(tmp_path: Path) -> None:
    names = ["kept", "touched", "copied", "replaced", "edited", "gone"]
    paths = {name: tmp_path / name for name in names}
    for path in paths.values():
        path.write_text("before")
    context = msgspec.structs.replace(CONTEXT, files=file_states(map(str, paths.values())))
    assert changed_files(context) == []
    os.utime(paths["touched"], (1, 1))
    (tmp_path / "new").write_text("before")
    (tmp_path / "new").replace(paths["copied"])
    (tmp_path / "new").write_text("behind")
    (tmp_path / "new").replace(paths["replaced"])
    paths["edited"].write_text("behind")
    paths["gone"].unlink()
    assert changed_files(context) == [str(paths[name]) for name in ("replaced", "edited", "gone")]


def test_a_file_above_the_bound_is_another_as_soon_as_it_looks_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exec_context, "DIGEST_BYTES", 5)
    path = tmp_path / "large"
    path.write_text("before")
    context = msgspec.structs.replace(CONTEXT, files=file_states([str(path)]))
    assert not context.files[str(path)].digest
    assert changed_files(context) == []
    os.utime(path, (1, 1))
    assert changed_files(context) == [str(path)]


def test_what_is_no_regular_file_is_looked_at_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    found = file_states([str(tmp_path / "fifo"), str(tmp_path / "none")])
    assert [path for path in found if not found[path].digest] == [str(tmp_path / "fifo")]


# -- comparing ---------------------------------------------------------------------------------------------------------


def test_a_difference_names_variables_and_never_their_values() -> None:
    after = ExecContext(
        "/usr/bin/d", {"TOKEN": "other", "NEW": "val-ue"}, 0o022, {"nofile": (900, 4096), "core": (0, -1)}
    )
    assert difference(CONTEXT, after) == (
        "environment: TOKEN changed, NEW new, A gone; program /bin/d -> /usr/bin/d; umask 0027 -> 0022;"
        " limit nofile 300/4096 -> 900/4096"
    )
    assert difference(CONTEXT, CONTEXT) == ""


def test_a_difference_stays_one_line_of_a_bounded_length() -> None:
    after = msgspec.structs.replace(CONTEXT, env={**CONTEXT.env, **{f"V{number:03}": "" for number in range(500)}})
    assert difference(CONTEXT, after).endswith("V011 and 488 more new")


# -- the files of records ----------------------------------------------------------------------------------------------


def test_a_context_comes_back_as_it_was_from_a_file_for_its_owner_alone(contexts: Contexts, tmp_path: Path) -> None:
    odd = msgspec.structs.replace(
        CONTEXT, env={os.fsdecode(b"K\xff"): "\u20ac\n"}, files=file_states(["/bin/sh"]), directory="/d"
    )
    context_id = contexts.save(odd)
    assert contexts.load(context_id) == odd
    (file,) = (tmp_path / "contexts").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_equal_contexts_are_one_file_whatever_the_order_of_their_variables(contexts: Contexts, tmp_path: Path) -> None:
    ids = {
        contexts.save(CONTEXT),
        contexts.save(msgspec.structs.replace(CONTEXT, env=dict(reversed(list(CONTEXT.env.items()))))),
    }
    ids.add(contexts.save(msgspec.structs.replace(CONTEXT, umask=0)))
    assert len(ids) == len(list((tmp_path / "contexts").iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b'{"limits": 5}', b"\xff", b"[" * 100_000])
def test_a_damaged_record_is_none(contexts: Contexts, tmp_path: Path, damage: bytes) -> None:
    context_id = contexts.save(CONTEXT)
    path = tmp_path / "contexts" / f"{context_id}.json"
    path.write_bytes(damage)
    assert contexts.load(context_id) is None
    path.unlink()
    assert contexts.load(context_id) is None
    os.mkfifo(path)
    assert contexts.load(context_id) is None
    assert contexts.load("../builds") is contexts.load("-") is None


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff"])
def test_a_damaged_record_is_written_again_by_the_next_deploy(
    contexts: Contexts, tmp_path: Path, damage: bytes
) -> None:
    path = tmp_path / "contexts" / f"{contexts.save(CONTEXT)}.json"
    path.write_bytes(damage)
    assert contexts.load(contexts.save(CONTEXT)) == CONTEXT
    path.unlink()
    os.mkfifo(path)
    assert contexts.load(contexts.save(CONTEXT)) == CONTEXT


def test_a_directory_of_records_that_cannot_be_made_is_an_error_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateUnwritableError, match="cannot make the directory of"):
        Contexts(tmp_path / "file" / "contexts", files=UnsyncedFiles()).save(CONTEXT)


def test_an_environment_that_no_daemon_can_be_given_is_refused_by_name(contexts: Contexts) -> None:
    large = msgspec.structs.replace(CONTEXT, env={"SMALL": "1", "LARGE": "x" * exec_context.MAX_BYTES})
    with pytest.raises(UsageError, match="environment is too large") as caught:
        contexts.save(large)
    assert "LARGE" in str(caught.value.hint)
    assert "xxx" not in f"{caught.value.message}{caught.value.hint}"


def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    def strike(_number: int, name: str) -> None:
        if name == "write":
            raise OSError(28, "No space left on device")

    with pytest.raises(StateUnwritableError, match="No space"):
        Contexts(tmp_path / "contexts", files=FaultyFiles(strike)).save(CONTEXT)
    assert list((tmp_path / "contexts").iterdir()) == []


def test_records_that_no_rollout_names_go_and_the_rest_is_bounded(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [contexts.save(msgspec.structs.replace(CONTEXT, umask=number)) for number in range(5)]
    contexts.prune([ids[4], ids[3], ids[1], "gone"])
    assert [contexts.load(one) is not None for one in ids] == [False, True, False, True, True]
    monkeypatch.setattr(exec_context, "KEPT_BYTES", 0)
    contexts.prune([ids[4], ids[3], ids[1]], spare={ids[3]})
    assert [contexts.load(one) is not None for one in ids] == [False, False, False, True, False]


def test_pruning_where_nothing_was_ever_kept_is_no_error(contexts: Contexts) -> None:
    contexts.prune(["x"])
