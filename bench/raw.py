"""A run as it was recorded: what pytest-benchmark wrote, sorted by kind."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.measure import Figures

KEPT_DIGITS: Final = 5


@dataclass
class Run:
    """What was found: most of it by case and contender, growth by curve and plane."""

    about: dict[str, Any] = field(default_factory=dict)
    date: str = ""
    cases: dict[str, dict[str, list[Figures]]] = field(default_factory=dict)
    calls: dict[str, dict[str, Figures]] = field(default_factory=dict)
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    idle: dict[str, dict[str, list[Figures]]] = field(default_factory=dict)
    switches: dict[str, dict[str, Any]] = field(default_factory=dict)
    growth: dict[tuple[str, str], dict[str, Figures]] = field(default_factory=dict)
    micro: dict[str, tuple[float, int]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Run:
        """Raises OSError or ValueError: it is not there, or not the record of a run."""
        raw: dict[str, Any] = json.loads(path.read_text())
        if "bench" not in raw.get("machine_info", {}):
            raise ValueError("not the record of a benchmark run")
        run = cls(about=raw["machine_info"]["bench"], date=str(raw["datetime"])[:10])
        for each in raw["benchmarks"]:
            run.take(each)
        return run

    def take(self, each: dict[str, Any]) -> None:
        told = each["extra_info"]
        kind = told.get("kind")
        if kind == "case":
            self.cases[told["case"]] = told["figures"]
        elif kind == "idle":
            self.idle = told["figures"]
        elif kind == "calls":
            self.calls[told["case"]] = told["figures"]
        elif kind == "known":
            self.known[told["name"]] = told
        elif kind == "switch":
            self.switches[told["name"]] = told["figures"]
        elif kind == "growth":
            self.growth[told["curve"], told["plane"]] = told["points"]
        elif kind is None and each.get("stats"):
            name = each["group"] or each["name"]
            if each.get("param"):
                name = f"{name}, {each['param']}"
            self.micro[name] = (each["stats"]["median"], each["stats"]["rounds"])

    def compact(self) -> str:
        """The same as JSON, one line for each contender in a case: small enough to be kept."""
        growth = {f"{curve}, {plane}": points for (curve, plane), points in self.growth.items()}
        whole = {
            "date": self.date,
            "about": self.about,
            "cases": self.cases,
            "calls": self.calls,
            "known": self.known,
            "idle": self.idle,
            "switches": self.switches,
            "growth": growth,
            "micro": self.micro,
        }
        return json.dumps(_rounded(whole), indent=None, separators=(",", ":")).replace('},"', '},\n"') + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{KEPT_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
