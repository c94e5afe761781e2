"""What is measured: one entry each, with what the load generator is told, and which of its figures counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

CONNECTIONS: Final = (1, 50, 500)
SIZES: Final = (64, 1024, 16384)
STREAMS: Final = (1, 16, 64)
Placement = Literal["anywhere", "together", "apart"]
PLACED: Final[tuple[Placement, ...]] = ("together", "apart")


@dataclass(frozen=True)
class Case:
    """One measurement.

    Args:
        name: what the tables call it.
        daemon: which kind of daemon it is run against.
        load: the load generator's command, without port and seconds.
        figure: which of its figures counts.
        less_is_better: whether a small one is good.
        last: what comes after the seconds on its command line.
        must: what the ratio of the relay to HAProxy has to be at least (or at most); None: nothing is promised.
        aim: what it is meant to be.
        per: what one operation is called, for the CPU time of one.
        operation: how many of what the generator counts make one.
        placement: where the scheduler may run what takes part: anywhere; all on one core (what the work itself costs);
            or the proxy on a core of its own (so that a wake-up across cores is in it). With few connections one
            runs at a time, and the scheduler's choice of cores would be most of what is measured.
    """

    name: str
    daemon: str
    load: tuple[str, ...]
    figure: str
    less_is_better: bool = False
    last: tuple[str, ...] = ()
    must: float | None = None
    aim: float | None = None
    per: str = "exchange"
    operation: float = 1.0
    placement: Placement = "anywhere"

    @property
    def headline(self) -> bool:
        """The cases with a promise get more rounds."""
        return self.must is not None

    def command(self, seconds: float) -> tuple[str, ...]:
        """What follows the port on the generator's command line."""
        return (*self.load[1:], str(seconds), *self.last)


def shown_size(size: int) -> str:
    return f"{size} B" if size < 1024 else f"{size // 1024} KB"


def _exchange(connections: int, size: int, placement: Placement = "anywhere") -> Case:
    promises = {(1, 64): ("p50_us", 1.10, 1.0), (50, 64): ("ops_s", 0.70, 0.9)}
    # of many that all ask at once a median is no measure: who starves some of them serves the others sooner
    figure, must, aim = promises.get((connections, size), ("p50_us" if connections == 1 else "ops_s", None, None))
    where = {"anywhere": "", "together": ", on one core", "apart": ", proxy on its own core"}[placement]
    name = f"{shown_size(size)}, {connections} connection{'s' if connections > 1 else ''}{where}"
    load = ("pingpong", str(connections), str(size))
    return Case(name, "echo", load, figure, figure.endswith("_us"), must=must, aim=aim, placement=placement)


def _bulk(streams: int, way: str) -> Case:
    promises = {(1, "up"): (1.0, 1.5), (16, "up"): (1.1, 1.5)}
    must, aim = promises.get((streams, way), (None, None))
    name = f"bulk {way}, {streams} stream{'s' if streams > 1 else ''}"
    daemon = "sink" if way == "up" else "source"
    return Case(
        name,
        daemon,
        ("bulk", str(streams)),
        "bytes_s",
        last=(way,),
        must=must,
        aim=aim,
        per="MiB",
        operation=float(1 << 20),
    )


EXCHANGES: Final = (
    *(_exchange(1, size, placement) for placement in PLACED for size in SIZES),
    *(_exchange(connections, size) for connections in CONNECTIONS[1:] for size in SIZES),
)
CONNECTS: Final = Case(
    "connect + exchange + close", "echo", ("connects", "64"), "per_s", must=0.60, aim=0.8, per="connection"
)
BULK: Final = tuple(_bulk(streams, way) for way in ("up", "down", "both") for streams in STREAMS)
CASES: Final = (*EXCHANGES, CONNECTS, *BULK)
HEADLINES: Final = tuple(case for case in CASES if case.headline)


def case_named(name: str) -> Case:
    """The case with this name; raises KeyError."""
    return next(case for case in CASES if case.name == name)
