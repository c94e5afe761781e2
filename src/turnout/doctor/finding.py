"""What a check says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

Verdict = Literal["ok", "warn", "bad"]
GRAVITY: tuple[Verdict, ...] = ("bad", "warn", "ok")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at.

    ``mend``: what to type, or, where no command does it, what to do; None where nothing is to be done. ``fixable``:
    ``doctor --fix`` does it, without harm to anything that runs.
    """

    check: str
    service: str | None
    verdict: Verdict
    evidence: str
    mend: str | None
    fixable: bool


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """All of ``doctor --json``. ``fixed``: what ``--fix`` did, a line each; the findings are of after that."""

    schema: Literal[1]
    verdict: Verdict
    fixed: list[str]
    findings: list[Finding]


@dataclass(frozen=True, slots=True)
class Found:
    """A finding, with what ``--fix`` would call for it."""

    finding: Finding
    fix: Callable[[], None] | None = None


def ok(check: str, evidence: str, *, service: str | None = None) -> Found:
    return Found(Finding(check=check, service=service, verdict="ok", evidence=evidence, mend=None, fixable=False))


def warn(
    check: str, evidence: str, mend: str, *, service: str | None = None, fix: Callable[[], None] | None = None
) -> Found:
    return _wrong("warn", check, evidence, mend, service, fix)


def bad(
    check: str, evidence: str, mend: str, *, service: str | None = None, fix: Callable[[], None] | None = None
) -> Found:
    return _wrong("bad", check, evidence, mend, service, fix)


def worst(findings: Sequence[Finding]) -> Verdict:
    """The gravest verdict; ok where there is none."""
    for verdict in GRAVITY:
        if any(finding.verdict == verdict for finding in findings):
            return verdict
    return "ok"


def _wrong(
    verdict: Verdict, check: str, evidence: str, mend: str, service: str | None, fix: Callable[[], None] | None
) -> Found:
    finding = Finding(
        check=check, service=service, verdict=verdict, evidence=evidence, mend=mend, fixable=fix is not None
    )
    return Found(finding, fix)
