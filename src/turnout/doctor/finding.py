"""What a check finds: the evidence, a verdict, and what to type."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal

import msgspec

Verdict = Literal["ok", "warn", "bad"]
GRAVITY: tuple[Verdict, ...] = ("bad", "warn", "ok")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at.

    ``hint``: what to type, or, where no command does it, what to do; None where nothing is to be done. ``fixable``:
    ``doctor --fix`` does it, without harm to anything that runs.
    """

    check: str
    service: str | None
    verdict: Verdict
    evidence: str
    hint: str | None = msgspec.field(name="mend")  # JSON has the older name
    fixable: bool


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """All of ``doctor --json``. ``fixed``: what ``--fix`` did, a line each; the findings are of after that."""

    schema: Literal[1]
    verdict: Verdict
    fixed: list[str]
    findings: list[Finding]


class CheckResult(msgspec.Struct, frozen=True):
    """A finding while it is made, with the function that ``--fix`` calls for it.

    ``check`` and ``service`` are empty where they are those that :mod:`turnout.doctor.run` runs the check for.
    """

    verdict: Verdict
    evidence: str
    hint: str | None = None
    fix: Callable[[], None] | None = None
    check: str = ""
    service: str | None = None

    @property
    def finding(self) -> Finding:
        return Finding(
            check=self.check,
            service=self.service,
            verdict=self.verdict,
            evidence=self.evidence,
            hint=self.hint,
            fixable=self.fix is not None,
        )


ok: Final = partial(CheckResult, "ok")
warn: Final = partial(CheckResult, "warn")
bad: Final = partial(CheckResult, "bad")


def worst(findings: Sequence[Finding]) -> Verdict:
    """The gravest verdict; ok where there is none."""
    for verdict in GRAVITY:
        if any(finding.verdict == verdict for finding in findings):
            return verdict
    return "ok"


def quoted(path: str | Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def move_aside(path: Path) -> str:
    """The command that renames a file to ``FILE.aside``."""
    return f"mv -- {quoted(path)} {quoted(path)}.aside"
