"""Each way in which a home or a machine can be broken is named, with the right verdict, and the advice mends it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from doctor_support import Patient, connected_from, date_ahead, listening_on, unix_socket
from registry_support import SNAPSHOT
from turnout.config.file import load_file
from turnout.config.settings import Address, Scrape, dump_settings
from turnout.doctor.addresses import METRICS_OFF
from turnout.errors import ConfigError
from turnout.planes.selection import lacking, select_plane
from turnout.state.builds import Build, Builds
from turnout.state.metrics_address import EXTRA, write_scrape
from turnout.state.registry.encoder import dumps
from turnout.system.process import identify
from turnout.system.spawn_record import EndRecord, SpawnRecord, write_record

AS_ROOT = os.geteuid() == 0


@dataclass(frozen=True)
class Case:
    """One broken set-up.

    Args:
        check: which check must see it.
        verdict: what it must say.
        break_it: makes it so.
        says: what the evidence must hold.
        fixable: ``--fix`` mends it as well.
        root: it takes root to make it so.
        ends: the advice ends a child of the patient's, which is waited for.
    """

    check: str
    verdict: str
    break_it: Callable[[Patient], object]
    says: str
    fixable: bool = False
    ends: bool = False


def _home_is_a_file(patient: Patient) -> None:
    patient.home.root.rename(patient.directory / "elsewhere")
    patient.home.root.write_text("no directory")


def _damage(patient: Patient, *, good: bool, copy: bool = False) -> None:
    registry = patient.service.registry
    if copy:
        registry.with_name("registry.json.displaced-20261125T010203").write_bytes(registry.read_bytes())
    registry.write_bytes(b'{"daemons": ')
    if not good:
        registry.with_name("registry.json.good").unlink()


def _half_understood(patient: Patient) -> None:
    raw = json.loads(patient.service.registry.read_bytes())
    raw["daemons"]["bad"] = 5
    patient.service.registry.write_text(json.dumps(raw))


def _set_aside(patient: Patient) -> None:
    for name in ("registry.json.damaged-20261125T010203", "registry.json.displaced-20261125T010204"):
        patient.service.registry.with_name(name).write_text("whatever it was")


def _remember(patient: Patient, command: Path | str, cwd: Path) -> None:
    Builds(patient.service.builds).remember(Build((str(command),), str(cwd)))


def _not_executable(patient: Patient) -> None:
    script = patient.directory / "server"
    script.write_text("#!/bin/sh\n")
    _remember(patient, script, patient.directory)


def _registry_is_a_directory(patient: Patient) -> None:
    patient.service.registry.unlink()
    patient.service.registry.mkdir()


def _journal_is_a_directory(patient: Patient) -> None:
    patient.service.journal.mkdir()


def _journal_is_read_only(patient: Patient) -> None:
    patient.service.journal.write_text("")
    patient.service.journal.chmod(0o400)


def _journal_of_another_program(patient: Patient) -> None:
    older = patient.service.journal.with_name("journal.jsonl.1")
    for path in (patient.service.journal, older):
        path.write_text('{"ts":1,"event":"x","generation":Infinity,"revision":1}\n' + "[" * 100_000 + "\n")


def _loose_builds(patient: Patient) -> None:
    _remember(patient, sys.executable, patient.directory)
    patient.service.builds.chmod(0o644)


def _ephemeral(patient: Patient) -> None:
    patient.sysctl("net.ipv4.ip_local_reserved_ports", "8080,9000-9002")
    patient.sysctl("net.ipv4.ip_local_port_range", f"{patient.port - 1} {patient.port + 1}")


def _few_pipes(patient: Patient) -> None:
    patient.context["uid"] = 4711  # root has no such limit
    patient.sysctl("fs.pipe-user-pages-soft", "1024")


def _stray(patient: Patient) -> None:
    patient.child = patient.started.run("sleep", "300")
    record = SpawnRecord("lost", "default", identify(patient.child.pid), str(patient.service.log("lost")), time.time())
    write_record(patient.service.record("lost"), record)


def _address_taken(patient: Patient) -> None:
    patient.child = listening_on(patient.port, patient.started)


def _address_connected_from(patient: Patient) -> None:
    patient.child = connected_from(patient.port, patient.started)


CASES = {
    "home: others may look": Case(
        "home", "bad", lambda p: p.home.root.chmod(0o755), "mode 0755: others can look", fixable=True
    ),
    "home: its owner may not": Case("home", "bad", lambda p: p.home.root.chmod(0o500), "mode 0500", fixable=True),
    "home: a file": Case("home", "bad", _home_is_a_file, "is no directory"),
    "builds: others may read secrets": Case("modes", "bad", _loose_builds, "mode 0644", fixable=True),
    "socket: others may order": Case(
        "modes", "bad", lambda p: unix_socket(p.home.router_sock, 0o666), "takes orders from others", fixable=True
    ),
    "clock: files of tomorrow": Case(
        "clock", "warn", lambda p: date_ahead(p.service.registry, ahead_s=86400), "in the future"
    ),
    "metrics: damaged": Case("metrics", "bad", lambda p: p.home.metrics.write_text("{"), "metrics.json"),
    "backlog: cut": Case("backlog", "warn", lambda p: p.sysctl("net.core.somaxconn", "128"), "somaxconn is 128"),
    "pipes: few": Case("pipes", "warn", _few_pipes, "fs.pipe-user-pages-soft is 1024"),
    "pipes: small": Case("pipes", "warn", lambda p: p.sysctl("fs.pipe-max-size", "4096"), "fs.pipe-max-size is 4096"),
    "ports: in the ephemeral range": Case("ports", "warn", _ephemeral, "lies in the ephemeral range"),
    "registry: damaged": Case(
        "registry", "bad", lambda p: _damage(p, good=True), "the last good copy is of revision 20", fixable=True
    ),
    "registry: damaged, a copy is left": Case(
        "registry", "bad", lambda p: _damage(p, good=False, copy=True), "without a last good copy"
    ),
    "registry: damaged, nothing is left": Case(
        "registry", "bad", lambda p: _damage(p, good=False), "without a last good copy"
    ),
    "registry: missing": Case(
        "registry", "bad", lambda p: p.service.registry.unlink(), "is missing; the last good copy", fixable=True
    ),
    "registry: half understood": Case("registry", "warn", _half_understood, "daemons.bad", fixable=True),
    "registry: a directory": Case("registry", "bad", _registry_is_a_directory, "s a directory"),
    "registry: copies were kept": Case("kept copies", "warn", _set_aside, "registry.json.displaced-20261125T010204"),
    "builds: damaged": Case("builds", "bad", lambda p: p.service.builds.write_text("{"), "is damaged"),
    "builds: the directory is gone": Case(
        "builds", "bad", lambda p: _remember(p, sys.executable, p.directory / "gone"), "there is no directory"
    ),
    "builds: not executable": Case("builds", "bad", _not_executable, "not executable"),
    "journal: a directory": Case("journal", "bad", _journal_is_a_directory, "is no regular file"),
    "journal: read-only": Case("journal", "bad", _journal_is_read_only, "cannot be written", fixable=True),
    "journal: lines of another program": Case(
        "journal", "warn", _journal_of_another_program, "2 lines of it are no events and are left out"
    ),
    "lifecycle lock: its holder is suspended": Case(
        "locks",
        "bad",
        lambda p: p.holds_lock(p.service.root / "lifecycle.lock", suspended=True),
        "has the lifecycle lock and is suspended",
        ends=True,
    ),
    "registry's lock: its holder is suspended": Case(
        "locks",
        "bad",
        lambda p: p.holds_lock(p.service.root / "registry.json.lock", suspended=True),
        "has the registry's lock and is suspended",
        ends=True,
    ),
    "lifecycle lock: held for an hour": Case(
        "locks",
        "warn",
        lambda p: p.holds_lock(p.service.root / "lifecycle.lock", suspended=False, since=time.time() - 3600),
        "has had the lifecycle lock for 36",
        ends=True,
    ),
    "strays: nobody knows it": Case(
        "strays", "warn", _stray, "was started by turnout, and the registry does not know it", fixable=True, ends=True
    ),
    "address: somebody else listens": Case("address", "bad", _address_taken, "is in use by pid", ends=True),
    "address: an outgoing connection has it": Case(
        "address", "bad", _address_connected_from, "is the source port of a connection of pid", ends=True
    ),
}


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_a_sound_home_is_sound(patient: Patient) -> None:
    """Without this none of the others would mean anything."""
    assert patient.wrong() == {}


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_it_is_diagnosed_and_the_advice_mends_it(patient: Patient, case: Case) -> None:
    case.break_it(patient)
    found = patient.wrong()
    assert case.check in found, found
    finding = found[case.check]
    assert finding.verdict == case.verdict
    assert case.says in finding.evidence
    assert finding.fixable is case.fixable
    assert finding.hint
    patient.follow(finding.hint)
    if case.ends:
        patient.reap()
    assert case.check not in patient.wrong()


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.fixable], indirect=True)
def test_fix_mends_what_it_says_it_can(patient: Patient, case: Case) -> None:
    case.break_it(patient)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "turnout", "doctor", "--fix", "--json"],
        env=patient.environ(),
        cwd=patient.directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    told = json.loads(done.stdout)
    assert len(told["fixed"]) == 1, told
    assert not told["fixed"][0].startswith("NOT")
    assert case.check not in {one["check"] for one in told["findings"] if one["verdict"] != "ok"}
    assert done.returncode == (1 if told["verdict"] == "bad" else 0)


def test_without_fix_nothing_is_touched(patient: Patient) -> None:
    _damage(patient, good=True)
    patient.home.root.chmod(0o755)
    before = _everything(patient.home.root)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "turnout", "doctor"],
        env=patient.environ(),
        cwd=patient.directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "bad   home" in done.stdout
    assert "bad   registry" in done.stdout
    assert "-> chmod 700 --" in done.stdout
    assert _everything(patient.home.root) == before


def test_a_file_with_a_wrong_key_is_named_with_the_right_one(patient: Patient) -> None:
    path = patient.directory / "turnout.toml"
    path.write_text('[service.default]\ncomand = ["x"]\n')
    with pytest.raises(ConfigError) as error:
        load_file(path)
    patient.context["misconfigured"] = error.value
    finding = patient.wrong()["configuration"]
    assert (finding.verdict, finding.hint) == ("bad", "did you mean 'command'?")


def test_a_registry_of_a_later_version_is_named_and_left_alone(patient: Patient) -> None:
    patient.service.registry.write_bytes(b'{"version": "3.0"}')
    finding = patient.wrong()["registry"]
    assert finding.verdict == "bad"
    assert not finding.fixable
    assert "upgrade" in (finding.hint or "")
    assert patient.service.registry.read_bytes() == b'{"version": "3.0"}'


def test_a_program_that_drops_the_block_is_counted_for_a_day(patient: Patient) -> None:
    registry = patient.service.registry
    for path in (registry, registry.with_name("registry.json.good")):
        path.write_bytes(dumps(SNAPSHOT))
    raw = json.loads(registry.read_bytes())
    del raw["deployment"]
    registry.write_text(json.dumps(raw))
    patient.follow(
        f'"{sys.executable}" -P -c "from turnout.registry import Registry; '
        "from turnout.state.service import Service; from turnout.config.settings import load_settings; "
        "from turnout.state.home import Home; home = Home.find().service('default'); "
        'Service.open(home, load_settings(home.settings.read_bytes())).registry.settle()"'
    )
    finding = patient.wrong()["writers"]
    assert finding.verdict == "warn"
    assert finding.evidence.startswith("1 times in a day")
    assert "it was missing" in finding.evidence
    patient.context["clock"] = lambda: time.time() + 2 * 86400
    assert "writers" not in patient.wrong()


@pytest.mark.parametrize(("hard", "verdict"), [(256, "warn"), (65536, None), (-1, None)])
def test_few_descriptors_are_said_before_a_router_runs(patient: Patient, hard: int, verdict: str | None) -> None:
    patient.context["nofile"] = (min(1024, hard), hard)
    found = patient.wrong().get("descriptors")
    assert (found.verdict if found else None) == verdict
    if found:
        assert found.hint == "ulimit -n 65536"
        if subprocess.run(["sh", "-c", "ulimit -n 256 && ulimit -n 257"], capture_output=True, check=False).returncode:
            pytest.skip("diagnosed; to raise the limit takes CAP_SYS_RESOURCE")
        patient.follow(f"{found.hint} && test $(ulimit -Hn) = 65536", before="ulimit -n 256; ")


def test_a_full_disk_is_said_with_the_logs_that_can_go(patient: Patient) -> None:
    """A real one: a tmpfs in a mount namespace of its own."""
    disk = patient.directory / "disk"
    disk.mkdir()
    namespace = ["unshare", "-m"] if AS_ROOT else ["unshare", "-rm"]
    mount = f'mount -t tmpfs -o size=20m none "{disk}"'
    tried = subprocess.run([*namespace, "sh", "-c", mount], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no mount namespace with a tmpfs can be made here: {tried.stderr.strip()}")
    log = disk / "home/services/default/logs/old.log"
    record = SpawnRecord("old", "default", identify(os.getpid()), str(log), 1.0, EndRecord(0, 2.0))
    write_record(patient.service.record("old"), record)
    doctor = "turnout doctor --json"
    script = f"""
        {mount} && cp -a "{patient.home.root}" "{disk}/home" && export TURNOUT_HOME="{disk}/home"
        dd if=/dev/zero of="{log}" bs=1M count=10 2>/dev/null; chmod 600 "{log}"
        {doctor} > "{patient.directory}/full.json"
        sh -c "$("{sys.executable}" -c 'import json,sys
print([f["mend"] for f in json.load(open(sys.argv[1]))["findings"] if (f["check"], f["verdict"]) == ("disk", "bad")][0])
' "{patient.directory}/full.json")"
        {doctor} > "{patient.directory}/mended.json"
        true
    """
    done = subprocess.run(
        [*namespace, "sh", "-c", script],
        env=patient.environ(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    def verdicts(name: str) -> set[str]:
        told = json.loads((patient.directory / name).read_text())
        return {one["verdict"] for one in told["findings"] if one["check"] == "disk"}

    assert verdicts("full.json") == {"bad"}
    assert verdicts("mended.json") == {"warn"}, "20 MiB are little, but no longer too little"


def _everything(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(root)): (path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in (root, *sorted(root.rglob("*")))
    }


def test_a_home_of_another_user_is_bad_and_is_never_to_be_given_away(patient: Patient) -> None:
    patient.context["uid"] = 4711
    found = patient.wrong()["home"]
    assert found.verdict == "bad"
    assert "not 4711" in found.evidence
    assert found.hint == "export TURNOUT_HOME=/a/directory/of/yours"


@pytest.mark.skipif(not AS_ROOT, reason="it takes root to be somebody else")
def test_another_users_home_is_said_and_nothing_breaks(patient: Patient) -> None:
    """The interpreter may lie where nobody may look: what is needed is loaded before the rights are given up."""
    code = (
        "import os, sys\n"
        "from click.testing import CliRunner\n"
        "from turnout.cli import cli\n"
        "import turnout.cli.doctor, turnout.cli.commands, encodings.idna\n"
        "for name in turnout.cli.commands.VERBS: cli.get_command(None, name)\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "done = CliRunner().invoke(cli, ['doctor', '--json'])\n"
        "print(done.stdout); sys.exit(done.exit_code if isinstance(done.exception, SystemExit | None) else 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=patient.environ(),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, (done.stdout, done.stderr)
    bad = [one for one in json.loads(done.stdout)["findings"] if one["verdict"] == "bad"]
    assert "home" in {one["check"] for one in bad}
    assert all(one["mend"] for one in bad)


def test_the_plane_is_said_with_the_reason_for_it(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    def plane() -> tuple[str, str, str | None]:
        (found,) = [finding for finding in patient.diagnose() if finding.check == "plane"]
        return found.verdict, found.evidence, found.hint

    verdict, evidence, _ = plane()
    assert verdict == "ok"
    assert select_plane("auto", lacks="").reason in evidence
    monkeypatch.delattr(os, "splice")
    verdict, evidence, _ = plane()
    assert (verdict, select_plane("auto", lacks=lacking()).reason in evidence) == ("ok", True)
    settings = msgspec.structs.replace(patient.settings, plane="relay")
    patient.service.settings.write_bytes(dump_settings(settings))
    verdict, evidence, mend = plane()
    assert (verdict, "plane relay cannot run here" in evidence) == ("bad", True)
    assert mend
    assert "--plane auto" in mend


def test_metrics_are_said_to_be_off_taken_or_about_to_be_served(patient: Patient) -> None:
    def metrics() -> tuple[str, str, str | None]:
        (found,) = [finding for finding in patient.diagnose() if finding.check == "metrics"]
        return found.verdict, found.evidence, found.hint

    assert metrics()[:2] == ("ok", METRICS_OFF)
    other = patient.started.demo()
    taken = Address("127.0.0.1", other.port)
    write_scrape(patient.home, Scrape(listen=taken))
    verdict, evidence, mend = metrics()
    assert verdict == "bad"
    assert f"the metrics address {taken} is in use by pid" in evidence
    assert re.fullmatch(r"turnout up --metrics 127\.0\.0\.1:\d+", mend or "")
    write_scrape(patient.home, Scrape(listen=taken, source="/etc/turnout.toml"))
    assert metrics()[2] == "name another port under [metrics] in /etc/turnout.toml, then turnout up"
    write_scrape(patient.home, Scrape(listen=Address("127.0.0.1", patient.port)))
    assert metrics()[0] == "ok"


def test_metrics_without_their_package_are_said_with_what_to_install(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scrape(patient.home, Scrape(listen=Address("127.0.0.1", patient.port)))
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    found = patient.wrong()["metrics"]
    assert (found.verdict, found.hint) == ("bad", EXTRA)
