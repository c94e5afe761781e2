"""How much is measured: the whole of it, or enough to see in two minutes that all of it works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench.cases import Case
from bench.contenders import CONTENDERS, REFERENCE


@dataclass(frozen=True)
class Scale:
    """Counts of one run.

    Args:
        headline_rounds: rounds of the cases that something is promised for.
        rounds: rounds of the others.
        seconds: of load in each round.
        switches: for each way to switch.
        idle: numbers of idle connections.
        idle_rounds: how often they are opened in a proxy that was started for it.
        idle_s: how long their CPU time is looked at.
        only_headlines: leave the other cases out.
        contenders: who takes part, if it can.
        known_rounds: of the well-known tools, which run for a second each, with ``known_contenders``.
        services, draining, daemons: the points of the growth curves.
    """

    headline_rounds: int
    rounds: int
    seconds: float
    switches: int
    idle: tuple[int, ...]
    idle_rounds: int
    idle_s: float
    only_headlines: bool
    contenders: tuple[str, ...]
    known_rounds: int
    known_contenders: tuple[str, ...]
    services: tuple[int, ...]
    draining: tuple[int, ...]
    daemons: tuple[int, ...]

    def rounds_of(self, case: Case) -> int:
        return self.headline_rounds if case.headline else self.rounds


FULL: Final = Scale(
    headline_rounds=9,
    rounds=5,
    seconds=0.3,
    switches=200,
    idle=(1000, 5000),
    idle_rounds=2,
    idle_s=5.0,
    only_headlines=False,
    contenders=tuple(each.name for each in CONTENDERS if each.name != REFERENCE),
    known_rounds=3,
    known_contenders=("direct", "relay", "sk_lookup", "stream", "haproxy", "nginx"),
    services=(1, 5, 15),
    draining=(0, 2, 6),
    daemons=(2, 1000, 5000),
)
QUICK: Final = Scale(
    headline_rounds=3,
    rounds=1,
    seconds=0.1,
    switches=8,
    idle=(500,),
    idle_rounds=1,
    idle_s=0.5,
    only_headlines=True,
    contenders=("direct", "relay", "stream", "haproxy"),
    known_rounds=1,
    known_contenders=("direct", "relay"),
    services=(1, 2),
    draining=(0, 1),
    daemons=(2, 200),
)
