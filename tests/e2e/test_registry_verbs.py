"""``turnout registry`` and ``turnout history``: for people who want to know, or to mend."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from e2e_support import Turnout, line_daemon
from registry_support import SNAPSHOT, start, write_both
from turnout.state.registry.decoder import loads
from turnout.state.registry.encoder import dumps


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.json"


def test_show_prints_what_turnout_understands_for_people_and_as_json(turnout: Turnout, path: Path) -> None:
    write_both(path)
    said = turnout.run("registry", "show", str(path)).stdout
    assert "generation 4, idle, revision 20" in said
    assert "daemon active  127.0.0.1:40001  pid 77  active" in said
    assert loads(turnout.run("registry", "show", str(path), "--json").stdout.encode()).snapshot == SNAPSHOT


def test_show_without_a_file_shows_the_services(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    shown = json.loads(turnout.run("registry", "show", "--json").stdout)
    assert shown["deployment"]["active_boot_id"] in shown["daemons"]
    turnout.run("registry", "validate")
    assert "nothing to mend" in turnout.run("registry", "repair").stdout


@pytest.mark.parametrize("verb", ["show", "validate", "repair"])
def test_where_there_is_no_registry_it_says_so(turnout: Turnout, path: Path, verb: str) -> None:
    done = turnout.run("registry", verb, str(path), code=3)
    assert "there is no registry" in done.stderr
    assert not path.exists()


def test_validate_names_each_thing_and_touches_nothing(turnout: Turnout, path: Path) -> None:
    write_both(path)
    raw = json.loads(path.read_bytes())
    raw["daemons"]["bad"] = 5
    raw["daemons"]["active"]["port"] = "seven"
    del raw["deployment"]
    path.write_text(json.dumps(raw))
    before = {entry.name: entry.read_bytes() for entry in path.parent.iterdir() if entry.is_file()}
    said = turnout.run("registry", "validate", str(path), code=1).stdout
    assert "daemons.bad" in said
    assert "daemons.active.port: 'seven' became 0" in said
    assert "put back" in said
    report = json.loads(turnout.run("registry", "validate", str(path), "--json", code=1).stdout)
    assert (report["sound"], report["damaged"], report["last_good_revision"]) == (False, None, 20)
    assert len(report["findings"]) >= 3
    assert {entry.name: entry.read_bytes() for entry in path.parent.iterdir() if entry.is_file()} == before


def test_repair_writes_what_is_understood_and_keeps_the_rest_aside(turnout: Turnout, path: Path) -> None:
    write_both(path)
    raw = json.loads(path.read_bytes())
    raw["daemons"]["bad"] = 5
    text = json.dumps(raw).encode()
    path.write_bytes(text)
    assert "would fix: daemons.bad" in turnout.run("registry", "repair", str(path), "--dry-run").stdout
    assert path.read_bytes() == text
    assert "fixed: daemons.bad" in turnout.run("registry", "repair", str(path)).stdout
    assert path.read_bytes() == dumps(SNAPSHOT)
    assert [kept.read_bytes() for kept in path.parent.glob("registry.json.damaged-*")] == [text]
    turnout.run("registry", "validate", str(path))
    assert "nothing to mend" in turnout.run("registry", "repair", str(path)).stdout


def test_a_damaged_file_is_mended_from_the_last_good_copy_or_from_one_that_is_named(
    turnout: Turnout, path: Path
) -> None:
    write_both(path)
    path.write_bytes(b"garbage")
    turnout.run("registry", "repair", str(path))
    assert path.read_bytes() == dumps(SNAPSHOT)
    path.write_bytes(b"garbage")
    path.with_name("registry.json.good").unlink()
    done = turnout.run("registry", "repair", str(path), code=1)
    assert "hint: turnout registry repair --from COPY" in done.stderr
    assert path.read_bytes() == b"garbage"
    copy = path.with_name("backup.json")
    copy.write_bytes(dumps(SNAPSHOT))
    turnout.run("registry", "repair", str(path), "--from", str(copy))
    assert path.read_bytes() == dumps(SNAPSHOT)
    copy.write_bytes(b"[]")
    assert "is no registry" in turnout.run("registry", "repair", str(path), "--from", str(copy), code=2).stderr


def test_a_newer_registry_is_refused_and_not_touched(turnout: Turnout, path: Path) -> None:
    path.write_bytes(b'{"version": "3.0"}')
    for verb in ("show", "validate", "repair"):
        assert "upgrade turnout" in turnout.run("registry", verb, str(path), code=1).stderr
    assert path.read_bytes() == b'{"version": "3.0"}'


def test_a_lock_that_is_held_is_exit_code_6_with_the_holders_pid(turnout: Turnout, path: Path) -> None:
    write_both(path)
    path.write_bytes(b"garbage")
    holder = start("hold", path)
    try:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        done = turnout.run("registry", "repair", str(path), code=6, timeout_s=60)
        assert f"pid {holder.pid}" in done.stderr
        assert "hint:" in done.stderr
    finally:
        holder.communicate("\n")


@pytest.mark.parametrize("mode", [0o000, 0o444], ids=["unreadable", "unwritable"])
def test_a_file_that_may_not_be_read_or_written_is_one_clear_error(turnout: Turnout, tmp_path: Path, mode: int) -> None:
    """Root ignores modes, so what lets it do so is dropped."""
    directory = tmp_path / "shut"
    directory.mkdir()
    path = directory / "registry.json"
    path.write_bytes(b'{"daemons": {"bad": 5}}')
    path.chmod(mode)
    directory.chmod(0o555)
    argv = turnout.argv("registry", "repair", str(path))
    if os.geteuid() == 0:
        argv = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *argv]
    done = subprocess.run(argv, env=turnout.env, capture_output=True, text=True, timeout=60, check=False)
    directory.chmod(0o755)
    assert done.returncode == 1, done
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr
    assert str(path) in lines[0]
    assert "ermission denied" in lines[0]
    assert lines[1].startswith("hint: ")


def test_a_full_disk_is_one_clear_error_and_changes_nothing(turnout: Turnout, tmp_path: Path) -> None:
    """A real one: a tmpfs of 16 KiB in a mount namespace of its own."""
    script = """
        set -e
        mount -t tmpfs -o size=16k none "$1"
        cp "$2" "$1/registry.json"
        dd if=/dev/zero of="$1/fill" bs=1k count=64 2>/dev/null || true
        set +e
        shift; shift
        "$@"
        code=$?
        cmp "$DISK/registry.json" "$WAS" || exit 99
        ls "$DISK" >&2
        exit $code
    """
    disk, was = tmp_path / "disk", tmp_path / "was.json"
    disk.mkdir()
    was.write_bytes(b'{"daemons": {"bad": 5}}')
    namespace = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    mount = [*namespace, "mount", "-t", "tmpfs", "none", str(disk)]
    tried = subprocess.run(mount, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no mount namespace with a tmpfs can be made here: {tried.stderr.strip()}")
    verb = turnout.argv("registry", "repair", str(disk / "registry.json"))
    done = subprocess.run(
        [*namespace, "sh", "-c", script, "sh", str(disk), str(was), *verb],
        env=turnout.env | {"DISK": str(disk), "WAS": str(was)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done
    lines = done.stderr.splitlines()
    assert lines[0].endswith("No space left on device")
    assert lines[1] == "hint: free some space on that disk"
    assert set(lines[2:]) <= {"fill", "registry.json", "registry.json.lock"}, "something was left behind"


def test_history_tells_every_decision_with_its_evidence_and_follows(turnout: Turnout) -> None:
    assert "no service" in turnout.run("history", code=4).stderr
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    follow = turnout.begin("history", "2", "-f", "--json")
    turnout.configure(line_daemon("--version", "v2"), version="v2")
    turnout.run("deploy")
    turnout.journaled("finish", generation=2)
    events = [json.loads(line) for line in turnout.run("history", "--json").stdout.splitlines()]
    assert [event["event"] for event in events if event["generation"] == 2][:5] == [
        "begin",
        "probe",
        "probe",
        "switch",
        "finish",
    ]
    assert all({"ts", "event", "generation", "revision"} <= set(event) for event in events)
    second = [json.loads(line) for line in turnout.run("history", "2", "--json").stdout.splitlines()]
    first = [event for event in events if event["generation"] == 2]
    assert second[: len(first)] == first, "the old daemon may have gone meanwhile"
    said = turnout.run("history", "2", "-n", "1").stdout
    assert said.count("\n") == 1
    assert "gen 2" in said
    assert follow.stdout is not None
    assert json.loads(follow.stdout.readline()) == second[0]
    follow.send_signal(signal.SIGINT)
    follow.communicate(timeout=20)
