"""What the doctor says of the kernel's part in direct planes: why it cannot be had, and what a dead router left."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest

from doctor_support import Patient
from process_support import entry
from registry_support import write_both
from turnout.config.file import load_file
from turnout.config.settings import ServiceRequest, dump_settings
from turnout.core.model import Deployment, Desired, Identity, Snapshot
from turnout.doctor import direct_planes
from turnout.doctor.finding import Finding
from turnout.planes.direct import bpf
from turnout.planes.direct.bpf_pins import Pins, unfinished
from turnout.planes.direct.sk_lookup import lacking
from turnout.system.process import identify

BOTH = 1 << 39 | 1 << 12  # CAP_BPF and CAP_NET_ADMIN
TRACES = 1 << 19
PLACE = "35 1 0:29 / {} rw - bpf bpf rw\n"


class Machine:
    """A patient on plane sk_lookup, on a machine whose kernel, rights and bpf filesystem are the test's choice."""

    def __init__(self, patient: Patient) -> None:
        self.patient = patient
        patient.context["sk_lookup_lacks"] = lambda: ""
        self.own = patient.proc / "self"
        self.own.mkdir()
        self.bpffs = patient.home.root.resolve() / "bpf"
        self.may(BOTH | TRACES)
        self.plane("sk_lookup")

    def plane(self, name: str, **more: object) -> None:
        settings = msgspec.structs.replace(self.patient.settings, plane=name, **more)
        self.patient.service.settings.write_bytes(dump_settings(settings))

    def may(self, capabilities: int, *, seccomp: int = 0) -> None:
        (self.own / "status").write_text(f"Name:\tx\nCapEff:\t{capabilities:016x}\nSeccomp:\t{seccomp}\n")

    def mount(self) -> None:
        self.bpffs.mkdir()
        (self.own / "mountinfo").write_text(PLACE.format(self.bpffs))

    def pins(self, service: str = "default") -> Pins:
        """What a router left that is dead by now."""
        found = Pins.of(self.bpffs, self.patient.home.root, service)
        found.directory.parent.mkdir(mode=0o700, exist_ok=True)
        found.directory.mkdir(mode=0o700)
        (found.directory / "link").touch()
        return found

    def active(self, identity: Identity, desired: Desired = Desired.RUNNING) -> None:
        block = Deployment(generation=4, revision=20, desired=desired, active_boot_id="boot")
        write_both(self.patient.service.registry, Snapshot(daemons={"boot": entry(identity, 1)}, deployment=block))

    def said(self) -> list[Finding]:
        return [one for one in self.patient.diagnose() if one.check == "steering"]

    def wrong(self) -> Finding:
        (found,) = [one for one in self.said() if one.verdict != "ok"]
        return found

    def sound(self) -> bool:
        return {one.verdict for one in self.said()} == {"ok"}


@pytest.fixture
def machine(patient: Patient) -> Machine:
    return Machine(patient)


def refused(monkeypatch: pytest.MonkeyPatch, machine: Machine, code: int) -> None:
    """Every call of bpf(2) fails with ``code``, as on an old kernel or behind a filter."""

    def refuse(_command: int, _attr: bytes, what: str) -> int:
        raise OSError(code, f"cannot {what}: {os.strerror(code)}")

    monkeypatch.setattr(bpf, "_bpf", refuse)
    machine.patient.context["sk_lookup_lacks"] = lacking


def test_where_nothing_is_missing_that_is_said(machine: Machine) -> None:
    machine.mount()
    assert machine.sound()


def test_nothing_is_said_where_no_direct_plane_was_named(machine: Machine) -> None:
    machine.plane("relay")
    machine.patient.context["sk_lookup_lacks"] = lambda: pytest.fail("nobody wants to know")
    assert machine.said() == []


@pytest.mark.parametrize(
    ("capabilities", "names"),
    [(0, "CAP_BPF and CAP_NET_ADMIN"), (1 << 39, "CAP_NET_ADMIN"), (1 << 12, "CAP_BPF"), (1 << 21, "CAP_NET_ADMIN")],
)
def test_the_capability_that_is_missing_is_named_and_no_other(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capabilities: int, names: str
) -> None:
    refused(monkeypatch, machine, errno.EPERM)
    machine.may(capabilities)
    found = machine.wrong()
    assert (found.verdict, found.fixable) == ("warn", False)
    assert "plane sk_lookup relays here: cannot make a map: Operation not permitted" in found.evidence
    assert found.hint == f'run turnout with {names} as well (root has them), or say plane = "relay"'


@pytest.mark.parametrize(("seccomp", "by"), [(2, "the seccomp filter"), (0, "a security module or the user namespace")])
def test_who_has_the_rights_and_is_refused_all_the_same_is_not_sent_for_them(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, seccomp: int, by: str
) -> None:
    refused(monkeypatch, machine, errno.EPERM)
    machine.may(BOTH, seccomp=seccomp)
    mend = machine.wrong().hint or ""
    assert by in mend
    assert "CAP_" not in mend


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL])
def test_a_kernel_without_it_is_not_mended_by_rights(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refused(monkeypatch, machine, code)
    machine.may(0)
    found = machine.wrong()
    assert os.strerror(code) in found.evidence
    assert "Linux 5.9" in (found.hint or "")
    assert "CAP_" not in (found.hint or "")


def test_to_say_relay_as_it_advises_ends_the_warning(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(monkeypatch, machine, errno.EPERM)
    assert 'plane = "relay"' in (machine.wrong().hint or "")
    machine.plane("relay")
    assert machine.said() == []


def test_without_a_bpf_filesystem_it_says_what_that_costs_and_the_advice_mends_it(machine: Machine) -> None:
    found = machine.wrong()
    assert "no bpf filesystem is mounted" in found.evidence
    mounts = machine.own / "mountinfo"
    machine.patient.tool(
        "mount", f'test "$1 $2 $3" = "-t bpf bpf" || exit 2; echo "35 1 0:29 / $4 rw - bpf bpf rw" > "{mounts}"'
    )
    machine.patient.follow(found.hint or "")
    assert "/sys/fs/bpf" in mounts.read_text()
    assert not any("no bpf filesystem" in one.evidence for one in machine.said())


@pytest.mark.parametrize("scope", ["1", "2"])
def test_yama_keeps_a_router_from_listeners_unless_it_may_trace(machine: Machine, scope: str) -> None:
    machine.mount()
    machine.patient.sysctl("kernel.yama.ptrace_scope", scope)
    assert machine.sound(), "it has CAP_SYS_PTRACE"
    machine.may(BOTH)
    found = machine.wrong()
    assert f"ptrace_scope is {scope}" in found.evidence
    machine.patient.follow(found.hint or "")
    assert machine.sound()


def test_yama_at_its_strictest_cannot_be_set_back_and_no_capability_helps(machine: Machine) -> None:
    machine.mount()
    machine.patient.sysctl("kernel.yama.ptrace_scope", "3")
    found = machine.wrong()
    assert "ptrace_scope is 3" in found.evidence
    assert "till the next boot" in (found.hint or "")


def test_a_directory_that_is_not_to_be_trusted_is_said_and_can_be_removed(machine: Machine) -> None:
    machine.mount()
    directory = machine.pins().directory.parent
    directory.chmod(0o777)
    found = next(one for one in machine.said() if "is not a directory of our own" in one.evidence)
    machine.patient.follow(found.hint or "")
    assert machine.sound()


@pytest.mark.parametrize("closed", [False, True])
def test_a_bpf_filesystem_that_may_not_be_written_or_even_looked_into_is_said(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    machine.mount()
    if closed:

        def refuse(directory: Path) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory))

        monkeypatch.setattr(direct_planes, "is_ours", refuse)
    monkeypatch.setattr(os, "access", lambda path, _: path != machine.bpffs)  # root may write everywhere
    machine.patient.context["uid"] = 4711
    found = machine.wrong()
    assert "may not be written, so nothing is pinned" in found.evidence
    assert "chown 4711 " in (found.hint or "")


# -- what was left ---------------------------------------------------------------------------------------------------


def test_pins_of_a_service_that_is_gone_are_bad_and_can_be_removed(machine: Machine) -> None:
    machine.mount()
    pins = machine.pins("another")
    found = machine.wrong()
    assert (found.verdict, found.fixable) == ("bad", True)
    assert str(pins.directory) in found.evidence
    machine.patient.follow(found.hint or "")
    assert machine.sound()


def test_pins_that_were_never_whole_are_found_too(machine: Machine) -> None:
    machine.mount()
    pins = machine.pins()
    pins.directory.rename(unfinished(pins.directory))
    assert str(unfinished(pins.directory)) in machine.wrong().evidence


def test_a_dead_routers_pins_that_still_serve_are_left_for_the_next_router(machine: Machine) -> None:
    machine.mount()
    pins = machine.pins()
    machine.active(identify(os.getpid()))
    found = machine.wrong()
    assert "no router runs, and the kernel goes on" in found.evidence
    assert (found.verdict, found.hint, found.fixable) == ("warn", "turnout up", False)
    assert machine.patient.fix() == []
    assert pins.exist()


@pytest.mark.parametrize("why", ["nobody is active", "it is stopped", "the daemon is dead"])
def test_a_dead_routers_pins_that_serve_nobody_are_removed_by_fix(machine: Machine, why: str) -> None:
    machine.mount()
    pins = machine.pins()
    if why == "it is stopped":
        machine.active(identify(os.getpid()), Desired.STOPPED)
    elif why == "the daemon is dead":
        child = machine.patient.started.run("true")
        identity = identify(child.pid)
        child.wait(60)
        machine.active(identity)
    found = machine.wrong()
    assert "no daemon is to get connections" in found.evidence
    assert found.fixable
    assert [line.startswith("rm -r -- ") for line in machine.patient.fix()] == [True]
    assert not pins.exist()
    assert machine.sound()


@pytest.mark.parametrize("service", ["default", "another"])
def test_what_was_pinned_before_the_home_had_a_place_of_its_own_is_found_too(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    machine.mount()
    pins = machine.pins(service)
    systems, machine.bpffs = machine.bpffs, machine.patient.home.root.resolve() / "own"
    monkeypatch.setattr("turnout.planes.direct.bpf_pins.SYSTEM_BPFFS", systems)
    monkeypatch.setattr("turnout.planes.direct.bpf_pins.OWN_BPFFS", "own")
    machine.bpffs.mkdir()
    with (machine.own / "mountinfo").open("a") as file:
        file.write(PLACE.format(machine.bpffs))
    found = machine.wrong()
    assert str(pins.directory) in found.evidence
    assert found.fixable
    machine.patient.follow(found.hint or "")
    assert machine.sound()


def test_what_one_service_is_asked_for_is_not_told_of_others(machine: Machine) -> None:
    machine.mount()
    machine.pins("another")
    machine.patient.context["only"] = "default"
    assert machine.sound()


# -- reuseport, and why not a better plane ---------------------------------------------------------------------------


def test_a_group_that_does_not_work_here_is_said_where_reuseport_was_named(machine: Machine) -> None:
    machine.plane("reuseport", takes_part=True)
    assert machine.sound()
    machine.patient.context["group_lacks"] = lambda: (
        "member 1 of a group was chosen, and another one got the connection"
    )
    assert "plane reuseport relays here: member 1 of a group" in machine.wrong().evidence


def test_a_daemon_that_would_not_take_part_in_reuseport_is_said_with_what_it_takes(patient: Patient) -> None:
    configured(patient, '["sleep", "{port}"]')
    found = patient.wrong()["configuration"]
    assert found.verdict == "bad"
    assert "plane reuseport: the command asks for a {port} of its own" in found.evidence
    assert "{fd}" in (found.hint or "")
    configured(patient, '["sleep", "{fd}"]')
    assert "configuration" not in patient.wrong()


def configured(patient: Patient, command: str) -> dict[str, ServiceRequest]:
    path: Path = patient.directory / "turnout.toml"
    path.write_text(
        f'[service.default]\nlisten = "127.0.0.1:{patient.port}"\ncommand = {command}\nplane = "reuseport"\n'
    )
    found = load_file(path)
    patient.context["configured"] = found
    return found


def plane(machine: Machine) -> str:
    (found,) = [one.evidence for one in machine.patient.diagnose() if one.check == "plane"]
    return found


def test_auto_says_why_no_better_plane_serves(machine: Machine) -> None:
    machine.plane("auto")
    assert 'plane = "sk_lookup" can run here' in plane(machine)
    assert "reuseport, for a daemon that is given its listener ({fd})" in plane(machine)
    machine.patient.context["sk_lookup_lacks"] = lambda: "Operation not permitted"
    assert "sk_lookup cannot run here: Operation not permitted" in plane(machine)
    machine.plane("auto", takes_part=True)
    assert "the daemon takes part in it, and it works here" in plane(machine)
    machine.patient.context["group_lacks"] = lambda: "this system has no SO_REUSEPORT"
    assert plane(machine).endswith("reuseport does not work here: this system has no SO_REUSEPORT")
    machine.plane("auto", takes_part=True, connections=5)
    assert plane(machine).endswith("only a relay can enforce limits.connections")
